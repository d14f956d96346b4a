"""Random shapes: drawn the same from the same seed, within bounds, and free of the lattice's regularities."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.measure import __main__ as command
from profiles.measure.cases import Case
from profiles.measure.collect import FAMILIES, Collected
from profiles.measure.drawn import drawn_cases
from profiles.measure.grid import kernel_grid
from profiles.timings import check_table, table_of_rows

CASES = drawn_cases(1000, seed=1)


def gemms(cases: tuple[Case, ...]) -> np.ndarray:
    return np.array([[case["m"], case["n"], case["k"]] for case in cases if case.family == "gemm"], dtype=float)


def test_every_drawn_case_is_a_sound_row_of_the_schema() -> None:
    measured = {"device": "H100-SXM-80GB", "method": "graph", "statistic": "median", "time_s": 1e-3}
    table = check_table(table_of_rows([case.columns() | measured for case in CASES]))
    assert len(table) == len(CASES) == len(set(CASES))


def test_about_the_number_asked_for_in_the_shares_of_a_language_model() -> None:
    assert 950 <= len(CASES) <= 1000
    families = Counter(case.family for case in CASES)
    assert set(families) <= set(FAMILIES)
    assert {"gemm", "attention", "norm", "activation", "loss", "rotary", "embedding", "optimizer"} <= set(families)
    assert families["gemm"] == pytest.approx(400, rel=0.02)
    assert families["attention"] == pytest.approx(300, rel=0.05)
    operations = Counter(case.op for case in CASES)
    assert operations["attention_backward"] > 60
    assert operations["attention_decode"] > 60


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_same_seed_draws_the_same_cases(seed: int, count: int) -> None:
    assert drawn_cases(count, seed=seed) == drawn_cases(count, seed=seed)


def test_another_seed_draws_others() -> None:
    assert not set(drawn_cases(200, seed=2)) & set(drawn_cases(200, seed=3))


def test_no_more_are_drawn_than_anyone_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiles.measure.drawn.MOST", 30)
    assert drawn_cases(1000, seed=1) == drawn_cases(30, seed=1)


def test_hardly_a_shape_lies_on_the_lattice() -> None:
    lattice = {(case.op, case.shape) for case in kernel_grid(gpu=True)}
    on_it = sum((case.op, case.shape) in lattice for case in CASES)
    assert on_it <= 5
    rows = gemms(CASES)[:, 0]
    assert np.mean(np.mod(rows, 128) != 0) > 0.5


def test_sizes_are_log_uniform_up_to_larger_work_than_the_lattice_has() -> None:
    shapes = gemms(CASES)
    work = 2 * shapes.prod(axis=1)
    assert work.max() <= 1e14
    assert work.max() > max(case.flops for case in kernel_grid(gpu=True) if case.op == "gemm")
    # Half of the rows lie below the geometric middle of the range; products too large were drawn again.
    assert np.median(shapes[:, 0]) == pytest.approx(np.sqrt(16 * 32768), rel=0.35)


def test_narrow_formats_get_the_multiples_their_kernels_need() -> None:
    for case in CASES:
        if case.family != "gemm":
            continue
        needed = 16 if case.dtype == "fp8" else 8
        assert case["n"] % needed == 0
        assert case["k"] % needed == 0
        if case.dtype == "fp8":
            assert (case.layout, case["m"] % 16) == ("NT", 0)
        if case.layout == "TN":
            assert case["m"] % needed == 0


def test_key_heads_divide_the_query_heads() -> None:
    for case in CASES:
        if case.family == "attention":
            assert case["heads"] % case["kv_heads"] == 0


def test_the_command_measures_the_cases_of_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measured(out: Path, **given: Any) -> Collected:
        asked.append(given["cases"])
        return Collected(
            out=out, runs=None, device="A40", measured=1, before=0, failed=(), left=0, too_large=0, too_long=0,
            elapsed_s=1.0,
        )  # fmt: skip

    monkeypatch.setattr(command, "collect", measured)
    for words in ((), ("--drawn", "30", "--seed", "7")):
        monkeypatch.setattr(sys, "argv", ["measure", "--out", str(tmp_path / "my.parquet"), *words])
        monkeypatch.setattr(command, "drawn_cases", lambda count, *, seed: (count, seed))
        assert command.main() == 0
    capsys.readouterr()
    assert asked == [None, (30, 7)]
