"""Quantities in words."""

from dataclasses import replace

import pytest

from costmodels.estimate import MEMORY_PARTS, TIME_PARTS
from costmodels.plan import ExecutionPlan, Recompute, Schedule
from planner import phrases
from planner.results import Remedy
from profiles.units import GIB


def test_every_part_has_a_name() -> None:
    assert set(phrases.TIME_NAMES) == set(TIME_PARTS)
    assert set(phrases.MEMORY_NAMES) == set(MEMORY_PARTS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3.2e-6, "3.2 us"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (1.234, "1.23 s"),
        (59.96, "60 s"),
        (1234.0, "1,234 s"),
        (7200.0, "2.0 hours"),
        (172800.0, "2.0 days"),
        (1e8, "1,157.4 days"),
    ],
)
def test_seconds(value: float, words: str) -> None:
    assert phrases.seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (1024, "1,024"),
        (6.74e9, "6.74B"),
        (15e12, "15T"),
        (4194304, "4.19M"),
        (999.6e9, "1,000B"),
        (4.945e21, "4.9e21"),
    ],
)
def test_counts(value: float, words: str) -> None:
    assert phrases.count(value) == words


@pytest.mark.parametrize(("value", "words"), [(0.5, "50 %"), (0.0312, "3.1 %"), (0.0996, "10 %"), (0.0, "0.0 %")])
def test_percents(value: float, words: str) -> None:
    assert phrases.percent(value) == words


def test_differences() -> None:
    assert phrases.signed_percent(0.012) == "+1.2 %"
    assert phrases.signed_percent(-0.5) == "-50 %"
    assert phrases.signed_percent(1e-5) == "="
    assert phrases.signed_gib(-1.5 * GIB) == "-1.5 GiB"
    assert phrases.signed_gib(1e6) == "="


@pytest.mark.parametrize(("value", "words"), [(2.5, "$2.50"), (549420.3, "$549,420"), (100.0, "$100")])
def test_dollars(value: float, words: str) -> None:
    assert phrases.dollars(value) == words


def test_plans() -> None:
    plan = ExecutionPlan(recompute=Recompute.BLOCK, recompute_layers=4, schedule=Schedule.ZERO_BUBBLE_V)
    assert phrases.recompute_label(plan) == "block:4"
    moved = phrases.plan_label(replace(plan, offload_optimizer=True, offload_parameters=True))
    assert moved == f"{phrases.plan_label(plan)}, offload, weight offload"
    assert phrases.recompute_label(ExecutionPlan(recompute=Recompute.FULL)) == "full"
    assert phrases.schedule_label(plan) == "zb-v"


@pytest.mark.parametrize(
    ("fits", "words"),
    [
        (True, "use 16 devices: fits, peak 70.0 GiB, 12 s per step on 16 devices"),
        (False, "use 16 devices: still does not fit, peak 70.0 GiB"),
    ],
)
def test_remedies(fits: bool, words: str) -> None:
    remedy = Remedy(
        code="more_devices",
        message="use 16 devices",
        fits=fits,
        likely=fits,
        plan=ExecutionPlan(),
        num_devices=16,
        device="H100-SXM-80GB",
        step_time_s=12.0,
        peak_memory_bytes=70.0 * GIB,
        oom_probability=0.1,
    )
    assert phrases.remedy_sentence(remedy) == words
    risky = phrases.remedy_sentence(replace(remedy, fits=True, likely=False, oom_probability=0.31))
    assert risky.startswith("use 16 devices: fits, peak 70.0 GiB (runs out of memory in 31 % of runs), 12 s")
    alone = replace(remedy, fits=True, likely=True, num_devices=1)
    assert phrases.remedy_sentence(alone).endswith("12 s per step on 1 device")


@pytest.mark.parametrize(
    ("number", "words"),
    [(1846.3, "1,846"), (99.6, "100"), (9.97, "10"), (2.43, "2.4"), (0.0523, "0.052")],
)
def test_hours_of_short_runs_keep_a_decimal(number: float, words: str) -> None:
    assert phrases.amount(number) == words


@pytest.mark.parametrize(
    ("joules", "words"),
    [(4.45e10, "12.36 MWh"), (3.6e9, "1.00 MWh"), (2.96e9, "822 kWh"), (9e6, "2.5 kWh")],
)
def test_energy_of_short_runs_is_in_kwh(joules: float, words: str) -> None:
    assert phrases.energy(joules) == words
