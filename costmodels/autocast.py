"""Which tensors are fp32 although products run in 16 bits: under autocast, and around 4-bit weights."""

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
    return stack.autocast_weights and not job.trains_adapters_only and job.master_dtype == "fp32"


def casts_weights(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether the weights are fp32 themselves and products run in 16 bits."""
    return job.task != "qlora" and fp32_stream(job, stack)


def stream_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per value of the residual stream, and of queries and keys while they are rotated."""
    return _FP32 if fp32_stream(job, stack) else job.numerics.storage_bytes


def output_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per value that a linear layer gives: 4-bit layers of bitsandbytes answer in the format of their input."""
    return stream_bytes(job, stack) if job.task == "qlora" else job.numerics.storage_bytes
