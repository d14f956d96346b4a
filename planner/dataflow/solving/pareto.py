"""Drops candidates that no best plan needs.

A candidate x of a call gives way to another one, y, if the mesh of y lies within the mesh of x and y takes no more
time, static bytes, active bytes or host memory, no more for any transfer to or from any candidate of the other call,
and no more of its time beyond what it leads or is led by beside any candidate of the other call.

Proof. Replace x by y in any plan and keep the order. Every GPU used by y was used by x, so no two tasks compete that
did not before, and no task or transfer takes longer. In a fixed order each start is a maximum of earlier ends over a
set of tasks that has not grown; by induction along the order no task ends later. Leads: a call with a lead out of it
has none into it, so that it starts no later with y, and its child may start after its time less the lead, which has not
grown. A call with a lead into it may start later with y, but nothing follows its start: it ends after the end of its
parent, less the lead, and its own time, which has not grown. On every GPU the sum of static bytes and the largest
active bytes have not grown, nor have shares of host memory on any machine. So the new plan fits if the old one did and
is no slower. Calls that may share weights with a sibling need one more condition, since a candidate can be worth its
price by sharing: x gives way only to a y with the same mesh and layout, unless the sibling has no candidate with the
mesh and layout of x.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.problem import CallCandidates, DataflowProblem

_BLOCK_CELLS = 2_000_000  # pairs compared at once
_BLOCK_COLUMNS = 16  # of their costs at least; pairs that fail in some are not looked at in the next
_BLOCK_ENTRIES = 1 << 16  # and as many more as few pairs leave room for
_MORE_PAIRS = 4  # times as many of those that may beat a row are looked at in each round: one is enough


def useful_candidates(problem: DataflowProblem) -> tuple[IntArray, ...]:
    """Rows of each call that are not dominated, in their original order; of equal ones the first.

    Args:
        problem: Any problem; the best plan over the rows kept is as good as over all.
    """
    return tuple(_useful(problem, index) for index in range(len(problem.calls)))


@dataclass(frozen=True, slots=True)
class _Costs:
    """What must not grow.

    ``own``: seconds, bytes and, where it matters, share of host memory of each candidate, [candidates, columns].
    ``beside``: of each edge with a transfer or a lead, the class of each candidate, and seconds by class and class of
    the partner. ``after``: seconds that count beside them; those of the candidate where there is a lead.
    """

    own: FloatArray
    beside: tuple[tuple[IntArray, FloatArray], ...]
    after: tuple[FloatArray, ...]


def _useful(problem: DataflowProblem, index: int) -> IntArray:
    call = problem.calls[index]
    costs = _costs(problem, index)
    shareable, key = _sharing(problem, index)
    alive = np.arange(len(call))
    # Meshes as they are first: cheap, and usually most of what goes.
    alive = alive[
        ~_dominated(call, costs, shareable, key, alive, groups=call.start * (problem.num_gpus + 1) + call.size)
    ]
    return alive[~_dominated(call, costs, shareable, key, alive, groups=None)]


def _costs(problem: DataflowProblem, index: int) -> _Costs:
    call = problem.calls[index]
    beside, after = [], []
    for edge in problem.edges:
        for times, sign in ((edge.transfer, 1.0), (edge.lead, -1.0)):
            if times is None or index not in (edge.parent, edge.child):
                continue
            for end, classes, time_s in (
                (edge.parent, times.source_class, times.time_s),
                (edge.child, times.target_class, times.time_s.T),
            ):
                if end == index:
                    beside.append((classes, sign * time_s))
                    after.append(call.time_s * (sign < 0))
    host = [] if call.host_share is None else [call.host_share]
    own = np.stack([call.time_s, call.static_bytes, call.active_bytes, *host], axis=1)
    return _Costs(own, tuple(beside), tuple(after))


def _sharing(problem: DataflowProblem, index: int) -> tuple[BoolArray, IntArray]:
    """Which candidates a sibling may share weights with, and a key of mesh and layout."""
    call = problem.calls[index]
    fed = [(edge.child, edge.same.sibling) for edge in problem.edges if edge.same is not None]
    partners = [other for pair in (*problem.replicas, *fed) if index in pair for other in pair if other != index]
    mine = _keys(call)
    found = np.zeros(len(call), dtype=np.bool_)
    for partner in partners:
        found |= np.isin(mine, _keys(problem.calls[partner]))
    return found, mine


def _keys(call: CallCandidates) -> IntArray:
    from planner.dataflow.solving.problem import MOST_GPUS

    return (call.strategy_id * (MOST_GPUS + 1) + call.start) * (MOST_GPUS + 1) + call.size


def _dominated(
    call: CallCandidates,
    costs: _Costs,
    shareable: BoolArray,
    key: IntArray,
    alive: IntArray,
    groups: IntArray | None,
) -> BoolArray:
    gone = np.zeros(len(alive), dtype=np.bool_)
    if groups is None:
        parts = [np.arange(len(alive))]
    else:
        order = np.argsort(groups[alive], kind="stable")
        parts = np.split(order, 1 + np.flatnonzero(np.diff(groups[alive][order])))
    for part in parts:
        # Fastest first: only those before a candidate, and as fast ones, can dominate it.
        part = part[np.argsort(call.time_s[alive[part]], kind="stable")]
        time_s = call.time_s[alive[part]]
        block = max(1, _BLOCK_CELLS // len(part))
        for begin in range(0, len(part), block):
            rows = part[begin : begin + block]
            others = part[: np.searchsorted(time_s, time_s[begin : begin + block][-1], side="right")]
            gone[rows] = _block(call, costs, shareable, key, alive[rows], alive[others])
    return gone


def _block(
    call: CallCandidates, costs: _Costs, shareable: BoolArray, key: IntArray, rows: IntArray, others: IntArray
) -> BoolArray:
    """Which of ``rows`` some candidate among ``others`` dominates."""
    better = call.start[others] >= call.start[rows][:, None]
    better &= call.stop[others] <= call.stop[rows][:, None]
    for column in range(costs.own.shape[1]):
        better &= costs.own[others, column] <= costs.own[rows, column][:, None]
    better &= ~shareable[rows][:, None] | (key[others] == key[rows][:, None])
    row, other = np.divmod(np.flatnonzero(better), len(others))  # several times as fast as nonzero in two dimensions
    different = rows[row] != others[other]
    row, other = row[different], other[different]
    gone = np.zeros(len(rows), dtype=np.bool_)
    turn, round_ = np.arange(len(row)) - np.searchsorted(row, row), 1
    while len(row):  # a few pairs of each row, then more of those that are left
        now = turn < round_
        beaten = _beaten(call, costs, rows[row[now]], others[other[now]])
        gone[row[now][beaten]] = True
        rest = ~now & ~gone[row]
        row, other, turn, round_ = row[rest], other[rest], turn[rest], round_ * _MORE_PAIRS
    return gone


def _beaten(call: CallCandidates, costs: _Costs, x: IntArray, y: IntArray) -> BoolArray:
    """(P,) for pairs that agree with all but what is beside a partner, whether the first gives way to the second."""
    equal = (call.start[x] == call.start[y]) & (call.size[x] == call.size[y])
    equal &= (costs.own[x] == costs.own[y]).all(axis=1)
    pair = np.arange(len(x))  # those that have held so far
    for (classes, time_s), after_s in zip(costs.beside, costs.after, strict=True):
        begin = 0
        while begin < time_s.shape[1] and len(pair):
            columns = slice(begin, begin + max(_BLOCK_COLUMNS, _BLOCK_ENTRIES // len(pair)))
            begin = columns.stop
            own, others = (time_s[classes[end[pair]], columns] + after_s[end[pair], None] for end in (x, y))
            equal[pair] &= (others == own).all(axis=1)
            pair = pair[(others <= own).all(axis=1)]
    beaten = np.zeros(len(x), dtype=np.bool_)
    beaten[pair] = ~equal[pair] | (y[pair] < x[pair])
    return beaten
