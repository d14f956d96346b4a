"""``planner export --format verl``: the overrides say the plan, and what they cannot say is refused or planned anew."""

import json
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest

import planner
from costmodels.plan import ContextKind, Recompute
from planner.dataflow.flow.results import FlowPlan
from planner.exporters.flow_api import export_dataflow
from planner.exporters.flow_document import flow_export_schema
from planner.exporters.flow_target import longest_response, merged, on_gpus
from planner.exporters.verl import FLOW, TARGET, WORKFLOWS
from planner.exporters.verl_checks import in_workers, placement_gaps, question_gaps
from profiles.errors import SpecError
from tests.command import Command
from tests.flow_exports import OUTSIDE, SMALL, plan_of
from tests.verl_exports import ROLLOUT, asked, grpo, overrides, written

ACTOR = "actor_rollout_ref.actor."


def check_megatron(found: dict[str, str], role: str, plan: FlowPlan, name: str) -> None:
    layout = in_workers(plan)[name].layout
    where = f"{role}megatron."
    sizes = [int(found[f"{where}{axis}_parallel_size"]) for axis in ("tensor_model", "pipeline_model", "context")]
    assert sizes == [layout.tensor_parallel, layout.pipeline_parallel, layout.context_parallel]
    world = int(found["trainer.nnodes"]) * int(found["trainer.n_gpus_per_node"])
    assert world // (sizes[0] * sizes[1] * sizes[2]) == layout.data_parallel


def test_batches_and_degrees_read_back() -> None:
    result = grpo(mode="colocated")
    found, plan = written(result), plan_of(result)
    check_megatron(found, ACTOR, plan, "actor_train")
    train = in_workers(plan)["actor_train"]
    responses = int(found["data.train_batch_size"]) * int(found[ROLLOUT + "n"])
    assert responses == train.call.sequences == 512
    steps = int(found["data.train_batch_size"]) // int(found[ACTOR + "ppo_mini_batch_size"])
    assert steps == train.call.mini_batches
    micro = int(found[ACTOR + "ppo_micro_batch_size_per_gpu"])
    assert micro * train.layout.num_microbatches * train.layout.data_parallel == responses // steps
    scoring = int(found[ROLLOUT + "log_prob_micro_batch_size_per_gpu"])
    assert scoring == in_workers(plan)["actor_inf"].layout.micro_batch_size
    generation = on_gpus(plan)["actor_gen"]
    assert found[ROLLOUT + "name"] == generation.call.engine
    assert int(found[ROLLOUT + "tensor_model_parallel_size"]) == generation.layout.tensor_parallel
    assert int(found[ROLLOUT + "max_num_seqs"]) == generation.call.concurrent
    assert (found["data.max_prompt_length"], found["data.max_response_length"]) == ("256", "512")
    assert found[ROLLOUT + "max_model_len"] == "768"


def test_mini_batches_are_of_prompts() -> None:
    """Four optimizer steps on 64 prompts are 16 prompts each, whatever the responses to one."""
    settings = json.dumps({**OUTSIDE, "mini_batches": 4, "group_size": 2})
    found = written(asked("rloo", "qwen2.5-1.5b", "4xH100-80GB", settings))
    assert (found[ACTOR + "ppo_mini_batch_size"], found[ROLLOUT + "n"]) == ("16", "2")
    assert found["algorithm.adv_estimator"] == "rloo"
    assert (found["algorithm.use_kl_in_reward"], found[ACTOR + "use_kl_loss"]) == ("True", "False")


def test_ppo_has_a_critic_and_takes_the_engine_s_log_probabilities() -> None:
    result = asked("ppo", "qwen2.5-1.5b", "4xH100-80GB")
    found, plan = written(result), plan_of(result)
    assert (found["algorithm.adv_estimator"], found["algorithm.rollout_correction.bypass_mode"]) == ("gae", "True")
    for role, name in ((ACTOR, "actor_train"), ("actor_rollout_ref.ref.", "ref_inf"), ("critic.", "critic_train")):
        check_megatron(found, role, plan, name)
    calls = in_workers(plan)
    sizes = [calls[name].layout.micro_batch_size for name in ("critic_train", "critic_inf")]
    names = ("micro_batch_size_per_gpu", "infer_micro_batch_size_per_gpu")
    assert [int(found[f"+critic.megatron.{name}"]) for name in names] == sizes
    assert found["reward.reward_model.enable"] == "True"
    assert found["critic.model.path"] == found["reward.reward_model.model_path"] == "Qwen/Qwen2.5-1.5B"


