"""When every call runs: simulation of many plans at once over GPU intervals.

A task starts once its parents have ended, or will have after a lead, and every GPU of its mesh is free; tasks take
turns on a GPU in the plan's order. Calls hold one interval of GPUs, so a mesh is busy until the latest end of an
earlier task whose mesh overlaps it. Only the last task of each call matters for that, hence the work per plan does not
grow with the number of GPUs.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.turns import holding

CHUNK_PLANS = 4096  # rows simulated at once; fits the cache, and more do not run faster
_MIXED_PLANS = 512  # with orders of their own played at once: more do not fit the cache
_WAIT_CELLS = 1 << 17  # waits of all plans looked up at once; few enough to stay in the cache
_ROWS_PER_ORDER = 96  # plans of one order from which on it pays to simulate them by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRows:
    """P plans of one problem.

    Attributes:
        choice: Candidate of each call. [P, calls]
        order: Row of the problem's table of orders. [P]
    """

    choice: IntArray
    order: IntArray

    def __len__(self) -> int:
        return len(self.order)

    def take(self, rows: IntArray | BoolArray) -> "PlanRows":
        """Only the given plans."""
        return PlanRows(choice=self.choice[rows], order=self.order[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Start and end of every task of P plans, by task of the graph. [P, tasks]."""

    start_s: FloatArray
    end_s: FloatArray

    @property
    def makespan_s(self) -> FloatArray:
        """When the last task of each plan ends, shape [P]."""
        latest: FloatArray = self.end_s.max(axis=1)
        return latest


def makespan(problem: DataflowProblem, graph: TaskGraph, plans: PlanRows) -> FloatArray:
    """Seconds until the last iteration of each plan ends. [P].

    Args:
        problem: Candidates and transfers.
        graph: Tasks and orders, from ``task_graph(problem)``.
        plans: Plans to simulate; rows of ``choice`` must be candidates of the problem.
    """
    result = np.empty(len(plans))
    for begin in range(0, len(plans), CHUNK_PLANS):
        rows = slice(begin, begin + CHUNK_PLANS)
        part = PlanRows(choice=plans.choice[rows], order=plans.order[rows])
        result[rows] = end_times(problem, graph, part)[0].max(axis=0)
    return result


def timeline(problem: DataflowProblem, graph: TaskGraph, plans: PlanRows) -> Timeline:
    """Start and end of every task; ``makespan`` gives the same times and is leaner.

    Args:
        problem: Candidates and transfers.
        graph: Tasks and orders, from ``task_graph(problem)``.
        plans: Plans to simulate.
    """
    end_s, duration_s = end_times(problem, graph, plans)
    return Timeline(start_s=(end_s - duration_s).T, end_s=end_s.T)


def slot_times(problem: DataflowProblem, choice: IntArray) -> FloatArray:
    """Duration of every call, then of every transfer, in the order of the edges that have one. [slots, P]."""
    times = [call.time_s[choice[:, index]] for index, call in enumerate(problem.calls)]
    for edge in problem.edges:
        if edge.transfer is not None:
            moved_s = edge.transfer.price(choice[:, edge.parent], choice[:, edge.child])
            if edge.same is not None:
                moved_s = np.where(edge.same.serves(choice[:, edge.child], choice[:, edge.same.sibling]), 0.0, moved_s)
            times.append(moved_s)
    return np.stack(times)


def lead_times(problem: DataflowProblem, choice: IntArray) -> FloatArray:
    """Seconds before the end of its parent that the child of each lead may start. [leads, P]."""
    found = [
        edge.lead.price(choice[:, edge.parent], choice[:, edge.child])
        for edge in problem.leading
        if edge.lead is not None
    ]
    return np.stack(found) if found else np.zeros((0, len(choice)))


def spans(problem: DataflowProblem, choice: IntArray) -> tuple[IntArray, IntArray]:
    """First GPU of every call, and one past its last. [calls, P] each."""
    start = np.stack([call.start[choice[:, index]] for index, call in enumerate(problem.calls)])
    stop = np.stack([call.stop[choice[:, index]] for index, call in enumerate(problem.calls)])
    return start, stop


