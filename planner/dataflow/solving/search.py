"""Finds the best plan of a scheduling problem and says how far from the best it can be at most.

Candidates that no best plan needs go first. Annealing finds a plan; branch and bound improves on it and proves how
good it is. Small problems, and stages one after the other, are proven optimal; for the rest the bound is told.
"""

import time
from collections.abc import Callable

import numpy as np

from planner.dataflow.solving.memory import why_nothing_fits
from planner.dataflow.solving.options import SearchOptions, check_options
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.results import Exploration, Solution
from planner.dataflow.solving.run import Search, first_plan
from planner.dataflow.solving.space import search_space
from profiles.errors import InfeasibleError


def solve(
    problem: DataflowProblem, options: SearchOptions | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Solution:
    """Search for the plan whose last iteration ends first, or whose settled iterations recur fastest.

    Args:
        problem: Candidates, order and memory.
        options: How hard to search; the defaults if none.
        clock: Read only when there is a time limit.

    Raises:
        SpecError: If an option is out of bounds.
        InfeasibleError: If no plan fits in memory, or none was found in the budget; the reasons say which.
    """
    found = explore(problem, options, clock=clock)
    if found.solution is None:
        raise InfeasibleError(why_nothing_fits(problem, exhausted=not np.isfinite(found.bound_s)))
    return found.solution


def explore(
    problem: DataflowProblem,
    options: SearchOptions | None = None,
    *,
    faster_than_s: float = np.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Exploration:
    """The same search where only plans faster than one that is known elsewhere are wanted; it may find none.

    Args:
        problem: Candidates, order and memory.
        options: How hard to search; the defaults if none.
        faster_than_s: Plans that take as long are of no use.
        clock: Read only when there is a time limit.

    Raises:
        SpecError: If an option is out of bounds.
    """
    given = options or SearchOptions()
    check_options(given)
    begun = clock() if given.time_limit_s is not None else 0.0

    def late() -> bool:
        return given.time_limit_s is not None and clock() - begun > given.time_limit_s

    first = first_plan(problem, given, late) if given.engine == "auto" and np.isinf(faster_than_s) else None
    best = first.incumbents[0] if first is not None and first.incumbents else None
    space = search_space(problem, faster_than_s if best is None else best.makespan_s, best)
    if space is None:
        return Exploration(solution=None, bound_s=faster_than_s, evaluated=0, children=0)
    search = Search(problem, space, given, faster_than_s, late)
    if first is not None and best is not None:
        search.begin(first, best)
    if given.engine == "anneal":
        search.anneal()
    elif given.engine == "tree":
        search.tree(given.most_children)
    else:
        search.in_turn()
        search.run_ahead()
    search.reorder()
    return search.exploration()
