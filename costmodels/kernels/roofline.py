"""The first price list for kernels: rooflines with fitted efficiencies.

Which question it answers: how long does one kernel run on one device, given only its shape and the
device's peak rates? Every formula is the larger of an arithmetic and a memory time (joined smoothly)
plus a fixed floor; the efficiencies in them were fitted by ``costmodels.calibration.kernel_fit``.

Left out on purpose: host launch gaps, overlap, contention with communication, and what only a learned
model can know (the kernel a library picks for one shape).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.arrays import smooth_maximum
from costmodels.kernels.attention_terms import QUERY_TILE
from costmodels.kernels.calls import (
    COLUMNS,
    Basis,
    FloatArray,
    IntArray,
    KernelCallBatch,
    KernelOp,
    Prediction,
    concatenate,
    take,
)
from costmodels.kernels.clocks import clock_hz, held_back, on_held_back
from costmodels.kernels.device_features import OPERAND_BYTES, shared_cache_bytes
from costmodels.kernels.implementations import Engine, copies_of, engine_of, is_bare, is_narrow
from costmodels.kernels.shared_memory import backward_stretch
from costmodels.kernels.sparse_attention import SPARSE_SPREADS, is_sparse, sparse_time_s
from profiles.fits import Fit, KernelFits
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

# Output tiles of one thread block or cluster in the GEMM libraries' kernels; the best is taken.
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
_LARGEST_TILE = 256 * 128
# Rows that kernels for packed weights multiply at least: one tensor-core instruction's (arXiv:2408.11743, section 3.4).
PACKED_TILE = (16, 256)
# Weights of 4 bits that a multiprocessor unpacks a second in Marlin's products, which vLLM and SGLang run: those of
# 8,192 x 8,192 with one to four rows take 26.8 to 27.1 us on an H100 (inclusionAI/humming, pull request 2), 2.5 of
# them a launch. Its kernel for experts does twice as many (flagos-ai/FlagGems, pull request 3609: 256 experts of 2,048
# on an H20), which leaves no device waiting.
UNPACKED_PER_SM_S = 2.1e10
_UNPACKING = (int(Engine.VLLM), int(Engine.SGLANG))
_FP32 = GEMM_FORMATS.index("fp32")
_STORED_BYTES = 2.0  # per element of operands that a narrow format is made from
_CORNER = 2.0  # sharpness of a cache that is too small, and of quantising; 1 and 4 cost devices held out 0.2 points
_OUTGROWN = 1.1  # of the cache: a working set run in turn from which nothing is left when its turn comes again
# Mean of the H100's and the B200's, whose fitted ``stream_rate`` is 65 bytes per cycle: ports have so many, not a rate.
STREAM_CLOCK_HZ = 1.84e9

Parameters = Mapping[str, float]

OP_NAMES = {
    KernelOp.GEMM: "gemm",
    KernelOp.GROUPED_GEMM: "grouped_gemm",
    KernelOp.ATTENTION_FORWARD: "attention_forward",
    KernelOp.ATTENTION_BACKWARD: "attention_backward",
    KernelOp.MEMORY: "memory",
    KernelOp.ATTENTION_DECODE: "attention_forward",
    KernelOp.FUSED_EXPERTS: "grouped_gemm",
    KernelOp.LINEAR_ATTENTION: "attention_forward",
    KernelOp.INDEX_SCORES: "attention_forward",
    KernelOp.CHOSEN_FORWARD: "attention_forward",
    KernelOp.CHOSEN_BACKWARD: "attention_forward",
    KernelOp.CHOSEN_DECODE: "attention_forward",
}
# Of linear attention, which is priced at what fused attention reaches: ends of the interval. Published times of Gated
# DeltaNet's and Kimi's forward pass over what is priced are 0.9 to 1.9 of FLA's kernels on H100, H20 and RTX 5090, more
# only with a few heads on a B300, and from 0.2 on of FlashInfer's (flashinfer-ai/flashinfer, pull requests 3866, 3788
# and 4078; MoonshotAI/FlashKDA, BENCHMARK_H20.md and pull request 28).
LINEAR_SPREAD = (0.2, 1.9)
_UNTIMED = {KernelOp.LINEAR_ATTENTION: LINEAR_SPREAD} | SPARSE_SPREADS  # operations whose fit is another's
FORMAT_CLASS = {"fp32": "fp32", "tf32": "tf32", "fp16": "16-bit", "bf16": "16-bit", "fp8": "fp8", "fp4": "fp4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the formulas read of a device, for one format: peak FLOP/s, memory bytes/s, multiprocessors, cache, clock.

    ``shared_cache_bytes`` is what the cache holds of data that all multiprocessors read, ``held_back`` as of
    ``costmodels.kernels.clocks``.
    """

    flops_per_s: float
    bytes_per_s: float
    num_sms: int
    l2_bytes: float
    shared_cache_bytes: float
    clock_hz: float = STREAM_CLOCK_HZ
    held_back: float = 1.0

    @classmethod
    def of(cls, device: DeviceSpec, flops_per_s: float) -> "Rates":
        """Those of a device that reaches so many FLOP/s at its peak."""
        return cls(
            flops_per_s=flops_per_s,
            bytes_per_s=device.memory_bandwidth_bytes_per_s,
            num_sms=device.num_sms,
            l2_bytes=device.l2_bytes,
            shared_cache_bytes=shared_cache_bytes(device),
            clock_hz=clock_hz(device) if "fp16" in device.peak_flops_per_s else STREAM_CLOCK_HZ,
            held_back=held_back(device),
        )


