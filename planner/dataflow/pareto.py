"""Drops candidates that no best plan needs.

A candidate x of a call gives way to another one, y, if the mesh of y lies within the mesh of x and y takes no more
time,
static bytes or active bytes, and no more for any transfer to or from any candidate of the other call.

Proof. Replace x by y in any plan and keep the order. Every GPU used by y was used by x, so no two tasks compete that
did
not before, and no task or transfer takes longer. In a fixed order each start is a maximum of earlier ends over a set
of
tasks that has not grown; by induction along the order no task ends later. On every GPU the sum of static bytes and
the
largest active bytes have not grown. So the new plan fits if the old one did and is no slower. Calls that may share
weights
with a sibling need one more condition, since a candidate can be worth its price by sharing: x gives way only to a y
with
the same mesh and layout, unless the sibling has no candidate with the mesh and layout of x.
"""

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.problem import CallCandidates, DataflowProblem

_BLOCK_CELLS = 2_000_000  # pairs compared at once
_BLOCK_COLUMNS = 16  # of their costs; pairs that fail in some are not looked at in the next


def useful_candidates(problem: DataflowProblem) -> tuple[IntArray, ...]:
    """Rows of each call that are not dominated, in their original order; of equal ones the first.

    Args:
        problem: Any problem; the best plan over the rows kept is as good as over all.
    """
    return tuple(_useful(problem, index) for index in range(len(problem.calls)))


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


def _costs(problem: DataflowProblem, index: int) -> FloatArray:
    """What must not grow, a row per candidate: time, bytes, and a column per partner class of a transfer."""
    call = problem.calls[index]
    columns = [np.stack([call.time_s, call.static_bytes, call.active_bytes], axis=1)]
    for edge in problem.edges:
        if edge.transfer is None:
            continue
        if edge.parent == index:
            columns.append(edge.transfer.time_s[edge.transfer.source_class])
        if edge.child == index:
            columns.append(edge.transfer.time_s.T[edge.transfer.target_class])
    return np.concatenate(columns, axis=1)


def _sharing(problem: DataflowProblem, index: int) -> tuple[BoolArray, IntArray]:
    """Which candidates a sibling may share weights with, and a key of mesh and layout."""
    call = problem.calls[index]
    partners = [other for pair in problem.replicas if index in pair for other in pair if other != index]
    mine = _keys(call)
    found = np.zeros(len(call), dtype=np.bool_)
    for partner in partners:
        found |= (mine[:, None] == np.unique(_keys(problem.calls[partner]))[None, :]).any(axis=1)
    return found, mine


def _keys(call: CallCandidates) -> IntArray:
    from planner.dataflow.problem import MOST_GPUS

    return (call.strategy_id * (MOST_GPUS + 1) + call.start) * (MOST_GPUS + 1) + call.size


def _dominated(
    call: CallCandidates,
    costs: FloatArray,
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
        block = max(1, _BLOCK_CELLS // len(part))
        for begin in range(0, len(part), block):
            rows = part[begin : begin + block]
            gone[rows] = _block(call, costs, shareable, key, alive[rows], alive[part])
    return gone


def _block(
    call: CallCandidates, costs: FloatArray, shareable: BoolArray, key: IntArray, rows: IntArray, others: IntArray
) -> BoolArray:
    """Which of ``rows`` some candidate among ``others`` dominates."""
    better = call.start[others] >= call.start[rows][:, None]
    better &= call.stop[others] <= call.stop[rows][:, None]
    for column in range(3):
        better &= costs[others, column] <= costs[rows, column][:, None]
    better &= ~shareable[rows][:, None] | (key[others] == key[rows][:, None])
    row, other = np.nonzero(better)
    different = rows[row] != others[other]
    row, other = row[different], other[different]
    equal = (call.start[rows[row]] == call.start[others[other]]) & (call.size[rows[row]] == call.size[others[other]])
    for begin in range(0, costs.shape[1], _BLOCK_COLUMNS):
        x, y = costs[rows[row], begin : begin + _BLOCK_COLUMNS], costs[others[other], begin : begin + _BLOCK_COLUMNS]
        holds = (y <= x).all(axis=1)
        equal = (equal & (y == x).all(axis=1))[holds]
        row, other = row[holds], other[holds]
    wins = ~equal | (others[other] < rows[row])
    gone = np.zeros(len(rows), dtype=np.bool_)
    gone[row[wins]] = True
    return gone
