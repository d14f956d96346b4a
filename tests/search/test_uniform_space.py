"""The uniform space as knobs: exactly the plans that enumeration lists, and moves between them."""

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from planner.rules.base import FRAMEWORKS
from planner.search.agents.uniform import UniformSpace
from planner.search.agents.uniform_moves import MOVES
from planner.space.constraints import legal
from planner.space.enumeration import plan_space
from tests.fakes import gpt, job, mixture
from tests.search_spaces import rows, uniform_space

SPACES = {
    "dense": {},
    "mixture": {"model": mixture(num_layers=6), "nodes": 3, "job": job(global_batch_size=48)},
    "long": {"model": gpt(num_layers=10), "job": job(sequence_length=16384, global_batch_size=16), "offload": True},
    "one_device": {"nodes": 1, "offload": True},
}


def enumerated(space: UniformSpace) -> np.ndarray:
    domain = space.context.cluster.domain_devices
    plans = plan_space(space.setting, domain_devices=domain, pins=space.pins, offload=space.offload).plans
    return space.encode(plans)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", SPACES)
def test_knobs_reach_exactly_the_enumerated_plans(case: str, framework: str) -> None:
    space = uniform_space(framework=framework, **SPACES[case])
    domain = space.context.cluster.domain_devices
    plans = plan_space(space.setting, domain_devices=domain, offload=space.offload).plans
    vectors = space.encode(plans)
    again = space.decode(vectors)
    assert [again.plan(row) for row in range(len(again))] == [plans.plan(row) for row in range(len(plans))]
    assert len(rows(vectors)) == len(plans)
    assert (space.settle(vectors) == vectors).all()
    drawn = space.initial(300, np.random.default_rng(1))
    assert (space.broken_rules(drawn) == 0).all()
    assert rows(drawn) <= rows(vectors)


@pytest.mark.parametrize("move", MOVES)
def test_every_kind_of_move_leads_from_legal_plan_to_legal_plan(move: str) -> None:
    space = uniform_space(**SPACES["mixture"], offload=True)
    rng = np.random.default_rng(2)
    before = space.initial(200, rng)
    kept = before.copy()
    after = space.propose(before, np.full(200, list(MOVES).index(move)), rng)
    assert (before == kept).all()
    assert legal(space.decode(after), space.setting).all()
    assert (after != before).any(axis=1).mean() > 0.05


def test_moves_reach_the_whole_space() -> None:
    """No plan is out of reach: every legal plan is some other's neighbour's neighbour's ..."""
    space = uniform_space(model=gpt(num_layers=4), job=job(global_batch_size=16))
    everything, rng = rows(enumerated(space)), np.random.default_rng(3)
    seen = rows(space.initial(64, rng))
    for _ in range(60):
        here = np.asarray(sorted(seen))
        moves = rng.integers(0, len(space.moves), size=len(here))
        seen |= rows(space.propose(here, moves, rng))
    assert seen == everything


def test_a_trade_keeps_the_devices_and_may_keep_the_micro_batches() -> None:
    space = uniform_space()
    rng = np.random.default_rng(4)
    before = space.initial(400, rng)
    after = space.propose(before, np.full(400, list(MOVES).index("trade")), rng)
    changed = (after != before).any(axis=1)
    old, new = space.decode(before), space.decode(after)
    assert (new.num_devices == old.num_devices).all()
    data = changed & (new.data_parallel != old.data_parallel)
    same = new.num_microbatches[data] == old.num_microbatches[data]
    assert 0.2 < same.mean() < 0.9


def test_prices_are_those_of_the_one_cost_path() -> None:
    space = uniform_space(offload=True)
    vectors = space.initial(50, np.random.default_rng(5))
    outcome, estimate = space.price(vectors), evaluate(space.decode(vectors), space.context)
    assert (outcome.step_time_s == estimate.step_time_s).all()
    assert (outcome.feasible == estimate.fits).all()
    assert 0 < outcome.feasible.sum() < 50
    usable = space.context.cluster.device.usable_memory_bytes
    over = np.maximum(estimate.peak_memory_bytes / usable - 1, 0)
    assert outcome.excess["device_memory"] == pytest.approx(over)


def test_an_illegal_plan_has_no_price_but_a_degree_of_violation() -> None:
    space = uniform_space()
    vectors = np.zeros((1, len(space.knobs)), dtype=np.int64)
    vectors[0, :3] = [len(knob.labels) - 1 for knob in space.knobs[:3]]
    outcome = space.price(vectors)
    assert np.isinf(outcome.step_time_s[0])
    assert outcome.excess["rules"][0] >= 1
    assert outcome.excess["device_memory"][0] == 0
    assert not outcome.feasible[0]


@pytest.mark.parametrize(
    "pins",
    [
        {"tensor_parallel": 2, "pipeline_parallel": 2},
        {"data_parallel": 2},
        {"recompute": 3, "recompute_layers": 2},
        {"num_microbatches": 8},
        {"micro_batch_size": 2, "zero_stage": 1},
        {"first_stage_layers": 1, "last_stage_layers": 1, "pipeline_parallel": 4},
        {"axis_order": 1},
    ],
    ids=str,
)
def test_pins_hold(pins: dict[str, int]) -> None:
    space = uniform_space(pins=pins)
    known = rows(enumerated(space))
    drawn = space.initial(100, np.random.default_rng(6))
    assert (space.broken_rules(drawn) == 0).all()
    assert rows(drawn) <= known
    plans = space.decode(drawn)
    for name, value in pins.items():
        assert (getattr(plans, name) == value).all()


def test_a_plan_of_another_space_is_refused() -> None:
    space = uniform_space(pins={"tensor_parallel": 1})
    other = uniform_space(pins={"tensor_parallel": 2})
    plans = other.decode(other.initial(3, np.random.default_rng(7)))
    with pytest.raises(ValueError, match="plan 0 is not of this space: tensor_parallel 2"):
        space.encode(plans)
