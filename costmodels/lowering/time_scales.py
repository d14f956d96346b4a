"""How much slower the kernels of a training stack run than those the prices were fitted on."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp
from costmodels.plan import FloatArray
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

# Of B200, the one board of Blackwell's whose products were timed: watts per 16-bit FLOP/s at its peak, and its peak in
# 4 bits over that in 16.
_TIMED_W_PER_FLOP = 1000.0 / 2250e12
_TIMED_FP4_OVER_16BIT = 4.0


def kernel_time_scale(calls: KernelCallBatch, context: CostContext) -> FloatArray:
    """(calls,) how much slower than the fitted kernels this stack's are.

    Kernels that training never runs, of decoding and fused expert layers, are as their timings say.
    """
    stack, architecture = context.stack, context.cluster.device.architecture
    by_format = np.full(len(GEMM_FORMATS), stack.gemm_time_scale)
    by_format[GEMM_FORMATS.index("fp8")] = stack.fp8_time_scale
    by_format[GEMM_FORMATS.index("fp4")] = stack.fp4_time_scale
    sixteen = [GEMM_FORMATS.index("fp16"), GEMM_FORMATS.index("bf16")]
    if architecture == "hopper":
        by_format[sixteen] *= stack.hopper_16bit_time_scale
    if architecture == "blackwell":
        by_format[sixteen] *= stack.blackwell_16bit_time_scale
        if not context.implementation:  # the training stack, and not an engine
            by_format[sixteen] *= power_stretch(context.cluster.device)
            by_format[GEMM_FORMATS.index("fp4")] *= narrow_stretch(context.cluster.device)
    if architecture == "volta":
        by_format *= stack.volta_gemm_time_scale
    attention = stack.attention_time_scale
    if architecture == "hopper":
        attention *= stack.hopper_attention_time_scale
    is_gemm = (calls.op == KernelOp.GEMM) | (calls.op == KernelOp.GROUPED_GEMM)
    is_served = (calls.op == KernelOp.ATTENTION_DECODE) | (calls.op == KernelOp.FUSED_EXPERTS)
    other = np.where(calls.op == KernelOp.MEMORY, stack.memory_time_scale, np.where(is_served, 1.0, attention))
    return np.where(is_gemm, by_format[calls.gemm_format], other)


def power_stretch(device: DeviceSpec) -> float:
    """How much longer a board multiplies in 16 bits than its share of a B200's peak says, at the limit of its power.

    Training keeps the matrix units busy until the board's power limits them, which bursts of one kernel, as timings are
    made of, do not: of its peak a B200 then holds half in any large 16-bit product (MooreThreads/SimuMax,
    configs/system/b200_bf16_ceperm.json, 0.45 to 0.52). At so low a clock the voltage is at its least and power falls
    with the clock alone, so that boards with the same chip multiply as fast as they are fed: B300, GB200 and GB300 get
    1.1, 1.2 and 1.4 times a B200's watts.
    """
    return _TIMED_W_PER_FLOP / (device.power_w / _sixteen_bit_peak(device))


def narrow_stretch(device: DeviceSpec) -> float:
    """How much longer a board multiplies in 4 bits than its multiprocessors say, by its peak in 4 bits.

    Timed 4-bit products took as long as their operands took to reach the multiprocessors, and that is how they are
    priced. Training runs them 1.7 times as fast (``fp4_time_scale``): there the matrix units set the pace, and those of
    B300 and GB300 have one and a half times the rate of their elders.
    """
    if "fp4" not in device.peak_flops_per_s:
        return 1.0
    return _TIMED_FP4_OVER_16BIT / (device.peak("fp4") / _sixteen_bit_peak(device))


def _sixteen_bit_peak(device: DeviceSpec) -> float:
    return device.peak("bf16" if "bf16" in device.peak_flops_per_s else "fp16")
