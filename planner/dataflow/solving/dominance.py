"""Rows of a call table that no search can want: another with the same layout is no slower and no larger.

Exact: a row goes only when a row with the same devices, engine and degrees is at least as good in time, in static and
in active memory, and in when each part of its output is there where that is told. Reallocations and schedules depend on
layouts and times alone, so the best plan survives. Rows are never dropped by count.
"""

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.model_calls import CallTable
from costmodels.plan import BoolArray, IntArray


def undominated(table: CallTable) -> CallTable:
    """The table without dominated rows, by layout, fastest first, in a fixed order."""
    layout = table.layout()
    group = group_rows(*layout.T).of_row
    order = np.lexsort((table.active_bytes, table.static_bytes, table.time_s, group))
    kept = ~_dominated(table.take(order), group[order])
    return table.take(order[kept])


def _dominated(table: CallTable, group: IntArray) -> BoolArray:
    """(R,) whether an earlier row of the same group is at most as large in every respect.

    Rows are sorted by time within a group, then by size: a row can only be dominated by one before it.
    """
    worse = np.zeros(len(table), dtype=np.bool_)
    largest_group = int(np.bincount(group).max(initial=1))
    for distance in range(1, largest_group):
        if distance >= len(table):
            break
        same = group[distance:] == group[:-distance]
        no_larger = (table.static_bytes[:-distance] <= table.static_bytes[distance:]) & (
            table.active_bytes[:-distance] <= table.active_bytes[distance:]
        )
        if table.ready is not None:
            ready_s = table.ready * table.time_s[:, None]
            no_larger &= (ready_s[:-distance] <= ready_s[distance:]).all(axis=1)
        worse[distance:] |= same & no_larger
    return worse
