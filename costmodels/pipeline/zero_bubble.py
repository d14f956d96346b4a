"""Schedules in fixed orders played out for many pipelines at once, no longer than need be.

Every stage works through its order (``costmodels.pipeline.orders``) and waits for what it needs. All pipelines of as
many stages and micro-batches do so together: one event is worked out for all of them, and events that wait for
nothing of each other at once. In the middle of a step stages repeat one turn per micro-batch, and a longest chain
of work that has turns to spare spends them all on one stage; so a step of many micro-batches is one of 2p, and on the
stage where that makes the longest chain, the turns that are left. Tests compare that with all turns played out.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from costmodels.pipeline.orders import BACKWARD, FORWARD, RUNS_ON, STEPS_APART, WEIGHT, Work, needs, orders
from costmodels.plan import FloatArray, IntArray, Schedule

_KINDS = (FORWARD, BACKWARD, WEIGHT)
_BLOCK = 512  # pipelines played out together: as many as stay in the processor's cache


def zero_bubble_s(
    schedule: Schedule,
    seconds: tuple[FloatArray, FloatArray, FloatArray],
    *,
    count: IntArray,
    num_microbatches: IntArray,
) -> FloatArray:
    """(N,) seconds of steps of a zero-bubble schedule, all chunks of a stage taking the same time.

    From the first forward to the last piece of work; of schedules that run on (``RUNS_ON``), on the stage where that
    takes longest.

    Args:
        schedule: Which.
        seconds: (N, S) one micro-batch forwards, backwards to the inputs, and for the weight gradients.
        count: (N, S) consecutive stages each column stands for; 0 for unused ones, which come last.
        num_microbatches: (N,) micro-batches m.
    """
    stages, whole_s = count.sum(axis=1), np.zeros(len(count))
    played = np.minimum(num_microbatches, 2 * stages)
    sizes, kind = np.unique(np.stack([stages, played]), axis=1, return_inverse=True)
    for at, (p, m) in enumerate(sizes.T.tolist()):
        of_kind = np.flatnonzero(kind.reshape(-1) == at)
        events = short_events(schedule, p, m)
        for start in range(0, len(of_kind), _BLOCK):
            rows = of_kind[start : start + _BLOCK]
            column = np.repeat(np.tile(np.arange(count.shape[1]), len(rows)), count[rows].ravel()).reshape(-1, p)
            passes = np.stack([np.take_along_axis(each[rows], column, axis=1).T for each in seconds])
            ends_s = _ends_s(events, passes, num_microbatches[rows] - m)
            if schedule in RUNS_ON:  # from its own first forward on, which comes when it has gone down to there
                ends_s -= np.cumsum(passes[0], axis=0) - passes[0]
            whole_s[rows] = ends_s.max(axis=0)
    return whole_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Events that wait for none of each other: numbers ``first`` to ``first + n`` of all.

    Attributes:
        first: Number of the first of them.
        before: (n,) what the stage did before; the number of all events for nothing.
        needed: (n,) what had to be there; likewise.
        works: (n,) which pass it is: kind times stages, and the stage.
        middle: Which of them lie in the turns that stages repeat.
        stages: Of these, the stages.
    """

    first: int
    before: IntArray
    needed: IntArray
    works: IntArray
    middle: IntArray
    stages: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """A step of one schedule.

    Attributes:
        count: How many.
        chunks: Per stage.
        levels: All, in an order in which they can happen.
        last: (p,) the last of every stage.
    """

    count: int
    chunks: int
    levels: tuple[Level, ...]
    last: IntArray


