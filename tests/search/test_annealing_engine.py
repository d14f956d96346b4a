"""The annealer as a strategy of ``planner.search``."""

from typing import Any

import pytest

import planner
from tests.search.small import INSTANCES, model

QUESTION: dict[str, Any] = {
    "model": model(6, vocab_size=256000),
    "cluster": "4xA100-80GB",
    "job": {"sequence_length": 2048, "global_batch_size": 16},
    "memory_reserve_bytes": 50 * 2**30,
}


def test_annealing_improves_on_uniform_plans_and_claims_no_proof() -> None:
    found = planner.search(**QUESTION, strategy="mcmc", evaluations=9000, seconds=120)
    again = planner.search(**QUESTION, strategy="mcmc", evaluations=9000, seconds=120)
    assert found.best is not None
    assert found.best.fits
    assert found.best.step_time_s == again.best.step_time_s  # type: ignore[union-attr]
    assert found.best.step_time_s <= found.uniform_step_time_s
    run = found.engines[-1]
    assert run.engine == "mcmc"
    assert run.status == "evaluations"
    assert run.bound_s is None
    assert 0.01 < run.statistics["mean_acceptance"] < 0.9  # type: ignore[operator]
    if found.best.step_time_s < found.uniform_step_time_s:
        assert found.bound_s is None
        assert not found.optimal


def test_after_a_partition_annealing_never_makes_worse() -> None:
    found = planner.search(**QUESTION, strategy="all", seconds=3)
    assert found.best is not None
    assert [run.engine for run in found.engines] == ["enumerate", *["partition"] * 3, "mcmc"]
    assert found.best.step_time_s <= min(run.step_time_s for run in found.engines[:4])
    # What the annealer improves on nobody has proved anything about; what it does not, stays proved.
    assert (found.bound_s is None) == (found.improvements[-1].engine == "mcmc")


@pytest.mark.parametrize("pins", [{"pp": 2}, {"tp": 2, "zero": 1}], ids=str)
def test_pins_hold(pins: dict[str, int]) -> None:
    found = planner.search(**QUESTION, strategy="mcmc", evaluations=3000, seconds=20, pins=pins)
    assert found.best is not None
    for stage in found.best.stages:
        assert stage.tensor_parallel == pins.get("tp", stage.tensor_parallel)
        assert stage.zero_stage == pins.get("zero", stage.zero_stage)
    assert len(found.best.stages) == pins.get("pp", len(found.best.stages))


def test_pins_the_space_cannot_hold_leave_it_out() -> None:
    found = planner.search(**QUESTION, strategy="mcmc", evaluations=6000, seconds=120, pins={"recompute": "full"})
    assert found.engines[-1].evaluations == 0
    assert found.engines[-1].status == "unknown"


@pytest.mark.long
def test_two_kinds_of_devices() -> None:
    """Where neither kind can hold the model quickly, both together do, and nearly as well as by exact partition."""
    small = next(each for each in INSTANCES if each.name == "two types, tight")
    found = planner.search(**small.arguments(), strategy="mcmc", seconds=5)
    exact = planner.search(**small.arguments(), strategy="auto", seconds=20)
    assert found.best is not None
    assert exact.best is not None
    assert found.best.step_time_s <= 1.02 * exact.best.step_time_s
