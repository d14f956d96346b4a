"""Pipelines across groups: which schedules and chunks frameworks run with how many stages, and what users fix."""

from collections import Counter
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from costmodels.plan import Schedule
from planner.question.request import Options
from planner.search import mixed_families as module
from planner.search.bounds import mixed as mixed_bounds
from planner.search.call import search
from planner.search.mixed_families import mixed_families
from planner.search.question import ask
from tests.search.small import INSTANCES, Small

BY_NAME = {instance.name: instance for instance in INSTANCES}
INTERLEAVED, ZERO_BUBBLE = BY_NAME["two types, interleaved"], BY_NAME["two types, zero bubble"]


def shapes(**changes: Any) -> set[tuple[int, Schedule, int, int]]:
    """Stages, schedule, chunks and micro-batches of every family."""
    question = replace(INTERLEAVED, **changes).question()
    families = mixed_families(question, question.requests[0].pins).families()
    return {(each.num_stages, each.schedule, each.virtual_stages, each.num_microbatches) for each in families}


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["auto", "cpsat"])
@pytest.mark.parametrize(("instance", "schedule", "chunks"), [(INTERLEAVED, "1f1b", 2), (ZERO_BUBBLE, "zb-v", 1)])
def test_the_best_schedule_across_two_types_is_found_and_proved(
    instance: Small, schedule: str, chunks: int, strategy: str
) -> None:
    best_s, plans = instance.optimum()
    result = instance.found(strategy=strategy)
    assert plans > 100_000
    assert result.best is not None
    assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
    assert result.bound_s is not None
    assert best_s * (1 - 1e-6) <= result.bound_s <= best_s * (1 + 1e-9)
    assert (result.best.schedule, result.best.virtual_stages) == (schedule, chunks)
    assert len({stage.device for stage in result.best.stages}) == 2
    plain = replace(instance, pins=instance.pins | {"vpp": 1, "schedule": "1f1b"}).found()
    assert plain.best is not None
    assert result.best.step_time_s < 0.99 * plain.best.step_time_s


def test_frameworks_that_have_zero_bubble_run_it_across_groups_and_others_are_told_why_not() -> None:
    best = replace(ZERO_BUBBLE, runnable=True, pins=ZERO_BUBBLE.pins | {"schedule": "zb-v"}).found().best
    assert best is not None
    assert len({stage.device for stage in best.stages}) == 2
    verdicts = {verdict.framework: verdict for verdict in best.frameworks}
    assert verdicts["fsdp"].runs
    for name in ("megatron", "deepspeed", "nanotron"):
        assert verdicts[name].broken["pipeline_schedule_exists"] == "the framework implements the schedule"


def test_megatron_interleaves_whole_rounds_of_chunks_with_a_layer_each() -> None:
    found = shapes()
    assert {schedule for _, schedule, _, _ in found} == {Schedule.ONE_F_ONE_B}
    assert {chunks for stages, _, chunks, _ in found if stages == 2} == {1, 2, 3}
    assert {chunks for stages, _, chunks, _ in found if stages > 3} == {1}
    assert all(chunks == 1 or m % stages == 0 for stages, _, chunks, m in found)
    assert any(m % stages for stages, _, chunks, m in found if chunks == 1)


@pytest.mark.parametrize(
    ("framework", "schedules", "chunks"),
    [
        ("fsdp", {Schedule.ONE_F_ONE_B, Schedule.GPIPE, Schedule.ZERO_BUBBLE_V}, {1, 2, 3}),
        ("nanotron", {Schedule.ONE_F_ONE_B, Schedule.GPIPE}, {1}),
        ("deepspeed-megatron", {Schedule.ONE_F_ONE_B}, {1}),
    ],
)
def test_frameworks_run_their_own_schedules(framework: str, schedules: set[Schedule], chunks: set[int]) -> None:
    found = shapes(framework=framework)
    assert {schedule for _, schedule, _, _ in found} == schedules
    assert {each for _, _, each, _ in found} == chunks
    assert {each for _, schedule, each, _ in found if schedule != Schedule.ONE_F_ONE_B} <= {1}
    assert {stages for stages, schedule, _, _ in found if schedule == Schedule.ZERO_BUBBLE_V} <= {2, 3}  # of 6 layers


