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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.activations import logits_bytes, sequence_divisor, tokens_per_rank
from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.model_state import (
    ModelState,
    autograd_gradient_bytes,
    end_gradient_bytes,
    largest_matrix_parameters,
    model_state,
    optimizer_temporary_bytes,
    state_bytes,
    unit_parameters,
)
from costmodels.plan import BoolArray, FloatArray, PlanBatch, Schedule
from costmodels.stage_activations import StageActivations, stage_activations
from costmodels.stage_parameters import StageParameters, stage_parameters
from costmodels.stages import StageTable
from costmodels.uncertainty import NORMAL_90
from profiles.stack import StackSpec
from profiles.units import MIB

# What PyTorch's allocator counts as allocated and as reserved; nvidia-smi shows every part.
ALLOCATED_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "communication")
RESERVED_PARTS = (*ALLOCATED_PARTS, "reserve")

_SEGMENT_BYTES = 2 * MIB
# DeepSpeed's default stage3_max_live_parameters.
_DEEPSPEED_LIVE_PARAMETERS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMemory:
    """What the tensors of N plans take at the peak of each of their S stages.

    Attributes:
        parts: ``ALLOCATED_PARTS`` to (N, S) bytes.
        dynamic: (N, S) of those bytes, what comes and goes with micro-batches: activations and logits.
        used: (N, S) whether the column is a stage.
        communicators: (N, 1) process groups with more than one rank that a rank takes part in.
        usable_bytes: (N, 1) device memory that programs can use.
    """

    parts: Mapping[str, FloatArray]
    dynamic: FloatArray
    used: BoolArray
    communicators: FloatArray
    usable_bytes: FloatArray


def joined(tables: Sequence[TensorMemory]) -> TensorMemory:
    """One table with the rows of all, in order; missing stages are unused columns."""
    width = max(table.used.shape[1] for table in tables)

    def stacked(columns: Iterable[FloatArray]) -> FloatArray:
        return np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in columns])

    return TensorMemory(
        parts={name: stacked(table.parts[name] for table in tables) for name in ALLOCATED_PARTS},
        dynamic=stacked(table.dynamic for table in tables),
        used=stacked(table.used.astype(np.float64) for table in tables) > 0,
        communicators=np.concatenate([table.communicators for table in tables]),
        usable_bytes=np.concatenate([table.usable_bytes for table in tables]),
    )


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
    return with_overheads(tensor_memory(plans, stages, context, parameters), context.stack)


def tensor_memory(
    plans: PlanBatch, stages: StageTable, context: CostContext, parameters: StageParameters | None = None
) -> TensorMemory:
    """The part of ``stage_memory`` that follows from shapes; takes the same arguments."""
    stack = context.stack
    if parameters is None:
        parameters = stage_parameters(plans, stages, context.model, context.job)
    state = model_state(plans, stages, parameters, context)
    held = stage_activations(plans, stages, context)
    logits, working = _loss_and_working(plans, stages, held, context)
    start = held.kept + working + logits
    resident = _gradients_on_device(plans, state, stack)
    gradients = _gradients_at_end(plans, stages, parameters, held, start, context)
    optimizer = state.optimizer
    if plans.offload_optimizer.any():
        optimizer = np.where(plans.offload_optimizer[:, None], 0.0, optimizer)
    if stack.optimizer_temporaries:
        temporary = optimizer_temporary_bytes(plans, parameters, context)
        temporary = temporary + np.where(resident > 0, 0.0, state.gradients)  # born by then, if they were not before
        optimizer = optimizer + np.maximum(temporary - start - gradients, 0.0)
    parts = {
        "weights": state.weights,
        "gradients": resident + gradients,
        "optimizer": optimizer,
        "activations": held.kept + working,
        "logits": logits,
        "communication": _communication(plans, parameters, context),
    }
    return TensorMemory(
        parts=parts,
        dynamic=start,
        used=stages.count > 0,
        communicators=communicators(plans)[:, None],
        usable_bytes=np.full((len(plans), 1), context.cluster.device.usable_memory_bytes),
    )


