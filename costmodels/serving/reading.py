"""Requests that end with their prompt: embeddings, scores, classes, or the one token that follows a prompt.

An engine with continuous batching then reads prompts in every step, as many as have come and fit its budget of tokens,
and generates nothing beside them. Symbols: X requests a second, k prompts of a step, T(k) seconds from a step of so
many to the next, A(k) to its answers (the same but for pipeline stages), K prompts that a step takes at most, S = T(K)
/ K seconds that each holds up those that come by.

    step      T = T(k), k = X T + P(nobody comes during one) = X T + exp(-X T): a step that leaves nobody waiting is
              followed by that of the next to come
    busy      b = X T / k, the chance of finding a step under way
    answer    (1 - b) A(1) + b (T / 2 + A(1 + X T)) + (X S)^2 S / 2 (1 - X S)

The last term is what Pollaczek and Khinchine (M/D/1, as in ``costmodels.serving.steady``) tell beyond the running step:
it is exact where a step takes one prompt, and stands for steps that vary where it takes many. Beside an engine played
out step by step, up to 85 % of the most that is answered, means lie within 16 %. Waits of those that find a step are
given the gamma distribution of ``costmodels.serving.percentiles``, the others wait for nothing: p50 and p90 lie within
27 %, p99 within 25 % below and 50 % above.

So many at once (a closed loop): two parts of them take turns, one being read while the other comes back. With C of them
k = C / 2, and C T(k) / k seconds pass between two prompts of one who asks.

Left out on purpose: what a server takes before and after the engine, above all its tokeniser.
"""

from collections.abc import Callable

import numpy as np

from costmodels.arrays import halved
from costmodels.plan import BoolArray, FloatArray
from costmodels.serving.apart import BUSIEST
from costmodels.serving.percentiles import waits_within
from costmodels.serving.prompts import ReadingSteps
from costmodels.serving.queues import most_of, queue_s
from costmodels.serving.steady import ServingPoints, ServingPrices

_HALVINGS = 40
_TURNS = 2  # parts of a closed loop
_FEW = 1024  # of the highest rate, where none is answered as asked


def reads_per_s(prices: ServingPrices, places: FloatArray) -> FloatArray:
    """(N,) prompts a second that one attention group reads at most, with so many places (N,) for them."""
    most = _most(prices, places)[:, None]
    return np.asarray((most / _steps(prices).next_s(most))[:, 0])


def reads_at_rate(prices: ServingPrices, rate_per_s: FloatArray, places: FloatArray) -> ServingPoints:
    """Steady states with (N, G) requests a second arriving at random; infinitely slow where they are too many.

    Args:
        prices: N layouts, of requests that end with their prompt.
        rate_per_s: Per attention group.
        places: (N,) prompts that have room in the cache at once.
    """
    steps, most = _steps(prices), _most(prices, places)[:, None]
    held_s = np.broadcast_to(steps.next_s(most) / most, rate_per_s.shape)
    load = rate_per_s * held_s
    stable = load < 1
    rate = np.where(stable, rate_per_s, 0.0)
    step_s, busy = _step_s(prices, rate, most)
    own_s = np.broadcast_to(_alone_s(prices), rate.shape)
    beside_s = steps.answered_s(np.minimum(1 + rate * step_s, most)) - steps.answered_s(np.ones_like(rate))
    turn_s = busy * (step_s / 2 + beside_s) + np.minimum(load, 1.0) * queue_s(load, held_s)
    return _points(rate_per_s, np.where(stable, own_s + turn_s, np.inf), own_s, step_s, held_s)


def reads_at_concurrency(prices: ServingPrices, at_once: FloatArray, places: FloatArray) -> ServingPoints:
    """Steady states with (N, G) requests in a replica at any time, a new one for each that ends.

    Args:
        prices: N layouts, of requests that end with their prompt.
        at_once: Shared out over the attention groups.
        places: (N,) prompts of a group that have room in the cache at once; the others wait for their turn.
    """
    steps = _steps(prices)
    each = at_once / prices.plans.attention_groups[:, None]
    together = np.clip(each / _TURNS, 1.0, _most(prices, places)[:, None])
    step_s = steps.next_s(together)
    own_s = np.broadcast_to(_alone_s(prices), each.shape)
    first_s = np.maximum(each * step_s / together, np.maximum(steps.answered_s(together), own_s))
    return _points(each / first_s, first_s, own_s, step_s, step_s / together)


def highest_rates(prices: ServingPrices, places: FloatArray, within: Callable[[FloatArray], BoolArray]) -> FloatArray:
    """(N,) requests a second, arriving at random at one attention group, that are answered as asked, or few.

    Args:
        prices: N layouts, of requests that end with their prompt.
        places: (N,) prompts that have room in the cache at once.
        within: Whether each of (N, 1) rates is answered as asked; what is slower is not at a higher one either.
    """
    most = BUSIEST * reads_per_s(prices, places)[:, None]
    if within(most).all():
        return np.asarray(most[:, 0])
    low, _ = halved(most / _FEW, most, within, times=_HALVINGS)
    return np.where(within(most), most, low)[:, 0]


