"""Step time: the blocks of each stage, the pipeline over them, and what surrounds it.

The slowest stage works through every micro-batch; the rest of the pipeline, gradient traffic that the
backward pass does not hide, the optimizer and fixed overheads come on top. Every part is a number of
seconds on the critical path, so that they add up to the step time.
"""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import at_column, largest, largest_column, total
from costmodels.context import CostContext
from costmodels.data_parallel import DataParallelTraffic, data_parallel_traffic, exposed_traffic_s
from costmodels.layer_costs import RECOMPUTED, LayerCosts
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.lowering.parts import Part
from costmodels.model_state import model_state
from costmodels.optimizer import optimizer_s, paging_s
from costmodels.parameter_offload import gathers_once
from costmodels.pipeline import HostTraffic, Passes, scheduled
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.shown_parts import COMPONENTS
from costmodels.stage_activations import stage_activations
from costmodels.stage_layers import StageLayers, stage_layers
from costmodels.stage_parameters import StageParameters
from costmodels.stage_seconds import (
    Multiplicity,
    RecomputeUnits,
    accumulates_whole,
    module_traffic_s,
    recomputation_s,
    recompute_units,
    stage_seconds,
)
from costmodels.stages import StageTable
from costmodels.transfer import boundary_transfers
from costmodels.trust import layer_opens, pipeline_opens, step_opens
from profiles.stack import StackSpec

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
        opens: (2, N) squares of the log half-widths, low and high, that prices leave open.
    """

    step_time_s: FloatArray
    parts_s: dict[str, FloatArray]
    communication_total_s: dict[str, FloatArray]
    stage_time_s: FloatArray
    recomputed_share: FloatArray
    opens: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pipeline:
    """Forward and backward passes of a step, without what happens once per step; K plans.

    Attributes:
        pipeline_s: (K,) from the first forward to the last backward.
        parts_s: Part name to (K,) seconds; they add up to ``pipeline_s``.
        totals_s: Axis to (K,) seconds of traffic, hidden or not.
        forward_s, backward_s: (K,) one micro-batch's passes through the slowest stage for each.
        stage_time_s: (K, S) one micro-batch, forward and backward.
        recomputed_share: (K,) share of all layers that is recomputed in full.
        opens: (2, K) as in ``StepTime``, of ``pipeline_s``.
    """

    pipeline_s: FloatArray
    parts_s: dict[str, FloatArray]
    totals_s: dict[str, FloatArray]
    forward_s: FloatArray
    backward_s: FloatArray
    stage_time_s: FloatArray
    recomputed_share: FloatArray
    opens: FloatArray


def step_time(
    plans: PlanBatch,
    stages: StageTable,
    costs: LayerCosts,
    parameters: StageParameters,
    context: CostContext,
    *,
    paged: FloatArray | None = None,
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
        paged: (N, S) bytes of optimizer states that do not stay on the device (``memory.paging_bytes``).
    """
    alike = _alike(plans, stages, costs)
    rows, of_row = alike.first, alike.of_row
    distinct = _pipeline(plans.take(rows), stages.take(rows), costs.take(rows), parameters.take(rows), context)
    parts = {name: np.take(seconds, of_row) for name, seconds in distinct.parts_s.items()}
    totals = {name: np.take(seconds, of_row) for name, seconds in distinct.totals_s.items()}
    traffic = _data_parallel_traffic(plans, stages, parameters, context)
    parts["data_parallel"], totals["data_parallel"] = exposed_traffic_s(
        traffic,
        num_microbatches=plans.num_microbatches,
        num_stages=plans.pipeline_parallel,
        virtual_stages=plans.virtual_stages,
        forward_s=np.take(distinct.forward_s, of_row),
        backward_s=np.take(distinct.backward_s, of_row),
    )
    parts["optimizer"] = optimizer_s(plans, parameters, context)
    if paged is not None:
        moved_s = paging_s(paged, context.cluster.node.host_link.bandwidth_bytes_per_s)
        parts["optimizer"] = parts["optimizer"] + largest(moved_s)
    known = np.take(distinct.pipeline_s, of_row) + parts["data_parallel"] + parts["optimizer"]
    nodes = plans.num_devices / context.cluster.node.devices_per_node
    per_step = per_step_overhead_s(known, nodes=nodes, stack=context.stack)
    parts["overhead"] = parts["overhead"] + per_step
    step = StepTime(
        step_time_s=known + per_step,
        parts_s=parts,
        communication_total_s=totals,
        stage_time_s=np.take(distinct.stage_time_s, of_row, axis=0),
        recomputed_share=np.take(distinct.recomputed_share, of_row),
        opens=step_opens(
            np.take(distinct.opens, of_row, axis=1),
            pipeline_s=np.take(distinct.pipeline_s, of_row),
            step_s=known + per_step,
            traffic=traffic,
            shown_s=parts["data_parallel"],
        ),
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
        opens=step.opens,
    )


