"""What learned models see of a device, for the number format of each call."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.clocks import ClockLaw, held_back, sustained_share
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

# How kernels are written for an architecture, in the order in which one follows from another. Blackwell's
# workstation chips multiply with the instructions of Ada, not with the data-centre part's tensor memory
# (CUDA C++ programming guide, compute capability 12.0), and lie next to it.
GENERATIONS: Mapping[str, float] = {
    "pascal": 0.0,
    "volta": 1.0,
    "turing": 2.0,
    "ampere": 3.0,
    "ada": 4.0,
    "blackwell-rtx": 4.5,
    "hopper": 5.0,
    "blackwell": 6.0,
    "cdna1": 8.0,
    "cdna2": 9.0,
    "cdna3": 10.0,
    "cdna4": 11.0,
}
# Whose matrix instructions take a scale per block of operands (PTX ISA, ``tcgen05.mma`` and ``mma`` with
# ``.block_scale``; CDNA4 ISA, ``v_mfma_scale``); others rescale partial sums on their vector units.
BLOCK_SCALING = frozenset({"blackwell", "blackwell-rtx", "cdna4"})
# Whose last-level cache is two, each of which keeps what the multiprocessors next to it read (NVIDIA A100 whitepaper,
# "A100 L2 cache"; the H100's is alike, and a B200 is two dies): what all of them read is held twice. Weights of a few
# rows, which one multiprocessor reads, are not: replayed, they stay up to the whole cache. Of Ampere, A100 and A30.
_TWO_CACHES = frozenset({"hopper", "blackwell"})
_LARGEST_SINGLE_BYTES = 6 * 2**20  # of Ampere's other chips
# Where only the vendor of an architecture is known: the nearest thing measured.
_VENDOR_GENERATION = {"amd": 10.0}
_UNKNOWN_GENERATION = 5.0
_OPERAND_BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "fp4": 0.5}
OPERAND_BYTES = np.array([_OPERAND_BYTES[name] for name in GEMM_FORMATS])


def shared_cache_bytes(device: DeviceSpec) -> float:
    """What the last-level cache of a device holds of data that all its multiprocessors read."""
    two = device.architecture in _TWO_CACHES
    two |= device.architecture == "ampere" and device.l2_bytes > _LARGEST_SINGLE_BYTES
    return device.l2_bytes / 2 if two else device.l2_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFormat:
    """A device as one call sees it, columns of length C.

    Attributes:
        flops_per_s: Peak in the format of the call; 1 where none is needed.
        bytes_per_s: Memory bandwidth.
        num_sms: Multiprocessors.
        l2_bytes: Last-level cache.
        generation: ``GENERATIONS`` of its architecture.
        power_w: Board power limit.
        held_back: How many times as fast its chip multiplies per cycle (``costmodels.kernels.clocks``).
        held: Share of its peak that its board lets fused attention hold.
    """

    flops_per_s: FloatArray
    bytes_per_s: float
    num_sms: float
    l2_bytes: float
    generation: float
    power_w: float
    held_back: float
    held: float


def device_format(calls: KernelCallBatch, device: DeviceSpec, law: ClockLaw | None = None) -> DeviceFormat:
    """What calls see of a device.

    Args:
        calls: The calls.
        device: Where they run.
        law: Of what boards let large products hold, which on AMD's fused attention does too: an MI308X, whose chip is
            an MI300X's cut to a seventh, reaches 1.5 to 2.2 times its share of the peak (AITER's published figures).
            On NVIDIA's other units than the multipliers set the pace first: there the law makes errors larger.

    Raises:
        SpecError: If the device cannot multiply in a format that a call asks for.
    """
    peaks = np.ones(len(GEMM_FORMATS))
    for code in np.unique(calls.gemm_format[calls.op != KernelOp.MEMORY]):
        peaks[code] = device.peak(GEMM_FORMATS[code])
    return DeviceFormat(
        flops_per_s=np.where(calls.op == KernelOp.MEMORY, 1.0, peaks[calls.gemm_format]),
        bytes_per_s=device.memory_bandwidth_bytes_per_s,
        num_sms=float(device.num_sms),
        l2_bytes=device.l2_bytes,
        generation=GENERATIONS.get(device.architecture, _VENDOR_GENERATION.get(device.vendor, _UNKNOWN_GENERATION)),
        power_w=device.power_w,
        held_back=held_back(device),
        held=1.0 if law is None or device.vendor != "amd" else sustained_share(device, law),
    )
