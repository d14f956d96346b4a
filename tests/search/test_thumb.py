"""The rule of thumb: choices worked out by hand, and never below the best that is enumerated."""

from typing import Any

import numpy as np
import pytest

from costmodels.plan import AxisOrder, PlanBatch, Recompute, Schedule
from planner.ranking import Priced
from planner.search.call import search
from tests.search.small import INSTANCES
from tests.search.thumb import rule_of_thumb, thumb_s

NONE, SELECTIVE, FULL = (int(mode) for mode in (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL))


def chosen(rows: list[tuple[Any, ...]], **sizes: int) -> int | None:
    """The rule's choice among plans given as t, p, e, recompute, seconds, fits."""
    tensor, pipeline, experts, modes, step_s, fits = (np.asarray(column) for column in zip(*rows, strict=True))
    plans = PlanBatch.from_columns(
        len(rows), tensor_parallel=tensor, pipeline_parallel=pipeline, expert_parallel=experts, recompute=modes
    )
    zero = np.zeros(len(rows))
    return rule_of_thumb(
        Priced(plans=plans, step_time_s=step_s, peak_memory_bytes=zero, host_memory_bytes=zero, fits=fits),
        **{"node_devices": 8, **sizes},
    )


@pytest.mark.parametrize(
    ("rows", "choice"),
    [
        # As little model parallelism as fits, even where more would be faster.
        ([(1, 1, 1, NONE, 1.0, False), (2, 1, 1, NONE, 3.0, True), (4, 1, 1, NONE, 2.0, True)], 1),
        # Pipeline stages only once a node is full of tensor-parallel ranks, and tensor parallelism within it.
        ([(4, 2, 1, NONE, 1.0, True), (8, 1, 1, NONE, 9.0, False), (8, 2, 1, NONE, 2.0, True)], 2),
        ([(16, 1, 1, NONE, 1.0, True), (8, 2, 1, NONE, 2.0, True)], 1),
        # Recomputing more where less does not fit as well: the faster of both.
        ([(8, 1, 1, FULL, 4.0, True), (8, 2, 1, NONE, 3.0, True), (8, 4, 1, NONE, 1.0, True)], 1),
        ([(8, 1, 1, FULL, 2.0, True), (8, 1, 1, FULL, 1.5, True), (8, 2, 1, SELECTIVE, 3.0, True)], 1),
        ([(1, 1, 1, NONE, 1.0, False)], None),
    ],
)
def test_the_rule_by_hand(rows: list[tuple[Any, ...]], choice: int | None) -> None:
    assert chosen(rows) == choice


def test_experts_lie_within_a_node_where_that_fits() -> None:
    near = [(1, 1, 4, NONE, 1.0, True), (1, 1, 8, NONE, 2.0, True), (1, 1, 16, NONE, 0.5, True)]
    assert chosen(near, num_experts=64) == 1
    far = [(1, 1, 8, NONE, 2.0, False), (1, 1, 16, NONE, 3.0, True), (1, 1, 64, NONE, 1.0, True)]
    assert chosen(far, num_experts=64) == 1
    assert chosen(far[:1], num_experts=64) is None


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("schedule", (Schedule.ZERO_BUBBLE_1P, Schedule.ONE_F_ONE_B)),
        ("axis_order", (AxisOrder.TP_CP_PP_DP, AxisOrder.TP_CP_DP_PP)),
        ("context_parallel", (2, 1)),
        ("zero_stage", (3, 1)),
        ("offload_optimizer", (True, False)),
    ],
)
def test_what_is_not_usual_is_not_looked_at(column: str, values: tuple[int, int]) -> None:
    plans = PlanBatch.from_columns(2, **{column: np.asarray(values)})
    zero = np.zeros(2)
    priced = Priced(
        plans=plans, step_time_s=np.asarray([1.0, 2.0]), peak_memory_bytes=zero, host_memory_bytes=zero, fits=zero == 0
    )
    assert rule_of_thumb(priced, node_devices=8) == 1


@pytest.mark.parametrize("name", ["dense, tight", "MoE, loose", "two types, loose"])
def test_the_rule_is_never_faster_than_the_best_enumerated(name: str) -> None:
    (instance,) = (each for each in INSTANCES if each.name == name)
    result = search(**instance.arguments(), strategy="enumerate")
    ruled_s = thumb_s(instance.question())
    assert result.uniform_step_time_s <= ruled_s < 3 * result.uniform_step_time_s
