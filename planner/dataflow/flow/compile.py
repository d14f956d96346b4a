"""From a priced workflow to the abstract problem a search solves, and back from its choice to what it means.

The problem (``planner.dataflow.solving.problem``) knows candidates, edges and transfers only. A candidate is a way to
run and hold a call on one mesh. Weights move along edges from the call that trains a role to every other call on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.flow.costs import FlowCosts, HandedOn, handed_on, in_flight
from planner.dataflow.flow.payloads import Payload, payload
from planner.dataflow.flow.pins import CallPin
from planner.dataflow.flow.placement import Meshes, Region, groups_of, on_whole_pools
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.risk import spare_bytes
from planner.dataflow.flow.transfers import PlacedRows, TransferPrices
from planner.dataflow.graphs.graph import EXTERNAL, GENERATE, TRAIN, Dataflow
from planner.dataflow.holdings import ALL_OUT, DELIVERED, CallRows
from planner.dataflow.solving.iterations import iteration_edges
from planner.dataflow.solving.problem import (
    MOST_GPUS,
    CallCandidates,
    DataflowProblem,
    Edge,
    PairTimes,
    SameArrival,
)
from planner.dataflow.streams import StreamEnd, lead_s, reads_early, service_end
from profiles.mixed_cluster import MixedCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Weights that move from the call that trains them.

    Attributes:
        source: Call they come from.
        target: Call they go to.
        role: Role of the receiving call.
        lag: Iterations between them.
        every: Iterations between two moves.
    """

    source: str
    target: str
    role: str
    lag: int
    every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledFlow:
    """A workflow on a cluster as an abstract problem.

    Attributes:
        names: Calls in the order of the problem.
        row: Row of ``FlowCosts.rows`` of each candidate, by call; zeros for an external service.
        problem: What a search solves.
        moves: Ends of each edge of the problem along which something moves, in their order.
        handed: Data large enough to count, of those edges.
    """

    names: tuple[str, ...]
    row: tuple[IntArray, ...]
    problem: DataflowProblem
    moves: tuple[tuple[str, str], ...]
    handed: tuple[HandedOn, ...]


def compile_flow(
    request: FlowRequest,
    cluster: MixedCluster,
    costs: FlowCosts,
    meshes: Meshes,
    regions: Mapping[str, Region],
    transfers: TransferPrices,
    wanted: Mapping[str, BoolArray] | None = None,
    *,
    sure: bool = False,
) -> CompiledFlow | None:
    """The abstract problem of a workflow, placed within regions; None when some call has no candidate.

    Args:
        request: Graph, batch and mode.
        cluster: The GPUs.
        costs: Ways to run each call.
        meshes: Meshes there are.
        regions: GPUs each call may use.
        transfers: Prices of moving weights.
        wanted: Which ways to run each call are looked at; all if None.
        sure: Whether calls leave as much memory free as makes them live as often as was asked for.
    """
    calls, rows = [], []
    whole = on_whole_pools(request) | {name for name, region in regions.items() if region.whole}
    for name in request.graph.order:
        if request.graph.call(name).kind == EXTERNAL:
            call, row = _service(name, request.graph.call(name).external_s(request.batch))
        else:
            held, pin = costs.rows[name], request.pins.get(name, CallPin())
            call, row = _candidates(name, held, meshes, replace(regions[name], whole=name in whole), pin, cluster)
            if not len(row):
                call, row = _candidates(name, held, meshes, regions[name], pin, cluster)
            call = _sparing(request, cluster, call) if sure else call
            if wanted is not None:
                call, row = call.take(wanted[name][row]), row[wanted[name][row]]
        if not len(row):
            return None
        calls.append(call)
        rows.append(row)
    plenty = _plenty_on_host(calls)
    edges, moves, handed = _edges(request, tuple(calls), tuple(rows), costs, transfers)
    return CompiledFlow(
        names=request.graph.order,
        row=tuple(rows),
        problem=DataflowProblem(
            calls=tuple(replace(call, host_share=None) for call in calls) if plenty else tuple(calls),
            edges=edges,
            capacity_bytes=_capacity_bytes(cluster),
            iterations=request.options.iterations,
            settled=request.options.iterations > 1,
            replicas=_replicas(request),
            gpus_per_node=cluster.groups[0].node.devices_per_node,
            machine_of=None if plenty else np.asarray(cluster.node_of),
        ),
        moves=moves,
        handed=handed,
    )


