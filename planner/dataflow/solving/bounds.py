"""Lower bounds on the time of a problem, whole or partly decided.

Tasks that do not wait for each other form a *group*. On any GPU they run one after the other, so a group takes at
least the largest load of a GPU: the sum of the times of its calls that use it, and of its transfers whose source or
target does. What a lead leaves of waiting is a group by itself. Groups that wait for each other form a *chain*, whose
groups' times add up. Where a chain comes back to the same group d iterations later it goes on so for ever, so that
what lies between takes at most d settled iterations: a *circle*. The time of a plan is at least that of every chain; in
a graph of stages (each call waits for all calls of the stage before) with at most three calls in a stage and no
transfers the best order attains it.

For a stage of three calls: contiguous meshes that compete pairwise share a GPU, so the load of a GPU is the weight of
a set of pairwise competing calls. Either all three compete (any order takes the sum), or one competes with both others
(it goes first), or fewer do. In each case the largest such weight is attained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.schedule import slot_times, spans
from planner.dataflow.solving.waits import Unrolled, between, unrolled

_MOST_GROUPS = 600  # groups over all iterations that are looked at; fewer only weaken a bound
_MOST_CHAINS = 16
_SAMPLED = 256  # plans at random, and as many of fast candidates, whose longest chains are taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Groups of calls and transfers, and how often each occurs along the chains that bound a problem.

    Attributes:
        groups: Calls of each group.
        moves: How often each thing that passes ``between`` calls is part of each group: 0 or 1, or the share of the
            iterations it occurs in for the group of all work. [groups, transfers and what leads leave]
        counts: Occurrences of each group along each chain, or around each circle, per iteration. [chains, groups]
    """

    groups: tuple[tuple[int, ...], ...]
    moves: FloatArray
    counts: FloatArray


def chains_of(problem: DataflowProblem, graph: TaskGraph) -> Chains:
    """Groups and chains of the unrolled graph; circles where plans are judged by their pace.

    Args:
        problem: The problem.
        graph: Its tasks.
    """
    calls, tasks = len(problem.calls), len(graph.slot)
    every = unrolled(problem, graph)
    before = _ancestors(every)
    found = [*_groups(before, tasks), *(1 << left for left in range(tasks, len(before)))]
    slots_of = {group: tuple(sorted({every.slot[task] for task in _members(group)})) for group in found}
    # All that happens in an iteration; a transfer from an earlier one is missing from the first.
    often = np.bincount(graph.slot, minlength=calls + len(problem.moving)) / problem.iterations
    often = np.ones_like(often) if problem.settled else often
    everything = tuple(range(len(often)))
    groups = sorted({*slots_of.values(), everything})
    index = {group: place for place, group in enumerate(groups)}
    slots = range(calls + len(between(problem)))
    belongs = np.array([[slot in group for slot in slots] for group in groups], dtype=np.float64)
    belongs[index[everything], : len(often)] = often
    whole = Chains(
        groups=tuple(tuple(slot for slot in group if slot < calls) for group in groups),
        moves=belongs[:, calls:],
        counts=np.zeros((0, len(groups))),
    )
    loads = _loads(problem, whole, _sample(problem))
    places = [index[slots_of[group]] for group in found]
    longest = _longest(found, before, places, loads)
    if problem.settled:
        counts, time_s = _circles(_shapes(found, every), places, loads, longest)
    else:
        counts, time_s = _passed(places, longest, len(groups)), longest.least_s
    # A GPU runs all that uses it in every iteration, whatever waits for what.
    iterations = 1 if problem.settled else problem.iterations
    work_s = iterations * loads[:, index[everything]]
    counts[work_s > time_s] = iterations * np.eye(len(groups))[index[everything]]
    chosen, samples = np.unique(counts, axis=0, return_counts=True)
    chosen = chosen[np.argsort(-samples, kind="stable")[:_MOST_CHAINS]]
    used = np.flatnonzero(chosen.any(axis=0))
    return Chains(groups=tuple(whole.groups[place] for place in used), moves=whole.moves[used], counts=chosen[:, used])


def group_time(chains: Chains, times: FloatArray) -> FloatArray:
    """Bound of each row from the times of its groups, shape [rows].

    Args:
        chains: Chains of the problem.
        times: Least time of each group. [rows, groups]
    """
    endless = np.isinf(times)
    if not endless.any():
        bound: FloatArray = (times @ chains.counts.T).max(axis=1)
        return bound
    # What fits nowhere takes for ever, along every chain it is part of.
    bound = np.where(endless, 0.0, times) @ chains.counts.T
    bound[endless @ (chains.counts.T > 0)] = np.inf
    return np.asarray(bound.max(axis=1))


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
    start, stop = spans(problem, choice)
    times = slot_times(problem, choice)[:calls]
    passing = between(problem)
    passing_s = [one.times.price(choice[:, one.parent], choice[:, one.child]) for one in passing]
    # The heaviest GPU is the first one of some mesh; a call without GPUs still takes its time.
    held = (start[:, None] <= start[None]) & (start[None] < stop[:, None])
    moved = [(held[one.parent] | held[one.child]) & one.occupies for one in passing]
    loads = np.zeros((len(choice), len(chains.groups)))
    for place, (group, moves) in enumerate(zip(chains.groups, chains.moves, strict=True)):
        load = np.zeros_like(start, dtype=np.float64)
        for call in group:
            load += held[call] * times[call]
            np.maximum(loads[:, place], times[call], out=loads[:, place])
        for move in np.flatnonzero(moves):
            time = moves[move] * passing_s[move]
            load += moved[move] * time
            np.maximum(loads[:, place], time, out=loads[:, place])
        np.maximum(loads[:, place], load.max(axis=0), out=loads[:, place])
    return loads


