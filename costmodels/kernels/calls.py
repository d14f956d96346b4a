"""The language kernel cost models speak: distinct kernel calls as arrays, and priced predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.hardware import DeviceSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class KernelOp(IntEnum):
    """Operation classes that are priced differently."""

    GEMM = 0  # C[m,n] = A[m,k] B[k,n], batch times
    GROUPED_GEMM = 1  # batch GEMMs of m rows each in one launch (experts)
    ATTENTION_FORWARD = 2  # fused: m query tokens x n key tokens x k head width, batch * heads of them
    ATTENTION_BACKWARD = 3
    MEMORY = 4  # bandwidth-bound: norms, activations, residuals, softmax, loss, optimizer (``KernelFamily``)
    ATTENTION_DECODE = 5  # fused, one query token per sequence, or a few
    FUSED_EXPERTS = 6  # a whole expert layer in one call (``costmodels.kernels.expert_terms`` names the columns)
    LINEAR_ATTENTION = 7  # m tokens in chunks of n, batch * heads states of key width k (``costmodels.linear_work``)
    INDEX_SCORES = 8  # m rows, queries of all index heads, x n keys of width k (``kernels.sparse_attention``)
    CHOSEN_FORWARD = 9  # m queries, each with n latent keys of width k that were chosen for it, for heads heads
    CHOSEN_BACKWARD = 10
    CHOSEN_DECODE = 11


class KernelFamily(IntEnum):
    """Which bandwidth-bound work a ``MEMORY`` call does."""

    POINTWISE = 0  # additions, products, dropout, casts
    NORM = 1  # layer or RMS norm, with the residual added to it
    NORM_BACKWARD = 2
    ACTIVATION = 3
    GATED_ACTIVATION = 4  # activation of one half times the other
    SOFTMAX = 5
    ROTARY = 6
    EMBEDDING = 7  # gather of rows, or scatter-add of their gradients
    CROSS_ENTROPY = 8
    OPTIMIZER = 9
    QUANTISE = 10  # to or from a narrower format
    PERMUTE = 11  # rows into expert order and back
    COPY = 12
    OTHER = 13


class GemmLayout(IntEnum):
    """Which of a linear layer's three GEMMs a call is; it decides what is read along its rows."""

    FORWARD = 0  # x W^T, activations alone as NN
    INPUT_GRADIENT = 1  # dy W
    WEIGHT_GRADIENT = 2  # dy^T x


class Basis(IntEnum):
    """What a price rests on; the weakest of its parts for a sum."""

    MEASURED = 0
    LEARNED = 1
    ANALYTIC = 2  # formula with efficiencies fitted on this device or its architecture
    ASSUMED = 3  # formula with efficiencies borrowed from another architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCallBatch:
    """K kernel calls, columns of length K.

    Attributes:
        op: ``KernelOp`` codes.
        gemm_format: Index into ``profiles.precision.GEMM_FORMATS``.
        family: ``KernelFamily`` codes (``MEMORY`` only).
        layout: ``GemmLayout`` codes (``GEMM`` and ``GROUPED_GEMM`` only).
        m, n, k: Dimensions, see ``KernelOp``; ``MEMORY``: m rows of n elements, 0 where it has none.
        batch: GEMMs in the call, or sequences for attention; ``MEMORY``: kernels launched.
        heads, kv_heads: Query and key/value heads on this device (attention only, else 0).
        causal: Share of the score matrix computed: 0.5 causal, 1.0 full, less for windows.
        flops: Floating-point operations of the call (2 per multiply-add).
        bytes: Device memory read plus written, each operand once.
        element_bytes: Bytes per element of the main operand as it lies in memory (narrow GEMM formats
            are quantised from it).
        implementation: Who ran the kernel and which (``costmodels.kernels.implementations``); 0: not known.
        scale_block: Elements that share one scale of a narrow format; 0: the whole tensor (GEMMs only).
        packed_bytes: Bytes per weight, scales included, where it lies in fewer bits than are multiplied and kernels
            unpack it as they go; 0: as ``bytes`` says (GEMMs and fused experts of 16 bits, and experts of 8).
    """

    op: IntArray
    gemm_format: IntArray
    family: IntArray
    layout: IntArray
    m: FloatArray
    n: FloatArray
    k: FloatArray
    batch: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    causal: FloatArray
    flops: FloatArray
    bytes: FloatArray
    element_bytes: FloatArray
    scale_block: FloatArray
    packed_bytes: FloatArray
    implementation: IntArray

    def __len__(self) -> int:
        return len(self.op)


