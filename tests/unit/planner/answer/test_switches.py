"""Settings that are off: told where they would help, with a plan that their stack accepts and prices so."""

from dataclasses import replace

import pytest

import planner
from costmodels.plan import PlanBatch
from planner.answer.estimates import plan_estimates
from planner.answer.pricing import price_all
from planner.answer.switches import switches
from planner.cli.catalog import show_frameworks
from planner.document_plan import frameworks_document
from planner.question.request import cost_context
from profiles.errors import SpecError
from profiles.stacks import find_stack, load_stacks

EXPERTS = {"model": "qwen3-235b-a22b", "cluster": "16x8xH100"}


@pytest.fixture(scope="module")
def answer():
    return planner.plan(**EXPERTS, job={"global_batch_size": 512, "sequence_length": 4096}, top=1)


def test_the_fastest_is_first_and_the_stack_named_prices_its_plan_so(answer):
    found = answer.switches
    assert "megatron-core-hybrid-ep" in {item.framework for item in found}
    assert [item.step_time_ratio for item in found] == sorted(item.step_time_ratio for item in found)
    for item in found:
        again = planner.estimate(
            **EXPERTS,
            job={"global_batch_size": 512, "sequence_length": 4096},
            plan=item.plan,
            framework=item.framework,
        ).best
        assert again is not None
        assert again.fits
        assert again.step_time_s == pytest.approx(item.step_time_s)
        assert item.step_time_ratio == pytest.approx(item.step_time_s / answer.best.step_time_s)
        assert item.step_time_ratio < 0.99
        assert item.switched_on_by == load_stacks()[item.framework].switched_on_by


def test_what_is_on_is_not_offered(answer):
    job = {"global_batch_size": 512, "sequence_length": 4096}
    on = planner.plan(**EXPERTS, job=job, top=1, framework="megatron-core-hybrid-ep").switches
    assert {item.framework for item in on} <= {"megatron-core-hybrid-ep-overlap"}
    assert not planner.plan(**EXPERTS, job=job, top=1, framework="megatron-core-hybrid-ep-overlap").switches


@pytest.mark.parametrize("framework", ["fsdp", "megatron-2024"])
def test_no_other_stack_has_them(framework):
    assert not planner.plan("mixtral-8x7b", "2x8xH100", top=1, framework=framework).switches


def test_nothing_is_told_of_models_and_plans_that_exchange_nothing():
    assert not planner.plan("llama-2-13b", "8xA100", top=1).switches
    assert not planner.estimate("qwen3-30b-a3b", "8xH200", plan={"ep": 1}).switches


def test_where_the_most_memory_is_left_no_setting_is_what_a_faster_plan_gains():
    """The roomiest plan of many experts is many times as slow as the fastest, with any setting on or off."""
    job = {"global_batch_size": 512, "sequence_length": 4096}
    roomy = planner.plan(**EXPERTS, job=job, top=1, objective="memory_headroom")
    assert roomy.best.plan.expert_parallel > 1
    assert roomy.switches == ()


def test_what_ones_own_runs_told_is_kept(answer):
    """Of a stack whose runs take twice as long, the settings save the same share."""
    request = replace(answer.request, stack=replace(answer.request.stack, step_time_scale=2.0))
    context = cost_context(request)
    plans = PlanBatch.from_plans([answer.best.plan, *(item.plan for item in answer.switches)])
    (best,) = plan_estimates(plans.take([0]), context)
    assert best.step_time_s == pytest.approx(2 * answer.best.step_time_s)
    found = switches(request, best, price_all(plans, context))
    assert found[0].framework == answer.switches[0].framework
    assert found[0].step_time_ratio == pytest.approx(answer.switches[0].step_time_ratio)


def test_frameworks_are_listed_with_what_turns_them_on():
    listed = frameworks_document()["frameworks"]
    names = {item["name"] for item in listed}
    assert {"megatron-core", "deepspeed", "fsdp", "nanotron", "hf-trainer", "unsloth"} <= names
    assert [item["name"] for item in listed if item["default"]] == [
        *("megatron-core", "deepspeed", "fsdp", "nanotron", "hf-trainer"),
    ]
    switched = {item["name"]: item["switched_on_by"] for item in listed if item["switched_on_by"]}
    assert set(switched) == {f"megatron-core-{way}" for way in ("ep-overlap", "hybrid-ep", "hybrid-ep-overlap")}
    for name in names:  # every one of them can be planned with
        assert find_stack(name).name == name
    only = show_frameworks("hybrid")[0]["frameworks"]
    assert [item["name"] for item in only] == ["megatron-core-hybrid-ep", "megatron-core-hybrid-ep-overlap"]
    with pytest.raises(SpecError, match="framework: no name contains 'torchtitn'"):
        show_frameworks("torchtitn")