def _alike(plans: PlanBatch, stages: StageTable, costs: LayerCosts) -> Groups:
    """Plans with the same pipeline: all that ``_pipeline`` reads, directly or through blocks and stages."""
    columns = [
        costs.attention.of_row,
        stages.groups.of_row,
        plans.recompute,
        plans.recompute_layers,
        plans.recompute_modules,
        plans.schedule,
        plans.num_microbatches,
        plans.data_parallel,
        plans.axis_order,
        plans.offload_activations.astype(np.int64),
        plans.offload_parameters * (1 + plans.zero_stage),
        plans.offload_parameters * plans.shard_degree,
        accumulates_whole(plans).astype(np.int64),
    ]
    if costs.expert_mlp is not None:
        columns.append(costs.expert_mlp.of_row)
    return group_rows(*columns)


def _pipeline(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, parameters: StageParameters, context: CostContext
) -> _Pipeline:
    """Forward and backward passes of K plans, and what they spend their time on."""
    layers = stage_layers(plans, stages, context.model)
    work = stage_seconds(plans, stages, costs, parameters, context)
    transfers = boundary_transfers(plans, context)
    transfer_s = transfers.time_s
    issued = not context.stack.captures_iterations
    per_micro = context.stack.microbatch_overhead_s * issued * plans.virtual_stages
    either_s = (transfer_s + per_micro / 2)[:, None]
    again = recompute_units(plans, costs, context.model)
    passes = Passes(
        forward_s=work.forward_s + either_s,
        input_gradient_s=work.input_gradient_s + recomputation_s(again, layers) + either_s,
        weight_gradient_s=work.weight_gradient_s,
    )
    stage_s = np.where(stages.count > 0, passes.work_s, 0.0)
    slowest = largest_column(stage_s)
    m = plans.num_microbatches
    step = scheduled(
        plans.schedule,
        passes,
        count=stages.count,
        virtual_stages=plans.virtual_stages,
        num_microbatches=m,
        traffic=_host_traffic(plans, stages, parameters, context),
    )
    parts, totals = _parts(plans, stages, costs, layers, again, slowest)
    parts["backward"] = parts["backward"] + m * at_column(work.accumulate_s, slowest)
    # Interleaving crosses v times but overlaps them with other chunks (arXiv:2104.04473 section 2.2).
    parts["pipeline_transfer"] = 2 * m * transfer_s
    totals["pipeline_transfer"] = parts["pipeline_transfer"] * plans.virtual_stages
    parts["overhead"] = parts["overhead"] + m * per_micro
    parts["bubble"], parts["offload"] = step.bubble_s, step.offload_s
    recomputed = total((layers.recomputed * stages.count).T)
    return _Pipeline(
        pipeline_s=step.pipeline_s,
        parts_s=parts,
        totals_s=totals,
        forward_s=largest(step.passes.forward_s),
        backward_s=largest(step.passes.backward_s),
        stage_time_s=stage_s,
        recomputed_share=recomputed / np.maximum(total((stages.layers * stages.count).T), 1),
        opens=pipeline_opens(
            layer_opens(costs),
            crossing_s=np.stack([transfer_s, transfers.low_s, transfers.high_s]),
            crossings=2 * m,
            work_s=step.pipeline_s - step.bubble_s,
        ),
    )


