"""Two agents to measure others against: random search, and greedy hill climbing with restarts."""

from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.search.agents.agent import Outcome, SearchSpace


def penalised(outcome: Outcome, penalty: float) -> FloatArray:
    """(N,) seconds with infeasibility graded in: a plan over a limit costs as if it were slower.

    Args:
        outcome: What plans cost.
        penalty: Relative slow-down per unit of excess, and once more for being infeasible at all.
    """
    excess = outcome.total_excess
    return np.where(excess > 0, outcome.step_time_s * (1.0 + penalty * (1.0 + excess)), outcome.step_time_s)


@dataclass(slots=True, kw_only=True)
class RandomSearch:
    """Draws plans anew every time.

    Attributes:
        space: Where to search.
        seed: Of its random numbers.
        batch_size: Plans per question.
    """

    space: SearchSpace
    seed: int = 0
    batch_size: int = 64
    name: str = field(default="random", init=False)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def hyperparameters(self) -> dict[str, float | int | str]:
        """The batch."""
        return {"batch_size": self.batch_size}

    def ask(self, count: int) -> IntArray:
        """As many new plans as fit the batch."""
        return self.space.initial(self.batch_size, self._rng)[:count]

    def tell(self, vectors: IntArray, outcome: Outcome) -> None:
        """Learns nothing."""


@dataclass(slots=True, kw_only=True)
class HillClimbing:
    """Moves to the best of some neighbours while that is an improvement, then starts elsewhere.

    Attributes:
        space: Where to search.
        seed: Of its random numbers.
        batch_size: Neighbours per question.
        patience: Questions without improvement after which it starts elsewhere.
        penalty: See ``penalised``.
    """

    space: SearchSpace
    seed: int = 0
    batch_size: int = 32
    patience: int = 4
    penalty: float = 1.0
    name: str = field(default="greedy", init=False)
    _rng: np.random.Generator = field(init=False)
    _here: IntArray | None = field(default=None, init=False)
    _here_s: float = field(default=np.inf, init=False)
    _stale: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def hyperparameters(self) -> dict[str, float | int | str]:
        """Neighbours, patience and penalty."""
        return {"batch_size": self.batch_size, "patience": self.patience, "penalty": self.penalty}

    def ask(self, count: int) -> IntArray:
        """Neighbours of the plan it stands on, or plans to start from."""
        if self._here is None:
            return self.space.initial(self.batch_size, self._rng)[:count]
        around = np.repeat(self._here[None, :], self.batch_size, axis=0)
        moves = self._rng.integers(0, len(self.space.moves), size=self.batch_size)
        return self.space.propose(around, moves, self._rng)[:count]

    def tell(self, vectors: IntArray, outcome: Outcome) -> None:
        """Step to the best neighbour, or count a question in vain."""
        if not len(vectors):
            return
        energy_s = penalised(outcome, self.penalty)
        best = int(energy_s.argmin())
        if energy_s[best] < self._here_s or self._here is None:
            self._here, self._here_s, self._stale = vectors[best], float(energy_s[best]), 0
            return
        self._stale += 1
        if self._stale >= self.patience:
            self._here, self._here_s, self._stale = None, np.inf, 0
