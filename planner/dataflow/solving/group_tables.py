"""What a group of calls takes at least when one of its calls uses a given candidate."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.bounds import Chains
from planner.dataflow.solving.problem import CallCandidates, DataflowProblem
from planner.dataflow.solving.units import Units
from planner.dataflow.solving.waits import Between, between

_BLOCK_CELLS = 250_000  # pairs or triples compared at once: what a cache holds, twice as fast as ten times as many
_MOST_PAIRS = 40_000_000  # of candidates of two calls compared; of more, only the fastest of each mesh are
_MOST_TRIPLES = 60_000_000  # triples of meshes looked at for one group; larger groups keep the bounds of their pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTables:
    """Least times of the groups of a problem.

    Attributes:
        least_s: Least time of each group over all its candidates. [groups]
        given_s: By group, then by call it depends on: least time of the group if that call uses each candidate.
            Infinite where no candidate of another call of the group fits beside it.
        area_gpu_s: Least GPU-seconds of each call. [calls]
    """

    least_s: FloatArray
    given_s: tuple[dict[int, FloatArray], ...]
    area_gpu_s: FloatArray


def group_tables(problem: DataflowProblem, chains: Chains, units: Units) -> GroupTables:
    """Least times of all groups, from pairs and triples of candidates and from the GPU-seconds needed.

    Args:
        problem: The problem; fewer candidates make this faster, so drop useless ones first.
        chains: Its chains.
        units: Its units.
    """
    given = call_tables(problem, chains).given_s
    pairs = {pair for group in chains.groups for pair in combinations(group, 2)}
    sizes = [len(call) for call in problem.calls]
    many = {pair for pair in pairs if sizes[pair[0]] * sizes[pair[1]] > _MOST_PAIRS}
    _add_mesh_pairs(problem, chains, given, many)
    for first, second in sorted(pairs - many):
        places = [place for place, group in enumerate(chains.groups) if first in group and second in group]
        moved = [_moved(problem, chains.moves[place], first, second) for place in places]
        different = sorted(set(moved))
        for shares, (by_first, by_second) in zip(
            different, _pair(problem, units, first, second, different), strict=True
        ):
            for place in (place for place, other in zip(places, moved, strict=True) if other == shares):
                np.maximum(given[place][first], by_first, out=given[place][first])
                np.maximum(given[place][second], by_second, out=given[place][second])
    for group, tables in zip(chains.groups, given, strict=True):
        if len(group) == 3:
            _add_triples(problem, group, tables)
    return _tables(problem, given)


def call_tables(problem: DataflowProblem, chains: Chains) -> GroupTables:
    """The same, less tight and in a fraction of the time: from each candidate alone and from the GPU-seconds needed.

    Args:
        problem: The problem.
        chains: Its chains.
    """
    least = tuple(_least(passing) for passing in between(problem))
    given = tuple(_alone(problem, chains, place, least) for place in range(len(chains.groups)))
    area = [float((call.time_s * call.size).min()) for call in problem.calls]
    for group, by_call in zip(chains.groups, given, strict=True):
        for index in group:
            call = problem.calls[index]
            others = sum(area[other] for other in group if other != index)
            np.maximum(by_call[index], (call.time_s * call.size + others) / problem.num_gpus, out=by_call[index])
    return _tables(problem, given)


def _tables(problem: DataflowProblem, given: tuple[dict[int, FloatArray], ...]) -> GroupTables:
    least = np.array([max(table.min() for table in tables.values()) for tables in given])
    area = np.array([(call.time_s * call.size).min() for call in problem.calls])
    return GroupTables(least_s=least, given_s=given, area_gpu_s=area)


def _least(passing: Between) -> tuple[int, FloatArray, int, FloatArray]:
    """Both ends of what passes, each with the least it takes beside each of its candidates."""
    times = passing.times
    to_any, from_any = times.time_s.min(axis=1)[times.source_class], times.time_s.min(axis=0)[times.target_class]
    return passing.parent, to_any, passing.child, from_any


def _alone(
    problem: DataflowProblem, chains: Chains, place: int, least: Sequence[tuple[int, FloatArray, int, FloatArray]]
) -> dict[int, FloatArray]:
    """What each candidate takes of one group by itself, with the cheapest transfer to or from any other call."""
    group = chains.groups[place]
    tables = {index: problem.calls[index].time_s.copy() for index in group}
    for (parent, to_any, child, from_any), share in zip(least, chains.moves[place], strict=True):
        if share:
            for end, least_s in ((parent, to_any), (child, from_any)):
                tables[end] = tables.get(end, 0.0) + share * least_s
    return tables


def _moved(problem: DataflowProblem, moves: FloatArray, first: int, second: int) -> tuple[tuple[int, float], ...]:
    """What of a group passes between two calls, by slot, and how often each is part of it."""
    return tuple(
        (slot, float(share))
        for slot, (passing, share) in enumerate(zip(between(problem), moves, strict=True))
        if share and {passing.parent, passing.child} == {first, second}
    )


def _share_gpus(one: CallCandidates, two: CallCandidates, rows: IntArray) -> BoolArray:
    """Whether candidates of two calls share a GPU: rows of the first, all of the second. [rows, n]."""
    return (one.start[rows][:, None] < two.stop) & (two.start < one.stop[rows][:, None])


def _fits(
    problem: DataflowProblem, units: Units, first: int, second: int, rows: IntArray, shared: BoolArray
) -> BoolArray:
    """Whether candidates of two calls leave each other enough memory: where they share a GPU, [rows, n]."""
    one, two = problem.calls[first], problem.calls[second]
    # What fits on the roomiest GPU may still not fit on the one shared; which only makes this weaker.
    room = units.capacity_bytes.max()
    static = one.static_bytes[rows][:, None] + two.static_bytes
    if (first, second) in problem.replicas or (second, first) in problem.replicas:
        static = np.maximum(one.static_bytes[rows][:, None], two.static_bytes)
    together: BoolArray = static + np.maximum(one.active_bytes[rows][:, None], two.active_bytes) <= room
    return ~shared | together


def _pair(
    problem: DataflowProblem, units: Units, first: int, second: int, moved: Sequence[Sequence[tuple[int, float]]]
) -> list[tuple[FloatArray, FloatArray]]:
    """Least time of two calls and the transfers between them, for each candidate of either.

    A transfer occupies both meshes, so that it adds to whatever the calls take.

    Args:
        problem: The problem.
        units: Its units.
        first: Index of a call.
        second: Index of another call.
        moved: What passes between the two, by slot, and how often, in each of several groups.

    Returns:
        For each of those groups, the least time given each candidate of the first call, and of the second.
    """
    one, two = problem.calls[first], problem.calls[second]
    least = [(np.empty(len(one)), np.full(len(two), np.inf)) for _ in moved]
    everyone, passing = np.arange(len(two)), between(problem)
    slots = sorted({slot for shares in moved for slot, _ in shares})
    block = max(1, _BLOCK_CELLS // len(two))
    for begin in range(0, len(one), block):
        rows = np.arange(begin, min(begin + block, len(one)))
        mine_s, shared = one.time_s[rows][:, None], _share_gpus(one, two, rows)
        alone = np.where(shared, mine_s + two.time_s, np.maximum(mine_s, two.time_s))
        alone[~_fits(problem, units, first, second, rows, shared)] = np.inf
        passing_by_slot = {slot: passing_s(passing[slot], first, rows, everyone) for slot in slots}
        for (by_first, by_second), shares in zip(least, moved, strict=True):
            time = alone
            for slot, share in shares:
                time = time + share * passing_by_slot[slot]
            by_first[rows] = time.min(axis=1)
            np.minimum(by_second, time.min(axis=0), out=by_second)
    return least


def passing_s(passing: Between, first: int, rows: IntArray, others: IntArray) -> FloatArray:
    """Seconds of what passes between candidates of one of its ends and of the other. [rows, others].

    Args:
        passing: What passes.
        first: The call at either end that ``rows`` are candidates of.
        rows: Candidates of that call.
        others: Candidates of the call at the other end.
    """
    if first == passing.parent:
        return passing.times.price(rows[:, None], others[None])
    return passing.times.price(others[None], rows[:, None])


def _add_mesh_pairs(
    problem: DataflowProblem, chains: Chains, given: Sequence[dict[int, FloatArray]], pairs: set[tuple[int, int]]
) -> None:
    """What two calls of a group take at least on any meshes, whatever memory they need and whatever passes between."""
    meshes = {index: _fastest_by_mesh(problem.calls[index]) for pair in pairs for index in pair}
    least: dict[tuple[int, int], tuple[FloatArray, FloatArray]] = {}
    for group, tables in zip(chains.groups, given, strict=True):
        for first, second in pairs & set(combinations(group, 2)):
            if (first, second) not in least:
                (start1, stop1, time1, of1), (start2, stop2, time2, of2) = meshes[first], meshes[second]
                shared = (start1[:, None] < stop2) & (start2 < stop1[:, None])
                time = np.where(shared, time1[:, None] + time2, np.maximum(time1[:, None], time2))
                least[first, second] = time.min(axis=1)[of1], time.min(axis=0)[of2]
            for index, least_s in zip((first, second), least[first, second], strict=True):
                np.maximum(tables[index], least_s, out=tables[index])


def _add_triples(problem: DataflowProblem, group: Sequence[int], tables: dict[int, FloatArray]) -> None:
    meshes = [_fastest_by_mesh(problem.calls[index]) for index in group]
    sizes = [len(time) for _, _, time, _ in meshes]
    if np.prod(sizes, dtype=np.float64) > _MOST_TRIPLES:
        return
    least = [np.full(size, np.inf) for size in sizes]
    (start0, stop0, time0, _), (start1, stop1, time1, _), (start2, stop2, time2, _) = meshes
    apart12 = (start1[:, None] < stop2) & (start2 < stop1[:, None])
    pair12 = np.where(apart12, time1[:, None] + time2, np.maximum(time1[:, None], time2))
    block = max(1, _BLOCK_CELLS // (sizes[1] * sizes[2]))
    for begin in range(0, sizes[0], block):
        rows = slice(begin, begin + block)
        with1 = (start0[rows][:, None] < stop1) & (start1 < stop0[rows][:, None])
        with2 = (start0[rows][:, None] < stop2) & (start2 < stop0[rows][:, None])
        time = pair12[None] + np.where(with1[:, :, None] & with2[:, None, :] & apart12, time0[rows][:, None, None], 0)
        np.maximum(time, np.where(with1, time0[rows][:, None] + time1, 0)[:, :, None], out=time)
        np.maximum(time, np.where(with2, time0[rows][:, None] + time2, 0)[:, None, :], out=time)
        np.maximum(time, time0[rows][:, None, None], out=time)
        least[0][rows] = time.min(axis=(1, 2))
        np.minimum(least[1], time.min(axis=(0, 2)), out=least[1])
        np.minimum(least[2], time.min(axis=(0, 1)), out=least[2])
    for index, (_, _, fastest, mesh_of), smallest in zip(group, meshes, least, strict=True):
        # A slower candidate of a mesh takes the group no less than the fastest of that mesh.
        del fastest
        np.maximum(tables[index], smallest[mesh_of], out=tables[index])


def _fastest_by_mesh(call: CallCandidates) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    keys, mesh_of = np.unique(np.stack([call.start, call.stop], axis=1), axis=0, return_inverse=True)
    fastest = np.full(len(keys), np.inf)
    np.minimum.at(fastest, mesh_of.ravel(), call.time_s)
    return keys[:, 0], keys[:, 1], fastest, mesh_of.ravel()