def _waves(tiles: FloatArray, num_sms: int, quantisation: float) -> FloatArray:
    """Rounds of ``num_sms`` tiles; ``quantisation`` 1 charges a started round in full, 0 its share."""
    rounds = tiles / num_sms
    return quantisation * np.ceil(rounds - 1e-9) + (1 - quantisation) * rounds


def gemm_time_s(calls: KernelCallBatch, fit: Parameters, rates: Rates) -> FloatArray:
    """Seconds of each (grouped) GEMM: tiles in waves over the multiprocessors, or memory, plus a floor.

    What the layer before has just written, and the output, move at the cache's rate as far as they fit into it; the
    weight, last touched a step ago, comes from memory unless the call only replays a measurement.

    Args:
        calls: GEMM rows; ``batch`` problems of one shape share the waves.
        fit: ``floor_s``; ``max_efficiency`` of the peak; ``k_half``, the depth at which half of it is
            reached; ``tile_exponent``, the loss of smaller tiles where nothing is held back; ``wave_quantisation``;
            ``memory_efficiency``; ``cache_speed`` over the memory's; ``cache_share`` of it that serves a kernel;
            ``sharpness`` of the corner between the two regimes. Of narrow formats, for inputs quantised along:
            ``quantise_floor_s``, its launches; ``quantise_rate``, elements per second that a multiprocessor converts;
            ``quantise_bytes`` that it moves per element.
            ``stream_rate``, bytes per second of operands that a multiprocessor takes from the cache at
            ``STREAM_CLOCK_HZ``.
            ``replay_rate``, bytes per second of a multiprocessor at which replayed weights come from the cache.
        rates: Of the device in the format of the calls.
    """
    sm_flops_per_s = rates.flops_per_s * fit["max_efficiency"] / rates.num_sms
    arithmetic_s, operand = np.full(len(calls), np.inf), OPERAND_BYTES[calls.gemm_format]
    stream_rate = fit.get("stream_rate", np.inf) * rates.clock_hz / STREAM_CLOCK_HZ
    # What a small tile loses on a chip is a rate of shared memory and schedulers, which nobody held back.
    spare = np.where(calls.gemm_format == _FP32, 1.0, rates.held_back)
    packed = calls.packed_bytes > 0
    for tile_m, tile_n in (*TILES, *((PACKED_TILE,) if packed.any() else ())):
        tiles = calls.batch * np.ceil(calls.m / tile_m) * np.ceil(calls.n / tile_n)
        relative = np.minimum(spare * (tile_m * tile_n / _LARGEST_TILE) ** fit["tile_exponent"], 1.0)
        tile_s = 2.0 * tile_m * tile_n * (calls.k + fit["k_half"]) / (sm_flops_per_s * relative)
        tile_s = np.maximum(tile_s, (tile_m + tile_n) * calls.k * operand / stream_rate)
        tile_s = tile_s * _waves(tiles, rates.num_sms, fit["wave_quantisation"])
        if (tile_m, tile_n) == PACKED_TILE:  # which only kernels that unpack weights have
            tile_s = np.where(packed, tile_s, np.inf)
        arithmetic_s = np.minimum(arithmetic_s, tile_s)
    inputs = calls.batch * calls.m * calls.k
    quantises = is_narrow(calls) & ~is_bare(calls) & ("quantise_rate" in fit)
    quantised = np.where(quantises, inputs, 0.0)
    activation_bytes, weight_bytes = moved_bytes(calls, inputs)
    slowdown = _uncached(activation_bytes + _STORED_BYTES * quantised, fit, rates)
    bytes_per_s = rates.bytes_per_s * fit["memory_efficiency"]
    kept = kept_share(copies_of(calls.implementation), weight_bytes, activation_bytes, rates.l2_bytes)
    kept_rate = bytes_per_s * _cache_speed(fit, rates)
    weight_s = weight_bytes * ((1 - kept) / bytes_per_s + kept / kept_rate)
    unpacked = packed & np.isin(engine_of(calls.implementation), _UNPACKING) & (calls.op == int(KernelOp.GEMM))
    unpacking_s = calls.batch * calls.k * calls.n / (rates.num_sms * UNPACKED_PER_SM_S)
    weight_s = np.where(unpacked, np.maximum(weight_s, unpacking_s), weight_s)
    memory_s = weight_s + activation_bytes * slowdown / bytes_per_s
    found = fit["floor_s"] + smooth_maximum(arithmetic_s, memory_s, fit["sharpness"])
    if quantises.any():
        moved_s = fit["quantise_bytes"] * quantised * slowdown / bytes_per_s
        converted_s = quantised / (rates.num_sms * fit["quantise_rate"])
        found += np.where(quantises, fit["quantise_floor_s"], 0.0) + smooth_maximum(converted_s, moved_s, _CORNER)
    return np.asarray(found, dtype=float)


