"""How far measured kernels lie from their corrected prices, told by measured kernels like them.

A score is log(measured / corrected) of a point left out, over the standard deviation said of it. Of a call the scores
of points of its group and library, and less so of others, count by how near their times are: short kernels err by more
than long ones. One more score, the call's own, is unknown, so that few points of its like leave the interval that its
price had (Guan, Localized conformal prediction: a generalized inference framework for conformal prediction, Biometrika
2023).
"""

from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import FloatArray, IntArray

TAIL = 0.05  # of calls beyond either end of an interval
_OTHER_LIBRARY, _OTHER_GROUP = 0.5, 0.25  # weight of such a point, beside one of the same
_OCTAVES = 2.0  # of time over which weights fall: what launches hide at one time they no longer do at four times it
_STEP = 0.5  # octaves of time whose calls are taken together


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of P points left out.

    Attributes:
        kind: (3, P) group, limit and maker of each, see ``costmodels.kernels.calibrated``.
        octaves: (P,) log2 of its price in microseconds.
        score: (P,) see the module's first lines.
    """

    kind: IntArray
    octaves: FloatArray
    score: FloatArray

    def reach(
        self, kind: IntArray, octaves: FloatArray, *, low: FloatArray, high: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """(C,) standard deviations from the price of a call to the lower and to the upper end of its interval.

        Args:
            kind: (3, C) as of the points.
            octaves: (C,) as of the points.
            low: (C,) the same of the price as it was, downwards, which a call gets that few points are like.
            high: (C,) upwards.
        """
        step = np.round(octaves / _STEP).astype(np.int64)
        cells, place = np.unique(np.concatenate([kind, step[None, :]]), axis=1, return_inverse=True)
        weight = self._weights(cells[:3], cells[3] * _STEP)
        return self._clipped(-1.0, weight, place.ravel(), low), self._clipped(1.0, weight, place.ravel(), high)

    def _clipped(self, sign: float, weight: FloatArray, place: IntArray, before: FloatArray) -> FloatArray:
        within, beyond = _bounds(sign * self.score, weight)
        return np.clip(before, within[place], beyond[place])

    def _weights(self, kind: IntArray, octaves: FloatArray) -> FloatArray:
        """(U, P) what each point says of the calls of a cell; nothing of groups and libraries that none is of."""
        group, limit, maker = (mine[:, None] == point for mine, point in zip(kind, self.kind, strict=True))
        near = np.exp(-0.5 * ((octaves[:, None] - self.octaves) / _OCTAVES) ** 2)
        alike = np.where(group, np.where(maker, 1.0, _OTHER_LIBRARY), _OTHER_GROUP)
        return np.asarray(alike * limit * near * (group & maker).any(axis=1, keepdims=True))


def _bounds(score: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(U,) least end beyond which lies a ``TAIL`` of the weight, if the unknown score lies within it; and if beyond."""
    order = np.argsort(-score)
    ends = np.concatenate([np.maximum(score[order], 0.0), [0.0]])  # from the farthest inwards
    beyond = np.concatenate([np.zeros((len(weight), 1)), np.cumsum(weight[:, order], axis=1)], axis=1)
    most = TAIL * (beyond[:, -1:] + 1.0)
    within = ends[np.sum(beyond <= most, axis=1) - 1]
    count = np.sum(beyond + 1.0 <= most, axis=1)
    return within, np.where(count > 0, ends[count - 1], np.inf)
