"""Gradient and parameter traffic of data parallelism and ZeRO, per rank and step.

Volumes after Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 7): all-reduce is a
reduce-scatter and an all-gather of the parameters' size; stages 1 and 2 move the same volume, stage 3
gathers parameters once more for the backward pass. Hybrid sharding (HSDP) reduces across replicas of
the shard group besides, under Megatron with the last micro-batch alone. Routed experts move within the
ranks that hold the same experts. The two stages that hold a tied embedding sum its gradients as well.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.arrays import at_column, largest, largest_column, total
from costmodels.autocast import by_sharding
from costmodels.context import CostContext
from costmodels.frozen_weights import frozen_bytes
from costmodels.gradient_formats import reduced_element_bytes
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.grouping import group_rows
from costmodels.lowering.transfers import price_collectives, stalled_s
from costmodels.overlap import exposed_s
from costmodels.plan import AxisOrder, BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.stages.parameters import StageParameters, expert_shard_degree
from costmodels.stages.table import StageTable
from costmodels.tied_gradients import shared_gradients_s
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelTraffic:
    """Seconds of traffic of stages, and how often it happens; columns (N, S), or (N, 1) where one stands for all.

    Attributes:
        gradients_s: One reduction of all gradients.
        parameters_s: One gathering of all parameters.
        reduces_per_microbatch: 1 where gradients are reduced for every micro-batch, else 0.
        gathers_per_microbatch: How often parameters are gathered for every micro-batch: 2, for its forward and its
            backward pass; 1, for both together; or 0 where once per step is enough.
        hidden_gathers, hidden_reductions: Share that runs under computation where there is enough of it.
        replicas_s: Sum over the replicas of a set of shards, where the last reduction of a step alone has it; else it
            is part of every reduction.
        shared_s: Sum of a tied embedding's gradients over the two stages that hold it, once per step, after all others:
            nothing hides it.
        stalls_s: What every reduction waits for besides, and the pass with it.
        low_factor, high_factor: 90 % interval of all kinds together, over their seconds; 1 unless asked for.
    """

    gradients_s: FloatArray
    parameters_s: FloatArray
    reduces_per_microbatch: FloatArray
    gathers_per_microbatch: FloatArray
    hidden_gathers: FloatArray
    hidden_reductions: FloatArray
    replicas_s: FloatArray = field(default_factory=lambda: np.zeros((1, 1)))
    shared_s: FloatArray = field(default_factory=lambda: np.zeros((1, 1)))
    stalls_s: FloatArray = field(default_factory=lambda: np.zeros((1, 1)))
    low_factor: FloatArray = field(default_factory=lambda: np.ones((1, 1)))
    high_factor: FloatArray = field(default_factory=lambda: np.ones((1, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shards:
    """One kind of parameters of K plans: how many of them, over which ranks.

    Attributes:
        trained: (K,) parameters whose gradients are reduced.
        gathered_bytes: (K,) bytes of the parameters that are gathered.
        layers: (K,) layers they belong to.
        replicas: (K,) ranks that hold the same ones before sharding.
        degree: (K,) of those, ranks that one set of shards spans.
        stride: (K,) distance of these ranks in the global order.
        pieces: (K,) calls in which ZeRO-3 gathers those of one layer.
    """

    trained: FloatArray
    gathered_bytes: FloatArray
    layers: FloatArray
    replicas: IntArray
    degree: IntArray
    stride: IntArray
    pieces: FloatArray


def reduces_last(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether gradients add up whole on every rank until the last micro-batch of a step reduces the sums of all.

    Source:
        PyTorch's FullyShardedDataParallel.no_sync ("accumulate the full model gradients (instead of gradient shards)"),
        in which Hugging Face's Trainer runs all micro-batches but the last unless DeepSpeed shards
        (transformers/trainer.py); Accelerate's guide to gradient synchronization warns of the memory. FSDP2 likewise
        where ``set_requires_gradient_sync`` is off, in its ``reduce_dtype`` and beside the only shard of a rank alone
        (FSDPParam.to_accumulated_grad_if_needed of torch/distributed/fsdp/_fully_shard).
    """
    waits = (plans.zero_stage >= stack.shards_parameters_from) & (plans.pipeline_parallel == 1)
    beside = (plans.shard_degree > 1) | bool(stack.reduce_dtype)
    found: BoolArray = waits & beside & (plans.num_microbatches > 1)
    return found & stack.reduces_last


