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
from costmodels.host_sums import host_sum_s, spared_sums, stalls, with_host_sums
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.lowering.parts import Part
from costmodels.optimizer import optimizer_s, paging_s, updated_parameters
from costmodels.parameter_offload import gathers_once
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages.parameters import StageParameters
from costmodels.stages.table import StageTable
from costmodels.step.block_seconds import COMPONENTS
from costmodels.step.layer_costs import RECOMPUTED, LayerCosts
from costmodels.step.passes import StepPasses, offloaded_weights_s, stalls_for_activations, step_passes
from costmodels.step.stage_seconds import Multiplicity, accumulates_whole, module_traffic_s
from costmodels.step.trust import layer_opens, pipeline_opens, step_opens
from profiles.stack import StackSpec

# Components that are work of kernels, as opposed to traffic and launches.
_KERNELS = ("forward", "core", "input_gradient", "weight_gradient")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Priced steps of N plans.

    Attributes:
        step_time_s: (N,) seconds.
        parts_s: ``estimate.TIME_PARTS`` to (N,) seconds.
        communication_total_s: Axis, or ``offload``, to (N,) seconds of traffic per step, hidden or not.
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
class _Composed:
    """Steps of N plans.

    Attributes:
        run: The passes of K of them, all that are distinct.
        of_row: (N,) which of these each has.
        pipeline_s: (N,) seconds of the passes.
        traffic: Traffic of data parallelism.
        shown_s, sent_s: (N,) seconds of it, what shows and all.
        optimizer_s: (N,) seconds of the update.
        overhead_s: (N,) seconds of fixed work per step, and of stragglers.
        step_s: (N,) seconds of all.
    """

    run: StepPasses
    of_row: IntArray
    pipeline_s: FloatArray
    traffic: DataParallelTraffic
    shown_s: FloatArray
    sent_s: FloatArray
    optimizer_s: FloatArray
    overhead_s: FloatArray
    step_s: FloatArray


def step_time_s(
    plans: PlanBatch,
    stages: StageTable,
    costs: LayerCosts,
    parameters: StageParameters,
    context: CostContext,
    *,
    paged_bytes: FloatArray | None,
) -> FloatArray:
    """(N,) seconds of ``step_time``, which takes the same arguments, without what they are spent on."""
    return _composed(plans, stages, costs, parameters, context, paged_bytes).step_s * context.stack.step_time_scale


def step_time(
    plans: PlanBatch,
    stages: StageTable,
    costs: LayerCosts,
    parameters: StageParameters,
    context: CostContext,
    *,
    paged_bytes: FloatArray | None = None,
) -> StepTime:
    """Compose block prices into the step time of every plan.

    Args:
        plans: N plans.
        stages: Their stages.
        costs: Their blocks, priced.
        parameters: What each stage holds.
        context: Job, cluster and stack.
        paged_bytes: (N,) bytes of optimizer states that do not stay on the device (``memory.paging_bytes``), on the
            stage with the most.
    """
    found = _composed(plans, stages, costs, parameters, context, paged_bytes)
    run, of_row, stage_s = found.run, found.of_row, found.run.stage_s
    parts, totals = (
        {name: np.take(seconds, of_row) for name, seconds in table.items()}
        for table in _parts(run, largest_column(stage_s), context.stack)
    )
    parts["data_parallel"], totals["data_parallel"] = found.shown_s, found.sent_s
    parts["optimizer"] = found.optimizer_s
    parts["overhead"] = parts["overhead"] + found.overhead_s
    stages = run.stages
    recomputed = total((run.layers.recomputed * stages.count).T)
    recomputed_share = recomputed / np.maximum(total((stages.layers * stages.count).T), 1)
    step = StepTime(
        step_time_s=found.step_s,
        parts_s=parts,
        communication_total_s=totals,
        stage_time_s=np.take(stage_s, of_row, axis=0),
        recomputed_share=np.take(recomputed_share, of_row),
        opens=step_opens(
            np.take(_opens(run), of_row, axis=1),
            pipeline_s=found.pipeline_s,
            step_s=found.step_s,
            traffic=found.traffic,
            shown_s=found.shown_s,
        ),
    )
    scale = context.stack.step_time_scale
    return step if scale == 1.0 else _scaled(step, scale)


def _composed(
    plans: PlanBatch,
    stages: StageTable,
    costs: LayerCosts,
    parameters: StageParameters,
    context: CostContext,
    paged_bytes: FloatArray | None,
) -> _Composed:
    """The steps of N plans.

    Many plans differ only in what happens once per step (sharding, offloading, overlap), so the
    pipeline is worked out once per distinct one.
    """
    alike = _alike(plans, stages, costs, context)
    rows, of_row = alike.first, alike.of_row
    run = step_passes(plans.take(rows), stages.take(rows), costs.take(rows), parameters.take(rows), context)
    pipeline_s = np.take(run.step.pipeline_s, of_row)
    traffic = _data_parallel_traffic(plans, stages, parameters, context)
    shown_s, sent_s = exposed_traffic_s(
        traffic,
        num_microbatches=plans.num_microbatches,
        num_stages=plans.pipeline_parallel,
        virtual_stages=plans.virtual_stages,
        forward_s=np.take(largest(run.step.passes.forward_s), of_row),
        backward_s=np.take(largest(run.step.passes.backward_s), of_row),
    )
    update_s = optimizer_s(plans, parameters, context)
    if paged_bytes is not None:
        update_s = update_s + paging_s(paged_bytes, context.cluster.node.host_copy_bytes_per_s)
    known = pipeline_s + shown_s + update_s
    nodes = plans.num_devices / context.cluster.node.devices_per_node
    per_step_s = per_step_overhead_s(known, nodes=nodes, stack=context.stack)
    return _Composed(
        run=run,
        of_row=of_row,
        pipeline_s=pipeline_s,
        traffic=traffic,
        shown_s=shown_s,
        sent_s=sent_s,
        optimizer_s=update_s,
        overhead_s=per_step_s,
        step_s=known + per_step_s,
    )


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


