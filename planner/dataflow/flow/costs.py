"""Every way to run every call of a workflow, priced: the graph's calls meet models, cluster and workload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.flops import model_flops_per_step
from costmodels.lowering.grouping import group_rows
from costmodels.model_calls import CallKind, CallTable, ModelCall, concatenated
from costmodels.plan import IntArray
from costmodels.serving.generation import prompt_job
from costmodels.workload import ADAPTER_TASKS, QUANTISED_TASK, LoraSpec
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.dataflow.compositions import HeldExperts, held_experts, in_turn, with_places
from planner.dataflow.flow.payloads import payload
from planner.dataflow.flow.pins import CallPin
from planner.dataflow.flow.placement import on_whole_pools
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.transfers import TransferPrices
from planner.dataflow.graphs.graph import EXTERNAL, FULL, GENERATE, INFERENCE, TRAIN, Call
from planner.dataflow.graphs.roles import VALUE_HEAD
from planner.dataflow.holdings import (
    ALL_OUT,
    DELIVERED,
    FETCHED,
    RESIDENT,
    STATES_OUT,
    CallRows,
    held_rows,
    shareable,
    useful_rows,
)
from planner.dataflow.rollouts import IN_FLIGHT
from planner.dataflow.strategies import training_job
from planner.dataflow.streams import input_parts, read_early, ready_shares
from profiles.engines import TRAINER
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.mixed_cluster import MixedCluster
from profiles.model import ModelSpec
from profiles.precision import parse_precision

TOLERANCE = 5e-4  # of all calls at their fastest one after the other: times closer than this count as equal


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowCosts:
    """Ways to run each call of a workflow on a cluster.

    Attributes:
        rows: Call to its ways; external services are left out.
        sizes: Numbers of GPUs that were priced, by kind of machines.
        tolerance_s: Seconds per iteration that are not worth telling apart.
    """

    rows: Mapping[str, CallRows]
    sizes: tuple[tuple[int, ...], ...]
    tolerance_s: float


def model_call(request: FlowRequest, call: Call) -> ModelCall:
    """What a call of the graph computes per iteration."""
    role = request.graph.role(call.role)
    sequences = call.sequences(request.batch)
    if call.shared:
        # Branches that share what comes before them are fewer sequences' worth of tokens over as many steps.
        sequences = max(round(sequences * (1 - call.shared)), 1)
    # Passes without gradients run the trainer's own weights: where these lie in 4 bits, in those, adapters on or off
    # (TRL's DPOTrainer, null_ref_context). Other copies beside adapters are of 16 bits.
    adapted = call.kind == TRAIN or (call.kind == INFERENCE and role.task == QUANTISED_TASK)
    lora = role.adapters(request.models[call.role]).lora if adapted else None
    flies = in_flight(request, call.name)
    learning = call.kind == GENERATE and request.graph.trainable(call.role)
    score_bytes, vocabulary_bytes = _read_bytes(request, call.name)
    found = ModelCall(
        kind=CallKind(call.kind),
        num_sequences=sequences,
        prompt_tokens=request.prompt_tokens,
        output=request.output if call.span == FULL else None,
        mini_batches=call.mini_batches,
        samples_per_prompt=call.group,
        value_head=role.head == VALUE_HEAD,
        precision=request.precision,
        task="full" if lora is None else role.task,
        lora=lora or LoraSpec(),
        carried_over=request.carried_over if learning else 0,
        in_flight=flies,
        batches_in_flight=request.staleness if flies else 1,
        keeps_cache=request.options.keep_cache and learning,
        read_early=call.kind == GENERATE and read_early(request.graph, call.name),
        score_bytes_per_token=score_bytes,
        vocabulary_bytes_per_token=vocabulary_bytes,
    )
    if call.kind == GENERATE:  # computes no loss, and has its engine's attention
        return found
    asked = request.options.linear_loss
    joined = request.stacks[call.role].joins_loss(found.sequence_tokens) if asked is None else asked
    return replace(found, linear_cross_entropy=joined, attention_library=request.options.attention_library or "")


def prompts(request: FlowRequest, call: Call) -> int:
    """Prompts that a call works on per iteration, each of which one expert of a composition answers."""
    asked = model_call(request, call)
    return asked.num_sequences // asked.samples_per_prompt


def experts_of(request: FlowRequest, call: Call, rows: CallRows, row: int) -> HeldExperts | None:
    """Where the experts of a composition lie in a way to run a call on it; None of a single model."""
    role = request.graph.role(call.role)
    return held_experts(rows, row, role, prompts(request, call), group=call.group) if role.experts > 1 else None


def in_flight(request: FlowRequest, name: str) -> bool:
    """Whether new weights reach a call while it runs; the first to generate within an iteration only."""
    graph = request.graph
    generating = {call.name for call in graph.calls if call.kind == GENERATE and graph.trainable(call.role)}
    first = name in generating and not generating & graph.ancestors(name)
    return request.options.rollout == IN_FLIGHT and first


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOn:
    """Data that one call writes and another reads, per iteration.

    Attributes:
        source: Call that writes.
        target: Call that reads.
        keys: What is handed on.
        total_bytes: All of it.
    """

    source: str
    target: str
    keys: tuple[str, ...]
    total_bytes: float


def handed_on(request: FlowRequest) -> tuple[HandedOn, ...]:
    """Data along every edge within an iteration.

    The first key of a generating call is token identities of 8 bytes each; every other number of a token takes 4. Of a
    part of the vocabulary every number comes with its place there of 4 bytes.
    """
    graph, found = request.graph, []
    for name in graph.order:
        for parent in graph.parents(name):
            keys = tuple(key for key in graph.call(name).inputs if key in graph.call(parent).outputs)
            total = sum(key_bytes(request, graph.call(parent), key) for key in keys)
            found.append(HandedOn(source=parent, target=name, keys=keys, total_bytes=total))
    return tuple(found)


def key_bytes(request: FlowRequest, call: Call, key: str) -> float:
    """Bytes of one key that a call writes per iteration."""
    if call.kind not in (GENERATE, INFERENCE):
        return 0.0
    length = request.prompt_tokens + (request.output.mean if call.span == FULL else 0.0)
    each = _score_bytes(request, call) if call.kind == INFERENCE else 4.0
    if call.kind == GENERATE and key == call.outputs[0]:
        each = 8.0
    return call.sequences(request.batch) * length * each


def _score_bytes(request: FlowRequest, call: Call) -> float:
    """Bytes of what an inference call writes per token."""
    number = parse_precision(request.precision).storage_bytes
    if call.scores == 0:
        return request.models[call.role].vocab_size * number
    return call.scores * (number + 4.0) if call.scores > 1 else 4.0


def _read_bytes(request: FlowRequest, name: str) -> tuple[float, float]:
    """Bytes per token that a call reads of scores: of parts of the vocabulary, and of all of it."""
    graph, found = request.graph, [0.0, 0.0]
    for parent in graph.parents(name):
        source = graph.call(parent)
        if source.kind == INFERENCE and source.scores != 1:
            keys = sum(key in source.outputs for key in graph.call(name).inputs)
            found[source.scores == 0] += keys * _score_bytes(request, source)
    return found[0], found[1]


def call_flops(request: FlowRequest, name: str) -> float:
    """FLOPs one call needs per iteration, causal attention in half; a token passes a model once to be generated.

    A prompt that several responses share passes it once too.
    """
    call = request.graph.call(name)
    if call.kind == EXTERNAL:
        return 0.0
    asked = model_call(request, call)
    model = asked.model(request.models[call.role])
    if call.kind != TRAIN:  # of which a third is the forward pass only where all weights are trained
        asked = replace(asked, task="full")
    per_step = model_flops_per_step(model, training_job(asked), causal=True)
    if call.kind == TRAIN:
        return per_step * asked.mini_batches
    if call.kind == GENERATE:
        per_step -= model_flops_per_step(model, prompt_job(asked), causal=True) * (1 - 1 / asked.samples_per_prompt)
    return per_step / 3


def peak_flops_per_s(request: FlowRequest, device: DeviceSpec) -> float:
    """Of one device, in the format of the products."""
    return device.peak(parse_precision(request.precision).gemm_format)


def flow_costs(request: FlowRequest, cluster: MixedCluster, sizes: Sequence[Sequence[int]]) -> FlowCosts:
    """Price every call on each number of GPUs of each kind of machines.

    Args:
        request: Graph, models, workload and what is fixed.
        cluster: The GPUs, or the part of them that is considered.
        sizes: Numbers of GPUs of the meshes there are, for each kind of machines.

    Returns:
        Ways without dominated ones; a call without any has an empty entry.
    """
    by_kind = [
        _tables(request, group, group_sizes) if len(group_sizes) else {}
        for group, group_sizes in zip(cluster.groups, sizes, strict=True)
    ]
    tables: dict[str, CallTable] = {}
    machines: dict[str, IntArray] = {}
    for name in dict.fromkeys(name for priced in by_kind for name in priced):
        tables[name] = concatenated([priced[name] for priced in by_kind if name in priced])
        machines[name] = np.repeat(np.arange(len(by_kind)), [len(priced.get(name, ())) for priced in by_kind])
    rows: dict[str, CallRows] = {}
    tolerance_s = TOLERANCE * sum(float(table.time_s.min(initial=np.inf)) for table in tables.values())
    for role in request.graph.roles:
        rows |= _role_rows(request, cluster, role.name, tables, machines, tolerance_s)
    return FlowCosts(rows=rows, sizes=tuple(tuple(group_sizes) for group_sizes in sizes), tolerance_s=tolerance_s)


def _tables(request: FlowRequest, cluster: ClusterSpec, sizes: Sequence[int]) -> dict[str, CallTable]:
    """Ways to run every call on one kind of machines; equal calls are priced once."""
    priced: dict[tuple[ModelCall, ModelSpec, CallSetting, frozenset[tuple[str, int]]], CallTable] = {}
    tables: dict[str, CallTable] = {}
    for name in request.graph.order:
        call = request.graph.call(name)
        if call.kind == EXTERNAL:
            continue
        model, pin = request.models[call.role], request.pins.get(name, CallPin())
        setting = call_setting(request, call, cluster)
        ways = []

        def price(
            asked: ModelCall, model: ModelSpec = model, setting: CallSetting = setting, pin: CallPin = pin
        ) -> CallTable:
            key = (asked, model, setting, frozenset(pin.columns.items()))
            if key not in priced:
                priced[key] = call_costs(asked, model, setting, sizes, pins=pin.columns)
            return priced[key]

        role = request.graph.role(call.role)
        for asked in _ways(model_call(request, call)):
            ways.append(price(asked) if role.experts == 1 else in_turn(role, asked, price))
        table = _pinned(concatenated(ways), pin)
        if call.kind != TRAIN and role.task in ADAPTER_TASKS:
            # A copy of the base that does not train holds the adapters beside it.
            beside = payload(request, call.role, call.role).share
            table = replace(table, static_bytes=table.static_bytes * (1 + beside))
        tables[name] = table
    return tables


def _ways(asked: ModelCall) -> tuple[ModelCall, ...]:
    """A call as asked; where the next may fill the slots of the last sequences, also without that.

    Engines that run on may let what they hold end before they take more, which ends the last sequences sooner.
    """
    return (
        (asked, replace(asked, in_flight=False, batches_in_flight=1, read_early=True)) if asked.in_flight else (asked,)
    )


def call_setting(request: FlowRequest, call: Call, cluster: ClusterSpec) -> CallSetting:
    """What a call runs on and with."""
    between = request.graph.trains_between_generations
    return CallSetting(
        cluster=cluster,
        stack=request.stacks[call.role],
        engines=request.engines_of(call),
        between_training=between,
        tensor_overlap=not between,
        eager=request.options.eager,
    )


def _role_rows(
    request: FlowRequest,
    cluster: MixedCluster,
    role: str,
    tables: Mapping[str, CallTable],
    machines: Mapping[str, IntArray],
    tolerance_s: float,
) -> dict[str, CallRows]:
    """Ways to run and hold every call of a role."""
    calls = request.graph.calls_of(role)
    host = [group.node.host_copy_bytes_per_s for group in cluster.groups]
    layouts = dict(zip([call.name for call in calls], _layouts([tables[call.name] for call in calls]), strict=True))
    trained = np.concatenate([layouts[call.name] for call in calls if call.kind == TRAIN] or [np.zeros(0, dtype=int)])
    moves = len(calls) > 1 and request.graph.trainable(role)
    alone = all(role not in (copy.source, copy.target) for copy in request.graph.copies)
    moves = moves or not alone
    keeps_base = request.graph.role(role).task in ADAPTER_TASKS
    prices, handed = TransferPrices.on(cluster), handed_on(request)
    rows = {}
    for call in sorted(calls, key=lambda each: each.kind != TRAIN):  # others share weights with what trains, or none
        name = call.name
        table = tables[name]
        held = held_rows(
            table,
            layouts[name],
            holdings_of(request, call),
            host,
            machines[name],
            ready=ready_shares(table) if read_early(request.graph, name) or in_flight(request, name) else None,
            parts=input_parts(table) if call.stream else None,
        )
        if request.graph.role(role).experts > 1:
            nodes = [group.node for group in cluster.groups]
            held = with_places(held, request.graph.role(role), prompts(request, call), nodes)
        if call.kind == TRAIN or not len(trained):
            shared = np.full(len(held), len(calls) > 1 and not len(trained)) & (held.holding == RESIDENT)
        else:
            shared = shareable(held, trained)
            if not keeps_base:
                # A copy of weights that arrive anew is worth keeping only where the trained ones lie alike.
                useful = np.flatnonzero((held.holding != RESIDENT) | shared)
                held, shared = held.take(useful), shared[useful]
        engines = request.generators if call.kind != INFERENCE else ()
        slack_s = prices.most_s(payload(request, role if alone else "", role), engines) if moves else 0.0
        most_s = slack_s + sum(
            prices.most_handed_on_s(data.total_bytes)
            for data in handed
            if name in (data.source, data.target) and prices.most_handed_on_s(data.total_bytes) > tolerance_s
        )
        rows[name] = useful_rows(held, slack_s=most_s, tolerance_s=tolerance_s, kept=shared)
        if call.kind == TRAIN:
            trained = rows[name].layout
    return {call.name: rows[call.name] for call in calls}


def holdings_of(request: FlowRequest, call: Call) -> tuple[int, ...]:
    """Where the weights of a call may lie between its runs."""
    role, offload = request.graph.role(call.role), request.options.offload
    if role.experts > 1:
        return (RESIDENT,)  # which of them stay is a matter of its own
    if call.kind == TRAIN:
        return (RESIDENT, STATES_OUT, ALL_OUT) if offload else (RESIDENT,)
    if request.graph.trainable(call.role) and role.task not in ADAPTER_TASKS:
        # A copy beside the weights that train needs no more than their gradients, which may leave.
        return (DELIVERED,) if offload and call.name in on_whole_pools(request) else (RESIDENT, DELIVERED)
    return (RESIDENT, FETCHED) if offload and not role.stays else (RESIDENT,)


def _pinned(table: CallTable, pin: CallPin) -> CallTable:
    """The rows that agree with what is fixed."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in pin.columns.items():
        keep &= getattr(table.plans, column) == value
    return table if keep.all() else table.take(np.flatnonzero(keep))


def _layouts(tables: Sequence[CallTable]) -> list[IntArray]:
    """Numbers for the layouts of a role's calls, equal where its weights lie alike.

    Engines other than the trainer lay weights out alike, but never as the trainer does.
    """
    every = []
    for table in tables:
        columns = table.layout()
        columns[:, 1] = np.asarray([name == TRAINER for name in table.engines], dtype=np.int64)[table.engine]
        every.append(columns)
    if not every:
        return []
    number = group_rows(*np.concatenate(every).T).of_row
    ends = np.cumsum([len(columns) for columns in every])
    return [np.asarray(part, dtype=np.int64) for part in np.split(number, ends[:-1])]
