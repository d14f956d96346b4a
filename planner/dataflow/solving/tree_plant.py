"""Prepares an exact search: in which order calls are decided, and what symmetry makes superfluous.

Which order matters much: where the calls that narrow the rest most are decided first, bounds rise with few nodes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray
from planner.dataflow.solving.bounds import Chains
from planner.dataflow.solving.group_tables import GroupTables
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.tree_growth import grow
from planner.dataflow.solving.tree_nodes import Nodes, Tree, maxima, root
from planner.dataflow.solving.units import Units
from planner.dataflow.solving.waits import between

_SAMPLED_NODES = 64  # looked at to choose which call to decide next


def plant(problem: DataflowProblem, chains: Chains, units: Units, tables: GroupTables, upper_s: float) -> Tree:
    """Prepare a search, and choose in which order calls are decided.

    Args:
        problem: The problem, useless candidates dropped.
        chains: Its chains.
        units: Its units.
        tables: Least times of its groups.
        upper_s: Time of the best plan known; infinite if none is.
    """
    tree = unplanted(problem, chains, units, tables)
    known = np.isfinite(upper_s) and root(tree).bound[0] < upper_s
    sequence = _narrowing(tree, upper_s) if known else tree.sequence
    return replace(tree, sequence=sequence, twins=_twins(problem, sequence), mirrored=_mirrored(problem, sequence[0]))


def unplanted(problem: DataflowProblem, chains: Chains, units: Units, tables: GroupTables) -> Tree:
    """A search of no symmetry in which calls are decided in a plain order.

    Args:
        problem: The problem.
        chains: Its chains.
        units: Its units.
        tables: Least times of its groups.
    """
    return Tree(
        problem=problem,
        chains=chains,
        tables=tables,
        units=maxima(units),
        machines=None if units.machines is None else maxima(units.machines),
        passing=between(problem),
        sequence=_by_memory(problem),
        twins={},
        mirrored=None,
    )


def _by_memory(problem: DataflowProblem) -> tuple[int, ...]:
    """Calls that hold most memory for longest first; a sibling that shares its weights before those that use them."""
    weight = [
        float(np.median(call.static_bytes * call.size)) + 1e-6 * float(np.median(call.active_bytes * call.size))
        for call in problem.calls
    ]
    siblings = {other for _, other in problem.replicas}
    order = sorted(range(len(problem.calls)), key=lambda index: (index not in siblings, -weight[index], index))
    return tuple(order)


def _narrowing(tree: Tree, upper_s: float) -> tuple[int, ...]:
    """Calls so that each leaves fewest children worth a look below the most promising nodes; siblings first again."""
    sharing = dict(tree.problem.replicas)
    chosen: tuple[int, ...] = ()
    left, nodes = list(tree.sequence), root(tree)
    for call in tree.sequence:  # those that leave no choice before all others
        if len(tree.problem.calls[call]) == 1 and sharing.get(call) not in left:
            left.remove(call)
            nodes = grow(replace(tree, sequence=(*chosen, call, *left)), len(chosen), nodes, upper_s)
            chosen = (*chosen, call)
    while len(left) > 1 and len(nodes.bound):
        grown: dict[int, Nodes] = {}
        for call in left:
            if sharing.get(call) not in left:
                others = (other for other in left if other != call)
                grown[call] = grow(replace(tree, sequence=(*chosen, call, *others)), len(chosen), nodes, upper_s)
        fewest = min(grown, key=lambda call: len(grown[call].bound))
        below = grown[fewest]
        nodes = below.take(np.argsort(below.bound, kind="stable")[:_SAMPLED_NODES])
        chosen = (*chosen, fewest)
        left.remove(fewest)
    return (*chosen, *left)


def _twins(problem: DataflowProblem, sequence: Sequence[int]) -> dict[int, int]:
    """Calls with the same candidates and neighbours; swapping two such calls changes nothing."""
    twins: dict[int, int] = {}
    for place, later in enumerate(sequence):
        for earlier in reversed(sequence[:place]):
            if _interchangeable(problem, earlier, later):
                twins[later] = earlier
                break
    return twins


def _interchangeable(problem: DataflowProblem, one: int, two: int) -> bool:
    first, second = problem.calls[one], problem.calls[two]
    if any(one in pair or two in pair for pair in problem.replicas):
        return False
    if any({edge.parent, edge.child} & {one, two} for edge in (*problem.moving, *problem.leading)):
        return False
    columns = ["start", "size", "time_s", "static_bytes", "active_bytes"]
    columns += ["host_share"] if problem.machine_of is not None else []
    if len(first) != len(second) or any(
        not np.array_equal(getattr(first, column), getattr(second, column)) for column in columns
    ):
        return False
    swap = {one: two, two: one}
    edges = {(edge.parent, edge.child, edge.lag) for edge in problem.edges}
    return edges == {(swap.get(parent, parent), swap.get(child, child), lag) for parent, child, lag in edges}


def _mirrored(problem: DataflowProblem, first: int) -> BoolArray | None:
    """Candidates of a call whose mirror image stands before them, if the whole problem is its own mirror image."""
    if not np.array_equal(problem.capacity_bytes, problem.capacity_bytes[::-1]):
        return None
    if problem.moving or problem.leading or problem.replicas or problem.machine_of is not None:
        return None
    for call in problem.calls:
        columns = (call.size, call.time_s, call.static_bytes, call.active_bytes)
        rows = np.stack([call.start, *columns], axis=1)
        image = np.stack([problem.num_gpus - call.stop, *columns], axis=1)
        if not np.array_equal(_sorted_rows(rows), _sorted_rows(image)):
            return None
    call = problem.calls[first]
    superfluous: BoolArray = call.start > problem.num_gpus - call.stop
    return superfluous


def _sorted_rows(rows: FloatArray) -> FloatArray:
    ordered: FloatArray = rows[np.lexsort(rows.T[::-1])]
    return ordered
