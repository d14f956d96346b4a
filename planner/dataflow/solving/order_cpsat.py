"""The best order of the tasks of one plan, by CP-SAT.

Searches look at a table of orders that recur every iteration. Once the plan is chosen, this asks for the best order
of all, and bounds what any order could gain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, IntArray
from planner.dataflow.solving.orders import TaskGraph, dropped_after, shape_of
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.schedule import lead_times, overlaps, slot_times

_TICKS = 10_000_000  # the longest possible schedule, in ticks of the solver; what is lost is a ten-millionth of it
_EFFORT = 0.1  # deterministic time, in the units of the solver: a few seconds at most


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOrder:
    """An order of tasks.

    Attributes:
        sequence: Tasks by start. [tasks]
        bound_s: No order takes less.
        proven: Whether the solver proved it the best to within its ticks.
    """

    sequence: IntArray
    bound_s: float
    proven: bool


def best_order(problem: DataflowProblem, graph: TaskGraph, choice: IntArray, *, seed: int = 0) -> BestOrder | None:
    """The order in which one plan ends first.

    Args:
        problem: The problem.
        graph: Its tasks; its orders are not looked at.
        choice: Candidate of each call. [calls]
        seed: Seed of the solver.

    Returns:
        The order; none if the solver found none in its time.
    """
    from ortools.sat.python import cp_model

    times = slot_times(problem, choice[None])
    conflict = overlaps(problem, choice[None], times)[:, :, 0]
    leads = lead_times(problem, choice[None])[:, 0]
    late_s = sum(max(-leads[lead], 0.0) for found in graph.leads for _, lead in found)
    longest_s = float(times[graph.slot, 0].sum() + late_s)
    if longest_s <= 0:
        return BestOrder(sequence=graph.orders[0], bound_s=0.0, proven=True)
    # Rounded down: a schedule in ticks is never longer than the real one, so that its bound holds.
    ticks = np.floor(times[graph.slot, 0] / longest_s * _TICKS).astype(int).tolist()
    model = cp_model.CpModel()
    begins = [model.new_int_var(0, _TICKS, f"start{task}") for task in range(len(ticks))]
    spans = zip(begins, ticks, strict=True)
    intervals = [model.new_fixed_size_interval_var(*span, f"task{task}") for task, span in enumerate(spans)]
    end = model.new_int_var(0, _TICKS, "end")
    for task, parents in enumerate(graph.parents):
        for parent in parents:
            model.add(begins[task] >= begins[parent] + ticks[parent])
        for parent, lead in graph.leads[task] if graph.leads else ():
            after = float(times[graph.slot[parent], 0] - leads[lead])
            model.add(begins[task] >= begins[parent] + int(np.floor(after / longest_s * _TICKS)))
        model.add(end >= begins[task] + ticks[task])
    for task, (transfer, child) in _kept_apart(problem, graph, choice, conflict):
        before = model.new_bool_var(f"{task} before {transfer}")
        model.add(begins[task] + ticks[task] <= begins[transfer]).only_enforce_if(before)
        model.add(begins[task] >= begins[child] + ticks[child]).only_enforce_if(before.negated())
    for clique in _cliques(conflict):
        members = [task for task, slot in enumerate(graph.slot) if slot in clique]
        model.add_no_overlap([intervals[task] for task in members])
    model.minimize(end)
    solver = cp_model.CpSolver()
    solver.parameters.catch_sigint_signal = False  # it would leave Ctrl-C to end the process without a word
    solver.parameters.max_deterministic_time = _EFFORT
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    starts = [solver.value(begin) for begin in begins]
    depth = _depths(graph)
    sequence = sorted(range(len(starts)), key=lambda task: (starts[task], depth[task], task))
    return BestOrder(
        sequence=np.array(sequence),
        bound_s=solver.best_objective_bound / _TICKS * longest_s,
        proven=status == cp_model.OPTIMAL,
    )


def _kept_apart(
    problem: DataflowProblem, graph: TaskGraph, choice: IntArray, conflict: BoolArray
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Calls that compete with one that something is held for, with the transfer of that and the call it is held for."""
    for transfer, child, sibling in _held(problem, graph, choice):
        for task, slot in enumerate(graph.slot):
            if task not in (child, sibling) and slot < len(problem.calls) and conflict[slot, graph.slot[child]]:
                yield task, (transfer, child)


def _held(problem: DataflowProblem, graph: TaskGraph, choice: IntArray) -> list[tuple[int, int, int]]:
    """Transfers of what is dropped after the call they feed, that call, and one that it is held for besides."""
    shape, calls = shape_of(problem), len(problem.calls)
    dropped = dropped_after(shape, graph.slot.tolist(), graph.iteration.tolist())
    found = [(transfer, child, child) for transfer, child in dropped.items()]
    for edge in problem.moving:
        same = edge.same
        if same is not None and same.serves(choice[edge.child], choice[same.sibling]):
            for transfer, fed in dropped.items():
                if fed % calls == same.sibling:
                    found.append((transfer, fed - same.sibling + edge.child, fed))
    return found


def _cliques(conflict: BoolArray) -> list[set[int]]:
    """Sets of slots that compete pairwise: every pair, and for each slot one set of many."""
    slots = len(conflict)
    found: list[set[int]] = []
    for slot in range(slots):
        if not conflict[slot, slot]:
            continue
        clique = {slot}
        for other in range(slots):
            if other != slot and all(conflict[other, member] for member in clique):
                clique.add(other)
        found.append(clique)
        found += [{slot, other} for other in range(slot) if conflict[slot, other]]
    kept: list[set[int]] = []
    for clique in sorted(found, key=len, reverse=True):
        if not any(clique <= larger for larger in kept):
            kept.append(clique)
    return kept


def _depths(graph: TaskGraph) -> list[int]:
    depth = [0] * len(graph.slot)
    for task in graph.orders[0]:
        early = (parent for parent, _ in graph.leads[task]) if graph.leads else ()
        depth[task] = 1 + max((depth[parent] for parent in (*graph.parents[task], *early)), default=0)
    return depth
