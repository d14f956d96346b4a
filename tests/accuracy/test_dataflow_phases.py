"""E14 and E15: phases of published iterations."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.model_calls import CallKind
from planner.validate import dataflow_phases
from planner.validate.dataflow_phases import NEMO_RUNS, fastest_division, nemo_phases, nemo_phases_s, openrlhf_phases

pytestmark = pytest.mark.accuracy

openrlhf_s = dataflow_phases._openrlhf_s


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
    assert np.isinf(openrlhf_s(CallKind.TRAIN, 4, 34))
    assert np.isfinite(openrlhf_s(CallKind.TRAIN, 8, 34))
    assert openrlhf_s(CallKind.INFERENCE, 4, 7) == pytest.approx(2 * openrlhf_s(CallKind.INFERENCE, 8, 7), rel=0.1)


def test_no_other_division_is_faster() -> None:
    found = fastest_division()
    engine, actor, critic, *_ = found.gpus
    assert sum(found.gpus) <= 32
    assert found.phases_s[0] == openrlhf_s(CallKind.GENERATE, engine, 34)
    assert found.phases_s[1] == max(openrlhf_s(CallKind.TRAIN, actor, 34), openrlhf_s(CallKind.TRAIN, critic, 7))
    # By hand: 16 GPUs for the engine leave 16, of which 34B needs 8 to train, so that its reference has 4.
    slower = openrlhf_s(CallKind.GENERATE, 16, 34) + found.phases_s[1] + openrlhf_s(CallKind.INFERENCE, 4, 34)
    assert sum(found.phases_s) < slower


def test_the_page_tells_what_fails() -> None:
    assert not openrlhf_phases().passed
    assert "left out" in " ".join(nemo_phases().findings)
