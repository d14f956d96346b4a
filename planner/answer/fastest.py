"""The fastest plans of a space that fit, found without pricing most of the others.

Of neighbours that differ in recomputation alone none takes less time than one that recomputes nothing: what is done
again adds at least as much to the work of a stage as it hides of traffic. All else is the same, but for the pages of an
optimizer that has less room, which are left out of the bound.
"""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.evaluate import Peaks
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, RecomputeModule
from costmodels.step.layer_costs import LayerCosts, layer_costs
from planner.answer.bounded_peaks import ALMOST, CHUNK_ROWS, BoundedPeaks
from planner.answer.pricing import timed, timed_contenders
from planner.answer.risks import with_likely
from planner.ranking import STAND_IN, Priced, best_rows
from planner.results import RISKY

_FIRST_ROWS = 8192  # plans looked at first; then twice as many, and so on


def price_fastest(plans: PlanBatch, context: CostContext, *, count: int, most_risk: float) -> Priced:
    """Of a space those plans priced that are likely to live and are the best; where none fits, those that come nearest.

    Where the plan that needs the least memory is not likely to live, none is taken to be, and the best are of those
    that are as likely to live as usual, or of all that fit.

    Args:
        plans: N legal plans, at least one.
        context: Model, cluster, job, stack and price lists.
        count: How many by step time, told apart as ``ranking.best_rows`` does. The best by memory are among them.
        most_risk: In which share of runs likely plans run out of memory at most (``risks.with_likely``).
    """
    bounded = BoundedPeaks.of(plans, context)
    priced = _fastest(bounded, count, most_risk)
    surer_lacks = most_risk < RISKY and not priced.likely_any and priced.fits.any()
    return _fastest(bounded, count, RISKY) if surer_lacks else priced


def _fastest(bounded: BoundedPeaks, count: int, most_risk: float) -> Priced:
    """Those that are priced where likely plans run out of memory in less than that share of runs."""
    plans, context = bounded.plans, bounded.context
    may_fit = bounded.may_fit
    if may_fit.sum() <= CHUNK_ROWS or len(bounded.first) == len(plans):
        return with_likely(timed_contenders(bounded), context, most_risk)  # bounds would take as long
    runs = np.flatnonzero(may_fit[bounded.first])
    steps = _Steps.of(bounded, runs, most_risk)
    order = np.argsort(steps.least_s, kind="stable")
    upto, rows = 0, _FIRST_ROWS
    ends, smallest = np.cumsum(bounded.run_lengths[runs[order]]), bounded.least == bounded.least.min()
    while upto < len(order):
        some = order[upto : (upto := int(np.searchsorted(ends, rows)) + 1)]
        steps.time(steps.of_runs(some) | smallest)
        if upto < len(order) and steps.are_complete(count, below_s=float(steps.least_s[order[upto]]) / ALMOST):
            break
        rows *= 2
    known = bounded.of_smallest(that_fit=True)
    if not known.fits.any():
        return with_likely(timed_contenders(bounded), context, most_risk)
    steps.time(known.peak_memory_bytes <= known.peak_memory_bytes[known.fits].min() * ALMOST)
    return steps.priced(np.flatnonzero(np.isfinite(steps.step_time_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """Step times of N plans, worked out where asked.

    Attributes:
        bounded: The plans, and what is known of their memory.
        of_row: (N,) place among the R runs that may fit of the run that each plan is of; -1 for others.
        costs: Priced blocks of each run.
        least_s: (R,) seconds that plans of each take at least.
        most_risk: In which share of runs likely plans run out of memory at most.
        step_time_s: (N,) seconds, infinite where nobody asked.
    """

    bounded: BoundedPeaks
    of_row: IntArray
    costs: LayerCosts
    least_s: FloatArray
    most_risk: float
    step_time_s: FloatArray

    @classmethod
    def of(cls, bounded: BoundedPeaks, runs: IntArray, most_risk: float) -> "_Steps":
        """Nothing known yet but the bounds of some runs of neighbours."""
        place = np.full(len(bounded.first), -1)
        place[runs] = np.arange(len(runs))
        begins = bounded.plans.take(bounded.first[runs])
        nothing, none = np.zeros(len(runs)), np.zeros(len(runs), dtype=np.int64)
        bare = replace(
            begins, recompute=none, recompute_layers=none, recompute_modules=none + int(RecomputeModule.CORE_ATTN)
        )
        needs = Peaks(
            peak_memory_bytes=nothing,
            host_memory_bytes=nothing,
            fits=np.ones(len(runs), dtype=np.bool_),
            paged_bytes=nothing if bounded.context.job.paged_optimizer else None,
        )
        costs = layer_costs(bare, bounded.context)
        return cls(
            bounded=bounded,
            of_row=np.repeat(place, bounded.run_lengths),
            costs=costs,
            least_s=timed(bare, needs, bounded.context, costs).step_time_s,
            most_risk=most_risk,
            step_time_s=np.full(len(bounded.plans), np.inf),
        )

    def of_runs(self, places: IntArray) -> BoolArray:
        """(N,) plans of some of the runs."""
        taken = np.zeros(len(self.least_s) + 1, dtype=np.bool_)  # the last for plans of no such run
        taken[places] = True
        return taken[self.of_row]

    def time(self, wanted: BoolArray) -> None:
        """Work out the steps of those of N plans that are wanted and fit."""
        known = self.bounded.look_up(wanted)
        rows = np.flatnonzero(wanted & known.fits & np.isinf(self.step_time_s))
        if len(rows):
            there, costs = self.bounded.plans.take(rows), self.costs.take(self.of_row[rows])
            self.step_time_s[rows] = timed(there, known.take(rows), self.bounded.context, costs).step_time_s

    def are_complete(self, count: int, *, below_s: float) -> bool:
        """Whether so many plans that cost differently take less time than that, and are likely to live if any is."""
        priced = self.priced(np.flatnonzero(self.step_time_s < below_s))
        if len(priced) < count or not priced.fits.any():
            return False
        too_slow = below_s > STAND_IN * float(priced.step_time_s[priced.fits].min()) and self.most_risk >= RISKY
        if not (priced.likely_any or too_slow or self.none_is_likely()):
            return False
        return len(best_rows(priced, objective="step_time", count=count)) == count

    def none_is_likely(self) -> bool:
        """Whether the plan that needs the least memory runs out of it too often."""
        known = self.bounded.of_smallest(that_fit=True)
        peaks_bytes = np.where(known.fits, known.peak_memory_bytes, np.inf)
        return not self.priced(np.asarray([np.argmin(peaks_bytes)])).likely_any

    def priced(self, rows: IntArray) -> Priced:
        """Some of the plans, all of which were asked for."""
        known = self.bounded.known.take(rows)
        priced = Priced(
            plans=self.bounded.plans.take(rows),
            step_time_s=self.step_time_s[rows],
            peak_memory_bytes=known.peak_memory_bytes,
            host_memory_bytes=known.host_memory_bytes,
            fits=known.fits,
            costs=self.costs.take(self.of_row[rows]),
        )
        return with_likely(priced, self.bounded.context, self.most_risk)
