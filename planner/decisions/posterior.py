"""What trials teach: scenarios moved and weighed so that they agree with what was measured.

Step times and printed peaks move the scenarios (Matheron's rule, also known as pathwise conditioning: every draw is
corrected by the regression of everything on what was observed; exact for the linear law, and the table of ``responses``
then gives the step times of the corrected parameters). The factor of the user's own errors and noise, and of which kind
the user's peaks are, is learnt by weights: within one the law is linear, and its scenarios count by how likely it makes
what was measured. Verdicts (ran, died) weigh them too: a scenario counts by the probability of the verdicts in it,
softened as in ``planner.validate.memory_fit``. How many equally likely scenarios the weights leave is stated with every
answer.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.decisions.belief import Belief
from planner.decisions.kinship import NOISE
from planner.decisions.scenarios import Scenarios, times_of
from planner.validate.memory_fit import MEASUREMENT_STD as PEAK_STD
from planner.validate.memory_fit import VERDICT_STD, WRONG_VERDICTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What became of T trials; each is one of the belief's plans.

    Attributes:
        rows: (T,) numbers of the plans.
        log_time_s: (T,) log of the measured seconds of a step; NaN where there is none.
        memory_error: (T,) log of the measured over the predicted peak; NaN where there is none.
        died, ran: (T,) what became of the run.
    """

    rows: IntArray
    log_time_s: FloatArray
    memory_error: FloatArray
    died: BoolArray
    ran: BoolArray


def condition(belief: Belief, scenarios: Scenarios, seen: Observations, *, seed: int) -> Scenarios:
    """The scenarios after some trials.

    Args:
        belief: What they were drawn from.
        scenarios: Before.
        seen: The trials.
        seed: Of the noise of measurements.
    """
    rng = np.random.default_rng(seed + 1)  # apart from the draws of the scenarios themselves
    timed = np.isfinite(seen.log_time_s)
    if timed.any():
        scenarios = _with_times(belief, scenarios, seen.rows[timed], seen.log_time_s[timed], rng)
    weighed = np.isfinite(seen.memory_error)
    if weighed.any():
        scenarios = _with_peaks(belief, scenarios, seen.rows[weighed], seen.memory_error[weighed], rng)
    return _with_verdicts(scenarios, seen)


def surprises(belief: Belief, seen: Observations) -> FloatArray:
    """(T,) how many standard deviations each measured time is from what was expected; NaN where there is none."""
    spread = np.sqrt(np.diag(_time_covariance(belief, seen.rows, belief.mean_square)))
    expected = np.log(belief.responses.base_s[seen.rows])
    return np.asarray((seen.log_time_s - expected) / spread, dtype=np.float64)


def _time_covariance(belief: Belief, rows: IntArray, square: float) -> FloatArray:
    """(T, T) covariance of measured log step times, own errors and noise larger by a factor of that square."""
    moved = belief.slopes[:, rows] * belief.stds[:, None]
    level, own = belief.level_std * belief.level_reach[rows], belief.own_std[rows]
    apart = own[:, None] * own * belief.kin[np.ix_(rows, rows)]
    apart[np.diag_indices_from(apart)] += NOISE**2
    covariance: FloatArray = moved.T @ moved + np.outer(level, level) + square * apart
    return covariance


def _with_times(
    belief: Belief, scenarios: Scenarios, rows: IntArray, log_time_s: FloatArray, rng: np.random.Generator
) -> Scenarios:
    noise = NOISE * scenarios.scale[:, None] * rng.standard_normal((len(scenarios.weight), len(rows)))
    missed = log_time_s - scenarios.log_time_s[:, rows] - noise
    surprise = log_time_s - np.log(belief.responses.base_s[rows])
    pull, told = np.empty_like(missed), np.empty(len(missed))  # (S, T), and (S,) log likelihoods of the factors
    for scale in np.unique(scenarios.scale).tolist():
        of = scenarios.scale == scale
        covariance = _time_covariance(belief, rows, scale**2)
        pull[of] = np.linalg.solve(covariance, missed[of].T).T
        told[of] = _log_likelihood(surprise, covariance)
    theta = scenarios.theta + pull @ (belief.slopes[:, rows] * belief.stds[:, None] ** 2).T
    level = scenarios.level + belief.level_std**2 * pull @ belief.level_reach[rows]
    alike = belief.own_std[rows][:, None] * belief.kin[rows] * belief.own_std
    own = scenarios.own + scenarios.scale[:, None] ** 2 * (pull @ alike)
    return replace(
        scenarios,
        theta=theta,
        level=level,
        own=own,
        log_time_s=times_of(belief, theta, level, own),
        weight=_weighed(scenarios.weight, told),
    )


def _with_peaks(
    belief: Belief, scenarios: Scenarios, rows: IntArray, error: FloatArray, rng: np.random.Generator
) -> Scenarios:
    noise = PEAK_STD * rng.standard_normal((len(scenarios.weight), len(rows)))
    missed = error - (scenarios.memory_log[:, rows] - belief.memory_log[rows]) - noise
    alike = belief.memory.own_std**2 * belief.kin[rows]
    moved, told = np.empty_like(scenarios.memory_log), np.empty(len(missed))
    for shared_std in np.unique(scenarios.memory_shared_std).tolist():
        of = scenarios.memory_shared_std == shared_std
        together = shared_std**2 + alike
        covariance = together[:, rows] + PEAK_STD**2 * np.eye(len(rows))
        moved[of] = np.linalg.solve(covariance, missed[of].T).T @ together
        told[of] = _log_likelihood(error, covariance)
    return replace(scenarios, memory_log=scenarios.memory_log + moved, weight=_weighed(scenarios.weight, told))


def _log_likelihood(errors: FloatArray, covariance: FloatArray) -> float:
    """Of (T,) errors under a normal law, up to a constant."""
    return -0.5 * float(np.linalg.slogdet(covariance)[1] + errors @ np.linalg.solve(covariance, errors))


def _weighed(weight: FloatArray, log_likelihood: FloatArray) -> FloatArray:
    """(S,) weights of scenarios once they are also weighed by the likelihood of what was measured in each."""
    weighed = weight * np.exp(log_likelihood - log_likelihood.max())
    return np.asarray(weighed / weighed.sum(), dtype=np.float64)


def _with_verdicts(scenarios: Scenarios, seen: Observations) -> Scenarios:
    weight = scenarios.weight.copy()
    for row, died, ran in zip(seen.rows.tolist(), seen.died.tolist(), seen.ran.tolist(), strict=True):
        if died or ran:
            over = ndtr((1.0 if died else -1.0) * scenarios.memory_log[:, row] / VERDICT_STD)
            weight *= WRONG_VERDICTS + (1 - 2 * WRONG_VERDICTS) * over
    return replace(scenarios, weight=weight / weight.sum())
