"""Step time: the blocks of each stage, the pipeline over them, and what surrounds it.

The slowest stage works through every micro-batch; the rest of the pipeline, gradient traffic that the
backward pass does not hide, the optimizer and fixed overheads come on top. Every part is a number of
seconds on the critical path, so that they add up to the step time.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import at_column, largest, largest_column, total
from costmodels.collectives import CollectiveOp
from costmodels.context import CostContext
from costmodels.data_parallel import data_parallel_traffic, gradient_element_bytes
from costmodels.layer_costs import COMPONENTS, RECOMPUTED, BlockCosts, LayerCosts
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.lowering.transfers import price_collectives
from costmodels.optimizer import memory_seconds_per_byte, optimizer_s
from costmodels.overlap import exposed_s
from costmodels.pipeline import pipeline_s
from costmodels.plan import AxisOrder, BoolArray, FloatArray, IntArray, PlanBatch, Recompute
from costmodels.stage_parameters import StageParameters
from costmodels.stages import StageTable

# Components that are work of kernels, as opposed to traffic and launches.
_KERNELS = ("forward", "core", "input_gradient", "weight_gradient")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Priced steps of N plans.

    Attributes:
        step_time_s: (N,) seconds.
        parts_s: ``estimate.TIME_PARTS`` to (N,) seconds.
        communication_total_s: Axis to (N,) seconds of traffic per step, hidden or not.
        stage_time_s: (N, S) one micro-batch, forward and backward.
        recomputed_share: (N,) share of all layers that is recomputed in full.
    """

    step_time_s: FloatArray
    parts_s: dict[str, FloatArray]
    communication_total_s: dict[str, FloatArray]
    stage_time_s: FloatArray
    recomputed_share: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Multiplicity:
    """How often each block occurs: (N,) or (N, S) columns."""

    attention: FloatArray | IntArray
    dense_mlp: FloatArray | IntArray
    expert_mlp: FloatArray | IntArray
    embedding: FloatArray | IntArray
    head: FloatArray | IntArray

    def blocks(self, costs: LayerCosts) -> list[tuple[BlockCosts, FloatArray | IntArray]]:
        """Each priced block with how often it occurs."""
        pairs = [
            (costs.attention, self.attention),
            (costs.dense_mlp, self.dense_mlp),
            (costs.embedding, self.embedding),
            (costs.head, self.head),
        ]
        return pairs if costs.expert_mlp is None else [*pairs, (costs.expert_mlp, self.expert_mlp)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pipeline:
    """Forward and backward passes of a step, without what happens once per step; K plans.

    Attributes:
        pipeline_s: (K,) from the first forward to the last backward.
        parts_s: Part name to (K,) seconds; they add up to ``pipeline_s``.
        totals_s: Axis to (K,) seconds of traffic, hidden or not.
        forward_s, backward_s: (K,) one micro-batch's passes through the slowest stage for each.
        offload_s: (K,) exposed seconds if activations are offloaded.
        stage_time_s: (K, S) one micro-batch, forward and backward.
        recomputed_share: (K,) share of all layers that is recomputed in full.
    """

    pipeline_s: FloatArray
    parts_s: dict[str, FloatArray]
    totals_s: dict[str, FloatArray]
    forward_s: FloatArray
    backward_s: FloatArray
    offload_s: FloatArray
    stage_time_s: FloatArray
    recomputed_share: FloatArray


def step_time(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, parameters: StageParameters, context: CostContext
) -> StepTime:
    """Compose block prices into the step time of every plan.

    Many plans differ only in what happens once per step (sharding, offloading, overlap), so the
    pipeline is worked out once per distinct one.

    Args:
        plans: N plans.
        stages: Their stages.
        costs: Their blocks, priced.
        parameters: What each stage holds.
        context: Job, cluster and stack.
    """
    alike = _alike(plans, stages, costs)
    rows, of_row = alike.first, alike.of_row
    distinct = _pipeline(plans.take(rows), stages.take(rows), costs.take(rows), parameters.take(rows), context)
    parts = {name: np.take(seconds, of_row) for name, seconds in distinct.parts_s.items()}
    totals = {name: np.take(seconds, of_row) for name, seconds in distinct.totals_s.items()}
    parts["data_parallel"], totals["data_parallel"] = _data_parallel(
        plans,
        parameters,
        context,
        forward_s=np.take(distinct.forward_s, of_row),
        backward_s=np.take(distinct.backward_s, of_row),
    )
    parts["optimizer"] = optimizer_s(plans, parameters, context)
    parts["offload"] = np.where(plans.offload_activations, np.take(distinct.offload_s, of_row), 0.0)
    known = np.take(distinct.pipeline_s, of_row) + parts["data_parallel"] + parts["optimizer"] + parts["offload"]
    straggling = known * context.stack.straggler_fraction_per_doubling * scale_out_doublings(plans, context)
    per_step = context.stack.step_overhead_s + straggling
    parts["overhead"] = parts["overhead"] + per_step
    step = StepTime(
        step_time_s=known + per_step,
        parts_s=parts,
        communication_total_s=totals,
        stage_time_s=np.take(distinct.stage_time_s, of_row, axis=0),
        recomputed_share=np.take(distinct.recomputed_share, of_row),
    )
    scale = context.stack.step_time_scale
    return step if scale == 1.0 else _scaled(step, scale)


def _scaled(step: StepTime, scale: float) -> StepTime:
    """The same with all times so many times as long."""
    return StepTime(
        step_time_s=step.step_time_s * scale,
        parts_s={name: seconds * scale for name, seconds in step.parts_s.items()},
        communication_total_s={name: seconds * scale for name, seconds in step.communication_total_s.items()},
        stage_time_s=step.stage_time_s * scale,
        recomputed_share=step.recomputed_share,
    )


def _alike(plans: PlanBatch, stages: StageTable, costs: LayerCosts) -> Groups:
    """Plans with the same pipeline: all that ``_pipeline`` reads, directly or through blocks and stages."""
    columns = [
        costs.attention.of_row,
        stages.groups.of_row,
        plans.recompute,
        plans.recompute_layers,
        plans.schedule,
        plans.num_microbatches,
        plans.data_parallel,
        plans.axis_order,
        _accumulates_whole(plans).astype(np.int64),
    ]
    if costs.expert_mlp is not None:
        columns.append(costs.expert_mlp.of_row)
    return group_rows(*columns)


def _pipeline(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, parameters: StageParameters, context: CostContext
) -> _Pipeline:
    """Forward and backward passes of K plans, and what they spend their time on."""
    multiplicity = _Multiplicity(
        attention=stages.layers,
        dense_mlp=stages.layers - stages.moe_layers,
        expert_mlp=stages.moe_layers,
        embedding=stages.has_embedding.astype(np.int64),
        head=stages.has_head.astype(np.int64),
    )
    repeated = _recomputed_layers(plans, stages)
    forward_s, input_s, weight_s = _stage_seconds(plans, multiplicity, repeated, stages, costs)
    accumulate_s = _accumulation_s(plans, parameters, context)
    weight_s = weight_s + accumulate_s
    transfer_s, transfer_total_s = pipeline_transfer(plans, context)
    per_micro = context.stack.microbatch_overhead_s * plans.virtual_stages
    forward_s = forward_s + (transfer_s + per_micro / 2)[:, None]
    input_s = input_s + (transfer_s + per_micro / 2)[:, None]
    stage_s = np.where(stages.count > 0, forward_s + input_s + weight_s, 0.0)
    slowest = largest_column(stage_s)
    m = plans.num_microbatches
    whole_s, bubble_s = pipeline_s(
        plans.schedule,
        forward_s=forward_s,
        input_gradient_s=input_s,
        weight_gradient_s=weight_s,
        count=stages.count,
        ahead=stages.ahead[stages.groups.of_row],
        virtual_stages=plans.virtual_stages,
        num_microbatches=m,
    )
    parts, totals = _parts(plans, stages, costs, repeated, slowest)
    parts["backward"] = parts["backward"] + m * at_column(accumulate_s, slowest)
    parts["pipeline_transfer"], totals["pipeline_transfer"] = 2 * m * transfer_s, 2 * m * transfer_total_s
    parts["overhead"] = parts["overhead"] + m * per_micro
    parts["bubble"] = bubble_s
    return _Pipeline(
        pipeline_s=whole_s,
        parts_s=parts,
        totals_s=totals,
        forward_s=largest(forward_s),
        backward_s=largest(input_s + weight_s),
        offload_s=_activation_offload_s(plans, stages, context, work_s=largest(stage_s)),
        stage_time_s=stage_s,
        recomputed_share=total((repeated * stages.count).T) / np.maximum(total((stages.layers * stages.count).T), 1),
    )


def _accumulates_whole(plans: PlanBatch) -> BoolArray:
    """(N,) whether a rank accumulates all gradients of its stage, and not just its shard of them."""
    return (plans.zero_stage < 3) | (plans.pipeline_parallel > 1)


def _accumulation_s(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) seconds per micro-batch to add new gradients onto the accumulated ones.

    Megatron-LM accumulates inside the weight-gradient GEMM (gradient_accumulation_fusion): the sum is
    read and written there, and the 16-bit gradient is never stored. Elsewhere it is, and is read back.
    16-bit sums need no pass for the first micro-batch; ZeRO-3 accumulates shards, which are small,
    unless a pipeline keeps them whole.
    """
    gradient, stored = gradient_element_bytes(context), context.job.numerics.storage_bytes
    fused = context.stack.framework == "megatron" and gradient > stored
    per_parameter = 2 * gradient - stored if fused else 2 * gradient + stored
    m = plans.num_microbatches
    rounds = np.where(gradient > stored, 1.0, (m - 1) / m) * _accumulates_whole(plans)
    seconds = rounds * per_parameter * memory_seconds_per_byte(context)
    return (parameters.trained_dense + parameters.trained_expert) * seconds[:, None]


def _data_parallel(
    plans: PlanBatch,
    parameters: StageParameters,
    context: CostContext,
    *,
    forward_s: FloatArray,
    backward_s: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """(N,) exposed and total seconds per step of gradient and parameter traffic.

    Args:
        plans: N plans.
        parameters: What each stage holds.
        context: Stack and cluster.
        forward_s: (N,) forward time of one micro-batch, under which parameters are gathered.
        backward_s: (N,) backward time of one micro-batch, under which gradients are reduced.
    """
    traffic = data_parallel_traffic(plans, parameters, context)
    hide = context.stack.data_parallel_overlap
    gathers = np.where(traffic.gathers_per_microbatch > 0, plans.num_microbatches, 1)
    reduces = np.where(traffic.reduces_per_microbatch > 0, plans.num_microbatches, 1)
    backward_traffic_s = traffic.gradients_s + traffic.gathers_per_microbatch * traffic.parameters_s
    gather_s = exposed_s(traffic.parameters_s, forward_s, np.where(plans.overlap_param_gather, hide, 0.0))
    reduce_s = exposed_s(backward_traffic_s, backward_s, np.where(plans.overlap_grad_reduce, hide, 0.0))
    exposed = gathers * gather_s + reduces * reduce_s
    return exposed, gathers * traffic.parameters_s + reduces * backward_traffic_s


def _recomputed_layers(plans: PlanBatch, stages: StageTable) -> FloatArray:
    """(N, S) layers of each stage that are recomputed from their input."""
    kind = plans.recompute[:, None]
    block = np.minimum(plans.recompute_layers[:, None], stages.layers)
    return 1.0 * np.where(kind == Recompute.FULL, stages.layers, np.where(kind == Recompute.BLOCK, block, 0))


def _stage_seconds(
    plans: PlanBatch, multiplicity: _Multiplicity, repeated: FloatArray, stages: StageTable, costs: LayerCosts
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(N, S) forward, input-gradient (with recomputation) and weight-gradient seconds of one micro-batch."""
    forward_s = np.zeros(stages.layers.shape)
    input_s = np.zeros(stages.layers.shape)
    weight_s = np.zeros(stages.layers.shape)
    share = repeated / np.maximum(stages.layers, 1)
    for block, times in multiplicity.blocks(costs):
        ahead = block.forward_s()[:, None]
        forward_s += times * ahead
        input_s += times * block.input_gradient_s()[:, None]
        weight_s += times * block.weight_gradient_s()[:, None]
        if block is not costs.embedding and block is not costs.head:
            input_s += times * share * ahead
    core = np.where(plans.recompute == Recompute.SELECTIVE, costs.attention.component("core"), 0.0)
    input_s += stages.layers * core[:, None]
    return forward_s, input_s, weight_s


def _parts(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, repeated: FloatArray, slowest: IntArray
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """(N,) seconds per step of the slowest stage by cause, and its traffic by axis, hidden or not."""
    m = plans.num_microbatches
    at = _at_stage(stages, slowest)
    share = at_column(repeated, slowest) / np.maximum(at.attention, 1)
    sums = dict.fromkeys(COMPONENTS, np.zeros(len(plans)))
    ends, again = np.zeros(len(plans)), np.zeros(len(plans))
    for block, times in at.blocks(costs):
        boundary = block is costs.embedding or block is costs.head
        for name in block.present():
            seconds = times * block.component(name)
            if boundary and name in _KERNELS:
                ends = ends + seconds
                continue
            if name in RECOMPUTED and not boundary:
                if name in _KERNELS:
                    again = again + share * seconds
                else:
                    seconds = seconds * (1.0 + share)
            sums[name] = sums[name] + seconds
    core = np.where(plans.recompute == Recompute.SELECTIVE, sums["core"], 0.0)
    parts = {
        "forward": m * (sums["forward"] + sums["core"]),
        "backward": m * (sums["input_gradient"] + sums["weight_gradient"]),
        "recompute": m * (again + core),
        "embedding_and_loss": m * ends,
        "overhead": m * (sums["launch_forward"] + sums["launch_backward"]),
    }
    totals = {}
    for axis in ("tensor", "context", "expert"):
        parts[f"{axis}_parallel"] = m * (sums[f"{axis}_forward"] + sums[f"{axis}_backward"])
        totals[f"{axis}_parallel"] = m * (sums[f"{axis}_forward_total"] + sums[f"{axis}_backward_total"])
    return parts, totals


def _at_stage(stages: StageTable, which: IntArray) -> _Multiplicity:
    """How often each block occurs on one stage of each plan."""
    layers, moe_layers = at_column(stages.layers, which), at_column(stages.moe_layers, which)
    return _Multiplicity(
        attention=layers,
        dense_mlp=layers - moe_layers,
        expert_mlp=moe_layers,
        embedding=at_column(stages.has_embedding, which).astype(np.int64),
        head=at_column(stages.has_head, which).astype(np.int64),
    )


def pipeline_transfer(plans: PlanBatch, context: CostContext) -> tuple[FloatArray, FloatArray]:
    """(N,) exposed and total seconds that one micro-batch spends crossing to the next stage, one way.

    Interleaving crosses v times but overlaps them with other chunks (arXiv:2104.04473 section 2.2).
    """
    t, c = plans.tensor_parallel, plans.context_parallel
    inside = plans.axis_order == AxisOrder.TP_CP_PP_DP
    stride = t * c * np.where(inside, 1, plans.data_parallel)
    # Sequence parallelism leaves the boundary tensor sharded; Megatron scatters it over t anyway.
    scattered = plans.sequence_parallel | (context.stack.framework == "megatron")
    sharded = scattered.astype(np.int64)
    crosses = (plans.pipeline_parallel > 1).astype(np.int64)
    span = np.minimum(stride, context.cluster.domain_devices)
    groups = group_rows(plans.micro_batch_size, t, c, span, sharded, crosses)
    row = groups.first
    row_bytes = context.model.hidden_size * context.job.numerics.storage_bytes
    tokens = plans.micro_batch_size[row] * context.job.sequence_length / c[row]
    size = np.where(crosses[row] > 0, tokens * row_bytes / np.where(sharded[row] > 0, t[row], 1), 0.0)
    priced = price_collectives(
        context,
        op=np.full(len(row), int(CollectiveOp.SEND_RECV), dtype=np.int64),
        size_bytes=size,
        group=1 + crosses[row],
        stride=stride[row],
    )
    once = np.where(crosses > 0, priced.time_s[groups.of_row], 0.0)
    return once, once * plans.virtual_stages


def _activation_offload_s(
    plans: PlanBatch, stages: StageTable, context: CostContext, *, work_s: FloatArray
) -> FloatArray:
    """(N,) seconds per step, if offloaded, of checkpoints going to the host and back that compute cannot hide.

    The layer inputs of one micro-batch move on copy engines of their own while the slowest stage works
    ``work_s`` (N,) on another; only what takes longer than that shows.
    """
    row_bytes = context.model.hidden_size * context.job.numerics.storage_bytes
    tokens = plans.micro_batch_size * context.job.sequence_length / plans.context_parallel
    size = (
        largest(stages.layers.astype(np.float64))
        * tokens
        * row_bytes
        / np.where(plans.sequence_parallel, plans.tensor_parallel, 1)
    )
    moved_s = 2 * size / context.cluster.node.host_link.bandwidth_bytes_per_s
    return exposed_s(moved_s, work_s, 1.0) * plans.num_microbatches


def scale_out_doublings(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) how often the device count doubles beyond one node."""
    nodes = plans.num_devices / context.cluster.node.devices_per_node
    doublings: FloatArray = np.log2(np.maximum(nodes, 1.0))
    return doublings
