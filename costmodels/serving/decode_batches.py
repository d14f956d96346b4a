"""Sequences of a generation call in decode steps: until all have ended, and when each part of them has.

The shapes a call's decoding takes, with the symbols and the formulas of ``costmodels.serving.generation``: batches that
start together, slots that are refilled until nobody waits, and slots that are refilled without end.

When responses end, for those that read them as they come: so many of them have ended when the share S(t) of them that
is longer than t tokens is left. Slots that are refilled end them evenly: the j-th ends E[n] (j / C + 1) - r steps after
the start, with r the mean tokens of a running sequence (the asymptote of renewal theory, on which the refilling stops),
and no sooner than if all had started at once. A batch among others in slots refilled without end, T steps of it, is
done as ended(t) = integral over the T steps of starting of 1 - S(t - start), over T, and its last sequence when any of
N independent ones would be.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from costmodels.lengths import OutputLengths, any_of
from costmodels.model_calls import READY_PARTS
from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.serving.decode import DecodePrices

_FINER = 16  # points per interval of equal lengths, whose steps grow straight with the cache
_POINTS = 128  # of other lengths: the last sequences of many end close to the longest
_ROUNDING = 1e-9
_PARTS = np.arange(1, READY_PARTS + 1) / READY_PARTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """N batches of sequences decoded.

    Attributes:
        time_s: (N,) seconds during which slots are busy with them.
        steps: (N,) steps that takes.
        ended_s: (N, READY_PARTS) seconds until so many parts of the sequences have ended; the last of them may do so
            after ``time_s``, among the sequences of another call.
    """

    time_s: FloatArray
    steps: FloatArray
    ended_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBatch:
    """Sequences of N plans to be decoded.

    Attributes:
        prices: Seconds of a step; of one that makes several tokens of a sequence, per token.
        output: Tokens of a sequence.
        prompt_tokens: Tokens of a prompt.
        per_replica: (N,) sequences of a replica.
        at_once: (N,) sequences it runs at once.
        replicas: (N,) replicas.
    """

    prices: DecodePrices
    output: OutputLengths
    prompt_tokens: int
    per_replica: FloatArray
    at_once: FloatArray
    replicas: IntArray

    def continuous(self, in_step: BoolArray) -> Decoded:
        """Rows that are ``in_step`` run in waves, the others are refilled."""
        return _either(self, in_step, DecodeBatch.waves, DecodeBatch.refilled)

    def take(self, rows: IntArray) -> "DecodeBatch":
        """The batch of the selected plans."""
        return replace(
            self,
            prices=self.prices.take(rows),
            per_replica=self.per_replica[rows],
            at_once=self.at_once[rows],
            replicas=self.replicas[rows],
        )

    def static(self) -> Decoded:
        """Batches one after the other, each until its longest sequence ends; ended ones are computed on."""
        return self._batches(leaving=False)

    def waves(self) -> Decoded:
        """Batches that start together, whose ended sequences leave; the next starts when all have."""
        return self._batches(leaving=True)

    def _batches(self, *, leaving: bool) -> Decoded:
        steps = _points(self.output)
        share = self.output.longer_than(steps)
        keys = self.prompt_tokens + steps
        whole = np.floor(self.per_replica / self.at_once)
        rest = self.per_replica - whole * self.at_once
        seconds, count, ended_s = np.zeros(len(rest)), np.zeros(len(rest)), np.zeros((len(rest), READY_PARTS))
        before = np.zeros(len(rest))
        for times, size in ((whole, self.at_once), (np.minimum(rest, 1.0), np.maximum(rest, 1.0))):
            if not times.any():
                continue
            going = any_of(share[None, :], np.asarray(size * self.replicas, dtype=np.float64)[:, None])
            running = np.maximum(size[:, None] * share, 1.0) if leaving else np.broadcast_to(size[:, None], going.shape)
            step_s = going * self.prices.token_s(running, keys)
            batch_s = _sum(step_s, steps)
            # Which batch of these a part ends with, and how much of that batch has then ended.
            full, within = _batch_of(_PARTS * self.per_replica[:, None] - before[:, None], size[:, None])
            last = _until(share, steps, 1 - within) if leaving else np.full(within.shape, steps[-1])
            late_s = seconds[:, None] + full * batch_s[:, None] + _within(step_s, steps, last)
            ended_s = np.where((full >= 0) & (times > 0)[:, None], late_s, ended_s)
            seconds = seconds + times * batch_s
            count = count + times * _sum(going, steps)
            before = before + times * size
        ended_s[:, -1] = seconds
        return Decoded(time_s=seconds, steps=count, ended_s=ended_s)

    def refilled(self) -> Decoded:
        """Ended sequences are replaced until nobody waits; then sequences of all ages drain."""
        output, steps = self.output, _points(self.output)
        left = _left(output, steps)
        full_steps = np.maximum(self.per_replica * output.mean / self.at_once - output.mean_context, 0.0)
        full_s = full_steps * self._full_step_s()
        going = any_of(left[None, :], (self.at_once * self.replicas)[:, None])
        running = np.maximum(self.at_once[:, None] * left[None, :], 1.0)
        keys = self.prompt_tokens + np.minimum(steps + output.mean_context, output.most)
        step_s = going * self.prices.token_s(running, keys)
        drain_s = _sum(step_s, steps)
        number = _PARTS * self.per_replica[:, None]
        evenly = output.mean * (number / self.at_once[:, None] + 1) - output.mean_context
        soonest = _until(output.longer_than(steps), steps, 1 - _PARTS)
        early = np.clip(np.maximum(evenly, soonest), 0.0, full_steps[:, None]) * self._full_step_s()[:, None]
        waiting = (self.per_replica[:, None] - number) / self.at_once[:, None]
        draining_s = full_s[:, None] + _within(step_s, steps, _until(left, steps, np.minimum(waiting, 1.0)))
        ended_s = np.where(waiting >= 1, early, draining_s)
        ended_s[:, -1] = full_s + drain_s
        return Decoded(time_s=full_s + drain_s, steps=full_steps + _sum(going, steps), ended_s=ended_s)

    def carried(self, further: int) -> Decoded:
        """Slots are refilled without end; a call takes its share of the longest sequence, and ends with its last."""
        output, steps = self.output, _points(self.output)
        full_steps = self.per_replica * output.mean / self.at_once
        full_s = full_steps * self._full_step_s()
        count = np.asarray(self.per_replica * self.replicas, dtype=np.float64)
        longest = _sum(any_of(output.longer_than(steps)[None, :], count[:, None]), steps)
        waiting = np.maximum(longest / (1 + further) - full_steps, 0.0)
        last = np.asarray([self.prompt_tokens + output.most])
        waiting_s = waiting * self.prices.token_s(np.ones((len(count), 1)), last)[:, 0]
        time_s = full_s + waiting_s
        return Decoded(time_s=time_s, steps=full_steps + waiting, ended_s=time_s[:, None] * _PARTS)

    def in_flight(self) -> Decoded:
        """Slots are refilled without end, with sequences of the next call while the last of this one go on."""
        output, steps = self.output, _points(self.output)
        full_steps, step_s = self.per_replica * output.mean / self.at_once, self._full_step_s()
        grid = (full_steps + output.most)[:, None] * np.linspace(0.0, 1.0, _POINTS + 1)
        running = np.concatenate([[0.0], np.cumsum(_areas(output.longer_than(steps), steps))])

        def ended_area(until: FloatArray) -> FloatArray:
            return np.asarray(until - np.interp(until, steps, running))

        ended = (ended_area(grid) - ended_area(np.maximum(grid - full_steps[:, None], 0.0))) / full_steps[:, None]
        place = np.clip((ended[:, None, :] < _PARTS[None, :, None]).sum(axis=2), 1, _POINTS)
        at = np.take_along_axis(grid, place, axis=1)  # rounded up to the grid
        going = any_of(1 - ended, (self.per_replica * self.replicas)[:, None])
        last = (np.diff(grid, axis=1) * (going[:, 1:] + going[:, :-1]) / 2).sum(axis=1)
        last = np.maximum(last, full_steps)  # what starts last ends after all have started; the grid is coarse
        ended_steps = np.minimum(at, last[:, None])
        ended_steps[:, -1] = last
        return Decoded(time_s=full_steps * step_s, steps=full_steps, ended_s=ended_steps * step_s[:, None])

    def _full_step_s(self) -> FloatArray:
        """(N,) seconds of a step of all slots, with sequences of all ages."""
        middle = np.asarray([self.prompt_tokens + self.output.mean_context])
        return self.prices.token_s(self.at_once[:, None], middle)[:, 0]


def _either(
    batch: DecodeBatch,
    first: BoolArray,
    one: Callable[[DecodeBatch], Decoded],
    other: Callable[[DecodeBatch], Decoded],
) -> Decoded:
    """Rows that are ``first`` decoded one way, the rest the other."""
    count = len(first)
    found = Decoded(time_s=np.zeros(count), steps=np.zeros(count), ended_s=np.zeros((count, READY_PARTS)))
    for rows, run in ((np.flatnonzero(first), one), (np.flatnonzero(~first), other)):
        if len(rows):
            part = run(batch.take(rows))
            found.time_s[rows], found.steps[rows], found.ended_s[rows] = part.time_s, part.steps, part.ended_s
    return found


def _batch_of(number: FloatArray, size: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(N, K) full batches before the sequence of each number, and its share of the batch it is in; -1 before 1."""
    full = np.ceil(number / size - _ROUNDING) - 1
    return full, np.clip(number / size - full, 0.0, 1.0)


