"""Optuna on a search space: as an objective of an Optuna study, and as an agent of a search.

``objective`` is for those who run studies: it suggests every knob and records limits as constraints.
``OptunaAgent`` puts any Optuna sampler behind ask and tell, with the budget, trace and log of every agent.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from costmodels.plan import IntArray
from planner.search.agents.agent import Outcome, SearchSpace
from planner.search.agents.baselines import penalised

_EXCESS = "excess"
NO_PRICE_S = 1e12  # what a plan without a price is told to take: longer than any step


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Every knob as an Optuna distribution over the positions of its options."""
    return {
        knob.name: IntDistribution(0, len(knob.labels) - 1)
        if knob.ordered
        else CategoricalDistribution(tuple(range(len(knob.labels))))
        for knob in space.knobs
    }


def objective(space: SearchSpace) -> Callable[[optuna.Trial], float]:
    """The step time in seconds as a function of a trial; infeasible plans by ``constraints``."""
    ranges = distributions(space)

    def value(trial: optuna.Trial) -> float:
        row = [trial._suggest(name, distribution) for name, distribution in ranges.items()]
        outcome = space.price(space.settle(np.asarray([row], dtype=np.int64)))
        trial.set_user_attr(_EXCESS, [float(degree[0]) for degree in outcome.excess.values()])
        return float(np.minimum(outcome.step_time_s[0], NO_PRICE_S))

    return value


def constraints(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    """For a sampler's ``constraints_func``: the excess over each limit, feasible at 0."""
    excess: list[float] = trial.user_attrs[_EXCESS]
    return excess


@dataclass(slots=True, kw_only=True)
class OptunaAgent:
    """An Optuna sampler as an agent.

    Attributes:
        space: Where to search.
        seed: Of the sampler.
        batch_size: Plans per question; a sampler learns between questions only.
        sampler: The sampler; TPE (Bergstra et al. 2011) with the seed if None.
        penalty: See ``baselines.penalised``.
    """

    space: SearchSpace
    seed: int = 0
    batch_size: int = 16
    sampler: optuna.samplers.BaseSampler | None = None
    penalty: float = 1.0
    name: str = field(init=False)
    _study: optuna.Study = field(init=False)
    _asked: list[optuna.Trial] = field(default_factory=list, init=False)
    _ranges: dict[str, BaseDistribution] = field(init=False)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = self.sampler or optuna.samplers.TPESampler(seed=self.seed)
        self.name = f"optuna-{type(sampler).__name__.removesuffix('Sampler').lower()}"
        self._study = optuna.create_study(sampler=sampler)
        self._ranges = distributions(self.space)

    def hyperparameters(self) -> dict[str, float | int | str]:
        """Sampler, batch and penalty."""
        return {"sampler": self.name, "batch_size": self.batch_size, "penalty": self.penalty}

    def ask(self, count: int) -> IntArray:
        """What the sampler suggests."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._asked = [self._study.ask(self._ranges) for _ in range(self.batch_size)][:count]
        rows = [[trial.params[knob.name] for knob in self.space.knobs] for trial in self._asked]
        return self.space.settle(np.asarray(rows, dtype=np.int64).reshape(-1, len(self.space.knobs)))

    def tell(self, vectors: IntArray, outcome: Outcome) -> None:
        """Report penalised seconds."""
        for trial, energy_s in zip(self._asked, penalised(outcome, self.penalty), strict=True):
            self._study.tell(trial, float(np.minimum(energy_s, NO_PRICE_S)))