def _sample(problem: DataflowProblem) -> IntArray:
    """Plans for which chains are made: any selection of chains bounds, these are the longest ones of some plans."""
    rng = np.random.default_rng(0)
    columns = []
    for call in problem.calls:
        fastest = np.argsort(call.time_s, kind="stable")[: max(1, len(call) // 8)]
        columns.append(np.concatenate([rng.integers(0, len(call), _SAMPLED), rng.choice(fastest, _SAMPLED)]))
    return np.stack(columns, axis=1)


def _ancestors(tasks: Unrolled) -> list[int]:
    """Tasks that each task waits for, directly or not, as bits."""
    before = [0] * len(tasks.slot)
    for task in tasks.order:
        for parent in tasks.parents[task]:
            before[task] |= before[parent] | 1 << parent
    return before


def _members(group: int) -> list[int]:
    return [task for task in range(group.bit_length()) if group >> task & 1]


def _groups(before: Sequence[int], tasks: int) -> list[int]:
    """Sets of tasks, as bits, none of which waits for another; of those with the same neighbours only the fullest.

    Args:
        before: What each task waits for, then what leads leave.
        tasks: How many tasks there are; the rest is in no set.
    """
    after = [0] * len(before)
    for task in range(len(before)):
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
            earlier = later = -1
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


@dataclass(frozen=True, slots=True)
class _Longest:
    """The longest chain to every set of tasks, of each sampled plan.

    Attributes:
        ahead: Sets that the chain to each set may pass before it.
        time_s: Seconds of the longest chain that ends with each set. [sets, plans]
    """

    ahead: tuple[IntArray, ...]
    time_s: FloatArray

    @property
    def least_s(self) -> FloatArray:
        """Seconds of the longest chain of each plan. [plans]."""
        return np.asarray(self.time_s.max(axis=0))

    def path(self, plan: int) -> list[int]:
        """Sets along the longest chain of a plan, first to last."""
        times = self.time_s[:, plan]
        path = [int(times.argmax())]
        while len(ahead := self.ahead[path[-1]]):
            path.append(int(ahead[times[ahead].argmax()]))
        return path[::-1]


def _longest(found: Sequence[int], before: Sequence[int], index: Sequence[int], loads: FloatArray) -> _Longest:
    """The longest chains of each sampled plan.

    Args:
        found: Sets of tasks, as bits.
        before: What each task waits for, as bits.
        index: Group of each set.
        loads: Time of each group under each plan. [plans, groups]
    """
    earlier = []
    for members in found:
        common = -1
        for task in _members(members):
            common &= before[task]
        earlier.append(common)
    time_s, group_s = np.zeros((len(found), len(loads))), np.ascontiguousarray(loads.T)
    sets = sorted(range(len(found)), key=lambda one: (earlier[one].bit_count(), found[one]))
    # Many sets have the same before them, all of which comes earlier in this order.
    known: dict[int, tuple[IntArray, FloatArray]] = {}
    ahead: list[IntArray] = [np.zeros(0, dtype=np.int64)] * len(found)
    for place in sets:
        common = earlier[place]
        if common not in known:
            others = np.asarray([other for other in sets if not found[other] & ~common], dtype=np.int64)
            known[common] = others, time_s[others].max(axis=0, initial=0.0)
        ahead[place], before_s = known[common]
        np.add(before_s, group_s[index[place]], out=time_s[place])
    return _Longest(tuple(ahead), time_s)


def _passed(index: Sequence[int], longest: _Longest, groups: int) -> FloatArray:
    """How often the longest chain of each plan passes through each group. [plans, groups]."""
    counts = np.zeros((longest.time_s.shape[1], groups))
    for plan in range(len(counts)):
        for place in longest.path(plan):
            counts[plan, index[place]] += 1
    return counts


def _shapes(found: Sequence[int], every: Unrolled) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Of each set: its first iteration, and slots and iterations of its tasks counted from there."""
    shapes = []
    for group in found:
        members = _members(group)
        begin = min(every.iteration[task] for task in members)
        shapes.append((begin, frozenset((every.slot[task], every.iteration[task] - begin) for task in members)))
    return shapes


def _circles(
    shapes: Sequence[tuple[int, frozenset[tuple[int, int]]]],
    index: Sequence[int],
    loads: FloatArray,
    longest: _Longest,
) -> tuple[FloatArray, FloatArray]:
    """The slowest circle on the longest chain of each plan: passes per iteration, [plans, groups], and its pace."""
    counts, pace_s = np.zeros_like(loads), np.zeros(len(loads))
    for plan, load in enumerate(loads):
        path = longest.path(plan)
        until = np.cumsum([load[index[place]] for place in path])
        best = (0, 0, 1)
        for end, place in enumerate(path):
            for begin in range(end):
                apart = shapes[place][0] - shapes[path[begin]][0]
                if apart < 1 or shapes[place][1] != shapes[path[begin]][1]:
                    continue
                pace = (until[end] - until[begin]) / apart
                if pace > pace_s[plan]:
                    pace_s[plan], best = pace, (begin, end, apart)
        begin, end, apart = best
        for place in path[begin + 1 : end + 1]:
            counts[plan, index[place]] += 1 / apart
    return counts, pace_s