@lru_cache(maxsize=128)
def short_events(schedule: Schedule, stages: int, num_microbatches: int) -> Events:
    """What happens in a step of up to 2p micro-batches."""
    chunks = schedule.chunks(1)
    of_stage = orders(schedule, stages=stages, virtual_stages=chunks, num_microbatches=num_microbatches)
    depth: dict[tuple[int, Work], int] = {}
    position = [0] * stages
    while any(position[stage] < len(order) for stage, order in enumerate(of_stage)):
        for stage, order in enumerate(of_stage):
            while position[stage] < len(order):
                work = order[position[stage]]
                needed = needs(work, stage, stages, chunks, v_shaped=chunks == 2)
                if needed is not None and needed not in depth:
                    break
                before = depth[stage, order[position[stage] - 1]] if position[stage] else -1
                depth[stage, work] = 1 + max(before, -1 if needed is None else depth[needed])
                position[stage] += 1
    events = sorted(depth, key=depth.__getitem__)
    number = {event: at for at, event in enumerate(events)}
    previous = {
        (stage, after): number[stage, before]
        for stage, order in enumerate(of_stage)
        for before, after in itertools.pairwise(order)
    }
    return Events(
        count=len(events),
        chunks=chunks,
        levels=_levels(schedule, events, [depth[event] for event in events], number, previous, stages),
        last=np.asarray([number[stage, order[-1]] for stage, order in enumerate(of_stage)]),
    )


def _levels(
    schedule: Schedule,
    events: list[tuple[int, Work]],
    depth: list[int],
    number: dict[tuple[int, Work], int],
    previous: dict[tuple[int, Work], int],
    stages: int,
) -> tuple[Level, ...]:
    nothing, chunks = len(events), schedule.chunks(1)
    ends = np.searchsorted(depth, np.arange(max(depth) + 2))
    levels = []
    for low, high in itertools.pairwise(ends.tolist()):
        some = events[low:high]
        needed = [needs(work, stage, stages, chunks, v_shaped=chunks == 2) for stage, work in some]
        middle = [at for at, (stage, work) in enumerate(some) if _in_the_middle(schedule, stage, work, stages)]
        levels.append(
            Level(
                first=low,
                before=np.asarray([previous.get(event, nothing) for event in some]),
                needed=np.asarray([nothing if each is None else number[each] for each in needed]),
                works=np.asarray([_KINDS.index(work[0]) * stages + stage for stage, work in some]),
                middle=np.asarray(middle, dtype=np.int64),
                stages=np.asarray([some[at][0] for at in middle], dtype=np.int64),
            )
        )
    return tuple(levels)


def _in_the_middle(schedule: Schedule, stage: int, work: Work, stages: int) -> bool:
    """Whether it belongs to the turn in which all stages have all passes to do, 2p micro-batches played out."""
    kind, chunk, microbatch = work
    if schedule == Schedule.ZERO_BUBBLE_V:
        ahead = {(FORWARD, 0): 2 * stages - 1 - stage, (FORWARD, 1): stages, (BACKWARD, 0): 0}
        return kind != WEIGHT and microbatch == ahead.get((kind, chunk), stages - stage)
    apart = STEPS_APART[schedule]
    return kind != WEIGHT and microbatch == apart * (stages - 1 if kind == FORWARD else stage)


def _ends_s(events: Events, passes: FloatArray, turns: IntArray) -> FloatArray:
    """(p, K) seconds until stages have done all there is, with so many (K,) turns more than are played out.

    Args:
        events: What happens.
        passes: (3, p, K) seconds of the passes of a stage.
        turns: Turns that are left.
    """
    kinds, stages, rows = passes.shape
    each_s = (passes / events.chunks).reshape(kinds * stages, 1, rows)
    more_s = passes.sum(axis=0) * turns
    # When events end: of chains that still have the turns to spare before them, and of those that have spent them.
    done_s = np.zeros((events.count + 1, 2, rows))
    done_s[-1, 1] = -np.inf
    for level in events.levels:
        at = slice(level.first, level.first + len(level.works))
        done_s[at] = np.maximum(done_s[level.before], done_s[level.needed]) + each_s[level.works]
        if len(level.middle):
            here = level.first + level.middle
            done_s[here, 1] = np.maximum(done_s[here, 1], done_s[here, 0] + more_s[level.stages])
    longest_s: FloatArray = done_s[events.last].max(axis=1)
    return longest_s
