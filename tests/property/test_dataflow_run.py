"""What goes on in one search, step by step: who finds plans, who proves them, and in which orders they are told."""

import numpy as np
import pytest

from planner.dataflow.solving import run as search_run
from planner.dataflow.solving.anneal import AnnealOptions
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.rounds import settled_graph
from planner.dataflow.solving.schedule import PlanRows
from planner.dataflow.solving.search import explore, solve
from planner.dataflow.solving.steady import duration_s
from tests.property.test_dataflow_steady import any_problem

OPTIONS = SearchOptions(anneal=AnnealOptions(chains=8, steps=60))


def best_order_s(problem, choice):
    """Pace of a plan in its best order."""
    graph = settled_graph(problem)
    orders = np.arange(len(graph.orders))
    return duration_s(problem, graph, PlanRows(choice=np.repeat(choice[None], len(orders), axis=0), order=orders)).min()


def without_trees(monkeypatch):
    for share in ("_QUICK_SHARE", "_EARLY_SHARE", "_TREE_SHARE"):
        monkeypatch.setattr(search_run, share, 0)


@pytest.mark.parametrize("seed", range(8))
def test_improving_brings_annealed_plans_near_the_best_there_is(seed, monkeypatch):
    problem = any_problem(seed, calls=4, candidates=8)
    exact = solve(problem, SearchOptions(engine="tree"))
    without_trees(monkeypatch)
    found = solve(problem, OPTIONS)
    assert found.evaluations > 0
    assert exact.makespan_s <= found.makespan_s <= exact.makespan_s * 1.02
    monkeypatch.setattr(search_run.Search, "polish", lambda self, budget: None)
    assert solve(problem, OPTIONS).makespan_s >= found.makespan_s


@pytest.mark.parametrize("seed", [3, 25])  # in the last, improving leads to a plan that is faster in another
def test_plans_improved_in_few_orders_are_told_in_the_best_of_all(seed, monkeypatch):
    problem, improved = any_problem(seed, calls=4, candidates=8), []
    without_trees(monkeypatch)
    monkeypatch.setattr(search_run, "_LIKELY_ORDERS", 1)
    polished = search_run.Search._polished

    def told(self, start, budget):
        found = polished(self, start, budget)
        improved.append((found.makespan_s, best_order_s(self.small, found.choice)))
        return found

    monkeypatch.setattr(search_run.Search, "_polished", told)
    found = solve(problem, OPTIONS)
    assert improved
    assert all(time_s == best_s for time_s, best_s in improved)
    assert len(found.graph.orders) == len(settled_graph(problem).orders) > 1
    assert found.makespan_s == best_order_s(problem, found.choice)


def test_what_the_tree_proves_after_improving_is_not_annealed(monkeypatch):
    problem = any_problem(5, calls=4, candidates=8)
    monkeypatch.setattr(search_run, "_QUICK_SHARE", 0)
    found = solve(problem, OPTIONS)
    assert found.evaluations == 0
    assert found.makespan_s == solve(problem, SearchOptions(engine="tree")).makespan_s


@pytest.mark.parametrize(("near", "annealed"), [(1e9, False), (0.0, True)])
def test_a_plan_near_its_bound_is_proven_before_it_is_annealed(near, annealed, monkeypatch):
    problem = any_problem(5, calls=4, candidates=8)
    begun = []
    monkeypatch.setattr(search_run, "_NEAR", near)
    monkeypatch.setattr(search_run, "_QUICK_SHARE", 0)
    monkeypatch.setattr(search_run, "_MANY_PAIRS", 0)  # so that a plan is known
    monkeypatch.setattr(search_run, "_EARLY_SHARE", 0)
    monkeypatch.setattr(search_run.Search, "anneal", lambda self: begun.append(self.best.makespan_s))
    solve(problem, OPTIONS)
    assert bool(begun) is annealed


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_as_fast_as_one_known_elsewhere_is_no_answer(seed, monkeypatch):
    """Annealing finds it again, as where clusters are divided in another way, and there is nothing to improve on."""
    problem = any_problem(seed, calls=4, candidates=8)
    best_s = solve(problem, SearchOptions(engine="tree")).makespan_s
    without_trees(monkeypatch)
    found = explore(problem, OPTIONS, faster_than_s=best_s)
    assert found.solution is None
    assert found.bound_s <= best_s
