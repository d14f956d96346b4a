"""Small scheduling problems, and a second, slow implementation of what the planner computes on them."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np

from planner.dataflow.solving.problem import CallCandidates, DataflowProblem, Edge, PairTimes


def call(name, rows, strategies=None):
    """A call from rows (start, size, seconds, static bytes, active bytes)."""
    start, size, time_s, static, active = (np.array(column) for column in zip(*rows, strict=True))
    return CallCandidates(
        name=name,
        start=start,
        size=size,
        time_s=time_s.astype(float),
        static_bytes=static.astype(float),
        active_bytes=active.astype(float),
        strategy_id=np.array(strategies if strategies is not None else range(len(rows))),
    )


def random_problem(
    rng, *, calls=4, candidates=3, gpus=4, iterations=1, transfers=False, replicas=False, leads=False, hosts=False
):
    """Any graph, any contiguous meshes, memory that matters; times are whole so that sums are exact, as are shares."""
    listed = []
    for index in range(calls):
        rows = []
        for _ in range(candidates):
            start = int(rng.integers(0, gpus))
            size = int(rng.integers(1, gpus - start + 1))
            rows.append((start, size, int(rng.integers(1, 12)), int(rng.integers(0, 5)), int(rng.integers(0, 5))))
        listed.append(call(f"call{index}", rows, rng.integers(0, 2, candidates)))
    edges = []
    for child in range(calls):
        for parent in range(child):
            if rng.random() < 0.4:
                moved = _transfer(rng, listed, parent, child, transfers)
                lead = None
                if leads and moved is None and all(edge.child != parent or edge.lead is None for edge in edges):
                    lead = _lead(rng, listed, parent, child)
                edges.append(Edge(parent=parent, child=child, transfer=moved, lead=lead))
    if iterations > 1:
        for parent, child in rng.integers(0, calls, (2, 2)):
            moved = _transfer(rng, listed, parent, child, transfers and parent != child)
            edges.append(Edge(parent=int(parent), child=int(child), lag=int(rng.integers(1, 3)), transfer=moved))
    capacity = rng.integers(8, 15, gpus).astype(float)
    if hosts:
        listed = [replace(one, host_share=rng.integers(0, 6, candidates) / 8) for one in listed]
    return DataflowProblem(
        calls=tuple(listed),
        edges=tuple(edges),
        capacity_bytes=capacity,
        iterations=iterations,
        replicas=((1, 0),) if replicas else (),
        gpus_per_node=2,
        machine_of=np.arange(gpus) // 2 if hosts else None,
    )


def _transfer(rng, listed, parent, child, wanted):
    if not wanted or rng.random() < 0.5:
        return None
    rows, columns = len(listed[parent]), len(listed[child])
    time_s = rng.integers(0, 4, (rows, columns)).astype(float)
    return PairTimes(source_class=np.arange(rows), target_class=np.arange(columns), time_s=time_s)


def _lead(rng, listed, parent, child):
    """Leads of up to the shorter of both times; every third edge has data that come late instead."""
    most = np.minimum.outer(listed[parent].time_s, listed[child].time_s)
    time_s = np.floor(rng.random(most.shape) * (most + 1))
    if rng.random() < 0.3:
        time_s = -rng.integers(0, 4, most.shape).astype(float)
    return PairTimes(source_class=np.arange(len(most)), target_class=np.arange(most.shape[1]), time_s=time_s)


def slow_makespan(problem, graph, choice, order):
    """Seconds of one plan, GPU by GPU."""
    calls = problem.calls
    moves = [edge for edge in problem.edges if edge.transfer is not None]
    free = [0.0] * problem.num_gpus
    end = {}
    for task in order:
        slot = graph.slot[task]
        if slot < len(calls):
            gpus, time_s = gpus_of(calls[slot], choice[slot]), calls[slot].time_s[choice[slot]]
        else:
            edge = moves[slot - len(calls)]
            gpus = gpus_of(calls[edge.parent], choice[edge.parent]) | gpus_of(calls[edge.child], choice[edge.child])
            time_s = edge.transfer.price(choice[edge.parent], choice[edge.child])
            gpus = gpus if time_s else set()
        start = max([0.0, *(end[parent] for parent in graph.parents[task]), *(free[gpu] for gpu in gpus)])
        if slot < len(calls):
            iteration = graph.iteration[task]
            for edge in problem.edges:
                if edge.child == slot and edge.lead is not None:
                    parent = next(
                        one for one in end if (graph.slot[one], graph.iteration[one]) == (edge.parent, iteration)
                    )
                    led_s = edge.lead.price(choice[edge.parent], choice[edge.child])
                    start = max(start, end[parent] - led_s)
        end[task] = start + time_s
        for gpu in gpus:
            free[gpu] = end[task]
    return max(end.values())


def gpus_of(one, row):
    return set(range(one.start[row], one.start[row] + one.size[row]))


def slow_fits(problem, choice):
    """Whether one plan fits, GPU by GPU and machine by machine."""
    if problem.machine_of is not None:
        for machine in set(problem.machine_of.tolist()):
            there = set(np.flatnonzero(problem.machine_of == machine).tolist())
            rows = list(zip(problem.calls, choice, strict=True))
            if sum(one.host_share[row] for one, row in rows if there & gpus_of(one, row)) > 1:
                return False
    sharing = dict(problem.replicas)
    for gpu in range(problem.num_gpus):
        held, active = 0.0, [0.0]
        for index, one in enumerate(problem.calls):
            row = choice[index]
            if gpu not in gpus_of(one, row):
                continue
            active.append(one.active_bytes[row])
            if index in sharing:
                other = problem.calls[sharing[index]]
                place = choice[sharing[index]]
                mine = (one.start[row], one.size[row], one.strategy_id[row])
                if mine == (other.start[place], other.size[place], other.strategy_id[place]):
                    continue
            held += one.static_bytes[row]
        if held + max(active) > problem.capacity_bytes[gpu]:
            return False
    return True


def every_choice(problem):
    """All choices of a candidate for each call. [choices, calls]."""
    return np.array(list(product(*(range(len(one)) for one in problem.calls))))


def every_order(graph):
    """Every order of tasks in which parents come first."""
    tasks = range(len(graph.slot))
    for order in permutations(tasks):
        place = {task: index for index, task in enumerate(order)}
        before = [
            {*graph.parents[task], *(one for one, _ in (graph.leads[task] if graph.leads else ()))} for task in tasks
        ]
        if all(place[parent] < place[task] for task in tasks for parent in before[task]):
            yield order


def slow_best(problem, graph, orders):
    """Least seconds over every plan that fits and every given order; infinite if none fits."""
    best = np.inf
    for choice in product(*(range(len(one)) for one in problem.calls)):
        if slow_fits(problem, choice):
            best = min(best, *(slow_makespan(problem, graph, choice, order) for order in orders))
    return best
