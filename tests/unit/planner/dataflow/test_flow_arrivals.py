"""Weights that a call drops after its run arrive when it is next: nothing else runs on its GPUs in between."""

from dataclasses import replace

import numpy as np
import pytest

import planner
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.solving.order_cpsat import best_order
from planner.dataflow.solving.orders import TaskGraph, dropped_after, shape_of, task_graph
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes
from tests.dataflow_problems import call

RLHF = {"batch": 64, "prompt": 256, "generate": 256}


def in_between(plan: FlowPlan) -> list[tuple[str, str]]:
    """Transfers of weights that are dropped, and calls that run on the same GPUs before the one they are for."""
    calls = {each.name: each for each in plan.calls}
    found = []
    for move in (each for each in plan.reallocations if calls[each.target].holding == "delivered"):
        target = calls[move.target]
        mesh = set(range(target.first_gpu, target.first_gpu + target.num_gpus))
        for arrival in (task for task in plan.tasks if task.name == f"{move.source} -> {move.target}"):
            run = min(
                (task for task in plan.tasks if task.name == target.name and task.start_s >= arrival.end_s - 1e-9),
                key=lambda task: task.start_s,
                default=None,
            )
            for task in plan.tasks:
                if run is None or task.name not in calls or task.name == target.name:
                    continue
                other = calls[task.name]
                shares = mesh & set(range(other.first_gpu, other.first_gpu + other.num_gpus))
                if shares and task.end_s > arrival.end_s + 1e-9 and task.start_s < run.start_s - 1e-9:
                    found.append((arrival.name, task.name))
    return found


@pytest.mark.parametrize(
    ("job", "gpus", "mode"),
    [
        ("grpo", "4xH100", "hybrid"),
        ("grpo", "5xH100", "hybrid"),
        ("ppo", "2xH100", "hybrid"),
        ("ppo", "8xH100", "disaggregated"),
        ("grpo", "8xH100", "async"),
    ],
)
def test_the_peak_counts_all_that_lies_on_a_gpu(job: str, gpus: str, mode: str) -> None:
    """Peaks count such weights while their call runs alone."""
    found = planner.plan_dataflow(job, {"actor": "llama-2-7b"}, gpus, mode=mode, **RLHF)
    assert found.plan is not None
    assert any(each.holding == "delivered" for each in found.plan.calls)
    assert in_between(found.plan) == []


def arriving(*, drops: bool, seconds: float = 5.0) -> DataflowProblem:
    """``train`` feeds ``score`` of the next iteration, on one of its two GPUs; ``write`` on both comes before that."""
    calls = (
        call("write", [(0, 2, 4, 0, 1)]),
        call("score", [(1, 1, 2, 0, 1)]),
        call("train", [(0, 2, 3, 0, 1)]),
    )
    one = np.zeros(1, dtype=np.int64)
    moved = PairTimes(source_class=one, target_class=one, time_s=np.array([[seconds]]))
    return DataflowProblem(
        calls=calls,
        edges=(
            Edge(parent=0, child=1),
            Edge(parent=1, child=2),
            Edge(parent=2, child=0, lag=1),
            Edge(parent=2, child=1, lag=1, transfer=moved, drops=drops),
        ),
        capacity_bytes=np.full(2, 8.0),
        iterations=3,
    )


def calls_between(problem: DataflowProblem, graph: TaskGraph, order: list[int]) -> int:
    """Calls between the arrival of what is dropped and the call it is for, in an order of tasks."""
    shape = shape_of(replace(problem, edges=tuple(replace(edge, drops=True) for edge in problem.edges)))
    place = {task: number for number, task in enumerate(order)}
    return sum(
        place[transfer] < place[task] < place[child]
        for transfer, child in dropped_after(shape, graph.slot.tolist(), graph.iteration.tolist()).items()
        for task in order
        if graph.slot[task] < len(problem.calls)
    )


def test_no_order_lets_another_call_between_an_arrival_and_its_call() -> None:
    late, soon = (arriving(drops=drops) for drops in (True, False))
    for problem, allowed in ((late, False), (soon, True)):
        graph = task_graph(problem)
        between = [calls_between(problem, graph, order.tolist()) for order in graph.orders]
        assert any(between) is allowed
        assert min(between) == 0 or allowed


def test_the_best_order_of_all_keeps_to_it() -> None:
    for drops in (True, False):
        problem = arriving(drops=drops)
        graph = task_graph(problem)
        found = best_order(problem, graph, np.zeros(3, dtype=np.int64))
        assert found is not None
        assert found.proven
        assert drops is False or calls_between(problem, graph, found.sequence.tolist()) == 0
