"""Where the weights of a call lie between its runs, and what that changes about the call.

A call's table (``planner.dataflow.call_costs``) says what it holds and what it takes beyond that while it
runs. Between runs those bytes may stay, go to the host, or need not exist at all:

* ``resident``: they stay. Calls of one role with the same shards on the same mesh hold them once.
* ``fetched``: weights of a role that is never trained, or of which adapters alone are, lie on the host and are read
  before each run.
* ``delivered``: weights of a role that is trained elsewhere arrive with each transfer and are dropped after the run.
* ``states_out``: gradients and optimizer states of a training call lie on the host between runs.
* ``all_out``: its weights too.

Bytes that come and go count as active rather than static, and what crosses the host link takes time:
nothing is assumed to hide behind computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np

from costmodels.model_calls import CallTable
from costmodels.plan import BoolArray, FloatArray, IntArray

_TOGETHER = 64  # rows compared at once with those that are kept

RESIDENT, FETCHED, DELIVERED, STATES_OUT, ALL_OUT = range(5)
HOLDING_NAMES = ("resident", "fetched", "delivered", "states_out", "all_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRows:
    """Ways to run and to hold one call, without a place. Arrays have one entry per row.

    Attributes:
        table: Ways to run it, as priced.
        row: Row of the table.
        machines: Kind of machines it is priced on, as its number among the groups of the cluster.
        holding: Code of ``HOLDING_NAMES``.
        layout: Identity of the layout of its weights within the role.
        time_s, low_s, high_s: Seconds with what crosses the host link, and 90 % interval.
        static_bytes: Per GPU, between runs.
        active_bytes: Per GPU, beyond that during a run.
        host_bytes: Per GPU, in host memory between runs.
        moved_s: The part of the time that is traffic with the host.
        ready_s: When each part of its output is there, in seconds after its start; of no parts where nobody asks.
        parts: In how many it takes its input as that is written; 0 where it waits for all of it.
    """

    table: CallTable
    row: IntArray
    machines: IntArray
    holding: IntArray
    layout: IntArray
    time_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    static_bytes: FloatArray
    active_bytes: FloatArray
    host_bytes: FloatArray
    moved_s: FloatArray
    ready_s: FloatArray
    parts: IntArray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def size(self) -> IntArray:
        """GPUs of each row."""
        return self.table.num_devices[self.row]

    def take(self, rows: IntArray) -> "CallRows":
        """The selected rows."""
        columns = [item.name for item in fields(self) if item.name != "table"]
        return CallRows(table=self.table, **{name: getattr(self, name)[rows] for name in columns})


def held_rows(
    table: CallTable,
    layout: IntArray,
    holdings: Sequence[int],
    host_bytes_per_s: Sequence[float],
    machines: IntArray | None = None,
    *,
    ready: FloatArray | None = None,
    parts: IntArray | None = None,
) -> CallRows:
    """Every row of a table under every holding.

    Args:
        table: Ways to run the call.
        layout: (R,) identity of each row's layout within the role.
        holdings: Codes that may be used.
        host_bytes_per_s: Of the link between one GPU and host memory, per direction, for each kind of machines.
        machines: (R,) kind of machines each row is priced on; all on the first if None.
        ready: (R, K) when each part of the output is there, as a share of the time without the host; None if nobody
            asks.
        parts: (R,) parts in which input is taken as it is written; None if all of it is waited for.

    Returns:
        Rows in the order of the holdings.
    """
    count = len(table)
    row = np.tile(np.arange(count), len(holdings))
    holding = np.repeat(np.asarray(holdings, dtype=np.int64), count)
    static, active, weights = table.static_bytes[row], table.active_bytes[row], table.weight_bytes[row]
    states = static - weights
    gone = np.select([holding == RESIDENT, holding == STATES_OUT], [np.zeros(len(row)), states], default=static)
    on_host = np.where(holding == DELIVERED, 0.0, gone)
    # Frozen weights are only read; states of a training call are read before it and written after it.
    crossings = np.where(holding == FETCHED, 1.0, 2.0)
    kind = np.zeros(len(row), dtype=np.int64) if machines is None else machines[row]
    moved_s = on_host * crossings / np.asarray(host_bytes_per_s)[kind]
    return CallRows(
        table=table,
        row=row,
        machines=kind,
        holding=holding,
        layout=layout[row],
        time_s=table.time_s[row] + moved_s,
        low_s=table.low_s[row] + moved_s,
        high_s=table.high_s[row] + moved_s,
        static_bytes=static - gone,
        active_bytes=active + gone,
        host_bytes=on_host,
        moved_s=moved_s,
        # What reads early reads from calls that are not trained, whose traffic with the host comes first.
        ready_s=np.zeros((len(row), 0)) if ready is None else moved_s[:, None] + ready[row] * table.time_s[row, None],
        parts=np.zeros(len(row), dtype=np.int64) if parts is None else parts[row],
    )


def shareable(rows: CallRows, trained: IntArray) -> BoolArray:
    """(R,) whether a resident row may hold the same shards as the call that trains its role.

    Args:
        rows: Ways to run and hold a call.
        trained: Layouts the training call has.
    """
    return np.asarray((rows.holding == RESIDENT) & np.isin(rows.layout, trained))


def useful_rows(rows: CallRows, *, slack_s: float, tolerance_s: float, kept: BoolArray) -> CallRows:
    """Rows without those that no plan worth telling apart needs.

    A row goes when another on as many GPUs of the same kind takes no more static, active and host bytes, no fewer
    parts of its input, and its time, and that of each part of its output, is no longer by more than the tolerance: of
    the same layout, or shorter by ``slack_s`` of any layout, since no transfer can make up for that.

    Args:
        rows: Ways to run and hold one call.
        slack_s: Most that moving weights to or from one layout may cost above another; 0 when none move.
        tolerance_s: Seconds that are not worth telling apart.
        kept: (R,) rows that only one of the same layout and holding may beat, because they may share weights.
    """
    layouts = int(rows.layout.max(initial=0)) + 1
    kinds = int(rows.machines.max(initial=0)) + 1
    place = rows.size * kinds + rows.machines
    first = _unbeaten(rows, (place * layouts + rows.layout) * 2 + kept, tolerance_s, np.zeros(len(rows), dtype=bool))
    rows, kept, place = rows.take(first), kept[first], place[first]
    return rows.take(_unbeaten(rows, place, (tolerance_s if slack_s == 0 else 0.0) - slack_s, kept))


def _unbeaten(rows: CallRows, group: IntArray, allowance_s: float, stays: BoolArray) -> IntArray:
    """Rows that no row kept of their group beats: smaller in all kinds of bytes, and slower by the allowance at most.

    Rows are looked at from the smallest on, so that what beats a row is itself kept and allowances never add up.
    """
    order = np.lexsort((rows.host_bytes, rows.time_s, rows.active_bytes, rows.static_bytes, group))
    if not len(order):
        return order
    held = (rows.static_bytes, rows.active_bytes, rows.host_bytes, -rows.parts)
    costs = np.stack([rows.time_s, *rows.ready_s.T, *held])[:, order]
    most = costs.copy()  # that a row may cost beside those that it beats
    most[: 1 + rows.ready_s.shape[1]] += allowance_s
    stays = stays[order]
    begins = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] - 1))
    found: list[IntArray] = []
    for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
        kept = np.zeros(0, dtype=np.int64)  # of the group at hand
        for at in range(begin, end, _TOGETHER):
            block = np.arange(at, min(at + _TOGETHER, end))
            block = block[stays[block] | ~_beats(costs[:, kept], most[:, block]).any(axis=0)]
            kept = np.concatenate([kept, block[_unbeaten_in_turn(costs[:, block], most[:, block], stays[block])]])
        found.append(kept)
    return order[np.concatenate(found)]


def _beats(costs: FloatArray, most: FloatArray) -> BoolArray:
    """(K, R) whether each of K rows costs no more in anything than each of R others may; columns of both."""
    none = np.ones((costs.shape[1], most.shape[1]), dtype=np.bool_)
    return reduce(np.logical_and, (cost[:, None] <= limit for cost, limit in zip(costs, most, strict=True)), none)


def _unbeaten_in_turn(costs: FloatArray, most: FloatArray, stays: BoolArray) -> BoolArray:
    """(R,) which rows no kept row before them beats."""
    beats = np.triu(_beats(costs, most), 1)
    kept = stays | ~beats.any(axis=0)
    for row in np.flatnonzero(~kept):  # of those that some row before them beats, where that is kept itself
        kept[row] = not (beats[:, row] & kept).any()
    return kept
