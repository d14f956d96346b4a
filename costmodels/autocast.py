"""Which tensors are fp32 although products run in 16 bits: under autocast, and around 4-bit weights."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.workload import TrainingJob
from profiles.stack import StackSpec

_FP32 = 4.0  # bytes


def fp32_stream(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether the residual stream is fp32 and linear layers cast what they read.

    Under autocast the weights of embedding and norms are fp32. PEFT's ``prepare_model_for_kbit_training`` casts to fp32
    what QLoRA leaves unquantised.
    """
    if job.task == "qlora":
        return stack.casts_unquantised
    wider = job.master_dtype == "fp32" and job.numerics.storage_bytes < _FP32
    return stack.autocast_weights and not job.trains_adapters_only and wider


def casts_weights(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether the weights are fp32 themselves and products run in 16 bits."""
    return job.task != "qlora" and fp32_stream(job, stack)


def stream_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per value of the residual stream, and of queries and keys while they are rotated."""
    return _FP32 if fp32_stream(job, stack) else job.numerics.storage_bytes


def new_gradient_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per element of a gradient as autograd hands it over: in the format of the weight it belongs to."""
    return _FP32 if casts_weights(job, stack) else job.numerics.storage_bytes


def output_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per value that a linear layer gives: 4-bit layers of bitsandbytes answer in the format of their input."""
    return stream_bytes(job, stack) if job.task == "qlora" else job.numerics.storage_bytes


def sharding_stack(stack: StackSpec) -> StackSpec:
    """The stack as it runs plans that shard model states: none of them casts fp32 weights.

    Source:
        huggingface/accelerate, src/accelerate/accelerator.py: Accelerator sets no ``native_amp`` under DeepSpeed, whose
        engine holds 16-bit weights beside the master copy that it shards. FSDP gathers weights in 16 bits
        (``MixedPrecision``), so that autocast finds nothing to cast.
    """
    return replace(stack, autocast_weights=False)


def sharded_apart(stack: StackSpec, zero_stage: IntArray) -> BoolArray | None:
    """(N,) plans of such ZeRO stages that run on the ``sharding_stack``; None where all run on the stack as it is."""
    sharded: BoolArray = zero_stage > 0
    return sharded if stack.autocast_weights and sharded.any() else None


def by_sharding(
    stack: StackSpec, zero_stage: IntArray, price: Callable[[StackSpec], FloatArray | float]
) -> FloatArray | float:
    """A price of N plans, each on the stack as it runs that plan (``sharding_stack``).

    Args:
        stack: The stack as it runs plans that shard nothing.
        zero_stage: (N,) their ZeRO stages.
        price: What a stack makes of all N: (..., N), or one number for all.
    """
    sharded = sharded_apart(stack, zero_stage)
    if sharded is None:
        return price(stack)
    return np.where(sharded, price(sharding_stack(stack)), price(stack))