def with_overheads(tensors: TensorMemory, stack: StackSpec) -> dict[str, FloatArray]:
    """What tensors take, and what a stack's kernels, allocator and libraries add to it.

    Args:
        tensors: The tensors of N plans.
        stack: Its six fitted memory parameters are read (``planner.validate.memory_fit``).

    Returns:
        Part name (``estimate.MEMORY_PARTS``) to (N, S) bytes, 0 in unused columns.
    """
    dynamic = tensors.dynamic
    parts = dict(tensors.parts)
    parts["activations"] = parts["activations"] + dynamic * stack.temporary_fraction
    parts["reserve"] = dynamic * stack.fragmentation_fraction + stack.reserve_bytes
    held = stack.context_bytes + stack.communicator_bytes * tensors.communicators
    parts["context"] = np.broadcast_to(held, dynamic.shape)
    if stack.cache_fraction:
        parts["reserve"] = parts["reserve"] + _cached(parts, tensors, stack)
    return parts if tensors.used.all() else {name: part * tensors.used for name, part in parts.items()}


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
    gradient = job.numerics.storage_bytes * context.model.output_width * tokens_per_rank(plans, job)
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

    Alive then: the activations of the other micro-batches, and the gradient of the embedding; or, while the
    first layer is differentiated, the gradients of every parameter where the stack frees these after a
    micro-batch or a step.
    """
    stack = context.stack
    last = stages.has_embedding * end_gradient_bytes(plans, context)[:, None]
    trained = parameters.trained_dense + parameters.trained_expert
    if stack.autograd_gradients == "freed":
        each = autograd_gradient_bytes(context.job, stack)
        last = np.maximum(last, trained * each + held.one_layer[:, None])
    born = _born_in_backward(plans, stack)
    if born.any():
        whole = trained * state_bytes(context.job, stack).gradient
        shards = np.where(plans.zero_stage >= (2 if stack.framework == "fsdp" else 3), plans.shard_degree, 1)
        last = np.where(born[:, None], np.maximum(last, whole / shards[:, None] + held.one_layer[:, None]), last)
    end: FloatArray = last + held.kept - held.newest - start
    return np.maximum(end, 0.0)


def _born_in_backward(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether gradients come into being in the only backward pass of a step and go with the step."""
    born: BoolArray = (plans.num_microbatches == 1) & stack.transient_gradients
    return born


def _gradients_on_device(plans: PlanBatch, state: ModelState, stack: StackSpec) -> FloatArray:
    """(N, S) gradient bytes held throughout.

    ZeRO-2 and -3 with an offloaded optimizer send them to the host as they come.
    """
    leaves = plans.offload_optimizer & (plans.zero_stage >= 2) | _born_in_backward(plans, stack)
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
    DeepSpeed gathers module by module and keeps what it will need again soon, up to a fixed number of
    parameters (``stage3_max_live_parameters``); gradients leave module by module too.
    """
    job, stack = context.job, context.stack
    reduced = 0.0 if job.trains_adapters_only else state_bytes(job, stack).gradient
    weights = parameters.dense + parameters.expert
    unit = unit_parameters(plans, context.model)[:, None]
    storage = job.numerics.storage_bytes
    gathered = np.minimum(unit * stack.unsharded_units, weights) * storage + np.minimum(unit, weights) * reduced
    if stack.framework == "deepspeed":
        matrix = largest_matrix_parameters(plans, context.model)[:, None]
        live = np.minimum(np.maximum(matrix, _DEEPSPEED_LIVE_PARAMETERS), weights)
        gathered = live * storage + np.minimum(matrix, weights) * (storage if reduced else 0.0)
    if stack.framework == "fsdp":
        whole = (plans.pipeline_parallel > 1) & (plans.num_microbatches > 1)
        gathered = np.where(whole[:, None], weights * (storage + reduced), gathered)
    sharded = (plans.zero_stage >= 3) & (plans.shard_degree > 1)
    return np.where(sharded[:, None], gathered, 0.0)


def _cached(parts: Mapping[str, FloatArray], tensors: TensorMemory, stack: StackSpec) -> FloatArray:
    """(N, S) bytes of free blocks the allocator holds on to while the device has room for them.

    Source:
        PyTorch's caching allocator releases its cached blocks and tries again before it raises
        out-of-memory (PyTorch notes on CUDA semantics, memory management). It holds whole segments of 2 MiB.
    """
    room = tensors.usable_bytes - total(parts.values()) - _SEGMENT_BYTES
    kept: FloatArray = np.clip(room, 0.0, tensors.dynamic * stack.cache_fraction)
    return kept


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
