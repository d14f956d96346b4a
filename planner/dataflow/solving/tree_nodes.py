"""Nodes of the exact search: which calls are decided, and what the rest takes at least.

A node decides the first few calls of a sequence, and its children one more: each candidate of the next call. What the
best of all candidates on a mesh would need is a way to run the call as well, if one that may not exist: where that is
no use, none of them is, and there are many times fewer meshes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.bounds import Chains, group_time
from planner.dataflow.solving.group_tables import GroupTables
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.units import RangeMaxima, Units, range_maxima
from planner.dataflow.solving.waits import Between

SLACK = 1e-12  # relative; absorbs the rounding of sums of times
_BLOCK_CELLS = 1 << 17  # of tables of what passes that are looked at at once; few enough to stay in the cache


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
class Maxima:
    """Largest values over the places, units or machines, under the mesh of each candidate.

    Attributes:
        places: The places.
        over: By call: maxima over the runs of places that its candidates use.
        run_of: By call: which of those runs each candidate uses.
    """

    places: Units
    over: tuple[RangeMaxima, ...]
    run_of: tuple[IntArray, ...]


def maxima(places: Units) -> Maxima:
    """Prepare maxima over the meshes of all candidates."""
    over, run_of = [], []
    for first, last in zip(places.first, places.stop, strict=True):
        runs, place = np.unique(np.stack([first, last], axis=1), axis=0, return_inverse=True)
        over.append(range_maxima(runs[:, 0], runs[:, 1], len(places)))
        run_of.append(place.ravel())
    return Maxima(places=places, over=tuple(over), run_of=tuple(run_of))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Ways to run one call: its candidates, or for each mesh what the best of them there need.

    Attributes:
        run: Run of units each uses; None where the ways are these runs. [ways]
        machine_run: Run of machines; None where host memory does not matter. [ways]
        start: First GPU. [ways]
        size: GPUs. [ways]
        time_s: Seconds. [ways]
        static_bytes: Bytes held throughout. [ways]
        active_bytes: Further bytes while it runs. [ways]
        host_share: Share of host memory; None where it does not matter. [ways]
        strategy_id: Layout; None where a mesh stands for all of them. [ways]
        given_s: Least time of each group that depends on the call, by group. [ways]
        passing: Of what passes to or from another call, by slot: seconds, [classes of that call, classes], and the
            class of each way; None where the ways are these classes. [ways]
    """

    run: IntArray | None
    machine_run: IntArray | None
    start: IntArray
    size: IntArray
    time_s: FloatArray
    static_bytes: FloatArray
    active_bytes: FloatArray
    host_share: FloatArray | None
    strategy_id: IntArray | None
    given_s: dict[int, FloatArray]
    passing: Mapping[int, tuple[FloatArray, IntArray | None]]

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass(frozen=True, slots=True)
class Meshes:
    """Candidates of a call by mesh.

    Attributes:
        best: What the best of them on each mesh need.
        rows: Candidates, mesh by mesh.
        first: Where those of each mesh begin, and one past the last. [meshes + 1]
    """

    best: Ways
    rows: IntArray
    first: IntArray


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
    units: Maxima
    machines: Maxima | None
    passing: tuple[Between, ...]
    sequence: tuple[int, ...]
    twins: dict[int, int]
    mirrored: BoolArray | None
    _ways: dict[int, Ways] = field(repr=False, compare=False, default_factory=dict)
    _meshes: dict[int, Meshes] = field(repr=False, compare=False, default_factory=dict)

    def ways(self, call: int) -> Ways:
        """The candidates of a call."""
        if call not in self._ways:
            self._ways[call] = _candidates(self, call)
        return self._ways[call]

    def meshes(self, call: int) -> Meshes:
        """Its meshes."""
        if call not in self._meshes:
            self._meshes[call] = _meshes(self, call)
        return self._meshes[call]


def root(tree: Tree) -> Nodes:
    """The node that decides nothing."""
    least = tree.tables.least_s[None]
    return Nodes(np.zeros((1, 0), dtype=np.int64), least, group_time(tree.chains, least))


def _candidates(tree: Tree, index: int) -> Ways:
    call, passing = tree.problem.calls[index], {}
    for slot, one in enumerate(tree.passing):
        if index == one.child != one.parent:
            passing[slot] = one.times.time_s, one.times.target_class
        elif index == one.parent != one.child:
            passing[slot] = one.times.time_s.T, one.times.source_class
    return Ways(
        run=tree.units.run_of[index],
        machine_run=None if tree.machines is None else tree.machines.run_of[index],
        start=call.start,
        size=call.size,
        time_s=call.time_s,
        static_bytes=call.static_bytes,
        active_bytes=call.active_bytes,
        host_share=None if tree.machines is None else call.host_share,
        strategy_id=call.strategy_id,
        given_s={group: given_s[index] for group, given_s in enumerate(tree.tables.given_s) if index in given_s},
        passing=passing,
    )


def _meshes(tree: Tree, index: int) -> Meshes:
    ways, run = tree.ways(index), tree.units.run_of[index]
    rows = np.argsort(run, kind="stable")
    first = np.flatnonzero(np.diff(run[rows], prepend=-1))
    some = rows[first]  # one candidate of each mesh

    def least(values: FloatArray) -> FloatArray:
        return np.asarray(np.minimum.reduceat(values[rows], first))

    best = Ways(
        run=None,
        machine_run=None if ways.machine_run is None else ways.machine_run[some],
        start=ways.start[some],
        size=ways.size[some],
        time_s=least(ways.time_s),
        static_bytes=least(ways.static_bytes),
        active_bytes=least(ways.active_bytes),
        host_share=None if ways.host_share is None else least(ways.host_share),
        strategy_id=None,
        given_s={group: least(given_s) for group, given_s in ways.given_s.items()},
        passing={
            slot: (_least_passing(time_s, run, classes), None)
            for slot, (time_s, classes) in ways.passing.items()
            if classes is not None
        },
    )
    return Meshes(best, rows, np.append(first, len(rows)))


def _least_passing(time_s: FloatArray, run: IntArray, classes: IntArray) -> FloatArray:
    """Least seconds to or from each run, whichever candidate is there. [classes of the other call, runs]."""
    both = np.unique(run * np.int64(time_s.shape[1]) + classes)
    there, column = np.divmod(both, time_s.shape[1])
    first = np.flatnonzero(np.diff(there, prepend=-1))
    least = np.empty((len(time_s), len(first)))
    block = max(_BLOCK_CELLS // len(column), 1)
    for begin in range(0, len(time_s), block):
        rows = slice(begin, begin + block)
        np.minimum.reduceat(time_s[rows, column], first, axis=1, out=least[rows])
    return least
