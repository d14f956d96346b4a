"""Prices of the calls of one part of a layer, call by call and added up."""

from collections.abc import Sequence
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

    def scaled(self, shares: Sequence[float]) -> "PricedCalls":
        """The same of calls that only some layers run, (calls,) shares of these."""
        if all(share == 1.0 for share in shares):
            return self
        factor = np.asarray(shares)[:, None]
        return PricedCalls(summed=self.summed * factor, extrapolated_s=self.extrapolated_s * factor, basis=self.basis)

    def seconds_by_basis(self) -> FloatArray:
        """(bases, K) seconds whose price rests on each ``Basis``."""
        seconds = self.summed[0]
        nothing = np.zeros((len(Basis), seconds.shape[1]))
        return total((nothing, *np.where(self.basis[:, None] == _BASES, seconds[:, None], 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCosts:
    """Priced calls of one part of a layer for one micro-batch on one rank; K distinct shapes.

    Attributes:
        kernel_s: (phases, K) seconds.
        part_s: (parts, K) of those of the forward pass, what each ``Part`` takes.
        launches: (phases, K) kernels launched.
        collective_s: (axes, K) seconds, as if nothing hid them.
        collectives: (axes, K) collectives launched.
        stalled_s: (axes, K) least seconds of these collectives on a cluster where they stall, else 0.
        kernel_half_s: (phases, K) half the 90 % interval of the kernel seconds.
        collective_low_s, collective_high_s: (axes, K) 90 % interval of the collective seconds.
        basis: (K,) weakest basis of the kernel prices.
        basis_s: (bases, K) of the kernel and collective seconds, those whose price rests on each ``Basis``.
        extrapolated_kernel_s: (K,) of the kernel seconds, those priced outside the fitted domain.
        extrapolated_collective_s: (K,) the same of the collective seconds.
    """

    kernel_s: FloatArray
    part_s: FloatArray
    launches: FloatArray
    collective_s: FloatArray
    collectives: FloatArray
    stalled_s: FloatArray
    kernel_half_s: FloatArray
    collective_low_s: FloatArray
    collective_high_s: FloatArray
    basis: IntArray
    basis_s: FloatArray
    extrapolated_kernel_s: FloatArray
    extrapolated_collective_s: FloatArray
