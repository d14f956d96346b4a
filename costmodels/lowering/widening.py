"""Weights that lie in another format than the 16 bits in which their products run, and are brought into these."""

from dataclasses import dataclass

from costmodels.autocast import casts_weights, fp32_stream
from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily
from profiles.precision import FP32_BYTES, NF4_BYTES

# Bytes per weight and kernels: shifted into 32 bits (0.5 + 4), cast to 8 (4 + 1), masked (2), less its zero (2), scaled
# (1 + 2); the zeros of its groups, a fraction of that, take four kernels (AutoGPTQ/AutoGPTQ,
# auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, QuantLinear.forward from kernel_switch_threshold tokens on).
_UNPACKED = (16.5, 9.0)
# Kernels that restore a 4-bit weight whose constants are quantised again: one for these, one that adds their offset,
# one for the weight (dequantize_4bit of bitsandbytes 0.50.2, as its Linear4bit calls it).
_RESTORED_KERNELS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Widening:
    """What it takes to bring one weight matrix into 16 bits.

    Attributes:
        passes: How often per micro-batch: 0 where it lies in 16 bits, 1 in the forward pass alone, 2 backward as well.
        bytes_per_weight: Bytes read and written each time.
        kernels: Kernels each time.
        family: Of these kernels.
        cast: It is an fp32 weight under autocast, whose own gradient is cast backward; else the weight is wanted again.
        gemm_format: Format its products run in, whatever the job's; empty: the job's.
        element_bytes: Bytes per value of what these read and write; 0: as the job stores.
    """

    passes: int = 0
    bytes_per_weight: float = 0.0
    kernels: float = 0.0
    family: KernelFamily = KernelFamily.COPY
    cast: bool = False
    gemm_format: str = ""
    element_bytes: float = 0.0


def widening(context: CostContext, *, trained: bool, packed: bool, grouped: bool = False) -> Widening:
    """How a weight of a linear layer gets its 16 bits.

    QLoRA restores a frozen 4-bit weight in every pass (arXiv:2305.14314 section 3), autocast casts an fp32 one. One
    that PyTorch unpacks stays (``StackSpec.unpacks_weights``). torch._grouped_mm is none of autocast's: fp32 experts
    multiply in fp32 (PyTorch 2.13, no kernel registered for it in aten/src/ATen/autocast_mode.cpp; its issue 174763).

    Args:
        context: Job and stack are read.
        trained: The weight is trained.
        packed: It lies in 4 bits where frozen weights do.
        grouped: Its product is one of several experts.
    """
    job, stack = context.job, context.stack
    storage = job.numerics.storage_bytes
    if casts_weights(job, stack):
        if grouped and stack.expert_library == "cutlass":
            return Widening(gemm_format="fp32", element_bytes=FP32_BYTES)
        return Widening(passes=1 + trained, bytes_per_weight=FP32_BYTES + storage, kernels=1.0, cast=True)
    if trained or not packed or job.task != "qlora":
        return Widening()
    if grouped and not stack.quantises_experts:
        wide = fp32_stream(job, stack) and stack.expert_library == "cutlass"
        return Widening(gemm_format="fp32", element_bytes=FP32_BYTES) if wide else Widening()
    if stack.unpacks_weights:
        moved, kernels = _UNPACKED
        return Widening(passes=1, bytes_per_weight=moved, kernels=kernels, family=KernelFamily.POINTWISE)
    family, moved = KernelFamily.QUANTISE, NF4_BYTES + storage
    return Widening(passes=2, bytes_per_weight=moved, kernels=_RESTORED_KERNELS, family=family)
