"""How much slower the kernels of a training stack run than those the prices were fitted on."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp
from costmodels.plan import FloatArray
from profiles.precision import GEMM_FORMATS


def kernel_time_scale(calls: KernelCallBatch, context: CostContext) -> FloatArray:
    """(calls,) how much slower than the fitted kernels this stack's are.

    Kernels that training never runs, of decoding and fused expert layers, are as their timings say.
    """
    stack, architecture = context.stack, context.cluster.device.architecture
    by_format = np.full(len(GEMM_FORMATS), stack.gemm_time_scale)
    by_format[GEMM_FORMATS.index("fp8")] = stack.fp8_time_scale
    by_format[GEMM_FORMATS.index("fp4")] = stack.fp4_time_scale
    if architecture == "blackwell":
        by_format[[GEMM_FORMATS.index("fp16"), GEMM_FORMATS.index("bf16")]] *= stack.blackwell_16bit_time_scale
    if architecture == "volta":
        by_format *= stack.volta_gemm_time_scale
    attention = stack.attention_time_scale
    if architecture == "hopper":
        attention *= stack.hopper_attention_time_scale
    is_gemm = (calls.op == KernelOp.GEMM) | (calls.op == KernelOp.GROUPED_GEMM)
    is_served = (calls.op == KernelOp.ATTENTION_DECODE) | (calls.op == KernelOp.FUSED_EXPERTS)
    other = np.where(calls.op == KernelOp.MEMORY, stack.memory_time_scale, np.where(is_served, 1.0, attention))
    return np.where(is_gemm, by_format[calls.gemm_format], other)
