"""Weights that a call drops after its run arrive when it is next: nothing else runs on its GPUs in between."""

from dataclasses import replace

import numpy as np
import pytest

import planner
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.solving.order_cpsat import best_order
from planner.dataflow.solving.orders import TaskGraph, dropped_after, shape_of, task_graph
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes, SameArrival
from planner.dataflow.solving.schedule import slot_times
from planner.dataflow.solving.waits import between
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


def test_an_engine_that_runs_two_calls_loads_new_weights_once() -> None:
    """ReMax writes a greedy response beside the sampled one; engines apart, or of two kinds, load the weights each."""
    here = {"gpus": "0-3", "tp": 4, "pp": 1, "engine": "sglang"}

    def loaded(**other: object) -> list[float]:
        pins = {"sample_gen": here, "greedy_gen": here | other}
        plan = planner.plan_dataflow(
            "remax", {"actor": "qwen3-30b-a3b"}, "8xH100", effort=0.1, pins=pins, iterations=2, **RLHF
        ).plan
        assert plan is not None
        assert {run for _, run in in_between(plan)} <= {"sample_gen", "greedy_gen"}
        moved = {each.target: each.time_s for each in plan.reallocations if not each.data and each.role == "actor"}
        arrivals = {task.name: task for task in plan.tasks if task.iteration == 1 and " -> " in task.name}
        runs = {task.name: task for task in plan.tasks if task.iteration == 1}
        for name in ("sample_gen", "greedy_gen"):
            arrived = arrivals[f"actor_train -> {name}"]
            assert arrived.end_s - arrived.start_s == pytest.approx(moved[name])
            assert runs[name].start_s >= arrived.end_s - 1e-9
        if min(moved[name] for name in ("sample_gen", "greedy_gen")) == 0:
            assert min(runs[name].start_s for name in ("sample_gen", "greedy_gen")) >= max(
                task.end_s for name, task in arrivals.items() if name.endswith("_gen")
            )
        return sorted(moved[name] for name in ("sample_gen", "greedy_gen"))

    once, twice, kinds = loaded(), loaded(gpus="4-7"), loaded(engine="vllm")
    assert once[0] == 0
    assert once[1] > 1
    assert min(twice) > 1
    assert min(kinds) > 1


def test_calls_fed_alike_wait_for_what_arrives_for_the_first_and_stand_beside_it() -> None:
    """``first`` and ``second`` take the same where their keys are equal: here in candidate 0 of both."""
    one = [(0, 1, 2, 0, 0), (1, 1, 2, 0, 0)]
    calls = (
        call("first", one),
        call("other", [(0, 1, 1, 0, 0)]),
        call("second", one),
        call("train", [(0, 2, 3, 0, 0)]),
    )
    two, zero = np.arange(2), np.zeros(1, dtype=np.int64)
    moved = PairTimes(source_class=zero, target_class=two, time_s=np.array([[5.0, 7.0]]))
    same = SameArrival(sibling=0, child_key=np.array([8, 9]), sibling_key=np.array([8, 7]))
    problem = DataflowProblem(
        calls=calls,
        edges=(
            *(Edge(parent=child, child=3) for child in range(3)),
            Edge(parent=3, child=0, lag=1, transfer=moved),
            Edge(parent=3, child=2, lag=1, transfer=moved, same=same),
        ),
        capacity_bytes=np.full(2, 8.0),
        iterations=2,
    )
    choice = np.array([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]])
    assert slot_times(problem, choice)[4:].T.tolist() == [[5, 0], [5, 7], [7, 7]]
    assert [float(each.times.time_s.max()) for each in between(problem)] == [7, 0]  # what bounds may count on
    graph = task_graph(problem)
    arrival = next(task for task in range(len(graph.slot)) if graph.slot[task] == 4)
    second = next(t for t in range(len(graph.slot)) if (graph.slot[t], graph.iteration[t]) == (2, 1))
    assert arrival in graph.parents[second]
    for order in graph.orders:
        place = [int(graph.slot[task]) for task in order if graph.slot[task] < 4 and graph.iteration[task] == 0]
        assert abs(place.index(0) - place.index(2)) == 1
    kept = problem.restrict([np.array([0]), np.array([0]), np.array([1]), np.array([0])])
    assert slot_times(kept, np.zeros((1, 4), dtype=np.int64))[4:, 0].tolist() == [5, 7]


def test_a_second_turn_that_waits_for_the_first_is_fed_for_itself() -> None:
    """Between two turns others run, and what was loaded for the first is dropped; three at once are fed in turn."""

    def moved(**generating: dict[str, object]) -> list[str]:
        calls: dict[str, dict[str, object]] = {
            name: {"role": "actor", "kind": "generate", "inputs": ["prompts"], "outputs": [f"{name}_text"]} | how
            for name, how in generating.items()
        }
        calls["judge"] = {"role": "judge", "kind": "inference", "inputs": ["first_text"], "outputs": ["scores"]}
        texts = [f"{name}_text" for name in generating]
        calls["train"] = {"role": "actor", "kind": "train", "inputs": [*texts, "scores"]}
        job = {
            "name": "turns",
            "dataset": ["prompts"],
            "roles": {"actor": {"model": "qwen3-30b-a3b"}, "judge": {"model": "llama-3.2-1b", "head": "value"}},
            "calls": calls,
        }
        here = {"gpus": "0-3", "tp": 4, "pp": 1, "engine": "sglang"}
        pins = dict.fromkeys(generating, here)
        found = planner.plan_dataflow(job, {}, "8xH100", effort=0.05, pins=pins, iterations=2, **RLHF)
        assert found.plan is not None
        return sorted(each.target for each in found.plan.reallocations if each.time_s > 1)

    assert moved(first={}, second={"inputs": ["first_text", "scores"]}) == ["first", "second"]
    assert len(moved(first={}, second={}, third={})) == 1
