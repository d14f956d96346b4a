"""Exact search: branch and bound over the candidates of one call after the other, whole blocks of nodes at a time.

A node decides the first few calls. Its children decide one more; those that do not fit in memory, or whose lower
bound is no
better than the best plan found, are dropped. The rest wait in a pool per depth. Blocks are taken from the deepest
pool, which
finds plans, and from the pool with the smallest bound, which raises the bound of the whole tree; what is left in the
pools
when the budget ends gives the bound that is reported.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.bounds import Chains, group_time
from planner.dataflow.group_tables import GroupTables
from planner.dataflow.orders import TaskGraph
from planner.dataflow.problem import DataflowProblem
from planner.dataflow.schedule import PlanRows, makespan
from planner.dataflow.units import RangeMaxima, Units, range_maxima

_BLOCK_CELLS = 1_500_000  # children looked at in one step
_BLOCK_NODES = 4096
_DIVE_NODES = 256  # while no plan is known
_MOST_WAITING = 6_000_000  # nodes in all pools before only the deepest are taken
_LEAF_BLOCK = 64
_SLACK = 1e-12  # relative; absorbs the rounding of sums of times


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best plan known.

    Attributes:
        choice: Candidate of each call. [calls]
        order: Row of the table of orders.
        makespan_s: Its time; infinite while none is known.
    """

    choice: IntArray
    order: int
    makespan_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeResult:
    """What a tree search proves.

    Attributes:
        best: The best plan, at least as good as the one given.
        bound_s: No plan takes less, over every order.
        children: Children looked at.
    """

    best: Incumbent
    bound_s: float
    children: int


@dataclass(frozen=True, slots=True)
class _Nodes:
    choice: IntArray  # candidates of the calls decided so far, in the order they are decided
    times: FloatArray  # least time of each group
    bound: FloatArray

    def take(self, rows: IntArray | BoolArray | slice) -> "_Nodes":
        return _Nodes(self.choice[rows], self.times[rows], self.bound[rows])


