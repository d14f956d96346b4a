"""Explanations: shares add up, rivals differ where they say, and what does not fit is only wished for."""

from typing import Any

import pytest

from planner import api
from planner.answer.explain import DIMENSIONS, shares
from planner.phrases import rival_changes, rival_sentence
from planner.results import PlanResult

JOB = {"sequence_length": 2048, "global_batch_size": 64}


@pytest.fixture(scope="module")
def result() -> PlanResult:
    return api.plan("llama-2-7b", "8xA100-80GB", JOB)


def test_shares_are_ordered_and_complete() -> None:
    told = shares({"a": 1.0, "b": 3.0, "c": 0.0})
    assert [(item.part, item.value, item.share) for item in told] == [("b", 3.0, 0.75), ("a", 1.0, 0.25)]


def test_time_and_memory_add_up(result: PlanResult) -> None:
    best, explanation = result.best, result.explanation
    assert best is not None
    assert explanation is not None
    assert sum(item.share for item in explanation.time) == pytest.approx(1)
    assert sum(item.value for item in explanation.time) == pytest.approx(best.step_time_s, rel=1e-6)
    assert sum(item.value for item in explanation.memory) == pytest.approx(best.fullest_stage.memory_bytes)


def test_rivals_differ_where_they_say(result: PlanResult) -> None:
    best, explanation = result.best, result.explanation
    assert best is not None
    assert explanation is not None
    assert explanation.rivals
    for rival in explanation.rivals:
        assert rival.dimension in DIMENSIONS
        assert rival.dimension in rival.changes
        for name, (old, new) in rival.changes.items():
            assert (getattr(best.plan, name), getattr(rival.plan, name)) == (old, new)
    assert len({rival.plan for rival in explanation.rivals}) == len(explanation.rivals)


def test_rivals_that_fit_are_no_better(result: PlanResult) -> None:
    assert result.explanation is not None
    for rival in result.explanation.rivals:
        if rival.fits:
            assert rival.step_time_ratio >= 1 - 1e-6
        else:
            assert rival.step_time_ratio < 1


def test_rival_figures_are_those_of_the_plan(result: PlanResult) -> None:
    best, explanation = result.best, result.explanation
    assert best is not None
    assert explanation is not None
    rival = explanation.rivals[-1]
    (priced,) = api.estimate("llama-2-7b", "8xA100-80GB", JOB, plan=rival.plan).plans
    assert priced.step_time_s / best.step_time_s == pytest.approx(rival.step_time_ratio)
    difference = priced.peak_memory_bytes - best.peak_memory_bytes
    assert difference == pytest.approx(rival.peak_memory_difference_bytes, abs=1.0)


def test_a_single_plan_has_no_rivals(result: PlanResult) -> None:
    assert result.best is not None
    alone = api.estimate("llama-2-7b", "8xA100-80GB", JOB, plan=result.best.plan)
    assert alone.explanation is not None
    assert alone.explanation.rivals == ()


def test_objectives_choose_the_rivals() -> None:
    cheap = api.plan("llama-2-7b", "16xA100-80GB", JOB, objective="cost")
    assert cheap.explanation is not None
    assert all(rival.device_seconds_ratio >= 1 - 1e-6 for rival in cheap.explanation.rivals if rival.fits)


def test_sentences() -> None:
    from costmodels.plan import ExecutionPlan
    from planner.results import Rival

    values: dict[str, Any] = {
        "dimension": "recompute",
        "plan": ExecutionPlan(),
        "changes": {
            "tensor_parallel": (1, 2),
            "recompute": (0, 3),
            "recompute_layers": (0, 4),
            "num_microbatches": (1, 2),
        },
        "step_time_ratio": 1.023,
        "device_seconds_ratio": 1.0,
        "peak_memory_difference_bytes": -2.5 * 2**30,
        "fits": True,
        "ranked": True,
    }
    assert rival_changes(Rival(**values)) == "recompute none -> block:4, tp 1 -> 2"
    assert rival_sentence(Rival(**values)) == "recompute none -> block:4, tp 1 -> 2: 2.3 % slower, 2.5 GiB less memory."
    ends = values | {"dimension": "pipeline_parallel", "changes": {"last_stage_layers": (0, 1)}}
    assert rival_changes(Rival(**ends)) == "last stage layers even -> 1"
    at_risk = rival_sentence(Rival(**values | {"ranked": False, "step_time_ratio": 0.9}))
    assert at_risk.endswith(": 10 % faster, but at risk of running out of memory (2.5 GiB less memory).")
    wished = values | {"fits": False, "ranked": False, "step_time_ratio": 0.9, "changes": {"zero_shard_degree": (0, 8)}}
    assert rival_sentence(Rival(**wished)) == (
        "shard degree all -> 8: would be 10 % faster but does not fit (2.5 GiB less memory)."
    )
