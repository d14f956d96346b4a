"""What tasks wait for in an order is worked out once: plans played that way end as those of one order do."""

from dataclasses import replace

import numpy as np
import pytest

from planner.dataflow.solving import bounds, group_tables, schedule
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.problem import Edge, PairTimes
from planner.dataflow.solving.rounds import settled_graph
from planner.dataflow.solving.schedule import PlanRows, end_times
from planner.dataflow.solving.units import units_of
from tests.dataflow_problems import random_problem


def ends(problem, graph, plans, monkeypatch, *, mixed):
    monkeypatch.setattr(schedule, "_ROWS_PER_ORDER", 10**6 if mixed else 0)
    return end_times(problem, graph, plans)[0]


@pytest.mark.parametrize("cells", [1, 1 << 17])
@pytest.mark.parametrize("seed", range(8))
def test_plans_of_many_orders_end_as_those_of_one(seed, cells, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(schedule, "_WAIT_CELLS", cells)
    monkeypatch.setattr(schedule, "_MIXED_PLANS", 100)
    problem = random_problem(rng, calls=4, iterations=1 + seed % 3, transfers=seed % 2 == 0)
    for graph in (task_graph(problem), settled_graph(replace(problem, settled=True))):
        choice = np.stack([rng.integers(0, len(call), 250) for call in problem.calls], axis=1)
        plans = PlanRows(choice=choice, order=rng.integers(0, len(graph.orders), 250))
        both = [ends(problem, graph, plans, monkeypatch, mixed=mixed) for mixed in (True, False)]
        assert np.array_equal(*both)


def test_transfers_to_later_iterations_have_no_turn_in_a_single_one(monkeypatch):
    rng = np.random.default_rng(1)
    problem = random_problem(rng, calls=4, iterations=1)
    first, last = problem.calls[0], problem.calls[-1]
    classes = [np.zeros(len(call), dtype=np.int64) for call in (last, first)]
    times = PairTimes(source_class=classes[0], target_class=classes[1], time_s=np.ones((1, 1)))
    later = Edge(parent=3, child=0, lag=1, transfer=times)
    problem = replace(problem, edges=(*problem.edges, later))
    graph = task_graph(problem)
    assert len(graph.orders) > 1
    choice = np.stack([rng.integers(0, len(call), 60) for call in problem.calls], axis=1)
    plans = PlanRows(choice=choice, order=rng.integers(0, len(graph.orders), 60))
    assert np.array_equal(*(ends(problem, graph, plans, monkeypatch, mixed=mixed) for mixed in (True, False)))


def test_graphs_of_one_shape_are_made_once():
    rng = np.random.default_rng(0)
    one, other = (random_problem(rng, calls=3, iterations=2) for _ in range(2))
    other = replace(other, edges=one.edges)
    assert task_graph(one) is task_graph(other)
    assert settled_graph(one) is settled_graph(other)
    with pytest.raises(ValueError, match="read-only"):
        task_graph(one).orders[0] = 0


def test_pairs_of_calls_are_compared_once_for_all_that_passes_between(monkeypatch):
    problem = random_problem(np.random.default_rng(3), calls=4, iterations=2, transfers=True)
    chains = bounds.chains_of(problem, task_graph(problem))
    compared = []
    pair = group_tables._pair
    monkeypatch.setattr(group_tables, "_pair", lambda *given: compared.append(given[2:4]) or pair(*given))
    group_tables.group_tables(problem, chains, units_of(problem))
    assert compared
    assert len(set(compared)) == len(compared)
