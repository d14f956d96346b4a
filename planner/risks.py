"""Plans that are likely to live: those that fit, and not by a hair."""

import numpy as np

from costmodels.context import CostContext
from costmodels.memory import TensorMemory
from costmodels.plan import FloatArray, PlanBatch
from planner.memory_law import MemoryLaw, needed_log
from planner.ranking import Priced, best_rows
from planner.results import RISKY

LOOKED_AT = 64  # of the best plans, among which one is looked for that is likely to live


def oom_risks(plans: PlanBatch, context: CostContext, tensors: TensorMemory | None = None) -> FloatArray:
    """(N,) probability that each of N plans runs out of memory; ``tensors`` as for ``needed_log``."""
    return MemoryLaw.of(context.stack).risk(needed_log(plans, context, tensors))


def likely_row(priced: Priced, context: CostContext, *, objective: str = "step_time") -> int | None:
    """The row of the best plan that is likely to live; None where none is.

    It is looked for among the best that fit, and the one of the least memory.

    Args:
        priced: The plans, on the context's cluster or parts of it.
        context: Model, cluster, job and stack.
        objective: What makes a plan the best, one of ``OBJECTIVES``.
    """
    best = best_rows(priced, objective=objective, count=LOOKED_AT)
    rows = np.concatenate([best, best_rows(priced, objective="memory_headroom", count=1)])
    likely = rows[oom_risks(priced.plans.take(rows), context) < RISKY]
    return int(likely[0]) if len(likely) else None
