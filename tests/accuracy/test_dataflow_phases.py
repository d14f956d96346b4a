"""E14 and E15: phases of published iterations."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.model_calls import CallKind
from planner.validate.dataflow import phases as dataflow_phases
from planner.validate.dataflow.phases import (
    NEMO_RUNS,
    nemo_phases,
    nemo_phases_s,
    openrlhf_phases,
    openrlhf_seconds,
    openrlhf_steps_s,
)
from tests.places import DATA

RLHF = DATA / "rlhf"
needs_data = pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)")
pytestmark = pytest.mark.accuracy

trainer_s = dataflow_phases._trainer_s


def test_a_step_is_the_sum_of_its_phases() -> None:
    for run in NEMO_RUNS:
        *parts, step = nemo_phases_s(run).values()
        assert step[1] == pytest.approx(sum(predicted for _, predicted in parts))
        # What was published leaves some of the step unnamed, and never the other way round.
        assert 0.9 <= sum(measured for measured, _ in parts) / step[0] <= 1


def test_twice_the_tokens_take_twice_the_training() -> None:
    run = NEMO_RUNS[0]
    once, twice = (nemo_phases_s(replace(run, tokens=tokens)) for tokens in (795, 2 * 795 + 130))
    for name in ("training", "log-probabilities"):
        assert twice[name][1] == pytest.approx(2 * once[name][1], rel=0.2)
    assert twice["generation"][1] > 1.3 * once["generation"][1]
    assert twice["weight update"] == once["weight update"]


def test_generation_is_within_a_sixth_and_log_probabilities_within_a_third() -> None:
    for run in NEMO_RUNS:
        phases = nemo_phases_s(run)
        for name, most in (("generation", 0.17), ("training", 0.31), ("log-probabilities", 0.36)):
            measured, predicted = phases[name]
            assert abs(predicted / measured - 1) < most, (run.label, name)


def test_34b_is_trained_on_eight_gpus_or_more() -> None:
    assert np.isinf(trainer_s(CallKind.TRAIN, 4, 34, 1))
    assert np.isfinite(trainer_s(CallKind.TRAIN, 8, 34, 1))
    assert trainer_s(CallKind.INFERENCE, 4, 7, 2) == pytest.approx(2 * trainer_s(CallKind.INFERENCE, 8, 7, 2), rel=0.1)


def test_engines_serve_one_rank_after_the_other() -> None:
    """16 ranks of the actor over 3 replicas of 2 GPUs; a request reads the weights of half the model 128 times."""
    found = openrlhf_seconds()
    assert found.requests == 6
    weights_s = 34e9 * 2 / 2 / 2.039e12  # A100
    assert 128 * weights_s < found.request_s < 4 * 128 * weights_s
    assert found.experience_s == pytest.approx(6 * found.request_s + found.scoring_s)
    # ZeRO-3 gathers the actor over two machines in every pass; what one machine holds scores faster.
    assert found.scoring_s == trainer_s(CallKind.INFERENCE, 16, 34, 32)
    assert found.scoring_s > trainer_s(CallKind.INFERENCE, 4, 34, 32) / 4


def test_training_over_one_adapter_is_what_the_network_takes() -> None:
    """Four updates, each of which gathers 34B weights twice and reduces their gradients, at 25 GB/s per machine."""
    traffic_s = 4 * 3 * 34e9 * 2 * 15 / 16 / 25e9
    assert traffic_s < openrlhf_seconds().training_s < 2 * traffic_s


@needs_data
def test_totals_at_three_lengths_give_decode_steps() -> None:
    """By hand: 34B, 512 x 128 in 94.9 s and 256 x 384 in 134.5 s, 6 requests in turn of 256 more steps each."""
    steps = openrlhf_steps_s(RLHF)
    assert len(steps) == 4
    measured, predicted = steps["decode step, 34B, 128 to 384 tokens"]
    assert measured == pytest.approx((134.506 - 94.915) / (6 * 256), rel=1e-4)
    for measured, predicted in steps.values():
        assert predicted == pytest.approx(measured, rel=0.2)


@needs_data
def test_the_page_tells_what_fails() -> None:
    assert not openrlhf_phases(RLHF).passed
    assert "left out" in " ".join(nemo_phases().findings)
