"""Second implementations against the first: HybridFlow's divisions, and orders by CP-SAT."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.dataflow.solving.anneal import AnnealOptions
from planner.dataflow.solving.bounds import chains_of
from planner.dataflow.solving.group_tables import group_tables
from planner.dataflow.solving.neighbourhood import polish
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.order_cpsat import best_order
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.partition import partition_search
from planner.dataflow.solving.problem import DataflowProblem, Edge
from planner.dataflow.solving.schedule import PlanRows, makespan
from planner.dataflow.solving.search import solve
from planner.dataflow.solving.tree import Incumbent
from planner.dataflow.solving.units import units_of
from profiles.errors import SpecError
from tests.dataflow_problems import call, every_order, random_problem, slow_fits, slow_makespan


def staged(rng, *, gpus=4, memory=True):
    """Generate, then two preparations, then train; every run of GPUs is a mesh, with two layouts each."""
    calls = []
    for name in ("generate", "reward", "values", "train"):
        work = int(rng.integers(4, 20))
        rows = []
        for start in range(gpus):
            for size in range(1, gpus - start + 1):
                for slower in (0, 1):
                    held = int(rng.integers(1, 5)) if memory else 0
                    rows.append(
                        (start, size, 60 * work // size + slower * 5, held * (2 - slower), int(rng.integers(0, 3)))
                    )
        calls.append(call(name, rows))
    edges = [Edge(parent=0, child=1), Edge(parent=0, child=2), Edge(parent=1, child=3), Edge(parent=2, child=3)]
    return DataflowProblem(calls=tuple(calls), edges=tuple(edges), capacity_bytes=np.full(gpus, 9.0))


def divided(problem, models):
    """Whether calls of a model share a mesh, and meshes of models are equal or apart, and all GPUs are used."""
    meshes = [list(zip(one.start.tolist(), one.stop.tolist(), strict=True)) for one in problem.calls]

    def fine(choice):
        used = [meshes[index][row] for index, row in enumerate(choice)]
        if any(len({used[index] for index in model}) > 1 for model in models):
            return False
        apart = all(a == b or a[1] <= b[0] or b[1] <= a[0] for a in used for b in used)
        return apart and sum(stop - start for start, stop in set(used)) == problem.num_gpus

    return fine


@pytest.mark.parametrize("seed", range(6))
def test_divisions_are_as_good_as_every_division_tried(seed):
    problem = staged(np.random.default_rng(seed), gpus=3, memory=False)
    models = [(0, 3), (1,), (2,)]
    graph = task_graph(problem)
    fine = divided(problem, models)
    best = min(
        slow_makespan(problem, graph, choice, order)
        for choice in product(*(range(0, len(one), 2) for one in problem.calls))
        if fine(choice)
        for order in graph.orders
    )
    assert partition_search(problem, graph, models).makespan_s == best


@pytest.mark.parametrize("seed", range(10))
def test_divisions_fit_and_are_never_better_than_the_proven_best(seed):
    problem = staged(np.random.default_rng(seed))
    graph = task_graph(problem)
    found = partition_search(problem, graph, [(0, 3), (1,), (2,)])
    assert slow_fits(problem, found.choice)
    assert found.makespan_s == slow_makespan(problem, graph, found.choice, graph.orders[found.order])
    assert found.makespan_s >= solve(problem, SearchOptions(engine="tree")).makespan_s


def test_models_must_name_every_call_once():
    problem = staged(np.random.default_rng(0))
    graph = task_graph(problem)
    for models in ([(0, 1), (2,)], [(0, 1), (1, 2), (3,)], [(0, 1, 2, 3, 4)]):
        with pytest.raises(SpecError, match="exactly one model"):
            partition_search(problem, graph, models)


def test_no_division_that_fits_is_said():
    problem = DataflowProblem(
        calls=(call("a", [(0, 2, 1, 6, 0)]), call("b", [(0, 2, 1, 6, 0)])), edges=(), capacity_bytes=np.full(2, 10.0)
    )
    assert partition_search(problem, task_graph(problem)).makespan_s == np.inf


@pytest.mark.parametrize("seed", range(6))
def test_best_order_is_that_of_all_orders(seed):
    problem = random_problem(np.random.default_rng(seed), calls=4, candidates=1, transfers=seed % 2 == 1)
    graph = task_graph(problem)
    choice = np.zeros(4, dtype=int)
    best = min(slow_makespan(problem, graph, choice, order) for order in every_order(graph))
    found = best_order(problem, graph, choice)
    assert found.proven
    assert slow_makespan(problem, graph, choice, found.sequence) == pytest.approx(best, rel=1e-6)
    assert best * (1 - 1e-5) <= found.bound_s <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_orders_in_the_table_are_seldom_beaten(seed):
    problem = random_problem(np.random.default_rng(seed), calls=4, candidates=1, iterations=3)
    graph = task_graph(problem)
    orders = len(graph.orders)
    plans = PlanRows(choice=np.zeros((orders, 4), dtype=int), order=np.arange(orders))
    found = best_order(problem, graph, np.zeros(4, dtype=int))
    table = makespan(problem, graph, plans).min()
    assert found.bound_s <= table * (1 + 1e-9)
    assert table <= 1.1 * slow_makespan(problem, graph, np.zeros(4, dtype=int), found.sequence)


@pytest.mark.parametrize(("seed", "table_s", "best_s"), [(1, 60, 57), (26, 49, 45), (40, 38, 36)])
def test_a_search_finds_orders_outside_the_table(seed, table_s, best_s):
    """The only plan of each problem; other orders of equally ready tasks than those that recur end earlier."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, calls=4, candidates=1, iterations=3, transfers=seed % 2 == 0)
    problem = replace(problem, capacity_bytes=np.full(4, 99.0))
    graph = task_graph(problem)
    orders = len(graph.orders)
    plans = PlanRows(choice=np.zeros((orders, 4), dtype=int), order=np.arange(orders))
    assert makespan(problem, graph, plans).min() == table_s
    found = solve(problem, SearchOptions(anneal=AnnealOptions(chains=4, steps=5)))
    assert found.makespan_s == best_s == found.timeline.makespan_s[0]
    assert found.bound_s <= best_s
    assert slow_makespan(problem, found.graph, found.choice, found.graph.orders[found.order]) == best_s


