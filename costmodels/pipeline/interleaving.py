"""How long interleaved 1F1B takes between stages of any times: exactly as long as the schedule played out.

Symbols: p stages, i stage index from 0, v chunks per stage, m micro-batches, f_i and b_i the forward and backward
pass of one chunk. Rounds are of g micro-batches: m // max(m // p, 1), which is p where p divides m. Stage i does
w_i = 2(p - 1 - i) + (v - 1)g forwards, then turns of one forward and one backward, then w_i backwards
(arXiv:2104.04473 section 2.2.2; Megatron-LM; torch.distributed.pipelining ScheduleInterleaved1F1B).

The step is the longest chain of work in which each waits for the last. Number forwards and backwards of a stage in
the order it does them. A chain goes on on its stage, down to the next stage (the forward of the same number), up to
the one before (the backward of the same number), or around: from the last stage to the first by the forward of the
next chunk, g numbers on, or from the first to the last by a backward likewise. As with 1F1B, a chain that comes back
to a stage never beats as many turns on the slowest stage it met, so that the longest one spends all turns it can on
one stage h, and what is left are the ways there and, with forwards and backwards exchanged, the ways from there:

* straight: down to a stage i behind h, all forwards there is room for at the slowest stage met, and up to h. Where
  that leaves g numbers or more, it may go around once on its way, and so meet the slowest of all stages;
* around by the backwards: up to the first stage as soon as can be, and from the last stage up to h;
* around by the forwards: at the first chunk of the second round, which is the first forward that may go around once
  stages take turns, and from the first stage down to h.

With fewer micro-batches than stages (g < p) going around may be worth it up to v - 1 times. That no other way is
ever longer is not proved; tests compare with the schedule played out. Within a run of equal stages all of this is
convex but for stages p - 1 - g // 2 and the one behind it, where warming up ends in the first round or in the second.
"""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import largest
from costmodels.plan import FloatArray, IntArray

_BLOCK = 1024  # pipelines worked on together: as many as stay in the processor's cache


def round_size(stages: IntArray, num_microbatches: IntArray) -> IntArray:
    """Micro-batches that interleaving takes through all chunks together: p, or more where p does not divide m."""
    size: IntArray = num_microbatches // np.maximum(num_microbatches // np.maximum(stages, 1), 1)
    return size