def _sparing(request: FlowRequest, cluster: MixedCluster, call: CallCandidates) -> CallCandidates:
    """A call that needs besides what it leaves free."""
    spare = spare_bytes(request, cluster, call.name)[groups_of(cluster, call.start)]
    return replace(call, active_bytes=call.active_bytes + spare)


def _capacity_bytes(cluster: MixedCluster) -> FloatArray:
    """(GPUs,) memory that each offers."""
    offered = [group.device.usable_memory_bytes for group in cluster.groups]
    return np.repeat(np.asarray(offered), [group.num_devices for group in cluster.groups])


def _plenty_on_host(calls: Sequence[CallCandidates]) -> bool:
    """Whether no machine runs out of host memory, whatever is chosen."""
    return sum(float(call.host_share.max(initial=0.0)) for call in calls if call.host_share is not None) <= 1


def _service(name: str, time_s: float) -> tuple[CallCandidates, IntArray]:
    """A call beside the devices: one candidate without a mesh."""
    nothing, zero = np.zeros(1), np.zeros(1, dtype=np.int64)
    call = CallCandidates(
        name=name,
        start=zero,
        size=zero,
        time_s=np.asarray([time_s]),
        static_bytes=nothing,
        active_bytes=nothing,
        strategy_id=zero,
    )
    return call, zero


def _candidates(
    name: str, held: CallRows, meshes: Meshes, region: Region, pin: CallPin, cluster: MixedCluster
) -> tuple[CallCandidates, IntArray]:
    """Every way on every mesh of its size and kind of machines within the region."""
    machines = groups_of(cluster, meshes.start)
    usable = region.holds(meshes.start, meshes.size)
    # What is fixed counts for more than that all calls use all GPUs, and a range of them for more than pools.
    if pin.first_gpu is not None:
        usable = (meshes.start == pin.first_gpu) & (meshes.size == pin.num_gpus)
    elif pin.num_gpus is not None:
        usable = replace(region, whole=False).holds(meshes.start, meshes.size) & (meshes.size == pin.num_gpus)
    places = np.flatnonzero(usable)
    pairs = held.size[:, None] == meshes.size[places][None, :]
    pairs &= held.machines[:, None] == machines[places][None, :]
    row, place = np.nonzero(pairs)
    mesh = places[place]
    nodes = [group.node for group in cluster.groups]
    # A mesh is part of a node or whole nodes.
    on_node = np.minimum(meshes.size[mesh], np.asarray([node.devices_per_node for node in nodes])[held.machines[row]])
    host_bytes = np.asarray([node.host_memory_bytes for node in nodes])[held.machines[row]]
    call = CallCandidates(
        name=name,
        start=meshes.start[mesh],
        size=meshes.size[mesh],
        time_s=held.time_s[row],
        static_bytes=held.static_bytes[row],
        active_bytes=held.active_bytes[row],
        # A training call whose weights leave the devices shares none with its siblings.
        strategy_id=2 * held.layout[row] + (held.holding[row] == ALL_OUT),
        host_share=held.host_bytes[row] * on_node / host_bytes,
    )
    return call, row


