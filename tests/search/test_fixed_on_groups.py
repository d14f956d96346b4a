"""What is fixed of plans on pools of several kinds of devices, where not all of these can do it."""

from typing import Any

import pytest

import planner
from planner.search.result import SearchResult
from profiles.errors import SpecError

POOL = "4xA100+2xH100"
JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


def search(cluster: str = POOL, **asked: Any) -> SearchResult:
    return planner.search("llama-3-8b", cluster, JOB, evaluations=2000, seconds=60.0, **asked)


def test_a_degree_that_one_group_is_too_small_for_leaves_that_group_out() -> None:
    result = search(pins={"tp": 4})
    assert result.best is not None
    assert {stage.device for stage in result.best.stages} == {"A100-SXM-80GB"}
    assert (result.best.num_devices, result.best.idle_devices) == (4, 2)
    (note,) = (note for note in result.warnings if note.code == "group_left_out")
    assert note.field == "plan.tensor_parallel"
    assert note.message == "plans on 2xH100 alone are left out: tensor_parallel 4 must divide the 2 devices"
    left_out = [run for run in result.engines if "on 2xH100 alone" in run.space]
    assert {run.status for run in left_out} == {"not run"}
    alone = planner.search("llama-3-8b", "4xA100", JOB, evaluations=2000, seconds=60.0, pins={"tp": 4}).best
    assert alone is not None
    assert result.best.step_time_s == pytest.approx(alone.step_time_s)


def test_the_group_that_is_left_out_may_be_the_first() -> None:
    result = search("2xH100+4xA100", pins={"tp": 4})
    assert result.best is not None
    assert result.best.num_devices == 4


def test_pipelines_across_groups_may_have_more_stages_than_one_group_has_devices() -> None:
    result = search(pins={"pp": 4})
    assert result.best is not None
    assert len(result.best.stages) == 4
    assert {stage.device for stage in result.best.stages} == {"A100-SXM-80GB", "H100-SXM-80GB"}


def test_layers_of_the_first_stage_need_two_stages_on_one_group() -> None:
    job = JOB | {"sequence_length": 512, "global_batch_size": 8}
    result = planner.search("llama-3.2-3b", "2xA100+1xH100", job, pins={"first_stage_layers": 3})
    assert result.best is not None
    assert [stage.layers for stage in result.best.stages] == [3, 25]
    assert "1xH100" in next(note.message for note in result.warnings if note.code == "group_left_out")


def test_what_no_group_can_do_names_the_groups() -> None:
    with pytest.raises(SpecError, match=r"^plan.tensor_parallel: on 4xA100: must divide .*; on 2xH100: must divide"):
        search(pins={"tp": 3})


def test_degrees_that_small_stages_do_not_hold_are_those_of_larger_ones() -> None:
    result = search("8xA100+8xH100", pins={"tp": 4})
    assert result.best is not None
    assert {stage.tensor_parallel for stage in result.best.stages} == {4}
    assert not any(note.code == "group_left_out" for note in result.warnings)


def test_what_fits_nowhere_is_told_of_every_group() -> None:
    result = planner.search("llama-3-70b", "2xA100+1xH100", JOB, evaluations=500, pins={"tp": 2})
    assert result.best is None
    assert [bool(infeasible.remedies) for infeasible in result.infeasible] == [True, True]
    assert result.infeasible[1].nearest is None


def test_annealing_without_a_legal_pipeline_finds_none() -> None:
    result = search(strategy="mcmc", pins={"tp": 4})
    assert result.best is not None
    assert result.engines[-1].status == "unknown"
