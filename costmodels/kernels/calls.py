"""The language kernel cost models speak: distinct kernel calls as arrays, and priced predictions."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from profiles.hardware import DeviceSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class KernelOp(IntEnum):
    """Operation classes that are priced differently."""

    GEMM = 0  # C[m,n] = A[m,k] B[k,n], batch times
    GROUPED_GEMM = 1  # batch GEMMs of m rows each in one launch (experts)
    ATTENTION_FORWARD = 2  # fused: m query tokens x n key tokens x k head width, batch * heads of them
    ATTENTION_BACKWARD = 3
    MEMORY = 4  # bandwidth-bound: norms, activations, residuals, softmax, loss, optimizer


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
        m, n, k: Dimensions, see ``KernelOp``.
        batch: GEMMs in the call, or sequences for attention; ``MEMORY``: kernels launched.
        heads, kv_heads: Query and key/value heads on this device (attention only, else 0).
        causal: Share of the score matrix computed: 0.5 causal, 1.0 full, less for windows.
        flops: Floating-point operations of the call (2 per multiply-add).
        bytes: Device memory read plus written, each operand once.
    """

    op: IntArray
    gemm_format: IntArray
    m: FloatArray
    n: FloatArray
    k: FloatArray
    batch: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    causal: FloatArray
    flops: FloatArray
    bytes: FloatArray

    def __len__(self) -> int:
        return len(self.op)


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


class KernelCostModel(Protocol):
    """Prices kernel calls on a device."""

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device."""
        ...
