"""What NeMo-RL has no setting for is refused, with the value and what to pin."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.plan import ContextKind, ExecutionPlan, Recompute
from planner.dataflow.flow.results import FlowPlan
from planner.exporters.flow_api import FlowExportResult, export_dataflow
from planner.exporters.flow_target import merged
from planner.exporters.nemo_rl_checks import placement_gaps
from profiles.errors import SpecError
from tests.flow_exports import OUTSIDE, SMALL, plan_of, with_layout
from tests.nemo_rl import PIPELINE, grpo


def test_a_number_of_gpus_and_a_range_of_so_many_agree() -> None:
    for given, both in ((8, {"actor_gen": {"gpus": "0-7"}}), ("0-7", {"actor_gen": {"gpus": "0-7"}}), (4, None)):
        assert merged({"actor_gen": {"gpus": given}}, {"actor_gen": {"gpus": "0-7"}}) == both


def fields(result: FlowExportResult, plan: FlowPlan) -> list[str]:
    return [gap.field for gap in placement_gaps(result.flow.request, plan)]


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"virtual_stages": 2}, "virtual_stages"),
        ({"zero_stage": 2}, "zero_stage"),
        ({"zero_shard_degree": 2}, "zero_shard_degree"),
        ({"recompute": Recompute.BLOCK}, "recompute"),
        ({"tensor_parallel_overlap": True}, "tensor_parallel_overlap"),
        ({"offload_optimizer": True}, "offload_optimizer"),
    ],
)
def test_what_training_has_no_setting_for(columns: dict[str, Any], field: str) -> None:
    result = grpo(mode="colocated", pins=PIPELINE)
    (gap,) = placement_gaps(result.flow.request, with_layout(plan_of(result), "train", **columns))
    assert gap.field == f"plan.actor_train.{field}"
    assert "got" in gap.problem


def test_layouts_meshes_and_micro_batches_that_differ() -> None:
    result = grpo(mode="colocated", pins=PIPELINE)
    plan = plan_of(result)
    assert fields(result, plan) == []
    one = with_layout(plan, "inference", pipeline_parallel=1)
    assert fields(result, one) == ["plan.actor_inf.pipeline_parallel", "plan.ref_inf.pipeline_parallel"]
    ranks: dict[str, ExecutionPlan] = {call.name: call.plan for call in plan.calls if call.plan is not None}
    more = ranks["ref_inf"].micro_batch_size + 1
    calls = [
        replace(call, plan=replace(ranks[call.name], micro_batch_size=more)) if call.name == "ref_inf" else call
        for call in plan.calls
    ]
    assert fields(result, replace(plan, calls=tuple(calls))) == ["plan.ref_inf.micro_batch_size"]
    half = [replace(call, first_gpu=2, num_gpus=2) if call.name == "ref_inf" else call for call in plan.calls]
    assert fields(result, replace(plan, calls=tuple(half))) == ["plan.ref_inf.gpus"]
    kinds = {"context_parallel": 2, "context_kind": ContextKind.ULYSSES}
    shared = with_layout(with_layout(plan, "train", **kinds), "inference", **kinds)
    assert fields(result, shared) == ["plan.actor_train.context_kind"]


def test_log_probabilities_have_training_s_micro_batch_from_four_ranks_on() -> None:
    """The known difference of results with batches from there on, which its policy refuses."""
    result = grpo(mode="colocated", pins=PIPELINE)
    two, four = (
        with_layout(
            with_layout(plan_of(result), "train", tensor_parallel=ranks), "inference", tensor_parallel=ranks,
            micro_batch_size=8,
        )
        for ranks in (2, 4)
    )  # fmt: skip
    assert fields(result, two) == []
    assert fields(result, four) == ["plan.actor_inf.micro_batch_size", "plan.ref_inf.micro_batch_size"]


def test_engines_that_it_does_not_run() -> None:
    result = grpo(mode="colocated", pins=PIPELINE)
    other = [replace(call, engine="sglang") if call.kind == "generate" else call for call in plan_of(result).calls]
    assert fields(result, replace(plan_of(result), calls=tuple(other))) == ["plan.actor_gen.engine"]
    for columns, field in (
        ({"context_parallel": 2}, "context_parallel"),
        ({"expert_parallel": 3}, "expert_parallel"),
        ({"expert_parallel": 4, "pipeline_parallel": 2}, "expert_parallel"),  # issue 1101: asynchronous engines
    ):
        assert fields(result, with_layout(plan_of(result), "generate", **columns)) == [f"plan.actor_gen.{field}"]


@pytest.mark.parametrize(
    ("job", "change", "field"),
    [
        ("ppo", {}, "job"),
        ("remax", {}, "job"),
        ("grpo", {"settings": {}}, "settings.reward"),
        ("grpo", {"settings": {**OUTSIDE, "old_logprobs": False}}, "settings.old_logprobs"),
        ("grpo", {"settings": {**OUTSIDE, "task": "lora"}}, "settings.task"),
        ("grpo", {"stream": True}, "stream"),
        ("grpo", {"mode": "async", "rollout": "partial", "staleness": 2}, "rollout"),
        ("dapo", {"settings": {}, "mode": "async"}, "mode"),
        ("grpo", {"framework": "deepspeed"}, "framework"),
        ("grpo", {"precision": "fp16"}, "precision"),
        ("grpo", {"prompt": 131072, "generate": 1, "batch": 8}, "models.actor"),
        ("grpo", {"engine": "sglang"}, "engine"),
        ("rm", {"settings": {}, "framework": "megatron-core"}, "framework"),
        ("sft", {"settings": {"task": "lora"}, "framework": "megatron-core"}, "settings.task"),
        ("sft", {"settings": {"task": "lora", "lora_targets": "q,v"}, "framework": "hf-fsdp"}, "settings.lora_targets"),
    ],
)
def test_what_nemo_rl_cannot_do_is_refused(job: str, change: dict[str, Any], field: str) -> None:
    question = {**SMALL, "settings": OUTSIDE, **change}
    with pytest.raises(SpecError) as caught:
        export_dataflow(job, "qwen2.5-1.5b", "4xH100-80GB", format="nemo-rl", **question)
    assert caught.value.field == field
    assert caught.value.hint
    assert "\n" not in str(caught.value)
