"""Columns, sums and extremes of few, what lies between two bounds: the same to the last bit for many plans."""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray, IntArray


def total(terms: Iterable[FloatArray]) -> FloatArray:
    """Sum of the terms, added in order; the rows of a table, or its columns when given transposed.

    NumPy's own sum over an axis groups the terms by the shape of the array, so that a plan alone and
    the same plan in a batch would differ in the last bit.
    """
    return reduce(np.add, terms)


def as_column(each: FloatArray | float) -> FloatArray | float:
    """(N,) values as (N, 1), to go with the stages of plans; a number as it is."""
    return each[:, None] if isinstance(each, np.ndarray) else each


def largest(table: FloatArray) -> FloatArray:
    """(N,) largest of the few columns of an (N, S) table, many times faster than a reduction row by row."""
    return reduce(np.maximum, table.T)


def largest_column(table: FloatArray) -> IntArray:
    """(N,) number of the first column that holds the largest value of each row of an (N, S) table."""
    best, column = table[:, 0], np.zeros(len(table), dtype=np.int64)
    for number in range(1, table.shape[1]):
        better = table[:, number] > best
        column[better] = number
        best = np.where(better, table[:, number], best)
    return column


def smooth_maximum(first: FloatArray, second: FloatArray, sharpness: float) -> FloatArray:
    """The p-norm of two columns of seconds; ``sharpness`` p = infinity is the plain maximum."""
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    share = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger > 0)
    return np.asarray(larger * np.power(1 + np.power(share, sharpness), 1 / sharpness), dtype=float)


def at_column(table: NDArray[Any], column: IntArray) -> NDArray[Any]:
    """(N,) the value of each row of an (N, S) table in the given column."""
    picked: NDArray[Any] = np.take(table.ravel(), np.arange(len(table)) * table.shape[1] + column)
    return picked


def alike(columns: NDArray[Any]) -> Iterator[tuple[NDArray[Any], IntArray]]:
    """Every distinct column of a (C, N) table, ascending, with the places where it stands."""
    keys, of_place = np.unique(columns, axis=1, return_inverse=True)
    order = np.argsort(of_place, kind="stable")
    bounds = np.searchsorted(of_place[order], np.arange(keys.shape[1] + 1))
    for number, key in enumerate(keys.T):
        yield key, order[bounds[number] : bounds[number + 1]]


def halved(
    low: FloatArray, high: FloatArray, below: Callable[[FloatArray], BoolArray], *, times: int
) -> tuple[FloatArray, FloatArray]:
    """The ends of intervals that were halved so often, of which each keeps the half with what is sought.

    Args:
        low: What is sought is not below these, of any shape.
        high: Nor above these.
        below: Whether each of such values lies below what is sought.
        times: Halvings.
    """
    for _ in range(times):
        middle = (low + high) / 2
        up = below(middle)
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    return low, high
