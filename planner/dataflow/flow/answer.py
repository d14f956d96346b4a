"""From the choice of a search to the answer: how each call runs, when, with which memory, and why."""

from dataclasses import replace

import numpy as np

from costmodels.kernels.calls import Basis
from costmodels.plan import FloatArray, IntArray
from planner.dataflow.flow.compile import CompiledFlow, moved_weights, weight_moves
from planner.dataflow.flow.costs import FlowCosts, call_flops, experts_of, peak_flops_per_s
from planner.dataflow.flow.held_data import data_memory
from planner.dataflow.flow.payloads import Payload
from planner.dataflow.flow.priced_cluster import PricedCluster
from planner.dataflow.flow.reasons import flow_reasons
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import (
    CallPlan,
    FlowPlan,
    GpuMemory,
    Lead,
    MemoryOwner,
    Reallocation,
    SearchStatistics,
    Task,
)
from planner.dataflow.flow.risk import oom_probability
from planner.dataflow.flow.transfers import PlacedRows, TransferPrices
from planner.dataflow.graphs.graph import EXTERNAL
from planner.dataflow.holdings import HOLDING_NAMES
from planner.dataflow.reallocation import Route
from planner.dataflow.solving.memory import memory_owners, unit_bytes
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import CallCandidates, DataflowProblem
from planner.dataflow.solving.results import Solution
from planner.dataflow.solving.schedule import PlanRows, Timeline, slot_times, timeline
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.units import units_of
from profiles.mixed_cluster import MixedCluster

CALL, TRANSFER = "call", "transfer"
HANDED_ON = "handed_on"  # route of data
_EQUAL = 1e-9  # of a time: differences below it are rounding


def flow_plan(
    request: FlowRequest, priced: PricedCluster, compiled: CompiledFlow, found: Solution, search: SearchStatistics
) -> FlowPlan:
    """The plan a search chose, in full.

    Args:
        request: The question.
        priced: The GPUs planned for, and ways to run each call on them.
        compiled: The abstract problem.
        found: Candidate of each call, and their order.
        search: How it was found.
    """
    cluster, choice = priced.cluster, found.choice
    problem = compiled.problem.restrict([np.asarray([row]) for row in choice])
    graph = found.graph
    calls = call_plans(request, priced.costs, compiled, choice)
    line = _simulated(problem, graph, found.order)
    low, high = (_retimed(problem, [getattr(call, name) for call in calls]) for name in ("time_low_s", "time_high_s"))
    pace_s = _pace_s(problem, graph, found.order)
    tasks = _tasks(compiled, problem, graph, line)
    meshes = {name: _mesh(call) for name, call in zip(compiled.names, problem.calls, strict=True)}
    data = data_memory(request, tasks, meshes, np.asarray(cluster.node_of))
    on_host = host_bytes(calls, cluster)
    flops = sum(call_flops(request, call.name) for call in calls)
    peak = sum(group.num_devices * peak_flops_per_s(request, group.device) for group in cluster.groups)
    busy = _busy_s(problem, cluster.num_devices)
    return FlowPlan(
        num_gpus=cluster.num_devices,
        calls=calls,
        reallocations=_reallocations(request, priced, compiled, choice),
        tasks=tasks,
        memory=_memory(request, _as_needed(problem, calls), busy / pace_s),
        iterations=problem.iterations,
        first_s=float(line.end_s[0][graph.iteration == 0].max()),
        total_s=float(line.end_s[0][graph.iteration < problem.iterations].max()),
        steady_s=pace_s,
        steady_low_s=_pace_s(low, graph, found.order),
        steady_high_s=_pace_s(high, graph, found.order),
        busy_share=float(busy.mean() / pace_s),
        model_flops=flops,
        mfu=flops / (peak * pace_s),
        host_bytes=float(on_host.max()),
        host_peak_bytes=float((on_host + data.node_bytes).max()),
        data_bytes=data.peak_bytes,
        data=data.held,
        leads=_leads(compiled, problem),
        usd_per_gpu_hour=request.options.price_per_device_hour_usd,
        reasons=flow_reasons(request, priced, compiled, found, calls),
        search=search,
    )


def _as_needed(problem: DataflowProblem, calls: tuple[CallPlan, ...]) -> DataflowProblem:
    """The problem of a plan, of which the calls need no memory to spare."""
    needed = (np.asarray([call.active_bytes]) for call in calls)
    return replace(
        problem,
        calls=tuple(replace(call, active_bytes=own) for call, own in zip(problem.calls, needed, strict=True)),
    )


