"""Which cases a budget buys: order, coverage, limits."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import SpecError
from profiles.measure import cases
from profiles.measure.cases import Case
from profiles.measure.grid import kernel_grid
from profiles.measure.models import step_grid
from profiles.measure.select import Speeds, cost_s, ordered, parse_budget, roofline_s, select

# About an H100, in the powers of two that a probe gives.
GPU = Speeds(
    flops_per_s={"bf16": 2.0**49, "fp16": 2.0**49, "fp8": 2.0**49, "tf32": 2.0**48, "fp32": 2.0**45},
    bytes_per_s=2.0**41,
    host_bytes_per_s=2.0**35,
    fill_bytes_per_s=2.0**40,
    cache_bytes=50 << 20,
    free_bytes=2.0**36,
)
GRID = (*kernel_grid(gpu=True), *step_grid())


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("30m", 1800), ("1h", 3600), ("90", 90), (" 1.5 min ", 90), ("2S", 2)]
)
def test_budgets_are_read_in_the_units_people_write(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0s", "2d", "25h", "-5s", "1e3s", "9" * 60])
def test_a_bad_budget_is_named(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_budget(text)
    assert str(caught.value) == (
        f"measure.budget: must be between 1s and 24h; got {text[:40]!r}. Hint: for example 60s or 30m"
    )


def test_the_roofline_is_the_slower_of_arithmetic_and_memory() -> None:
    dense = cases.gemm("NT", "bf16", 4096, 4096, 4096)
    assert roofline_s(dense, GPU) == pytest.approx(2 * 4096**3 / 2**49)
    thin = cases.gemm("NT", "bf16", 1, 4096, 4096)
    assert roofline_s(thin, GPU) == pytest.approx(2 * (4096**2 + 2 * 4096) / 2**41)
    assert roofline_s(cases.host_copy("host_to_device", 1 << 30), GPU) == pytest.approx(2**30 / 2**35)


def test_a_minute_buys_about_a_hundred_kernels_of_every_kind() -> None:
    chosen = select(GRID, GPU, 60.0)
    assert 80 <= len(chosen.cases) <= 160
    assert chosen.expected_s <= 60.0
    families = Counter(case.family for case in chosen.cases)
    assert set(families) == {case.family for case in GRID}
    assert families["gemm"] + families["attention"] >= 0.35 * len(chosen.cases)
    strata = {case.stratum for case in GRID if case.kind != "step" and not case.setup_s}
    assert strata <= {case.stratum for case in chosen.cases}
    assert not any(case.setup_s for case in chosen.cases)  # compiling would eat the minute


def test_half_an_hour_buys_the_whole_grid() -> None:
    chosen = select(GRID, GPU, 1800.0)
    assert len(chosen.cases) > 0.95 * len(GRID)
    assert chosen.too_large == 0
    compiled = {case.stratum: case.setup_s for case in chosen.cases if case.setup_s}
    assert len(compiled) == 9
    running_s = sum(cost_s(case, GPU) for case in chosen.cases)
    assert chosen.expected_s == pytest.approx(running_s + sum(compiled.values()))


def test_the_order_does_not_depend_on_the_order_of_the_grid() -> None:
    few = GRID[::17]
    assert ordered(few, GPU) == ordered(tuple(reversed(few)), GPU)
    assert sorted(ordered(few, GPU), key=lambda case: case.label) == sorted(few, key=lambda case: case.label)


def test_the_beginning_of_a_stratum_spans_its_durations() -> None:
    gemms = [case for case in GRID if case.stratum == "gemm|gemm|bf16|NT|torch"]
    whole = [roofline_s(case, GPU) for case in gemms]
    first = [roofline_s(case, GPU) for case in ordered(gemms, GPU)[:8]]
    assert max(first) > 0.5 * max(whole)
    assert min(first) < 4 * min(whole)
    middle = sorted(whole)[len(whole) // 2]
    assert any(0.3 < time / middle < 3 for time in first)


def test_what_does_not_fit_is_counted_and_left_out() -> None:
    small = dataclasses.replace(GPU, free_bytes=1e9)
    chosen = select(GRID, small, 1800.0)
    assert all(case.footprint_bytes <= 1e9 for case in chosen.cases)
    assert chosen.too_large == sum(case.footprint_bytes > 1e9 for case in GRID)
    slow = dataclasses.replace(GPU, flops_per_s={"bf16": 1e11}, bytes_per_s=1e10)
    chosen = select(GRID, slow, 60.0)
    assert chosen.too_long > 0
    assert max(cost_s(case, slow) for case in chosen.cases) <= 60 / 15


@given(budget_s=st.floats(1.0, 2000.0), start=st.integers(0, 50), step=st.integers(20, 90))
def test_a_selection_keeps_to_its_budget(budget_s: float, start: int, step: int) -> None:
    chosen = select(GRID[start::step], GPU, budget_s)
    compiled = {case.stratum: case.setup_s for case in chosen.cases}
    running_s = sum(cost_s(case, GPU) for case in chosen.cases)
    assert running_s + sum(compiled.values()) == pytest.approx(chosen.expected_s)
    assert chosen.expected_s <= budget_s
    assert len(set(chosen.cases)) == len(chosen.cases)


def test_nothing_to_choose_from_is_no_error() -> None:
    empty: tuple[Case, ...] = ()
    assert select(empty, GPU, 60.0).cases == ()
