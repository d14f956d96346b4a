"""Exports to Megatron-Bridge: which recipe, and what its fields are told."""

from dataclasses import replace
from typing import Any

import pytest

import planner
from planner.exporters.exported import Exported
from planner.exporters.megatron_bridge import BARE, RECIPES
from profiles.errors import SpecError
from tests.exported import QUESTIONS, export, overrides, plan_of, request_of, script_words, some_plans
from tests.exporters.recorded import BRIDGE_FIELDS, BRIDGE_RECIPES

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}
# Stacks and jobs that say what plans of the questions do not.
MORE = [
    ("mixtral-8x7b", "2x8xH100", "megatron-core-token-drop", {}, {"ep": 8}),
    ("mixtral-8x7b", "2x8xH100", "megatron-core-hybrid-ep-overlap", {}, {"ep": 8}),
    ("qwen1.5-moe-a2.7b", "8xH100", "megatron-core-full-graphs", {}, {"ep": 4}),
    ("llama-2-13b", "8xA100", "megatron", {"state_dtype": "bf16", "master_dtype": "fp16"}, {"zero": 1}),
    ("llama-2-13b", "8xA100", "megatron", {"gradient_dtype": "bf16", "master_dtype": "bf16"}, {"zero": 2}),
    ("llama-2-13b", "8xA100", "megatron", {"precision": "fp16", "dropout": True, "attention": "unfused"}, {}),
    ("llama-2-13b", "8xA100", "megatron", {"fused_cross_entropy": True, "train_tokens": 1e9}, {"cp": 2}),
    ("llama-2-13b", "8xA100", "megatron", {}, {"zero": 1, "tp": 2, "pp": 2, "axis_order": "tp_cp_pp_dp"}),
    ("llama-2-13b", "8xB200", "megatron", {"precision": "nvfp4"}, {"zero": 1}),
    ("llama-2-13b", "8xB200", "megatron", {"precision": "mxfp8", "fp8_activation": True}, {"zero": 3}),
]


def said(exported: Exported) -> dict[str, str]:
    return overrides(script_words(exported))


def all_exports() -> list[Exported]:
    plans = [pair for each in QUESTIONS if each[0] == "megatron_bridge" for pair in some_plans(60, *each[1:])]
    for model, cluster, framework, job, pins in MORE:
        request = request_of(model, cluster, framework, **JOB | job)
        plans.append((plan_of(request, **pins), request))
    return [export("megatron_bridge", plan, request) for plan, request in plans]


def test_every_override_is_a_field() -> None:
    known = {f"{section}.{name}".strip(".") for section, names in BRIDGE_FIELDS.items() for name in names.split()}
    written = {name for exported in all_exports() for name in said(exported)}
    assert written - known == set()
    assert all(not exported.unsupported for exported in all_exports())


def test_every_recipe_exists() -> None:
    assert {*RECIPES.values(), BARE} == set(BRIDGE_RECIPES.split())


def test_plan_and_job_are_said_and_a_recipe_knows_the_model() -> None:
    request = request_of("llama-3-70b", "4x8xH100", "megatron", **JOB | {"train_tokens": 2048 * 64 * 100})
    plan = plan_of(request, tp=4, pp=2, vpp=4, cp=2, sp=True, zero=1, recompute="block:8", mbs=2)
    exported = export("megatron_bridge", plan, request)
    read = said(exported)
    assert exported.unsupported == ()
    assert "scripts/training/run_recipe.py --recipe llama3_70b_pretrain_config " in exported.launch
    wanted = {
        "model.tensor_model_parallel_size": "4",
        "model.pipeline_model_parallel_size": "2",
        "model.virtual_pipeline_model_parallel_size": "4",
        "model.context_parallel_size": "2",
        "model.cp_comm_type": "p2p",
        "model.sequence_parallel": "true",
        "model.recompute_method": "block",
        "model.recompute_num_layers": "2",  # of each of 4 chunks
        "model.seq_length": "2048",
        "dataset.seq_length": "2048",
        "train.micro_batch_size": "2",
        "train.global_batch_size": "64",
        "train.train_iters": "100",
        "ddp.use_distributed_optimizer": "true",
        "optimizer.use_distributed_optimizer": "true",
        "mixed_precision": "bf16_mixed",
        "comm_overlap": "null",
    }
    assert {name: read.get(name) for name in wanted} == wanted
    assert "model.num_layers" not in read
    assert exported.environment == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert "set -- scheduler.lr_warmup_iters=1\n" in exported.files["train.sh"]


def test_a_bare_recipe_is_told_the_shape_of_a_model_without_one() -> None:
    request = request_of("llama-2-13b", "8xA100-80GB", "megatron", **JOB)
    exported = export("megatron_bridge", plan_of(request, tp=2), request)
    read = said(exported)
    assert f"--recipe {BARE} " in exported.launch
    wanted = {
        "model.num_layers": "40",
        "model.hidden_size": "5120",
        "model.ffn_hidden_size": "13824",
        "model.gated_linear_unit": "true",
        "model.activation_func": "silu",
        "model.normalization": "RMSNorm",
        "model.add_bias_linear": "false",
        "model.share_embeddings_and_output_weights": "false",
        "model.bias_activation_fusion": "true",
        "tokenizer.vocab_size": "32000",
    }
    assert {name: read.get(name) for name in wanted} == wanted
    assert any("no recipe has the shape of llama-2-13b" in words for words in exported.left_to_you)