def overlaps(problem: DataflowProblem, choice: IntArray, times: FloatArray) -> BoolArray:
    """Which slots (calls, then transfers) compete for a GPU; a transfer without time never does. [slots, slots, P]."""
    start, stop = spans(problem, choice)
    calls, plans = start.shape
    slots = len(times)
    both = np.zeros((slots, slots, plans), dtype=np.bool_)
    both[:calls, :calls] = (start[:, None] < stop[None]) & (start[None] < stop[:, None])
    moves = [edge for edge in problem.edges if edge.transfer is not None]
    for slot, edge in enumerate(moves, start=calls):
        busy = times[slot] > 0
        both[slot, :slot] = (both[edge.parent, :slot] | both[edge.child, :slot]) & busy
        both[:slot, slot] = both[slot, :slot]
        both[slot, slot] = busy
    return both


def end_times(problem: DataflowProblem, graph: TaskGraph, plans: PlanRows) -> tuple[FloatArray, FloatArray]:
    """End and duration of every task, all plans at once. [tasks, P].

    Args:
        problem: Candidates and transfers.
        graph: Tasks and orders.
        plans: Plans to simulate, at most about ``CHUNK_PLANS``.
    """
    times = slot_times(problem, plans.choice)
    conflict = overlaps(problem, plans.choice, times)
    leads = lead_times(problem, plans.choice)
    orders = np.unique(plans.order)
    if len(orders) > 1 and len(plans) < _ROWS_PER_ORDER * len(orders):
        parts = [slice(begin, begin + _MIXED_PLANS) for begin in range(0, len(plans), _MIXED_PLANS)]
        ends = [
            _run_mixed(graph, plans.order[part], times[:, part], leads[:, part], conflict[:, :, part]) for part in parts
        ]
        return np.concatenate(ends, axis=1), times[graph.slot]
    end_s = np.empty((len(graph.slot), len(plans)))
    busy = conflict.astype(np.float64)
    for order in orders:
        rows = slice(None) if len(orders) == 1 else np.flatnonzero(plans.order == order)
        end_s[:, rows] = _run(graph, order, times[:, rows], leads[:, rows], busy[:, :, rows])
    return end_s, times[graph.slot]


def _run(graph: TaskGraph, order: int, times: FloatArray, leads: FloatArray, conflict: FloatArray) -> FloatArray:
    slots, plans = times.shape
    busy_until = np.zeros((slots, plans))
    end_s = np.empty((len(graph.slot), plans))
    for task in graph.orders[order]:
        slot = graph.slot[task]
        start = (conflict[slot] * busy_until).max(axis=0)
        for parent in graph.parents[task]:
            np.maximum(start, end_s[parent], out=start)
        for parent, lead in graph.leads[task] if graph.leads else ():
            np.maximum(start, end_s[parent] - leads[lead], out=start)
        np.add(start, times[slot], out=end_s[task])
        busy_until[slot] = end_s[task]
    return end_s


def _run_mixed(
    graph: TaskGraph, order: IntArray, times: FloatArray, leads: FloatArray, conflict: BoolArray
) -> FloatArray:
    """The same with an order of its own for every plan; fewer and larger steps when few plans share an order."""
    turns, waits = graph.turns, graph.turns.ends
    tasks, plans = len(graph.slot), len(order)
    column = np.arange(plans)
    took_s = times[turns.slot[:, order], column]
    holds = holding(conflict, turns.slots)
    own = (column * holds.shape[1])[:, None]
    # By position; the first, which ends at once, stands in for what there is not to wait for.
    end_s = np.zeros((tasks + 1, plans))
    flat = end_s.reshape(-1)
    begin = 0
    while begin < tasks:
        # As many positions at a time as a cache holds the waits of.
        most = waits.first[begin] + max(_WAIT_CELLS // plans, 1)
        until = max(int(np.searchsorted(waits.first, most, side="right")) - 1, begin + 1)
        part = slice(waits.first[begin], waits.first[until])
        position = waits.position[order, part]
        position *= holds.take(waits.reason[order, part] + own)
        place = position.T * np.int64(plans)
        place += column
        bounds = (waits.first[begin : until + 1] - part.start).tolist()
        for task in range(begin, until):
            ended = flat.take(place[bounds[task - begin] : bounds[task - begin + 1]])
            start = np.maximum.reduce(ended, axis=0, initial=0.0)
            if turns.early is not None:
                early = slice(turns.early.first[task], turns.early.first[task + 1])
                waited = turns.early.position[order, early].T
                released = end_s[waited, column] - leads[turns.early.reason[order, early].T, column]
                # Data may also come late, but not what there is not to wait for.
                start = np.maximum(start, np.where(waited > 0, released, 0.0).max(axis=0, initial=0.0))
            np.add(start, took_s[task], out=end_s[task + 1])
        begin = until
    return end_s[turns.position[:, order], column]