def call_plans(
    request: FlowRequest, costs: FlowCosts, compiled: CompiledFlow, choice: IntArray
) -> tuple[CallPlan, ...]:
    """Every call as chosen, in the order of the problem."""
    plans = []
    for index, name in enumerate(compiled.names):
        call, candidate = request.graph.call(name), compiled.problem.calls[index]
        sequences = call.sequences(request.batch)
        if call.kind == EXTERNAL:
            plans.append(_service(name, float(candidate.time_s[0]), sequences))
            continue
        rows, row = costs.rows[name], int(compiled.row[index][choice[index]])
        table, entry = rows.table, int(rows.row[row])
        plans.append(
            CallPlan(
                name=name,
                role=call.role,
                kind=call.kind,
                model=request.models[call.role].name,
                first_gpu=int(candidate.start[choice[index]]),
                num_gpus=int(candidate.size[choice[index]]),
                engine=table.engines[int(table.engine[entry])],
                plan=table.plans.plan(entry),
                concurrent=int(table.concurrent[entry]),
                sequences=sequences,
                mini_batches=call.mini_batches,
                holding=HOLDING_NAMES[int(rows.holding[row])],
                time_s=float(rows.time_s[row]),
                time_low_s=float(rows.low_s[row]),
                time_high_s=float(rows.high_s[row]),
                host_traffic_s=float(rows.moved_s[row]),
                static_bytes=float(rows.static_bytes[row]),
                active_bytes=float(rows.active_bytes[row]),
                host_bytes=float(rows.host_bytes[row]),
                basis=Basis(int(table.basis[entry])).name.lower(),
                experts=experts_of(request, call, rows, row),
            )
        )
    return _in_chunks_of_training(plans, compiled.problem, choice)


def _in_chunks_of_training(plans: list[CallPlan], problem: DataflowProblem, choice: IntArray) -> tuple[CallPlan, ...]:
    """The calls, those that share their weights with training in its virtual stages: their layers lie so."""
    found = list(plans)
    for index, trained in problem.replicas:
        mine, theirs = problem.calls[index].take(choice[[index]]), problem.calls[trained].take(choice[[trained]])
        alike = all(getattr(mine, name) == getattr(theirs, name) for name in ("start", "size", "strategy_id"))
        plan, leader = plans[index].plan, plans[trained].plan
        if alike and plan is not None and leader is not None:
            follows = replace(plan, virtual_stages=leader.virtual_stages, schedule=leader.schedule)
            found[index] = replace(plans[index], plan=follows)
    return tuple(found)


def host_bytes(calls: tuple[CallPlan, ...], cluster: MixedCluster) -> FloatArray:
    """(nodes,) host memory for weights and states that lie there between runs."""
    each = np.zeros(cluster.num_devices)
    for call in calls:
        each[call.first_gpu : call.first_gpu + call.num_gpus] += call.host_bytes
    return np.asarray(np.bincount(cluster.node_of, weights=each), dtype=np.float64)


def _service(name: str, time_s: float, sequences: int) -> CallPlan:
    return CallPlan(
        name=name,
        role="",
        kind=EXTERNAL,
        model="",
        first_gpu=0,
        num_gpus=0,
        engine="",
        plan=None,
        concurrent=0,
        sequences=sequences,
        mini_batches=1,
        holding="",
        time_s=time_s,
        time_low_s=time_s,
        time_high_s=time_s,
        host_traffic_s=0.0,
        static_bytes=0.0,
        active_bytes=0.0,
        host_bytes=0.0,
        basis="assumed",
    )


def _only(order: int, calls: int) -> PlanRows:
    return PlanRows(choice=np.zeros((1, calls), dtype=np.int64), order=np.asarray([order]))


def _simulated(problem: DataflowProblem, graph: TaskGraph, order: int) -> Timeline:
    return timeline(problem, graph, _only(order, len(problem.calls)))


def _retimed(problem: DataflowProblem, times_s: list[float]) -> DataflowProblem:
    """The problem with other times of its only candidates; transfers keep theirs.

    A lead grows with the times of both calls and in proportion when both do, so that it keeps at least the smaller
    share.
    """
    calls = [replace(call, time_s=np.asarray([time])) for call, time in zip(problem.calls, times_s, strict=True)]
    share = [
        time / float(call.time_s[0]) if call.time_s[0] > 0 else 1.0
        for call, time in zip(problem.calls, times_s, strict=True)
    ]
    edges = [
        replace(edge, lead=replace(edge.lead, time_s=edge.lead.time_s * min(share[edge.parent], share[edge.child])))
        if edge.lead is not None
        else edge
        for edge in problem.edges
    ]
    return replace(problem, calls=tuple(calls), edges=tuple(edges))


def _pace_s(problem: DataflowProblem, graph: TaskGraph, order: int) -> float:
    """Seconds per iteration of the only plan of a problem."""
    return float(duration_s(problem, graph, _only(order, len(problem.calls)))[0])


def _mesh(call: CallCandidates) -> tuple[int, int]:
    return int(call.start[0]), int(call.size[0])


def _tasks(compiled: CompiledFlow, problem: DataflowProblem, graph: TaskGraph, line: Timeline) -> tuple[Task, ...]:
    """What happens when in the iterations asked for; services and transfers that take no time included."""
    meshes = {name: _mesh(call) for name, call in zip(compiled.names, problem.calls, strict=True)}
    kinds: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [
        (name, CALL, (meshes[name],)) for name in compiled.names
    ]
    kinds += [
        (f"{source} -> {target}", TRANSFER, (meshes[source], meshes[target])) for source, target in compiled.moves
    ]
    found = []
    for task, slot in enumerate(graph.slot):
        if graph.iteration[task] >= problem.iterations:
            continue
        name, kind, places = kinds[slot]
        found.append(
            Task(
                name=name,
                kind=kind,
                iteration=int(graph.iteration[task]),
                start_s=float(line.start_s[0, task]),
                end_s=float(line.end_s[0, task]),
                meshes=tuple(dict.fromkeys(place for place in places if place[1])),
            )
        )
    return tuple(sorted(found, key=lambda item: (item.start_s, item.end_s, item.name)))


