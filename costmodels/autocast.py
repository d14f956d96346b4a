"""Which tensors are fp32 although products run in 16 bits: under autocast, and around 4-bit weights."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.workload import TrainingJob
from profiles.precision import FP32_BYTES
from profiles.stack import StackSpec


def fp32_stream(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether the residual stream is fp32 and linear layers cast what they read.

    Under autocast the weights of embedding and norms are fp32: those that are trained and have a master copy, and
    frozen ones that were loaded so. PEFT's ``prepare_model_for_kbit_training`` casts to fp32 what QLoRA leaves
    unquantised.
    """
    if job.task == "qlora":
        return stack.casts_unquantised and job.fp32_unquantised
    weights = job.frozen_dtype if job.trains_adapters_only else job.master_dtype
    return stack.autocast_weights and weights == "fp32" and job.numerics.storage_bytes < FP32_BYTES


def casts_weights(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether the weights are fp32 themselves and products run in 16 bits."""
    return job.task != "qlora" and fp32_stream(job, stack)


def caches_casts(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether autocast keeps casts of the weights until the loss is known: those of trained ones.

    That of a frozen weight is kept by the layer's own graph only (``requires_grad`` in ``cached_cast`` of PyTorch's
    aten/src/ATen/autocast_mode.cpp).
    """
    return casts_weights(job, stack) and not job.trains_adapters_only


def stream_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per value of the residual stream, and of queries and keys while they are rotated."""
    return FP32_BYTES if fp32_stream(job, stack) else job.numerics.storage_bytes


def new_gradient_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per element of a gradient as autograd hands it over: in the format of the weight it belongs to."""
    return FP32_BYTES if casts_weights(job, stack) else job.numerics.storage_bytes


def output_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per value that a linear layer gives: 4-bit layers of bitsandbytes answer in the format of their input."""
    return stream_bytes(job, stack) if job.task == "qlora" else job.numerics.storage_bytes


def sharding_stack(stack: StackSpec, *, weights: bool = False) -> StackSpec:
    """The stack as it runs plans that shard model states: none of them casts fp32 weights.

    Args:
        stack: The stack as it runs plans that shard nothing.
        weights: They shard weights, too: what QLoRA leaves unquantised stays in 16 bits, and what Hugging Face's code
            shards by FSDP is the master copy, with no 16-bit one beside it.

    Source:
        huggingface/accelerate, src/accelerate/accelerator.py: Accelerator sets no ``native_amp`` under DeepSpeed, whose
        engine holds 16-bit weights beside the master copy that it shards. FSDP gathers weights in 16 bits
        (``MixedPrecision``), so that autocast finds nothing to cast. huggingface/trl, trl/trainer/utils.py,
        prepare_peft_model: with 4-bit weights under FSDP or ZeRO-3 (``is_sharded_qlora``) nobody calls
        ``prepare_model_for_kbit_training``, whose fp32 tensors do not flatten with 16-bit ones.
    """
    return replace(
        stack,
        shards_master_weights=stack.shards_master_weights or (weights and stack.framework == "huggingface"),
        autocast_weights=False,
        casts_unquantised=stack.casts_unquantised and not weights,
    )


def run_apart(job: TrainingJob, stack: StackSpec, zero_stage: IntArray) -> list[tuple[BoolArray, StackSpec]]:
    """Plans of such ZeRO stages that run on a ``sharding_stack``, (N,) each, and that stack; later ones override."""
    sharded, weights = zero_stage > 0, zero_stage > 2
    apart = []
    if stack.autocast_weights and sharded.any():
        apart.append((sharded, sharding_stack(stack)))
    copied = stack.framework == "huggingface" and not stack.shards_master_weights and job.master_dtype != "none"
    unlike = stack.casts_unquantised if job.task == "qlora" else copied
    if unlike and weights.any():
        apart.append((weights, sharding_stack(stack, weights=True)))
    return apart


def by_sharding(
    job: TrainingJob, stack: StackSpec, zero_stage: IntArray, price: Callable[[StackSpec], FloatArray | float]
) -> FloatArray | float:
    """A price of N plans, each on the stack as it runs that plan (``sharding_stack``).

    Args:
        job: What is trained.
        stack: The stack as it runs plans that shard nothing.
        zero_stage: (N,) their ZeRO stages.
        price: What a stack makes of all N: (..., N), or one number for all.
    """
    found = price(stack)
    for plans, other in run_apart(job, stack, zero_stage):
        found = np.where(plans, price(other), found)
    return found
