"""Measured kernels as calls, and calls that were measured exactly: the first price to be trusted.

Two calls are the same when a library would run the same kernel for both: operation, format (fp16 and bf16 count
as one), layout, every extent, and the traffic where the shape does not say it. The share of a causal mask is
compared to a hundredth: timings count the diagonal, plans do not.

All stacks run plain GEMMs through the vendor's library. Anything else takes up to three times as long in one
implementation as in another, so a row that says which it timed answers calls for that implementation only; so does a
product of narrow operands without their quantisation, which a linear layer has to run as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import (
    Basis,
    FloatArray,
    GemmLayout,
    IntArray,
    KernelCallBatch,
    KernelCostModel,
    KernelFamily,
    KernelOp,
    Prediction,
    kernel_calls,
)
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of, implementation_of, is_bare
from costmodels.uncertainty import NORMAL_90
from profiles import timing_ops as ops
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS
from profiles.timing_store import REPEAT_GEMM, REPEAT_OTHER, best_of_groups
from profiles.timing_work import element_bytes, flops, score_share, traffic_bytes
from profiles.timings import NORMAL_IQR, BoolArray, TimingTable, timing_table

_OPS = {
    "gemm": KernelOp.GEMM,
    "grouped_gemm": KernelOp.GROUPED_GEMM,
    "attention_forward": KernelOp.ATTENTION_FORWARD,
    "attention_backward": KernelOp.ATTENTION_BACKWARD,
    "attention_decode": KernelOp.ATTENTION_DECODE,
}
# Beginnings of names of bandwidth-bound operations; the first that fits. Others are ``OTHER``.
_FAMILIES = (
    (("rms_norm_backward", "layer_norm_backward"), KernelFamily.NORM_BACKWARD),
    (("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"), KernelFamily.NORM),
    (("silu_mul", "gelu_mul"), KernelFamily.GATED_ACTIVATION),
    (("gelu", "silu", "relu", "tanh", "sigmoid"), KernelFamily.ACTIVATION),
    (("softmax", "log_softmax"), KernelFamily.SOFTMAX),
    (("rotary",), KernelFamily.ROTARY),
    (("embedding",), KernelFamily.EMBEDDING),
    (("cross_entropy",), KernelFamily.CROSS_ENTROPY),
    (("adam", "sgd", "optimizer"), KernelFamily.OPTIMIZER),
    (("cast_to_fp8", "cast_to_fp4", "quantise", "dequantise"), KernelFamily.QUANTISE),
    (("permute", "unpermute"), KernelFamily.PERMUTE),
    (("copy", "transpose"), KernelFamily.COPY),
    (("add", "multiply", "subtract", "divide", "power", "dropout", "select", "cast"), KernelFamily.POINTWISE),
)
_ATTENTION = np.isin(
    np.arange(len(KernelOp)), [KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD, KernelOp.ATTENTION_DECODE]
)
_LAYOUTS = {
    "": GemmLayout.FORWARD,
    "NT": GemmLayout.FORWARD,
    "NN": GemmLayout.INPUT_GRADIENT,
    "TN": GemmLayout.WEIGHT_GRADIENT,
}
_FORMATS: Mapping[str, tuple[str, int]] = {
    "fp8_block": ("fp8", 128), "mxfp8": ("fp8", 32), "nvfp4": ("fp4", 16),
} | {name: (name, 0) for name in GEMM_FORMATS}  # fmt: skip
# What ``kernel`` calls PyTorch's own, of which norms without a mean are another.
_EAGER, _ROOT_MEAN_SQUARE = (code_of(Engine.PYTORCH, one) for one in (Library.EAGER, Library.ROOT_MEAN_SQUARE))
_IQR_TO_90 = NORMAL_90 / NORMAL_IQR  # half the 90 % interval of a normal law over its interquartile range


def family_of(op: str) -> KernelFamily:
    """The work a bandwidth-bound operation of the timing schema does."""
    return next((family for starts, family in _FAMILIES if op.startswith(starts)), KernelFamily.OTHER)


def priceable(table: TimingTable) -> BoolArray:
    """(R,) rows a kernel call can say: kernels in an arithmetic that plans use, timed without the host."""
    words = {word: word in _FORMATS for word in set(table.dtype.tolist())}
    usable = np.array([words[word] for word in table.dtype.tolist()], dtype=np.bool_)
    eager = {word: ops.METHODS.get(word, True) for word in set(table.method.tolist())}
    alone = np.array([not eager[word] for word in table.method.tolist()], dtype=np.bool_)
    memory = ~np.isin(table.op, list(_OPS))
    kernel = np.asarray(table.kind == ops.KERNEL, dtype=np.bool_)
    return kernel & alone & (usable | memory) & (traffic_bytes(table) > 0)


def measured_rows(table: TimingTable) -> TimingTable:
    """The ``priceable`` rows, the best measurement of each call."""
    usable = table.take(priceable(table))
    hashes = _hashed(identity(calls_of(usable)))
    numbered = usable.having(key=hashes.astype(np.str_).astype(object))
    return usable.take(best_of_groups(numbered, ("device", "key")))


def calls_of(table: TimingTable) -> KernelCallBatch:
    """The kernel calls of rows that are ``priceable``, with the work and traffic that the lowering counts.

    Operands of formats narrower than 16 bits are counted as the 16-bit tensors they are quantised from.
    """
    count = len(table)
    op = _coded(table.op, {word: int(_OPS.get(word, KernelOp.MEMORY)) for word in set(table.op.tolist())})
    memory = op == KernelOp.MEMORY
    gemm = (op == KernelOp.GEMM) | (op == KernelOp.GROUPED_GEMM)
    attention = ~memory & ~gemm
    formats = {word: _FORMATS.get(word, ("bf16", 0)) for word in set(table.dtype.tolist())}
    size = np.nan_to_num(element_bytes(table), nan=2.0)
    stored = np.where(memory, size, np.maximum(size, 2.0))
    m, n, k, batch = (getattr(table, name).astype(float) for name in ("m", "n", "k", "batch"))
    multiplied = (m * k + k * n + m * n) * batch * stored
    widened = table.having(dtype=np.where(stored > size, "bf16", table.dtype), bytes=np.nan)
    attended = traffic_bytes(widened)
    columns = {
        "op": op,
        "gemm_format": _coded(table.dtype, {word: GEMM_FORMATS.index(name) for word, (name, _) in formats.items()}),
        "family": np.where(memory, _coded(table.op, {w: int(family_of(w)) for w in set(table.op.tolist())}), 0),
        "layout": np.where(gemm, _coded(table.layout, {word: int(code) for word, code in _LAYOUTS.items()}), 0),
        "m": m,
        "n": n,
        "k": np.where(memory, 0.0, k),
        "batch": np.where(memory, 1.0, batch),
        "heads": np.where(attention, table.heads, 0),
        "kv_heads": np.where(attention, table.kv_heads, 0),
        "causal": np.where(attention, score_share(table), 0.0),
        "flops": flops(table),
        "bytes": np.where(memory, traffic_bytes(table), np.where(gemm, multiplied, attended)),
        "element_bytes": stored,
        "scale_block": np.where(gemm, _coded(table.dtype, {word: block for word, (_, block) in formats.items()}), 0),
        "implementation": _coded(table.kernel, {word: implementation_of(word) for word in set(table.kernel.tolist())}),
    }
    calls = kernel_calls(count, **columns)
    calls.implementation[(op == KernelOp.GEMM) & ~is_bare(calls)] = 0
    calls.implementation[_without_mean(table) & (calls.implementation == _EAGER)] = _ROOT_MEAN_SQUARE
    return calls


def _without_mean(table: TimingTable) -> BoolArray:
    """(R,) norms forward that subtract no mean."""
    words = {word: word.startswith("rms_norm") and not word.endswith("_backward") for word in set(table.op.tolist())}
    return np.array([words[word] for word in table.op.tolist()], dtype=np.bool_)


def _coded(words: NDArray[np.object_], codes: Mapping[str, int]) -> IntArray:
    return np.array([codes[word] for word in words.tolist()], dtype=np.int64)


_DTYPES = {pair: name for name, pair in _FORMATS.items()}
_OP_NAMES = {code: name for name, code in _OPS.items()}
_LAYOUT_NAMES = {code: name for name, code in _LAYOUTS.items() if name}
_FAMILY_NAMES = {family: starts[0] for starts, family in reversed(_FAMILIES)} | {KernelFamily.OTHER: "other"}
_STORED = {8.0: "fp64", 4.0: "fp32", 2.0: "bf16", 1.0: "fp8", 0.5: "fp4"}


def table_of(calls: KernelCallBatch, *, device: str, time_s: FloatArray) -> TimingTable:
    """Calls as rows of the timing schema, e.g. to say which kernels are worth measuring.

    Bandwidth-bound calls get the name of their family; one that stands for several kernels becomes one of them
    and its share of the seconds.
    """
    memory = calls.op == KernelOp.MEMORY
    attention = (calls.heads > 0) & ~memory
    kernels = np.where(memory, np.maximum(calls.batch, 1.0), 1.0)
    names = [
        _FAMILY_NAMES[KernelFamily(family)] if op == KernelOp.MEMORY else _OP_NAMES[KernelOp(op)]
        for op, family in zip(calls.op.tolist(), calls.family.tolist(), strict=True)
    ]
    formats = [
        _STORED.get(size, "bf16") if op == KernelOp.MEMORY else _DTYPES[GEMM_FORMATS[form], block]
        for op, size, form, block in zip(
            calls.op.tolist(),
            calls.element_bytes.tolist(),
            calls.gemm_format.tolist(),
            calls.scale_block.tolist(),
            strict=True,
        )
    ]
    gemm = ~memory & ~attention
    layouts = [_LAYOUT_NAMES[GemmLayout(code)] for code in calls.layout.tolist()]
    return timing_table(
        len(calls), kind=ops.KERNEL, op=names, dtype=formats, layout=np.where(gemm, np.array(layouts, object), ""),
        m=calls.m, n=calls.n, k=calls.k, batch=np.where(memory, 1.0, calls.batch), heads=calls.heads,
        kv_heads=calls.kv_heads, causal=attention & (calls.causal < 1),
        bytes=np.where(gemm, np.nan, calls.bytes / kernels), device=device, time_s=time_s / kernels,
    )  # fmt: skip


def identity(calls: KernelCallBatch) -> IntArray:
    """(K, columns) whole numbers that are equal for calls that are the same, see the module's first lines."""
    memory = calls.op == int(KernelOp.MEMORY)
    attention = _ATTENTION[calls.op]
    form = np.where(calls.gemm_format == GEMM_FORMATS.index("fp16"), GEMM_FORMATS.index("bf16"), calls.gemm_format)
    per_kernel = np.where(memory, calls.bytes / np.maximum(calls.batch, 1e-9), np.where(attention, calls.bytes, 0.0))
    columns = (
        calls.op, np.where(memory, 0, form), calls.family, calls.layout, calls.m, calls.n, calls.k,
        np.where(memory, 0.0, calls.batch), calls.heads, calls.kv_heads, np.where(attention, 100 * calls.causal, 0.0),
        per_kernel,
        calls.element_bytes * 8,
        calls.scale_block - 1024 * calls.packed_bytes,  # no call has both
        np.where((calls.op == int(KernelOp.GEMM)) & ~is_bare(calls), 0, calls.implementation % REPLAYED),
    )  # fmt: skip
    return np.asarray(np.rint(np.stack(columns, axis=1)), dtype=np.int64)


