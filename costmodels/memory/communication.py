"""Memory of traffic: buckets, what is gathered or not yet reduced, hidden states of other stages, communicators."""

import numpy as np

from costmodels.arrays import as_column, total
from costmodels.context import CostContext
from costmodels.frozen_weights import frozen_bytes, unit_bytes
from costmodels.gradient_formats import reduced_element_bytes
from costmodels.memory.activations import sequence_divisor, tokens_per_rank
from costmodels.memory.model_state import gradient_bytes, unreduced_gradient_bytes
from costmodels.plan import BoolArray, FloatArray, PlanBatch, chunks_per_stage
from costmodels.stages.parameters import StageParameters, largest_matrix_parameters, unit_parameters
from costmodels.stages.table import StageTable

# DeepSpeed's default stage3_max_live_parameters.
_DEEPSPEED_LIVE_PARAMETERS = 1e9


def communication_bytes(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> FloatArray:
    """(N, S) reduction buckets, gathered weights of ZeRO-3, gradients not yet reduced and pipeline receive buffers."""
    stack, storage = context.stack, context.job.numerics.storage_bytes
    # DeepSpeed's buckets are there for a single rank, too (ipg_buffer in backward of stage_1_and_2.py and
    # __ipg_bucket_flat_buffer of stage3.py, runtime/zero).
    sharded = (plans.zero_stage > 0) & ((plans.shard_degree > 1) | (stack.framework == "deepspeed"))
    per_plan = np.where(sharded, stack.bucket_bytes, 0.0)
    chunk = chunk_receive_bytes(plans, context)
    if chunk is None:
        held = np.broadcast_to((per_plan + receive_bytes(plans, context))[:, None], parameters.dense.shape)
    else:  # the first chunk of a model receives nothing, its last no gradient
        chunks = chunks_per_stage(plans.schedule, plans.virtual_stages)[:, None]
        held = per_plan[:, None] + chunk[:, None] * (chunks - (1.0 * stages.has_embedding + stages.has_head) / 2)
    if stack.gradient_bucket_copies:
        held = held + parameters.trained * (stack.gradient_bucket_copies * storage)
    if stack.replica_bucket_copies:
        replicas = (plans.zero_stage == 0) & (plans.data_parallel > 1)
        copies = stack.replica_bucket_copies * as_column(gradient_bytes(plans, context))
        held = held + np.where(replicas[:, None], parameters.trained * copies, 0.0)
    if (plans.zero_stage >= 3).any():
        held = held + gathered_bytes(plans, stages, parameters, context)
    if stack.framework == "fsdp" and (plans.zero_stage == 2).any():
        whole = (plans.zero_stage == 2) & (plans.shard_degree > 1) & _keeps_whole(plans)
        held = held + np.where(whole[:, None], parameters.trained * _reduced_bytes(plans, context), 0.0)
    return held


def receive_bytes(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes of the hidden states that a rank has from one neighbouring stage and for the other."""
    sent = context.job.numerics.storage_bytes * context.model.stream_width * tokens_per_rank(plans, context.job)
    return np.where(plans.pipeline_parallel > 1, 2 * sent / sequence_divisor(plans), 0.0)


def chunk_receive_bytes(plans: PlanBatch, context: CostContext) -> FloatArray | None:
    """(N,) bytes that a chunk of a stage holds for all micro-batches of a step; None where buffers come and go.

    PyTorch's have a buffer each for what they receive and for the gradient of what they send. While a micro-batch is in
    flight, its buffer is the input that layers keep anyway, but the output is kept for the backward pass beside it. The
    first stage receives nothing: its outputs are among activations (``stage_activations.activation_units``).

    Source:
        pytorch/pytorch, torch/distributed/pipelining/stage.py, ``_prepare_forward_infra``, ``_prepare_backward_infra``
        and ``fwd_cache``; its issue 136380, and pull request 196463, of September 2026, which would change it.
    """
    if context.stack.framework != "fsdp":
        return None
    return receive_bytes(plans, context) * plans.num_microbatches


def _reduced_bytes(plans: PlanBatch, context: CostContext) -> FloatArray | float:
    """(N, 1) bytes per trained parameter of gradients on their way to being reduced, or one number for all."""
    if context.stack.reduce_dtype:
        return reduced_element_bytes(context.job, context.stack)
    return as_column(unreduced_gradient_bytes(plans, context))


def _keeps_whole(plans: PlanBatch) -> BoolArray:
    """(N,) whether FSDP keeps what it gathered, and its gradients whole, between the micro-batches of a pipeline."""
    whole: BoolArray = (plans.pipeline_parallel > 1) & (plans.num_microbatches > 1)
    return whole


def gathered_bytes(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> FloatArray:
    """(N, S) bytes of weights gathered and of gradients not yet reduced under ZeRO-3.

    Gradients leave unit by unit, in DeepSpeed module by module; under a pipeline FSDP keeps them whole.
    """
    job, stack = context.job, context.stack
    sharded = (plans.weight_shards > 1)[:, None]
    if job.trains_adapters_only:
        return np.where(sharded, _gathered_frozen(plans, stages, parameters, context), 0.0)
    weights = parameters.dense + parameters.expert
    unit = unit_parameters(plans, context.model)[:, None]
    reduced = _reduced_bytes(plans, context)
    unreduced = np.minimum(unit, weights) * reduced
    if stack.framework == "deepspeed":
        matrix = largest_matrix_parameters(plans, context.model)[:, None]
        unreduced = np.minimum(matrix, weights) * job.numerics.storage_bytes
    if stack.framework == "fsdp":
        unreduced = np.where(_keeps_whole(plans)[:, None], weights * reduced, unreduced)
    return gathered_weight_bytes(plans, parameters, context) + np.where(sharded, unreduced, 0.0)


def gathered_weight_bytes(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) bytes of the weights that a rank holds gathered under ZeRO-3, whether it trains them or only runs them.

    One unit in use and those prefetched, never more than the stage has. FSDP under a pipeline keeps
    the whole stage gathered, and its gradients whole, until the last micro-batch: resharding between
    micro-batches would gather everything again for each (torchtitan, ``reshard_after_forward``).
    DeepSpeed gathers module by module and keeps what it will need again soon, up to a fixed number of
    parameters (``stage3_max_live_parameters``).
    """
    weights = parameters.dense + parameters.expert
    gathered = np.minimum(unit_parameters(plans, context.model)[:, None] * context.stack.unsharded_units, weights)
    if context.stack.framework == "deepspeed":
        matrix = largest_matrix_parameters(plans, context.model)[:, None]
        gathered = np.minimum(np.maximum(matrix, _DEEPSPEED_LIVE_PARAMETERS), weights)
    if context.stack.framework == "fsdp":
        gathered = np.where(_keeps_whole(plans)[:, None], weights, gathered)
    return np.where((plans.weight_shards > 1)[:, None], gathered * context.job.numerics.storage_bytes, 0.0)


def _gathered_frozen(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> FloatArray:
    """(N, S) bytes of frozen weights gathered under ZeRO-3, as they are stored; none of them has a gradient."""
    stack, storage = context.stack, context.job.numerics.storage_bytes
    held = total(frozen_bytes(plans, stages, parameters, context, plain_bytes=storage))
    gathered = unit_bytes(plans, context)[:, None] * stack.unsharded_units
    if stack.framework == "deepspeed":  # counts elements, of which 4-bit weights share one of 16 bits
        matrix = largest_matrix_parameters(plans, context.model)[:, None] * storage
        gathered = np.maximum(matrix, _DEEPSPEED_LIVE_PARAMETERS * storage)
    if stack.framework == "fsdp":
        gathered = np.where(_keeps_whole(plans)[:, None], held, gathered)
    return np.minimum(gathered, held)


def communicators(plans: PlanBatch) -> FloatArray:
    """(N,) process groups with more than one rank: each keeps buffers outside PyTorch's allocator."""
    groups = np.zeros(len(plans))
    for ranks in (
        plans.tensor_parallel,
        plans.pipeline_parallel,
        plans.data_parallel,
        plans.context_parallel,
        plans.expert_parallel,
    ):
        groups += ranks > 1
    return groups


def exchanged_bytes(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes of the hidden states of a micro-batch, whole, as sequence parallelism gathers and scatters them.

    0 in stacks whose collectives give them back to the allocator at once, and where collectives stall the host, so
    that it never runs ahead of the device.
    """
    if context.cluster.node.collective_rank_s or not context.stack.records_streams:
        return np.zeros(len(plans))
    whole = context.job.numerics.storage_bytes * context.model.hidden_size * tokens_per_rank(plans, context.job)
    return np.where(plans.sequence_parallel & (plans.tensor_parallel > 1), whole, 0.0)
