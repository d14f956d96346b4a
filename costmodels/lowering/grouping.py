"""Distinct rows of a few integer columns, in linear time."""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import IntArray

_TABLE_LIMIT = 1 << 22  # largest value or key range looked up directly rather than sorted


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
    key = np.zeros(len(columns[0]), dtype=np.int64)
    cardinality = 1
    for column in columns:
        codes, count = _dense_codes(np.asarray(column, dtype=np.int64))
        if cardinality * count > _TABLE_LIMIT:
            key, cardinality = _dense_codes(key)
        key = key * count + codes
        cardinality *= count
    of_row, count = _dense_codes(key)
    first = np.empty(count, dtype=np.int64)
    first[of_row[::-1]] = np.arange(len(of_row) - 1, -1, -1)
    return Groups(first=first, of_row=of_row)


def _dense_codes(column: IntArray) -> tuple[IntArray, int]:
    """(N,) codes 0..count-1 in the order of the values, and how many there are."""
    largest = int(column.max(initial=0))
    if largest < _TABLE_LIMIT:
        present = np.zeros(largest + 1, dtype=np.int64)
        present[column] = 1
        table = np.cumsum(present) - 1
        return table[column], int(table[-1]) + 1
    values, codes = np.unique(column, return_inverse=True)
    return codes.astype(np.int64), len(values)
