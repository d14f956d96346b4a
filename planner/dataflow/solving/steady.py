"""How long plans take: until their last iteration ends, or per iteration once they have settled.

A plan whose tasks take turns in rounds that repeat is a system of ends, each the maximum over earlier ends plus times
that are the same in every round. With x_k the ends that later rounds wait for, n of them, its pace is the largest mean
time per round around any circle of waits, and that is (Karp, 1978, "A characterization of the minimum cycle mean in a
digraph"; the start is any state, since rounds before it add one source with one way to every end)

    max over ends v of min over 0 <= k < n of (x_n(v) - x_k(v)) / (n - k)

so that n + 1 rounds tell exactly at what pace infinitely many go on. Ends of each follow from those before by one table
of longest ways (``planner.dataflow.solving.recurrence``).
"""

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.recurrence import round_ends
from planner.dataflow.solving.schedule import (
    CHUNK_PLANS,
    PlanRows,
    end_times,
    lead_times,
    overlaps,
    slot_times,
    timeline,
)


def duration_s(problem: DataflowProblem, graph: TaskGraph, plans: PlanRows) -> FloatArray:
    """(P,) what a search minimises: seconds per settled iteration if the graph has rounds, else until the last end.

    Args:
        problem: Candidates and transfers.
        graph: Tasks and orders, from ``task_graph`` or ``settled_graph``.
        plans: Plans to simulate.
    """
    result = np.empty(len(plans))
    for begin in range(0, len(plans), CHUNK_PLANS):
        rows = slice(begin, begin + CHUNK_PLANS)
        part = PlanRows(choice=plans.choice[rows], order=plans.order[rows])
        if graph.recurrence is None:
            result[rows] = end_times(problem, graph, part)[0].max(axis=0)
            continue
        times = slot_times(problem, part.choice)
        conflict, leads = overlaps(problem, part.choice, times), lead_times(problem, part.choice)
        result[rows] = _pace_s(round_ends(graph.recurrence, part.order, times, leads, conflict))
    return result


def soonest_order(problem: DataflowProblem, graph: TaskGraph, choice: IntArray, slack: float) -> int:
    """Of the orders in which a settled plan is fastest, the one whose first iterations are over first.

    Args:
        problem: Candidates and transfers.
        graph: Tasks and orders.
        choice: Candidate of each call. [calls]
        slack: By which share an order may be slower and still count as fast.
    """
    orders = np.arange(len(graph.orders))
    plans = PlanRows(choice=np.repeat(choice[None], len(orders), axis=0), order=orders)
    time_s = duration_s(problem, graph, plans)
    as_fast = np.flatnonzero(time_s <= time_s.min() * (1 + slack))
    ends = timeline(problem, graph, plans.take(as_fast)).end_s
    return int(as_fast[ends[:, graph.iteration < problem.iterations].max(axis=1).argmin()])


def _pace_s(state_s: FloatArray) -> FloatArray:
    """(P,) seconds per round from the ends that later rounds wait for, after each of as many rounds and before any."""
    ahead = np.arange(len(state_s) - 1, 0, -1)[:, None, None]
    pace: FloatArray = ((state_s[-1] - state_s[:-1]) / ahead).min(axis=0).max(axis=0)
    return pace
