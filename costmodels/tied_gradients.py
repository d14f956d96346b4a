"""The sum of a tied embedding's gradients over the two pipeline stages that hold it."""

from functools import partial

import numpy as np

from costmodels.autocast import by_sharding
from costmodels.context import CostContext
from costmodels.gradient_formats import gradient_element_bytes
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.transfers import price_collectives
from costmodels.plan import AxisOrder, FloatArray, PlanBatch
from profiles.hardware import MAX_DEVICES


def shared_gradients_s(
    plans: PlanBatch, shared: FloatArray, context: CostContext, *, apart: bool = False
) -> FloatArray:
    """(3, K * S) seconds, low and high to sum the gradients of a tied embedding over the two stages that hold it.

    They are at least half of all devices apart, unless the stages of a pipeline are neighbours. Nothing is counted
    where gradients are sharded: what shards them runs no pipeline with tied ends (DeepSpeed refuses to, torchtitan
    ties none).

    Args:
        plans: K plans.
        shared: (K, S) parameters of the embedding, on stages that hold one of its two uses.
        context: Job, stack, and the cluster whose links join both stages.
        apart: Whether these never share a scale-up domain.

    Source:
        Megatron-LM, megatron/core/distributed/finalize_model_grads.py: _allreduce_embedding_grads blocks, after
        finish_grad_sync of all buckets; DeepSpeed, runtime/pipe/engine.py, _exec_reduce_tied_grads, once the backward
        passes are done.
    """
    zero = plans.zero_stage[:, None]
    inside = plans.tensor_parallel * plans.context_parallel * np.maximum(plans.pipeline_parallel - 1, 1)
    stride = np.where(plans.axis_order == int(AxisOrder.TP_CP_PP_DP), inside, max(context.cluster.num_devices // 2, 1))
    stride = np.full_like(stride, MAX_DEVICES) if apart else stride
    each = by_sharding(context.job, context.stack, plans.zero_stage, partial(gradient_element_bytes, context.job))
    size_bytes = (shared * (zero < 2)).T * each
    priced = price_collectives(
        context,
        op=np.full(shared.size, int(CollectiveOp.ALL_REDUCE), dtype=np.int64),
        size_bytes=size_bytes.T.reshape(-1),
        group=np.full(shared.size, 2, dtype=np.int64),
        stride=np.repeat(stride, shared.shape[1]),
    )
    return np.stack([priced.time_s, priced.low_s, priced.high_s])
