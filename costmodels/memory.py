"""Peak device memory of one rank of each pipeline stage, in named parts.

The peak is the larger of two moments: the start of a micro-batch's backward pass (all kept
activations, the loss or one layer's gradients) and its end (that micro-batch's activations gone, its
16-bit gradients complete where the stack keeps them apart). Sources: arXiv:2205.05198 (activations),
arXiv:1910.02054 (states), arXiv:2104.04473 (in-flight micro-batches), arXiv:2304.11277 (unsharded
units). Stack constants are fitted or cited in ``profiles/data/stacks``.

Left out on purpose: host-side fragmentation, checkpoint writing, evaluation and data loading.
"""

from collections.abc import Mapping

import numpy as np

from costmodels.activations import (
    LayerActivations,
    embedding_activations,
    layer_activations,
    logits_bytes,
    output_activations,
    sequence_divisor,
    tokens_per_rank,
)
from costmodels.context import CostContext
from costmodels.model_state import ModelState, model_state, state_bytes, unit_parameters
from costmodels.plan import FloatArray, PlanBatch, Recompute, Schedule
from costmodels.stage_parameters import StageParameters, stage_parameters
from costmodels.stages import StageTable

_NORMAL_90 = 1.645  # standard deviations either side of the mean that hold 90 % of a normal law
# Parts that PyTorch's allocator counts as allocated, as reserved, and that nvidia-smi adds.
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
    model, job, stack = context.model, context.job, context.stack
    if parameters is None:
        parameters = stage_parameters(plans, stages, model, job)
    state = model_state(plans, stages, parameters, job, stack, model)
    activations, working, newest = _activations(plans, stages, context)
    logits = logits_bytes(plans, model, job, stack)
    logits *= np.where(plans.schedule == Schedule.GPIPE, plans.num_microbatches, 1)
    at_loss = stages.has_head * logits[:, None]
    working = np.maximum(working[:, None] - at_loss, 0.0)
    separate = _separate_gradients(parameters, context)
    extra_gradients = np.maximum(separate - newest - working - at_loss, 0.0) if stack.separate_gradients else 0.0
    optimizer = np.where(plans.offload_optimizer[:, None], 0.0, state.optimizer)
    dynamic = activations + working + at_loss + extra_gradients
    parts = {
        "weights": state.weights,
        "gradients": _gradients_on_device(plans, state) + extra_gradients,
        "optimizer": optimizer,
        "activations": activations + working,
        "logits": at_loss,
        "communication": _communication(plans, parameters, context),
        "reserve": stack.fragmentation_fraction * dynamic + stack.reserve_bytes,
        "context": np.broadcast_to(_context(plans, context)[:, None], dynamic.shape),
    }
    unused = stages.count == 0
    if unused.any():
        return {name: np.where(unused, 0.0, part) for name, part in parts.items()}
    return parts


def memory_interval(memory: Mapping[str, FloatArray], context: CostContext) -> tuple[FloatArray, FloatArray]:
    """(N,) low and high end of the 90 % interval of the peak.

    States are counted exactly; what scatters is the rest, so the interval widens with its share.
    """
    total = np.sum(list(memory.values()), axis=0)
    stage = total.argmax(axis=1)[:, None]
    peak = np.take_along_axis(total, stage, axis=1)[:, 0]
    spread = np.exp(_NORMAL_90 * context.stack.memory_residual_log_std)
    return peak / spread, peak * spread


def host_memory_bytes(plans: PlanBatch, stages: StageTable, context: CostContext) -> FloatArray:
    """(N,) host memory per node that offloaded states and activations take.

    Source:
        ZeRO-Offload (arXiv:2101.06840) section 3: fp32 master weights, moments and 16-bit gradients.
    """
    parameters = stage_parameters(plans, stages, context.model, context.job)
    state = model_state(plans, stages, parameters, context.job, context.stack, context.model)
    each = state_bytes(context.job, context.stack)
    optimizer_b = each.master + each.moments
    gradients = state.optimizer * (each.gradient / optimizer_b if optimizer_b else 0.0)
    activations, _, _ = _kept(plans, stages, context)
    per_rank = np.where(plans.offload_optimizer[:, None], state.optimizer + gradients, 0.0)
    per_rank = per_rank + np.where(plans.offload_activations[:, None], activations, 0.0)
    ranks = np.minimum(plans.num_devices, context.cluster.node.devices_per_node)
    host: FloatArray = per_rank.max(axis=1) * ranks
    return host


