"""Model states: weights, gradients and optimizer states of one rank, however they are sharded.

Sources: ZeRO (arXiv:1910.02054) sections 3.1 and 5 for 2 + 2 + K bytes per parameter and what each
stage divides; Megatron-LM's distributed optimizer, which keeps fp32 gradients whole and divides the
12 optimizer bytes by the data-parallel ranks; FSDP (arXiv:2304.11277), whose only resident weights
are the sharded ones in master precision; QLoRA (arXiv:2305.14314) section 3 for 4-bit weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from costmodels.autocast import by_sharding, stream_bytes
from costmodels.context import CostContext
from costmodels.frozen_weights import frozen_bytes
from costmodels.gradient_formats import gradient_element_bytes, reduced_element_bytes
from costmodels.memory.narrow_weights import narrow_weight_bytes
from costmodels.optimizer import MOMENTS, moment_bytes
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages.parameters import (
    StageParameters,
    expert_shard_degree,
    largest_matrix_parameters,
    layer_unit_parameters,
)
from costmodels.stages.table import StageTable
from costmodels.workload import TrainingJob
from profiles.parameters import (
    embedding_parameters,
    head_parameters,
)
from profiles.precision import ELEMENT_BYTES
from profiles.stack import StackSpec

# Block-wise 8-bit moments carry one fp32 scale per block (arXiv:2110.02861); 256 in bitsandbytes.
_INT8_SCALE_BYTES = 4 / 256
_UNPACKING_BYTES = 4.0 + 1.0  # the shifted weight and its cast (QuantLinear.forward of AutoGPTQ's qlinear_cuda_old.py)
_DEEPSPEED_SUB_GROUP = 1e9  # its default sub_group_size, in parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per trained parameter.

    Attributes:
        weight: Resident weights.
        gradient: Gradients as accumulated.
        master: Separate master copy, and its gradients where they are not accumulated in its format;
            0 where the weights are the master copy.
        moments: All optimizer moments together.
        paged: Of these, what a paged optimizer has in unified memory: not the constants of 8-bit blocks
            (Optimizer2State.init_state of bitsandbytes/optim/optimizer.py).
    """

    weight: float
    gradient: float
    master: float
    moments: float
    paged: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Bytes of one rank of each stage, each (N, S); ``optimizer`` holds the master copy too, and nothing ``paged``."""

    weights: FloatArray
    gradients: FloatArray
    optimizer: FloatArray
    paged: FloatArray | None = None


def state_bytes(job: TrainingJob, stack: StackSpec) -> StateBytes:
    """Bytes per trained parameter of a job on a stack.

    An optimizer with fp32 master weights needs fp32 gradients: where they are accumulated in 16 bits it
    keeps a copy of its shard (Megatron-LM's table for its distributed optimizer: fp16 gradients take
    4 + 16/d bytes per parameter, fp32 ones 6 + 12/d; BigScience's A100 logs fit 4.3 + 18.6/d), or makes
    one for the length of its step (``optimizer_temporary_bytes``).

    Example:
        bf16 with fp32 gradients, master weights and Adam moments: 2 + 4 + 4 + 8 (Megatron-LM).
    """
    storage = job.numerics.storage_bytes
    master = 0.0 if storage >= 4 else float(ELEMENT_BYTES[job.master_dtype])
    weight = storage
    casts = stack.framework == "fsdp" or stack.shards_master_weights or stack.autocast_weights
    if casts and master:  # the master copy, cast when it is used
        weight, master = master, 0.0
    gradient = gradient_element_bytes(job, stack)
    # In whatever format it was reduced, a parameter's gradient has the parameter's: what FSDP sums in fp32 is cast
    # (foreach_reduce of torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py: orig_dtype).
    if stack.framework == "fsdp":
        gradient = weight
    elif weight >= 4:
        gradient = max(gradient, weight)
    copy = master if stack.master_gradients == "kept" and gradient < master else 0.0
    moments = MOMENTS[job.optimizer] * moment_bytes(job)
    if moment_bytes(job) == 1:
        moments += MOMENTS[job.optimizer] * _INT8_SCALE_BYTES
    kept = autograd_gradient_bytes(job, stack) if stack.autograd_gradients == "kept" else 0.0
    paged = MOMENTS[job.optimizer] * moment_bytes(job) if job.paged_optimizer else 0.0
    return StateBytes(weight=weight, gradient=gradient + kept, master=master + copy, moments=moments, paged=paged)


def autograd_gradient_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per parameter of autograd's own gradients beside wider accumulation buffers; 0 where there are none."""
    storage = job.numerics.storage_bytes
    accumulated = gradient_element_bytes(job, stack)
    return storage if accumulated > storage and stack.autograd_gradients != "fused" else 0.0


def model_state(plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext) -> ModelState:
    """Weights, gradients and optimizer states of one rank of each stage, after ZeRO.

    Args:
        plans: N plans; ZeRO 1 divides optimizer states, 2 also gradients, 3 also weights.
        stages: Their stages.
        parameters: What each stage holds before ZeRO.
        context: Job (precision, optimizer, trained weights), stack (gradient format) and model.

    Returns:
        Bytes; the optimizer's are those before any offload.
    """
    each = partial(_each, plans, context)
    degrees = (plans.shard_degree, expert_shard_degree(plans, parameters))
    trained = (parameters.trained_dense, parameters.trained_expert if parameters.trained_expert.any() else None)
    sharded_from = context.stack.shards_parameters_from
    weights = _divided(plans, trained, degrees, each(lambda state: state.weight), from_stage=sharded_from)
    gathered = (plans.zero_stage >= sharded_from) & (plans.zero_stage < 3) & (plans.shard_degree > 1)
    if gathered.any():  # FSDP2 that does not reshard after the forward pass keeps what products read beside the shards
        whole = parameters.trained
        weights = weights + whole * (gathered * context.job.numerics.storage_bytes)[:, None]
    if context.job.trains_adapters_only:
        frozen = partial(_frozen_bytes, plans, stages, parameters, context, degrees)
        weights = weights + frozen(from_stage=3)
        if gathered.any():
            weights = weights + frozen(from_stage=sharded_from) * gathered[:, None]
    narrow = narrow_weight_bytes(plans, stages, parameters, context)
    return ModelState(
        weights=weights if narrow is None else weights + narrow,
        gradients=_divided(plans, trained, degrees, each(lambda state: state.gradient), from_stage=2),
        optimizer=_divided(
            plans, trained, degrees, each(lambda state: state.master + state.moments - state.paged), from_stage=1
        ),
        paged=_divided(plans, trained, degrees, each(lambda state: state.paged), from_stage=1)
        if context.job.paged_optimizer
        else None,
    )


def gradient_bytes(plans: PlanBatch, context: CostContext) -> FloatArray | float:
    """(N,) bytes per trained parameter of gradients as accumulated, or one number for all."""
    return _each(plans, context, lambda state: state.gradient)


def unreduced_gradient_bytes(plans: PlanBatch, context: CostContext) -> FloatArray | float:
    """(N,) bytes per trained parameter of gradients on their way to being reduced, or one number for all."""
    held = gradient_bytes(plans, context)
    if context.stack.framework != "fsdp":
        return held
    return np.maximum(held, reduced_element_bytes(context.job, context.stack))


def _each(plans: PlanBatch, context: CostContext, part: Callable[[StateBytes], float]) -> FloatArray | float:
    """(N,) bytes per trained parameter, or one number for all."""
    return by_sharding(
        context.job, context.stack, plans.zero_stage, lambda stack: part(state_bytes(context.job, stack))
    )


def _divided(
    plans: PlanBatch,
    counts: tuple[FloatArray, FloatArray | None],
    degrees: tuple[IntArray, IntArray],
    bytes_each: FloatArray | float,
    *,
    from_stage: int,
) -> FloatArray:
    """(N, S) bytes of (dense, expert) parameters, divided by their replicas from one ZeRO stage on."""
    sharded = plans.zero_stage >= from_stage
    dense, expert = counts
    held: FloatArray = dense * (bytes_each / np.where(sharded, degrees[0], 1))[:, None]
    if expert is not None:
        held += expert * (bytes_each / np.where(sharded, degrees[1], 1))[:, None]
    return held


def _frozen_bytes(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    context: CostContext,
    degrees: tuple[IntArray, IntArray],
    *,
    from_stage: int,
) -> FloatArray:
    """(N, S) bytes of the frozen weights, as they are stored, divided by their replicas from one ZeRO stage on."""
    if context.job.frozen_dtype:
        each = float(ELEMENT_BYTES[context.job.frozen_dtype])
        expert = parameters.expert if parameters.expert.any() else None
        return _divided(plans, (parameters.dense, expert), degrees, each, from_stage=from_stage)
    plain_bytes = by_sharding(context.job, context.stack, plans.zero_stage, partial(stream_bytes, context.job))
    dense, expert = frozen_bytes(plans, stages, parameters, context, plain_bytes=plain_bytes)
    return _divided(plans, (dense, expert if expert.any() else None), degrees, 1.0, from_stage=from_stage)


def dequantised_bytes(plans: PlanBatch, stages: StageTable, context: CostContext) -> FloatArray:
    """(N, S) bytes of the largest 4-bit matrix of a stage in 16 bits, as it is while its product runs.

    Experts that are stacked for one product are restored together, gates with what they multiply (``gate_up_proj``).
    Or what PyTorch needs to unpack it, in 32 bits and in 8; in 16 bits it is among the activations then.
    """
    model = context.model
    if context.job.task != "qlora":
        return np.zeros(stages.layers.shape)
    width = model.widest_product
    inner = np.where(stages.layers > 0, float(model.hidden_size * width), 0.0)
    if model.moe is not None and context.stack.quantises_experts and context.stack.grouped_experts:
        stacked = (
            model.moe.num_experts * model.expert_hidden_size * model.moe.ffn_hidden_size * (model.mlp_matrices - 1)
        )
        inner = np.maximum(inner, (stages.moe_layers > 0) * float(stacked))
    head = float(head_parameters(model)) * stages.has_head if context.stack.quantises_head else 0.0
    matrix: FloatArray = np.maximum(inner, head) / plans.tensor_parallel[:, None]
    return matrix * (_UNPACKING_BYTES if context.stack.unpacks_weights else context.job.numerics.storage_bytes)


def end_gradient_bytes(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes alive while the weight gradient of the embedding or head is computed.

    It is a matrix of the whole vocabulary in storage precision and, where gradients are accumulated
    in fp32, its fp32 copy: these two layers are outside the fused accumulation of the others. Measured
    as 6 bytes per parameter on Megatron-Core (SimuMax B200 runs: the peak grows by V h 6 / t).
    """
    if context.job.trains_adapters_only:
        return np.zeros(len(plans))
    gradient = unreduced_gradient_bytes(plans, context)
    storage = context.job.numerics.storage_bytes
    each = storage + np.where(gradient > storage, gradient, 0.0)
    return each * embedding_parameters(context.model) / plans.tensor_parallel


def waiting_gradient_bytes(plans: PlanBatch, stages: StageTable, context: CostContext) -> FloatArray:
    """(N, S) bytes of gradients that outlive their layer's backward pass where the optimizer runs in it.

    That of an embedding the head shares: autograd hands it over once both have been differentiated.
    """
    tied = stages.has_embedding & stages.has_head & context.model.tie_word_embeddings
    shards = np.where(plans.zero_stage >= 2, plans.shard_degree, 1)
    each = gradient_bytes(plans, context) * embedding_parameters(context.model) / (plans.tensor_parallel * shards)
    waiting: FloatArray = tied * each[:, None]
    return waiting


def passing_gradient_bytes(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes of the largest gradient within a layer, alive while that is differentiated and updated in there.

    Where ZeRO shards gradients all of a layer come at once: a rank's part of them (``communication_bytes`` has them
    whole).
    """
    model = context.model
    width = model.widest_product
    matrix = model.hidden_size * width / plans.tensor_parallel
    shards = layer_unit_parameters(plans, model) / plans.shard_degree
    found: FloatArray = gradient_bytes(plans, context) * np.where(plans.zero_stage >= 2, shards, matrix)
    return found


def optimizer_temporary_bytes(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray | None:
    """(N, S) bytes the optimizer needs for the length of its step only; None where that is nothing.

    PyTorch's multi-tensor Adam materialises the denominator of all parameters: one more moment. Others cast
    16-bit gradients to the format of their master copy. An optimizer in the backward pass does so for one parameter.
    """
    job, stack = context.job, context.stack
    each = stack.optimizer_temporaries * moment_bytes(job) * min(MOMENTS[job.optimizer], 1)
    master = 0.0 if job.numerics.storage_bytes >= 4 else float(ELEMENT_BYTES[job.master_dtype])
    if stack.master_gradients == "step" and gradient_element_bytes(job, stack) < master:
        each += master
    if not each:
        return None
    trained = (parameters.trained_dense, parameters.trained_expert if parameters.trained_expert.any() else None)
    degrees = (plans.shard_degree, expert_shard_degree(plans, parameters))
    needed = _divided(plans, trained, degrees, each, from_stage=1)
    if job.optimizer_in_backward:
        needed = np.minimum(needed, each * largest_matrix_parameters(plans, context.model)[:, None])
    if stack.framework == "deepspeed":  # ZeRO-3 steps group by group
        needed = np.where(plans.zero_stage[:, None] >= 3, np.minimum(needed, each * _DEEPSPEED_SUB_GROUP), needed)
    return np.where(plans.offload_optimizer[:, None], 0.0, needed)