def _edges(
    request: FlowRequest,
    calls: tuple[CallCandidates, ...],
    rows: tuple[IntArray, ...],
    costs: FlowCosts,
    transfers: TransferPrices,
) -> tuple[tuple[Edge, ...], tuple[tuple[str, str], ...], tuple[HandedOn, ...]]:
    """Edges of data and versions, with transfers where weights move or much is handed on."""
    graph = request.graph
    index = {name: place for place, name in enumerate(graph.order)}
    lags = {(parent, name): 0 for name in graph.order for parent in graph.parents(name)}
    for later in iteration_edges(graph, dependency=request.dependency, staleness=request.ahead):
        lags.setdefault((later.source, later.target), later.distance)
    moving = _moving(request, costs, transfers, lags)
    handed = {
        (data.source, data.target): data
        for data in handed_on(request)
        if transfers.most_handed_on_s(data.total_bytes) > costs.tolerance_s
        and EXTERNAL not in (graph.call(data.source).kind, graph.call(data.target).kind)
    }
    edges: list[Edge] = []
    moves, led = [], set()
    fed: dict[tuple[int, int, str], int] = {}  # the last call that generates with what a call trains
    for source, target in dict.fromkeys((*lags, *moving)):
        parent, child = index[source], index[target]
        transfer = lead = None
        if source not in led and lags.get((source, target)) == 0 and (source, target) not in moving:
            lead = _lead(request, costs, (source, target), (rows[parent], rows[child]))
        if lead is not None and in_flight(request, source):
            handed.pop((source, target), None)  # responses, which go over one by one
        elif (source, target) in handed:
            lead = None
        if lead is not None:
            led.add(target)
        if (source, target) in moving or (source, target) in handed:
            moved = moving.get((source, target))
            sent = None if moved is None else moved_weights(request, moved)
            ends = [
                PlacedRows(call=calls[i], rows=costs.rows[name], row=rows[i], payload=sent)
                for name, i in ((source, parent), (target, child))
            ]
            transfer = _transfer(transfers, ends, moved, handed.get((source, target)))
            moves.append((source, target))
        # Weights that move once in many iterations take their share of each; nothing waits for a share.
        lag = lags.get((source, target), 1)
        waits = (source, target) in lags
        drops = (source, target) in moving and _drops(costs.rows[target].holding[rows[child]], calls, child)
        same = None
        if (source, target) in moving and graph.call(target).kind == GENERATE:
            feeder = (parent, lag, graph.call(target).role)
            twin, fed[feeder] = fed.get(feeder, child), child
            same = _same_arrival(graph, costs, calls, rows, (child, twin))
        edge = Edge(
            parent=parent, child=child, lag=lag, transfer=transfer, waits=waits, lead=lead, drops=drops, same=same
        )
        edges.append(edge)
    return tuple(edges), tuple(moves), tuple(handed.values())


def _moving(
    request: FlowRequest, costs: FlowCosts, transfers: TransferPrices, lags: dict[tuple[str, str], int]
) -> dict[tuple[str, str], Move]:
    """Weights whose way takes time that is worth telling, by its ends; the lags learn of what is waited for."""
    found = {}
    for move in weight_moves(request):
        key = (move.source, move.target)
        if move.every == 1:
            lags[key] = min(lags.get(key, move.lag), move.lag)
        elif transfers.most_s(moved_weights(request, move), request.generators) / move.every <= costs.tolerance_s:
            continue
        found[key] = move
    return found


def _same_arrival(
    graph: Dataflow,
    costs: FlowCosts,
    calls: Sequence[CallCandidates],
    rows: Sequence[IntArray],
    pair: tuple[int, int],
) -> SameArrival | None:
    """That an engine which runs two calls of a role loads what arrives once; None where one waits for the other.

    Args:
        graph: The workflow.
        costs: Ways to run each call.
        calls: Candidates of all calls.
        rows: Which way each candidate is.
        pair: Indices of the two.
    """
    name, before = (graph.order[call] for call in pair)
    if name == before or before in graph.ancestors(name) or name in graph.ancestors(before):
        return None
    ways = [costs.rows[graph.order[call]].take(rows[call]) for call in pair]
    engines = sorted({name for held in ways for name in held.table.engines})

    def keys(held: CallRows, mesh: CallCandidates) -> IntArray:
        engine = np.array([engines.index(name) for name in held.table.engines])[held.table.engine[held.row]]
        place = mesh.start * (MOST_GPUS + 1) + mesh.size
        return np.asarray((held.layout * len(engines) + engine) * (MOST_GPUS + 1) ** 2 + place)

    child_key, sibling_key = (keys(held, calls[call]) for held, call in zip(ways, pair, strict=True))
    return SameArrival(sibling=pair[1], child_key=child_key, sibling_key=sibling_key)


