"""Bandwidth-bound kernels that are not quite: what of them a faster memory does not shorten.

PyTorch's rotary embedding, the norms its compiler writes and sums over a vocabulary are held up by the instructions
they issue as much as by the bytes they move. Our own timings tell how much: an H200 is an H100 with 1.43 times the
bandwidth and the same processors, so of a kernel that takes the share r of the time there, the share
(r - 0.70) / (1 - 0.70) does not depend on the memory. Where passes are counted as an H100 took them, that share stays
as long on a device that has more bandwidth per processor. Where it has less, the memory holds everything up.

Kernels that compute much per element are bound by the units that compute, which ``arithmetic_s`` says the least of.
"""

import numpy as np

from costmodels.kernels.calls import FloatArray
from costmodels.kernels.clocks import operations_per_cycle
from profiles.hardware import DeviceSpec

# Of the H100 SXM that passes were counted on (NVIDIA H100 datasheet: 3.35 TB/s; whitepaper: 132 multiprocessors).
_COUNTED_BYTES_PER_S = 3.35e12 / 132


def issue_stretch(share: float, device: DeviceSpec) -> float:
    """How many times its bytes a kernel seems to move on a device, of whose time the share is bound by instructions.

    Args:
        share: Between 0 (bound by the memory) and 1 (by the processors), on an H100.
        device: Its memory bandwidth and number of processors are read.

    Example:
        Half of a kernel keeps its time on a device with twice the bandwidth per processor: it takes three quarters of
        the time it took, as if it moved one and a half times the bytes.
    """
    excess = device.memory_bandwidth_bytes_per_s / device.num_sms / _COUNTED_BYTES_PER_S - 1.0
    return 1.0 + share * max(excess, 0.0)


# Reciprocals, roots, powers of two, logarithms, sines and cosines of a multiprocessor per cycle, against 64 or 128
# multiply-adds: NVIDIA's CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions", compute
# capabilities 7.0 to 9.0 (of other generations the table has 16 or 32, of which the former is the rule).
_SPECIAL_PER_CYCLE = 16.0


def arithmetic_s(operations: FloatArray, special: FloatArray, device: DeviceSpec) -> FloatArray:
    """(C,) seconds that no kernel undercuts which computes so much: at the 32-bit peak, or in special function units.

    Both kinds of units work at once. Library code of functions that no unit has takes many times as long.

    Args:
        operations: (C,) additions, multiplications and the like; two of them may be one multiply-add.
        special: (C,) exponentials, roots, sines and the like, of which a special function unit has to make each.
        device: Its 32-bit peak and number of processors are read; 0 where it has no such peak, and no bound by special
            functions for other vendors than NVIDIA.

    Example:
        An H100 makes 66.9e12 operations per second in 132 multiprocessors, 256 each at 1.98 GHz: so 4.2e12 sines.
    """
    peak = device.peak_flops_per_s.get("fp32", 0.0)
    if not peak:
        return 0.0 * operations
    needed = operations
    if device.vendor == "nvidia":
        per_cycle = float(operations_per_cycle(peak / device.num_sms))
        needed = np.maximum(operations, special * per_cycle / _SPECIAL_PER_CYCLE)
    return np.asarray(needed / peak, dtype=np.float64)
