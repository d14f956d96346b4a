"""Pipelines across groups: which schedules and chunks frameworks run with how many stages, and what users fix."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.plan import Schedule
from planner.search.mixed_families import mixed_families
from tests.search.small import INSTANCES, Small

BY_NAME = {instance.name: instance for instance in INSTANCES}
INTERLEAVED, ZERO_BUBBLE = BY_NAME["two types, interleaved"], BY_NAME["two types, zero bubble"]


def shapes(**changes: Any) -> set[tuple[int, Schedule, int, int]]:
    """Stages, schedule, chunks and micro-batches of every family."""
    question = replace(INTERLEAVED, **changes).question()
    families = mixed_families(question, question.requests[0].pins).families
    return {(each.num_stages, each.schedule, each.virtual_stages, each.num_microbatches) for each in families}


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
    assert len(some.families) == len(some.least_s)
