"""What a search looks at: candidates worth a look, and what bounds say of them.

Two kinds of candidates go. First those with which no plan beats one that is known: a bound on all plans with a
candidate takes few steps, and where a good plan is known hardly any candidate is left. Then those that no best plan
needs (``planner.dataflow.solving.pareto``), which takes pairs of candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.solving.bounds import Chains, chains_of, group_time
from planner.dataflow.solving.group_tables import GroupTables, call_tables, group_tables
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.pareto import useful_candidates
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.rounds import chained_iterations
from planner.dataflow.solving.tree import Incumbent
from planner.dataflow.solving.tree_nodes import SLACK
from planner.dataflow.solving.units import Units, units_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """A problem without the candidates that nobody needs to look at.

    Attributes:
        kept: Its candidates, by call, as rows of the problem that was posed.
        problem: The problem with only those.
        units: Its units.
        chains: Its chains.
        tables: Least times of its groups.
    """

    kept: tuple[IntArray, ...]
    problem: DataflowProblem
    units: Units
    chains: Chains
    tables: GroupTables

    @property
    def bound_s(self) -> float:
        """No plan of these candidates takes less."""
        return float(group_time(self.chains, self.tables.least_s[None])[0])


def search_space(problem: DataflowProblem, faster_than_s: float, best: Incumbent | None = None) -> SearchSpace | None:
    """The candidates that some best plan may need, if it is faster than that; None where no plan is.

    Args:
        problem: The problem posed.
        faster_than_s: Plans that take as long are of no use; infinite if all are.
        best: A plan of the problem as fast as that, whose candidates stay in any case.
    """
    rows = tuple(np.arange(len(call)) for call in problem.calls)
    kept = rows if best is None else tuple(best.choice[:, None])
    if np.isfinite(faster_than_s):
        chains = _chains(problem)
        rows = promising_candidates(problem, chains, call_tables(problem, chains), faster_than_s)
        rows = rows if best is None else tuple(map(np.union1d, rows, kept))
        if not all(len(some) for some in rows):
            return None
        problem = problem.restrict(rows)
    useful = useful_candidates(problem)
    if best is not None:
        useful = tuple(map(np.union1d, useful, map(np.searchsorted, rows, kept)))
    return _space(problem, useful, rows)


def narrowed(space: SearchSpace, plans: Sequence[Incumbent]) -> tuple[SearchSpace, list[Incumbent]]:
    """Without the candidates with which no plan is better than the first one, but for those of the plans; these there.

    Args:
        space: What was looked at so far.
        plans: Plans of its candidates, the best known first.
    """
    promising = promising_candidates(space.problem, space.chains, space.tables, plans[0].makespan_s)
    chosen = np.stack([plan.choice for plan in plans])
    rows = tuple(np.union1d(kept, chosen[:, call]) for call, kept in enumerate(promising))
    if all(len(kept) == len(call) for kept, call in zip(rows, space.problem.calls, strict=True)):
        return space, list(plans)
    choice = np.stack([np.searchsorted(kept, chosen[:, call]) for call, kept in enumerate(rows)], axis=1)
    fewer = _space(space.problem, rows, space.kept)
    return fewer, [replace(plan, choice=row) for plan, row in zip(plans, choice, strict=True)]


def promising_candidates(
    problem: DataflowProblem, chains: Chains, tables: GroupTables, faster_than_s: float
) -> tuple[IntArray, ...]:
    """Rows of each call with which some plan may be faster than that, as far as the least times of groups tell.

    Args:
        problem: The problem.
        chains: Its chains.
        tables: Least times of its groups.
        faster_than_s: Plans that take as long are of no use.
    """
    rows = []
    for index, call in enumerate(problem.calls):
        times = np.tile(tables.least_s, (len(call), 1))
        for place, given_s in enumerate(tables.given_s):
            if index in given_s:
                np.maximum(times[:, place], given_s[index], out=times[:, place])
        rows.append(np.flatnonzero(group_time(chains, times) < faster_than_s * (1 - SLACK)))
    return tuple(rows)


def _space(problem: DataflowProblem, rows: tuple[IntArray, ...], among: tuple[IntArray, ...]) -> SearchSpace:
    """With only some candidates of a problem, whose own are rows of another one."""
    small = problem.restrict(rows)
    units, chains = units_of(small), _chains(small)
    return SearchSpace(
        kept=tuple(all_rows[kept] for all_rows, kept in zip(among, rows, strict=True)),
        problem=small,
        units=units,
        chains=chains,
        tables=group_tables(small, chains, units),
    )


def _chains(problem: DataflowProblem) -> Chains:
    return chains_of(problem, task_graph(problem, chained_iterations(problem), most_orders=1))
