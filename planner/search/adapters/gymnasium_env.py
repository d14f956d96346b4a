"""A search space as a Gymnasium environment, one plan per step (ArchGym's interface, arXiv:2306.08888).

An action sets every knob. The observation is what the plan costs: the decimal logarithm of its step time,
and for each limit the excess e as e / (1 + e). The reward is the reference time over the step time, so that
1 is as fast as the reference and 2 twice as fast; a plan over a limit earns minus its observed excess.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from costmodels.plan import IntArray
from planner.search.agents.agent import SearchSpace

Observation = NDArray[np.float32]
Action = NDArray[np.int64]
_DECADES = 9.0  # step times are told from 10^-9 to 10^9 seconds; a plan without a price is at the upper end


class PlanEnv(gymnasium.Env[Observation, Action]):
    """Choose plans one after the other; an episode ends after so many.

    Args:
        space: Where to search.
        reference_s: Step time that earns the reward 1; that of the first feasible plan if None.
        episode_length: Plans per episode.
    """

    def __init__(self, space: SearchSpace, *, reference_s: float | None = None, episode_length: int = 64) -> None:
        self.space = space
        self.reference_s = reference_s
        self.episode_length = episode_length
        self.action_space = gymnasium.spaces.MultiDiscrete(np.asarray([len(knob.labels) for knob in space.knobs]))
        self._limits = tuple(space.price(space.initial(1, np.random.default_rng(0))).excess)
        low = np.asarray([-_DECADES, *[0.0 for _ in self._limits]], dtype=np.float32)
        high = np.asarray([_DECADES, *[1.0 for _ in self._limits]], dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(low=low, high=high, dtype=np.float32)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode with a random plan, whose cost is observed."""
        super().reset(seed=seed)
        self._steps = 0
        observation, _, info = self._price(self.space.initial(1, self.np_random))
        return observation, info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Price one plan."""
        self._steps += 1
        observation, reward, info = self._price(self.space.settle(np.asarray(action, dtype=np.int64)[None, :]))
        return observation, reward, False, self._steps >= self.episode_length, info

    def _price(self, vectors: IntArray) -> tuple[Observation, float, dict[str, Any]]:
        outcome = self.space.price(vectors)
        step_s = float(outcome.step_time_s[0])
        excess = np.asarray([outcome.excess[name][0] for name in self._limits])
        decades = np.log10(step_s) if 0 < step_s < np.inf else _DECADES
        seen = np.asarray([np.clip(decades, -_DECADES, _DECADES), *(excess / (1 + excess))], dtype=np.float32)
        feasible = bool(outcome.feasible[0])
        if feasible and self.reference_s is None:
            self.reference_s = step_s
        reward = (self.reference_s or step_s) / step_s if feasible else -float(seen[1:].sum())
        info = {"vector": vectors[0], "step_time_s": step_s, "feasible": feasible}
        return seen, reward, info
