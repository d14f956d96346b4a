"""Bandwidth-bound kernels that are not quite: what of them a faster memory does not shorten.

PyTorch's rotary embedding, the norms its compiler writes and sums over a vocabulary are held up by the instructions
they issue as much as by the bytes they move. Our own timings tell how much: an H200 is an H100 with 1.43 times the
bandwidth and the same processors, so of a kernel that takes the share r of the time there, the share
(r - 0.70) / (1 - 0.70) does not depend on the memory. Where passes are counted as an H100 took them, that share stays
as long on a device that has more bandwidth per processor. Where it has less, the memory holds everything up.
"""

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
