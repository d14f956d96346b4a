"""Plans that are to be listed, scored a second time: their schedules played out, stage by stage.

The price of a plan rests on a formula for its pipeline. Here the same stage times go through an event simulation
instead, which knows nothing of formulas. Both agree to rounding; what is listed is what was played.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.pipeline.simulation import Played, StageWork, play
from costmodels.plan import FloatArray, Schedule
from costmodels.stage_plans.estimate import StageEstimateBatch
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import StagePrices


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """N plans, priced with their schedules played out.

    Attributes:
        estimate: The plans' prices.
        formula_s: (N,) step time by the formulas alone.
        in_flight: (N, S) most micro-batches that each stage held, 0 in unused columns.
    """

    estimate: StageEstimateBatch
    formula_s: FloatArray
    in_flight: FloatArray

    @property
    def difference(self) -> FloatArray:
        """(N,) by which the formulas are off, as a share of the step time that was played; negative: too short."""
        return self.formula_s / self.estimate.step_time_s - 1.0


def replay(plans: StagePlanBatch, prices: StagePrices) -> Replay:
    """Price plans by the formulas, play their schedules, and price them by what was played.

    Args:
        plans: N legal plans; a few, since every micro-batch on every stage is played one by one.
        prices: Prices of their stages.
    """
    by_formula = evaluate_stages(plans, prices)
    played = [_play(plans, by_formula, row) for row in range(len(plans))]
    seconds = np.asarray([each.pipeline_s for each in played], dtype=np.float64)
    held = np.zeros(plans.config.shape)
    for row, each in enumerate(played):
        held[row, : len(each.in_flight)] = each.in_flight
    return Replay(
        estimate=evaluate_stages(plans, prices, played_s=seconds),
        formula_s=by_formula.step_time_s,
        in_flight=held,
    )


def _play(plans: StagePlanBatch, estimate: StageEstimateBatch, row: int) -> Played:
    passes = estimate.stages
    works = [
        StageWork(
            forward_s=float(passes.forward_s[row, stage]),
            input_gradient_s=float(passes.input_gradient_s[row, stage]),
            weight_gradient_s=float(passes.weight_gradient_s[row, stage]),
        )
        for stage in range(int(plans.num_stages[row]))
    ]
    return play(
        Schedule(int(plans.schedule[row])),
        works,
        virtual_stages=int(plans.virtual_stages[row]),
        num_microbatches=int(plans.num_microbatches[row]),
    )
