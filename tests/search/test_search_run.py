"""Agents and the run around them: budgets, anytime answers, restarts, and what is reported."""

from typing import Any

import numpy as np
import pytest

from costmodels.plan import IntArray
from planner.search.agents.agent import Agent, Outcome
from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.baselines import HillClimbing, RandomSearch, penalised
from planner.search.agents.memory import PriceMemory
from planner.search.agents.run import Budget, Progress, Search, run
from planner.search.agents.uniform import UniformSpace
from planner.space.enumeration import plan_space
from profiles.errors import SpecError
from tests.fakes import gpt, job
from tests.search_spaces import Ticks, uniform_space

AGENTS = {"random": RandomSearch, "greedy": HillClimbing, "anneal": SimulatedAnnealing}


@pytest.fixture(scope="module")
def space() -> UniformSpace:
    return uniform_space(offload=True)


@pytest.fixture(scope="module")
def optimum_s(space: UniformSpace) -> float:
    domain = space.context.cluster.domain_devices
    outcome = space.price(space.encode(plan_space(space.setting, domain_devices=domain, offload=True).plans))
    return float(outcome.step_time_s[outcome.feasible].min())


def search(space: UniformSpace, agent: Agent, evaluations: int, **settings: Any) -> Search:
    return Search(space=space, agent=agent, budget=Budget(evaluations=evaluations), **settings)


@pytest.mark.parametrize("kind", AGENTS)
def test_the_best_plan_is_feasible_and_costs_what_is_listed(kind: str, space: UniformSpace) -> None:
    found = run(search(space, AGENTS[kind](space=space, seed=3), 500))
    assert found.vector is not None
    again = space.price(found.vector[None, :])
    assert again.feasible[0]
    assert again.step_time_s[0] == found.step_time_s
    assert found.status == "evaluations"
    assert found.evaluations == 500
    assert found.agent == kind
    assert found.hyperparameters["batch_size" if kind != "anneal" else "chains"]


@pytest.mark.parametrize("kind", AGENTS)
def test_a_longer_run_begins_as_the_shorter_one(kind: str, space: UniformSpace) -> None:
    short = run(search(space, AGENTS[kind](space=space, seed=5), 150))
    long = run(search(space, AGENTS[kind](space=space, seed=5), 700))
    assert [(item.evaluations, item.step_time_s) for item in short.trace] == [
        (item.evaluations, item.step_time_s) for item in long.trace if item.evaluations <= 150
    ]
    assert long.step_time_s <= short.step_time_s
    assert long.best_at(150) == short.step_time_s


def test_seeds_differ(space: UniformSpace) -> None:
    runs = [run(search(space, SimulatedAnnealing(space=space, seed=seed), 64)) for seed in (1, 2)]
    assert runs[0].trace[0].step_time_s != runs[1].trace[0].step_time_s


def test_the_annealer_finds_the_optimum(space: UniformSpace, optimum_s: float) -> None:
    found = run(search(space, SimulatedAnnealing(space=space, seed=0), 6000, lower_bound_s=optimum_s))
    assert found.step_time_s == pytest.approx(optimum_s, rel=1e-9)
    assert found.status == "bound"
    assert found.gap == 0
    assert found.evaluations < 6000


def test_improvements_come_one_by_one_and_the_search_can_be_left(space: UniformSpace) -> None:
    searching = search(space, SimulatedAnnealing(space=space, seed=1), 4000)
    seen = []
    for improvement in searching.improvements():
        seen.append(improvement.step_time_s)
        if len(seen) == 3:
            break
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 3
    left = searching.result()
    assert left.step_time_s <= seen[-1]
    assert left.evaluations < 4000


def test_interrupting_returns_the_best_so_far(space: UniformSpace) -> None:
    def interrupt(now: Progress) -> None:
        if now.evaluations >= 256:
            raise KeyboardInterrupt

    found = run(search(space, SimulatedAnnealing(space=space, seed=1), 100_000, progress=interrupt))
    assert found.status == "interrupted"
    assert found.vector is not None
    same = run(search(space, SimulatedAnnealing(space=space, seed=1), found.evaluations))
    assert found.step_time_s == same.step_time_s
    assert 256 <= found.evaluations < 320


def test_progress_is_told_and_can_stop_the_run(space: UniformSpace) -> None:
    told: list[Progress] = []

    def three(now: Progress) -> bool:
        told.append(now)
        return len(told) < 3

    found = run(search(space, RandomSearch(space=space, batch_size=10), 1000, progress=three))
    assert found.status == "stopped"
    assert [now.evaluations for now in told] == [10, 20, 30]


def test_a_time_budget_ends_the_run(space: UniformSpace) -> None:
    agent = RandomSearch(space=space, batch_size=10)
    found = run(Search(space=space, agent=agent, budget=Budget(seconds=4.5), clock=Ticks()))
    assert found.status == "seconds"
    assert found.evaluations == 50
    assert found.elapsed_s == 5


def test_without_a_feasible_plan_the_nearest_is_named() -> None:
    tight = uniform_space(memory_bytes=3e8)
    priced: list[float] = []

    class Excess:
        def write(self, vectors: IntArray, outcome: Outcome, *, agent: Agent, step: int) -> None:
            priced.extend(outcome.total_excess)

    found = run(search(tight, SimulatedAnnealing(space=tight, seed=0), 640, log=Excess()))
    assert found.vector is None
    assert found.gap is None
    assert np.isinf(found.step_time_s)
    assert found.nearest is not None
    excess = tight.price(found.nearest[None, :]).total_excess[0]
    assert 0 < excess == min(priced)
    assert len(priced) == 640


