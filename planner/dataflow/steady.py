"""Seconds per iteration once a workflow has settled.

The end of the whole run less that of the first iteration, over the iterations between, understates it when a call of
the first iteration is put off behind the second: the first then ends late. Every call recurs once per iteration, so
the slowest of their paces is taken, and never less than the work of the busiest GPU.
"""

import numpy as np

from costmodels.plan import FloatArray
from planner.dataflow.orders import TaskGraph


def steady_s(end_s: FloatArray, graph: TaskGraph, num_calls: int) -> FloatArray:
    """(P,) seconds per iteration of P plans.

    Args:
        end_s: End of every task. [P, tasks]
        graph: Tasks and their iterations.
        num_calls: Calls of the problem; slots below it are calls.
    """
    last = int(graph.iteration.max())
    if last == 0:
        return np.asarray(end_s.max(axis=1))
    paces = []
    for call in range(num_calls):
        tasks = np.flatnonzero(graph.slot == call)
        order = tasks[np.argsort(graph.iteration[tasks])]
        paces.append((end_s[:, order[-1]] - end_s[:, order[0]]) / last)
    return np.asarray(np.max(paces, axis=0))