def _leads(compiled: CompiledFlow, problem: DataflowProblem) -> tuple[Lead, ...]:
    """What the edges with a lead come to under the only plan of a problem; those that wait as ever left out."""
    found = []
    for edge in problem.edges:
        if edge.lead is None:
            continue
        parent, child = problem.calls[edge.parent], problem.calls[edge.child]
        apart = parent.stop[0] <= child.start[0] or child.stop[0] <= parent.start[0]
        lead_s = float(edge.lead.time_s[0, 0])
        if apart and abs(lead_s) <= _EQUAL * float(parent.time_s[0]):
            continue
        names = (compiled.names[edge.parent], compiled.names[edge.child])
        found.append(Lead(source=names[0], target=names[1], lead_s=lead_s if apart else min(lead_s, 0.0)))
    return tuple(found)


def _busy_s(problem: DataflowProblem, num_gpus: int) -> FloatArray:
    """(G,) seconds per iteration each GPU spends on calls and transfers; a single one has none from earlier ones."""
    times = slot_times(problem, np.zeros((1, len(problem.calls)), dtype=np.int64))[:, 0]
    meshes = [[_mesh(call)] for call in problem.calls]
    meshes += [
        [_mesh(problem.calls[edge.parent]), _mesh(problem.calls[edge.child])]
        if edge.lag == 0 or problem.settled
        else []
        for edge in problem.moving
    ]
    busy = np.zeros(num_gpus)
    for time_s, places in zip(times, meshes, strict=True):
        used = np.zeros(num_gpus, dtype=bool)
        for first, count in places:
            used[first : first + count] = True
        busy += used * time_s
    return busy


def _memory(request: FlowRequest, problem: DataflowProblem, busy: FloatArray) -> tuple[GpuMemory, ...]:
    units = units_of(problem)
    only = np.zeros((1, len(problem.calls)), dtype=np.int64)
    peaks = unit_bytes(problem, units, only)[0]
    groups, first = [], 0
    for count, peak, usable in zip(units.gpus.tolist(), peaks.tolist(), units.capacity_bytes.tolist(), strict=True):
        owners = [
            MemoryOwner(call=name, static_bytes=static, active_bytes=active)
            for name, (static, active) in memory_owners(problem, only[0], first).items()
        ]
        owners.sort(key=lambda item: (-(item.static_bytes + item.active_bytes), item.call))
        running = max(owners, key=lambda item: item.active_bytes, default=None)
        groups.append(
            GpuMemory(
                first_gpu=first,
                num_gpus=count,
                peak_bytes=peak,
                usable_bytes=usable,
                peak_call=running.call if running is not None else "",
                owners=tuple(owners),
                busy_share=float(busy[first]),
                oom_probability=oom_probability(request, owners, usable),
            )
        )
        first += count
    return tuple(groups)


def _reallocations(
    request: FlowRequest, priced: PricedCluster, compiled: CompiledFlow, choice: IntArray
) -> tuple[Reallocation, ...]:
    """Weights that move, rarely moved ones too, and data large enough to count."""
    prices = TransferPrices.on(priced.cluster)
    index = {name: place for place, name in enumerate(compiled.names)}

    def placed(name: str, moved: Payload | None = None) -> PlacedRows:
        call, row = compiled.problem.calls[index[name]], compiled.row[index[name]]
        every = PlacedRows(call=call, rows=priced.costs.rows[name], row=row, payload=moved)
        return every.take(choice[[index[name]]])

    served = {
        (compiled.names[edge.parent], compiled.names[edge.child])
        for edge in compiled.problem.moving
        if edge.same is not None and edge.same.serves(choice[edge.child], choice[edge.same.sibling])
    }
    found = []
    for move in weight_moves(request):
        sent = moved_weights(request, move)
        moved = prices.pair(placed(move.source, sent), placed(move.target, sent))
        there = (move.source, move.target) in served
        found.append(
            Reallocation(
                role=move.role,
                source=move.source,
                target=move.target,
                moved_bytes=0.0 if there else float(moved.moved_bytes[0, 0]),
                route=Route.NONE.name.lower() if there else Route(int(moved.route[0, 0])).name.lower(),
                time_s=0.0 if there else float(moved.time_s[0, 0]),
                every=move.every,
            )
        )
    for data in compiled.handed:
        time_s = float(prices.handed_on(placed(data.source), placed(data.target), data.total_bytes).time_s[0, 0])
        found.append(
            Reallocation(
                role="",
                source=data.source,
                target=data.target,
                moved_bytes=data.total_bytes if time_s else 0.0,
                route=HANDED_ON if time_s else Route.NONE.name.lower(),
                time_s=time_s,
                data=data.keys,
            )
        )
    return tuple(found)
