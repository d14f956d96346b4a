"""Properties of a search, on whatever space, agent and seed hypothesis finds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.rules.base import FRAMEWORKS
from planner.search.agents.agent import Agent
from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.baselines import HillClimbing, RandomSearch
from planner.search.agents.run import Budget, Progress, Search, run
from planner.search.agents.uniform import UniformSpace
from planner.space.constraints import legal
from tests.fakes import gpt, job, mixture
from tests.search_spaces import uniform_space


@st.composite
def spaces(draw: st.DrawFn) -> UniformSpace:
    return uniform_space(
        framework=draw(st.sampled_from(FRAMEWORKS)),
        model=draw(st.sampled_from([gpt, mixture]))(num_layers=draw(st.integers(1, 12))),
        job=job(
            sequence_length=draw(st.sampled_from([512, 8192, 16384])),
            global_batch_size=draw(st.sampled_from([1, 12, 64])),
        ),
        nodes=draw(st.sampled_from([1, 2, 3])),
        memory_bytes=draw(st.sampled_from([1e9, 4e9, 1e12])),
        offload=draw(st.booleans()),
    )


def agent_of(kind: str, space: UniformSpace, seed: int) -> Agent:
    if kind == "anneal":
        return SimulatedAnnealing(space=space, seed=seed, chains=12, cycle=8)
    return (RandomSearch if kind == "random" else HillClimbing)(space=space, seed=seed, batch_size=12)


@settings(max_examples=8, deadline=None)
@given(
    space=spaces(),
    kind=st.sampled_from(["random", "greedy", "anneal"]),
    seed=st.integers(0, 1000),
    short=st.integers(1, 60),
    more=st.integers(0, 60),
)
def test_answers_are_legal_repriced_repeatable_and_never_worse_for_more_budget(
    space: UniformSpace, kind: str, seed: int, short: int, more: int
) -> None:
    first, again, longer = (
        run(Search(space=space, agent=agent_of(kind, space, seed), budget=Budget(evaluations=count)))
        for count in (short, short, short + more)
    )
    assert first.step_time_s == again.step_time_s
    assert first.evaluations == again.evaluations <= short
    assert longer.step_time_s <= first.step_time_s
    if first.vector is not None:
        assert again.vector is not None
        assert (first.vector == again.vector).all()
        plans = space.decode(first.vector[None, :])
        assert legal(plans, space.setting)[0]
        outcome = space.price(first.vector[None, :])
        assert outcome.feasible[0]
        assert outcome.step_time_s[0] == first.step_time_s
        assert (space.encode(plans) == first.vector).all()


@settings(max_examples=6, deadline=None)
@given(space=spaces(), seed=st.integers(0, 1000), stop=st.integers(1, 6))
def test_interrupting_anywhere_returns_the_best_so_far(space: UniformSpace, seed: int, stop: int) -> None:
    seen: list[Progress] = []

    def interrupt(now: Progress) -> None:
        seen.append(now)
        if len(seen) == stop:
            raise KeyboardInterrupt

    search = Search(
        space=space, agent=agent_of("anneal", space, seed), budget=Budget(evaluations=10_000), progress=interrupt
    )
    found = run(search)
    assert found.step_time_s == min([now.step_time_s for now in seen], default=np.inf)
    assert found.status in ("interrupted", "exhausted")
