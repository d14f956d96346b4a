"""ArchGym's protocol (arXiv:2306.08888): agents x hyperparameters x seeds x budgets, on spaces whose optimum is known.

A space is enumerated and priced once; agents then look prices up, which changes nothing they see. One run of
the largest budget tells what every smaller one would have found, since a longer run begins as a shorter one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.question.request import Options, cost_context, resolve_request, setting_of
from planner.search.agents.agent import Agent, Outcome
from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.baselines import HillClimbing, RandomSearch
from planner.search.agents.run import Budget, Search, run
from planner.search.agents.uniform import UniformSpace
from planner.space.enumeration import plan_space

BUDGETS = (64, 256, 1024, 4096, 16384)
CLOSE = 0.01  # regret that counts as found
_CHUNK = 32_768

# Workloads whose optimum is a needle: one to three plans of tens of thousands are within 1 % of it.
INSTANCES: dict[str, tuple[str, str, dict[str, Any], Options]] = {
    "Llama-2-70B, 64 H100": (
        "llama-2-70b",
        "8x8xH100-80GB",
        {"sequence_length": 4096, "global_batch_size": 512},
        Options(framework="megatron", offload=True),
    ),
    "Mixtral 8x7B, 32 A100": (
        "mixtral-8x7b",
        "4x8xA100-80GB",
        {"sequence_length": 4096, "global_batch_size": 96},
        Options(framework="megatron", offload=True),
    ),
    "Llama-2-13B, 8 A100": (
        "llama-2-13b",
        "8xA100-80GB",
        {"sequence_length": 4096, "global_batch_size": 256},
        Options(framework="megatron", offload=True),
    ),
}

Make = Callable[[Any, int], Agent]


def uniform_space(name: str) -> UniformSpace:
    """The space of an instance."""
    model, cluster, job, options = INSTANCES[name]
    request = resolve_request(model, cluster, job, None, options)
    return UniformSpace(setting_of(request), cost_context(request), offload=request.offload)


class PricedSpace:
    """A uniform space with every price in a table."""

    def __init__(self, space: UniformSpace) -> None:
        self.space, self.knobs, self.moves = space, space.knobs, space.moves
        self.initial, self.propose, self.settle = space.initial, space.propose, space.settle
        domain = space.context.cluster.domain_devices
        vectors = space.encode(plan_space(space.setting, domain_devices=domain, offload=space.offload).plans)
        sizes = [len(knob.labels) for knob in space.knobs]
        self._radix = np.cumprod([1, *sizes[:-1]])
        keys = vectors @ self._radix
        order = np.argsort(keys)
        self._keys = keys[order]
        parts = [space.price(vectors[order[at : at + _CHUNK]]) for at in range(0, len(order), _CHUNK)]
        self._step_s = np.concatenate([part.step_time_s for part in parts])
        self._excess = {name: np.concatenate([part.excess[name] for part in parts]) for name in parts[0].excess}
        feasible = np.concatenate([part.feasible for part in parts])
        self.plans, self.fitting = len(keys), int(feasible.sum())
        self.optimum_s = float(self._step_s[feasible].min())
        self.close = int((self._step_s[feasible] <= (1 + CLOSE) * self.optimum_s).sum())

    def price(self, vectors: Any) -> Outcome:
        rows = np.searchsorted(self._keys, vectors @ self._radix)
        return Outcome(step_time_s=self._step_s[rows], excess={name: each[rows] for name, each in self._excess.items()})


def agents() -> dict[str, list[Make]]:
    """Eight settings of every agent, the default first."""
    annealers = [
        {}, {"chains": 32}, {"cycle": 16}, {"cycle": 64}, {"initial_temperature": 0.1},
        {"initial_temperature": 0.01}, {"elite_share": 0.5, "restart_share": 0.25}, {"penalty": 0.25},
    ]  # fmt: skip
    climbers = [
        {}, {"batch_size": 16}, {"batch_size": 64}, {"batch_size": 128}, {"patience": 1}, {"patience": 8},
        {"patience": 16}, {"penalty": 0.25},
    ]  # fmt: skip
    batches = (64, 16, 32, 128, 256, 512, 1024, 2048)
    return {
        "anneal": [lambda space, seed, it=it: SimulatedAnnealing(space=space, seed=seed, **it) for it in annealers],
        "greedy": [lambda space, seed, it=it: HillClimbing(space=space, seed=seed, **it) for it in climbers],
        "random": [lambda space, seed, it=it: RandomSearch(space=space, seed=seed, batch_size=it) for it in batches],
    }


@dataclass(frozen=True)
class Regrets:
    """(settings, seeds, budgets) share by which the best plan found is slower than the optimum."""

    agent: str
    values: np.ndarray
    seconds_per_run: float
    budgets: tuple[int, ...] = BUDGETS

    def rows(self, default_only: bool) -> Iterator[tuple[int, float, float, float]]:
        """Budget, median, worst, and share of the runs within ``CLOSE``."""
        values = self.values[:1] if default_only else self.values
        for at, budget in enumerate(self.budgets):
            each = values[:, :, at].ravel()
            yield budget, float(np.median(each)), float(each.max()), float((each <= CLOSE).mean())


def regrets(space: Any, agent: str, makes: Sequence[Make], seeds: int, budgets: tuple[int, ...] = BUDGETS) -> Regrets:
    """Every setting with every seed."""
    begin = time.process_time()
    found = [
        [_one(space, make(space, seed), budgets) for seed in range(seeds)]
        for make in makes
    ]  # fmt: skip
    runs = len(makes) * seeds
    return Regrets(agent, np.asarray(found), (time.process_time() - begin) / max(runs, 1), budgets)


def _one(space: Any, agent: Agent, budgets: tuple[int, ...]) -> list[float]:
    """One run; once it has found the optimum it ends, since no budget changes its regret any more."""
    budget = Budget(evaluations=budgets[-1])
    result = run(Search(space=space, agent=agent, budget=budget, lower_bound_s=space.optimum_s, tolerance=0.0))
    return [result.best_at(budget) / space.optimum_s - 1.0 for budget in budgets]
