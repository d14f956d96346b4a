"""What the data sheet of a device lets no product undercut, whatever was learned on others.

Of 417,000 published products, 54 beat the arithmetic peak of their device, all on two that were timed (an RTX 3090 and
an MI308X above their stated clocks), by at most 9 %; none moves operands that its cache cannot have kept faster than
the sheet's bandwidth.
"""

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, is_product
from costmodels.kernels.device_features import device_format
from costmodels.kernels.roofline import moved_bytes
from profiles.hardware import DeviceSpec
from profiles.timing_audit import TOLERANCE

_OUTGROWN = 4.0  # times the last-level cache: weights of which nothing is left when they are read again


def product_floor_s(calls: KernelCallBatch, device: DeviceSpec, *, timed: bool) -> FloatArray:
    """(C,) seconds that no product of the sheet's device undercuts; 0 of other work.

    Arithmetic at the peak, or what the cache cannot have held before and after, at the memory's bandwidth.

    Args:
        calls: Any calls.
        device: Where they run.
        timed: Whether products of the device itself were timed, which may run at more than the clock of its sheet, by
            as much as an audit of timings lets pass (``profiles.timing_audit``).

    Example:
        The weights of 128,256 x 4,096 in bf16, 1.05 GB, take an A10G with 600 GB/s 1.751 ms, however few the rows.
    """
    other_bytes, weight_bytes = moved_bytes(calls, calls.batch * calls.m * calls.k)
    outgrown = np.where(weight_bytes > _OUTGROWN * device.l2_bytes, weight_bytes, 0.0)
    read = np.maximum(outgrown, other_bytes + weight_bytes - 2.0 * device.l2_bytes)
    arithmetic_s = calls.flops / device_format(calls, device).flops_per_s / (TOLERANCE if timed else 1.0)
    return np.where(is_product(calls), np.maximum(arithmetic_s, read / device.memory_bandwidth_bytes_per_s), 0.0)