@pytest.mark.parametrize(("model", "recipe"), [("llama-3-8b", "llama3_8b"), ("llama-3.1-8b", "llama31_8b")])
def test_of_recipes_of_one_shape_a_model_has_its_own(model: str, recipe: str) -> None:
    request = request_of(model, "8xH100", "megatron", **JOB)
    plan = plan_of(request)
    assert f"--recipe {recipe}_pretrain_config " in export("megatron_bridge", plan, request).launch
    renamed = replace(request, model=replace(request.model, name="mine"))
    assert "--recipe llama3_8b_pretrain_config " in export("megatron_bridge", plan, renamed).launch


@pytest.mark.parametrize(
    ("job", "pins", "wanted"),
    [
        ({}, {"zero": 1}, {"mixed_precision": "bf16_mixed"}),
        (
            {"gradient_dtype": "bf16"},
            {"zero": 1},
            {"mixed_precision": "null", "model.bf16": "true", "ddp.grad_reduce_in_fp32": "false"},
        ),
        (
            {"precision": "fp8"},
            {"zero": 1},
            {
                "mixed_precision": "null",
                "model.fp8": "hybrid",
                "model.fp8_recipe": "delayed",
                "model.params_dtype": "torch.bfloat16",
                "ddp.grad_reduce_in_fp32": "true",
            },
        ),
        ({}, {"zero": 3}, {"ddp.megatron_fsdp_main_grads_dtype": "{_target_:torch.float32,_call_:false}"}),
        ({"state_dtype": "bf16"}, {"zero": 1}, {"optimizer.exp_avg_dtype": "torch.bfloat16"}),
        ({"state_dtype": "fp8"}, {"zero": 1}, {"optimizer.exp_avg_dtype": "{_target_:torch.uint8,_call_:false}"}),
    ],
    ids=str,
)
def test_formats(job: dict[str, Any], pins: dict[str, Any], wanted: dict[str, str]) -> None:
    request = request_of("llama-3-8b", "8xH100", "megatron", **JOB | job)
    read = said(export("megatron_bridge", plan_of(request, **pins), request))
    assert {name: read.get(name) for name in wanted} == wanted


def test_a_stack_says_what_switches_it_on() -> None:
    request = request_of("mixtral-8x7b", "2x8xH100", "megatron-core-hybrid-ep-overlap", **JOB)
    read = said(export("megatron_bridge", plan_of(request, ep=8), request))
    wanted = {
        "model.moe_token_dispatcher_type": "flex",
        "model.moe_flex_dispatcher_backend": "hybridep",
        "model.overlap_moe_expert_parallel_comm": "true",
        "model.delay_wgrad_compute": "true",
        "ddp.delay_wgrad_compute": "true",
    }
    assert {name: read.get(name) for name in wanted} == wanted
    other = said(export("megatron_bridge", plan_of(request), request))
    assert [other[name] for name in list(wanted)[2:]] == ["false"] * 3


def test_kernels_of_attention_are_variables() -> None:
    request = request_of("llama-3-8b", "8xH100", "megatron", **JOB | {"attention_library": "flash_3"})
    exported = export("megatron_bridge", plan_of(request), request)
    assert exported.environment == {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "0", "NVTE_UNFUSED_ATTN": "0"}
    assert said(exported)["model.attention_backend"] == "null"


@pytest.mark.parametrize(
    ("model", "change", "job", "pins", "field"),
    [
        ("deepseek-v2-lite", {"num_layers": 26}, {}, {}, "model.latent_attention"),
        ("glm-4.5-air", {"hidden_size": 4608}, {}, {"ep": 8}, "model.num_moe_layers"),
        ("falcon-7b", {}, {}, {}, "model.parallel_residual"),
        ("llama-3-8b", {}, {"task": "lora"}, {}, "job.task"),
        ("llama-3-8b", {}, {"precision": "fp8", "fp8_attention": True}, {}, "job.fp8_attention"),
        ("gpt2-xl", {}, {"sequence_length": 512}, {}, "model.learned_positions"),
    ],
)
def test_what_cannot_be_said_is_told(
    model: str, change: dict[str, int], job: dict[str, Any], pins: dict[str, Any], field: str
) -> None:
    request = request_of(model, "8xH100", "megatron", **JOB | job)
    plan = plan_of(request, **pins)
    exported = export("megatron_bridge", plan, replace(request, model=replace(request.model, **change)))
    assert field in [gap.field for gap in exported.unsupported]


def test_what_the_plan_asks_and_the_target_has_not_is_refused() -> None:
    pins = {"zero": 2, "axis_order": "tp_cp_pp_dp"}
    with pytest.raises(SpecError, match=r"plan\.axis_order: Megatron-Bridge"):
        planner.export("llama-3-8b", "8xH100", JOB, plan=pins, format="megatron-bridge")


def test_adapters_are_this_exporter_s_limit_and_another_format_s_work() -> None:
    adapters = JOB | {"task": "lora"}
    with pytest.raises(SpecError, match="its recipes of adapters are not among them") as caught:
        planner.export("llama-3-8b", "8xH100", adapters, format="megatron-bridge", framework="megatron")
    assert "format accelerate with framework hf-trainer" in caught.value.hint
    taken = planner.export("llama-3-8b", "8xH100", adapters, format="accelerate", framework="hf-trainer").exported
    assert taken is not None
    assert taken.unsupported == ()
