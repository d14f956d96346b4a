"""Pipelines across groups: which schedules and chunks frameworks run with how many stages, and what users fix."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.plan import Schedule
from planner.search.mixed_families import mixed_families
from tests.search.small import INSTANCES

INTERLEAVED = next(instance for instance in INSTANCES if instance.name == "two types, interleaved")


def shapes(**changes: Any) -> set[tuple[int, Schedule, int, int]]:
    """Stages, schedule, chunks and micro-batches of every family."""
    question = replace(INTERLEAVED, **changes).question()
    families = mixed_families(question, question.requests[0].pins).families
    return {(each.num_stages, each.schedule, each.virtual_stages, each.num_microbatches) for each in families}


@pytest.mark.parametrize("strategy", ["auto", "cpsat"])
def test_the_best_plan_across_two_types_is_interleaved_found_and_proved(strategy: str) -> None:
    best_s, plans = INTERLEAVED.optimum()
    result = INTERLEAVED.found(strategy=strategy)
    assert plans > 100_000
    assert result.best is not None
    assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
    assert result.bound_s is not None
    assert best_s * (1 - 1e-6) <= result.bound_s <= best_s * (1 + 1e-9)
    assert result.best.virtual_stages == 2
    assert len({stage.device for stage in result.best.stages}) == 2
    plain = replace(INTERLEAVED, pins={"mbs": 1, "vpp": 1}).found()
    assert plain.best is not None
    assert result.best.step_time_s < 0.99 * plain.best.step_time_s


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
        ("fsdp", {Schedule.ONE_F_ONE_B, Schedule.GPIPE}, {1, 2, 3}),
        ("nanotron", {Schedule.ONE_F_ONE_B, Schedule.GPIPE}, {1}),
        ("deepspeed", {Schedule.ONE_F_ONE_B}, {1}),
    ],
)
def test_frameworks_run_their_own_schedules(framework: str, schedules: set[Schedule], chunks: set[int]) -> None:
    found = shapes(framework=framework)
    assert {schedule for _, schedule, _, _ in found} == schedules
    assert {each for _, _, each, _ in found} == chunks
    assert {each for _, schedule, each, _ in found if schedule != Schedule.ONE_F_ONE_B} <= {1}


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
