"""Peak device memory of one rank of each pipeline stage, in named parts.

The peak is the largest of three moments of a step:

* the start of a micro-batch's backward pass: all kept activations, with the loss or with the
  gradients of one layer;
* its end: that micro-batch's activations are gone, the embedding's gradient and, in some
  stacks, all 16-bit gradients are complete;
* the optimizer step: no activations, the temporaries of an optimizer that is not fused.

Sources: arXiv:2205.05198 (activations), arXiv:1910.02054 (states), arXiv:2104.04473 (micro-batches in
flight), arXiv:2304.11277 (gathered units). Constants of a stack are cited or fitted in
``profiles/data/stacks``. Left out on purpose: loading and saving checkpoints, evaluation, data loading.
"""

from collections.abc import Mapping

import numpy as np

from costmodels.activations import logits_bytes, sequence_divisor, tokens_per_rank
from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.model_state import (
    ModelState,
    autograd_gradient_bytes,
    end_gradient_bytes,
    model_state,
    optimizer_temporary_bytes,
    state_bytes,
    unit_parameters,
)
from costmodels.plan import FloatArray, PlanBatch, Schedule
from costmodels.stage_activations import StageActivations, stage_activations
from costmodels.stage_parameters import StageParameters, stage_parameters
from costmodels.stages import StageTable
from costmodels.uncertainty import NORMAL_90

# What PyTorch's allocator counts as allocated and as reserved; nvidia-smi shows every part.
ALLOCATED_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "communication")
RESERVED_PARTS = (*ALLOCATED_PARTS, "reserve")


def stage_memory(
    plans: PlanBatch, stages: StageTable, context: CostContext, parameters: StageParameters | None = None
) -> dict[str, FloatArray]:
    """Bytes one rank of every stage needs at its peak, by part.

    Args:
        plans: N plans.
        stages: Their stages, S columns.
        context: Model, job, cluster and stack.
        parameters: Parameters per stage, if the caller has them.

    Returns:
        Part name (``estimate.MEMORY_PARTS``) to (N, S) bytes, 0 in unused columns.
    """
    stack = context.stack
    if parameters is None:
        parameters = stage_parameters(plans, stages, context.model, context.job)
    state = model_state(plans, stages, parameters, context)
    held = stage_activations(plans, stages, context)
    logits, working = _loss_and_working(plans, stages, held, context)
    start = held.kept + working + logits
    gradients = _gradients_at_end(plans, stages, parameters, held, start, context)
    optimizer = state.optimizer
    if plans.offload_optimizer.any():
        optimizer = np.where(plans.offload_optimizer[:, None], 0.0, optimizer)
    if stack.optimizer_temporaries:
        temporary = optimizer_temporary_bytes(plans, parameters, context)
        optimizer = optimizer + np.maximum(temporary - start - gradients, 0.0)
    parts = {
        "weights": state.weights,
        "gradients": _gradients_on_device(plans, state) + gradients,
        "optimizer": optimizer,
        "activations": held.kept + working,
        "logits": logits,
        "communication": _communication(plans, parameters, context),
        "reserve": start * stack.fragmentation_fraction + stack.reserve_bytes,
        "context": np.broadcast_to(_context(plans, context)[:, None], start.shape),
    }
    if stack.cache_fraction:
        parts["reserve"] += _cached(parts, start, context)
    used = stages.count > 0
    return parts if used.all() else {name: part * used for name, part in parts.items()}


def memory_interval(peak_bytes: FloatArray, context: CostContext) -> tuple[FloatArray, FloatArray]:
    """(N,) low and high end of the 90 % interval of the peaks, from the stack's residuals."""
    spread = float(np.exp(NORMAL_90 * context.stack.memory_residual_log_std))
    return peak_bytes / spread, peak_bytes * spread


def host_memory_bytes(
    plans: PlanBatch, stages: StageTable, context: CostContext, parameters: StageParameters | None = None
) -> FloatArray:
    """(N,) host memory per node that offloaded states and activations take.

    Source:
        ZeRO-Offload (arXiv:2101.06840) section 3: master weights, moments and gradients.
    """
    rows = np.flatnonzero(plans.offload_optimizer | plans.offload_activations)
    host = np.zeros(len(plans))
    if not len(rows):
        return host
    if parameters is None:
        parameters = stage_parameters(plans, stages, context.model, context.job)
    host[rows] = _offloaded_bytes(plans.take(rows), stages.take(rows), context, parameters.take(rows))
    return host


def _offloaded_bytes(
    plans: PlanBatch, stages: StageTable, context: CostContext, parameters: StageParameters
) -> FloatArray:
    """(N,) bytes per node of plans that offload something."""
    per_rank = np.zeros_like(stages.in_flight)
    if plans.offload_optimizer.any():
        each = state_bytes(context.job, context.stack)
        kept = each.master + each.moments
        with_gradients = 1.0 + (each.gradient / kept if kept else 0.0)
        optimizer = model_state(plans, stages, parameters, context).optimizer
        per_rank += np.where(plans.offload_optimizer[:, None], optimizer * with_gradients, 0.0)
    if plans.offload_activations.any():
        offloaded = stage_activations(plans, stages, context).offloaded
        per_rank += 0.0 if offloaded is None else np.where(stages.count > 0, offloaded, 0.0)
    ranks = np.minimum(plans.num_devices, context.cluster.node.devices_per_node)
    return largest(per_rank) * ranks


