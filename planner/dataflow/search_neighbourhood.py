"""Improves a plan by deciding two or three of its calls anew, exactly, with the others as they are.

With most calls fixed, bounds are tight and few candidates are useful, so that branch and bound looks at every way to
change the rest. A plan that no such change improves is the best of a neighbourhood of many millions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from planner.dataflow.bounds import Chains
from planner.dataflow.group_tables import group_tables
from planner.dataflow.orders import TaskGraph
from planner.dataflow.pareto import useful_candidates
from planner.dataflow.problem import DataflowProblem
from planner.dataflow.search_tree import Incumbent, branch_and_bound
from planner.dataflow.units import units_of

_SLICE_CHILDREN = 1_000_000  # for one set of calls decided anew
_PAIRS_PER_CHILD = 8  # pairs of candidates are compared, before each tree search, in the time of one child


@dataclass(frozen=True, slots=True, kw_only=True)
class Polished:
    """What became of a plan.

    Attributes:
        best: The plan, at least as good as the one given.
        children: Candidates the tree searches looked at, and pairs compared before them in the same unit.
    """

    best: Incumbent
    children: int


def polish(
    problem: DataflowProblem,
    graph: TaskGraph,
    chains: Chains,
    best: Incumbent,
    *,
    most_children: int,
    free: int = 3,
    stop: Callable[[], bool] | None = None,
) -> Polished:
    """Decide sets of calls anew, pairs first, until none of them helps or the budget ends.

    Args:
        problem: The problem.
        graph: Its tasks and orders.
        chains: Its chains.
        best: A plan that fits.
        most_children: Budget, in the unit of ``Polished.children``.
        free: Most calls decided anew at once.
        stop: Asked between steps; true ends the search early.
    """
    calls = range(len(problem.calls))
    sets = [
        chosen for size in range(min(2, len(calls)), min(free, len(calls)) + 1) for chosen in combinations(calls, size)
    ]
    sizes = [len(call) for call in problem.calls]
    spent, since, place = 0, 0, 0
    while since < len(sets) and spent < most_children and not (stop and stop()):
        chosen = sets[place % len(sets)]
        found, children = _decide_anew(problem, graph, chains, best, chosen, most_children - spent, stop)
        spent += children + sum(sizes[call] for call in chosen) ** 2 // (2 * _PAIRS_PER_CHILD) + 1
        place, since = place + 1, since + 1
        if found.makespan_s < best.makespan_s:
            best, since, place = found, 0, 0
    return Polished(best=best, children=spent)


def _decide_anew(
    problem: DataflowProblem,
    graph: TaskGraph,
    chains: Chains,
    best: Incumbent,
    chosen: tuple[int, ...],
    most_children: int,
    stop: Callable[[], bool] | None,
) -> tuple[Incumbent, int]:
    rows = [
        np.arange(len(call)) if index in chosen else best.choice[index : index + 1]
        for index, call in enumerate(problem.calls)
    ]
    part = problem.restrict(rows)
    useful = useful_candidates(part)
    part = part.restrict(useful)
    units = units_of(part)
    nothing = Incumbent(choice=np.zeros(len(rows), dtype=np.int64), order=best.order, makespan_s=best.makespan_s)
    found = branch_and_bound(
        part,
        graph,
        chains,
        units,
        group_tables(part, chains, units),
        nothing,
        most_children=min(most_children, _SLICE_CHILDREN),
        stop=stop,
    )
    if found.best.makespan_s >= best.makespan_s:
        return best, found.children
    choice = np.array(
        [all_rows[kept[row]] for all_rows, kept, row in zip(rows, useful, found.best.choice, strict=True)]
    )
    return Incumbent(choice=choice, order=found.best.order, makespan_s=found.best.makespan_s), found.children
