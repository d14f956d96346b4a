"""What one model call costs on every number of devices with every legal strategy, through the one cost path.

``call_costs`` is what the compiler of dataflows and their searches build on: they choose rows of its tables and never
price anything themselves. Training rows come from ``costmodels.evaluate``, inference rows from
``costmodels.serving.forward``, generation rows from ``costmodels.serving.generation``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.estimate import EstimateBatch
from costmodels.evaluate import evaluate
from costmodels.kernels.calls import KernelCostModel
from costmodels.links.collectives import CollectiveCostModel
from costmodels.model_calls import CallKind, CallTable, ModelCall, concatenated
from costmodels.plan import ZERO_OF_WEIGHTS, FloatArray, PlanBatch, concatenate
from costmodels.serving.forward import forward_pass, weight_bytes
from costmodels.serving.generation import engine_context, generation, generation_memory, prompt_job
from costmodels.stages.parameters import stage_parameters
from costmodels.step.layer_costs import joined_devices
from planner.dataflow.engine_strategies import engine_strategies, running_choices
from planner.dataflow.solving.dominance import undominated
from planner.dataflow.strategies import strategies, training_job
from planner.prices.price_lists import collective_model, kernel_model_of
from planner.question.jobs import with_attention
from planner.rules.base import MEGATRON
from profiles.engines import TRAINER as TRAINER
from profiles.engines import EngineSpec, find_engine
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES, ClusterSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec
from profiles.weights import WeightFormat

_PERSISTENT = ("weights", "gradients", "optimizer")
_ROUNDING = 1e-9  # relative, of bytes that are sums
MAX_SIZES = 4096
# Answers: the clusters that are tried for a workflow that does not fit have most of their meshes in common, as have the
# questions of a day. A size takes some 20 to 200 kB; engines are asked for all sizes at once.
_REMEMBERED, _REMEMBERED_OF_ENGINES = 128, 16
# Trainers that generate run Megatron's own distributed optimizer: verl 0.9.1 McoreEngineConfig has nothing beyond it.
_MOST_ZERO_BETWEEN = {MEGATRON: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSetting:
    """What all calls of a dataflow have in common.

    Attributes:
        cluster: The devices; calls take some of them.
        stack: The training framework, which also runs inference.
        engines: Engines generation may use.
        between_training: Whether the dataflow trains on what it generates; both then take longer for it, and the stack
            says so of training (``profiles.stacks.in_reinforcement_learning``).
        tensor_overlap: Whether tensor-parallel traffic runs under products where it may, as in plans of single jobs.
            Between generations it does not: NeMo-RL's steps were fitted without.
        weights: How matrices lie in the checkpoints that engines load; None for the format of their call.
        eight_bit_cache: They keep keys and values in 8 bits.
        eager: They capture no CUDA graphs.
    """

    cluster: ClusterSpec
    stack: StackSpec
    engines: tuple[str, ...] = (TRAINER,)
    between_training: bool = False
    tensor_overlap: bool = False
    weights: WeightFormat | None = None
    eight_bit_cache: bool = False
    eager: bool = False


def call_costs(
    call: ModelCall,
    model: ModelSpec,
    setting: CallSetting,
    sizes: Sequence[int],
    *,
    pins: Mapping[str, int] | None = None,
    fitting: bool = True,
) -> CallTable:
    """Every useful way to run a call on each of some numbers of devices.

    Args:
        call: What is computed.
        model: The model, as its role names it; ``call.value_head`` gives it the head it needs.
        setting: Cluster, training framework and engines.
        sizes: Numbers of devices: part of a node, or whole nodes.
        pins: Plan columns of a training or inference call that are fixed, if any.
        fitting: Leave out rows that do not fit a device even on their own; else engines generate one sequence at a time
            where there is no room for any.

    Returns:
        Rows without dominated ones (``planner.dataflow.solving.dominance``), grouped by layout; empty when no layout is
        legal.

    Raises:
        SpecError: If a size is not one the cluster has, or no engine of that name is known.
    """
    _check_sizes(sizes, setting.cluster)
    asked = _Asked(
        call=call,
        model=call.model(model),
        setting=setting,
        pins=tuple(sorted((pins or {}).items())),
        fitting=fitting,
        kernels=kernel_model_of(setting.cluster.device),
        collectives=collective_model(),
        sizes=tuple(sizes),
    )
    if call.kind is not CallKind.GENERATE:
        each = setting.cluster.node.devices_per_node
        return concatenated(
            [
                table
                for nodes, filled in groupby(sizes, key=lambda size: -(-size // each))
                for table in _trainer_rows(asked.on(nodes, tuple(filled)))
            ]
        )
    if not setting.engines:
        raise SpecError("engines", "names none, but the call generates", f"for example {TRAINER}")
    engines = [find_engine(name) for name in setting.engines]
    engines = [engine for engine in engines if engine.runs_on(setting.cluster.device)]
    engines = [engine.eager() if setting.eager else engine for engine in engines]
    engines = [engine.between_training() if setting.between_training else engine for engine in engines]
    return _useful(concatenated([_generation(asked, engine) for engine in engines]), setting, fitting=fitting)


def _useful(table: CallTable, setting: CallSetting, *, fitting: bool) -> CallTable:
    """The rows without dominated ones and, where asked for, without those that fit no device."""
    if fitting:
        table = table.take(np.flatnonzero(table.peak_bytes <= setting.cluster.device.usable_memory_bytes))
    return undominated(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """All that the rows of a call on some numbers of devices depend on.

    Attributes:
        call, model: What is computed.
        setting: Training framework, and the nodes that the devices fill.
        pins: Plan columns of a training or inference call that are fixed.
        fitting: Whether rows that fit no device are left out.
        kernels, collectives: Price lists.
        sizes: Numbers of devices.
    """

    call: ModelCall
    model: ModelSpec
    setting: CallSetting
    pins: tuple[tuple[str, int], ...]
    fitting: bool
    kernels: KernelCostModel
    collectives: CollectiveCostModel
    sizes: tuple[int, ...]

    def on(self, nodes: int, sizes: tuple[int, ...]) -> "_Asked":
        """The question of sizes that fill so many nodes; it is the same on larger clusters of the same nodes."""
        part = replace(self.setting.cluster, num_nodes=nodes)
        return replace(self, sizes=sizes, setting=replace(self.setting, cluster=part))


@lru_cache(maxsize=_REMEMBERED)
def _trainer_rows(asked: _Asked) -> tuple[CallTable, ...]:
    """Useful rows of a training or inference call on each number of devices, all of which are priced at once."""
    call, model, setting = asked.call, asked.model, asked.setting
    each = [
        strategies(
            model,
            call,
            size,
            stack=setting.stack,
            domain_devices=setting.cluster.domain_devices,
            pins=dict(asked.pins),
            overlapped_devices=joined_devices(setting.cluster) if setting.tensor_overlap else 0,
            most_zero=_most_zero(setting),
        )
        for size in asked.sizes
    ]
    table = price_plans(concatenate(each), call, model, setting)
    rows = np.split(np.arange(len(table)), np.cumsum([len(plans) for plans in each])[:-1])
    return tuple(_useful(table.take(mine), setting, fitting=asked.fitting) for mine in rows)


def _most_zero(setting: CallSetting) -> int:
    """Highest ZeRO stage considered unasked."""
    limits = _MOST_ZERO_BETWEEN if setting.between_training else {}
    return limits.get(setting.stack.framework, ZERO_OF_WEIGHTS)


def call_context(call: ModelCall, model: ModelSpec, setting: CallSetting) -> CostContext:
    """What prices of a training or inference call depend on besides the plan.

    Free blocks that an allocator keeps while there is room for them are not memory the call needs. Models that are not
    trained have no fp32 weights that autocast would cast.
    """
    trains = call.kind is CallKind.TRAIN
    stack, device = setting.stack.without_cache(), setting.cluster.device
    return CostContext(
        model=model,
        cluster=setting.cluster,
        job=with_attention(training_job(call), None, stack, setting.cluster, model)[0],
        stack=stack if trains else replace(stack, autocast_weights=False),
        kernels=kernel_model_of(device),
        collectives=collective_model(),
        forward_only=not trains,
        weights=None if trains else setting.weights,
        eight_bit_cache=setting.eight_bit_cache and not trains,
    )


def _check_sizes(sizes: Sequence[int], cluster: ClusterSpec) -> None:
    if not 1 <= len(sizes) <= MAX_SIZES:
        raise SpecError("sizes", f"must be 1 to {MAX_SIZES} numbers of devices; got {len(sizes)}")
    each = cluster.node.devices_per_node
    for size in sizes:
        if not 1 <= size <= min(cluster.num_devices, MAX_DEVICES):
            raise SpecError("sizes", f"must be between 1 and the {cluster.num_devices} devices; got {size}")
        if size > each and size % each:
            raise SpecError("sizes", f"must be whole nodes of {each} devices, or part of one; got {size}")


def price_plans(plans: PlanBatch, call: ModelCall, model: ModelSpec, setting: CallSetting) -> CallTable:
    """The given plans of a training or inference call, priced in order.

    Args:
        plans: Degrees, micro-batches and the rest, as ``planner.dataflow.strategies`` makes them.
        call: What is computed.
        model: With the head the call needs.
        setting: Cluster and training framework.
    """
    context = call_context(call, model, setting)
    table = _training(plans, call, context) if call.kind is CallKind.TRAIN else _inference(plans, context)
    return replace(table, active_bytes=table.active_bytes + _read_bytes(plans, call))


def _read_bytes(plans: PlanBatch, call: ModelCall) -> FloatArray:
    """(N,) bytes of scores that a micro-batch reads on one device."""
    each = call.score_bytes_per_token + call.vocabulary_bytes_per_token / plans.tensor_parallel
    return np.asarray(plans.micro_batch_size * call.sequence_tokens / plans.context_parallel * each)


def _training(plans: PlanBatch, call: ModelCall, context: CostContext) -> CallTable:
    priced = evaluate(plans, context)
    static, active = _split(priced)
    parameters = stage_parameters(plans, priced.stages, context.model, context.job)
    return CallTable(
        engines=(TRAINER,),
        engine=np.zeros(len(plans), dtype=np.int64),
        plans=plans,
        concurrent=np.zeros(len(plans), dtype=np.int64),
        time_s=priced.step_time_s * call.mini_batches,
        low_s=priced.step_time_low_s * call.mini_batches,
        high_s=priced.step_time_high_s * call.mini_batches,
        static_bytes=static,
        weight_bytes=np.minimum(largest(weight_bytes(plans, parameters, context)), static),
        active_bytes=active,
        offloadable_bytes=static,
        basis=priced.basis,
    )


def _split(priced: EstimateBatch) -> tuple[FloatArray, FloatArray]:
    """(N,) bytes held between calls on the stage that holds most, and what the fullest stage takes beyond that."""
    static = largest(total(priced.memory_parts_bytes[name] for name in _PERSISTENT))
    return static, np.maximum(priced.peak_memory_bytes - static, 0.0)


def _inference(plans: PlanBatch, context: CostContext) -> CallTable:
    priced = forward_pass(plans, context)
    return CallTable(
        engines=(TRAINER,),
        engine=np.zeros(len(plans), dtype=np.int64),
        plans=plans,
        concurrent=np.zeros(len(plans), dtype=np.int64),
        time_s=priced.time_s,
        low_s=priced.low_s,
        high_s=priced.high_s,
        static_bytes=priced.weight_bytes,
        weight_bytes=priced.weight_bytes,
        active_bytes=np.maximum(priced.peak_bytes - priced.weight_bytes, 0.0),
        offloadable_bytes=priced.weight_bytes,
        basis=priced.basis,
    )


@lru_cache(maxsize=_REMEMBERED_OF_ENGINES)
def _generation(asked: _Asked, engine: EngineSpec) -> CallTable:
    """Rows of one engine: every layout with as many sequences at once as fit the engine's memory, and with fewer."""
    call, model, setting = asked.call, asked.model, asked.setting
    plans = engine_strategies(
        model,
        call,
        asked.sizes,
        engine,
        stack=setting.stack,
        domain_devices=setting.cluster.domain_devices,
    )
    return price_generation(plans, call, model, setting, engine, at_least_one=not asked.fitting)


