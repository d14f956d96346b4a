"""Which stages run on which configuration where there are devices for few of each: how much that is worth at most."""

from functools import cache
from itertools import combinations

import numpy as np

from costmodels.plan import FloatArray, IntArray

_SWEEPS = 2  # over the prices of places of more than two configurations
_FEW = 4  # configurations of which all subsets are tried; of more those of one or two


def most_worth(value: FloatArray, slots: IntArray) -> FloatArray:
    """(N,) most that stages are worth together, each on one of its configurations, at least.

    For prices h of places the sum over stages of the largest value less its price, and the price of all places, is
    no less. Raising or lowering the prices of some configurations together, others as they are, is best where as many
    stages want a place on one of these as there are. Where no such step helps, h is the best there is, as the sum is
    L-natural-convex in h (Murota, Discrete Convex Analysis, 2003, chapter 7).

    Args:
        value: (N, C, p) what stages are worth on each configuration.
        slots: (N, C) stages that may run it.
    """
    count, width, stages = value.shape
    place = np.zeros((count, width))
    for some, others in _subsets(width):
        net = value - place[:, :, None]
        gain = np.sort(net[:, some].max(axis=1) - net[:, others].max(axis=1), axis=1)[:, ::-1]
        room = slots[:, some].sum(axis=1)
        first_out = np.take_along_axis(gain, np.minimum(room, stages - 1)[:, None], axis=1)[:, 0]
        least = -place[:, some].min(axis=1)  # prices are never negative
        place[:, some] += np.where(room < stages, np.maximum(first_out, least), least)[:, None]
    net = value - place[:, :, None]
    total: FloatArray = net.max(axis=1).sum(axis=1) + (place * slots).sum(axis=1)
    return total


@cache
def _subsets(width: int) -> list[tuple[IntArray, IntArray]]:
    """Configurations whose prices are changed together, and the others, one after the other.

    Of two configurations once, of more again and again; of many only some: any prices give a bound.
    """
    sizes = range(1, width if width <= _FEW else 3)
    every = [np.asarray(some) for size in sizes for some in combinations(range(width), size)]
    both = [(some, np.setdiff1d(np.arange(width), some)) for some in every]
    return both * (1 if width == 2 else _SWEEPS)