def interleaved_s(
    forward_s: FloatArray,
    backward_s: FloatArray,
    *,
    count: IntArray,
    virtual_stages: IntArray,
    num_microbatches: IntArray,
) -> FloatArray:
    """Seconds of interleaved 1F1B, all chunks of a stage taking the same time.

    Args:
        forward_s: (N, S) one micro-batch forwards through all chunks of a stage; 0 in unused columns.
        backward_s: (N, S) backwards.
        count: (N, S) consecutive stages each column stands for; 0 for unused ones, which come last.
        virtual_stages: (N,) chunks per stage, above 1.
        num_microbatches: (N,) micro-batches.
    """
    stages = count.sum(axis=1)
    whole_s = np.zeros(len(count))
    rounds = num_microbatches // round_size(stages, num_microbatches)
    kind = np.where(num_microbatches < stages, 0, np.minimum(rounds, 3))
    for each in np.unique(kind).tolist():
        of_kind = np.flatnonzero(kind == each)
        for start in range(0, len(of_kind), _BLOCK):
            rows = of_kind[start : start + _BLOCK]
            points = _points(
                forward_s[rows], backward_s[rows], count[rows], virtual_stages[rows], num_microbatches[rows]
            )
            laps = int(points.chunks.max()) - 1 if each == 0 else 1
            whole_s[rows] = _longest_chain_s(points, rounds=max(each, 1), laps=laps)
    return whole_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    """The stages that suffice, of K pipelines; columns (P, K), in the order of the pipeline.

    Attributes:
        forward_s: One chunk forwards.
        backward_s: One chunk backwards.
        ahead_s: One chunk forwards on all stages up to there.
        behind_s: One chunk backwards on these.
        warm: Forwards before the first turn, w.
        turns: Turns of one forward and one backward after the first.
        size: (K,) micro-batches of a round, g.
        chunks: (K,) chunks per stage, v.
    """

    forward_s: FloatArray
    backward_s: FloatArray
    ahead_s: FloatArray
    behind_s: FloatArray
    warm: IntArray
    turns: IntArray
    size: IntArray
    chunks: IntArray

    def reversed(self) -> "_Points":
        """The same with time running backwards."""
        return replace(
            self,
            forward_s=self.backward_s,
            backward_s=self.forward_s,
            ahead_s=self.behind_s,
            behind_s=self.ahead_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """Longest ways to the first turn of every stage, (P, K) seconds; if they reach a later one, less the turns before.

    Attributes:
        own_s: Without stages behind it.
        straight_s: With these.
        backwards_s: Around by the backwards.
        forwards_s: Around by the forwards.
    """

    own_s: FloatArray
    straight_s: FloatArray
    backwards_s: FloatArray
    forwards_s: FloatArray

    @property
    def longest_s(self) -> FloatArray:
        """(P, K) by any of them."""
        return np.maximum(self.straight_s, self.around_s)

    @property
    def around_s(self) -> FloatArray:
        """(P, K) around."""
        return np.maximum(self.backwards_s, self.forwards_s)


def _points(
    forward_s: FloatArray, backward_s: FloatArray, count: IntArray, chunks: IntArray, num_microbatches: IntArray
) -> _Points:
    """Both ends of every run of equal stages, and where warming up ends with the first round.

    Unused columns are stages without work at the end of the pipeline.
    """
    steps = np.ascontiguousarray(count.T)
    stages = steps.sum(axis=0)
    size = round_size(stages, num_microbatches)
    forward, backward = (np.ascontiguousarray((each / chunks[:, None]).T) for each in (forward_s, backward_s))
    before = np.cumsum(steps, axis=0) - steps
    way_s = [np.cumsum(each * steps, axis=0) - each * steps for each in (forward, backward)]
    column: list[int] = []
    place: list[IntArray] = []
    for at, most in enumerate(steps.max(axis=1, initial=0).tolist()):
        last = np.maximum(steps[at] - 1, 0)
        middle = stages - 1 - size // 2 - before[at]
        places = [last * 0] if most <= 1 else [last * 0, np.clip(middle, 0, last), np.clip(middle + 1, 0, last), last]
        column += [at] * len(places)
        place += places
    offset = np.stack(place)
    forward, backward = forward[column], backward[column]
    inside = np.minimum(offset + 1, steps[column])
    stage = np.minimum(before[column] + offset, stages - 1)
    works = num_microbatches * chunks
    warm = np.minimum(2 * (stages - 1 - stage) + (chunks - 1) * size, works - 1)
    return _Points(
        forward_s=forward,
        backward_s=backward,
        ahead_s=way_s[0][column] + inside * forward,
        behind_s=way_s[1][column] + inside * backward,
        warm=warm,
        turns=works - 1 - warm,
        size=size,
        chunks=chunks,
    )


def _reach(points: _Points, *, rounds: int, laps: int) -> _Reach:
    """The ways there are with so many rounds, around so often before the first turn."""
    forward_s, ahead_s, behind_s, warm = points.forward_s, points.ahead_s, points.behind_s, points.warm
    size, chunks, turn_s = points.size, points.chunks, points.forward_s + points.backward_s
    slowest_s = np.maximum.accumulate(forward_s, axis=0)
    own_s = ahead_s + warm * slowest_s
    for lap in range(1, laps + 1):
        spare = warm - lap * size
        before = np.minimum(spare, (chunks - lap) * size - 1)
        around_s = lap * ahead_s[-1] + ahead_s + before * slowest_s[-1] + (spare - before) * slowest_s
        own_s = np.maximum(own_s, np.where((spare >= 0) & (lap < chunks), around_s, 0.0))
    straight_s = np.maximum.accumulate((own_s + behind_s)[::-1], axis=0)[::-1] - behind_s
    if rounds < 2:
        never_s = np.full(own_s.shape, -np.inf)
        return _Reach(own_s=own_s, straight_s=straight_s, backwards_s=never_s, forwards_s=never_s)
    backwards_s = (straight_s + behind_s)[0] + behind_s[-1] - behind_s - size * turn_s
    before = chunks * size - warm  # turns before the second round
    last_s = np.where(before >= 0, straight_s + before * turn_s - ahead_s, 0.0).max(axis=0) + ahead_s[-1]
    forwards_s = last_s + ahead_s - (before + size) * turn_s
    return _Reach(own_s=own_s, straight_s=straight_s, backwards_s=backwards_s, forwards_s=forwards_s)


def _longest_chain_s(points: _Points, *, rounds: int, laps: int) -> FloatArray:
    """(K,) seconds of pipelines of one round, two, or three and more."""
    there, back = (_reach(each, rounds=rounds, laps=laps) for each in (points, points.reversed()))
    turns, size, chunks = points.turns, points.size, points.chunks
    if rounds < 2:  # where there is one turn, a chain cannot come by its backward and leave by its forward
        one = np.maximum(there.own_s + back.straight_s, there.straight_s + back.own_s)
        ways_s = np.where(turns > 0, there.straight_s + back.straight_s, one)
    elif rounds > 2:
        ways_s = there.longest_s + back.longest_s
    else:  # going around twice takes the turns for it
        ways_s = np.maximum(there.longest_s + back.straight_s, there.straight_s + back.longest_s)
        second = (chunks + 1) * size - points.warm
        for both_s, fits in (
            (there.backwards_s + back.backwards_s, 2 * size < turns),
            (there.backwards_s + back.forwards_s, chunks > 2),
            (there.forwards_s + back.backwards_s, chunks > 2),
            (there.forwards_s + back.forwards_s, 2 * second <= turns),
        ):
            ways_s = np.maximum(ways_s, np.where(fits, both_s, 0.0))
    return largest((ways_s + turns * (points.forward_s + points.backward_s)).T)