def data_parallel_traffic(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    context: CostContext,
    *,
    each_stage: bool = False,
) -> DataParallelTraffic:
    """Price the traffic of every stage, once per distinct one.

    Returns:
        Columns (N, 1) where one stage of every plan has most traffic of all kinds, which then stands for all
        unless ``each_stage`` is asked for.
    """
    groups = group_rows(
        parameters.groups.of_row,
        plans.pipeline_parallel,
        plans.data_parallel,
        plans.context_parallel,
        plans.zero_shard_degree,
        np.clip(plans.zero_stage, 0, 3),
        plans.axis_order,
    )
    *kinds_s, low_s, high_s = _distinct_traffic(plans, stages, parameters, context, rows=groups.first)
    low, high = (_over(ends_s, total(kinds_s)) for ends_s in (low_s, high_s))
    gradients_s, replicas_s, parameters_s, shared_s = (
        np.take(kind_s, groups.of_row, axis=0) for kind_s in (kinds_s if each_stage else _slowest(kinds_s))
    )
    # ZeRO-3 gathers and reduces per micro-batch; kept whole between micro-batches under a pipeline.
    sharded = (plans.zero_stage == 3) & (plans.pipeline_parallel == 1)
    # So are gradients of stage 2 in PyTorch, whose pipeline stages reduce with the last backward pass alone
    # (backward_maybe_with_nosync of torch/distributed/pipelining/stage.py). Its stage 2 shards parameters too, and
    # leaves them whole from the forward to the end of the backward pass (fully_shard's reshard_after_forward and
    # set_reshard_after_backward, torch/distributed/fsdp/_fully_shard).
    fsdp, alone = context.stack.framework == "fsdp", plans.pipeline_parallel == 1
    scattered = (plans.zero_stage == 2) & (alone | (not fsdp))
    each_time = (sharded | scattered) & ~reduces_last(plans, context.stack)
    # Megatron-FSDP's hook sums over replicas when it is the last micro-batch (outer_fsdp_group_grad_reduce of
    # megatron/core/distributed/fsdp/src/megatron_fsdp/megatron_fsdp.py); FSDP2 does so every time.
    late = each_time & (context.stack.framework == "megatron")
    hidden = context.stack.data_parallel_overlap
    return DataParallelTraffic(
        gradients_s=gradients_s + np.where(late[:, None], 0.0, replicas_s),
        parameters_s=parameters_s,
        reduces_per_microbatch=1.0 * each_time[:, None],
        gathers_per_microbatch=(2.0 * sharded + (scattered & fsdp))[:, None],
        hidden_gathers=np.where(plans.overlap_param_gather, hidden, 0.0)[:, None],
        hidden_reductions=np.where(plans.overlap_grad_reduce, hidden, 0.0)[:, None],
        replicas_s=np.where(late[:, None], replicas_s, 0.0),
        shared_s=shared_s,
        low_factor=np.take(low, groups.of_row, axis=0),
        high_factor=np.take(high, groups.of_row, axis=0),
    )


def _over(ends_s: FloatArray, price_s: FloatArray) -> FloatArray:
    """(K, S) one end of an interval over the price; 1 where nothing is sent."""
    return np.divide(ends_s, price_s, out=np.ones_like(price_s), where=price_s > 0)


def _slowest(kinds_s: list[FloatArray]) -> list[FloatArray]:
    """The (K, S) columns, or only the one that is slowest in all kinds, if there is one in every row."""
    stage = largest_column(total(kinds_s))
    slowest = [at_column(kind_s, stage) for kind_s in kinds_s]
    if any((at < largest(kind_s)).any() for at, kind_s in zip(slowest, kinds_s, strict=True)):
        return kinds_s
    return [at[:, None] for at in slowest]


