"""When every call runs: simulation of many plans at once over GPU intervals.

A task starts once its parents have ended, or will have after a lead, and every GPU of its mesh is free; tasks take
turns on a GPU in the plan's order. Calls hold one interval of GPUs, so a mesh is busy until the latest end of an
earlier task whose mesh overlaps it. Only the last task of each call matters for that, hence the work per plan does not
grow with the number of GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.orders import TaskGraph
from planner.dataflow.problem import DataflowProblem

CHUNK_PLANS = 4096  # rows simulated at once; fits the cache, and more do not run faster
_ROWS_PER_ORDER = 24  # plans of one order from which on it pays to simulate them by themselves


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
            times.append(edge.transfer.price(choice[:, edge.parent], choice[:, edge.child]))
    return np.stack(times)


def lead_times(problem: DataflowProblem, choice: IntArray) -> FloatArray:
    """Seconds before the end of its parent that the child of each lead may start. [leads, P]."""
    found = [
        edge.lead.price(choice[:, edge.parent], choice[:, edge.child])
        for edge in problem.leading
        if edge.lead is not None
    ]
    return np.stack(found) if found else np.zeros((0, len(choice)))


def overlaps(problem: DataflowProblem, choice: IntArray, times: FloatArray) -> BoolArray:
    """Which slots (calls, then transfers) compete for a GPU; a transfer without time never does. [slots, slots, P]."""
    start = np.stack([call.start[choice[:, index]] for index, call in enumerate(problem.calls)])
    stop = np.stack([call.stop[choice[:, index]] for index, call in enumerate(problem.calls)])
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
    conflict = overlaps(problem, plans.choice, times).astype(np.float64)
    leads = lead_times(problem, plans.choice)
    orders = np.unique(plans.order)
    if len(orders) > 1 and len(plans) < _ROWS_PER_ORDER * len(orders):
        return _run_mixed(graph, plans.order, times, leads, conflict), times[graph.slot]
    end_s = np.empty((len(graph.slot), len(plans)))
    for order in orders:
        rows = slice(None) if len(orders) == 1 else np.flatnonzero(plans.order == order)
        end_s[:, rows] = _run(graph, order, times[:, rows], leads[:, rows], conflict[:, :, rows])
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
    graph: TaskGraph, order: IntArray, times: FloatArray, leads: FloatArray, conflict: FloatArray
) -> FloatArray:
    """The same with an order of its own for every plan; fewer and larger steps when few plans share an order."""
    tasks, plans = len(graph.slot), len(order)
    # A task past the last one, which ends at once, stands in for missing parents.
    parents = _padded(graph.parents, tasks)
    if graph.leads:
        early = _padded([[task for task, _ in found] for found in graph.leads], tasks)
        lead_of = _padded([[lead for _, lead in found] for found in graph.leads], len(leads))
        leads = np.concatenate([leads, np.zeros((1, plans))])
    column = np.arange(plans)
    busy_until = np.zeros((plans, len(times)))
    end_s = np.zeros((tasks + 1, plans))
    for task in graph.orders[order].T:
        slot = graph.slot[task]
        start = (conflict[slot, :, column] * busy_until).max(axis=1)
        np.maximum(start, end_s[parents[task], column[:, None]].max(axis=1), out=start)
        if graph.leads:
            released = end_s[early[task], column[:, None]] - leads[lead_of[task], column[:, None]]
            np.maximum(start, released.max(axis=1), out=start)
        start += times[slot, column]
        end_s[task, column] = start
        busy_until[column, slot] = start
    return end_s[:tasks]


def _padded(rows: Sequence[Sequence[int]], filler: int) -> IntArray:
    """Rows of one length, at least 1. [rows, length]."""
    most = max(1, *(len(row) for row in rows))
    return np.array([[*row, *[filler] * (most - len(row))] for row in rows], dtype=np.int64)
