"""The memory of many plans, looked up where it matters; neighbours that recompute otherwise are bounded together."""

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from costmodels.context import CostContext
from costmodels.evaluate import Peaks, least_peaks, peaks
from costmodels.plan import PLAN_COLUMNS, RECOMPUTES, BoolArray, FloatArray, IntArray, PlanBatch
from planner.ranking import overshoots

CHUNK_ROWS = 32_768  # rows priced at once; bounds memory, and more do not run faster
# Bounds of what may fit, or come nearest, are this much wider than they need be: ``ranking.nearest_rows`` takes for
# equal what differs by less, and sums in another order differ in their last digits.
ALMOST = 1 + 1e-5
_MANY = 2  # plans, at least, of which one stands for all that recompute otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedPeaks:
    """N legal plans, at least one, some of whose memory is known.

    Attributes:
        plans: The plans.
        context: Model, cluster, job and stack.
        first: (F,) rows at which runs of neighbours begin that differ in recomputation alone; of every plan where
            bounding them together would save nothing.
        least: (N,) bytes that each plan takes at least; 0 where nobody worked that out.
        known: The memory of those looked up; infinite peaks that do not fit of the others.
    """

    plans: PlanBatch
    context: CostContext
    first: IntArray
    least: FloatArray
    known: Peaks

    @classmethod
    def of(cls, plans: PlanBatch, context: CostContext) -> "BoundedPeaks":
        """Nothing known yet but the bounds."""
        first = _run_begins(plans)
        alone = plans.stage_layers is not None or plans.offload_activations.any() or _MANY * len(first) > len(plans)
        known = Peaks(
            peak_memory_bytes=np.full(len(plans), np.inf),
            host_memory_bytes=np.zeros(len(plans)),
            fits=np.zeros(len(plans), dtype=np.bool_),
            paged_bytes=np.zeros(len(plans)) if context.job.paged_optimizer else None,
        )
        return cls(
            plans=plans,
            context=context,
            first=np.arange(len(plans)) if alone else first,
            least=np.zeros(len(plans)) if alone else _least_peaks(plans, first, context),
            known=known,
        )

    @property
    def run_lengths(self) -> IntArray:
        """(F,) plans in every run."""
        return np.diff(self.first, append=len(self.plans))

    @property
    def may_fit(self) -> BoolArray:
        """(N,) plans that the device may have room for."""
        may: BoolArray = self.least <= self.context.cluster.device.usable_memory_bytes * ALMOST
        return may

    def look_up(self, wanted: BoolArray) -> Peaks:
        """What is known once the memory of those of N plans is that are wanted."""
        known, rows = self.known, np.flatnonzero(wanted & np.isinf(self.known.peak_memory_bytes))
        for at in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[at : at + CHUNK_ROWS]
            found = peaks(self.plans.take(chunk), self.context)
            known.peak_memory_bytes[chunk] = found.peak_memory_bytes
            known.host_memory_bytes[chunk] = found.host_memory_bytes
            known.fits[chunk] = found.fits
            if known.paged_bytes is not None and found.paged_bytes is not None:
                known.paged_bytes[chunk] = found.paged_bytes
        return known

    def of_contenders(self) -> Peaks:
        """What is known once all is that may fit, and where none does, all that may come nearest."""
        usable_bytes = self.context.cluster.device.usable_memory_bytes
        known = self.look_up(self.may_fit)
        if not known.fits.any():
            known = self.look_up(self.least == self.least.min())
            beyond = overshoots(
                known.peak_memory_bytes,
                known.host_memory_bytes,
                usable_bytes=usable_bytes,
                host_bytes=self.context.cluster.node.host_memory_bytes,
            )
            known = self.look_up(self.least <= usable_bytes * beyond.min() * ALMOST)
        return known

    def of_smallest(self, *, that_fit: bool = False) -> Peaks:
        """What is known once all is that may take the least, of all plans or of those that fit."""
        known = self.look_up(self.least == self.least.min())
        if that_fit:
            least_bytes = float(known.peak_memory_bytes[known.fits].min(initial=np.inf))
            return self.look_up(self.may_fit & (self.least <= least_bytes * ALMOST))
        return self.look_up(self.least <= known.peak_memory_bytes.min() * ALMOST)


def least_peak_bytes(plans: PlanBatch, context: CostContext) -> float:
    """The smallest peak of some plans, at least one, whether the device has that much or not."""
    return float(BoundedPeaks.of(plans, context).of_smallest().peak_memory_bytes.min())


def _run_begins(plans: PlanBatch) -> IntArray:
    """(F,) rows of plans that differ from the one before in more than recomputation."""
    fresh = np.ones(len(plans), dtype=np.bool_)
    columns = [name for name in PLAN_COLUMNS if name not in RECOMPUTES]
    fresh[1:] = reduce(
        np.logical_or, (column[1:] != column[:-1] for column in (getattr(plans, name) for name in columns))
    )
    return np.flatnonzero(fresh)


def _least_peaks(plans: PlanBatch, first: IntArray, context: CostContext) -> FloatArray:
    """(N,) bytes that each of N plans takes at least, worked out once for neighbours that differ in recomputation."""
    modules = np.full(len(plans), np.bitwise_or.reduce(plans.recompute_modules))
    alike = replace(plans, recompute_modules=modules)
    chunks = [first[at : at + CHUNK_ROWS] for at in range(0, len(first), CHUNK_ROWS)]
    least = np.concatenate([least_peaks(alike.take(chunk), context) for chunk in chunks])
    return np.repeat(least, np.diff(first, append=len(plans)))
