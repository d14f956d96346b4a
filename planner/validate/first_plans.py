"""How good the first plans of a ranking are on the cluster: best@k, worst@k, std@k and SharpeRatio@k.

A user may try the first k plans rather than the first alone. In a pick group (``planner.validate.pick``) the value of
a plan is its measured tokens/s over the best measured, 0 for one that ran out of memory. best@k, worst@k and std@k are
the largest, the smallest and the standard deviation (dividing by k) of the values of the first k plans;

    SharpeRatio@k = (best@k - J) / std@k

where J, the baseline, is the median value of the plans of the group that ran: what a user without a ranking may run.
A ranking is good when its first plans hold a fast one and none that fails: regret sees the first only.

Source:
    Kiyohara et al. 2024, "Towards Assessing and Benchmarking Risk-Return Tradeoff of Off-Policy Evaluation"
    (arXiv:2311.18207), there for policies ranked by an estimator. Its software divides by k - 1 and clips the ratio to
    100; here neither is done, and groups whose first k plans are equal (std@k of 0) have no ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.validate.pick import choices
from planner.validate.predict import Predictions
from planner.validate.tables.rows import ScorableRow

COUNTS = (1, 2, 3, 5)
RANDOM_ORDERS = 100  # that stand for a random ranking
_EQUAL = 1e-9  # a spread below which values are equal


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstValues:
    """Means over groups of the first k plans.

    Attributes:
        best: best@k.
        worst: worst@k.
        std: std@k.
        died: Plans among them that ran out of memory.
        sharpe: Median of SharpeRatio@k over the groups that have one; None when none has.
    """

    best: float
    worst: float
    std: float
    died: float
    sharpe: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPlans:
    """The first k plans of every group.

    Attributes:
        count: k.
        groups: Groups judged.
        ranked: By the planner's order: predicted to fit, most predicted tokens/s first.
        random: By random orders of all plans.
    """

    count: int
    groups: int
    ranked: FirstValues
    random: FirstValues


def first_plans(rows: Sequence[ScorableRow], predictions: Predictions) -> tuple[FirstPlans, ...]:
    """The first plans of every group of the rows, by the planner's ranking and by chance.

    Args:
        rows: Rows of published runs.
        predictions: What the planner says about them.
    """
    groups = choices(rows)
    if not groups:
        return ()
    values = [_values([rows[number] for number in group]) for group in groups]
    orders = [_ranked(rows, predictions, group) for group in groups]
    rng = np.random.default_rng(0)
    chance = [np.array([rng.permutation(len(value)) for _ in range(RANDOM_ORDERS)]) for value in values]
    return tuple(
        FirstPlans(
            count=count,
            groups=len(groups),
            ranked=_mean([_first(value, order[None, :count]) for value, order in zip(values, orders, strict=True)]),
            random=_mean([_first(value, order[:, :count]) for value, order in zip(values, chance, strict=True)]),
        )
        for count in COUNTS
    )


def _values(group: Sequence[ScorableRow]) -> FloatArray:
    speeds = np.array([0.0 if row.out_of_memory else row.tokens_per_s or 0.0 for row in group])
    return np.asarray(speeds / speeds.max(), dtype=np.float64)


def _ranked(rows: Sequence[ScorableRow], predictions: Predictions, group: Sequence[int]) -> IntArray:
    """Places in the group of the plans predicted to fit, fastest first; the first row alone if none is."""
    speed = np.array([rows[n].job.tokens_per_step / float(predictions.step_time_s[n]) for n in group])
    usable = np.isfinite(speed) & predictions.fits[list(group)]
    order = np.lexsort((np.array([rows[n].line for n in group]), -speed))
    found: IntArray = order[usable[order]]
    return found if len(found) else order[:1]


def _first(values: FloatArray, orders: IntArray) -> FloatArray:
    """(5,) best, worst, std, deaths and ratio of the plans in (O, k) orders, means over the orders."""
    chosen = values[orders]
    std = chosen.std(axis=1)
    gain = chosen.max(axis=1) - np.median(values[values > 0])
    ratio = np.divide(gain, std, out=np.full(len(std), np.nan), where=std > _EQUAL)
    known = ratio[np.isfinite(ratio)]
    return np.array(
        [
            chosen.max(axis=1).mean(),
            chosen.min(axis=1).mean(),
            std.mean(),
            (chosen == 0).sum(axis=1).mean(),
            np.median(known) if len(known) else np.nan,
        ]
    )


def _mean(groups: Sequence[FloatArray]) -> FirstValues:
    table = np.array(groups)
    best, worst, std, died = (float(value) for value in table[:, :4].mean(axis=0))
    ratios = table[np.isfinite(table[:, 4]), 4]
    return FirstValues(
        best=best, worst=worst, std=std, died=died, sharpe=float(np.median(ratios)) if len(ratios) else None
    )
