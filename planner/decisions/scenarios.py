"""Scenarios: draws from a belief, the same for every plan, so that plans are compared in the same world.

Draws are pseudo-random with a seed: the same question has the same answer.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray
from planner.answer.memory_law import FAR_SHARE
from planner.decisions.belief import Belief
from planner.decisions.kinship import NOISE
from planner.decisions.portfolio import weighted_quantiles

DRAWS = 4096  # probabilities are right to 0.8 % (one standard error at worst), means of regrets to a twentieth of that
LOW, HIGH = 0.05, 0.95  # ends of a 90 % interval
_JITTER = 1e-9  # keeps the Cholesky factor of nearly equal plans' covariance real


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenarios:
    """S possible worlds for A plans.

    Attributes:
        theta: (S, P) parameters.
        level: (S,) log of what all step times of the user are multiplied by.
        scale: (S,) factor of own errors and noise.
        own: (S, A) log of what each plan's step time is multiplied by besides.
        log_time_s: (S, A) log of the true step time in seconds.
        memory_log: (S, A) log of the true peak over usable memory.
        memory_shared_std: (S,) standard deviation of what its errors share, by the kind of the user.
        noise: (S,) what one more measurement of a step adds to the log of the true step time.
        weight: (S,) how likely each is; they add up to 1.
    """

    theta: FloatArray
    level: FloatArray
    scale: FloatArray
    own: FloatArray
    log_time_s: FloatArray
    memory_log: FloatArray
    memory_shared_std: FloatArray
    noise: FloatArray
    weight: FloatArray

    @property
    def died(self) -> BoolArray:
        """(S, A) whether a plan runs out of memory."""
        died: BoolArray = self.memory_log > 0
        return died

    @property
    def effective_draws(self) -> float:
        """How many equally likely scenarios carry as much information (Kish: 1 / sum of squared weights)."""
        return float(1 / (self.weight**2).sum())

    def measured_s(self, row: int) -> tuple[float, float, float]:
        """Median, low and high end of the 90 % interval of what a run of one plan will measure, in seconds."""
        log_s = (self.log_time_s[:, row] + self.noise)[:, None]
        middle, low, high = np.exp(weighted_quantiles(log_s, self.weight, (0.5, LOW, HIGH))[:, 0]).tolist()
        return middle, low, high

    def take(self, count: int) -> "Scenarios":
        """The same worlds for the first plans only."""
        return Scenarios(
            theta=self.theta,
            level=self.level,
            scale=self.scale,
            own=self.own[:, :count],
            log_time_s=self.log_time_s[:, :count],
            memory_log=self.memory_log[:, :count],
            memory_shared_std=self.memory_shared_std,
            noise=self.noise,
            weight=self.weight,
        )


def draw(belief: Belief, *, seed: int, draws: int = DRAWS) -> Scenarios:
    """Draw worlds from a belief.

    Args:
        belief: About A plans.
        seed: The same seed draws the same worlds.
        draws: How many.
    """
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((draws, len(belief.parameters))) * belief.stds
    level = rng.standard_normal(draws) * belief.level_std
    factor = np.linalg.cholesky(belief.kin + _JITTER * np.eye(len(belief)))
    scale = belief.scales[np.arange(draws) % len(belief.scales)]
    own = rng.standard_normal((draws, len(belief))) @ factor.T * belief.own_std * scale[:, None]
    shared = rng.standard_normal(draws)
    apart = rng.standard_normal((draws, len(belief))) @ factor.T * belief.memory.own_std
    noise = NOISE * scale * rng.standard_normal(draws)
    far = rng.permutation(draws) < round(FAR_SHARE * draws)
    shared_std = np.where(far, belief.memory.far_std, belief.memory.shared_std)
    return Scenarios(
        theta=theta,
        level=level,
        scale=scale,
        own=own,
        log_time_s=times_of(belief, theta, level, own),
        memory_log=belief.memory_log + (shared * shared_std)[:, None] + apart,
        memory_shared_std=shared_std,
        noise=noise,
        weight=np.full(draws, 1 / draws),
    )


def times_of(belief: Belief, theta: FloatArray, level: FloatArray, own: FloatArray) -> FloatArray:
    """(S, A) log step times of worlds given by their parameters, level and own errors."""
    return belief.responses.log_times(belief.shifts(theta)) + level[:, None] * belief.level_reach + own
