"""Distinct rows of a few integer columns, in linear time."""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import IntArray

_SMALL = 1 << 16  # key range up to which columns are packed as they are: a table of it stays in the cache
_TABLE = 1 << 22  # largest key range looked up directly rather than sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Distinct rows of N: ``first`` (K,) a row of each group, ``of_row`` (N,) the group of each row."""

    first: IntArray
    of_row: IntArray

    def take(self, rows: IntArray) -> "Groups":
        """The grouping of the selected rows."""
        return group_rows(self.of_row[rows])


def group_rows(*columns: IntArray) -> Groups:
    """Group N rows that agree in every given column.

    Args:
        columns: Non-negative integer columns of length N.

    Returns:
        Groups, numbered in the order of their packed key (deterministic, not by appearance).
    """
    key, span = np.zeros(len(columns[0]), dtype=np.int64), 1
    if len(key) == 1:
        return Groups(first=key, of_row=key)
    for column in columns:
        width = int(column.max(initial=0)) + 1
        if width == 1:
            continue
        if span * width > _SMALL:
            key, span = _dense_codes(key, span)
            if span * width > _SMALL:
                column, width = _dense_codes(column, width)
        key = column if span == 1 else key * width + column
        span *= width
    of_row, count = _dense_codes(key, span)
    first = np.empty(count, dtype=np.int64)
    first[of_row[::-1]] = np.arange(len(of_row) - 1, -1, -1)
    return Groups(first=first, of_row=of_row)


def _dense_codes(column: IntArray, span: int) -> tuple[IntArray, int]:
    """(N,) codes 0..count-1 in the order of the values, all below ``span``, and how many there are."""
    if span > _TABLE:
        values, codes = np.unique(column, return_inverse=True)
        return codes.reshape(-1).astype(np.int64), len(values)
    present = np.zeros(span, dtype=np.bool_)
    present[column] = True
    values = np.flatnonzero(present)
    table = np.empty(span, dtype=np.int64)
    table[values] = np.arange(len(values))
    return np.take(table, column), len(values)