def _left(output: OutputLengths, steps: FloatArray) -> FloatArray:
    """(T,) share of sequences of all ages that go on for longer than so many steps."""
    fresh = _areas(output.longer_than(steps), steps)
    return np.asarray(np.concatenate([np.cumsum(fresh[::-1])[::-1], [0.0]]) / output.mean)


def _until(share: FloatArray, steps: FloatArray, left: FloatArray) -> FloatArray:
    """Steps after which so much of a falling share is left."""
    return np.asarray(np.interp(left, share[::-1], steps[::-1]))


def _within(values: FloatArray, steps: FloatArray, until: FloatArray) -> FloatArray:
    """(N, K) integrals of (N, T) values up to (N, K) steps."""
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(_areas(values, steps), axis=1)], axis=1)
    place = np.clip(np.searchsorted(steps, until, side="right") - 1, 0, len(steps) - 2)
    share = (until - steps[place]) / (steps[place + 1] - steps[place])
    low, high = (np.take_along_axis(sums, place + offset, axis=1) for offset in (0, 1))
    return np.asarray(low + share * (high - low))


def _points(output: OutputLengths) -> FloatArray:
    """Steps at which the integral is evaluated."""
    return output.steps(_FINER if output.is_fixed else max(-(-_POINTS // len(output.tokens)), 1))


def _areas(values: FloatArray, steps: FloatArray) -> FloatArray:
    """Integral over each interval."""
    return np.asarray(np.diff(steps) * (values[..., 1:] + values[..., :-1]) / 2)


def _sum(values: FloatArray, steps: FloatArray) -> FloatArray:
    """(N,) integrals of (N, T) values."""
    return np.asarray(_areas(values, steps).sum(axis=1))
