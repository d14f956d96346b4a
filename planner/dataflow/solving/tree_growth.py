"""Children of nodes of the exact search: those that fit in memory and promise less than the best plan known.

Where there are many, what the best candidates on a mesh would need is looked at first, and the candidates of only those
meshes where that is of use. Bounds of a mesh are worked out as those of its candidates are, from figures none of which
is larger, so that what goes this way would have gone anyway, to the last bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.tree_nodes import SLACK, Maxima, Nodes, Tree, Ways

_MANY_CELLS = 1 << 15  # children from which on meshes are looked at first
_FEWER_MESHES = 3  # and so many candidates to a mesh


def grow(tree: Tree, depth: int, nodes: Nodes, upper_s: float) -> Nodes:
    """Children of nodes that fit and promise less than the upper bound.

    Args:
        tree: The search.
        depth: Calls the nodes decide.
        nodes: Some nodes of that depth.
        upper_s: Children that take no less are left out.
    """
    enough_s = upper_s * (1 - SLACK)
    ways, below = tree.ways(tree.sequence[depth]), _below(tree, depth, nodes)
    cells = _looked_at(tree, below, enough_s)
    cells = cells.only(_needed(tree, depth, nodes.choice, cells) & _fits(tree, below, ways, cells))
    bound, times = _bounds(tree, below, ways, cells)
    good = np.flatnonzero(bound < enough_s)
    good = good[np.argsort(cells.node[good] * len(ways) + cells.way[good], kind="stable")]
    node, row = cells.node[good], cells.way[good]
    new_times = nodes.times[node]
    for place, later in times.items():
        new_times[:, place] = later[good]
    return Nodes(np.concatenate([nodes.choice[node], row[:, None]], axis=1), new_times, bound[good])


@dataclass(frozen=True, slots=True)
class _Cells:
    """Pairs of a node and a way: all of them as a column of nodes and a row of ways, or some as two lists."""

    node: IntArray
    way: IntArray

    def only(self, kept: BoolArray) -> "_Cells":
        """Some of them, as lists."""
        if self.node.ndim == 1:
            return _Cells(self.node[kept], self.way[kept])
        node, way = np.divmod(np.flatnonzero(kept), self.way.shape[1])
        return _Cells(node, way)

    def at(self, table: FloatArray, column: IntArray | None) -> FloatArray:
        """Entries of a table by node, in the column of each way; the ways are the columns where there is none."""
        if self.node.ndim == 1:
            place = self.way if column is None else column[self.way]
            return np.asarray(table.take(self.node * table.shape[1] + place))
        return table if column is None else table[:, column]

    def among(self, table: FloatArray, row: IntArray, column: IntArray | None) -> FloatArray:
        """Entries of a table in a row of each node and a column of each way."""
        return np.asarray(table[row[self.node], self.way if column is None else column[self.way]])


@dataclass(frozen=True, slots=True)
class _Below:
    """What nodes leave to the next call.

    Attributes:
        index: The next call.
        times: Least time of each group. [nodes, groups]
        fixed: What each chain takes at least before the call is decided. [nodes, chains]
        held: Static bytes on the fullest unit of each run. [nodes, runs]
        peak: The same with the largest active bytes. [nodes, runs]
        hosted: Share of the fullest machine of each run of machines; None where it does not matter. [nodes, runs]
        sibling: Start, size and layout of the call whose weights it may share; None if there is none. [nodes]
        shares: Whether it may share those of a call that is not decided, and so need none of its own.
        moved: Of what passes to or from a call decided, by slot: class of its candidate. [nodes]
        load: By group: time of the fullest unit of each run; of groups of which the calls decided take some.
            [nodes, runs]
        there_s: By group and slot: time of the fullest unit of the call at the other end of what passes. [nodes]
        area: By group that the call is part of with some decided: their GPU-seconds, [nodes], and the least GPU-seconds
            of those not decided.
    """

    index: int
    times: FloatArray
    fixed: FloatArray
    held: FloatArray
    peak: FloatArray
    hosted: FloatArray | None
    sibling: tuple[IntArray, IntArray, IntArray] | None
    shares: bool
    moved: dict[int, IntArray]
    load: dict[int, FloatArray]
    there_s: dict[tuple[int, int], FloatArray]
    area: dict[int, tuple[FloatArray, float]]


def _looked_at(tree: Tree, below: _Below, enough_s: float) -> _Cells:
    """All children, or those on meshes that are of use."""
    nodes, ways = np.arange(len(below.times)), len(tree.ways(below.index))
    runs = below.held.shape[1]
    if len(nodes) * ways < _MANY_CELLS or ways < _FEWER_MESHES * runs:
        return _Cells(nodes[:, None], np.arange(ways)[None])
    meshes = tree.meshes(below.index)
    cells = _Cells(nodes[:, None], np.arange(runs)[None])
    useful = _fits(tree, below, meshes.best, cells)
    useful &= _bounds(tree, below, meshes.best, cells)[0] < enough_s
    cells = cells.only(useful)
    begin = meshes.first[cells.way]
    count = meshes.first[cells.way + 1] - begin
    step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return _Cells(np.repeat(cells.node, count), meshes.rows[np.repeat(begin, count) + step])


def _needed(tree: Tree, depth: int, choice: IntArray, cells: _Cells) -> BoolArray:
    """Which candidates no other plan, mirrored or with two calls swapped, makes superfluous."""
    needed = np.ones(np.broadcast_shapes(cells.node.shape, cells.way.shape), dtype=np.bool_)
    if depth == 0 and tree.mirrored is not None:
        needed &= ~tree.mirrored[cells.way]
    twin = tree.twins.get(tree.sequence[depth])
    if twin is not None:
        needed &= cells.way >= choice[:, tree.sequence.index(twin)][cells.node]
    return needed


def _fits(tree: Tree, below: _Below, ways: Ways, cells: _Cells) -> BoolArray:
    """Whether each way fits beside the calls decided; of the shape of the cells."""
    roomiest = tree.units.places.capacity_bytes.max()
    static, active = ways.static_bytes[cells.way], ways.active_bytes[cells.way]
    if below.sibling is not None:
        start, size, layout = (each[cells.node] for each in below.sibling)
        same = (ways.start[cells.way] == start) & (ways.size[cells.way] == size)
        if ways.strategy_id is not None:
            same &= ways.strategy_id[cells.way] == layout
        static = static * ~same
    static = static * (not below.shares)
    fits: BoolArray = cells.at(below.peak, ways.run) + static <= roomiest
    fits &= cells.at(below.held, ways.run) + static + active <= roomiest
    if below.hosted is not None and ways.host_share is not None:
        fits &= cells.at(below.hosted, ways.machine_run) + ways.host_share[cells.way] <= 1
    return fits


def _bounds(tree: Tree, below: _Below, ways: Ways, cells: _Cells) -> tuple[FloatArray, dict[int, FloatArray]]:
    """What plans take at least with each way, and the least time of each group that depends on it."""
    times = {place: _group_times(tree, below, ways, cells, place) for place in ways.given_s}
    shape = np.broadcast_shapes(cells.node.shape, cells.way.shape)
    bound = np.empty(shape)
    bound[...] = below.fixed.max(axis=1)[cells.node]
    for chain, counts in enumerate(tree.chains.counts):
        touched = [place for place in times if counts[place]]
        if touched:
            value = np.empty(shape)
            value[...] = below.fixed[:, chain][cells.node]
            for place in touched:
                value += counts[place] * (times[place] - below.times[:, place][cells.node])
            np.maximum(bound, value, out=bound)
    return bound, times


def _group_times(tree: Tree, below: _Below, ways: Ways, cells: _Cells, place: int) -> FloatArray:
    """Least time of one group with each way; of the shape of the cells."""
    group, moves = tree.chains.groups[place], tree.chains.moves[place]
    later = np.maximum(below.times[:, place][cells.node], ways.given_s[place][cells.way])
    load = below.load.get(place)
    # The call, and transfers to and from those decided, occupy the whole mesh of the way.
    mine: FloatArray = ways.time_s[cells.way] * float(below.index in group)
    for slot, theirs in below.moved.items():
        if moves[slot]:
            time_s, classes = ways.passing[slot]
            moved_s = moves[slot] * cells.among(time_s, theirs, classes)
            mine = mine + moved_s
            if load is not None:
                # And the whole mesh of the other call.
                np.maximum(later, below.there_s[place, slot][cells.node] + moved_s, out=later)
    if load is not None:
        mine = mine + cells.at(load, ways.run)
    later = np.maximum(later, mine)
    if place in below.area:
        spent, left = below.area[place]
        own = ways.time_s[cells.way] * ways.size[cells.way]
        num_gpus = tree.problem.num_gpus
        np.maximum(later, spent[cells.node] / num_gpus + (own + left) / num_gpus, out=later)
    return later


def _below(tree: Tree, depth: int, nodes: Nodes) -> _Below:
    """What the next call has to reckon with."""
    problem, index, choice = tree.problem, tree.sequence[depth], nodes.choice
    column_of = {call: column for column, call in enumerate(tree.sequence[:depth])}
    rows = {call: choice[:, column] for call, column in column_of.items()}
    inside = {call: tree.units.places.inside(call, rows[call]) for call in column_of}
    moved, ends = {}, {}
    for slot, passing in enumerate(tree.passing):
        if index == passing.child and passing.parent in rows:
            moved[slot], ends[slot] = passing.times.source_class[rows[passing.parent]], passing.parent
        elif index == passing.parent and passing.child in rows:
            moved[slot], ends[slot] = passing.times.target_class[rows[passing.child]], passing.child
    over, load, there_s, area = tree.units.over[index].over, {}, {}, {}
    for place in tree.ways(index).given_s:
        taken = _load(tree, place, rows, inside)
        if taken is not None:
            load[place] = over(taken)
            for slot, other in ends.items():
                if tree.chains.moves[place][slot]:
                    there_s[place, slot] = np.where(inside[other], taken, 0.0).max(axis=1)
        group = tree.chains.groups[place]
        before = [call for call in group if call in rows]
        if before and index in group:
            spent = sum(
                problem.calls[call].time_s[rows[call]] * problem.calls[call].size[rows[call]] for call in before
            )
            left = sum(tree.tables.area_gpu_s[other] for other in group if other not in tree.sequence[: depth + 1])
            area[place] = np.asarray(spent), float(left)
    held, active = _memory(problem, rows, inside, (len(choice), len(tree.units.places)))
    capacity = tree.units.places.capacity_bytes
    # As if every GPU had the memory of the roomiest, and the others held the difference already.
    held += capacity.max() - capacity
    return _Below(
        index=index,
        times=nodes.times,
        fixed=nodes.times @ tree.chains.counts.T,
        held=over(held),
        peak=over(held + active),
        hosted=None if tree.machines is None else _hosted(tree.machines, problem, index, rows, len(choice)),
        sibling=_sibling(problem, index, rows),
        shares=_may_share(problem, index, rows),
        moved=moved,
        load=load,
        there_s=there_s,
        area=area,
    )


def _sibling(
    problem: DataflowProblem, index: int, rows: Mapping[int, IntArray]
) -> tuple[IntArray, IntArray, IntArray] | None:
    other = dict(problem.replicas).get(index)
    if other is None or other not in rows:
        return None
    sibling, chosen = problem.calls[other], rows[other]
    return sibling.start[chosen], sibling.size[chosen], sibling.strategy_id[chosen]


def _may_share(problem: DataflowProblem, index: int, rows: Mapping[int, IntArray]) -> bool:
    """Whether a call has a sibling that is not decided."""
    return any(call == index and other not in rows for call, other in problem.replicas)


def _hosted(
    machines: Maxima, problem: DataflowProblem, index: int, rows: Mapping[int, IntArray], nodes: int
) -> FloatArray:
    """Share of its host memory that the calls decided take of the fullest machine of each run. [nodes, runs]."""
    held = np.zeros((nodes, len(machines.places)))
    for call, chosen in rows.items():
        share = problem.calls[call].host_share
        if share is not None:
            held += machines.places.inside(call, chosen) * share[chosen][:, None]
    return machines.over[index].over(held)


def _memory(
    problem: DataflowProblem, rows: Mapping[int, IntArray], inside: Mapping[int, BoolArray], shape: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """Static bytes and largest active bytes in every unit under the calls decided. [nodes, units]."""
    held, active = np.zeros(shape), np.zeros(shape)
    for index, chosen in rows.items():
        call, sibling = problem.calls[index], _sibling(problem, index, rows)
        static = call.static_bytes[chosen]
        if sibling is not None:
            mine = call.start[chosen], call.size[chosen], call.strategy_id[chosen]
            static = static * ~np.logical_and.reduce([a == b for a, b in zip(mine, sibling, strict=True)])
        static = static * (not _may_share(problem, index, rows))
        held += inside[index] * static[:, None]
        np.maximum(active, inside[index] * call.active_bytes[chosen][:, None], out=active)
    return held, active


def _load(tree: Tree, place: int, rows: Mapping[int, IntArray], inside: Mapping[int, BoolArray]) -> FloatArray | None:
    """Time of a group on every unit under the calls decided; None where they take none of it. [nodes, units]."""
    load: FloatArray | None = None
    for call in (call for call in tree.chains.groups[place] if call in rows):
        part = inside[call] * tree.problem.calls[call].time_s[rows[call]][:, None]
        load = part if load is None else load + part
    for passing, share in zip(tree.passing, tree.chains.moves[place], strict=True):
        parent, child = passing.parent, passing.child
        if share and passing.occupies and {parent, child} <= rows.keys():
            time_s = passing.times.price(rows[parent], rows[child])
            part = (inside[parent] | inside[child]) * (share * time_s)[:, None]
            load = part if load is None else load + part
    return load
