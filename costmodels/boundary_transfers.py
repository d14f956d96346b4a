"""Activations that cross from one pipeline stage to the next, and their gradients that come back."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import Prediction
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.grouping import group_rows
from costmodels.lowering.transfers import price_collectives
from costmodels.plan import AxisOrder, FloatArray, PlanBatch
from profiles.hardware import MAX_DEVICES


def boundary_transfer_s(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) seconds of ``boundary_transfers``."""
    return boundary_transfers(plans, context).time_s


def boundary_transfers(plans: PlanBatch, context: CostContext, *, apart: bool = False) -> Prediction:
    """(N,) seconds that one micro-batch spends crossing to the next stage, one way; 0 without stages.

    Args:
        plans: N plans.
        context: Model, job, stack, and the cluster whose links are crossed.
        apart: Whether the next stage never shares a scale-up domain with this one.
    """
    t, c = plans.tensor_parallel, plans.context_parallel
    inside = plans.axis_order == int(AxisOrder.TP_CP_PP_DP)
    stride = np.full(len(plans), MAX_DEVICES) if apart else t * c * np.where(inside, 1, plans.data_parallel)
    scattered = plans.sequence_parallel | context.stack.scatters_boundaries
    sharded = scattered.astype(np.int64)
    crosses = (plans.pipeline_parallel > 1).astype(np.int64)
    span = np.minimum(stride, context.cluster.domain_devices)
    groups = group_rows(plans.micro_batch_size, t, c, span, sharded, crosses)
    row = groups.first
    row_bytes = context.model.stream_width * context.job.numerics.storage_bytes
    tokens = plans.micro_batch_size[row] * context.job.sequence_length / c[row]
    size = np.where(crosses[row] > 0, tokens * row_bytes / np.where(sharded[row] > 0, t[row], 1), 0.0)
    priced = price_collectives(
        context,
        op=np.full(len(row), int(CollectiveOp.SEND_RECV), dtype=np.int64),
        size_bytes=size,
        group=1 + crosses[row],
        stride=stride[row],
    )
    return priced.take(groups.of_row)