def _activations(
    plans: PlanBatch, stages: StageTable, context: CostContext
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(N, S) kept, (N,) working set of a backward pass, (N, S) what one micro-batch of them holds."""
    kept, newest, working = _kept(plans, stages, context)
    offloaded = plans.offload_activations[:, None]
    if offloaded.any():
        # Two layers' checkpoints stay on the device: one in use, one in flight.
        resident = 2.0 / np.maximum(stages.layers * stages.in_flight, 2.0)
        kept = np.where(offloaded, kept * resident, kept)
        newest = np.where(offloaded, np.minimum(newest, kept), newest)
    return kept, working, newest


def _kept(plans: PlanBatch, stages: StageTable, context: CostContext) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(N, S) kept by all in-flight micro-batches, (N, S) by one of them, (N,) working set of a backward pass."""
    model, job, stack = context.model, context.job, context.stack
    kinds = [
        moe for moe in (False, True) if (model.num_moe_layers > 0 if moe else model.num_moe_layers < model.num_layers)
    ]
    one: FloatArray = np.zeros_like(stages.in_flight)
    working = np.zeros(len(plans))
    share = _recomputed_share(plans, stages)
    for moe in kinds:
        layer = layer_activations(plans, model, job, stack, moe=moe)
        layers = stages.moe_layers if moe else stages.layers - stages.moe_layers
        selective = plans.recompute == Recompute.SELECTIVE
        whole = layer.whole - np.where(selective, layer.core, 0.0)
        one += layers * (whole[:, None] - share * (whole - layer.layer_input)[:, None])
        working = np.maximum(working, _working(plans, layer))
    ends = stages.has_head * output_activations(plans, model, job)[:, None]
    if job.dropout:
        ends = ends + stages.has_embedding * embedding_activations(plans, model, job)[:, None]
    one += ends
    return one * stages.in_flight, one, working


def _recomputed_share(plans: PlanBatch, stages: StageTable) -> FloatArray:
    """(N, S) share of a stage's layers that are recomputed from their input."""
    full: FloatArray = (plans.recompute == Recompute.FULL)[:, None] * np.ones_like(stages.in_flight)
    block = plans.recompute == Recompute.BLOCK
    if not block.any():
        return full
    first = np.minimum(plans.recompute_layers[:, None] / np.maximum(stages.layers, 1), 1.0)
    share: FloatArray = np.where(block[:, None], first, full)
    return share


def _working(plans: PlanBatch, layer: LayerActivations) -> FloatArray:
    """(N,) bytes of one layer's backward pass: what it recomputes, and gradients."""
    whole_again = (plans.recompute == Recompute.FULL) | (
        (plans.recompute == Recompute.BLOCK) & (plans.recompute_layers > 0)
    )
    again = np.where(whole_again, layer.whole - layer.layer_input, 0.0)
    core = np.where(plans.recompute == Recompute.SELECTIVE, layer.core, 0.0)
    working: FloatArray = layer.backward + again + core
    return working


def _gradients_on_device(plans: PlanBatch, state: ModelState) -> FloatArray:
    """(N, S) gradient bytes; ZeRO-2 and -3 with an offloaded optimizer send them to the host as they come."""
    leaves = plans.offload_optimizer & (plans.zero_stage >= 2)
    kept: FloatArray = np.where(leaves[:, None], 0.0, state.gradients)
    return kept


def _separate_gradients(parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) bytes of one micro-batch's gradients where autograd does not add them into the buffers itself."""
    trained: FloatArray = parameters.trained_dense + parameters.trained_expert
    return trained * context.job.numerics.storage_bytes


def _communication(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) bucket buffers, unsharded units of ZeRO-3, and pipeline receive buffers."""
    job, stack = context.job, context.stack
    trained = parameters.trained_dense + parameters.trained_expert
    held: FloatArray = trained * (stack.gradient_bucket_copies * job.numerics.storage_bytes)
    per_plan = np.where((plans.zero_stage > 0) & (plans.shard_degree > 1), stack.bucket_bytes, 0.0)
    if (plans.zero_stage >= 3).any():
        each = state_bytes(job, stack)
        gathered = stack.unsharded_units * job.numerics.storage_bytes
        reduced = 0.0 if job.trains_adapters_only else each.gradient
        unit = unit_parameters(plans, context.model) * (gathered + reduced)
        per_plan = per_plan + np.where((plans.zero_stage >= 3) & (plans.shard_degree > 1), unit, 0.0)
    boundary = 2 * job.numerics.storage_bytes * context.model.hidden_size
    boundary_bytes = boundary * tokens_per_rank(plans, job) / sequence_divisor(plans)
    per_plan = per_plan + np.where(plans.pipeline_parallel > 1, boundary_bytes, 0.0)
    return held + per_plan[:, None]


def _context(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) CUDA context and libraries, and the buffers of each communicator; outside PyTorch's allocator."""
    groups = np.zeros(len(plans))
    for ranks in (
        plans.tensor_parallel,
        plans.pipeline_parallel,
        plans.data_parallel,
        plans.context_parallel,
        plans.expert_parallel,
    ):
        groups += ranks > 1
    total: FloatArray = context.stack.context_bytes + context.stack.communicator_bytes * groups
    return total
