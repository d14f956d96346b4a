"""Plans that are likely to live: those that fit, and not by a hair."""

from dataclasses import replace

import numpy as np

from costmodels.context import CostContext
from costmodels.memory.peaks import TensorMemory
from costmodels.plan import FloatArray, PlanBatch
from planner.answer.memory_law import MemoryLaw, needed_log
from planner.ranking import Priced


def oom_risks(plans: PlanBatch, context: CostContext, tensors: TensorMemory | None = None) -> FloatArray:
    """(N,) probability that each of N plans runs out of memory; ``tensors`` as for ``needed_log``."""
    return MemoryLaw.of(context.stack).risk(needed_log(plans, context, tensors))


def with_likely(priced: Priced, context: CostContext, most_risk: float) -> Priced:
    """The same plans, of which it is known which run out of memory in less than that share of runs.

    Args:
        priced: The plans.
        context: What they were priced with.
        most_risk: The share; with 1 that is all plans that fit.
    """
    most_log = MemoryLaw.of(context.stack).most_log(most_risk)
    usable_bytes = context.cluster.device.usable_memory_bytes
    # The peak counts blocks that an allocator in need gives back, so only close to the limit is a second look due.
    likely = priced.fits & (priced.peak_memory_bytes < usable_bytes * np.exp(most_log))
    close = np.flatnonzero(priced.fits & ~likely)
    if len(close):
        likely[close] = needed_log(priced.plans.take(close), context) < most_log
    return replace(priced, likely=likely, likely_below=most_risk)
