"""Nodes of the exact search: which calls are decided, what the rest takes at least, and the children of nodes.

A node decides the first few calls of a sequence. Which sequence matters much: where the calls that narrow the rest
most are decided first, bounds rise with few nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.bounds import Chains, group_time
from planner.dataflow.group_tables import GroupTables, passing_s
from planner.dataflow.problem import DataflowProblem
from planner.dataflow.units import RangeMaxima, Units, range_maxima
from planner.dataflow.waits import Between, between

SLACK = 1e-12  # relative; absorbs the rounding of sums of times
_SAMPLED_NODES = 64  # looked at to choose which call to decide next


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of one depth, a row each.

    Attributes:
        choice: Candidates of the calls decided so far, in the order they are decided. [nodes, depth]
        times: Least time of each group. [nodes, groups]
        bound: No plan below the node takes less. [nodes]
    """

    choice: IntArray
    times: FloatArray
    bound: FloatArray

    def take(self, rows: IntArray | BoolArray | slice) -> "Nodes":
        """Some of the nodes."""
        return Nodes(self.choice[rows], self.times[rows], self.bound[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maxima:
    """Largest values over the places, units or machines, under the mesh of each candidate.

    Attributes:
        places: The places.
        over: Maxima over the runs of places that candidates of each call use.
        run_of: By call: which of those runs each candidate uses.
    """

    places: Units
    over: tuple[RangeMaxima, ...]
    run_of: tuple[IntArray, ...]

    def of(self, call: int, values: FloatArray) -> FloatArray:
        """Largest value under the mesh of each candidate of a call. [rows, candidates].

        Args:
            call: Index of the call.
            values: One value of at least 0 per row and place. [rows, places]
        """
        largest: FloatArray = self.over[call].over(values)[:, self.run_of[call]]
        return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What all nodes of a search have in common.

    Attributes:
        problem: The problem.
        chains: Its chains.
        tables: Least times of its groups.
        units: Maxima over its units.
        machines: Maxima over its machines; None where host memory does not matter.
        passing: What passes between calls.
        sequence: Calls in the order they are decided.
        twins: Call to an interchangeable call decided before it.
        mirrored: Candidates of the first call that a mirror image makes superfluous; None for none.
    """

    problem: DataflowProblem
    chains: Chains
    tables: GroupTables
    units: _Maxima
    machines: _Maxima | None
    passing: tuple[Between, ...]
    sequence: tuple[int, ...]
    twins: dict[int, int]
    mirrored: BoolArray | None


def plant(problem: DataflowProblem, chains: Chains, units: Units, tables: GroupTables, upper_s: float) -> Tree:
    """Prepare a search, and choose in which order calls are decided.

    Args:
        problem: The problem, useless candidates dropped.
        chains: Its chains.
        units: Its units.
        tables: Least times of its groups.
        upper_s: Time of the best plan known; infinite if none is.
    """
    tree = Tree(
        problem=problem,
        chains=chains,
        tables=tables,
        units=_maxima(units),
        machines=None if units.machines is None else _maxima(units.machines),
        passing=between(problem),
        sequence=_by_memory(problem),
        twins={},
        mirrored=None,
    )
    sequence = _narrowing(tree, upper_s) if np.isfinite(upper_s) else tree.sequence
    return replace(tree, sequence=sequence, twins=_twins(problem, sequence), mirrored=_mirrored(problem, sequence[0]))


def _maxima(places: Units) -> _Maxima:
    over, run_of = [], []
    for first, last in zip(places.first, places.stop, strict=True):
        runs, place = np.unique(np.stack([first, last], axis=1), axis=0, return_inverse=True)
        over.append(range_maxima(runs[:, 0], runs[:, 1], len(places)))
        run_of.append(place.ravel())
    return _Maxima(places=places, over=tuple(over), run_of=tuple(run_of))


def root(tree: Tree) -> Nodes:
    """The node that decides nothing."""
    least = tree.tables.least_s[None]
    return Nodes(np.zeros((1, 0), dtype=np.int64), least, group_time(tree.chains, least))


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


def grow(tree: Tree, depth: int, nodes: Nodes, upper_s: float) -> Nodes:
    """Children of nodes that fit and promise less than the upper bound.

    Args:
        tree: The search.
        depth: Calls the nodes decide.
        nodes: Some nodes of that depth.
        upper_s: Children that take no less are left out.
    """
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
    decided = _decided(tree, depth, choice)
    for place in range(len(tree.chains.groups)):
        if index in tree.tables.given_s[place]:
            touched[place] = _group_times(tree, place, depth, decided, times)
    for chain, counts in enumerate(tree.chains.counts):
        if any(counts[place] for place in touched):
            value = np.tile(fixed[:, chain, None], (1, len(call)))
            for place, later in touched.items():
                if counts[place]:
                    value += counts[place] * (later - times[:, place, None])
            np.maximum(bound, value, out=bound)
    allowed &= bound < upper_s * (1 - SLACK)
    node, row = np.nonzero(allowed)
    new_times = times[node]
    for place, later in touched.items():
        new_times[:, place] = later[node, row]
    return Nodes(np.concatenate([choice[node], row[:, None]], axis=1), new_times, bound[node, row])


def _fitting(tree: Tree, depth: int, choice: IntArray) -> BoolArray:
    """Whether each candidate of the next call fits beside the calls decided. [nodes, candidates]."""
    problem = tree.problem
    index = tree.sequence[depth]
    call = problem.calls[index]
    held, active = _memory(tree, depth, choice)
    capacity = tree.units.places.capacity_bytes
    roomiest = capacity.max()
    # As if every GPU had the memory of the roomiest, and the others held the difference already.
    held += roomiest - capacity
    peak = tree.units.of(index, held + active)
    held = tree.units.of(index, held)
    static = np.broadcast_to(call.static_bytes, peak.shape)
    for one, other in problem.replicas:
        if one == index and other in tree.sequence[:depth]:
            sibling, rows = problem.calls[other], choice[:, tree.sequence.index(other), None]
            same = (call.start == sibling.start[rows]) & (call.size == sibling.size[rows])
            static = static * ~(same & (call.strategy_id == sibling.strategy_id[rows]))
    fits: BoolArray = (peak + static <= roomiest) & (held + static + call.active_bytes <= roomiest)
    if tree.machines is not None and call.host_share is not None:
        fits &= tree.machines.of(index, _hosted(tree.machines, tree, depth, choice)) + call.host_share <= 1
    return fits


def _hosted(machines: _Maxima, tree: Tree, depth: int, choice: IntArray) -> FloatArray:
    """Share of its host memory that the calls decided take of every machine. [nodes, machines]."""
    held = np.zeros((len(choice), len(machines.places)))
    for column, index in enumerate(tree.sequence[:depth]):
        share, rows = tree.problem.calls[index].host_share, choice[:, column]
        if share is not None:
            held += machines.places.inside(index, rows) * share[rows][:, None]
    return held


def _memory(tree: Tree, depth: int, choice: IntArray) -> tuple[FloatArray, FloatArray]:
    """Static bytes and largest active bytes in every unit under the calls decided. [nodes, units]."""
    problem, units = tree.problem, len(tree.units.places)
    held, active = np.zeros((len(choice), units)), np.zeros((len(choice), units))
    sharing = dict(problem.replicas)
    for column, index in enumerate(tree.sequence[:depth]):
        call, rows = problem.calls[index], choice[:, column]
        inside = tree.units.places.inside(index, rows)
        static = call.static_bytes[rows]
        if index in sharing:
            other = sharing[index]
            sibling, others = problem.calls[other], choice[:, tree.sequence.index(other)]
            same = (call.start[rows] == sibling.start[others]) & (call.size[rows] == sibling.size[others])
            static = static * ~(same & (call.strategy_id[rows] == sibling.strategy_id[others]))
        held += inside * static[:, None]
        np.maximum(active, inside * call.active_bytes[rows][:, None], out=active)
    return held, active


@dataclass(frozen=True, slots=True)
class _Decided:
    """What the calls decided mean for the next one.

    ``held``: units of each call decided, [nodes, units]. ``moved``: for what passes between one of them and the next
    call, by slot, which call that is, and the seconds, [nodes, candidates].
    """

    choice: IntArray
    column_of: dict[int, int]
    held: dict[int, BoolArray]
    moved: dict[int, tuple[int, FloatArray]]

    def rows(self, call: int) -> IntArray:
        """Candidate of a call in every node."""
        return np.asarray(self.choice[:, self.column_of[call]])


def _decided(tree: Tree, depth: int, choice: IntArray) -> _Decided:
    problem, index = tree.problem, tree.sequence[depth]
    column_of = {call: column for column, call in enumerate(tree.sequence[:depth])}
    held = {call: tree.units.places.inside(call, choice[:, column]) for call, column in column_of.items()}
    moved = {}
    everyone = np.arange(len(problem.calls[index]))
    for slot, passing in enumerate(tree.passing):
        other = passing.parent if index == passing.child else passing.child
        if index in (passing.parent, passing.child) and other in column_of:
            moved[slot] = other, passing_s(passing, other, choice[:, column_of[other]], everyone)
    return _Decided(choice, column_of, held, moved)


def _group_times(tree: Tree, place: int, depth: int, decided: _Decided, times: FloatArray) -> FloatArray:
    """Least time of one group for each candidate of the next call. [nodes, candidates]."""
    group, moves = tree.chains.groups[place], tree.chains.moves[place]
    index = tree.sequence[depth]
    call = tree.problem.calls[index]
    later = np.maximum(times[:, place, None], tree.tables.given_s[place][index])
    load = _load(tree, place, decided)
    # The call, and transfers to and from those decided, occupy the whole mesh of the candidate.
    mine: FloatArray = call.time_s * float(index in group)
    for slot, (other, time_s) in decided.moved.items():
        if moves[slot]:
            mine = mine + moves[slot] * time_s
            if load is not None:
                # And the whole mesh of the other call.
                there = np.where(decided.held[other], load, 0.0).max(axis=1)
                np.maximum(later, there[:, None] + moves[slot] * time_s, out=later)
    if load is not None:
        mine = mine + tree.units.of(index, load)
    np.maximum(later, mine, out=later)
    before = [other for other in group if other in decided.column_of]
    if before and index in group:
        calls = tree.problem.calls
        spent = sum(
            calls[other].time_s[decided.rows(other)] * calls[other].size[decided.rows(other)] for other in before
        )
        left = sum(tree.tables.area_gpu_s[other] for other in group if other not in tree.sequence[: depth + 1])
        ours = (call.time_s * call.size + left) / tree.problem.num_gpus
        np.maximum(later, np.asarray(spent)[:, None] / tree.problem.num_gpus + ours, out=later)
    return later


def _load(tree: Tree, place: int, decided: _Decided) -> FloatArray | None:
    """Time of a group on every unit under the calls decided; None where they take none of it. [nodes, units]."""
    load: FloatArray | None = None
    for call in (call for call in tree.chains.groups[place] if call in decided.column_of):
        part = decided.held[call] * tree.problem.calls[call].time_s[decided.rows(call)][:, None]
        load = part if load is None else load + part
    for passing, share in zip(tree.passing, tree.chains.moves[place], strict=True):
        parent, child = passing.parent, passing.child
        if share and passing.occupies and {parent, child} <= decided.column_of.keys():
            time_s = passing.times.price(decided.rows(parent), decided.rows(child))
            part = (decided.held[parent] | decided.held[child]) * (share * time_s)[:, None]
            load = part if load is None else load + part
    return load
