"""Random arrivals: what they wait for, and how many come at once."""

from functools import cache

import numpy as np

from costmodels.plan import FloatArray, IntArray

_MEANS = np.geomspace(1e-5, 10.0, 121)


def queue_s(load: FloatArray, service_s: FloatArray) -> FloatArray:
    """Mean wait in a queue with random arrivals and equal service (M/D/1); infinite where more come than are served.

    Args:
        load: Share of the time that it is busy.
        service_s: Seconds of service, of the same shape.
    """
    return np.where(load < 1, load * service_s / (2 * np.maximum(1 - load, 1e-12)), np.inf)


def most_of(groups: IntArray, mean: FloatArray) -> FloatArray:
    """(N, G) the largest of so many (N, 1) independent Poisson numbers of one mean (N, G), on average.

    Exact up to a mean of ten between which logarithms are joined by straight lines; from there it leads the mean by a
    multiple of its root.
    """
    found = np.array(mean, dtype=np.float64)
    for count in np.unique(groups[groups > 1]).tolist():
        rows = np.broadcast_to(groups == count, found.shape)
        few, most = _MEANS, _most_of(count)
        lead = (most[-1] - few[-1]) * np.sqrt(found[rows] / few[-1])
        exact = np.exp(np.interp(np.log(np.maximum(found[rows], few[0])), np.log(few), np.log(most)))
        rare = found[rows] * count
        found[rows] = np.where(found[rows] < few[0], rare, np.where(found[rows] > few[-1], found[rows] + lead, exact))
    return found


@cache
def _most_of(count: int) -> FloatArray:
    """The largest of so many Poisson numbers on average, by ``_MEANS``: sum of P(largest > k)."""
    from scipy.special import pdtr  # takes a third of what starting takes

    return np.asarray((1 - pdtr(np.arange(60.0)[:, None], _MEANS) ** count).sum(axis=0))