def test_dapo_keeps_batches_in_flight_and_has_no_reference() -> None:
    found = written(asked("dapo", "qwen2.5-1.5b", "4xH100-80GB", mode="colocated"))
    assert found["algorithm.filter_groups.enable"] == "True"
    assert found["algorithm.filter_groups.max_inflight_gen_batches"] == "3"
    assert (found["data.train_batch_size"], found[ROLLOUT + "n"]) == ("64", "16")
    assert not any(name.startswith("actor_rollout_ref.ref.") for name in found)


def test_interleaved_stages_ends_of_their_own_and_blocks_are_said_for_all_roles() -> None:
    """Virtual stages are the actor's: Megatron's groups are made once per process. Blocks are counted per chunk."""
    result = grpo(mode="colocated")
    layout = {"pipeline_parallel": 4, "data_parallel": 1, "virtual_stages": 2, "recompute": Recompute.BLOCK}
    ends = {"first_stage_layers": 6, "last_stage_layers": 6, "recompute_layers": 4, "context_parallel": 2}
    calls = tuple(
        replace(item, plan=replace(item.plan, **layout, **ends, context_kind=ContextKind.ULYSSES))
        if item.plan is not None and item.kind == "train"
        else item
        for item in plan_of(result).calls
    )
    found = overrides(FLOW.export(result.flow.request, replace(plan_of(result), calls=calls)))
    for role in ("actor", "ref"):
        assert found[f"actor_rollout_ref.{role}.megatron.virtual_pipeline_model_parallel_size"] == "2"
    where = f"{ACTOR}megatron.override_transformer_config."
    said = {name: found.get(f"+{where}{name}", found.get(f"{where}{name}")) for name in SAID}
    assert said == SAID


SAID = {
    "num_layers_in_first_pipeline_stage": "6",
    "num_layers_in_last_pipeline_stage": "6",
    "cp_comm_type": "a2a",
    "recompute_granularity": "full",
    "recompute_method": "block",
    "recompute_num_layers": "2",
}


def test_fsdp_shards_all_roles() -> None:
    result = grpo(framework="hf-fsdp")
    found = written(result)
    assert (found[ACTOR + "strategy"], found[ACTOR + "fsdp_config.fsdp_size"]) == ("fsdp", "-1")
    assert "model_engine" not in found
    for name in ("actor_train", "actor_inf", "ref_inf"):
        assert in_workers(plan_of(result))[name].layout.zero_stage in (2, 3)
    recomputes = in_workers(plan_of(result))["actor_train"].layout.recompute.name == "FULL"
    assert found["actor_rollout_ref.model.enable_gradient_checkpointing"] == str(recomputes)


@pytest.mark.parametrize(
    ("holding", "weights", "states"), [("resident", 0, 0), ("states_out", 1, 1), ("all_out", 1, 1)]
)
def test_what_leaves_the_gpus_between_calls(holding: str, weights: bool, states: bool) -> None:
    """Under Megatron gradients leave with the weights, which is what ``states_out`` saves."""
    result = grpo(mode="colocated")
    calls = tuple(
        replace(call, holding=holding) if call.name == "actor_train" else call for call in plan_of(result).calls
    )
    found = overrides(FLOW.export(result.flow.request, replace(plan_of(result), calls=calls)))
    names = ("param_offload", "optimizer_offload")
    assert [found[f"{ACTOR}megatron.{name}"] for name in names] == [str(bool(weights)), str(bool(states))]


def test_graphs_are_captured_unless_that_was_asked_not_to_be() -> None:
    found = [written(grpo(mode="colocated", engine="vllm", eager=eager)) for eager in (False, True)]
    assert [options[ROLLOUT + "enforce_eager"] for options in found] == ["False", "True"]


def test_losses_without_logits_are_its_fused_kernels() -> None:
    name = "actor_rollout_ref.model.use_fused_kernels"
    assert [written(grpo(mode="colocated", linear_loss=said)).get(name) for said in (True, False)] == ["True", None]


def test_a_plan_that_cannot_be_said_is_planned_anew() -> None:
    """PPO's roles have layouts and GPUs of their own; what is written has one pool and one layout, and says so."""
    result = asked("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", mode="hybrid")
    assert result.searched is not None
    assert result.in_the_way
    plan, request = plan_of(result), result.flow.request
    assert placement_gaps(request, plan) == ()
    assert request.mode == "colocated"
    assert plan.steady_s >= result.searched.steady_s * 0.999
    assert result.exported is not None
    script = result.exported.files["train.sh"].replace("\n#  ", "")
    assert f"cannot be written: {result.in_the_way[0].field}" in script
    assert "This is the answer with --mode colocated --pin" in script


