"""Searches over several frameworks against one search for each."""

from dataclasses import replace
from functools import cache

import pytest

import planner
from planner.document_search import search_document
from planner.rules.base import FRAMEWORKS
from planner.search.frameworks import several
from planner.search.result import SearchResult
from profiles.errors import SpecError
from tests.search.small import Small, model

BOTH = Small(
    name="both", model=model(6, vocab_size=256000), cluster="1x2xA100-80GB+1x2xH100", framework="megatron,fsdp",
    job={"sequence_length": 2048, "global_batch_size": 8}, reserve_gib=20.0, pins={"mbs": 1, "tp": 1},
)  # fmt: skip


def test_frameworks_are_named_with_commas_between_or_any_of_them() -> None:
    assert several("any") == several(" ANY") == FRAMEWORKS
    assert several("fsdp, megatron,fsdp") == ("fsdp", "megatron")
    assert several("megatron-core,megatron,fsdp") == ("megatron-core", "fsdp")  # names of the same stack
    assert several("fsdp") == several(None) == ()


@pytest.mark.parametrize(
    ("names", "problem", "hint"),
    [
        ("megatron,fspd", "unknown name 'fspd'", "did you mean 'fsdp'"),
        ("megatron,", "unknown name ''", "known: "),
        ("any,megatron", "unknown name 'any'", "known: "),
    ],
)
def test_a_name_that_is_none_is_refused_rather_than_left_out(names: str, problem: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        planner.search("llama-3.2-1b", "1xH100", framework=names)
    assert (caught.value.field, caught.value.problem) == ("framework", problem)
    assert caught.value.hint.startswith(hint)


def test_plans_of_several_frameworks_are_for_a_search() -> None:
    for names in ("megatron,fsdp", "any"):
        with pytest.raises(SpecError, match="let planner search compare several"):
            planner.plan("llama-3.2-1b", "1xH100", framework=names)


@pytest.mark.parametrize("task", ["full", "lora", "qlora"])
@pytest.mark.parametrize("cluster", ["8xA100", "1x4xA100+1x4xH100"])
def test_the_trainer_is_searched_without_the_pipelines_that_it_lacks(task: str, cluster: str) -> None:
    job = {"task": task, "global_batch_size": 64, "sequence_length": 512}
    found = planner.search("tinyllama-1.1b", cluster, job, framework="huggingface", strategy="all", seconds=60)
    assert found.best is not None
    assert found.bound_s == pytest.approx(found.best.step_time_s)
    idle = [run for run in found.engines if run.status == "not run"]
    assert {run.engine for run in idle} == {"partition", "mcmc"}
    assert {run.space for run in idle} == {"the framework has no pipelines"}


@cache
def found_alone(name: str) -> SearchResult:
    return replace(BOTH, framework=name).found()


@pytest.mark.long
@pytest.mark.parametrize("order", ["megatron,fsdp", "fsdp,megatron"])
def test_the_best_plan_of_two_frameworks_is_the_better_of_theirs(order: str) -> None:
    alone = {name: found_alone(name) for name in ("megatron", "fsdp")}
    both = replace(BOTH, framework=order).found()
    steps = {name: result.best.step_time_s for name, result in alone.items() if result.best is not None}
    winner = min(steps, key=lambda name: steps[name])
    assert both.best is not None
    assert both.best.step_time_s == steps[winner]
    assert {request.stack.framework for request in both.requests} == {winner}
    assert both.bound_s == min(result.bound_s or 0.0 for result in alone.values())
    assert both.uniform_step_time_s == min(result.uniform_step_time_s for result in alone.values())
    assert len(both.engines) == sum(len(result.engines) for result in alone.values())
    assert {run.space.split(":")[0] for run in both.engines} == {"Megatron-LM", "PyTorch FSDP (torchtitan)"}
    told = [item.step_time_s for item in both.improvements]
    assert told == sorted(told, reverse=True)
    assert told[-1] == both.best.step_time_s
    assert sum(len(result.left_out) for result in alone.values()) == len(both.left_out)
    assert search_document(both)["best"]["step_time_s"] == both.best.step_time_s
    assert not both.warnings


def test_what_a_framework_does_not_have_leaves_it_out_with_a_note() -> None:
    zero_bubble = replace(BOTH, pins=BOTH.pins | {"schedule": "zb-v"})
    result = zero_bubble.found()
    assert result.best is not None
    assert result.best.schedule == "zb-v"
    (note,) = (note for note in result.warnings if note.code == "framework_left_out")
    assert note.message.startswith("megatron is left out: ")
    assert "not implemented by megatron" in note.message
    with pytest.raises(SpecError, match="not implemented by megatron"):
        replace(zero_bubble, framework="megatron,deepspeed").found()


def test_every_framework_gets_its_share_of_the_evaluations() -> None:
    result = BOTH.found(evaluations=2000)
    assert result.evaluations < 4000
    assert {run.space.split(":")[0] for run in result.engines} == {"Megatron-LM", "PyTorch FSDP (torchtitan)"}