def _parts(
    plans: PlanBatch,
    stages: StageTable,
    costs: LayerCosts,
    layers: StageLayers,
    units: RecomputeUnits,
    slowest: IntArray,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """(N,) seconds per step of the slowest stage by cause, and its traffic by axis, hidden or not."""
    m = plans.num_microbatches
    at = _at_stage(stages, slowest)
    repeated = {
        group.moe: at_column(np.broadcast_to(group.full, stages.layers.shape), slowest) for group in layers.groups
    }
    sums = dict.fromkeys(COMPONENTS, np.zeros(len(plans)))
    ends, again = np.zeros(len(plans)), np.zeros(len(plans))
    of_block = {id(costs.attention): sum(repeated.values()), id(costs.dense_mlp): repeated.get(False, 0)}
    of_block[id(costs.expert_mlp)] = repeated.get(True, 0)
    for block, times in at.blocks(costs):
        boundary = block is costs.embedding or block is costs.head
        for name in block.present():
            each_s = block.component(name)
            seconds = times * each_s
            if boundary and name in _KERNELS:
                ends = ends + seconds
                continue
            if name in RECOMPUTED and not boundary:
                repeated_s = of_block[id(block)] * each_s
                if name in _KERNELS:
                    again = again + repeated_s
                else:
                    seconds = seconds + repeated_s
            sums[name] = sums[name] + seconds
    again = again - of_block[id(costs.dense_mlp)] * costs.dense_mlp.of_part(Part.LAST_PRODUCT)
    for group, selective_s in zip(layers.groups, units.selective_s, strict=True):
        if group.selective is not None:
            counts = at_column(np.broadcast_to(group.selective, stages.layers.shape), slowest)
            again = again + counts * selective_s[:, 0]
            for name, seconds in module_traffic_s(costs, plans.recompute_modules, moe=group.moe).items():
                sums[name] = sums[name] + counts * seconds
                again = again - counts * seconds * (not name.endswith("_total"))
    parts = {
        "forward": m * (sums["forward"] + sums["core"]),
        "backward": m * (sums["input_gradient"] + sums["weight_gradient"]),
        "recompute": m * again,
        "embedding_and_loss": m * ends,
        "overhead": m * (sums["launch_forward"] + sums["launch_backward"]),
    }
    totals = {}
    for axis in ("tensor", "context", "expert"):
        parts[f"{axis}_parallel"] = m * (sums[f"{axis}_forward"] + sums[f"{axis}_backward"])
        totals[f"{axis}_parallel"] = m * (sums[f"{axis}_forward_total"] + sums[f"{axis}_backward_total"])
    return parts, totals


def _at_stage(stages: StageTable, which: IntArray) -> Multiplicity:
    """How often each block occurs on one stage of each plan."""
    layers, moe_layers = at_column(stages.layers, which), at_column(stages.moe_layers, which)
    return Multiplicity(
        attention=layers,
        dense_mlp=layers - moe_layers,
        expert_mlp=moe_layers,
        embedding=at_column(stages.has_embedding, which).astype(np.int64),
        head=at_column(stages.has_head, which).astype(np.int64),
    )


def _host_traffic(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> HostTraffic | None:
    """What one micro-batch moves over the host link; None when no plan offloads activations or weights."""
    rows = np.flatnonzero(plans.offload_activations)
    streams = plans.offload_parameters & ~gathers_once(plans)
    if not (len(rows) or streams.any()):
        return None
    activations_s = np.zeros(stages.layers.shape)
    if len(rows):
        moved = stage_activations(plans.take(rows), stages.take(rows), context).moved
        activations_s[rows] = 0.0 if moved is None else moved / context.cluster.node.host_link.bandwidth_bytes_per_s
    return HostTraffic(
        activations_s=activations_s, weights_s=_offloaded_weights_s(plans, stages, parameters, context, streams)
    )


def _offloaded_weights_s(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext, which: BoolArray
) -> FloatArray:
    """(N, S) seconds in which the weights of some of the plans cross the host link once; 0 for the others."""
    seconds, rows = np.zeros(stages.layers.shape), np.flatnonzero(which)
    if len(rows):
        weights = model_state(plans.take(rows), stages.take(rows), parameters.take(rows), context).weights
        seconds[rows] = weights * (stages.count[rows] > 0) / context.cluster.node.host_link.bandwidth_bytes_per_s
    return seconds


def _data_parallel_traffic(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> DataParallelTraffic:
    """Traffic of data parallelism; shards gathered once per step come from the host first where they are there."""
    first = plans.offload_parameters & gathers_once(plans)
    traffic = data_parallel_traffic(plans, stages, parameters, context, each_stage=bool(first.any()))
    if not first.any():
        return traffic
    weights_s = _offloaded_weights_s(plans, stages, parameters, context, first)
    return replace(traffic, parameters_s=traffic.parameters_s + weights_s)


def per_step_overhead_s(known_s: FloatArray, *, nodes: FloatArray, stack: StackSpec) -> FloatArray:
    """(N,) seconds per step of fixed work, and of waiting for the slowest of many nodes.

    Args:
        known_s: (N,) everything else.
        nodes: (N,) hosts; stragglers cost a share per doubling beyond one.
        stack: Its step overhead and straggler fraction are read.
    """
    return stack.step_overhead_s + known_s * stack.straggler_fraction_per_doubling * scale_out_doublings(nodes)


def scale_out_doublings(nodes: FloatArray) -> FloatArray:
    """(N,) how often the number of hosts doubles beyond one."""
    doublings: FloatArray = np.log2(np.maximum(nodes, 1.0))
    return doublings
