"""From candidates to a portfolio: scenarios drawn, trials chosen and costed."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from costmodels.context import CostContext
from costmodels.energy_cost import cost_usd, device_hours, steps_in_run
from costmodels.evaluate import evaluate
from costmodels.plan import FloatArray, PlanBatch
from planner.decisions.belief import Belief, belief_about
from planner.decisions.candidates import Candidates
from planner.decisions.portfolio import Choice, World, choose
from planner.decisions.results import Grounds, PortfolioResult, Terms, Trial
from planner.decisions.scenarios import DRAWS, Scenarios, draw
from planner.results import Request

PRICED_EXACTLY = 8  # scenarios whose interpolated step times are compared with the cost path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Candidates and the scenarios a decision about them is made in.

    Attributes:
        candidates: M plans.
        belief: About them.
        scenarios: Drawn from it.
        world: Their regrets.
        grounds: What this rests on.
    """

    candidates: Candidates
    belief: Belief
    scenarios: Scenarios
    world: World
    grounds: Grounds


def outlook_on(candidates: Candidates, terms: Terms) -> Outlook:
    """What may become of some candidates."""
    belief = belief_about(candidates.plans, candidates.context)
    scenarios = draw(belief, seed=terms.seed)
    return Outlook(
        candidates=candidates,
        belief=belief,
        scenarios=scenarios,
        world=World.of(scenarios.log_time_s, scenarios.died, scenarios.weight),
        grounds=grounds_of(candidates, belief, scenarios, terms),
    )


def grounds_of(candidates: Candidates, belief: Belief, scenarios: Scenarios, terms: Terms) -> Grounds:
    """What a decision among some candidates rests on; some scenarios are priced exactly to see."""
    errors = belief.responses.errors(belief.price, belief.shifts(scenarios.theta[:PRICED_EXACTLY]))
    return Grounds(
        considered=candidates.considered,
        candidates=len(candidates),
        draws=len(scenarios.weight),
        effective_draws=scenarios.effective_draws,
        terms=terms,
        table_error=float(np.sqrt(np.mean(errors**2))),
        table_error_largest=float(np.abs(errors).max()),
        priced_exactly=PRICED_EXACTLY,
    )


def nothing_to_decide(candidates: Candidates, terms: Terms) -> Grounds:
    """The grounds of an answer that nothing may run."""
    return Grounds(
        considered=candidates.considered,
        candidates=0,
        draws=DRAWS,
        effective_draws=float(DRAWS),
        terms=terms,
        table_error=0.0,
        table_error_largest=0.0,
        priced_exactly=0,
    )


def portfolio_of(request: Request, outlook: Outlook, count: int) -> PortfolioResult:
    """The plans worth trying.

    Args:
        request: The question.
        outlook: What may become of its candidates.
        count: Most plans to try.
    """
    world = outlook.world
    count = min(count, len(outlook.candidates))
    choice = choose(world, count, oom_penalty=outlook.grounds.terms.oom_penalty)
    first = np.flatnonzero(outlook.candidates.fits)[:count]
    tried = Tried(
        plans=outlook.candidates.plans,
        context=outlook.candidates.context,
        scenarios=outlook.scenarios,
        world=world,
        steps=outlook.grounds.terms.steps,
    )
    return PortfolioResult(
        request=request,
        trials=trials_of(request, tried, choice),
        ranked_regret=world.expected_regret(first),
        grounds=outlook.grounds,
        infeasible=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What trials are costed from.

    Attributes:
        plans: M plans.
        context: What they are priced with.
        scenarios: Of these plans.
        world: Their regrets.
        steps: Of a trial.
        learnt: Whether trials have moved the scenarios, so that the price is no longer what is expected.
    """

    plans: PlanBatch
    context: CostContext
    scenarios: Scenarios
    world: World
    steps: int
    learnt: bool = False


def trials_of(
    request: Request, tried: Tried, choice: Choice, *, lost_before_s: float | None = None
) -> tuple[Trial, ...]:
    """The chosen plans as trials, costed.

    Args:
        request: The question.
        tried: The plans, their scenarios and the length of a trial.
        choice: Rows of the plans, in order.
        lost_before_s: Expected regret in seconds of a step before the first of them; None when nothing ran yet.
    """
    plans = tried.plans.take(choice.rows)
    priced = evaluate(plans, tried.context)
    saved = _saved_hours(request, choice.lost_s, lost_before_s, int(plans.num_devices[0]) if len(plans) else 0)
    weight, trials = tried.scenarios.weight, []
    risk, best_share = tried.world.risk, tried.world.best_share
    for place, row in enumerate(choice.rows.tolist()):
        time_s = np.exp(tried.scenarios.log_time_s[:, row])
        expected_s, devices = tried.steps * float(weight @ time_s), int(plans.num_devices[place])
        middle_s, low_s, high_s = tried.scenarios.measured_s(row)
        trials.append(
            Trial(
                rank=place + 1,
                plan=plans.plan(place),
                num_devices=devices,
                step_time_s=middle_s if tried.learnt else float(priced.step_time_s[place]),
                step_time_low_s=low_s,
                step_time_high_s=high_s,
                peak_memory_bytes=float(priced.peak_memory_bytes[place]),
                oom_probability=float(risk[row]),
                best_probability=float(best_share[row]),
                regret=float(choice.regret[place]),
                regret_high=float(choice.regret_high[place]),
                device_hours=device_hours(expected_s, devices),
                cost_usd=None if request.price is None else cost_usd(expected_s, devices, request.price),
                saved_device_hours=saved[place],
            )
        )
    return tuple(trials)


def _saved_hours(request: Request, lost_s: FloatArray, before_s: float | None, devices: int) -> list[float | None]:
    """Device-hours of the whole run that each trial saves beside those before it; None where that is not known."""
    steps = steps_in_run(request.job)
    if steps is None:
        return [None] * len(lost_s)
    lost = [before_s, *lost_s.tolist()]
    return [
        None if earlier is None else device_hours(steps * (earlier - later), devices)
        for earlier, later in pairwise(lost)
    ]
