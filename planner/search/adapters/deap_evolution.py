"""A genetic algorithm on a search space, from DEAP's operators (Fortin et al. 2012, JMLR 13:2171).

Tournament selection, uniform crossover and per-knob mutation, with the best plans kept: a generation is
one question.
"""

import random
import threading
from dataclasses import dataclass, field

import numpy as np
from deap import base, tools

from costmodels.plan import FloatArray, IntArray
from planner.search.agents.agent import Outcome, SearchSpace
from planner.search.agents.baselines import penalised

_DRAWING = threading.Lock()


class _Fitness(base.Fitness):  # type: ignore[misc]  # DEAP is not typed
    """Seconds, the fewer the better."""

    weights = (-1.0,)


class _Individual(list[int]):
    """Knob positions with their fitness, as DEAP's operators want them."""

    def __init__(self, knobs: list[int]) -> None:
        super().__init__(knobs)
        self.fitness = _Fitness()


@dataclass(slots=True, kw_only=True)
class EvolutionAgent:
    """A genetic algorithm as an agent.

    Attributes:
        space: Where to search.
        seed: Of its random numbers.
        batch_size: Plans per generation.
        crossover: Probability that two parents mix.
        mutation: Probability that a knob changes.
        tournament: Plans of which the best becomes a parent.
        elite: Best plans that stay among the parents.
        penalty: See ``baselines.penalised``.
    """

    space: SearchSpace
    seed: int = 0
    batch_size: int = 64
    crossover: float = 0.7
    mutation: float = 0.1
    tournament: int = 3
    elite: int = 16
    penalty: float = 1.0
    name: str = field(default="deap-ga", init=False)
    _rng: np.random.Generator = field(init=False)
    _parents: list[_Individual] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def hyperparameters(self) -> dict[str, float | int | str]:
        """Everything that shapes a run besides space and seed."""
        names = ("batch_size", "crossover", "mutation", "tournament", "elite", "penalty")
        return {name: getattr(self, name) for name in names}

    def ask(self, count: int) -> IntArray:
        """Random plans first, then children of the parents."""
        if not self._parents:
            return self.space.initial(self.batch_size, self._rng)[:count]
        upper = [len(knob.labels) - 1 for knob in self.space.knobs]
        # DEAP draws from the random module: give it this agent's numbers, and no other's, and put the module back.
        with _DRAWING:
            state = random.getstate()
            random.seed(int(self._rng.integers(1 << 62)))
            try:
                chosen = tools.selTournament(self._parents, self.batch_size, self.tournament)
                children = [_Individual(list(parent)) for parent in chosen]
                for one, other in zip(children[::2], children[1::2], strict=False):
                    if random.random() < self.crossover:
                        tools.cxUniform(one, other, 0.5)
                for child in children:
                    tools.mutUniformInt(child, 0, upper, self.mutation)
            finally:
                random.setstate(state)
        return self.space.settle(np.asarray(children, dtype=np.int64))[:count]

    def tell(self, vectors: IntArray, outcome: Outcome) -> None:
        """The best of parents and children become the parents of the next generation."""
        energy_s: FloatArray = penalised(outcome, self.penalty)
        for vector, seconds in zip(vectors.tolist(), energy_s.tolist(), strict=True):
            child = _Individual(vector)
            child.fitness.values = (seconds,)
            self._parents.append(child)
        kept = tools.selBest(self._parents, self.elite)
        fresh = self._parents[-len(vectors) :] if len(vectors) else []
        self._parents = [*kept, *(child for child in fresh if child not in kept)]