@pytest.mark.long
def test_a_small_space_is_exhausted() -> None:
    tiny = uniform_space(nodes=1, model=gpt(num_layers=1), job=job(global_batch_size=1), framework="huggingface")
    found = run(search(tiny, SimulatedAnnealing(space=tiny, seed=0), 10**9))
    assert found.status == "exhausted"
    assert found.evaluations < 1000


def test_chains_report_temperature_and_acceptance(space: UniformSpace) -> None:
    agent = SimulatedAnnealing(space=space, seed=4, chains=32)
    chains = run(search(space, agent, 1000)).chains
    assert chains is not None
    assert chains.temperature.shape == chains.acceptance_rate.shape == (32,)
    assert (chains.temperature <= agent.initial_temperature).all()
    assert (chains.temperature >= agent.final_temperature).all()
    # Neither a random walk (the reference's chain accepts 99.9 %) nor a descent that never moves.
    assert 0.02 < chains.acceptance_rate.mean() < 0.7
    assert (chains.proposed > chains.recalled).all()
    assert sum(chains.move_proposed.values()) == chains.proposed.sum()
    assert sum(chains.move_accepted.values()) == chains.accepted.sum()


def test_temperature_is_in_units_of_the_cost_and_falls_geometrically(space: UniformSpace) -> None:
    agent = SimulatedAnnealing(space=space, chains=4, cycle=5, initial_temperature=0.16, final_temperature=0.01)
    seen = []
    for _ in range(5):
        seen.append(agent.temperature[0])
        vectors = agent.ask(4)
        agent.tell(vectors, space.price(vectors))
    assert seen == pytest.approx([0.16, 0.08, 0.04, 0.02, 0.01])
    assert agent.temperature[0] == pytest.approx(0.16)


def test_metropolis_takes_a_slower_plan_with_probability_exp_minus_its_share_over_the_temperature() -> None:
    space = uniform_space()
    agent = SimulatedAnnealing(space=space, chains=20_000, initial_temperature=0.05, final_temperature=0.05)
    rows = np.arange(20_000)
    agent._energy_s[:] = 2.0
    agent._decide(rows, agent._here, np.full(20_000, 2.1))
    taken = (agent._energy_s == 2.1).mean()
    assert taken == pytest.approx(np.exp(-1), abs=0.015)


def test_a_start_is_where_chains_begin(space: UniformSpace) -> None:
    start = space.initial(2, np.random.default_rng(9))
    agent = SimulatedAnnealing(space=space, chains=4, start=start)
    assert (agent.ask(4)[:2] == start).all()


def test_penalties_grade_infeasibility(space: UniformSpace) -> None:
    outcome = space.price(space.initial(400, np.random.default_rng(8)))
    energy_s = penalised(outcome, 0.5)
    over = outcome.total_excess > 0
    assert (energy_s[~over] == outcome.step_time_s[~over]).all()
    assert energy_s[over] == pytest.approx(outcome.step_time_s[over] * (1.5 + 0.5 * outcome.total_excess[over]))


@pytest.mark.parametrize(
    ("values", "field"),
    [({}, "budget"), ({"evaluations": 0}, "budget.evaluations"), ({"seconds": 0.0}, "budget.seconds")],
)
def test_budgets_are_checked(values: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Budget(**values)
    assert caught.value.field == field


@pytest.mark.parametrize("values", [{"chains": 0}, {"cycle": 1}, {"final_temperature": 0.0}])
def test_an_annealer_that_cannot_run_is_refused(values: dict[str, Any], space: UniformSpace) -> None:
    with pytest.raises(ValueError, match="needs chains"):
        SimulatedAnnealing(space=space, **values)


def test_memory_recalls_what_it_was_told_and_nothing_else() -> None:
    memory = PriceMemory(knobs=7, slots=1 << 12)
    vectors = np.random.default_rng(0).integers(0, 50, size=(1000, 7))
    keys = memory.keys(vectors)
    assert len(np.unique(keys)) == len(np.unique(vectors, axis=0))
    assert np.isnan(memory.recall(keys)).all()
    memory.remember(keys, np.arange(1000.0))
    recalled = memory.recall(keys)
    kept = ~np.isnan(recalled)
    assert kept.mean() > 0.8
    assert (recalled[kept] == np.arange(1000.0)[kept]).all()
    assert np.isnan(memory.recall(memory.keys(vectors + 50))).all()


def test_a_key_is_claimed_once_until_it_is_given_back() -> None:
    memory = PriceMemory(knobs=3, slots=1 << 12)
    keys = memory.keys(np.random.default_rng(0).integers(0, 50, size=(100, 3)))
    assert len(np.unique(keys)) == 100
    first = memory.claim(np.concatenate([keys, keys[:10], keys[:10]]))
    assert not first[100:].any()
    assert first[:100].sum() > 90  # the others fall on the place of one before them
    assert not memory.claim(keys[first[:100]]).any()
    assert memory.claim(keys[~first[:100]]).all()
    memory.disclaim(keys[:5])
    assert memory.claim(keys).tolist()[:5] == [True] * 5


def test_no_question_asks_for_a_plan_twice(space: UniformSpace) -> None:
    agent = SimulatedAnnealing(space=space, chains=64)
    seen: set[bytes] = set()
    for count in (64, 64, 3, 64, 64):  # of those left out when fewer are wanted none is lost
        vectors = agent.ask(count)
        assert len(vectors) <= count
        rows = {row.tobytes() for row in vectors}
        assert len(seen) == 0 or len(rows) == len(vectors)
        assert not rows & seen
        seen |= rows
        agent.tell(vectors, space.price(vectors))
