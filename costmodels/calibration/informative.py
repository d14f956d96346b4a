"""Which of many measured kernels to spend on a calibration: the most informative, as ``profiles.measure`` chooses them.

Every operation class and format gets a share that grows with the root of its kernels, so that none is left out; where
libraries count, of each. A fifth of a share is short kernels where a group has any: calibrated on long ones alone,
short ones kept the old launch and an interval that said otherwise. Within one, each next kernel is the farthest from
all taken before it (Gonzalez 1985, "Clustering to minimize the maximum intercluster distance") in its sizes, intensity
and predicted time. Measured times have no say.
"""

import numpy as np

from costmodels.calibration.kernel_ranges import RELEVANT_S
from costmodels.kernels.calibrated import descriptors, groups, makers
from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, take
from costmodels.kernels.learned import format_classes

_SHORT = 0.2  # of the kernels of a group that are chosen
_MOST_COMPARED = 4000  # kernels of a group that are looked at; more are thinned out at random


def informative(calls: KernelCallBatch, predicted_s: FloatArray, count: int, seed: int) -> IntArray:
    """Row numbers of at most ``count`` calls, in ascending order; of no group more than half.

    Args:
        calls: (C,) what could be measured.
        predicted_s: (C,) seconds that they should take.
        count: How many are wanted.
        seed: Says which comes first in each group.
    """
    random = np.random.default_rng(seed)
    kinds = zip(groups(calls), makers(calls), format_classes(calls), strict=True)
    names = np.array([f"{group}/{maker}/{name}" for group, maker, name in kinds])
    long = predicted_s > RELEVANT_S
    places: list[tuple[float, int]] = []
    for name in np.unique(names):
        mine = np.flatnonzero(names == name)
        most = len(mine) // 2
        if not most:
            continue
        mine = random.permutation(mine)
        if long[mine].sum() >= 2 * min(count, most):
            parts = [(mine[long[mine]], 1 - _SHORT), (mine[~long[mine]], _SHORT)]
        else:
            parts = [(mine, 1.0)]
        for part, share in parts:
            part = part[:_MOST_COMPARED]
            if len(part):
                wanted = min(count, most, max(len(part) // 2, 1))
                taken = _farthest_first(descriptors(take(calls, part), predicted_s[part]), wanted)
                places += [((n + 0.5) / (share * np.sqrt(most)), int(part[row])) for n, row in enumerate(taken)]
    return np.sort(np.array([row for _, row in sorted(places)[:count]], dtype=np.int64))


def _farthest_first(points: FloatArray, count: int) -> list[int]:
    """Indices of (C, D) points: the first, then always the one farthest from those taken."""
    taken, distance = [0], np.linalg.norm(points - points[0], axis=1)
    while len(taken) < min(count, len(points)):
        taken.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(points - points[taken[-1]], axis=1))
    return taken[:count]
