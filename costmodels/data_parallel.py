"""Gradient and parameter traffic of data parallelism and ZeRO, per rank and step.

Volumes after Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 7): all-reduce is a
reduce-scatter and an all-gather of the parameters' size; stages 1 and 2 move the same volume, stage 3
gathers parameters once more for the backward pass. Hybrid sharding (HSDP) reduces across replicas of
the shard group besides.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.collectives import CollectiveOp
from costmodels.context import CostContext
from costmodels.lowering.calls import price_collectives
from costmodels.lowering.grouping import group_rows
from costmodels.plan import AxisOrder, FloatArray, IntArray, PlanBatch
from costmodels.stage_parameters import StageParameters
from profiles.precision import ELEMENT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelTraffic:
    """Seconds of traffic of the fullest stage, columns (N,).

    Attributes:
        gradients_s: One reduction of all gradients.
        parameters_s: One gathering of all parameters.
        per_microbatch: Whether both happen for every micro-batch rather than once per step.
    """

    gradients_s: FloatArray
    parameters_s: FloatArray
    reduces_per_microbatch: FloatArray
    gathers_per_microbatch: FloatArray


def gradient_element_bytes(context: CostContext) -> float:
    """Bytes per gradient element as accumulated and reduced."""
    return float(ELEMENT_BYTES[context.job.gradient_dtype or context.stack.gradient_dtype])


def data_parallel_traffic(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> DataParallelTraffic:
    """Price the traffic of every plan's fullest stage."""
    dense = parameters.trained_dense.max(axis=1)
    expert = parameters.trained_expert.max(axis=1)
    gathered = parameters.dense.max(axis=1), parameters.expert.max(axis=1)
    groups = group_rows(
        plans.tensor_parallel,
        plans.pipeline_parallel,
        plans.data_parallel,
        plans.context_parallel,
        plans.expert_parallel,
        plans.expert_tensor_parallel,
        plans.zero_shard_degree,
        np.minimum(plans.zero_stage, 3),
        plans.axis_order,
        plans.first_stage_layers,
        plans.last_stage_layers,
        np.arange(len(plans)) if plans.stage_layers is not None else np.zeros(len(plans), dtype=np.int64),
    )
    rows = groups.first
    distinct = plans.take(rows)
    whole = gathered if context.job.lora is None else (gathered[0], gathered[1])
    gradients_s, parameters_s = _distinct_traffic(
        distinct,
        parameters,
        context,
        rows=rows,
        dense=dense[rows],
        expert=expert[rows],
        gathered_dense=whole[0][rows],
        gathered_expert=whole[1][rows],
    )
    # ZeRO-3 gathers and reduces per micro-batch; kept whole between micro-batches under a pipeline.
    sharded = (plans.zero_stage == 3) & (plans.pipeline_parallel == 1)
    return DataParallelTraffic(
        gradients_s=gradients_s[groups.of_row],
        parameters_s=parameters_s[groups.of_row],
        reduces_per_microbatch=1.0 * (sharded | (plans.zero_stage == 2)),
        gathers_per_microbatch=1.0 * sharded,
    )


def _distinct_traffic(
    plans: PlanBatch,
    parameters: StageParameters,
    context: CostContext,
    *,
    rows: IntArray,
    dense: FloatArray,
    expert: FloatArray,
    gathered_dense: FloatArray,
    gathered_expert: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Seconds of one gradient reduction and one parameter gathering of distinct plans."""
    replicas = parameters.dense_replicas[rows]
    expert_replicas = parameters.expert_replicas[rows]
    shard = np.minimum(plans.shard_degree, replicas)
    gradient_bytes, element = gradient_element_bytes(context), context.job.numerics.storage_bytes
    pipeline_inside = plans.axis_order == AxisOrder.TP_CP_PP_DP
    stride = plans.tensor_parallel * np.where(pipeline_inside, plans.pipeline_parallel, 1)
    expert_stride = plans.expert_parallel * plans.expert_tensor_parallel
    expert_stride = expert_stride * np.where(pipeline_inside, plans.pipeline_parallel, 1)
    zero = plans.zero_stage
    gather_all = zero == 3

    def price(op: CollectiveOp, size: FloatArray, group: IntArray, apart: IntArray) -> FloatArray:
        codes = np.full(len(group), int(op), dtype=np.int64)
        return price_collectives(context, op=codes, size_bytes=size, group=group, stride=apart).time_s

    reduce_plain = price(CollectiveOp.ALL_REDUCE, np.where(zero == 0, dense, 0.0) * gradient_bytes, replicas, stride)
    sharded_dense = np.where(zero > 0, dense, 0.0)
    scatter = price(CollectiveOp.REDUCE_SCATTER, sharded_dense * gradient_bytes, shard, stride)
    across = price(CollectiveOp.ALL_REDUCE, sharded_dense / shard * gradient_bytes, replicas // shard, stride * shard)
    gather_dense = np.where(gather_all, gathered_dense, sharded_dense)
    gather = price(CollectiveOp.ALL_GATHER, gather_dense * element, shard, stride)
    gradients_s = reduce_plain + scatter + across
    if context.model.moe is not None:
        plain = np.where(zero == 0, expert, 0.0) * gradient_bytes
        sharded = np.where(zero > 0, expert, 0.0)
        held = np.where(gather_all, gathered_expert, sharded)
        gradients_s = gradients_s + price(CollectiveOp.ALL_REDUCE, plain, expert_replicas, expert_stride)
        gradients_s += price(CollectiveOp.REDUCE_SCATTER, sharded * gradient_bytes, expert_replicas, expert_stride)
        gather = gather + price(CollectiveOp.ALL_GATHER, held * element, expert_replicas, expert_stride)
    return gradients_s, np.where(zero > 0, gather, 0.0)