@dataclass(slots=True)
class _Pool:
    """Nodes of one depth in blocks, each sorted by bound; a heap knows the block with the smallest."""

    blocks: list[_Nodes] = field(default_factory=list)
    heap: list[tuple[float, int]] = field(default_factory=list)
    size: int = 0

    def least(self) -> float:
        return self.heap[0][0] if self.heap else np.inf

    def push(self, nodes: _Nodes) -> None:
        order = np.argsort(nodes.bound, kind="stable")
        self._add(nodes.take(order))

    def pop(self, count: int) -> _Nodes:
        """The first ``count`` nodes of the block that has the smallest bound."""
        _, number = heapq.heappop(self.heap)
        block = self.blocks[number]
        self.blocks[number] = block.take(slice(0, 0))
        self.size -= len(block.bound)
        if len(block.bound) > count:
            self._add(block.take(slice(count, None)))
        return block.take(slice(0, count))

    def _add(self, nodes: _Nodes) -> None:
        self.blocks.append(nodes)
        self.size += len(nodes.bound)
        heapq.heappush(self.heap, (float(nodes.bound[0]), len(self.blocks) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    problem: DataflowProblem
    graph: TaskGraph
    chains: Chains
    tables: GroupTables
    units: Units
    sequence: tuple[int, ...]  # calls in the order they are decided
    maxima: tuple[RangeMaxima, ...]  # by call
    mesh_of: tuple[IntArray, ...]  # by call: which run of ``maxima`` each candidate uses
    twins: dict[int, int]  # call -> an interchangeable call decided before it
    mirrored: BoolArray | None  # candidates of the first call that a mirror image makes superfluous


def branch_and_bound(
    problem: DataflowProblem,
    graph: TaskGraph,
    chains: Chains,
    units: Units,
    tables: GroupTables,
    best: Incumbent,
    *,
    most_children: int,
    gap: float = 0.0,
    stop: Callable[[], bool] | None = None,
) -> TreeResult:
    """Search until nothing better is left, the gap is small enough, or the budget ends.

    Args:
        problem: The problem, useless candidates dropped.
        graph: Its tasks and orders.
        chains: Its chains.
        units: Its units.
        tables: Least times of its groups.
        best: A plan to improve on; infinite time if none is known.
        most_children: Budget of children looked at; the result depends on nothing else that is not an argument.
        gap: Stop when the best plan is within this share of the bound.
        stop: Asked once per block; true ends the search early.

    Returns:
        Best plan and bound; equal when the plan is proven to be the best. The bound is infinite when nothing fits.
    """
    tree = _plant(problem, graph, chains, units, tables)
    pools = [_Pool() for _ in tree.sequence]
    least = tables.least_s[None]
    pools[0].push(_Nodes(np.zeros((1, 0), dtype=np.int64), least, group_time(chains, least)))
    children, turn, missed = 0, 0, np.inf
    while children < most_children and not (stop and stop()):
        waiting = min(pool.least() for pool in pools)
        if min(waiting, missed) >= best.makespan_s * (1 - max(gap, _SLACK)) or waiting >= best.makespan_s:
            break
        depth = _next_depth(pools, turn)
        turn += 1
        width = len(problem.calls[tree.sequence[depth]])
        block = min(_BLOCK_NODES if np.isfinite(best.makespan_s) else _DIVE_NODES, max(1, _BLOCK_CELLS // width))
        nodes = pools[depth].pop(block)
        nodes = nodes.take(nodes.bound < best.makespan_s * (1 - _SLACK))
        if not len(nodes.bound):
            continue
        children += len(nodes.bound) * width
        grown = _grow(tree, depth, nodes, best.makespan_s)
        if depth + 1 == len(pools):
            best, unproven = _harvest(tree, grown, best)
            missed = min(missed, unproven)
        elif len(grown.bound):
            pools[depth + 1].push(grown)
    bound = float(min(min(pool.least() for pool in pools), missed, best.makespan_s))
    return TreeResult(best=best, bound_s=bound, children=children)


def _next_depth(pools: Sequence[_Pool], turn: int) -> int:
    filled = [depth for depth, pool in enumerate(pools) if pool.heap]
    if turn % 2 == 0 or sum(pool.size for pool in pools) > _MOST_WAITING:
        return filled[-1]
    return min(filled, key=lambda depth: (pools[depth].least(), -depth))


def _plant(problem: DataflowProblem, graph: TaskGraph, chains: Chains, units: Units, tables: GroupTables) -> _Tree:
    maxima, mesh_of = [], []
    for first, last in zip(units.first, units.stop, strict=True):
        runs, place = np.unique(np.stack([first, last], axis=1), axis=0, return_inverse=True)
        maxima.append(range_maxima(runs[:, 0], runs[:, 1], len(units)))
        mesh_of.append(place.ravel())
    sequence = _sequence(problem)
    return _Tree(
        problem=problem,
        graph=graph,
        chains=chains,
        tables=tables,
        units=units,
        sequence=sequence,
        maxima=tuple(maxima),
        mesh_of=tuple(mesh_of),
        twins=_twins(problem, sequence),
        mirrored=_mirrored(problem, sequence[0]),
    )


def _sequence(problem: DataflowProblem) -> tuple[int, ...]:
    """Calls that hold most memory for longest first; a sibling that shares its weights before those that use them."""
    weight = [
        float(np.median(call.static_bytes * call.size)) + 1e-6 * float(np.median(call.active_bytes * call.size))
        for call in problem.calls
    ]
    siblings = {other for _, other in problem.replicas}
    order = sorted(range(len(problem.calls)), key=lambda index: (index not in siblings, -weight[index], index))
    return tuple(order)


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
    if any(edge.transfer is not None for edge in problem.edges if {edge.parent, edge.child} & {one, two}):
        return False
    columns = ("start", "size", "time_s", "static_bytes", "active_bytes")
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
    if any(edge.transfer is not None for edge in problem.edges) or problem.replicas:
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


def _grow(tree: _Tree, depth: int, nodes: _Nodes, upper_s: float) -> _Nodes:
    """Children of nodes at one depth that fit and promise less than the upper bound."""
    choice, times = nodes.choice, nodes.times
    index = tree.sequence[depth]
    call = tree.problem.calls[index]
    allowed = _fitting(tree, depth, choice)
    if depth == 0 and tree.mirrored is not None:
        allowed &= ~tree.mirrored
    twin = tree.twins.get(index)
    if twin is not None:
        allowed &= np.arange(len(call)) >= choice[:, tree.sequence.index(twin), None]
    fixed = times @ tree.chains.counts.T  # bound of each chain before this call is decided
    bound = np.tile(fixed.max(axis=1)[:, None], (1, len(call)))
    touched: dict[int, FloatArray] = {}
    for place, group in enumerate(tree.chains.groups):
        if index in group:
            touched[place] = _group_times(tree, place, depth, choice, times)
    for chain, counts in enumerate(tree.chains.counts):
        if any(counts[place] for place in touched):
            value = np.tile(fixed[:, chain, None], (1, len(call)))
            for place, later in touched.items():
                if counts[place]:
                    value += counts[place] * (later - times[:, place, None])
            np.maximum(bound, value, out=bound)
    allowed &= bound < upper_s * (1 - _SLACK)
    node, row = np.nonzero(allowed)
    new_times = times[node]
    for place, later in touched.items():
        new_times[:, place] = later[node, row]
    return _Nodes(np.concatenate([choice[node], row[:, None]], axis=1), new_times, bound[node, row])


def _fitting(tree: _Tree, depth: int, choice: IntArray) -> BoolArray:
    """Whether each candidate of the next call fits beside the calls decided. [nodes, candidates]."""
    problem, units = tree.problem, tree.units
    index = tree.sequence[depth]
    call, mesh_of = problem.calls[index], tree.mesh_of[index]
    held, active = _memory(tree, depth, choice)
    capacity = units.capacity_bytes
    roomiest = capacity.max()
    # As if every GPU had the memory of the roomiest, and the others held the difference already.
    held += roomiest - capacity
    peak = tree.maxima[index].over(held + active)[:, mesh_of]
    held = tree.maxima[index].over(held)[:, mesh_of]
    static = np.broadcast_to(call.static_bytes, peak.shape)
    for one, other in problem.replicas:
        if one == index and other in tree.sequence[:depth]:
            sibling, rows = problem.calls[other], choice[:, tree.sequence.index(other), None]
            same = (call.start == sibling.start[rows]) & (call.size == sibling.size[rows])
            static = static * ~(same & (call.strategy_id == sibling.strategy_id[rows]))
    fits: BoolArray = (peak + static <= roomiest) & (held + static + call.active_bytes <= roomiest)
    return fits


def _memory(tree: _Tree, depth: int, choice: IntArray) -> tuple[FloatArray, FloatArray]:
    """Static bytes and largest active bytes in every unit under the calls decided. [nodes, units]."""
    problem, units = tree.problem, tree.units
    place = np.arange(len(units))
    held, active = np.zeros((len(choice), len(units))), np.zeros((len(choice), len(units)))
    sharing = dict(problem.replicas)
    for column, index in enumerate(tree.sequence[:depth]):
        call, rows = problem.calls[index], choice[:, column]
        inside = (units.first[index][rows][:, None] <= place) & (place < units.stop[index][rows][:, None])
        static = call.static_bytes[rows]
        if index in sharing:
            other = sharing[index]
            sibling, others = problem.calls[other], choice[:, tree.sequence.index(other)]
            same = (call.start[rows] == sibling.start[others]) & (call.size[rows] == sibling.size[others])
            static = static * ~(same & (call.strategy_id[rows] == sibling.strategy_id[others]))
        held += inside * static[:, None]
        np.maximum(active, inside * call.active_bytes[rows][:, None], out=active)
    return held, active


def _group_times(tree: _Tree, place: int, depth: int, choice: IntArray, times: FloatArray) -> FloatArray:
    """Least time of one group for each candidate of the next call. [nodes, candidates]."""
    problem, units = tree.problem, tree.units
    group = tree.chains.groups[place]
    index = tree.sequence[depth]
    call = problem.calls[index]
    later = np.maximum(times[:, place, None], tree.tables.given_s[place][index])
    decided = [column for column, other in enumerate(tree.sequence[:depth]) if other in group]
    if decided:
        load = np.zeros((len(choice), len(units)))
        unit = np.arange(len(units))
        spent = np.zeros(len(choice))
        for column in decided:
            other = tree.sequence[column]
            rows = choice[:, column]
            time = problem.calls[other].time_s[rows]
            load += ((units.first[other][rows][:, None] <= unit) & (unit < units.stop[other][rows][:, None])) * time[
                :, None
            ]
            spent += time * problem.calls[other].size[rows]
        np.maximum(later, tree.maxima[index].over(load)[:, tree.mesh_of[index]] + call.time_s, out=later)
        left = sum(tree.tables.area_gpu_s[other] for other in group if other not in tree.sequence[: depth + 1])
        area = (spent[:, None] + call.time_s * call.size + left) / problem.num_gpus
        np.maximum(later, area, out=later)
    return later


def _harvest(tree: _Tree, grown: _Nodes, best: Incumbent) -> tuple[Incumbent, float]:
    """Simulate whole plans in every order; the best, and the least that orders outside the table might attain."""
    choice, bound = grown.choice, grown.bound
    order = np.argsort(bound, kind="stable")
    columns = np.argsort(tree.sequence)
    orders = len(tree.graph.orders)
    missed = np.inf
    for begin in range(0, len(order), _LEAF_BLOCK):
        rows = order[begin : begin + _LEAF_BLOCK]
        rows = rows[bound[rows] < best.makespan_s * (1 - _SLACK)]
        if not len(rows):
            break
        plans = choice[rows][:, columns]
        repeated = PlanRows(choice=np.repeat(plans, orders, axis=0), order=np.tile(np.arange(orders), len(rows)))
        time = makespan(tree.problem, tree.graph, repeated).reshape(len(rows), orders)
        if not tree.graph.complete:
            # Another order, not in the table, might attain the bound.
            missed = min(missed, float(bound[rows].min()))
        least = time.min(axis=1)
        winner = int(least.argmin())
        if least[winner] < best.makespan_s:
            best = Incumbent(choice=plans[winner], order=int(time[winner].argmin()), makespan_s=float(least[winner]))
    return best, missed
