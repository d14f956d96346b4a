"""Prices of the calls of one part of a layer, call by call."""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import total
from costmodels.kernels.calls import Basis
from costmodels.plan import FloatArray, IntArray

_BASES = np.arange(len(Basis))[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """Prices of one list's calls: (calls, K) tables, zero where a call does nothing."""

    seconds: FloatArray
    extrapolated_s: FloatArray
    basis: IntArray

    def seconds_by_basis(self) -> FloatArray:
        """(bases, K) seconds whose price rests on each ``Basis``."""
        nothing = np.zeros((len(Basis), self.seconds.shape[1]))
        return total((nothing, *np.where(self.basis[:, None] == _BASES, self.seconds[:, None], 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedKernels(_Priced):
    """Prices of one list's kernel calls."""

    launches: FloatArray
    half_width_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedTransfers(_Priced):
    """Prices of one list's collectives; ``calls`` is 1 where one is launched."""

    low_s: FloatArray
    high_s: FloatArray
    calls: FloatArray
    stalled_s: FloatArray
