from itertools import product

import numpy as np
import pytest

from planner.dataflow.solving import pareto
from planner.dataflow.solving.bounds import chains_of, choice_bound
from planner.dataflow.solving.memory import memory_owners, pressure
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.pareto import useful_candidates
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes
from planner.dataflow.solving.rounds import settled_graph
from planner.dataflow.solving.schedule import PlanRows, makespan, timeline
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.units import range_maxima, units_of
from tests.dataflow_problems import call, every_order, random_problem, slow_best, slow_fits, slow_makespan

SEEDS = range(12)


def all_plans(problem, graph):
    choices = np.array(list(product(*(range(len(one)) for one in problem.calls))))
    orders = len(graph.orders)
    return PlanRows(choice=np.repeat(choices, orders, axis=0), order=np.tile(np.arange(orders), len(choices)))


@pytest.mark.parametrize("seed", SEEDS)
def test_many_plans_at_once_take_what_each_takes_gpu_by_gpu(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, calls=3, iterations=1 + seed % 3, transfers=seed % 2 == 1)
    graph = task_graph(problem)
    plans = all_plans(problem, graph)
    plans = plans.take(rng.integers(0, len(plans), 60))
    slow = [
        slow_makespan(problem, graph, row, graph.orders[order])
        for row, order in zip(plans.choice, plans.order, strict=True)
    ]
    assert makespan(problem, graph, plans).tolist() == slow
    lines = timeline(problem, graph, plans)
    assert lines.makespan_s.tolist() == slow
    for task, parents in enumerate(graph.parents):
        for parent in parents:
            assert (lines.start_s[:, task] >= lines.end_s[:, parent]).all()


def test_few_and_many_plans_of_one_order_take_the_same():
    rng = np.random.default_rng(0)
    problem = random_problem(rng, calls=3, iterations=3, transfers=True)
    graph = task_graph(problem)
    assert len(graph.orders) > 2
    choice = rng.integers(0, 3, (5_000, 3))
    plans = PlanRows(choice=choice, order=rng.integers(0, len(graph.orders), len(choice)))
    singly = [makespan(problem, graph, plans.take(np.arange(row, row + 5))) for row in range(0, 500, 5)]
    assert np.array_equal(makespan(problem, graph, plans)[:500], np.concatenate(singly))


@pytest.mark.parametrize("seed", SEEDS)
def test_bound_is_at_most_every_plan_and_the_plan_at_most_the_serial_sum(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, iterations=1 + seed % 3)
    graph = task_graph(problem)
    plans = all_plans(problem, graph)
    plans = plans.take(rng.integers(0, len(plans), 400))
    took = makespan(problem, graph, plans)
    bound = choice_bound(problem, chains_of(problem, graph), plans.choice)
    serial = problem.iterations * sum(one.time_s[plans.choice[:, index]] for index, one in enumerate(problem.calls))
    assert (bound <= took + 1e-9).all()
    assert (took <= serial + 1e-9).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_is_that_of_the_fullest_gpu(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, replicas=seed % 2 == 0)
    graph = task_graph(problem)
    choices = all_plans(problem, graph).choice[:: len(graph.orders)]
    share = pressure(problem, units_of(problem), choices)
    assert (share <= 1).tolist() == [slow_fits(problem, row) for row in choices]
    row = choices[int(share.argmax())]
    needs = []
    for gpu in range(problem.num_gpus):
        owners = memory_owners(problem, row, gpu)
        held = sum(static for static, _ in owners.values()) + max([0.0, *(active for _, active in owners.values())])
        needs.append(held / problem.capacity_bytes[gpu])
    assert max(needs) == pytest.approx(share.max())


@pytest.mark.parametrize("seed", SEEDS)
def test_dropping_dominated_candidates_never_costs_time(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, calls=3, candidates=5, transfers=seed % 3 == 1, replicas=seed % 3 == 2)
    kept = useful_candidates(problem)
    graph = task_graph(problem)
    assert slow_best(problem.restrict(kept), graph, graph.orders) == slow_best(problem, graph, graph.orders)


@pytest.mark.parametrize(("columns", "entries"), [(1, 1), (3, 1), (1, 20), (16, 1 << 16)])
@pytest.mark.parametrize("dearer", range(40))
def test_one_dear_transfer_keeps_another_candidate(columns, entries, dearer, monkeypatch):
    """Costs are compared some at a time, and none is passed over."""
    monkeypatch.setattr(pareto, "_BLOCK_COLUMNS", columns)
    monkeypatch.setattr(pareto, "_BLOCK_ENTRIES", entries)
    alike = [(0, 4, 5, 2, 2)] * 2
    calls = (call("first", alike), call("second", [(0, 4, 5 + place, 2, 2) for place in range(40)]))
    time_s = np.stack([np.zeros(40), np.ones(40)])
    classes = {"source_class": np.arange(2), "target_class": np.arange(40)}

    def kept():
        edge = Edge(parent=0, child=1, transfer=PairTimes(time_s=time_s.copy(), **classes))
        return useful_candidates(DataflowProblem(calls=calls, edges=(edge,), capacity_bytes=np.full(4, 9.0)))[
            0
        ].tolist()

    assert kept() == [0]
    time_s[0, dearer] = 2.0
    assert kept() == [0, 1]


