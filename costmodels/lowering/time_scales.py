"""How much slower the kernels of a training stack, or of one machine, run than those the prices were fitted on."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp, is_product
from costmodels.kernels.sparse_attention import is_sparse
from costmodels.plan import FloatArray
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

# Peak in 4 bits over that in 16 of B200, the one board of Blackwell's whose 4-bit products were timed.
_TIMED_FP4_OVER_16BIT = 4.0
# Operations without a scale of training stacks: those that training never runs, and linear and sparse attention, of
# which no published step told one.
_UNSCALED = [
    int(op)
    for op in KernelOp
    if op in (KernelOp.ATTENTION_DECODE, KernelOp.FUSED_EXPERTS, KernelOp.LINEAR_ATTENTION) or is_sparse(op)
]


def kernel_time_scale(calls: KernelCallBatch, context: CostContext) -> FloatArray:
    """(calls,) how much slower than the fitted kernels this stack's are.

    Kernels that training never runs, of decoding and fused expert layers, are as their timings say.
    """
    stack, architecture = context.stack, context.cluster.device.architecture
    by_format = np.full(len(GEMM_FORMATS), stack.gemm_time_scale)
    by_format[GEMM_FORMATS.index("fp8")] = stack.fp8_time_scale
    by_format[GEMM_FORMATS.index("fp4")] = stack.fp4_time_scale
    sixteen = [GEMM_FORMATS.index("fp16"), GEMM_FORMATS.index("bf16")]
    by_format[sixteen] *= _sustained_scale(context)
    if architecture == "blackwell" and not context.implementation:  # the training stack, and not an engine
        by_format[GEMM_FORMATS.index("fp4")] *= narrow_stretch(context.cluster.device)
    if architecture == "volta":
        by_format *= stack.volta_gemm_time_scale
    attention = stack.attention_time_scale
    if architecture == "hopper":
        attention *= stack.hopper_attention_time_scale
    is_unscaled = np.isin(calls.op, _UNSCALED)
    if not context.implementation:
        board = context.cluster.device.training_time_scale
        by_format, attention = by_format * board, attention * board
    other = np.where(calls.op == int(KernelOp.MEMORY), stack.memory_time_scale, np.where(is_unscaled, 1.0, attention))
    return np.where(is_product(calls), by_format[calls.gemm_format], other)


def _sustained_scale(context: CostContext) -> float:
    """How much longer products in 16 bits take in training than in short timings: on this machine, or its generation.

    An engine's kernels are as its timings say (its stack has no such scales).
    """
    stack, node = context.stack, context.cluster.node
    if node.sustained_16bit_time_scale and not context.implementation:
        return node.sustained_16bit_time_scale
    of_generation = {"hopper": stack.hopper_16bit_time_scale, "blackwell": stack.blackwell_16bit_time_scale}
    return of_generation.get(node.device.architecture, 1.0)


def narrow_stretch(device: DeviceSpec) -> float:
    """How much longer a board multiplies in 4 bits than its multiprocessors say, by its peak in 4 bits.

    Timed 4-bit products took as long as their operands took to reach the multiprocessors, and that is how they are
    priced. Training runs them much faster (``fp4_time_scale``): there the matrix units set the pace, and those of B300
    and GB300 have one and a half times the rate of their elders.
    """
    if "fp4" not in device.peak_flops_per_s:
        return 1.0
    sixteen = "bf16" if "bf16" in device.peak_flops_per_s else "fp16"
    return _TIMED_FP4_OVER_16BIT / (device.peak("fp4") / device.peak(sixteen))