def test_what_the_user_fixed_is_fixed_across_groups_too() -> None:
    assert {chunks for _, _, chunks, _ in shapes(pins={"vpp": 2})} == {2}
    assert {stages for stages, _, _, _ in shapes(pins={"pp": 3})} == {3}
    gpipe = shapes(framework="fsdp", pins={"schedule": "gpipe"})
    assert {(schedule, chunks) for _, schedule, chunks, _ in gpipe} == {(Schedule.GPIPE, 1)}


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_families_that_cannot_be_below_a_step_are_not_built(share: float) -> None:
    question = INTERLEAVED.question()
    every = mixed_families(question, question.requests[0].pins)
    below_s = share * float(np.median(every.least_s))
    some = mixed_families(question, question.requests[0].pins, below_s=below_s)
    assert sorted(some.least_s.tolist()) == sorted(every.least_s[every.least_s < below_s].tolist())
    assert len(some.families()) == len(some.least_s)


def test_of_many_choices_the_most_promising_are_looked_at_and_the_others_bounded() -> None:
    question = INTERLEAVED.question()
    pins = question.requests[0].pins
    every = mixed_families(question, pins)
    assert every.left_out_s == np.inf
    assert (np.diff(every.least_s) >= 0).all()
    for most, alike in ((5, 1 << 12), (10_000, 4), (5, 4)):
        with mock.patch.multiple(module, _MOST_CHOICES=most, _MOST_ALIKE_CHOICES=alike):
            some = mixed_families(question, pins)
        left_out = Counter(every.least_s.tolist()) - Counter(some.least_s.tolist())
        assert len(some.least_s) + left_out.total() == len(every.least_s)
        assert 0 < some.left_out_s <= min(left_out)
        assert some.least_s[0] < np.median(every.least_s)


def test_eight_types_of_devices_are_prepared_for_in_bounded_memory() -> None:
    kinds = "8xA100+8xH100+8xH200+8xB200+8xL40S+8xH20+8xA10G+8xL4"
    question = ask("llama-2-13b", kinds, {}, {}, Options())
    mixed = mixed_families(question, {})
    assert len(mixed.least_s) < 1_000_000
    assert 0 < mixed.left_out_s < np.inf
    assert len(mixed.families(10, 20)) == 10


@pytest.mark.long
@pytest.mark.parametrize("first", [1, 7])
def test_families_that_come_a_few_at_a_time_give_the_same_optimum_and_proof(first: int) -> None:
    best_s, _ = INTERLEAVED.optimum()
    with mock.patch.multiple(mixed_bounds, _FIRST=first, _MOST=3 * first):
        result = INTERLEAVED.found()
    assert result.best is not None
    assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
    assert result.bound_s == pytest.approx(best_s, rel=1e-6)


def test_what_nobody_looked_at_is_not_proved() -> None:
    best_s, _ = INTERLEAVED.optimum()
    with mock.patch.multiple(module, _MOST_CHOICES=1, _MOST_ALIKE_CHOICES=4):
        result = INTERLEAVED.found()
    across = [run for run in result.engines if run.space.startswith("pipelines across groups,")]
    assert across
    assert all(run.bound_s is not None and run.bound_s < 0.9 * best_s for run in across)
    assert {run.status for run in across} == {"feasible"}


@pytest.mark.long
def test_a_search_over_five_types_keeps_to_its_time_and_uses_them() -> None:
    result = search("llama-2-13b", "8xA100+8xH100+8xH200+8xB200+8xL40S", seconds=20.0, strategy="auto")
    assert result.elapsed_s < 25.0
    assert result.best is not None
    assert len({stage.device for stage in result.best.stages}) >= 4
    assert result.best.step_time_s < 0.75 * (result.uniform_step_time_s or 0.0)
