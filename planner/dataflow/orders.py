"""The tasks of a few iterations, and the orders in which tasks that compete for GPUs may take turns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.problem import DataflowProblem, Edge

MOST_EXTENSIONS = 720  # orders of the calls of one iteration that are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGraph:
    """Every call of every iteration and every transfer between them.

    A *slot* is what recurs each iteration: first the calls, then the transfers in the order of the edges that have
    one.

    Attributes:
        slot: Slot of each task. [tasks]
        iteration: Iteration of each task; a transfer belongs to the iteration of the call it feeds. [tasks]
        parents: Tasks that must have ended first.
        leads: Tasks whose end, less a lead, must be over first, and which of the problem's leads that is; empty for
            problems without leads.
        orders: Orders in which tasks are placed; each lists every task once, parents first. [orders, tasks]
        complete: Whether the orders include every one that could matter, so that the best of them is the best there
            is.
    """

    slot: IntArray
    iteration: IntArray
    parents: tuple[tuple[int, ...], ...]
    orders: IntArray
    complete: bool
    leads: tuple[tuple[tuple[int, int], ...], ...] = ()


def task_graph(problem: DataflowProblem) -> TaskGraph:
    """Unroll a problem and list the orders worth trying.

    Tasks of one iteration follow each other as the calls do in a linear extension of the graph; a call that nothing
    of its
    own iteration waits for may also step behind calls of the next one. A transfer goes right behind the call it
    follows.
    """
    slots, iterations, parents = _unroll(problem)
    leads = _leads(problem, len(slots))
    # A call that starts before another's end still takes its turn behind it.
    earlier = [[*found, *(task for task, _ in early)] for found, early in zip(parents, leads, strict=True)]
    extensions, all_of_them = _extensions(problem)
    keys = [key for extension in extensions for key in _keys(problem, extension)]
    orders = np.unique([_sequence(slots, iterations, earlier, key) for key in keys], axis=0)
    # The heuristic order (calls by index) first, so that row 0 is a sensible default.
    first = _sequence(slots, iterations, earlier, keys[0])
    default = int(np.flatnonzero((orders == first).all(axis=1))[0])
    orders[[0, default]] = orders[[default, 0]]
    moves = any(edge.transfer is not None for edge in problem.edges)
    return TaskGraph(
        slot=np.array(slots),
        iteration=np.array(iterations),
        parents=tuple(tuple(sorted(found)) for found in parents),
        orders=orders,
        complete=all_of_them and not moves and problem.iterations == 1,
        leads=tuple(leads) if problem.leading else (),
    )


def _unroll(problem: DataflowProblem) -> tuple[list[int], list[int], list[list[int]]]:
    calls = len(problem.calls)
    count = calls * problem.iterations
    slots = [task % calls for task in range(count)]
    iterations = [task // calls for task in range(count)]
    parents: list[list[int]] = [[] for _ in range(count)]
    next_slot = calls
    for edge in problem.edges:
        for iteration in range(edge.lag, problem.iterations if edge.lead is None else 0):
            parent = (iteration - edge.lag) * calls + edge.parent
            child = iteration * calls + edge.child
            if edge.transfer is None:
                parents[child].append(parent)
                continue
            slots.append(next_slot)
            iterations.append(iteration)
            parents.append([parent])
            if edge.waits:
                parents[child].append(len(slots) - 1)
        next_slot += edge.transfer is not None
    # A call follows itself: iterations of one call never swap, and never run at the same time.
    for task in range(calls, count):
        parents[task].append(task - calls)
    return slots, iterations, [sorted(set(found)) for found in parents]


def _leads(problem: DataflowProblem, tasks: int) -> list[tuple[tuple[int, int], ...]]:
    calls = len(problem.calls)
    found: list[list[tuple[int, int]]] = [[] for _ in range(tasks)]
    for number, edge in enumerate(problem.leading):
        for begin in range(0, calls * problem.iterations, calls):
            found[begin + edge.child].append((begin + edge.parent, number))
    return [tuple(early) for early in found]


def _extensions(problem: DataflowProblem) -> tuple[list[tuple[int, ...]], bool]:
    found = list(islice(_linear_extensions(len(problem.calls), problem.edges), MOST_EXTENSIONS + 1))
    return found[:MOST_EXTENSIONS], len(found) <= MOST_EXTENSIONS


def _linear_extensions(calls: int, edges: Sequence[Edge]) -> Iterator[tuple[int, ...]]:
    waits = [{edge.parent for edge in edges if edge.child == call and edge.lag == 0} for call in range(calls)]

    def grow(done: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(done) == calls:
            yield done
            return
        for call in range(calls):
            if call not in done and waits[call] <= set(done):
                yield from grow((*done, call))

    return grow(())


def _keys(problem: DataflowProblem, extension: Sequence[int]) -> Iterator[list[float]]:
    """Positions of the calls within an iteration, in iterations; sinks may also stand behind later positions."""
    calls = len(problem.calls)
    place = {call: position / calls for position, call in enumerate(extension)}
    base = [place[call] for call in range(calls)]
    yield base
    if problem.iterations == 1:
        return
    sources = {edge.parent for edge in problem.edges if edge.lag == 0}
    sinks = [call for call in extension if call not in sources][:2]
    starts = [extension.index(call) for call in extension if call not in sinks]
    for behind in product([None, *starts[:3]], repeat=len(sinks)):
        key = list(base)
        for sink, position in zip(sinks, behind, strict=True):
            if position is not None:
                key[sink] = 1 + (position + 0.5) / calls
        yield key


def _sequence(
    slots: Sequence[int], iterations: Sequence[int], parents: Sequence[Sequence[int]], key: Sequence[float]
) -> list[int]:
    """Place tasks one by one: among those whose parents are placed, transfers first, then the smallest key."""
    rank = [
        (iterations[task] + key[slot], 0.0) if slot < len(key) else (-1.0, float(iterations[task]))
        for task, slot in enumerate(slots)
    ]
    waiting, placed, sequence = set(range(len(slots))), set[int](), list[int]()
    while waiting:
        free = [task for task in waiting if all(parent in placed for parent in parents[task])]
        chosen = min(free, key=lambda task: (rank[task], task))
        sequence.append(chosen)
        placed.add(chosen)
        waiting.discard(chosen)
    return sequence
