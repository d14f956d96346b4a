"""What passes between two calls, and the unrolled graph as bounds see it.

Between two calls lie transfers, which occupy the meshes of both, and what leads leave of waiting. Where a call may
start before its parent ends, the part of it that the lead does not cover still comes after that end, and before all
that waits for the call. Where a parent's data come late, so much passes before its child starts. Neither occupies
anything.
"""

from dataclasses import dataclass, replace

import numpy as np

from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes


@dataclass(frozen=True, slots=True)
class Between:
    """What passes between two calls: seconds by candidates of both, and whether both are busy with it."""

    parent: int
    child: int
    times: PairTimes
    occupies: bool


def between(problem: DataflowProblem) -> tuple[Between, ...]:
    """Transfers in the order of their slots, then what each lead leaves."""
    moved = [
        # What another transfer may have brought takes no time at least.
        Between(edge.parent, edge.child, edge.transfer if edge.same is None else _none(edge.transfer), True)
        for edge in problem.edges
        if edge.transfer is not None
    ]
    left = [
        Between(edge.parent, edge.child, _left(problem, edge, edge.lead), False)
        for edge in problem.edges
        if edge.lead is not None
    ]
    return (*moved, *left)


def _none(times: PairTimes) -> PairTimes:
    return replace(times, time_s=np.zeros_like(times.time_s))


def _late(lead: PairTimes) -> bool:
    """Whether data come late rather than early, as far as bounds tell the two apart."""
    return bool(lead.time_s.max() <= 0)


def _left(problem: DataflowProblem, edge: Edge, lead: PairTimes) -> PairTimes:
    """Seconds between the end of the parent and what follows: the child itself, or all that waits for it."""
    shortest = np.zeros(lead.time_s.shape[1])
    if not _late(lead):
        shortest = np.full(lead.time_s.shape[1], np.inf)
        np.minimum.at(shortest, lead.target_class, problem.calls[edge.child].time_s)
    time_s = np.maximum(shortest - lead.time_s, 0.0)
    return PairTimes(source_class=lead.source_class, target_class=lead.target_class, time_s=time_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrolled:
    """Tasks and what each waits for; what leads leave stands behind the tasks of the graph.

    Attributes:
        slot: Slot of each task; of what a lead leaves, its place in ``between`` behind the calls.
        iteration: Iteration of each; of what a lead leaves, that of the call it leads.
        parents: Tasks it waits for.
        order: Parents first.
    """

    slot: list[int]
    iteration: list[int]
    parents: list[list[int]]
    order: list[int]


def unrolled(problem: DataflowProblem, graph: TaskGraph) -> Unrolled:
    """The graph without the waits that leads undo, and with what they leave of them."""
    slot, iteration = graph.slot.tolist(), graph.iteration.tolist()
    parents = [list(found) for found in graph.parents]
    behind: list[list[int]] = [[] for _ in slot]
    first = len(problem.calls) + len(problem.moving)
    late = [_late(edge.lead) for edge in problem.edges if edge.lead is not None]
    for child, found in enumerate(graph.leads):
        for parent, lead in found:
            left = len(slot)
            slot.append(first + lead)
            iteration.append(iteration[child])
            parents.append([parent])
            behind[parent].append(left)
            if late[lead]:
                parents[child] += [parent, left]
                continue
            for waiting, others in enumerate(graph.parents):
                if child in others:
                    parents[waiting].append(left)
    order = [task for one in graph.orders[0] for task in (int(one), *behind[one])]
    return Unrolled(slot=slot, iteration=iteration, parents=parents, order=order)
