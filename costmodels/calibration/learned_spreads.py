"""Intervals of learned prices: quantiles of measured over predicted time on rows that a fit has not seen.

A situation's spread is that of the folds that lack what the situation lacks, apart for every group of kernels (format,
library or odd shapes) that has enough rows, and for short, middling and long kernels. Where whole devices or operations
are held out, rows of one share their error, so each fold weighs the same.

A spread never judges the rows it was taken from: inside the fitted domain each half of the shapes is judged by the
other, elsewhere each fold by the others of its situation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.robust import significant
from costmodels.kernels.calls import FloatArray
from costmodels.kernels.learned import ANY_GROUP

EDGES_S = (20e-6, 100e-6)  # classes of predicted time that have a spread of their own
FEWEST_ROWS = 50  # of a class of time that has one
FEWEST_OF_GROUP = 200  # rows of a group that has one
FEW_FOLDS = 3  # with fewer, a group's errors count both ways
WHOLE_GROUPS = ("related", "foreign", "unmet")  # situations of which a fold holds out whole devices or operations
# Outside the interval at either end. Of nominal 5 % everywhere, rows that had no say lie inside on the mean of the
# folds in 88 % (measured), 86 % (beyond) and 81-86 % (whole groups): folds are few and differ.
TAIL, TAIL_ELSEWHERE = 0.04, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """K judged rows of one fold.

    Attributes:
        situation: See ``learned_splits.Fold``.
        ratio: (K,) measured over predicted time.
        predicted_s: (K,) seconds.
        group: (K,) kernels that have a spread of their own, see ``costmodels.kernels.learned.spread_groups``.
        weight: (K,) of each row.
    """

    situation: str
    ratio: FloatArray
    predicted_s: FloatArray
    group: NDArray[np.str_]
    weight: FloatArray

    def take(self, rows: NDArray[np.bool_]) -> "Residuals":
        """Some of the rows."""
        return Residuals(
            situation=self.situation, ratio=self.ratio[rows], predicted_s=self.predicted_s[rows],
            group=self.group[rows], weight=self.weight[rows],
        )  # fmt: skip


def spread_of(found: Sequence[Residuals]) -> dict[str, Any]:
    """By group, and under ``*`` of all: quantiles of measured over predicted time by class of predicted time.

    Args:
        found: Folds of one situation.
    """
    names = sorted({str(name) for part in found for name in np.unique(part.group)})
    spreads = {ANY_GROUP: _spread(found)}
    for name in names:
        parts = [part.take(part.group == name) for part in found]
        if sum(len(part.ratio) for part in parts) >= FEWEST_OF_GROUP:
            spreads[name] = _spread([part for part in parts if len(part.ratio)])
    return spreads


def _spread(found: Sequence[Residuals]) -> dict[str, Any]:
    whole = found[0].situation in WHOLE_GROUPS
    values = np.concatenate([part.ratio for part in found])
    weights = np.concatenate([part.weight / part.weight.sum() if whole else part.weight for part in found])
    places = np.concatenate([np.searchsorted(EDGES_S, part.predicted_s) for part in found])
    if whole and len(found) < FEW_FOLDS:
        # Of two cards or libraries that judge each other one looks slow and the other fast: the sign is chance.
        values, weights, places = np.concatenate([values, 1 / values]), np.tile(weights, 2), np.tile(places, 2)
    tail = TAIL if found[0].situation == "measured" else TAIL_ELSEWHERE
    low, high = [], []
    for number in range(len(EDGES_S) + 1):
        mine = places == number
        if mine.sum() < FEWEST_ROWS:
            mine = np.ones(len(values), dtype=np.bool_)
        ends = weighted_quantiles(values[mine], weights[mine], (tail, 1 - tail))
        low.append(significant(min(float(ends[0]), 1.0), 4))
        high.append(significant(max(float(ends[1]), 1.0), 4))
    return {"up_to_s": list(EDGES_S), "low_factor": low, "high_factor": high}


def weighted_quantiles(values: FloatArray, weights: FloatArray, shares: Sequence[float]) -> FloatArray:
    """The values below which those shares of the weight lie."""
    order = np.argsort(values)
    below = (np.cumsum(weights[order]) - 0.5 * weights[order]) / weights.sum()
    return np.asarray(np.interp(shares, below, values[order]))


def inside(part: Residuals, spreads: Mapping[str, Any]) -> NDArray[np.bool_]:
    """(K,) whether each measured time lies inside the interval of the spread of its group."""
    place = np.searchsorted(EDGES_S, part.predicted_s)
    found = np.zeros(len(part.ratio), dtype=np.bool_)
    for name in np.unique(part.group):
        spread = spreads.get(str(name), spreads[ANY_GROUP])
        low, high = (np.array(spread[end])[place] for end in ("low_factor", "high_factor"))
        mine = part.group == name
        found[mine] = ((part.ratio >= low) & (part.ratio <= high))[mine]
    return found


def inside_by_others(found: Sequence[Residuals], halves: Sequence[NDArray[np.int64]], number: int) -> NDArray[np.bool_]:
    """(K,) whether the rows of one fold lie inside the intervals that rows apart from them give.

    Args:
        found: Every fold of the situation.
        halves: (K,) half of the shapes that each row of each fold belongs to.
        number: Of the judged fold.
    """
    judged = found[number]
    if judged.situation == "measured":
        whole = np.zeros(len(judged.ratio), dtype=np.bool_)
        for half in (0, 1):
            others = [part.take(mine != half) for part, mine in zip(found, halves, strict=True)]
            mine = halves[number] == half
            whole[mine] = inside(judged.take(mine), spread_of([part for part in others if len(part.ratio)]))
        return whole
    others = [part for place, part in enumerate(found) if place != number]
    return inside(judged, spread_of(others or [judged]))
