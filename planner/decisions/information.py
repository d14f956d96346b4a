"""What to measure first: how much regret knowing a parameter would remove, and what decides between two plans.

The decision is which plan to run, without a trial. With what is known now, one takes the plan with the smallest
expected step time; whoever knew a parameter would take the best plan given it. The difference of the expected step
times is the expected value of partial perfect information (EVPPI: Strong, Oakley and Brennan 2014,
doi:10.1177/0272989X12465490). Given some parameters, the expected step time of a plan answers to them as the table of
``responses`` says, so no regression is needed. A plan that would run out of memory costs the step time of the fallback
(``portfolio``) and the penalty of a trial that dies.

Sobol' indices are those of the *difference* of two plans' log step times: what makes
both slow decides nothing.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from costmodels.plan import FloatArray
from planner.decisions.belief import Belief
from planner.decisions.portfolio import SURE
from planner.decisions.scenarios import Scenarios

SOBOL_DRAWS = 4096  # pairs of scenarios behind the indices, which are right to about 0.02
_QUANTILES = 400  # by which the law of one normal variable is represented
OWN = "own"  # the part of a difference that no parameter explains


@dataclass(frozen=True, slots=True, kw_only=True)
class Information:
    """What knowing something is worth, as shares of the expected step time of the best choice now.

    Attributes:
        choice: Number of that choice among the plans.
        step_time_s: Its expected step time, deaths counted.
        perfect: Worth of knowing everything.
        parameters: (P,) worth of knowing each parameter alone.
        hardware, stack: Worth of knowing all parameters of a kind.
        memory_share: Worth of knowing what peaks of memory have in common.
    """

    choice: int
    step_time_s: float
    perfect: float
    parameters: FloatArray
    hardware: float
    stack: float
    memory_share: float


def information(belief: Belief, scenarios: Scenarios, *, oom_penalty: float) -> Information:
    """The value of information about M plans.

    Args:
        belief: About them.
        scenarios: Drawn from it, equally likely.
        oom_penalty: What a run that dies is worth avoiding, as a share of the step time.
    """
    running_s = np.exp(scenarios.log_time_s)
    mean_s = running_s.mean(axis=0)
    risk = belief.memory.risk(belief.memory_log)
    safe = risk <= max(SURE, float(risk.min()))
    fallback = int(np.where(safe, mean_s, np.inf).argmin())
    dead = 1 + oom_penalty
    now_s = (1 - risk) * mean_s + risk * dead * mean_s[fallback]
    choice, expected_s = int(now_s.argmin()), float(now_s.min())

    def worth(theta: FloatArray) -> float:
        """Of knowing parameters with (S, P) values, those not known left at zero."""
        answers = np.exp(belief.responses.log_times(belief.shifts(theta)))
        given_s = answers * (mean_s / answers.mean(axis=0))
        reached_s = (1 - risk) * given_s + risk * dead * given_s[:, [fallback]]
        return 1 - float(reached_s.min(axis=1).mean()) / expected_s

    normal = ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    remembered_s = 0.0
    for share, shared_std in belief.memory.kinds:
        informed = belief.memory.risk_given(belief.memory_log, shared_std * normal[:, None])
        given_s = (1 - informed) * mean_s + informed * dead * mean_s[fallback]
        remembered_s += share * float(given_s.min(axis=1).mean())
    true_s = np.where(scenarios.died, dead * running_s[:, [fallback]], running_s)
    hardware = np.array([parameter.kind == "hardware" for parameter in belief.parameters], dtype=np.bool_)
    return Information(
        choice=choice,
        step_time_s=expected_s,
        perfect=max(1 - float(true_s.min(axis=1).mean()) / expected_s, 0.0),  # noise of the draws alone takes it below
        parameters=np.array([worth(normal[:, None] * row) for row in np.diag(belief.stds)]),
        hardware=worth(scenarios.theta * hardware),
        stack=worth(scenarios.theta * ~hardware),
        memory_share=1 - remembered_s / expected_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Indices:
    """What decides between two plans.

    Attributes:
        names: Parameters, and ``OWN`` for what none of them explains.
        first: Share of the variance of the difference that each explains alone.
        total: The same with what it does together with others.
        std: Standard deviation of the difference of the log step times.
        faster: Probability that the first plan is the faster.
    """

    names: tuple[str, ...]
    first: FloatArray
    total: FloatArray
    std: float
    faster: float


def difference_indices(belief: Belief, left: int, right: int, *, seed: int) -> Indices:
    """Sobol' indices of the log step time of one plan over another's.

    Args:
        belief: About the plans.
        left: Number of the one.
        right: Number of the other.
        seed: Of the scenarios.
    """
    variance = belief.own_std[left] ** 2 + belief.own_std[right] ** 2
    together = 2 * belief.kin[left, right] * belief.own_std[left] * belief.own_std[right]
    felt = belief.level_std * (belief.level_reach[left] - belief.level_reach[right])
    responses = belief.responses.of_plans([left, right])

    def answers(inputs: FloatArray) -> list[FloatArray]:
        """(S, 2) answers to every field, from (S, P + 1) parameters and own difference."""
        return [responses.of_field(number, shifts) for number, shifts in enumerate(belief.shifts(inputs[:, :-1]).T)]

    def difference(answered: list[FloatArray], own: FloatArray) -> FloatArray:
        """(S,) from these."""
        log_time_s = responses.together(answered, len(own))
        apart: FloatArray = log_time_s[:, 0] - log_time_s[:, 1] + own
        return apart

    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((2, SOBOL_DRAWS, len(belief.parameters) + 1))
    scale = rng.choice(belief.scales, (2, SOBOL_DRAWS))
    drawn[..., :-1] *= belief.stds
    drawn[..., -1] *= np.sqrt(scale**2 * max(variance - together, 0.0) + felt**2)
    one, other = drawn
    usual, mixed = answers(one), []
    for column, field in enumerate(belief.field_of.tolist()):
        exchanged = one.copy()
        exchanged[:, column] = other[:, column]
        moved = responses.of_field(field, belief.shifts(exchanged[:, :-1])[:, field])  # the others are as they were
        mixed.append(difference([*usual[:field], moved, *usual[field + 1 :]], one[:, -1]))
    mixed.append(difference(usual, other[:, -1]))
    at_one, at_other = difference(usual, one[:, -1]), difference(answers(other), other[:, -1])
    names = (*(parameter.name for parameter in belief.parameters), OWN)
    varied = float(at_one.std())
    if varied < 1e-12:
        nothing = np.zeros(len(names))
        return Indices(names=names, first=nothing, total=nothing, std=varied, faster=0.5)
    first, whole = sobol_indices(at_one, at_other, np.array(mixed))
    return Indices(names=names, first=first, total=whole, std=varied, faster=float((at_one < 0).mean()))


def sobol_indices(one: FloatArray, other: FloatArray, mixed: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(P,) first-order and total indices, estimates outside of what a share can be pulled back.

    Args:
        one: (S,) values at some draws of all inputs; they vary.
        other: (S,) values at others.
        mixed: (P, S) values at the first draws with each input in turn taken from the others.

    Source:
        Saltelli et al. 2010 (doi:10.1016/j.cpc.2009.09.018), table 2 (b) and (f), as ``scipy.stats.sobol_indices``
        has them, which takes a third of a second to import.
    """
    both = np.array([one, other])
    one, other, mixed = one - both.mean(), other - both.mean(), mixed - both.mean()
    variance = np.var([one, other])
    first = np.mean(other * (mixed - one), axis=-1) / variance
    whole = 0.5 * np.mean((one - mixed) ** 2, axis=-1) / variance
    return np.clip(first, 0.0, 1.0), np.clip(whole, 0.0, 1.0)