def moved_bytes(calls: KernelCallBatch, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(C,) bytes of input and output, and of the weight; operands in the format that is multiplied.

    A call states its traffic in the format of storage, whoever counted it, so that is shared out; packed weights apart.
    """
    outputs, weights = calls.batch * calls.m * calls.n, calls.batch * calls.k * calls.n
    narrow = np.minimum(OPERAND_BYTES / _STORED_BYTES, 1.0)[calls.gemm_format]
    element = calls.bytes / np.maximum(inputs + outputs + weights, 1.0)
    weight = np.where(calls.packed_bytes > 0, calls.packed_bytes, element * narrow)
    return element * (narrow * inputs + outputs), weight * weights


def kept_share(copies: IntArray, weight_bytes: FloatArray, other_bytes: FloatArray, l2_bytes: float) -> FloatArray:
    """(C,) share of the weights that stays in the cache when some copies of them are run in turn; 0 without copies.

    An L40S shows it: all of them up to a working set as large as the cache, none from a tenth more.
    """
    working = (copies * weight_bytes + other_bytes) / max(l2_bytes, 1.0)
    return np.where(copies > 0, np.clip((_OUTGROWN - working) / (_OUTGROWN - 1), 0.0, 1.0), 0.0)


def _uncached(live_bytes: FloatArray, fit: Parameters, rates: Rates) -> FloatArray:
    """(C,) time of traffic between 1 / ``cache_speed``, all of it in the cache, and 1, all in memory."""
    fits = np.maximum(fit["cache_share"] * rates.shared_cache_bytes / np.maximum(live_bytes, 1.0), 1e-9)
    miss = 1 / (1 + fits**_CORNER)
    return np.asarray(miss + (1 - miss) / _cache_speed(fit, rates))


def _cache_speed(fit: Parameters, rates: Rates) -> float:
    """Rate of the cache over that of the memory."""
    if "cache_rate" not in fit:
        return fit["cache_speed"]
    return max(rates.num_sms * fit["cache_rate"] / (rates.bytes_per_s * fit["memory_efficiency"]), 1.0)


def attention_time_s(calls: KernelCallBatch, fit: Parameters, rates: Rates) -> FloatArray:
    """Seconds of each fused attention: blocks of query rows in waves, or memory, plus a floor.

    Args:
        calls: Attention rows; ``flops`` counts the causal or windowed share only.
        fit: As ``gemm_time_s``, with ``efficiency_64``, ``_128`` and ``_256`` of the peak by head width
            and ``kv_half``, the key tokens per query block at which half of it is reached.
        rates: Of the device in the format of the calls.
    """
    widths = np.log2(np.maximum(calls.k, 1.0))
    efficiency = np.interp(
        widths, (6.0, 7.0, 8.0), (fit["efficiency_64"], fit["efficiency_128"], fit["efficiency_256"])
    )
    efficiency = 1.0 / on_held_back(1.0 / efficiency, rates.held_back)
    query_blocks = np.ceil(calls.m / QUERY_TILE)
    blocks = np.maximum(calls.batch * calls.heads * query_blocks, 1.0)
    padding = query_blocks * QUERY_TILE / np.maximum(calls.m, 1.0)
    ramp = 1.0 + fit["kv_half"] / np.maximum(calls.causal * calls.n, 1.0)
    waves = _waves(blocks, rates.num_sms, fit["wave_quantisation"])
    stretch = backward_stretch(calls, rates.flops_per_s, rates.num_sms)
    block_s = stretch * calls.flops * padding * ramp / blocks / (rates.flops_per_s * efficiency / rates.num_sms)
    memory_s = calls.bytes / (rates.bytes_per_s * fit["memory_efficiency"])
    return fit["floor_s"] + smooth_maximum(waves * block_s, memory_s, fit["sharpness"])


def memory_time_s(calls: KernelCallBatch, fit: Parameters, rates: Rates) -> FloatArray:
    """Seconds of each bandwidth-bound call: a floor per kernel launched plus its bytes.

    A ramp of the bandwidth with the size, ``e * b / (b + b_half)``, is the same straight line: its
    ``b_half`` is the floor times the reached bandwidth.

    Args:
        calls: Memory rows; ``batch`` kernels launched.
        fit: ``floor_s`` and ``memory_efficiency``.
        rates: Only the memory bandwidth is read.
    """
    return calls.batch * fit["floor_s"] + calls.bytes / (rates.bytes_per_s * fit["memory_efficiency"])


def expert_matrices(calls: KernelCallBatch) -> KernelCallBatch:
    """The matrices of fused expert layers as one grouped GEMM each: the rows of an expert, all outputs side by side."""
    outputs, experts = 2.0 * calls.causal * calls.n, np.maximum(calls.batch, 1.0)
    whole = {name: getattr(calls, name) for name in COLUMNS}
    grouped = np.full(len(calls), int(KernelOp.GROUPED_GEMM), dtype=np.int64)
    return KernelCallBatch(**(whole | {"op": grouped, "m": calls.m / experts, "n": outputs, "batch": experts}))


FORMULAS: Mapping[str, Callable[[KernelCallBatch, Parameters, Rates], FloatArray]] = {
    "gemm": gemm_time_s,
    "grouped_gemm": gemm_time_s,
    "attention_forward": attention_time_s,
    "attention_backward": attention_time_s,
    "memory": memory_time_s,
}


@dataclass(frozen=True, slots=True)
class RooflineKernelModel:
    """Prices kernels by roofline formulas with fitted efficiencies.

    Attributes:
        fits: Parameters per device, architecture and format (``profiles.fits.default_fits().kernels``).
    """

    fits: KernelFits

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device.

        Raises:
            SpecError: If the device cannot multiply in a format that a call asks for.
        """
        fused = calls.op == int(KernelOp.FUSED_EXPERTS)
        if fused.any():
            calls = concatenate([take(calls, ~fused), expert_matrices(take(calls, fused))])
            place = np.argsort(np.concatenate([np.flatnonzero(~fused), np.flatnonzero(fused)]), kind="stable")
            return self._predict(calls, device).take(place)
        return self._predict(calls, device)

    def _predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        size = len(calls)
        time_s, low_s, high_s = np.zeros(size), np.zeros(size), np.zeros(size)
        basis = np.full(size, int(Basis.ANALYTIC), dtype=np.int64)
        extrapolated = np.zeros(size, dtype=np.bool_)
        groups = calls.op * len(GEMM_FORMATS) + np.where(calls.op == int(KernelOp.MEMORY), 0, calls.gemm_format)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            op, format_index = divmod(int(group), len(GEMM_FORMATS))
            part = take(calls, rows)
            fit, fit_basis, rates = self._resolve(KernelOp(op), GEMM_FORMATS[format_index], device)
            if is_sparse(KernelOp(op)):
                price_s = sparse_time_s(KernelOp(op), part, fit.parameters, rates)
            else:
                price_s = FORMULAS[fit.op](part, fit.parameters, rates)
            low, high = _UNTIMED.get(KernelOp(op), (fit.low_factor, fit.high_factor))
            time_s[rows], low_s[rows], high_s[rows] = price_s, price_s * low, price_s * high
            basis[rows] = int(fit_basis)
            extrapolated[rows] = _outside(part, fit)
        return Prediction(time_s=time_s, low_s=low_s, high_s=high_s, basis=basis, extrapolated=extrapolated)

    def provenance(self, op: KernelOp, gemm_format: str, device: DeviceSpec) -> str:
        """One line on what the price of an operation on a device rests on."""
        return self._resolve(op, gemm_format, device)[0].provenance

    def _resolve(self, op: KernelOp, gemm_format: str, device: DeviceSpec) -> tuple[Fit, Basis, Rates]:
        format_class = "" if op is KernelOp.MEMORY else FORMAT_CLASS[gemm_format]
        if format_class == "tf32" and "tf32" not in device.peak_flops_per_s:
            format_class = "fp32"  # DeviceSpec.peak runs it on the fp32 units
        rates = Rates.of(device, device.peak(gemm_format) if format_class else 1.0)
        name, known = OP_NAMES[op], self.fits.knows(OP_NAMES[op], format_class)
        if not known and op is KernelOp.GROUPED_GEMM and self.fits.knows("gemm", format_class):
            name = "gemm"  # one group at a time is the least that is known of the format
        elif not known:
            format_class = "16-bit"
        fit = self.fits.resolve(name, format_class, device=device.name, architecture=device.architecture)
        assumed = not known or self.fits.is_borrowed(fit, device=device.name)
        return fit, Basis.ASSUMED if assumed else Basis.ANALYTIC, rates


def _outside(calls: KernelCallBatch, fit: Fit) -> NDArray[np.bool_]:
    """Whether each call lies outside the fitted range of any quantity the record names."""
    outside = np.zeros(len(calls), dtype=np.bool_)
    for name, (low, high) in fit.domain.items():
        values = calls.flops if name == "flops" else calls.bytes
        outside |= (values < low) | (values > high)
    return outside
