"""How wide the intervals of a stack must be, told by errors that were held out."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray
from costmodels.uncertainty import NORMAL_90

# Single runs of one plan about their mean, which nothing known beforehand explains: the log standard deviation of the
# eight plans that BigScience's tr11 ran twice (docs/accuracy.md, "Rank that a perfect model would score").
REPEATS_LOG_STD = 0.024


def residual_log_std(
    errors: FloatArray,
    of_row: NDArray[np.str_],
    told: BoolArray,
    own: BoolArray,
    explained: FloatArray | float = 0.0,
) -> float:
    """Log standard deviation whose 90 % interval holds 90 % of the held-out errors that bear on a stack.

    Sources of the stack weigh alike; the sources of all other stacks together weigh as one more, so that a
    stack seldom measured is as uncertain as stacks are on the whole. A new source brings a bias of its own beside
    that of the k that are known, hence the factor sqrt(1 + 1/k) of a prediction interval; sources of unlike weight
    count as many as tell as much (the effective number of weighted observations, sum squared over sum of squares).

    Args:
        errors: (rows,) held-out log errors.
        of_row: (rows,) what each row is left out with.
        told: (rows,) which errors may be used.
        own: (rows,) which rows ran on the stack.
        explained: (rows,) half-width of the log interval that a prediction has without the stack's residual. The
            residual joins it as independent errors do, so that only what is beyond it is the residual's.
    """
    weight, of_source = np.zeros(len(errors)), []
    for chosen, together in ((told & own, False), (told & ~own, True)):
        counts = Counter(of_row[chosen].tolist())
        each = 1 / len(counts) if counts and together else 1.0
        of_source += [each] * len(counts)
        for name, count in counts.items():
            weight[chosen & (of_row == name)] = each / count
    if not of_source:
        return 0.0
    size = np.sqrt(np.maximum(np.where(told, errors, 0.0) ** 2 - np.square(explained), 0.0))
    told_by = np.sum(of_source) ** 2 / np.sum(np.square(of_source))
    return log_std(size, weight) * float(np.sqrt(1 + 1 / told_by))


def log_std(size: FloatArray, weight: FloatArray) -> float:
    """Standard deviation of the normal law whose 90 % interval holds 90 % of the weight.

    Args:
        size: (rows,) absolute log errors.
        weight: (rows,) weights, some above 0.
    """
    order = np.argsort(size)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(size[order][np.searchsorted(reached, 0.9 - 1e-9)] / NORMAL_90)