COLUMNS = tuple(KernelCallBatch.__dataclass_fields__)
INTEGER_COLUMNS = ("op", "gemm_format", "family", "layout", "implementation")


def kernel_calls(count: int, **columns: ArrayLike) -> KernelCallBatch:
    """``count`` calls from columns by name: scalars are repeated, columns left out are zero."""
    filled: dict[str, Any] = {
        name: np.full(count, columns.get(name, 0), dtype=np.int64 if name in INTEGER_COLUMNS else np.float64)
        for name in COLUMNS
    }
    return KernelCallBatch(**filled)


def take(calls: KernelCallBatch, rows: IntArray | NDArray[np.bool_]) -> KernelCallBatch:
    """The calls of some rows."""
    return KernelCallBatch(**{name: getattr(calls, name)[rows] for name in COLUMNS})


def concatenate(parts: Sequence[KernelCallBatch]) -> KernelCallBatch:
    """The calls of several batches, one after the other."""
    return KernelCallBatch(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


def is_product(calls: KernelCallBatch) -> NDArray[np.bool_]:
    """(C,) whether calls multiply matrices, one pair or one for each of several groups."""
    return np.asarray((calls.op == int(KernelOp.GEMM)) | (calls.op == int(KernelOp.GROUPED_GEMM)))


def keys_of(calls: KernelCallBatch) -> list[bytes]:
    """One key per call, equal for equal calls."""
    table = _table(calls)
    whole, width = table.tobytes(), table.strides[0]
    return [whole[start : start + width] for start in range(0, len(whole), width)]


def distinct(calls: KernelCallBatch) -> tuple[IntArray, IntArray]:
    """Rows of calls of which no two are equal, and (K,) for every call which of them it is."""
    table = _table(calls)
    whole = table.view(np.dtype((np.void, table.strides[0]))).reshape(-1)
    _, first, of_row = np.unique(whole, return_index=True, return_inverse=True)
    return first, of_row.reshape(-1)


def _table(calls: KernelCallBatch) -> FloatArray:
    """(K, columns) the calls as one table."""
    table = np.empty((len(calls), len(COLUMNS)))
    for column, name in enumerate(COLUMNS):
        table[:, column] = getattr(calls, name)
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds for each call, with an interval and what it rests on.

    Attributes:
        time_s, low_s, high_s: (K,) expected time and a 90 % interval.
        basis: (K,) ``Basis`` codes.
        extrapolated: (K,) whether the call lies outside the fitted domain.
    """

    time_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    basis: IntArray
    extrapolated: NDArray[np.bool_]

    @classmethod
    def of(cls, table: FloatArray) -> "Prediction":
        """From a ``table``."""
        time_s, low_s, high_s, basis, extrapolated = table
        return cls(
            time_s=time_s, low_s=low_s, high_s=high_s, basis=basis.astype(np.int64), extrapolated=extrapolated > 0
        )

    def table(self) -> FloatArray:
        """(5, K) the columns as one table of floats, in the order of the fields."""
        return np.array([self.time_s, self.low_s, self.high_s, self.basis, self.extrapolated], dtype=np.float64)

    def take(self, rows: IntArray) -> "Prediction":
        """The prices of some calls."""
        return Prediction(**{name: getattr(self, name)[rows] for name in Prediction.__dataclass_fields__})


class KernelCostModel(Protocol):
    """Prices kernel calls on a device."""

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device."""
        ...
