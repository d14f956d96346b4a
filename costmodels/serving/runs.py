"""A run of so many requests in all, C of them at once: what load generators measure, its start and its end included.

A of the C have a place in the replica; the others wait for one. The first prompts come together and are read one after
another, b = B / p of them in a step; with S of ``costmodels.serving.steady`` at r requests that generate already

    burst       t(x) = integral of S(r) up to x prompts, r: read by the steps before; first tokens come when steps end

An engine that reads first decodes nothing meanwhile: S = w and the time between its steps. Requests of equal lengths
then end together, and their successors are a burst again. Where steps mix, they end one after another as they were
read, and so come back: a successor meets the b of its step and nobody else. Output lengths that vary spread successors,
which find the steady state (``at_concurrency``).

Decoding is that of a generation call with all requests there from the start (``costmodels.serving.decode_batches``):
the replica does the same work, whoever waits for it outside. When the i-th of the N requests ends, e(i), the (i + A)-th
takes its place and the (i + C)-th is sent, so that

    first token = (A t + (N - A) f + sum of e(i), N - C < i <= N - A) / N     t, f: in the burst, of a successor
    latency     = (sum of e(i), N - C < i <= N) / N

What a token takes is the mean over requests of what each takes, as load generators print it. Where lengths vary that is
more than all time over all tokens: a share A / N of the requests generate while the burst is read, and those of few
tokens do little else.

Source:
    vllm-project/vllm, benchmarks/benchmark_serving.py (``--max-concurrency``: a semaphore around requests that are all
    sent at once, each timed from its turn on; ``tpots``, one a request). The sums follow from sending times alone.

Left out on purpose: requests put off for want of room, whose tokens are computed anew; what a load generator takes
between an answer and the next request.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from costmodels.model_calls import READY_PARTS
from costmodels.plan import FloatArray
from costmodels.serving.decode_batches import DecodeBatch, Decoded
from costmodels.serving.steady import ServingPoints, ServingPrices, at_concurrency

_POINTS = 128  # of a burst
_BESIDE = 24  # most others that are taken to end in one step
_STARTS, _FINER = 16, 4  # first tokens in a burst, and lengths between two knots, that means per request are taken over
_ROUNDING = 1e-9

Ended = Callable[[FloatArray], FloatArray]  # sum of the seconds after which the first so many requests have ended


def run_points(prices: ServingPrices, requests: FloatArray, at_once: FloatArray, places: FloatArray) -> ServingPoints:
    """Means over the requests of a run, (N, 1); rates are those of the whole run, its start and its end included.

    Args:
        prices: N layouts.
        requests: (N,) of a replica in all, at least 1.
        at_once: (N,) that are sent and have not ended, until all are sent.
        places: (N,) requests that fit at once.
    """
    sent = np.minimum(at_once, requests)
    slots = np.minimum(sent, places)
    steady = at_concurrency(prices, np.asarray(slots * prices.plans.attention_groups, dtype=np.float64)[:, None])
    burst = _burst(prices, slots)
    if prices.output.is_fixed:
        later_s, ended, time_s = _in_waves(prices, requests, slots, burst)
    else:
        later_s = (requests - slots) * steady.first_token_s[:, 0]
        ended, time_s = _refilled(prices, requests, slots, burst)
    waited_s = ended(requests - slots) - ended(requests - sent)
    # No token takes less than a step of its request alone. Of a loop that is all reading the steady state's queue tells
    # too long a wait, as of one that arrivals do not stop; and no more requests than are sent are there.
    tokens = prices.output.mean - 1
    least_s = tokens * prices.decode.token_s(np.ones((len(slots), 1)), np.asarray([prices.keys]))[:, 0]
    latency_s = (ended(requests) - ended(requests - sent)) / requests
    ttft_s = (slots * burst.first_s + later_s + waited_s) / requests
    if not prices.output.is_fixed:
        ttft_s = np.minimum(ttft_s, latency_s - least_s)
    ttft_s = np.maximum(ttft_s, prices.alone_s)
    latency_s = np.maximum(latency_s, ttft_s + least_s)
    rate = np.minimum(requests / time_s, sent / latency_s)
    columns = {
        "generating": rate * (latency_s - ttft_s),
        "rate_per_s": rate,
        "first_token_s": ttft_s,
        "token_s": _per_request_s(prices, (latency_s - ttft_s) / tokens, slots, slots / requests, burst.read_s),
        "latency_s": latency_s,
        "at_once": rate * latency_s,
    }
    return replace(steady, **{name: values[:, None] for name, values in columns.items()})


def run_first_token_within(
    prices: ServingPrices, requests: FloatArray, at_once: FloatArray, places: FloatArray, shares: FloatArray
) -> FloatArray:
    """(N, K) seconds in which so large shares (K,) of the requests of a run have their first token.

    Those of the burst wait for as many steps as there are before theirs. Successors of requests of equal lengths are
    bursts again or all alike, as in ``run_points``. Others are sent when a step ends, with the successors of all that
    end with it: besides their own prompt they wait for those of a Poisson number of others, as many as end in a step.
    Infinite where requests wait for a place, which depends on who ends when.

    Args:
        prices: N layouts.
        requests: As of ``run_points``, as are ``at_once`` and ``places``.
        at_once: (N,) that are sent and have not ended.
        places: (N,) requests that fit at once.
        shares: Between 0 and 1.
    """
    slots = np.minimum(at_once, requests)
    burst = _burst(prices, slots)
    if prices.output.is_fixed:
        later_s = _successor_s(prices, slots, burst.first_s)[:, None]
        beside = np.ones_like(later_s)
    else:
        count = np.arange(_BESIDE)
        steady = at_concurrency(prices, slots[:, None] * prices.plans.attention_groups[:, None])
        mean = steady.rate_per_s * steady.met_s
        beside = np.exp(-mean) * np.cumprod(np.where(count == 0, 1.0, mean / np.maximum(count, 1)), axis=1)
        later_s = steady.own_s + count * steady.held_up_s
    again = prices.output.is_fixed and prices.decode.engine.reads_first
    first = np.ones_like(slots) if again else slots / requests
    told = np.full((len(slots), len(shares)), np.inf)
    for row in np.flatnonzero(slots <= places):
        times_s = np.concatenate([burst.each_s[row], later_s[row]])
        weights = np.concatenate([np.full(_POINTS, first[row] / _POINTS), (1 - first[row]) * beside[row]])
        order = np.argsort(times_s)
        passed = np.cumsum(weights[order])
        told[row] = times_s[order][np.minimum(np.searchsorted(passed, shares * passed[-1]), len(order) - 1)]
    return told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Burst:
    """Prompts that come together to N idle replicas; (N,) seconds.

    Attributes:
        each_s: (N, points) to the first token, of prompts evenly spread over the burst.
        read_s: To the last's.
        beside_s: Of ``read_s``, in which others generate.
        waited_beside_s: Of ``first_s``, likewise.
    """

    each_s: FloatArray
    read_s: FloatArray
    beside_s: FloatArray
    waited_beside_s: FloatArray

    @property
    def first_s(self) -> FloatArray:
        """(N,) to the first token, on average."""
        return np.asarray(self.each_s.mean(axis=1))


def _burst(prices: ServingPrices, prompts: FloatArray) -> _Burst:
    """So many prompts (N,), read in the order they came."""
    engine, share = prices.decode.engine, prices.read_tokens / prices.step_tokens
    place = np.linspace(0.0, 1.0, _POINTS + 1) * prompts[:, None]
    middle = (place[:, 1:] + place[:, :-1]) / 2
    running = np.floor(np.floor(middle * share) / share + _ROUNDING)  # read by the steps before
    step_s = prices.decode.step_s(np.maximum(running, 1.0), np.asarray([prices.keys]))
    beside_s = np.full(running.shape, engine.step_overhead_s) if engine.reads_first else np.minimum(running, 1) * step_s
    passed = np.diff(place, axis=1) * share * beside_s
    sums = np.concatenate([np.zeros((len(place), 1)), np.cumsum(passed, axis=1)], axis=1)
    own = np.floor((np.arange(_POINTS) + 0.5) / _POINTS * prompts[:, None]) + 1
    ends = np.minimum(np.ceil(own * share - _ROUNDING) / share, prompts[:, None])  # its step
    at = ends / prompts[:, None] * _POINTS
    low = np.minimum(at.astype(np.int64), _POINTS - 1)
    below, above = (np.take_along_axis(sums, low + more, axis=1) for more in (0, 1))
    waited_s = below + (at - low) * (above - below)
    alone_s = prices.alone_s - prices.added_s
    return _Burst(
        each_s=alone_s[:, None] + prices.added_s[:, None] * ends + waited_s,
        read_s=alone_s + prices.added_s * prompts + sums[:, -1],
        beside_s=sums[:, -1],
        waited_beside_s=waited_s.mean(axis=1),
    )


def _per_request_s(
    prices: ServingPrices, token_s: FloatArray, slots: FloatArray, share: FloatArray, read_s: FloatArray
) -> FloatArray:
    """(N,) mean over requests of the seconds each takes per token after its first.

    Args:
        prices: N layouts.
        token_s: (N,) all such seconds over all such tokens.
        slots: (N,) prompts of the burst.
        share: (N,) of the requests that are of it.
        read_s: (N,) to its last first token; a prompt's own comes anywhere in it.
    """
    output = prices.output
    if output.is_fixed:
        return token_s
    knots = output.steps(_FINER)
    longer = output.longer_than(knots)
    mass = np.append(longer[:-1] - longer[1:], longer[-1])
    later = np.maximum(np.append((knots[:-1] + knots[1:]) / 2, knots[-1]) - 1, 1.0)
    whole = float(mass @ later)
    left = (np.arange(_STARTS) + 0.5) / _STARTS  # of the burst, when a request has its first token
    fastest_s = prices.decode.token_s(np.ones((len(slots), 1)), np.asarray([prices.keys]))[:, 0]
    if prices.decode.engine.reads_first:
        held_s = share * read_s / 2
        after_s = np.maximum(token_s - held_s / whole, fastest_s)
        return np.asarray(after_s + held_s * float(mass @ (1 / later)))
    reads = np.maximum(np.ceil(slots * prices.read_tokens / prices.step_tokens - _ROUNDING), 1.0)
    steps = reads * prices.decode.tokens_per_step  # in tokens of a request
    beside = np.minimum(steps[:, None, None] * left[:, None], later).mean(axis=1)  # tokens while it is read: (N, L)
    during, step_s = share * (beside @ mass), read_s / steps
    after_s = np.maximum((token_s * whole - during * step_s) / np.maximum(whole - during, _ROUNDING), fastest_s)
    spent = (beside / later) @ mass  # share of its tokens that one of the burst has meanwhile
    return np.asarray(after_s + share * spent * np.maximum(step_s - after_s, 0.0))


def _decoded(prices: ServingPrices, requests: FloatArray, slots: FloatArray) -> Decoded:
    """Tokens after the first of each request, in slots that are refilled."""
    batch = DecodeBatch(
        prices=prices.decode,
        output=prices.output,
        prompt_tokens=round(prices.keys - prices.output.mean_context),
        per_replica=requests,
        at_once=slots,
        replicas=np.ones(len(requests), dtype=np.int64),
    )
    decoded = batch.continuous((slots == requests) | np.asarray(prices.output.is_fixed))
    later = 1 - 1 / prices.output.mean
    return replace(decoded, time_s=later * decoded.time_s, ended_s=later * decoded.ended_s)


def _in_waves(
    prices: ServingPrices, requests: FloatArray, slots: FloatArray, burst: _Burst
) -> tuple[FloatArray, Ended, FloatArray]:
    """Requests of equal lengths: (N,) sum of the first tokens of successors, when they end, and (N,) when all have."""
    waves = np.floor(requests / slots + _ROUNDING)
    rest = np.maximum(requests - waves * slots, 0.0)
    wave_s, all_s = (_decoded(prices, count, slots).time_s for count in (slots, requests))
    if prices.decode.engine.reads_first:
        last = _burst(prices, np.maximum(rest, 1.0))
        later_s = (waves - 1) * slots * burst.first_s + rest * last.first_s
        each_s = burst.read_s + wave_s
        time_s = waves * burst.read_s + np.where(rest > 0, last.read_s, 0.0) + all_s
        middle_s = end_s = late_s = np.zeros_like(each_s)
    else:
        later_s = (requests - slots) * _successor_s(prices, slots, burst.first_s)
        each_s = slots * prices.added_s + wave_s
        time_s = requests * prices.added_s + all_s
        # Steps that read the burst go before; as many at the end have fewer and fewer requests, as those had.
        alone_s, whole_s = prices.alone_s - prices.added_s, _whole_s(prices, slots)
        down_s = np.maximum(burst.beside_s - whole_s, -wave_s)
        middle_s = alone_s + burst.beside_s - whole_s / 2 + slots * prices.added_s / 2
        late_s = alone_s + burst.beside_s + down_s
        end_s = late_s - burst.waited_beside_s

    def ended(count: FloatArray) -> FloatArray:
        before_last = np.where(rest > 0, waves, waves - 1)
        full = np.floor(count / slots + _ROUNDING)
        over = full >= before_last  # the wave that is the last is among them
        middle = np.minimum(full, before_last)
        sums = slots * each_s * middle * (middle + 1) / 2 + slots * middle * middle_s
        part = count - middle * slots
        return np.asarray(sums + part * np.where(over, time_s + end_s, (middle + 1) * each_s + middle_s))

    return later_s, ended, time_s + late_s


def _whole_s(prices: ServingPrices, slots: FloatArray) -> FloatArray:
    """(N,) seconds of as many steps of all slots as read a burst."""
    step_s = prices.decode.step_s(slots[:, None], np.asarray([prices.keys]))[:, 0]
    return np.asarray(slots * prices.read_tokens / prices.step_tokens * step_s)


def _successor_s(prices: ServingPrices, slots: FloatArray, alone_s: FloatArray) -> FloatArray:
    """(N,) seconds to the first token of requests that come back in the groups in which they were read.

    Where outputs are shorter than a burst, they come back to prompts that are still waiting.
    """
    share = prices.read_tokens / prices.step_tokens
    steps = np.ceil(slots * share - _ROUNDING)
    group = np.maximum(slots / steps, 1.0)
    others = slots - group
    step_s = prices.decode.step_s(np.maximum(others, 1.0)[:, None], np.asarray([prices.keys]))[:, 0]
    read_s = np.minimum(others, 1.0) * step_s * np.ceil(share) + group * prices.added_s
    waits = np.maximum(steps - (prices.output.mean - 1) / prices.decode.tokens_per_step, 1.0)
    return np.where(others > 0, np.maximum(waits * read_s, prices.alone_s), alone_s)


def _refilled(
    prices: ServingPrices, requests: FloatArray, slots: FloatArray, burst: _Burst
) -> tuple[Ended, FloatArray]:
    """Requests whose lengths vary: when they end, and (N,) when all have. Half of what a burst delays is lost."""
    decoded, added_s = _decoded(prices, requests, slots), prices.added_s
    alone_s = prices.alone_s - added_s
    apart = prices.decode.engine.reads_first
    late_s = alone_s + (0.0 if apart else burst.beside_s / 2)
    first_s = np.maximum(2 * decoded.ended_s[:, :1] - decoded.ended_s[:, 1:2], 0.0)
    parts = np.arange(READY_PARTS + 1) / READY_PARTS * requests[:, None]
    reading_s = np.minimum(slots[:, None] + parts, requests[:, None]) * added_s[:, None]
    ends_s = np.concatenate([first_s, decoded.ended_s], axis=1) + reading_s + late_s[:, None]
    passed = np.diff(parts, axis=1) * (ends_s[:, 1:] + ends_s[:, :-1]) / 2
    sums = np.concatenate([np.zeros((len(parts), 1)), np.cumsum(passed, axis=1)], axis=1)

    def ended(count: FloatArray) -> FloatArray:
        at = count / requests * READY_PARTS
        low = np.minimum(at.astype(np.int64), READY_PARTS - 1)[:, None]
        below, above, before = (np.take_along_axis(table, low + more, axis=1)[:, 0] for table, more in (
            (ends_s, 0), (ends_s, 1), (sums, 0),
        ))  # fmt: skip
        part = at - low[:, 0]
        width = part * requests / READY_PARTS
        return np.asarray(before + width * (below + part * (above - below) / 2))

    return ended, requests * added_s + decoded.time_s + late_s