def _alike(plans: PlanBatch, stages: StageTable, costs: LayerCosts, context: CostContext) -> Groups:
    """Plans with the same pipeline: all that ``step_passes`` reads, directly or through blocks and stages."""
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
        plans.offload_activations * (1 + stalls_for_activations(plans, context.stack)),
        plans.offload_parameters * (1 + plans.zero_stage),
        plans.offload_parameters * plans.shard_degree,
        accumulates_whole(plans, context.stack).astype(np.int64),
    ]
    if costs.expert_mlp is not None:
        columns.append(costs.expert_mlp.of_row)
    return group_rows(*columns)


def _opens(run: StepPasses) -> FloatArray:
    """(2, K) as ``StepTime.opens``, of the passes."""
    transfers = run.transfers
    return pipeline_opens(
        layer_opens(run.costs),
        crossing_s=np.stack([transfers.time_s, transfers.low_s, transfers.high_s]),
        crossings=2 * run.plans.num_microbatches,
        work_s=run.step.pipeline_s - run.step.bubble_s,
    )


def _parts(run: StepPasses, slowest: IntArray, stack: StackSpec) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """(K,) seconds per step of the passes by cause, which add up to them, and traffic by axis, hidden or not."""
    m = run.plans.num_microbatches
    parts, totals = _parts_of_stage(run, slowest, stack)
    parts["backward"] = parts["backward"] + m * at_column(run.work.accumulate_s, slowest)
    # Interleaving crosses v times but overlaps them with other chunks (arXiv:2104.04473 section 2.2).
    crossed_s = 2 * m * run.transfers.time_s
    parts["pipeline_transfer"] = crossed_s + run.step.sending_s
    totals["pipeline_transfer"] = crossed_s * run.plans.virtual_stages
    parts["overhead"] = parts["overhead"] + m * run.per_microbatch_s
    parts["bubble"], parts["offload"] = run.step.bubble_s, run.step.offload_s
    totals["offload"] = run.step.moving_s
    return parts, totals


def _parts_of_stage(
    run: StepPasses, slowest: IntArray, stack: StackSpec
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """(K,) seconds per step of the slowest stage by cause, and its traffic by axis, hidden or not."""
    plans, stages, costs, layers = run.plans, run.stages, run.costs, run.layers
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
            seconds = times * each_s if name != "launch_again" else np.zeros(len(plans))
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
    for group, selective_s in zip(layers.groups, run.again.selective_s, strict=True):
        if group.selective is not None:
            counts = at_column(np.broadcast_to(group.selective, stages.layers.shape), slowest)
            again = again + counts * selective_s[:, 0]
            for name, seconds in module_traffic_s(costs, plans.recompute_modules, stack, moe=group.moe).items():
                sums[name] = sums[name] + counts * seconds
                again = again - counts * seconds * (not name.endswith("_total"))
    parts = {
        "forward": m * (sums["forward"] + sums["core"]),
        "backward": m * (sums["input_gradient"] + sums["weight_gradient"]),
        "recompute": m * again,
        "embedding_and_loss": m * ends,
        "overhead": m * (sums["launch_forward"] + sums["launch_backward"] + sums["launch_again"]),
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


def _data_parallel_traffic(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> DataParallelTraffic:
    """Traffic of data parallelism; shards gathered once per step come from the host first where they are there.

    Sums of gradients may be there, too.
    """
    first = plans.offload_parameters & gathers_once(plans)
    on_host = bool((first | plans.offload_optimizer).any())
    traffic = data_parallel_traffic(plans, stages, parameters, context, each_stage=on_host)
    if not on_host:
        return traffic
    weights_s = offloaded_weights_s(plans, stages, parameters, context, first)
    return with_host_sums(
        replace(traffic, parameters_s=traffic.parameters_s + weights_s),
        host_sum_s(updated_parameters(plans, parameters)[0], context),
        spared=spared_sums(plans.zero_stage, context.stack)[:, None],
        stalls=np.full((1, 1), 1.0 * stalls(context.stack)),
        optimizer_on_host=plans.offload_optimizer[:, None].astype(np.float64),
        num_microbatches=plans.num_microbatches[:, None],
    )


def per_step_overhead_s(known_s: FloatArray, *, nodes: FloatArray, stack: StackSpec) -> FloatArray:
    """(N,) seconds per step of fixed work, and of waiting for the slowest of many nodes.

    Args:
        known_s: (N,) everything else.
        nodes: (N,) hosts; stragglers cost a share per doubling beyond one.
        stack: Its step overhead and straggler fraction are read.
    """
    doublings: FloatArray = np.log2(np.maximum(nodes, 1.0))
    return stack.step_overhead_s + known_s * stack.straggler_fraction_per_doubling * doublings