def test_dominated_candidates_are_dropped_and_the_first_of_equals_stays():
    rows = [(0, 4, 5, 2, 2), (0, 2, 5, 2, 2), (2, 2, 5, 2, 2), (0, 4, 4, 2, 2), (0, 4, 4, 3, 1), (0, 2, 5, 2, 2)]
    problem = DataflowProblem(calls=(call("only", rows),), edges=(), capacity_bytes=np.full(4, 9.0))
    assert useful_candidates(problem)[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", SEEDS)
def test_orders_of_one_iteration_include_the_best_there_is(seed):
    problem = random_problem(np.random.default_rng(seed), calls=5, candidates=1)
    graph = task_graph(problem)
    assert graph.complete
    choice = (0,) * 5
    best = min(slow_makespan(problem, graph, choice, order) for order in every_order(graph))
    plans = PlanRows(choice=np.zeros((len(graph.orders), 5), dtype=int), order=np.arange(len(graph.orders)))
    assert makespan(problem, graph, plans).min() == best


def staged(mode, *, gpus=8, iterations=4, rng=None):
    """PPO with one candidate per call, under a way to wait for new weights."""
    rng = rng or np.random.default_rng(0)
    names = ["generate", "reward", "reference", "values", "train", "train values"]
    calls = []
    for name in names:
        start = int(rng.integers(0, gpus // 2)) * 2
        size = 2 * int(rng.integers(1, (gpus - start) // 2 + 1))
        calls.append(call(name, [(start, size, int(rng.integers(1, 9)), 0, 0)]))
    edges = [Edge(parent=0, child=child) for child in (1, 2, 3)]
    edges += [Edge(parent=parent, child=child) for parent in (1, 2, 3) for child in (4, 5)]
    lag = {"barrier": 1, "version": 1, "stale": 2}[mode]
    edges += [Edge(parent=4, child=0, lag=lag), Edge(parent=5, child=3, lag=lag)]
    if mode == "barrier":
        edges += [Edge(parent=5, child=0, lag=1)]
    return DataflowProblem(
        calls=tuple(calls), edges=tuple(edges), capacity_bytes=np.full(gpus, 1.0), iterations=iterations
    )


def best_order(problem):
    """Least seconds until the last end, and least pace, over all orders."""
    return tuple(
        duration_s(problem, graph, only_plan(problem, graph)).min()
        for graph in (task_graph(problem), settled_graph(problem))
    )


def only_plan(problem, graph):
    return PlanRows(
        choice=np.zeros((len(graph.orders), len(problem.calls)), dtype=int), order=np.arange(len(graph.orders))
    )


@pytest.mark.parametrize("seed", range(20))
def test_waiting_for_less_is_never_slower(seed):
    took = {
        mode: best_order(staged(mode, rng=np.random.default_rng(seed)))[0] for mode in ("barrier", "version", "stale")
    }
    assert took["barrier"] >= took["version"] >= took["stale"]


def test_barrier_takes_the_same_for_every_iteration():
    one, _ = best_order(staged("barrier", iterations=1))
    four, steady = best_order(staged("barrier"))
    assert four == 4 * one
    assert steady == one


def test_a_longer_wait_for_weights_lets_generation_run_ahead():
    generate, train = call("generate", [(0, 2, 6, 0, 0)]), call("train", [(2, 2, 4, 0, 0)])
    for lag, expected in ((1, 4 * 10), (2, 4 * 6 + 4)):
        edges = (Edge(parent=0, child=1), Edge(parent=1, child=0, lag=lag))
        problem = DataflowProblem(calls=(generate, train), edges=edges, capacity_bytes=np.full(4, 1.0), iterations=4)
        assert best_order(problem)[0] == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_mirror_image_of_the_cluster_takes_as_long(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, candidates=2)
    mirrored = [
        call(
            one.name,
            list(
                zip(problem.num_gpus - one.stop, one.size, one.time_s, one.static_bytes, one.active_bytes, strict=True)
            ),
        )
        for one in problem.calls
    ]
    image = DataflowProblem(
        calls=tuple(mirrored), edges=problem.edges, capacity_bytes=problem.capacity_bytes[::-1], iterations=1
    )
    graph = task_graph(problem)
    plans = all_plans(problem, graph)
    assert makespan(problem, graph, plans).tolist() == makespan(image, task_graph(image), plans).tolist()
    assert (
        pressure(problem, units_of(problem), plans.choice).tolist()
        == pressure(image, units_of(image), plans.choice).tolist()
    )


def test_a_call_without_gpus_waits_for_nobody_and_delays_nobody():
    free = call("service", [(0, 0, 7, 0, 0)])
    busy = call("train", [(0, 4, 3, 1, 1)])
    problem = DataflowProblem(calls=(free, busy), edges=(), capacity_bytes=np.full(4, 2.0))
    assert best_order(problem)[0] == 7
    assert pressure(problem, units_of(problem), np.zeros((1, 2), dtype=int))[0] == 1
    assert choice_bound(problem, chains_of(problem, task_graph(problem)), np.zeros((1, 2), dtype=int))[0] == 7


def test_maxima_over_runs():
    rng = np.random.default_rng(0)
    values = rng.random((5, 9))
    runs = [(first, stop) for first in range(10) for stop in range(first, 10)]
    first, stop = (np.array(column) for column in zip(*runs, strict=True))
    expected = np.array([[row[a:b].max() if b > a else 0 for a, b in runs] for row in values])
    assert np.array_equal(range_maxima(first, stop, 9).over(values), expected)
