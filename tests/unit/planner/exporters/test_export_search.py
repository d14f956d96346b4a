"""Exports take the best plan that their target expresses."""

from typing import Any

import pytest

import planner
from profiles.errors import SpecError
from tests.exported import export, legal_plans, some_plans


def field_of_gap(**asked: Any) -> str:
    with pytest.raises(SpecError, match="cannot express it") as caught:
        planner.export(**asked)
    return caught.value.field


@pytest.mark.parametrize(
    ("format_", "model", "cluster", "job"),
    [
        ("accelerate", "llama-3-70b", "4x8xH100", {}),
        ("accelerate", "deepseek-v2-lite", "8xA100-40GB", {}),
        ("torchtitan", "llama-3.1-8b", "8xA100-40GB", {}),
    ],
)
def test_the_best_plan_that_a_target_expresses(format_: str, model: str, cluster: str, job: dict[str, Any]) -> None:
    """The best of all is one that it does not, and no better one that it does is passed over."""
    asked: dict[str, Any] = {"framework": "fsdp", "max_oom_risk": 1.0}
    ranked = planner.plan(model, cluster, job, top=300, variants=True, **asked)
    said = [not export(format_, item.plan, ranked.request).unsupported for item in ranked.plans]
    assert not said[0]
    result = planner.export(model, cluster, job, format=format_, **asked)
    assert result.exported is not None
    assert (result.exported.unsupported, result.fits) == ((), True)
    assert result.plan == ranked.plans[said.index(True)].plan
    assert planner.export(model, cluster, job, format=format_, allow_partial=True, **asked).plan == result.plan


def test_tensor_parallel_traffic_is_left_whole_where_a_target_does_not_split_it() -> None:
    """No ranked plan is such; without it 70B would not fit."""
    result = planner.export("llama-3-70b", "2x8xH100", format="accelerate", framework="fsdp")
    assert result.plan is not None
    assert result.exported is not None
    assert result.plan.tensor_parallel > 1
    assert (result.plan.tensor_parallel_overlap, result.fits) == (False, True)
    assert result.exported.unsupported == ()


def test_where_a_target_expresses_no_plan_that_is_likely_to_live_it_gets_one_at_risk() -> None:
    """Experts of DeepSeek-V2-Lite fit over ranks, which Accelerate lacks, or by a hair."""
    asked: dict[str, Any] = {"model": "deepseek-v2-lite", "cluster": "8xA100-40GB", "framework": "fsdp"}
    best = planner.estimate(**asked).best
    result = planner.export(**asked, format="accelerate")
    assert best is not None
    assert not best.risky
    assert (result.fits, result.risky) == (True, True)


def test_what_only_other_plans_fit_is_told() -> None:
    """Experts fit over ranks alone, which the target lacks; so is what is fixed."""
    asked: dict[str, Any] = {"model": "mixtral-8x22b", "cluster": "4x8xH100", "format": "accelerate"}
    best = planner.estimate("mixtral-8x22b", "4x8xH100", plan={"tp": 1}, framework="fsdp").best
    assert best is not None
    assert best.fits
    assert field_of_gap(**asked, framework="fsdp", plan={"tp": 1}) == "plan.expert_parallel"
    assert field_of_gap(**asked, framework="fsdp", plan={"pp": 2, "ep": 1}) == "plan.pipeline_parallel"


def test_a_plan_that_is_given_is_not_replaced() -> None:
    best = planner.estimate("llama-3-70b", "4x8xH100", framework="fsdp").best
    assert best is not None
    assert field_of_gap(
        model="llama-3-70b", cluster="4x8xH100", format="accelerate", framework="fsdp", plan=best.plan
    ).startswith("plan.")


def test_a_batch_has_the_gaps_of_its_plans() -> None:
    """Of chunks without layers, too, which are counted otherwise for many plans than layers of one are named."""
    from planner.exporters.exported import chunk_layers, expressed
    from planner.exporters.torchtitan import plan_checks

    question = ("llama-3.1-8b", "2x8xH100", "fsdp")
    request, plans = legal_plans(*question)
    batch = expressed(plans, plan_checks(plans, request))
    assert 0 < batch.sum() < len(plans)
    alone = {plan: not export("torchtitan", plan, request).unsupported for plan, _ in some_plans(100, *question)}
    together = {plans.plan(row): bool(batch[row]) for row in range(len(plans))}
    assert {plan: together[plan] for plan in alone} == alone
    assert all(0 not in chunk_layers(plan, request.model) for plan, said in alone.items() if said)


@pytest.mark.parametrize("format_", ["megatron-lm", "megatron-bridge"])
@pytest.mark.parametrize("model", ["k-exaone-236b-a23b", "trinity-mini-26b-a3b", "olmo-hybrid-7b"])
def test_a_shape_that_no_format_says_is_told_where_it_is_planned_anew(format_: str, model: str) -> None:
    with pytest.raises(SpecError, match="cannot express it") as caught:
        planner.export(model, "16x8xH100", format=format_)
    anew = "format accelerate or deepspeed plans the model anew"
    assert caught.value.hint == f"no other format says all of this plan; {anew}; or allow_partial"
    assert planner.export(model, "16x8xH100", format="accelerate").exported is not None


def test_a_shape_that_another_format_says_is_told_which() -> None:
    """Layers of Gemma 2 have four norms, which a recipe of Megatron-Bridge knows."""
    with pytest.raises(SpecError, match=r"model\.norms_per_layer") as caught:
        planner.export("gemma-2-9b", "8xH100", format="megatron-lm")
    assert caught.value.hint == "format megatron-bridge; or allow_partial"
    assert planner.export("gemma-2-9b", "8xH100", format="megatron-bridge").exported is not None