def price_generation(
    plans: PlanBatch,
    call: ModelCall,
    model: ModelSpec,
    setting: CallSetting,
    engine: EngineSpec,
    *,
    room_bytes: float | None = None,
    at_least_one: bool = False,
) -> CallTable:
    """The given layouts of a generation call, each with several numbers of sequences at once.

    Args:
        plans: Degrees, and prompts read at once, as ``planner.dataflow.engine_strategies`` makes them.
        call: What is generated.
        model: Whose tokens.
        setting: Cluster and training framework.
        engine: Who generates.
        room_bytes: Device memory the engine may use; its own share unless given.
        at_least_one: Take room for one sequence where there is none.

    Returns:
        Several rows per plan; none for a plan that has no room for a sequence.
    """
    context = call_context(call, model, setting)
    engine = engine.on_host(setting.cluster.node.host_time_scale)
    memory = generation_memory(plans, call, engine, engine_context(context, engine, prompt_job(call)))
    own = engine.room_bytes(setting.cluster.device, memory.weight_bytes, memory.beside_bytes)
    room = own if room_bytes is None else np.full(len(plans), room_bytes)
    if at_least_one:
        alone = memory.active_bytes(np.ones(len(plans), dtype=np.int64), np.zeros(len(plans), dtype=np.bool_))
        room = np.maximum(room, (memory.weight_bytes + alone) * (1 + _ROUNDING))
    per_replica = -(-call.num_sequences // plans.data_parallel)
    chosen = running_choices(memory, engine, per_replica, room, batches=call.batches_in_flight)
    plans, memory = plans.take(chosen.plan), memory.take(chosen.plan)
    priced = generation(plans, call, engine, context, chosen.count, chosen.staggered)
    return CallTable(
        engines=(engine.name,),
        engine=np.zeros(len(plans), dtype=np.int64),
        plans=plans,
        concurrent=chosen.count,
        time_s=priced.time_s,
        low_s=priced.low_s,
        high_s=priced.high_s,
        static_bytes=memory.weight_bytes,
        weight_bytes=memory.weight_bytes,
        active_bytes=memory.active_bytes(chosen.count, chosen.staggered),
        offloadable_bytes=memory.weight_bytes,
        basis=priced.basis,
        ready=priced.ready if call.read_early or call.in_flight else None,
    )