def _loss_and_working(
    plans: PlanBatch, stages: StageTable, held: StageActivations, context: CostContext
) -> tuple[FloatArray, FloatArray]:
    """(N, S) logits at the loss, and (N, S) what the backward pass needs beyond what is kept and beyond them.

    The head is differentiated before any layer: the logits' 16-bit gradient and the head's weight
    gradient are alive together. GPipe keeps the logits of every micro-batch.
    """
    job = context.job
    logits = logits_bytes(plans, context.model, job, context.stack)
    gradient = job.numerics.storage_bytes * context.model.vocab_size * tokens_per_rank(plans, job)
    head = gradient / plans.tensor_parallel + end_gradient_bytes(plans, context)
    at_head = np.maximum(np.maximum(held.working, head) - logits, 0.0)
    logits = logits * np.where(plans.schedule == Schedule.GPIPE, plans.num_microbatches, 1)
    at_loss: FloatArray = stages.has_head * logits[:, None]
    return at_loss, np.where(stages.has_head, at_head[:, None], held.working[:, None])


def _gradients_at_end(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    held: StageActivations,
    start: FloatArray,
    context: CostContext,
) -> FloatArray:
    """(N, S) bytes by which the end of a backward pass exceeds its start.

    Alive then: the activations of the other micro-batches, and the gradient of the embedding or, where
    the stack frees them only after a micro-batch, of every parameter in storage precision.
    """
    last = stages.has_embedding * end_gradient_bytes(plans, context)[:, None]
    if context.stack.autograd_gradients == "freed":
        each = autograd_gradient_bytes(context.job, context.stack)
        last = np.maximum(last, (parameters.trained_dense + parameters.trained_expert) * each)
    end: FloatArray = last + held.kept - held.newest - start
    return np.maximum(end, 0.0)


def _gradients_on_device(plans: PlanBatch, state: ModelState) -> FloatArray:
    """(N, S) gradient bytes; ZeRO-2 and -3 with an offloaded optimizer send them to the host as they come."""
    leaves = plans.offload_optimizer & (plans.zero_stage >= 2)
    if not leaves.any():
        return state.gradients
    return np.where(leaves[:, None], 0.0, state.gradients)


def _communication(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) reduction buckets, gathered weights of ZeRO-3 and pipeline receive buffers."""
    job, stack = context.job, context.stack
    storage = job.numerics.storage_bytes
    per_plan = np.where((plans.zero_stage > 0) & (plans.shard_degree > 1), stack.bucket_bytes, 0.0)
    boundary = 2 * storage * context.model.hidden_size * tokens_per_rank(plans, job) / sequence_divisor(plans)
    per_plan = per_plan + np.where(plans.pipeline_parallel > 1, boundary, 0.0)
    held = np.broadcast_to(per_plan[:, None], parameters.dense.shape)
    if stack.gradient_bucket_copies:
        trained = parameters.trained_dense + parameters.trained_expert
        held = held + trained * (stack.gradient_bucket_copies * storage)
    if (plans.zero_stage >= 3).any():
        held = held + _gathered(plans, parameters, context)
    return held


def _gathered(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) bytes of weights gathered and of gradients not yet reduced under ZeRO-3.

    One unit in use and those prefetched, never more than the stage has. FSDP under a pipeline keeps
    the whole stage gathered, and its gradients whole, until the last micro-batch: resharding between
    micro-batches would gather everything again for each (torchtitan, ``reshard_after_forward``).
    """
    job, stack = context.job, context.stack
    reduced = 0.0 if job.trains_adapters_only else state_bytes(job, stack).gradient
    weights = parameters.dense + parameters.expert
    unit = unit_parameters(plans, context.model)[:, None]
    storage = job.numerics.storage_bytes
    gathered = np.minimum(unit * stack.unsharded_units, weights) * storage + np.minimum(unit, weights) * reduced
    if stack.framework == "fsdp":
        whole = (plans.pipeline_parallel > 1) & (plans.num_microbatches > 1)
        gathered = np.where(whole[:, None], weights * (storage + reduced), gathered)
    sharded = (plans.zero_stage >= 3) & (plans.shard_degree > 1)
    return np.where(sharded[:, None], gathered, 0.0)


def _cached(parts: Mapping[str, FloatArray], dynamic: FloatArray, context: CostContext) -> FloatArray:
    """(N, S) bytes of free blocks the allocator holds on to while the device has room for them.

    Source:
        PyTorch's caching allocator releases its cached blocks and tries again before it raises
        out-of-memory (PyTorch notes on CUDA semantics, memory management).
    """
    room = context.cluster.device.usable_memory_bytes - total(parts.values())
    kept: FloatArray = np.clip(room, 0.0, dynamic * context.stack.cache_fraction)
    return kept


def _context(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) CUDA context and libraries, and each communicator's buffers; outside PyTorch's allocator."""
    axes = (
        plans.tensor_parallel,
        plans.pipeline_parallel,
        plans.data_parallel,
        plans.context_parallel,
        plans.expert_parallel,
    )
    groups = np.zeros(len(plans))
    for ranks in axes:
        groups += ranks > 1
    held: FloatArray = context.stack.context_bytes + context.stack.communicator_bytes * groups
    return held
