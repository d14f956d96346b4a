"""Lower bounds on the time of a problem, whole or partly decided.

Tasks that do not wait for each other form a *group*. On any GPU they run one after the other, so a group takes at
least the largest load of a GPU: the sum of the times of its calls that use it, and of its transfers whose source or
target does. Groups that wait for each other form a *chain*, whose groups' times add up. The time of a plan is at least
that of every chain; in a graph of stages (each call waits for all calls of the stage before) with at most three calls
in a stage and no transfers the best order attains it.

For a stage of three calls: contiguous meshes that compete pairwise share a GPU, so the load of a GPU is the weight of
a set of pairwise competing calls. Either all three compete (any order takes the sum), or one competes with both others
(it goes first), or fewer do. In each case the largest such weight is attained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.orders import TaskGraph
from planner.dataflow.problem import DataflowProblem
from planner.dataflow.schedule import slot_times

_MOST_GROUPS = 600  # groups over all iterations that are looked at; fewer only weaken a bound
_MOST_CHAINS_BUILT = 128  # chains kept while they are built, the longest
_MOST_CHAINS = 16  # chains kept in the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Groups of calls and transfers, and how often each occurs along the chains that bound a problem.

    Attributes:
        groups: Calls of each group.
        moves: How often each transfer of the problem, in the order of its edges, is part of each group: 0 or 1, or the
            share of the iterations it occurs in for the group of all work. [groups, transfers]
        counts: Occurrences of each group along each chain. [chains, groups]
    """

    groups: tuple[tuple[int, ...], ...]
    moves: FloatArray
    counts: FloatArray

    def touched(self, problem: DataflowProblem, place: int) -> tuple[int, ...]:
        """Calls on which the time of one group depends: its own, and both ends of its transfers."""
        ends = {
            end
            for edge, share in zip(problem.moving, self.moves[place], strict=True)
            if share
            for end in (edge.parent, edge.child)
        }
        return tuple(sorted(ends.union(self.groups[place])))


def chains_of(problem: DataflowProblem, graph: TaskGraph) -> Chains:
    """Groups and chains of the unrolled graph.

    Args:
        problem: The problem.
        graph: Its tasks.
    """
    calls, tasks = len(problem.calls), len(graph.slot)
    before = _ancestors(graph)
    found = _groups(before, tasks)
    slots_of = {group: tuple(sorted({int(graph.slot[task]) for task in _members(group)})) for group in found}
    # All that happens in an iteration; a transfer from an earlier one is missing from the first.
    often = np.bincount(graph.slot, minlength=calls + len(problem.moving)) / problem.iterations
    everything = tuple(range(len(often)))
    groups = sorted({*slots_of.values(), everything})
    index = {group: place for place, group in enumerate(groups)}
    belongs = np.array([[slot in group for slot in everything] for group in groups], dtype=np.float64)
    belongs[index[everything]] = often
    counts = _longest(found, before, {group: index[slots_of[group]] for group in found}, len(groups))
    if not (counts @ belongs >= problem.iterations * often).all(axis=1).any():
        # A GPU runs all that uses it in every iteration. A chain through every task each time says as much and more.
        work = np.zeros((1, len(groups)))
        work[0, index[everything]] = problem.iterations
        counts = np.concatenate([counts, work])
    every = Chains(
        groups=tuple(tuple(slot for slot in group if slot < calls) for group in groups),
        moves=belongs[:, calls:],
        counts=counts,
    )
    counts = _telling(problem, every)
    used = np.flatnonzero(counts.any(axis=0))
    return Chains(groups=tuple(every.groups[place] for place in used), moves=every.moves[used], counts=counts[:, used])


def group_time(chains: Chains, times: FloatArray) -> FloatArray:
    """Bound of each row from the times of its groups, shape [rows].

    Args:
        chains: Chains of the problem.
        times: Least time of each group. [rows, groups]
    """
    bound: FloatArray = (times @ chains.counts.T).max(axis=1)
    return bound


def choice_bound(problem: DataflowProblem, chains: Chains, choice: IntArray) -> FloatArray:
    """Bound on the time of complete plans, whatever their order, shape [P].

    Args:
        problem: The problem.
        chains: Its chains.
        choice: Candidate of each call. [P, calls]
    """
    return group_time(chains, _loads(problem, chains, choice))


