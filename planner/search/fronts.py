"""Pareto fronts of many groups of rows at once."""

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray

_LEVELS = 16  # how finely values of the further columns are told apart when looking for a better row


def nondominated(group: IntArray, values: FloatArray) -> IntArray:
    """Rows that no other row of their group is seen to beat, and one of those that are equal.

    Row a beats row b if it is no larger in any column. Every row on the front is kept. Of the others all
    are dropped with one or two columns; with more, those whose better row differs enough in the further
    columns to be told apart, which is a matter of speed, not of the answer.

    Args:
        group: (K,) group of each row.
        values: (K, D) what is compared, smaller is better; D at least 1.

    Returns:
        Row numbers, in ascending order.
    """
    varies = (values != values[:1]).any(axis=0)
    values = values[:, varies] if varies.any() else values[:, :1]
    rows = np.lexsort((*values.T[::-1], group))
    kept = rows[~_beaten(group[rows], values[rows])]
    for _ in range(values.shape[1] - 2):  # other columns first: each order finds others
        values = np.roll(values, 1, axis=1)
        again = kept[np.lexsort((*values[kept].T[::-1], group[kept]))]
        kept = again[~_beaten(group[again], values[again])]
    return np.sort(kept)


def _beaten(group: IntArray, values: FloatArray) -> BoolArray:
    """(K,) whether an earlier row of the same group is no larger in any column; rows sorted by group and columns."""
    if not len(group):
        return np.zeros(0, dtype=np.bool_)
    if values.shape[1] == 1:
        return np.concatenate([[False], group[1:] == group[:-1]])
    ranks = np.column_stack([np.unique(column, return_inverse=True)[1].reshape(-1) for column in values.T])
    beaten = _equal_to_previous(group, ranks)
    further = ranks[:, 2:]
    if not further.shape[1]:
        return beaten | (_least_before(group, ranks[:, 1], np.ones(len(group), dtype=np.bool_)) <= ranks[:, 1])
    worst = further.max(axis=1)
    levels = np.unique(np.quantile(worst, np.linspace(0.0, 1.0, _LEVELS + 1)).astype(np.int64))
    for level in levels:
        # A row whose further columns are all at most the level beats rows whose are all at least the level.
        candidates = worst <= level
        compared = further.min(axis=1) >= level
        beaten |= compared & (_least_before(group, ranks[:, 1], candidates) <= ranks[:, 1])
    return beaten


def _equal_to_previous(group: IntArray, ranks: IntArray) -> BoolArray:
    same = (group[1:] == group[:-1]) & (ranks[1:] == ranks[:-1]).all(axis=1)
    return np.concatenate([[False], same])


def _least_before(group: IntArray, rank: IntArray, candidates: BoolArray) -> IntArray:
    """(K,) the smallest rank of earlier candidates of the same group; groups are contiguous."""
    most = int(rank.max(initial=0)) + 2
    order = np.cumsum(np.concatenate([[0], (group[1:] != group[:-1]).astype(np.int64)]))
    # Later groups lie below earlier ones, so a running minimum starts anew with each group.
    lowered = np.where(candidates, rank, most - 1) - order * most
    before = np.concatenate([[most], np.minimum.accumulate(lowered)[:-1]]) + order * most
    least: IntArray = np.minimum(before, most)
    return least
