"""The plans a decision is about: the fastest of those that may run."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.plan import BoolArray, PlanBatch
from planner.answer.memory_law import MemoryLaw
from planner.answer.pricing import price_all, price_contenders
from planner.decisions.portfolio import MOST_RISK
from planner.question.option_kinds import refuse_oom_risk
from planner.question.request import cost_context, space_of
from planner.ranking import best_rows
from planner.results import Request
from profiles.errors import SpecError

MOST = 256  # plans compared; slower ones are the best in no scenario worth counting


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Plans to choose among, fastest first.

    Attributes:
        plans: M plans; none when nothing may run.
        context: What they are priced with.
        considered: Legal plans they were chosen from.
        fits: (M,) whether a plan fits by the price of its peak, as the ranking demands.
    """

    plans: PlanBatch
    context: CostContext
    fits: BoolArray
    considered: int

    def __len__(self) -> int:
        return len(self.plans)


def candidates_of(request: Request) -> Candidates:
    """The plans a decision about a request is made among.

    Raises:
        SpecError: If the request is after something else than the step time.
    """
    if request.objective != "step_time":
        problem = f"is {request.objective}, but decisions under uncertainty weigh step times"
        raise SpecError("objective", problem, "leave it out, and give fewer GPUs to compare the cost of fewer")
    refuse_oom_risk(request.max_oom_risk, "oom_penalty says what it costs to run out of memory")
    context = cost_context(request)
    plans = space_of(request).plans
    priced = price_contenders(plans, context) if len(plans) else price_all(plans, context)
    hosted = priced.host_memory_bytes <= request.cluster.node.host_memory_bytes
    over = np.log(priced.peak_memory_bytes / context.cluster.device.usable_memory_bytes)
    likely = replace(priced, fits=hosted & (MemoryLaw.of(context.stack).risk(over) <= MOST_RISK))
    rows = best_rows(likely, objective="step_time", count=MOST, variants=request.variants)
    return Candidates(plans=priced.plans.take(rows), context=context, considered=len(priced), fits=priced.fits[rows])
