"""How times to the first token and latencies of requests that arrive at random spread around their means.

A first token takes the reading of one's own prompt, which does not vary, and a wait D for the running step, for prompts
before one's own and for those of the same step. With the symbols of ``costmodels.serving.steady``, the prompts that
arrive during a step lengthen the next, T' = s + S Poisson(X T). Conditioning on the step before gives that chain's
cumulants:

    tau,  V = S^2 X tau / (1 - q^2),  K = S^3 (X tau + 3 X^2 V) / (1 - q^3)   with q = X S

A request meets steps in proportion to their length, E[T*^k] = E[T^(k+1)] / tau (Kleinrock, Queueing Systems I, 1975,
section 5.2), and waits for a uniform part u of one and for the prompts that arrive in all of it:

    D = u T* + w Poisson(X T*),  Var D = (1/2 + X w)^2 Var T* + E[T*^2] / 12 + X w^2 E[T*]

The relative variance is taken from there, and the mean from ``costmodels.serving.steady``, which knows how many prompts
go into a step. D is given the gamma distribution of these two moments, a usual choice for waits of queues of which two
moments are known (Tijms, A First Course in Stochastic Models, 2003, chapter 9).

Latency: output lengths are independent of the wait, and each token takes a request tau.

Nothing is said, and infinity returned,
    where places are few: so many are at once, Poisson of mean N without a bound (M/G/infinity), that N + 3 sqrt(N) is
        beyond the places. Waits for a place then decide, which Sakasegawa's mean tells too roughly;
    of latencies where output lengths vary by less than half of their mean: then it decides how token times differ
        between requests, which these formulas leave out.
Nothing is said either of a constant number of requests at once, which follow each other's rhythm: requests of equal
lengths that started together come back together.
"""

import numpy as np

from costmodels.arrays import halved
from costmodels.lengths import OutputLengths
from costmodels.plan import BoolArray, FloatArray
from costmodels.serving.steady import ServingPoints, ServingPrices

LEAST_SHARE, MOST_SHARE = 0.5, 0.999  # of requests: of what is rarer, two moments do not tell
LEAST_VARIATION = 0.5  # of output lengths, for latencies to be told by them
_SPARE = 3.0  # standard deviations of the requests at once that have a place
_NODES = 16  # equally likely waits that stand for all
_HALVINGS = 40
_NOTHING_S = 1e-12


def first_token_within(
    points: ServingPoints, prices: ServingPrices, places: FloatArray, share: FloatArray | float
) -> FloatArray:
    """(N, G) seconds in which so large a share of the requests has its first token; infinite where nothing is said.

    Args:
        points: Of requests that arrive at random (``at_rate``).
        prices: Of the N layouts.
        places: (N,) requests that fit at once.
        share: Between 0 and 1; of one deployment, (1, K) give (1, K) seconds.
    """
    return np.where(_spacious(points, places), points.own_s + _wait_within(points, prices, share), np.inf)


def latency_within(
    points: ServingPoints, prices: ServingPrices, places: FloatArray, share: FloatArray | float
) -> FloatArray:
    """(N, G) seconds in which so large a share of the requests has ended; infinite where nothing is said.

    Args:
        points: Of requests that arrive at random (``at_rate``).
        prices: Of the N layouts; output lengths are theirs.
        places: (N,) requests that fit at once.
        share: As of ``first_token_within``.
    """
    output, told = prices.output, _spacious(points, places)
    if not lengths_tell(output):
        return np.full(told.shape, np.inf)
    token_s = np.where(told, points.token_s, 1.0)[..., None]
    waits_s = [_wait_within(points, prices, (k + 0.5) / _NODES) for k in range(_NODES)]
    first_s = np.where(told, points.own_s, 0.0)[..., None] + np.stack(waits_s, axis=-1)
    most_s = first_s[..., -1] + output.most * token_s[..., 0]

    def too_early(seconds: FloatArray) -> BoolArray:
        tokens = (seconds[..., None] - first_s) / token_s + 1
        longer = np.where(tokens < output.most, output.longer_than(tokens), 0.0)  # no tokens yet: all are
        return np.asarray(longer.mean(axis=-1) > 1 - share)

    none_s = np.zeros_like(most_s + share)
    _, high_s = halved(none_s, most_s + np.zeros_like(share), too_early, times=_HALVINGS)
    return np.where(told, high_s, np.inf)


def lengths_tell(output: OutputLengths) -> bool:
    """Whether output lengths vary so much that latencies follow them."""
    return output.variation >= LEAST_VARIATION


def _spacious(points: ServingPoints, places: FloatArray) -> BoolArray:
    """(N, G) whether hardly anyone waits for a place."""
    at_once = np.where(np.isfinite(points.first_token_s), points.at_once, np.inf)
    return np.asarray(at_once + _SPARE * np.sqrt(at_once) <= places[:, None])


def _wait_within(points: ServingPoints, prices: ServingPrices, share: FloatArray | float) -> FloatArray:
    """(N, G) seconds that so large a share waits no longer than, for the step and for one's turn."""
    return waits_within(points, prices, points.turn_s, share)


def waits_within(
    points: ServingPoints, prices: ServingPrices, mean_s: FloatArray, share: FloatArray | float
) -> FloatArray:
    """(N, G) seconds that so large a share of waits of this mean (N, G) is no longer than.

    Args:
        points: Steps that are met.
        prices: Of the N layouts.
        mean_s: Of the waits; where infinite, nothing is meant.
        share: As of ``first_token_within``.
    """
    from scipy.special import gammaincinv  # takes a third of what starting takes

    mean_s = np.where(np.isfinite(mean_s), np.maximum(mean_s, _NOTHING_S), 1.0)
    varies = _relative_variance(points, prices)
    return np.asarray(mean_s * varies * gammaincinv(1 / varies, share))


def _relative_variance(points: ServingPoints, prices: ServingPrices) -> FloatArray:
    """(N, G) variance of D over its mean squared."""
    rate, tau, held_s, added_s = points.rate_per_s, points.met_s, points.held_up_s, prices.added_s[:, None]
    tau = np.where(np.isfinite(tau), np.maximum(tau, _NOTHING_S), 1.0)
    load = np.minimum(rate * held_s, 1 - 1e-6)
    second = held_s**2 * rate * tau / (1 - load**2)
    third = held_s**3 * (rate * tau + 3 * rate**2 * second) / (1 - load**3)
    met_s, met_squared = tau + second / tau, tau**2 + 3 * second + third / tau
    part = 0.5 + rate * added_s
    variance = part**2 * (met_squared - met_s**2) + met_squared / 12 + rate * added_s**2 * met_s
    return np.asarray(variance / (part * met_s) ** 2)