def test_the_plan_written_is_the_answer_with_the_pins_it_names() -> None:
    result = asked("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", mode="hybrid")
    pins = {name: dict(pin.columns) for name, pin in result.flow.request.pins.items()}
    again = planner.plan_dataflow("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", **SMALL, mode="colocated", pins=pins)
    assert again.plan is not None
    assert again.plan.steady_s == plan_of(result).steady_s


def test_a_layout_that_one_call_alone_has_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference may have stages that training has not; the next layout is tried, no pin that nobody gave is blamed."""
    expected = plan_of(asked("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", mode="hybrid"))
    nowhere = {"actor_train": {"pipeline_parallel": 11}}
    more = replace(FLOW, other_pins=lambda *given: [nowhere, *FLOW.other_pins(*given)])
    monkeypatch.setattr("planner.exporters.verl.FLOW", more)
    again = export_dataflow("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", format="verl", mode="hybrid", **SMALL)
    assert plan_of(again).steady_s == expected.steady_s


def test_pins_of_the_user_stand() -> None:
    assert merged({"actor_train": {"tp": 2}}, {"actor_train": {"tensor_parallel": 4}}) is None
    both = merged({"actor_train": {"tp": 2}}, {"actor_inf": {"tensor_parallel": 2}})
    assert both == {"actor_train": {"tensor_parallel": 2}, "actor_inf": {"tensor_parallel": 2}}


@pytest.mark.parametrize(
    ("job", "change", "field"),
    [
        ("dpo", {}, "job"),
        ("ppo-ema", {}, "job"),
        ("grpo", {"mode": "async"}, "mode"),
        ("grpo", {"mode": "Disaggregated"}, "mode"),
        ("grpo", {"framework": "fsdp"}, "framework"),
        ("grpo", {"engine": "trainer"}, "plan.actor_gen.engine"),
        ("grpo", {"precision": "fp16"}, "precision"),
        ("grpo", {"prompt": 131072, "generate": 1, "batch": 8}, "models.actor"),
        ("grpo", {"settings": {**OUTSIDE, "mini_batches": 128}}, "settings.mini_batches"),
        ("dapo", {"settings": {"reward": "model"}}, "settings.reward"),
        ("dapo", {"settings": {"oversampling": 1.5}}, "settings.oversampling"),
        ("grpo", {"settings": {**OUTSIDE, "task": "lora", "lora_targets": "q,v"}}, "settings.lora_targets"),
    ],
)
def test_what_verl_cannot_do_is_refused(job: str, change: dict[str, Any], field: str) -> None:
    question = {**SMALL, "settings": OUTSIDE if job == "grpo" else {}, **change}
    with pytest.raises(SpecError) as caught:
        export_dataflow(job, "qwen2.5-1.5b", "4xH100-80GB", format="verl", **question)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_an_engine_holds_what_its_model_was_built_for() -> None:
    """Up to the last token: vLLM refuses one more, of a reward model as of the policy."""
    result = grpo(mode="colocated")
    request = replace(result.flow.request, prompt_tokens=131072 - 512)
    assert longest_response(request) == 512
    assert question_gaps(request) == ()
    (gap,) = question_gaps(replace(request, prompt_tokens=131073 - 512))
    assert gap.field == "models.actor"
    assert "131,073 tokens of prompt and response, as qwen2.5-1.5b was built for 131,072" in gap.problem
    asked_ppo = asked("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", mode="hybrid").flow.request
    short = replace(asked_ppo.models["reward"], max_sequence_length=767)
    (gap,) = question_gaps(replace(asked_ppo, models={**asked_ppo.models, "reward": short}))
    assert gap.field == "models.reward"


def test_adapters_on_experts_are_asked_for_where_verl_has_them() -> None:
    """Its Megatron adapts the experts too, which nobody meant who named no layers."""
    settings = {**OUTSIDE, "task": "lora"}
    with pytest.raises(SpecError) as caught:
        export_dataflow("grpo", "qwen3-30b-a3b", "8xH100-80GB", format="verl", **{**SMALL, "settings": settings})
    assert caught.value.field == "settings.lora_targets"
    assert caught.value.hint.startswith("lora_targets=q,k,v,o,gate,up,down")


def test_what_is_left_out_is_listed() -> None:
    result = grpo(precision="fp16", allow_partial=True)
    assert result.exported is not None
    assert [gap.field for gap in result.exported.unsupported] == ["precision"]
    assert "# Not said, verl cannot: precision: it trains in bf16; got fp16" in result.exported.files["train.sh"]


def test_a_checkpoint_is_named_where_the_hub_is_known() -> None:
    result = asked("grpo", "llama-7b", "8xH100-80GB", json.dumps(OUTSIDE))
    assert result.exported is not None
    assert "actor_rollout_ref.model.path" not in written(result)
    assert any(words.startswith("actor_rollout_ref.model.path: ") for words in result.exported.left_to_you)


def test_adapters() -> None:
    settings = json.dumps({**OUTSIDE, "task": "lora", "lora_rank": 32})
    found = written(asked("grpo", "qwen2.5-1.5b", "4xH100-80GB", settings))
    assert found["actor_rollout_ref.model.lora.rank"] == "32"
    assert found[ROLLOUT + "load_format"] == "safetensors"
    assert not any(name.startswith("actor_rollout_ref.ref.") for name in found)  # the policy without adapters


def test_experts_and_nodes() -> None:
    result = asked("grpo", "qwen3-30b-a3b", "2x8xH100-80GB", json.dumps(OUTSIDE))
    found, plan = written(result), plan_of(result)
    layout = in_workers(plan)["actor_train"].layout
    assert int(found[ACTOR + "megatron.expert_model_parallel_size"]) == layout.expert_parallel
    assert (found["trainer.nnodes"], found["trainer.n_gpus_per_node"]) == ("2", "8")
    replica = int(found[ROLLOUT + "tensor_model_parallel_size"]) * int(found[ROLLOUT + "data_parallel_size"])
    assert int(found[ROLLOUT + "expert_parallel_size"]) in (1, replica)
    assert result.exported is not None
    assert any("ray start --head" in words for words in result.exported.left_to_you)


def test_nothing_fits() -> None:
    result = asked("grpo", "llama-3-70b", "1xH100-80GB", json.dumps(OUTSIDE))
    document = planner.to_document(result)
    jsonschema_rs.validate(flow_export_schema(), document)
    assert (result.exported, document["files"], document["fits"]) == (None, {}, False)


def test_every_workflow_is_written() -> None:
    for job in WORKFLOWS:
        result = asked(job, "qwen2.5-1.5b", "4xH100-80GB", mode="colocated")
        assert result.exported is not None
        assert result.exported.files["train.sh"].startswith(
            f"#!/usr/bin/env bash\n# Written by planner export for {TARGET.title}"
        )


BASE = ("--model", "actor=qwen2.5-1.5b", "--gpus", "4xH100-80GB", "--batch", "64", "--set", "reward=external")


def test_the_command_line_says_the_same(command: Command) -> None:
    code, out, _ = command("export", "--format", "verl", "--job", "grpo", *BASE, "--json")
    assert code == 0
    document = json.loads(out)
    jsonschema_rs.validate(flow_export_schema(), document)
    result = planner.export_dataflow(
        "grpo", {"actor": "qwen2.5-1.5b"}, "4xH100-80GB", format="verl", batch=64, settings=OUTSIDE
    )
    assert document["files"] == json.loads(json.dumps(planner.to_document(result)))["files"]


def test_the_command_line_says_in_words_that_nothing_fits(command: Command) -> None:
    """Scripts are printed as they are, and so was the markup of this answer."""
    code, out, _ = command(
        "export", "--format", "verl", "--job", "grpo", "--model", "llama-3.1-8b", "--gpus", "1xRTX4090"
    )
    assert code == 3
    assert "\nNothing fits.\n" in out
    assert "[/]" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("verl", "--model", "13b", *BASE[2:4]),
            "error: format: verl runs workflows, and this is a single model. Hint: add --job grpo",
        ),
        (("verl", *BASE), "error: --batch: says something about a workflow, and none is given"),
        (("megatron-lm", "--job", "grpo", *BASE), "error: format: unknown for workflows: 'megatron-lm'"),
        (("verl", "--job", "grpo", *BASE, "--tp", "2"), "error: --tp: has no effect on a workflow"),
        (("verl", "--job", "grpo", *BASE, "--plan", "x.json"), "error: --plan: has no effect on a workflow"),
    ],
)
def test_the_command_line_refuses(command: Command, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = command("export", "--format", *arguments)
    assert (code, err[: len(words)]) == (2, words)


def test_a_library_of_attention_is_named_to_transformers() -> None:
    found = written(grpo(mode="colocated", framework="hf-fsdp", attention_library="flash_3"))
    assert found["+actor_rollout_ref.model.override_config.attn_implementation"] == "flash_attention_3"
    for none in (None, ""):  # as ``TrainingJob`` has it where the stack picks its own
        plain = written(grpo(mode="colocated", framework="hf-fsdp", attention_library=none))
        assert not [name for name in plain if "attn_implementation" in name]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"framework": "hf-fsdp", "attention_library": "cudnn"}, "cudnn is no attn_implementation of transformers"),
        ({"framework": "megatron", "attention_library": "flash_3"}, "no option of it chooses attention"),
    ],
)
def test_libraries_it_cannot_be_told_of_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=f"attention_library: .*{problem}"):
        written(grpo(mode="colocated", **options))
