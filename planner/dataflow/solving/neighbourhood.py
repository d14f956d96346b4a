"""Improves a plan by deciding two or three of its calls anew, exactly, with the others as they are.

With most calls fixed, bounds are tight and few candidates are useful, so that branch and bound looks at every way to
change the rest. A plan that no such change improves is the best of a neighbourhood of many millions.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.solving.bounds import Chains
from planner.dataflow.solving.group_tables import GroupTables, call_tables, group_tables
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.pareto import useful_candidates
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.tree import Incumbent, branch_and_bound
from planner.dataflow.solving.tree_growth import grow
from planner.dataflow.solving.tree_nodes import Tree, root
from planner.dataflow.solving.tree_plant import unplanted
from planner.dataflow.solving.units import Units, units_of

_SLICE_CHILDREN = 1_000_000  # for one set of calls decided anew
_SET_CHILDREN = 100_000  # looked at in a part of the time that preparing one set takes
_PAIRS_PER_CHILD = 8  # pairs of candidates are compared, before each tree search, in the time of one child
_MANY_PLANS = 100_000  # beyond which it pays to compare candidates before
_EQUAL = 1e-9  # of a time: differences below it are rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Polished:
    """What became of a plan.

    Attributes:
        best: The plan, at least as good as the one given.
        children: Candidates the tree searches looked at, and pairs compared before them in the same unit.
        done: Whether no such change improves it.
    """

    best: Incumbent
    children: int
    done: bool


def polish(
    problem: DataflowProblem,
    graph: TaskGraph,
    chains: Chains,
    units: Units,
    tables: GroupTables,
    best: Incumbent,
    *,
    most_children: int,
    free: int = 3,
    known_s: Collection[float] = (),
    stop: Callable[[], bool] | None = None,
) -> Polished:
    """Decide sets of calls anew, pairs first, until none of them helps or the budget ends.

    Args:
        problem: The problem.
        graph: Its tasks and orders.
        chains: Its chains.
        units: Its units.
        tables: Least times of its groups.
        best: A plan that fits.
        most_children: Budget, in the unit of ``Polished.children``.
        free: Most calls decided anew at once.
        known_s: Times of plans that no change improves; one that comes to be as fast is left at that.
        stop: Asked between steps; true ends the search early.
    """
    calls = range(len(problem.calls))
    sets = [
        chosen for size in range(min(2, len(calls)), min(free, len(calls)) + 1) for chosen in combinations(calls, size)
    ]
    tree = unplanted(problem, chains, units, tables)
    spent, since, place = 0, 0, 0
    while since < len(sets) and spent < most_children and not (stop and stop()):
        if any(abs(best.makespan_s - time_s) <= _EQUAL * time_s for time_s in known_s):
            break
        found, children = _decide_anew(tree, graph, best, sets[place % len(sets)], most_children - spent, stop)
        spent, place, since = spent + children, place + 1, since + 1
        if found.makespan_s < best.makespan_s:
            best, since, place = found, 0, 0
    return Polished(best=best, children=spent, done=since == len(sets))


def _decide_anew(
    tree: Tree,
    graph: TaskGraph,
    best: Incumbent,
    chosen: tuple[int, ...],
    most_children: int,
    stop: Callable[[], bool] | None,
) -> tuple[Incumbent, int]:
    problem, spent = tree.problem, _SET_CHILDREN
    rows = _of_use(tree, best, chosen)
    if not all(len(kept) for kept in rows):
        return best, spent
    part = problem.restrict(rows)
    useful = tuple(np.arange(len(kept)) for kept in rows)
    many = math.prod(len(kept) for kept in rows) > _MANY_PLANS
    if many:
        useful = useful_candidates(part)
        part = part.restrict(useful)
        spent += sum(len(rows[call]) for call in chosen) ** 2 // (2 * _PAIRS_PER_CHILD)
    units = units_of(part)
    found = branch_and_bound(
        part,
        graph,
        tree.chains,
        units,
        group_tables(part, tree.chains, units) if many else call_tables(part, tree.chains),
        replace(best, choice=np.zeros(len(rows), dtype=np.int64)),
        most_children=min(most_children, _SLICE_CHILDREN),
        stop=stop,
    )
    spent += found.children
    if found.best.makespan_s >= best.makespan_s:
        return best, spent
    choice = np.array(
        [all_rows[kept[row]] for all_rows, kept, row in zip(rows, useful, found.best.choice, strict=True)]
    )
    return Incumbent(choice=choice, order=found.best.order, makespan_s=found.best.makespan_s), spent


def _of_use(tree: Tree, best: Incumbent, chosen: tuple[int, ...]) -> list[IntArray]:
    """Rows of every call with which some plan may be faster, the calls not chosen as they are; none where none is."""
    fixed = tuple(call for call in range(len(best.choice)) if call not in chosen)
    rows = [best.choice[call : call + 1] for call in range(len(best.choice))]
    nodes = root(tree)
    for depth, call in enumerate(fixed):
        grown = grow(replace(tree, sequence=(*fixed, *chosen)), depth, nodes, best.makespan_s)
        nodes = grown.take(grown.choice[:, depth] == best.choice[call])
    for call in chosen:
        rows[call] = rows[call][:0]
        if len(nodes.bound) and all(len(kept) for kept in rows[:call]):
            others = (other for other in chosen if other != call)
            grown = grow(replace(tree, sequence=(*fixed, call, *others)), len(fixed), nodes, best.makespan_s)
            rows[call] = grown.choice[:, -1]
    return rows