def reads_run(prices: ServingPrices, requests: FloatArray, at_once: FloatArray, places: FloatArray) -> ServingPoints:
    """Means over the requests of a run, (N, 1); rates are those of the whole run.

    The first come together and are read in full steps; the others follow as in a closed loop.

    Args:
        prices: N layouts, of requests that end with their prompt.
        requests: (N,) of an attention group in all, at least 1.
        at_once: (N,) that are sent and not answered, until all are sent.
        places: (N,) prompts that have room in the cache at once.
    """
    steps, most, sent = _steps(prices), _most(prices, places), np.minimum(at_once, requests)
    groups = prices.plans.attention_groups.astype(np.float64)
    loop = reads_at_concurrency(prices, (sent * groups)[:, None], places)
    full_s, answered_s = (each(most[:, None])[:, 0] for each in (steps.next_s, steps.answered_s))
    full = np.floor(sent / most * (1 + 1e-12))
    rest = np.maximum(sent - full * most, 0.0)
    last_s = np.where(rest > 0, steps.answered_s(np.maximum(rest, 1.0)[:, None])[:, 0], answered_s - full_s)
    burst_s = full * full_s + last_s
    answers_s = most * (full_s * full * (full + 1) / 2 + full * (answered_s - full_s)) + rest * burst_s
    later = requests - sent
    first_s = np.maximum((answers_s + later * loop.first_token_s[:, 0]) / requests, _alone_s(prices)[:, 0])
    rate = requests / (burst_s + later / loop.rate_per_s[:, 0])
    return _points(rate[:, None], first_s[:, None], _alone_s(prices), loop.met_s, loop.held_up_s)


def read_within(
    points: ServingPoints, prices: ServingPrices, places: FloatArray, share: FloatArray | float
) -> FloatArray:
    """(N, G) seconds in which so large a share of the requests is answered; infinite where too many come.

    Args:
        points: Of requests that arrive at random (``reads_at_rate``).
        prices: Of the N layouts.
        places: (N,) prompts that have room in the cache at once.
        share: Between 0 and 1; of one deployment, (1, K) give (1, K) seconds.
    """
    finite = np.isfinite(points.first_token_s)
    rate = np.where(finite, points.rate_per_s, 0.0)
    _, busy = _step_s(prices, rate, _most(prices, places)[:, None])
    among = np.clip(1 - (1 - np.asarray(share)) / np.maximum(busy, 1e-12), 0.0, 1.0)  # those that find a step
    turn_s = np.where(finite, points.turn_s, 0.0) / np.maximum(busy, 1e-12)
    waits_s = np.where(among > 0, waits_within(points, prices, turn_s, among), 0.0)
    return np.where(finite, points.own_s + waits_s, np.inf)


def _steps(prices: ServingPrices) -> ReadingSteps:
    if prices.reading is None:
        raise ValueError("requests end with their prompt")
    return prices.reading


def _alone_s(prices: ServingPrices) -> FloatArray:
    """(N, 1) seconds to the answer of a prompt that meets nobody."""
    return _steps(prices).whole_s[:, :1]


def _most(prices: ServingPrices, places: FloatArray) -> FloatArray:
    """(N,) prompts of a step at most: as many as have room, and as its tokens are enough for, or one."""
    return np.clip(places, 1.0, _steps(prices).counts[-1])


def _step_s(prices: ServingPrices, rate: FloatArray, most: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(N, G) seconds of a step at rates that can be answered, and share of the time that steps are under way."""
    steps, groups, routed = _steps(prices), prices.plans.attention_groups[:, None], prices.routed[:, None]
    low, high = (np.broadcast_to(steps.next_s(each), rate.shape) for each in (np.ones_like(most), most))

    def prompts(seconds: FloatArray) -> FloatArray:
        return np.minimum(rate * seconds + np.exp(-rate * seconds * groups) / groups, most)

    def too_short(seconds: FloatArray) -> BoolArray:
        mean = prompts(seconds)
        # Groups that share experts wait for the one that reads most.
        met = np.maximum(routed * mean + (1 - routed) * np.minimum(most_of(groups, mean), most), 1.0)
        return np.asarray(steps.next_s(met) > seconds)

    _, high = halved(low, high, too_short, times=_HALVINGS)
    return high, np.minimum(rate * high / prompts(high), 1.0)


def _points(
    rate: FloatArray, first_s: FloatArray, own_s: FloatArray, step_s: FloatArray, held_s: FloatArray
) -> ServingPoints:
    """States in which nobody generates: an answer is the first token, and the last."""
    own_s = np.broadcast_to(own_s, first_s.shape)
    return ServingPoints(
        generating=np.zeros_like(first_s),
        rate_per_s=rate,
        first_token_s=first_s,
        token_s=np.full_like(first_s, np.nan),
        latency_s=first_s,
        at_once=rate * first_s,
        own_s=own_s,
        turn_s=first_s - own_s,
        met_s=np.broadcast_to(step_s, first_s.shape),
        held_up_s=np.broadcast_to(held_s, first_s.shape),
    )