def _loads(problem: DataflowProblem, chains: Chains, choice: IntArray) -> FloatArray:
    """Time of every group under complete plans. [P, groups]."""
    calls = len(problem.calls)
    start = np.stack([call.start[choice[:, index]] for index, call in enumerate(problem.calls)])
    stop = np.stack([call.stop[choice[:, index]] for index, call in enumerate(problem.calls)])
    times = slot_times(problem, choice)
    # The heaviest GPU is the first one of some mesh; a call without GPUs still takes its time.
    held = (start[:, None] <= start[None]) & (start[None] < stop[:, None])
    moved = [held[edge.parent] | held[edge.child] for edge in problem.moving]
    loads = np.zeros((len(choice), len(chains.groups)))
    for place, (group, moves) in enumerate(zip(chains.groups, chains.moves, strict=True)):
        load = np.zeros_like(start, dtype=np.float64)
        for call in group:
            load += held[call] * times[call]
            np.maximum(loads[:, place], times[call], out=loads[:, place])
        for move in np.flatnonzero(moves):
            time = moves[move] * times[calls + move]
            load += moved[move] * time
            np.maximum(loads[:, place], time, out=loads[:, place])
        np.maximum(loads[:, place], load.max(axis=0), out=loads[:, place])
    return loads


def _telling(problem: DataflowProblem, chains: Chains) -> FloatArray:
    """The chains that are the longest for some of a sample of plans; any selection bounds, and fewer are faster."""
    rng = np.random.default_rng(0)
    columns = []
    for call in problem.calls:
        fastest = np.argsort(call.time_s, kind="stable")[: max(1, len(call) // 8)]
        columns.append(np.concatenate([rng.integers(0, len(call), 512), rng.choice(fastest, 512)]))
    longest = (_loads(problem, chains, np.stack(columns, axis=1)) @ chains.counts.T).argmax(axis=1)
    often = np.bincount(longest, minlength=len(chains.counts))
    kept = np.argsort(-often, kind="stable")[:_MOST_CHAINS]
    return chains.counts[kept[often[kept] > 0]]


def _ancestors(graph: TaskGraph) -> list[int]:
    """Tasks that each task waits for, directly or not, as bits."""
    before = [0] * len(graph.parents)
    for task in graph.orders[0]:
        for parent in graph.parents[task]:
            before[task] |= before[parent] | 1 << parent
    return before


def _members(group: int) -> list[int]:
    return [task for task in range(group.bit_length()) if group >> task & 1]


def _groups(before: Sequence[int], tasks: int) -> list[int]:
    """Sets of tasks, as bits, none of which waits for another; of those with the same neighbours only the fullest."""
    after = [0] * tasks
    for task in range(tasks):
        for parent in _members(before[task]):
            after[parent] |= 1 << task
    everything = (1 << tasks) - 1
    free = [everything & ~(before[task] | after[task] | 1 << task) for task in range(tasks)]
    fullest: dict[tuple[int, int], list[int]] = {}
    # Task by task, so that a bound on their number drops large groups rather than late iterations.
    layer = {1 << task: free[task] for task in range(tasks)}
    seen = 0
    while layer and seen < _MOST_GROUPS:
        following: dict[int, int] = {}
        for group, allowed in layer.items():
            earlier = later = everything
            for task in _members(group):
                earlier &= before[task]
                later &= after[task]
            smaller = [other for other in fullest.get((earlier, later), ()) if other & ~group]
            fullest[earlier, later] = [*smaller, group]
            for task in _members(allowed & ~((1 << group.bit_length()) - 1)):
                following[group | 1 << task] = allowed & free[task]
        seen += len(layer)
        layer = following
    return sorted(group for groups in fullest.values() for group in groups)


def _longest(found: Sequence[int], before: Sequence[int], index: dict[int, int], groups: int) -> FloatArray:
    """How often chains pass through each set of calls, for the chains that no other contains."""
    earlier_of = {}
    for group in found:
        common = -1
        for task in _members(group):
            common &= before[task]
        earlier_of[group] = common
    best: dict[int, FloatArray] = {}
    for group in sorted(found, key=lambda one: (earlier_of[one].bit_count(), one)):
        vectors = [best[other] for other in best if other & ~earlier_of[group] == 0] or [np.zeros((1, groups))]
        stacked = _thin(np.concatenate(vectors))
        stacked[:, index[group]] += 1
        best[group] = stacked
    return _thin(np.concatenate(list(best.values())))


def _thin(vectors: FloatArray) -> FloatArray:
    unique = np.unique(vectors, axis=0)
    unique = unique[np.argsort(-unique.sum(axis=1), kind="stable")[:_MOST_CHAINS_BUILT]]
    covered: BoolArray = np.all(unique[None, :, :] >= unique[:, None, :], axis=2)
    np.fill_diagonal(covered, val=False)
    return unique[~covered.any(axis=1)]