def exposed_traffic_s(
    traffic: DataParallelTraffic,
    *,
    num_microbatches: IntArray,
    num_stages: IntArray,
    virtual_stages: IntArray,
    forward_s: FloatArray,
    backward_s: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """(N,) exposed and total seconds per step of gradient and parameter traffic, on the stage where most shows.

    An interleaved stage sends what belongs to one of its v chunks while it works on the next: in the warm-up p
    micro-batches pass a chunk before the next one's parameters are needed, and in the end as many follow the last
    micro-batch of a chunk. Only the traffic of the first chunk forward, and of the last backward, has no more than one
    pass to hide under.

    Args:
        traffic: What is sent, and how often.
        num_microbatches: (N,) micro-batches per step.
        num_stages: (N,) stages p.
        virtual_stages: (N,) chunks per stage v.
        forward_s: (N,) forward time of one micro-batch on the slowest stage, under which parameters are gathered:
            where a stage is faster than that, it waits, and traffic goes on.
        backward_s: (N,) backward time of one micro-batch, under which gradients are reduced.

    Source:
        Megatron-Core, pipeline_parallel/schedules.py, forward_backward_pipelining_with_interleaving: parameters of the
        next chunk are gathered (param_sync_func) at the first micro-batch of a chunk, gradients of a chunk reduced
        (enable_grad_sync) after its last.
    """
    m, chunks = num_microbatches[:, None], virtual_stages[:, None]
    between = np.minimum(num_stages, num_microbatches)[:, None]
    forward_s, backward_s = forward_s[:, None], backward_s[:, None]
    gathers = np.where(traffic.gathers_per_microbatch > 0, m, 1)
    reduces = np.where(traffic.reduces_per_microbatch > 0, m, 1)
    gathered_again_s = (traffic.gathers_per_microbatch > 1) * traffic.parameters_s

    def shown_s(transfer_s: FloatArray, window_s: FloatArray, hidden: FloatArray, times: IntArray) -> FloatArray:
        """Seconds of one sending that show; where it happens once, chunk by chunk."""
        apart = np.where(times > 1, 1, chunks)
        under_one = exposed_s(transfer_s, window_s, hidden)
        under_several = exposed_s(transfer_s, between * window_s, hidden)
        return under_several + (under_one - under_several) / apart

    def backward(gradients_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Seconds that one backward pass sends, and those that show: gradients and parameters hide as the plan says."""
        sent_s = gradients_s + gathered_again_s
        may_hide_s = traffic.hidden_reductions * gradients_s + traffic.hidden_gathers * gathered_again_s
        hidden = np.divide(may_hide_s, sent_s, out=np.zeros_like(sent_s), where=sent_s > 0)
        return sent_s, shown_s(sent_s, backward_s, hidden, reduces)

    exposed = gathers * shown_s(traffic.parameters_s, forward_s, traffic.hidden_gathers, gathers)
    each_s, each_shown_s = backward(traffic.gradients_s)
    exposed = exposed + reduces * (each_shown_s + traffic.stalls_s) + traffic.shared_s
    sent = gathers * traffic.parameters_s + reduces * (each_s + traffic.stalls_s) + traffic.shared_s
    if traffic.replicas_s.any():
        last_s, last_shown_s = backward(traffic.gradients_s + traffic.replicas_s)
        exposed, sent = exposed + (last_shown_s - each_shown_s), sent + (last_s - each_s)
    return largest(exposed), largest(sent)


def _distinct_traffic(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext, *, rows: IntArray
) -> list[FloatArray]:
    """(K, S) seconds of traffic on the stages of the plans in ``rows``.

    One gradient reduction, its sum over replicas of a set of shards apart; one parameter gathering; the sum of the
    gradients of a tied embedding; and both ends of the interval of all together.
    """
    shape = parameters.dense[rows].shape

    def each(values: NDArray[Any]) -> NDArray[Any]:
        """Plan by plan, stage by stage: (K,) or (K, S) values as (K * S,)."""
        return np.repeat(values, shape[1]) if values.ndim == 1 else values.reshape(-1)

    distinct = plans.take(rows)
    zero = each(distinct.zero_stage)
    trained = [each(table[rows]) for table in (parameters.trained_dense, parameters.trained_expert)]
    storage_bytes = context.job.numerics.storage_bytes
    gathered = [each_trained * storage_bytes for each_trained in trained]
    if context.job.lora is not None:  # where parameters are sharded, frozen ones are too
        frozen = frozen_bytes(distinct, stages.take(rows), parameters.take(rows), context, plain_bytes=storage_bytes)
        whole = zero >= context.stack.shards_parameters_from
        gathered = [np.where(whole, each(held), moved) for held, moved in zip(frozen, gathered, strict=True)]
    apart = each(np.where(distinct.axis_order == int(AxisOrder.TP_CP_PP_DP), distinct.pipeline_parallel, 1))
    replicas = each(parameters.dense_replicas[rows])
    dense = _Shards(
        trained=trained[0],
        gathered_bytes=gathered[0],
        layers=each(parameters.layers[rows]),
        replicas=replicas,
        degree=np.minimum(each(distinct.shard_degree), replicas),
        stride=each(distinct.tensor_parallel) * apart,
        pieces=np.full(len(zero), context.stack.gathered_modules_per_layer),
    )
    seconds = _traffic_s(zero, dense, context)
    if context.model.moe is not None:
        expert = _Shards(
            trained=trained[1],
            gathered_bytes=gathered[1],
            layers=each(stages.moe_layers[rows]),
            replicas=each(parameters.expert_replicas[rows]),
            degree=each(expert_shard_degree(plans, parameters)[rows]),
            stride=each(distinct.expert_parallel * distinct.expert_tensor_parallel) * apart,
            pieces=_expert_modules(context) / each(distinct.expert_parallel),
        )
        seconds = seconds + _traffic_s(zero, expert, context)
    *kinds_s, low_s, high_s = seconds
    ends_s = [low_s, high_s]
    shared_s = np.zeros_like(low_s)
    if parameters.shared.any():
        shared_s, *more_s = shared_gradients_s(distinct, parameters.shared[rows], context)
        ends_s = [end_s + more for end_s, more in zip(ends_s, more_s, strict=True)]
    return [part.reshape(shape) for part in (*kinds_s, shared_s, *ends_s)]


def _expert_modules(context: CostContext) -> float:
    """Calls that gather the experts of one layer: every matrix of each where a loop runs them, else one for all.

    One for all also where DeepSpeed takes them for a leaf: fetch_sub_module of its partitioned_param_coordinator.py
    hands all its parameters to one ``all_gather_coalesced``.
    """
    moe, stack = context.model.moe, context.stack
    looped = stack.gathered_modules_per_layer > 0 and not (stack.grouped_experts or stack.leaf_experts)
    return float(context.model.mlp_matrices * moe.num_experts) if moe is not None and looped else 1.0


def _traffic_s(zero: IntArray, shards: _Shards, context: CostContext) -> FloatArray:
    """(5, K) seconds of one kind of parameters, in the order of ``_distinct_traffic``."""
    whole = zero <= context.stack.sums_whole
    plain, scattered = 1.0 * whole, 1.0 * ~whole
    # A reduction to the one rank that keeps a gradient moves what its broadcast from there would.
    owned = (zero == 2) & context.stack.reduces_to_owners
    scatter = np.where(owned, int(CollectiveOp.BROADCAST), int(CollectiveOp.REDUCE_SCATTER))
    from_owners = (zero < 3) & context.stack.broadcasts_from_owners
    gather = np.where(from_owners, int(CollectiveOp.BROADCAST), int(CollectiveOp.ALL_GATHER))
    each = by_sharding(context.job, context.stack, zero, partial(reduced_element_bytes, context.job))
    gradient_bytes = shards.trained * each
    replicas, degree, stride = shards.replicas, shards.degree, shards.stride
    reductions, gatherings = _messages(zero, shards, gradient_bytes, context)
    # Operation, messages, bytes of all, ranks and their distance; gradients first, parameters last.
    calls = (
        (CollectiveOp.ALL_REDUCE, reductions, plain * gradient_bytes, replicas, stride),
        (scatter, reductions, scattered * gradient_bytes, degree, stride),
        (CollectiveOp.ALL_REDUCE, reductions, scattered * gradient_bytes / degree, replicas // degree, stride * degree),
        (gather, gatherings, (zero > 0) * shards.gathered_bytes, degree, stride),
    )
    messages = np.concatenate([call[1] for call in calls])
    op = np.concatenate([np.broadcast_to(call[0], len(zero)) for call in calls]).astype(np.int64)
    size_bytes = np.concatenate([call[2] for call in calls]) / messages
    group = np.concatenate([call[3] for call in calls])
    stride = np.concatenate([call[4] for call in calls])
    priced = price_collectives(context, op=op, size_bytes=size_bytes, group=group, stride=stride)
    least = np.where(size_bytes > 0, stalled_s(context, op=op, group=group), 0.0)
    reduce_s, scatter_s, across_s, gather_s = (np.maximum(priced.time_s, least) * messages).reshape(len(calls), -1)
    low_s, high_s = (
        total((np.maximum(ends_s, least) * messages).reshape(len(calls), -1))
        for ends_s in (priced.low_s, priced.high_s)
    )
    return np.stack([reduce_s + scatter_s, across_s, gather_s, low_s, high_s])


def _messages(
    zero: IntArray, shards: _Shards, gradient_bytes: FloatArray, context: CostContext
) -> tuple[FloatArray, FloatArray]:
    """(K,) collective calls that one reduction and one gathering are split into.

    Replicas reduce bucket by bucket, shards in one call; ZeRO-3 works layer by layer, or in finer pieces, and so does
    FSDP at stage 2. Stages 1 and 2 otherwise gather what the optimizer updated, in one call unless the stack says
    how many, or the ranks that own whole matrices broadcast it, one call each.
    """
    stack = context.stack
    layers, buckets = np.maximum(shards.layers, 1.0), np.ones(len(zero))
    updated = layers * stack.gather_messages_per_layer if stack.gather_messages_per_layer else 1.0
    if stack.broadcasts_from_owners:
        updated = np.minimum(updated, shards.degree)
    by_layer = zero >= stack.shards_parameters_from
    gatherings = np.where(by_layer, layers * np.maximum(shards.pieces, 1.0), updated)
    if stack.gradient_message_bytes:
        buckets = np.maximum(np.ceil(gradient_bytes / stack.gradient_message_bytes), 1.0)
    reductions = np.where(zero == 0, buckets, np.where(by_layer, layers, 1.0))
    return reductions, gatherings
