"""Candidates that a search need not look at, against every plan there is; and when a search is over."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.dataflow.solving import run as search_run
from planner.dataflow.solving.anneal import AnnealOptions
from planner.dataflow.solving.bounds import chains_of
from planner.dataflow.solving.group_tables import call_tables, group_tables
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.rounds import settled_graph
from planner.dataflow.solving.schedule import PlanRows
from planner.dataflow.solving.search import explore, solve
from planner.dataflow.solving.space import narrowed, promising_candidates, search_space
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.tree import Incumbent
from planner.dataflow.solving.units import units_of
from tests.dataflow_problems import slow_fits
from tests.property.test_dataflow_steady import any_problem

SEEDS = range(16)


def every_plan(problem):
    """All that fit, each with the pace of its best order."""
    graph = settled_graph(problem)
    choices = [choice for choice in product(*(range(len(one)) for one in problem.calls)) if slow_fits(problem, choice)]
    orders = len(graph.orders)
    plans = PlanRows(choice=np.repeat(choices, orders, axis=0), order=np.tile(np.arange(orders), len(choices)))
    return np.array(choices), duration_s(problem, graph, plans).reshape(-1, orders).min(axis=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_candidate_of_a_faster_plan_is_dropped_and_most_others_are(seed):
    problem = any_problem(seed, calls=3, candidates=6)
    choices, pace_s = every_plan(problem)
    chains = chains_of(problem, task_graph(problem, 5))
    limit_s = float(np.quantile(pace_s, 0.2))
    for tables in (call_tables(problem, chains), group_tables(problem, chains, units_of(problem))):
        rows = promising_candidates(problem, chains, tables, limit_s)
        for call, kept in enumerate(rows):
            assert set(choices[pace_s < limit_s][:, call]) <= set(kept.tolist())


def test_where_a_good_plan_is_known_few_candidates_are_left():
    left = []
    for seed in SEEDS:
        problem = any_problem(seed, calls=3, candidates=6)
        choices, pace_s = every_plan(problem)
        winner = int(pace_s.argmin())
        space = search_space(problem, np.inf)
        plan = np.array([len(rows) for rows in space.kept])
        # As the space numbers its candidates; the best plan may need one that was dropped for an equal one.
        places = [np.flatnonzero(rows == row) for rows, row in zip(space.kept, choices[winner], strict=True)]
        if not all(len(place) for place in places):
            continue
        choice = np.array([int(place[0]) for place in places])
        best = Incumbent(choice=choice, order=0, makespan_s=float(pace_s[winner]))
        fewer, (same,) = narrowed(space, [best])
        assert [rows[row] for rows, row in zip(fewer.kept, same.choice, strict=True)] == choices[winner].tolist()
        left.append(np.array([len(rows) for rows in fewer.kept]).prod() / plan.prod())
    assert len(left) > 4
    assert np.mean(left) < 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_a_faster_plan_is_found_where_there_is_one_and_only_there(seed):
    problem = any_problem(seed, calls=3, candidates=6)
    best_s = every_plan(problem)[1].min()
    nothing = explore(problem, faster_than_s=best_s)
    assert nothing.solution is None
    assert nothing.bound_s <= best_s
    found = explore(problem, faster_than_s=best_s * 1.1)
    assert found.solution.makespan_s == pytest.approx(best_s, rel=1e-9)
    assert found.bound_s <= best_s * (1 + 1e-9)


def test_nothing_is_annealed_where_the_tree_has_played_every_plan():
    """Orders outside the table leave a gap then, but no more plays of the same plans can close it."""
    found = [solve(any_problem(seed, calls=5)) for seed in (1, 3, 7)]
    assert [solution.evaluations for solution in found] == [0] * len(found)
    assert not any(solution.proven for solution in found)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_found_before_candidates_are_compared_changes_no_answer(seed, monkeypatch):
    problem = any_problem(seed, calls=3, candidates=6)
    without = explore(problem)
    monkeypatch.setattr(search_run, "_MANY_PAIRS", 0)
    found = explore(problem)
    best_s = every_plan(problem)[1].min()
    assert found.solution.makespan_s == pytest.approx(best_s, rel=1e-9)
    assert found.bound_s <= best_s * (1 + 1e-9)
    assert found.evaluated > AnnealOptions().chains * 100
    assert without.solution.makespan_s == found.solution.makespan_s
    assert sum(found.solution.kept) <= sum(without.solution.kept) + len(problem.calls)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_plans_known_need_stays(seed):
    problem = any_problem(seed, calls=3, candidates=6)
    choices, pace_s = every_plan(problem)
    order = np.argsort(pace_s, kind="stable")
    plans = [
        Incumbent(choice=choices[row], order=0, makespan_s=float(pace_s[row])) for row in order[[0, len(order) // 2]]
    ]
    space = search_space(problem, plans[0].makespan_s, plans[0])
    assert all(row in rows for row, rows in zip(plans[0].choice.tolist(), space.kept, strict=True))
    whole = search_space(problem, np.inf)
    there = [
        replace(
            plan, choice=np.array([list(rows).index(row) for rows, row in zip(whole.kept, plan.choice, strict=True)])
        )
        for plan in plans
        if all(row in rows for rows, row in zip(whole.kept, plan.choice.tolist(), strict=True))
    ]
    fewer, same = narrowed(whole, there) if there else (whole, [])
    for plan, mapped in zip(there, same, strict=True):
        before = [rows[row] for rows, row in zip(whole.kept, plan.choice, strict=True)]
        assert [rows[row] for rows, row in zip(fewer.kept, mapped.choice, strict=True)] == before
        assert mapped.makespan_s == plan.makespan_s
