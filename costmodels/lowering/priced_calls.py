"""Prices of the calls of one part of a layer, call by call."""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import total
from costmodels.kernels.calls import Basis
from costmodels.plan import FloatArray, IntArray

_BASES = np.arange(len(Basis))[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedCalls:
    """Prices of one list's kernels or collectives: (calls, K) tables, zero where a call does nothing.

    Attributes:
        summed: (tables, calls, K) what adds up over calls, their seconds first. Of kernels also launches and half the
            90 % interval; of collectives both ends of the interval, launches, and seconds they stall.
        extrapolated_s: Seconds priced outside the fitted domain.
        basis: ``Basis`` of each price.
    """

    summed: FloatArray
    extrapolated_s: FloatArray
    basis: IntArray

    def seconds_by_basis(self) -> FloatArray:
        """(bases, K) seconds whose price rests on each ``Basis``."""
        seconds = self.summed[0]
        nothing = np.zeros((len(Basis), seconds.shape[1]))
        return total((nothing, *np.where(self.basis[:, None] == _BASES, seconds[:, None], 0.0)))