def _drops(holding: IntArray, calls: Sequence[CallCandidates], child: int) -> bool:
    """Whether weights that arrive for a call may be dropped after it, on GPUs that other calls could run on."""
    own = calls[child]
    beside = [call for index, call in enumerate(calls) if index != child and call.size.any()]
    others = [call.start.min() < own.stop.max() and own.start.min() < call.stop.max() for call in beside]
    return bool((holding == DELIVERED).any() and any(others))


def moved_weights(request: FlowRequest, move: Move) -> Payload:
    """What a move carries."""
    return payload(request, request.graph.call(move.source).role, move.role)


def _lead(
    request: FlowRequest, costs: FlowCosts, ends: tuple[str, str], rows: tuple[IntArray, IntArray]
) -> PairTimes | None:
    """How early a call may start before the end of another, or must start after it; None where neither counts."""
    graph, early = request.graph, reads_early(request.graph, *ends)
    if not early and not in_flight(request, ends[0]):
        return None
    classes, streams = [], []
    for name, row in zip(ends, rows, strict=True):
        found, place = np.unique(row, return_inverse=True)
        classes.append(place)
        call, ways = graph.call(name), costs.rows.get(name)
        streams.append(service_end(call, request.batch) if ways is None else _stream_end(ways.take(found)))
    source, target = streams
    if not early:
        target = replace(target, parts=np.ones(len(target.parts), dtype=np.int64))
    time_s = lead_s(source, target)
    if np.abs(time_s).max() <= costs.tolerance_s:
        return None
    return PairTimes(source_class=classes[0], target_class=classes[1], time_s=time_s)


def _stream_end(rows: CallRows) -> StreamEnd:
    return StreamEnd(time_s=rows.time_s, ready_s=rows.ready_s, work_s=rows.table.time_s[rows.row], parts=rows.parts)


def _transfer(
    transfers: TransferPrices, ends: Sequence[PlacedRows], move: Move | None, data: HandedOn | None
) -> PairTimes:
    """Seconds per iteration of all that moves along an edge, of which at least one is given."""
    source, target = ends
    parts = []
    if move is not None:
        weights = transfers.between(source, target)
        parts.append(replace(weights, time_s=weights.time_s / move.every))
    if data is not None:
        parts.append(transfers.handed_on(source, target, data.total_bytes))
    time_s = parts[0].time_s
    for part in parts[1:]:
        time_s = time_s + part.time_s
    return replace(parts[0], time_s=time_s)


def weight_moves(request: FlowRequest) -> tuple[Move, ...]:
    """From the training call of each role to every other call on it, and along copies, rare ones too."""
    graph, moves = request.graph, []
    lag = {
        (edge.source, edge.target): edge.distance
        for edge in iteration_edges(graph, dependency=request.dependency, staleness=request.ahead)
    }
    for role in graph.roles:
        trains = [call.name for call in graph.calls_of(role.name) if call.kind == TRAIN]
        if not trains:
            continue
        source = trains[0]
        targets = [(call.name, role.name, 1) for call in graph.calls_of(role.name) if call.kind != TRAIN]
        for copy in graph.copies:
            if copy.source == role.name:
                targets += [(call.name, copy.target, copy.every) for call in graph.calls_of(copy.target)]
        for target, owner, every in targets:
            within = source in graph.ancestors(target)
            distance = 0 if within else lag.get((source, target), 1)
            moves.append(Move(source=source, target=target, role=owner, lag=distance, every=every))
    return tuple(moves)


def _replicas(request: FlowRequest) -> tuple[tuple[int, int], ...]:
    """Calls that may share weights with the first training call of their role, or else its first call."""
    graph = request.graph
    index = {name: place for place, name in enumerate(graph.order)}
    pairs = []
    for role in graph.roles:
        calls = graph.calls_of(role.name)
        if len(calls) < 2:
            continue
        sibling = next((call for call in calls if call.kind == TRAIN), calls[0])
        pairs += [(index[call.name], index[sibling.name]) for call in calls if call.name != sibling.name]
    return tuple(pairs)