def labelled(calls: KernelCallBatch) -> KernelCallBatch:
    """The calls with implementations as the ``kernel`` column of timings tells them apart, without the operation."""
    norm = calls.implementation == _ROOT_MEAN_SQUARE
    return replace(calls, implementation=np.where(norm, _EAGER, calls.implementation))


def _hashed(rows: IntArray) -> NDArray[np.uint64]:
    """(K,) 64-bit mix of the columns of each row (multipliers of xorshift64* and splitmix64)."""
    mixed: NDArray[np.uint64] = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Calls that were measured: H of them.

    Attributes:
        rows: (H,) their places in the batch asked for.
        time_s, low_s, high_s: (H,) measured, with the 90 % interval of a repeated measurement.
    """

    rows: IntArray
    time_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfDevice:
    hashes: NDArray[np.uint64]
    keys: IntArray
    time_s: FloatArray
    half_width: FloatArray

    def places(self, keys: IntArray) -> IntArray:
        """(K,) row of each identity; -1 where it was not measured."""
        place = np.minimum(np.searchsorted(self.hashes, _hashed(keys)), len(self.hashes) - 1)
        return np.where((self.keys[place] == keys).all(axis=1), place, -1)


@dataclass(frozen=True, slots=True)
class MeasuredKernels:
    """Exact look-ups of kernel calls among measured ones, per device.

    Attributes:
        by_device: Device name to its measured calls, sorted by hash.
    """

    by_device: Mapping[str, _OfDevice]

    @classmethod
    def of(cls, table: TimingTable) -> "MeasuredKernels":
        """From measured rows of any devices: the best of each call, those that are not ``priceable`` passed over."""
        usable = measured_rows(table)
        names = sorted(set(usable.device.tolist()))
        parts = {name: usable.take(np.asarray(usable.device == name, dtype=np.bool_)) for name in names}
        return cls({name: _of_device(part) for name, part in parts.items()})

    def __len__(self) -> int:
        return sum(len(part.hashes) for part in self.by_device.values())

    def hits(self, calls: KernelCallBatch, device: DeviceSpec) -> Hits:
        """The calls that were measured on a device, and their times."""
        known = self.by_device.get(device.name)
        if known is None or not len(calls):
            nothing = np.zeros(0)
            return Hits(rows=np.zeros(0, dtype=np.int64), time_s=nothing, low_s=nothing, high_s=nothing)
        keys = identity(calls)
        place = known.places(keys)
        missed = np.flatnonzero(place < 0)
        if len(missed):  # rows that do not say which implementation they timed answer for any
            anyone = keys[missed]
            anyone[:, -1] = 0
            place[missed] = known.places(anyone)
        rows = np.flatnonzero(place >= 0)
        found = place[rows]
        several = np.where(calls.op[rows] == int(KernelOp.MEMORY), calls.batch[rows], 1.0)
        time_s, half = known.time_s[found] * several, known.half_width[found]
        return Hits(rows=rows, time_s=time_s, low_s=time_s * np.maximum(1 - half, 0.0), high_s=time_s * (1 + half))


def _of_device(table: TimingTable) -> _OfDevice:
    calls = calls_of(table)
    keys = identity(calls)
    hashes = _hashed(keys)
    order = np.argsort(hashes, kind="stable")
    spread = np.nan_to_num(table.spread_s / table.time_s, nan=0.0) * _IQR_TO_90
    repeat = np.where(np.isin(calls.op, [KernelOp.GEMM, KernelOp.GROUPED_GEMM]), REPEAT_GEMM, REPEAT_OTHER)
    return _OfDevice(
        hashes=hashes[order], keys=keys[order], time_s=table.time_s[order], half_width=np.hypot(spread, repeat)[order]
    )


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredKernelModel:
    """Prices calls that were measured by their measurement, the others by another model.

    Attributes:
        measured: What was measured.
        otherwise: Prices the rest.
    """

    measured: MeasuredKernels
    otherwise: KernelCostModel

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device."""
        priced = self.otherwise.predict(calls, device)
        hits = self.measured.hits(calls, device)
        if not len(hits.rows):
            return priced
        time_s, low_s, high_s = priced.time_s.copy(), priced.low_s.copy(), priced.high_s.copy()
        basis, extrapolated = priced.basis.copy(), priced.extrapolated.copy()
        time_s[hits.rows], low_s[hits.rows], high_s[hits.rows] = hits.time_s, hits.low_s, hits.high_s
        basis[hits.rows], extrapolated[hits.rows] = int(Basis.MEASURED), False
        return Prediction(time_s=time_s, low_s=low_s, high_s=high_s, basis=basis, extrapolated=extrapolated)
