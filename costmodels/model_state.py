"""Model states: weights, gradients and optimizer states of one rank, however they are sharded.

Sources: ZeRO (arXiv:1910.02054) sections 3.1 and 5 for 2 + 2 + K bytes per parameter and what each
stage divides; Megatron-LM's distributed optimizer, which keeps fp32 gradients whole and divides the
12 optimizer bytes by the data-parallel ranks; FSDP (arXiv:2304.11277), whose only resident weights
are the sharded ones in master precision; QLoRA (arXiv:2305.14314) section 3 for 4-bit weights.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.optimizer import MOMENTS, moment_bytes
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stage_parameters import StageParameters
from costmodels.stages import StageTable
from costmodels.workload import TrainingJob
from profiles.model import ModelSpec
from profiles.parameters import embedding_parameters, head_parameters, layer_parameters, position_parameters
from profiles.precision import ELEMENT_BYTES
from profiles.stack import StackSpec

# NF4 with double quantisation: 4 bits, an 8-bit constant per 64 weights and an fp32 one per 256 of
# those (arXiv:2305.14314 section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Block-wise 8-bit moments carry one fp32 scale per block (arXiv:2110.02861); 256 in bitsandbytes.
_INT8_SCALE_BYTES = 4 / 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per parameter.

    Attributes:
        weight: Resident weights that are trained.
        frozen: Resident weights that are not (LoRA), quantised ones apart.
        gradient: Gradients as accumulated.
        master: Separate master copy; 0 where the weights are the master copy.
        moments: All optimizer moments together.
    """

    weight: float
    frozen: float
    gradient: float
    master: float
    moments: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Bytes of one rank of each stage, each (N, S); ``optimizer`` holds the master copy too."""

    weights: FloatArray
    gradients: FloatArray
    optimizer: FloatArray


def state_bytes(job: TrainingJob, stack: StackSpec) -> StateBytes:
    """Bytes per parameter of a job on a stack.

    Example:
        bf16 with fp32 gradients, master weights and Adam moments: 2 + 4 + 4 + 8 (Megatron-LM).
    """
    storage = job.numerics.storage_bytes
    master = 0.0 if storage >= 4 else float(ELEMENT_BYTES[job.master_dtype])
    weight = storage
    if stack.framework == "fsdp" and master:  # the shards are the master copy, cast when gathered
        weight, master = master, 0.0
    gradient = float(ELEMENT_BYTES[job.gradient_dtype or stack.gradient_dtype])
    moments = MOMENTS[job.optimizer] * moment_bytes(job)
    if moment_bytes(job) == 1:
        moments += MOMENTS[job.optimizer] * _INT8_SCALE_BYTES
    return StateBytes(weight=weight, frozen=storage, gradient=gradient, master=master, moments=moments)


def model_state(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    job: TrainingJob,
    stack: StackSpec,
    model: ModelSpec,
) -> ModelState:
    """Weights, gradients and optimizer states of one rank of each stage, after ZeRO.

    Args:
        plans: N plans; ZeRO 1 divides optimizer states, 2 also gradients, 3 also weights.
        stages: Their stages.
        parameters: What each stage holds before ZeRO.
        job: Precision, optimizer and trained weights.
        stack: Gradient format, and whether shards are the master copy.
        model: For the weights that 4-bit quantisation leaves alone.

    Returns:
        Bytes on the device; the optimizer's are there before any offload.
    """
    each = state_bytes(job, stack)
    weights = _divided(plans, parameters, each.weight, from_stage=3, trained=True)
    if job.trains_adapters_only:
        weights += _frozen_bytes(plans, stages, parameters, job, model, each)
    return ModelState(
        weights=weights,
        gradients=_divided(plans, parameters, each.gradient, from_stage=2, trained=True),
        optimizer=_divided(plans, parameters, each.master + each.moments, from_stage=1, trained=True),
    )


def _divided(
    plans: PlanBatch, parameters: StageParameters, bytes_each: float, *, from_stage: int, trained: bool
) -> FloatArray:
    """(N, S) bytes of all parameters, divided by their replicas from one ZeRO stage on."""
    sharded = plans.zero_stage >= from_stage
    dense = parameters.trained_dense if trained else parameters.dense
    held: FloatArray = dense * (bytes_each / np.where(sharded, plans.shard_degree, 1))[:, None]
    expert = parameters.trained_expert if trained else parameters.expert
    if expert.any():
        held += expert * (bytes_each / np.where(sharded, expert_shard_degree(plans, parameters), 1))[:, None]
    return held


def expert_shard_degree(plans: PlanBatch, parameters: StageParameters) -> FloatArray:
    """(N,) ranks over which ZeRO divides an expert: its replicas, fewer where HSDP replicates shards."""
    replicated = np.maximum(parameters.dense_replicas / np.maximum(plans.shard_degree, 1), 1.0)
    return np.maximum(parameters.expert_replicas / replicated, 1.0)


def _frozen_bytes(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    job: TrainingJob,
    model: ModelSpec,
    each: StateBytes,
) -> FloatArray:
    """(N, S) bytes of the frozen weights; QLoRA quantises all but embedding, head and norms."""
    if job.task != "qlora":
        return _divided(plans, parameters, each.frozen, from_stage=3, trained=False)
    divisor = np.where(plans.zero_stage >= 3, plans.shard_degree, 1)[:, None]
    ends = stages.has_embedding * float(embedding_parameters(model) + position_parameters(model))
    head = embedding_parameters(model) if model.tie_word_embeddings else head_parameters(model)
    ends = ends + (stages.has_head & ~(stages.has_embedding & model.tie_word_embeddings)) * float(head)
    plain = ends / plans.tensor_parallel[:, None]
    plain += stages.layers * float(layer_parameters(model, moe=model.moe is not None).norms)
    quantised = _divided(plans, parameters, NF4_BYTES, from_stage=3, trained=False)
    frozen: FloatArray = quantised + plain * (each.frozen - NF4_BYTES) / divisor
    return frozen


def unit_parameters(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) parameters of the largest unit that ZeRO-3 gathers at once: a layer, or the embedding or head."""
    layer = layer_parameters(model, moe=False)
    sharded, replicated = float(layer.column_row_sharded), float(layer.replicated)
    experts = np.zeros(len(plans))
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        sharded, replicated = float(mixed.column_row_sharded), float(mixed.replicated)
        experts = mixed.routed_experts / (plans.expert_parallel * plans.expert_tensor_parallel)
    per_layer = sharded / plans.tensor_parallel + replicated + experts
    ends = max(embedding_parameters(model), head_parameters(model)) / plans.tensor_parallel
    largest: FloatArray = np.maximum(per_layer, ends)
    return largest
