"""Error measures: how far predictions are from measurements, and whether their order is right.

Relative errors are |predicted / measured - 1|. A source is one ``source`` of one file: rows of one source
share their systematic errors, so means are taken over sources, not over rows.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray

# A source with fewer rows says too little to enter a mean over sources.
LEAST_ROWS = 8
_LEAST_RANKED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSummary:
    """Errors of a set of rows, as fractions.

    Attributes:
        rows: How many.
        mape: Mean absolute relative error.
        median: Median absolute relative error.
        p90: 90th percentile of it.
        bias: Mean signed relative error; positive when predictions are too large.
        covered: Share of measurements inside the 90 % interval; None when there is none.
    """

    rows: int
    mape: float
    median: float
    p90: float
    bias: float
    covered: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSummary:
    """Spearman rank correlation within groups that differ only by plan.

    Attributes:
        groups: Groups of at least three rows.
        rows: Rows in them.
        mean: Mean over groups, each weighing by its rows.
        lowest: The worst group.
    """

    groups: int
    rows: int
    mean: float
    lowest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OomSummary:
    """Verdicts "fits" against runs that died of memory and runs that did not.

    Attributes:
        caught: Died, predicted not to fit.
        missed: Died, predicted to fit.
        false_alarms: Ran, predicted not to fit.
        cleared: Ran, predicted to fit.
    """

    caught: int
    missed: int
    false_alarms: int
    cleared: int

    @property
    def rows(self) -> int:
        """All verdicts."""
        return self.caught + self.missed + self.false_alarms + self.cleared

    @property
    def accuracy(self) -> float | None:
        """Share of right verdicts."""
        return (self.caught + self.cleared) / self.rows if self.rows else None

    @property
    def caught_share(self) -> float | None:
        """Share of deaths foreseen."""
        died = self.caught + self.missed
        return self.caught / died if died else None

    @property
    def false_alarm_share(self) -> float | None:
        """Share of runs that the verdict would have forbidden."""
        ran = self.false_alarms + self.cleared
        return self.false_alarms / ran if ran else None


def error_summary(
    predicted: FloatArray, measured: FloatArray, *, low: FloatArray | None = None, high: FloatArray | None = None
) -> ErrorSummary | None:
    """Errors over (n,) rows; None when there is none."""
    if len(predicted) == 0:
        return None
    relative = predicted / measured - 1
    size = np.abs(relative)
    covered = float(np.mean((low <= measured) & (measured <= high))) if low is not None and high is not None else None
    return ErrorSummary(
        rows=len(predicted),
        mape=float(size.mean()),
        median=float(np.median(size)),
        p90=float(np.percentile(size, 90)),
        bias=float(relative.mean()),
        covered=covered,
    )


def rank_summary(predicted: FloatArray, measured: FloatArray, groups: Sequence[Hashable]) -> RankSummary | None:
    """Rank correlation within the groups; None when no group has three rows with different figures."""
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    values: list[float] = []
    sizes: list[int] = []
    for numbers in members.values():
        if len(numbers) < _LEAST_RANKED:
            continue
        correlation = spearman(predicted[numbers], measured[numbers])
        if correlation is not None:
            values.append(correlation)
            sizes.append(len(numbers))
    if not values:
        return None
    return RankSummary(
        groups=len(values), rows=sum(sizes), mean=float(np.average(values, weights=sizes)), lowest=min(values)
    )


def spearman(left: FloatArray, right: FloatArray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side is constant."""
    ranks = [_ranks(side) for side in (left, right)]
    spread = [float(side.std()) for side in ranks]
    if not all(spread):
        return None
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_rank: FloatArray = (ends - (counts - 1) / 2)[inverse]
    return mean_rank


def oom_summary(fits: BoolArray, died: NDArray[np.bool_], ran: NDArray[np.bool_]) -> OomSummary:
    """Confusion matrix of (n,) verdicts; rows that neither died nor ran do not count."""
    return OomSummary(
        caught=int((died & ~fits).sum()),
        missed=int((died & fits).sum()),
        false_alarms=int((ran & ~fits).sum()),
        cleared=int((ran & fits).sum()),
    )


def mean_over_sources(
    scores: Iterable[ErrorSummary | RankSummary | OomSummary | None], figure: str = "mape"
) -> float | None:
    """Mean of one figure over the sources with at least ``LEAST_ROWS`` rows; None when none of them has it.

    Args:
        scores: One per source, None where it has no such rows.
        figure: Attribute to average: ``mape``, ``p90``, ``covered``, ``mean`` (of ranks), ``accuracy`` (of verdicts).
    """
    counted = [getattr(score, figure) for score in scores if score is not None and score.rows >= LEAST_ROWS]
    known = [value for value in counted if value is not None]
    return float(np.mean(known)) if known else None


def worst_source(errors: Mapping[str, ErrorSummary | None]) -> tuple[str, float] | None:
    """Name and MAPE of the source with enough rows and the largest error."""
    counted = {name: error.mape for name, error in errors.items() if error is not None and error.rows >= LEAST_ROWS}
    if not counted:
        return None
    name = max(counted, key=lambda key: (counted[key], key))
    return name, counted[name]
