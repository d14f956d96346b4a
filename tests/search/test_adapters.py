"""Adapters: Gymnasium, Optuna and DEAP on a plan space."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
from gymnasium.utils.env_checker import check_env

from planner.search.adapters.deap_evolution import EvolutionAgent
from planner.search.adapters.gymnasium_env import PlanEnv
from planner.search.adapters.optuna_study import NO_PRICE_S, OptunaAgent, constraints, objective
from planner.search.agents.run import Budget, Search, run
from planner.search.agents.uniform import UniformSpace
from tests.search_spaces import uniform_space


@pytest.fixture(scope="module")
def space() -> UniformSpace:
    return uniform_space(offload=True)


def test_gymnasium_accepts_the_environment(space: UniformSpace) -> None:
    check_env(PlanEnv(space), skip_render_check=True)


def test_an_episode_rewards_faster_plans_more_and_ends(space: UniformSpace) -> None:
    env = PlanEnv(space, reference_s=1.0, episode_length=60)
    env.reset(seed=1)
    env.action_space.seed(1)
    told = []
    for step in range(60):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert not terminated
        assert truncated == (step == 59)
        told.append((reward, info["step_time_s"], info["feasible"]))
    feasible = [(reward, seconds) for reward, seconds, fits in told if fits]
    assert feasible
    assert all(reward == pytest.approx(1.0 / seconds) for reward, seconds in feasible)
    assert all(reward < 0 for reward, _, fits in told if not fits)


def test_the_first_feasible_plan_is_the_reference(space: UniformSpace) -> None:
    env = PlanEnv(space)
    env.reset(seed=0)
    env.action_space.seed(0)
    while env.reference_s is None:
        env.step(env.action_space.sample())
    plans = space.initial(200, np.random.default_rng(0))
    best = plans[np.where((outcome := space.price(plans)).feasible, outcome.step_time_s, np.inf).argmin()]
    _, reward, _, _, info = env.step(best)
    assert reward == pytest.approx(env.reference_s / info["step_time_s"])


def test_an_optuna_study_prices_plans_and_sees_their_limits(space: UniformSpace) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective(space), n_trials=60)
    limits = [constraints(trial) for trial in study.trials]
    assert all(len(excess) == 3 and min(excess) >= 0 for excess in limits)
    for trial, excess in zip(study.trials, limits, strict=True):
        assert trial.value is not None
        assert (trial.value == NO_PRICE_S) == (excess[0] > 0)
        assert trial.params.keys() == {knob.name for knob in space.knobs}


@pytest.mark.parametrize("kind", [OptunaAgent, EvolutionAgent])
def test_libraries_search_as_agents(kind: type, space: UniformSpace) -> None:
    runs = [
        run(Search(space=space, agent=kind(space=space, seed=2, batch_size=16), budget=Budget(evaluations=count)))
        for count in (24, 48, 48)
    ]
    assert runs[0].step_time_s >= runs[1].step_time_s == runs[2].step_time_s
    assert runs[1].vector is not None
    assert space.price(runs[1].vector[None, :]).step_time_s[0] == runs[1].step_time_s
    assert runs[0].agent in ("optuna-tpe", "deap-ga")


def test_evolution_beats_its_own_first_generation_and_leaves_the_random_module_alone(space: UniformSpace) -> None:
    random.seed(7)
    expected = random.Random(7).random()
    found = run(Search(space=space, agent=EvolutionAgent(space=space, seed=0), budget=Budget(evaluations=1280)))
    assert random.random() == expected
    assert found.step_time_s < found.best_at(64)


def test_agents_in_threads_search_as_they_do_alone(space: UniformSpace) -> None:
    vectors = space.initial(64, np.random.default_rng(0))
    outcome = space.price(vectors)

    def children(seed: int) -> list[list[int]]:
        agent = EvolutionAgent(space=space, seed=seed)
        agent.tell(vectors, outcome)
        return [vector.tolist() for _ in range(20) for vector in agent.ask(64)]

    alone = [children(seed) for seed in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(children, range(4))) == alone
    finally:
        sys.setswitchinterval(before)


def test_searching_needs_none_of_the_libraries() -> None:
    code = "import sys, planner.search.agents.run, planner.search.agents.uniform, planner.search.agents.log; " + (
        "sys.exit(any(name in sys.modules for name in ('optuna', 'gymnasium', 'deap', 'lightgbm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_knob_labels_match_the_action_space(space: UniformSpace) -> None:
    env = PlanEnv(space)
    assert env.action_space.nvec.tolist() == [len(knob.labels) for knob in space.knobs]