def test_calls_without_time_are_in_order():
    problem = DataflowProblem(calls=(call("a", [(0, 2, 0, 0, 0)]),), edges=(), capacity_bytes=np.full(2, 1.0))
    assert best_order(problem, task_graph(problem), np.zeros(1, dtype=int)).bound_s == 0


@pytest.mark.parametrize("seed", range(8))
def test_deciding_two_calls_anew_finds_the_best_of_all_pairs(seed):
    problem = random_problem(np.random.default_rng(seed), calls=4, candidates=4, transfers=seed % 2 == 1)
    graph = task_graph(problem)
    fitting = [choice for choice in product(range(4), repeat=4) if slow_fits(problem, choice)]
    if not fitting:
        return
    took = {choice: min(slow_makespan(problem, graph, choice, order) for order in graph.orders) for choice in fitting}
    start = max(took, key=lambda choice: took[choice])
    given = Incumbent(choice=np.array(start), order=0, makespan_s=took[start])
    chains, units = chains_of(problem, graph), units_of(problem)
    tables = group_tables(problem, chains, units)
    found = polish(problem, graph, chains, units, tables, given, most_children=10**9, free=2)
    assert found.children > 0
    choice = tuple(int(row) for row in found.best.choice)
    assert (
        found.best.makespan_s == took[choice] == slow_makespan(problem, graph, choice, graph.orders[found.best.order])
    )
    near = [time_s for other, time_s in took.items() if sum(a != b for a, b in zip(other, choice, strict=True)) <= 2]
    assert found.best.makespan_s == min(near)
