"""Enough iterations to tell the pace at which a workflow goes on for ever.

Once iterations wait for earlier ones in full, tasks take turns in *rounds* that repeat: a round begins with the first
call, and holds one task of every slot, not always of the same iteration. What an end depends on lies in its own round
or a few rounds back, equally far in every round. ``planner.dataflow.solving.steady`` reads the pace off as many such
rounds as there are ends to remember from one round to the next.
"""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.solving.orders import GRAPHS_KEPT, Rounds, Shape, TaskGraph, graph_of, shape_of
from planner.dataflow.solving.problem import MOST_ITERATIONS, DataflowProblem, Edge

_ITSELF = Edge(parent=0, child=0, lag=1)  # what every call waits for
_MANY_TASKS = 256  # played for one plan, beyond which judging many of them is costly
_LESS_AHEAD = 2  # iterations that are waited for at most while good plans are looked for among costly ones
_AROUND = 2  # iterations beyond the longest wait, so that it is met whole


def chained_iterations(problem: DataflowProblem) -> int:
    """Iterations that show the chains of a problem: all, or as many as settled ones need to come back around."""
    if not problem.settled:
        return problem.iterations
    return min(max(edge.lag for edge in (*problem.edges, _ITSELF)) + _AROUND, MOST_ITERATIONS)


def many_tasks(problem: DataflowProblem) -> bool:
    """Whether telling the pace of a plan takes many tasks, of which waiting for less far back would save a part."""
    slots = len(problem.calls) + len(problem.moving)
    longest = max((edge.lag for edge in problem.edges), default=1)
    return longest > _LESS_AHEAD and slots * (slots + 2 * min(longest, slots)) > _MANY_TASKS


def less_ahead(problem: DataflowProblem) -> DataflowProblem:
    """The same with nothing waiting for what is further back than a few iterations: plans are as fast, or slower."""
    return replace(problem, edges=tuple(replace(edge, lag=min(edge.lag, _LESS_AHEAD)) for edge in problem.edges))


def settled_graph(problem: DataflowProblem) -> TaskGraph:
    """Tasks and orders of as many iterations as tell the pace of every plan.

    Args:
        problem: Calls and edges; how many iterations it names does not matter.
    """
    slots = len(problem.calls) + len(problem.moving)
    # Waiting for what is further back than there are slots never holds anything up: on the way around such a wait lie
    # at most that many tasks, and what comes late beside them; and each task alone recurs no faster than it takes.
    late_s = sum(max(-float(edge.lead.time_s.min()), 0.0) for edge in problem.leading if edge.lead is not None)
    longest_s = max(float(call.time_s.min()) for call in problem.calls)
    if longest_s or not late_s:
        most = slots + 1 + (math.ceil(late_s / longest_s) if late_s else 0)
        problem = replace(problem, edges=tuple(replace(edge, lag=min(edge.lag, most)) for edge in problem.edges))
    return _settled(shape_of(problem))


@lru_cache(maxsize=GRAPHS_KEPT)
def _settled(shape: Shape) -> TaskGraph:
    slots = shape.calls + len(shape.moving)
    lag = max([1, *(edge.lag for edge in shape.edges)])
    count = 2 * lag + slots + 3
    while True:
        graph = graph_of(shape, count)
        table, offset = _tables(graph, slots)
        delays = _delays(graph, offset, slots)
        first = lag + max(delays) + int(np.abs(offset).max())
        missing = first + sum(delays) + 1 - table.shape[1]
        if missing <= 0:
            break
        count += missing
    kept = np.asarray([_repeats(graph, order, rounds, first - max(delays)) for order, rounds in enumerate(table)])
    if not kept.any():
        raise RuntimeError("no order of the calls repeats")
    rounds = Rounds(tasks=table[kept, : first + sum(delays) + 1], delays=delays)
    return replace(graph, orders=graph.orders[kept], rounds=rounds, complete=False)


def _tables(graph: TaskGraph, slots: int) -> tuple[IntArray, IntArray]:
    """Task of each slot in each whole round, by order, [orders, rounds, slots]; round less iteration, [orders, slots].

    Rounds that lack a task, at the very beginning, hold -1.
    """
    tasks = len(graph.slot)
    tables, offsets = [], []
    for order in graph.orders:
        number = np.empty(tasks, dtype=np.int64)
        number[order] = np.cumsum(graph.slot[order] == 0) - 1
        middle = graph.iteration == graph.iteration.max() // 2
        offset = np.zeros(slots, dtype=np.int64)
        offset[graph.slot[middle]] = (number - graph.iteration)[middle]
        whole = int(graph.iteration.max()) + 1 - int(np.abs(offset).max())
        table = np.full((whole, slots), -1, dtype=np.int64)
        inside = (number >= 0) & (number < whole)
        table[number[inside], graph.slot[inside]] = np.flatnonzero(inside)
        tables.append(table)
        offsets.append(offset)
    least = min(len(table) for table in tables)
    return np.stack([table[:least] for table in tables]), np.stack(offsets)


def _delays(graph: TaskGraph, offset: IntArray, slots: int) -> tuple[int, ...]:
    """How many rounds later the ends of each slot are still waited for, in any order; a slot waits for itself."""
    delays = [1] * slots
    for child in np.flatnonzero(graph.iteration == graph.iteration.max()).tolist():
        early = [task for task, _ in graph.leads[child]] if graph.leads else []
        for parent in (*graph.parents[child], *early):
            back = int(graph.iteration[child] - graph.iteration[parent])
            source = int(graph.slot[parent])
            delays[source] = max(delays[source], back + int((offset[:, graph.slot[child]] - offset[:, source]).max()))
    return tuple(delays)


def _repeats(graph: TaskGraph, order: int, rounds: IntArray, first: int) -> bool:
    """Whether all rounds from the first on hold the same slots of equally distant iterations in the same order."""
    settled = rounds[first:]
    if (settled < 0).any():
        return False
    place = np.empty(len(graph.slot), dtype=np.int64)
    place[graph.orders[order]] = np.arange(len(graph.slot))
    turns = np.argsort(place[settled], axis=1)
    apart = np.diff(graph.iteration[settled], axis=0)
    return bool((turns == turns[0]).all() and (apart == 1).all())
