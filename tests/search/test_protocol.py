"""The protocol that compares agents, on a space small enough for a test."""

import numpy as np
import pytest

from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.baselines import HillClimbing, RandomSearch
from tests.search.protocol import INSTANCES, PricedSpace, agents, regrets
from tests.search_spaces import uniform_space

BUDGETS = (64, 512, 2048)


@pytest.fixture(scope="module")
def space() -> PricedSpace:
    return PricedSpace(uniform_space(offload=True))


def test_looked_up_prices_are_the_prices(space: PricedSpace) -> None:
    vectors = space.initial(300, np.random.default_rng(0))
    looked_up, priced = space.price(vectors), space.space.price(vectors)
    assert (looked_up.step_time_s == priced.step_time_s).all()
    assert (looked_up.feasible == priced.feasible).all()
    assert looked_up.step_time_s[looked_up.feasible].min() >= space.optimum_s
    assert 1 <= space.close <= space.fitting < space.plans


def test_regret_falls_with_the_budget_and_the_annealer_finds_the_optimum(space: PricedSpace) -> None:
    kinds = {"anneal": SimulatedAnnealing, "greedy": HillClimbing, "random": RandomSearch}
    found = {
        name: regrets(space, name, [lambda s, seed, kind=kind: kind(space=s, seed=seed)], 3, BUDGETS)
        for name, kind in kinds.items()
    }
    for each in found.values():
        assert each.values.shape == (1, 3, 3)
        assert (each.values >= 0).all()
        assert (np.diff(each.values, axis=2) <= 0).all()
    assert found["anneal"].values[0, :, -1].max() <= 0.01
    budget, median, worst, close = list(found["anneal"].rows(default_only=True))[-1]
    assert (budget, close) == (2048, 1.0)
    assert median <= worst <= 0.01


def test_every_agent_has_eight_settings_the_default_first(space: PricedSpace) -> None:
    for name, makes in agents().items():
        settings = [tuple(sorted(make(space, 0).hyperparameters().items())) for make in makes]
        assert len(set(settings)) == 8
        default = {"anneal": SimulatedAnnealing, "greedy": HillClimbing, "random": RandomSearch}[name]
        assert dict(settings[0]) == default(space=space).hyperparameters()
    assert len(INSTANCES) >= 3
