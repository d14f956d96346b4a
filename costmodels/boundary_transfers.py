"""Activations that cross from one pipeline stage to the next, and their gradients that come back."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import Prediction
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.grouping import group_rows
from costmodels.lowering.transfers import adapters_share, members_together, price_collectives
from costmodels.plan import AxisOrder, FloatArray, IntArray, PlanBatch
from profiles.hardware import MAX_DEVICES


def boundary_transfer_s(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) seconds of ``boundary_transfers``."""
    return boundary_transfers(plans, context).time_s


def boundary_transfers(plans: PlanBatch, context: CostContext, *, apart: bool = False) -> Prediction:
    """(N,) seconds that one micro-batch spends crossing to the next stage, one way; 0 without stages.

    A stage exchanges a micro-batch with the one before it and the one after it, and a pipeline goes at the pace of its
    slowest stage. Where stages fill more than a scale-up domain but share it with a neighbour, that is one at its edge:
    of its two exchanges one is between domains. Stages are as many as fill the cluster, of an engine's replica its own.

    Args:
        plans: N plans.
        context: Model, job, stack, and the cluster whose links are crossed.
        apart: Whether the next stage never shares a scale-up domain with this one.
    """
    t, c = plans.tensor_parallel, plans.context_parallel
    inside = plans.axis_order == int(AxisOrder.TP_CP_PP_DP)
    stride = t * c * np.where(inside, 1, plans.data_parallel)
    filling = np.maximum(context.cluster.num_devices // (t * c * plans.data_parallel), 2)
    stages = plans.pipeline_parallel if context.forward_only else filling
    leaves = (members_together(context, stages, stride) < stages) | apart
    stays = (stride < context.cluster.domain_devices) & (not apart)
    scattered = plans.sequence_parallel | context.stack.scatters_boundaries
    sharded = scattered.astype(np.int64)
    crosses = (plans.pipeline_parallel > 1).astype(np.int64)
    senders = np.where(leaves, np.minimum(stride, context.cluster.node.devices_per_node), 0)
    groups = group_rows(plans.micro_batch_size, t, c, senders, stays.astype(np.int64), sharded, crosses)
    row = groups.first
    row_bytes = context.model.stream_width * context.job.numerics.storage_bytes
    tokens = plans.micro_batch_size[row] * context.job.sequence_length / c[row]
    size = np.where(crosses[row] > 0, tokens * row_bytes / np.where(sharded[row] > 0, t[row], 1), 0.0)
    near = _exchanged(context, size, 1 + crosses[row] * (stays | ~leaves)[row], stride=np.ones_like(row))
    outside = size * adapters_share(senders[row], context)
    far = _exchanged(context, outside, 1 + crosses[row] * leaves[row], stride=np.full_like(row, MAX_DEVICES))
    part = np.where(leaves[row], np.where(stays[row], 0.5, 1.0), 0.0)  # of a stage's exchanges, those between domains
    return Prediction(
        time_s=near.time_s + part * (far.time_s - near.time_s),
        low_s=near.low_s + part * (far.low_s - near.low_s),
        high_s=near.high_s + part * (far.high_s - near.high_s),
        basis=np.where(part > 0, far.basis, near.basis),
        extrapolated=np.where(part > 0, far.extrapolated, near.extrapolated),
    ).take(groups.of_row)


def _exchanged(context: CostContext, size_bytes: FloatArray, group: IntArray, *, stride: IntArray) -> Prediction:
    op = np.full(len(size_bytes), int(CollectiveOp.SEND_RECV), dtype=np.int64)
    return price_collectives(context, op=op, size_bytes=size_bytes, group=group, stride=stride)
