"""Files of axolotl and LLaMA-Factory: the batch, the states and the kernels that were priced, or a refusal."""

import json
from typing import Any

import pytest
import yaml

import planner
from planner.exporters.exported import Exported
from profiles.errors import SpecError
from tests.exported import export, options, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64, "task": "full"}
TOOLS = ("axolotl", "llama_factory")
BATCH = {
    "axolotl": ("micro_batch_size", "gradient_accumulation_steps"),
    "llama_factory": ("per_device_train_batch_size", "gradient_accumulation_steps"),
}
HALF = {"master_dtype": "none", "state_dtype": "bf16", "gradient_dtype": "bf16"}


def written(
    tool: str, *, model: str = "llama-3-8b", cluster: str = "8xA100-80GB", stack: str = "hf-trainer", **more: Any
) -> tuple[Exported, dict[str, Any]]:
    """An export with its YAML file; settings that plans have are pins, all else is of the job."""
    pins = {name: more.pop(name) for name in ("zero", "recompute", "mbs", "offload_activations") if name in more}
    request = request_of(model, cluster, stack, **JOB | more)
    exported = export(tool, plan_of(request, **{"zero": 2, **pins}), request)
    return exported, yaml.safe_load(exported.files[f"{tool}.yaml"])


def fields(exported: Exported) -> set[str]:
    return {gap.field for gap in exported.unsupported}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("cluster", ["8xA100-80GB", "2x8xA100-80GB"])
def test_a_step_has_the_batch_that_was_asked_for(tool: str, micro: int, cluster: str) -> None:
    exported, settings = written(tool, mbs=micro, cluster=cluster)
    devices = 16 if cluster.startswith("2x") else 8
    each, accumulated = (settings[name] for name in BATCH[tool])
    assert each == micro
    assert each * accumulated * devices == 64
    shards = json.loads(exported.files["ds_config.json"])
    assert settings["deepspeed"] == "ds_config.json"
    assert shards["zero_optimization"]["stage"] == 2
    assert shards["train_micro_batch_size_per_gpu"] == each
    assert shards["gradient_accumulation_steps"] == accumulated
    assert shards["train_batch_size"] == 64
    assert exported.unsupported == ()


def test_every_node_starts_its_processes() -> None:
    exported, _ = written("llama_factory", cluster="2x8xA100-80GB")
    assert exported.environment == {"FORCE_TORCHRUN": "1", "NNODES": "2", "NPROC_PER_NODE": "8"}
    assert exported.launch.split() == ["llamafactory-cli", "train", "llama_factory.yaml"]
    assert any("each of the 2 nodes" in words for words in exported.left_to_you)
    exported, _ = written("axolotl", cluster="2x8xA100-80GB")
    said = options(script_words(exported))
    assert said["--nnodes"] == ["2"]
    assert said["--nproc-per-node"] == ["8"]
    assert "-m axolotl.cli.train axolotl.yaml" in exported.launch


@pytest.mark.parametrize("tool", TOOLS)
def test_replicas_of_a_whole_model_need_no_deepspeed(tool: str) -> None:
    exported, settings = written(tool, zero=0, task="lora")
    assert "deepspeed" not in settings
    assert "ds_config.json" not in exported.files
    assert exported.unsupported == ()


def test_checkpoints_are_said_by_each_in_its_way() -> None:
    for recompute, full in (("full", True), ("none", False)):
        assert written("axolotl", recompute=recompute)[1]["gradient_checkpointing"] is full
        assert written("llama_factory", recompute=recompute)[1]["disable_gradient_checkpointing"] is not full
    offloads: dict[str, Any] = {"recompute": "full", "offload_activations": True}
    exported, settings = written("axolotl", **offloads)
    assert (settings["gradient_checkpointing"], exported.unsupported) == ("offload", ())
    exported, settings = written("llama_factory", **offloads)
    assert (settings["use_unsloth_gc"], exported.unsupported) == (True, ())


def test_adapters_sit_on_the_modules_of_the_checkpoint() -> None:
    adapters: dict[str, Any] = {"task": "lora", "lora": {"rank": 8, "targets": ["q", "v"]}}
    _, settings = written("axolotl", **adapters)
    assert (settings["adapter"], settings["load_in_4bit"]) == ("lora", False)
    assert (settings["lora_r"], settings["lora_alpha"], settings["lora_target_modules"]) == (
        8,
        16,
        ["q_proj", "v_proj"],
    )
    _, settings = written("llama_factory", **adapters)
    assert settings["finetuning_type"] == "lora"
    assert (settings["lora_rank"], settings["lora_target"]) == (8, "q_proj,v_proj")
    assert "quantization_bit" not in settings
    adapters["task"] = "qlora"
    assert written("axolotl", **adapters)[1]["load_in_4bit"] is True
    assert written("llama_factory", **adapters)[1]["quantization_bit"] == 4
    assert written("llama_factory")[1]["finetuning_type"] == "full"
    assert "adapter" not in written("axolotl")[1]


def test_stacked_experts_carry_adapters_where_there_is_a_word_for_it() -> None:
    adapters: dict[str, Any] = {"task": "lora", "lora": {"rank": 8, "targets": ["q", "up"]}, "model": "qwen3-30b-a3b"}
    exported, settings = written("axolotl", **adapters)
    assert settings["lora_target_parameters"] == ["experts.gate_up_proj"]
    assert exported.unsupported == ()
    assert fields(written("llama_factory", **adapters)[0]) == {"job.lora.targets"}
    quantised, settings = written("axolotl", stack="hf-trainer-4bit-experts", **adapters | {"task": "qlora"})
    assert settings["quantize_moe_experts"] is True
    assert quantised.unsupported == ()


def test_who_keeps_fp32_weights_is_told() -> None:
    """axolotl loads weights in 16 bits and DDP makes no others; LLaMA-Factory casts what is trained to fp32."""
    assert fields(written("axolotl", zero=0)[0]) == {"job.master_dtype"}
    exported, settings = written("axolotl", zero=0, **HALF)
    assert (settings["bf16"], exported.unsupported) == ("full", ())
    assert written("axolotl", zero=1)[1]["bf16"] is True
    exported, settings = written("llama_factory", zero=0)
    assert (settings["bf16"], exported.unsupported) == (True, ())
    exported, settings = written("llama_factory", zero=0, **HALF)
    assert settings["pure_bf16"] is True
    assert "bf16" not in settings
    assert exported.unsupported == ()
    for tool in TOOLS:
        assert "plan.zero_stage" in fields(written(tool, **HALF)[0])


def test_kernels_are_those_that_were_priced() -> None:
    _, settings = written("axolotl", stack="hf-trainer-liger", linear_cross_entropy=True)
    assert settings["plugins"] == ["axolotl.integrations.liger.LigerPlugin"]
    assert settings["liger_rms_norm"] is settings["liger_fused_linear_cross_entropy"] is True
    _, settings = written("axolotl", fused_cross_entropy=True)
    assert settings["liger_cross_entropy"] is True
    assert "liger_rms_norm" not in settings
    assert "plugins" not in written("axolotl")[1]
    exported, settings = written("llama_factory", stack="hf-trainer-liger", linear_cross_entropy=True)
    assert (settings["enable_liger_kernel"], exported.unsupported) == (True, ())
    assert fields(written("llama_factory", stack="hf-trainer-liger")[0]) == {"job.linear_cross_entropy"}
    assert fields(written("llama_factory", linear_cross_entropy=True)[0]) == {"job.linear_cross_entropy"}
    assert fields(written("llama_factory", fused_cross_entropy=True)[0]) == {"job.fused_cross_entropy"}
    compiled, settings = written("llama_factory", stack="hf-trainer-compiled")
    assert (settings["torch_compile"], compiled.unsupported) == (True, ())
    assert fields(written("axolotl", stack="hf-trainer-compiled")[0]) == {"plan.zero_stage"}


@pytest.mark.parametrize(
    ("job", "axolotl", "llama_factory"),
    [
        ({}, ("sdp_attention", True), "sdpa"),
        ({"attention_library": "flash_2"}, ("flash_attention", True), "fa2"),
        ({"attention_library": "flash_3"}, ("attn_implementation", "kernels-community/vllm-flash-attn3"), "fa3"),
        ({"attention": "unfused"}, ("eager_attention", True), "disabled"),
    ],
)
def test_attention_is_the_one_that_was_priced(
    job: dict[str, Any], axolotl: tuple[str, Any], llama_factory: str
) -> None:
    option, value = axolotl
    assert written("axolotl", cluster="8xH100", **job)[1][option] == value
    assert written("llama_factory", cluster="8xH100", **job)[1]["flash_attn"] == llama_factory
    for tool in TOOLS:
        cudnn, _ = written(tool, cluster="8xH100", attention_library="cudnn")
        assert fields(cudnn) == {"job.attention_library"}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_run_has_its_steps_and_its_optimizer(tool: str) -> None:
    _, settings = written(tool, train_tokens=64 * 2048 * 100, optimizer="adamw8bit")
    assert settings["max_steps"] == 100
    assert settings["optimizer" if tool == "axolotl" else "optim"] == "adamw_bnb_8bit"
    assert "max_steps" not in written(tool)[1]
    assert fields(written(tool, frozen_dtype="fp32", task="lora")[0]) == {"job.frozen_dtype"}


@pytest.mark.parametrize(
    ("pins", "field"),
    [
        ({"tp": 2, "zero": 1}, "plan.tensor_parallel"),
        ({"cp": 2, "zero": 1, "context_kind": "ulysses"}, "plan.context_parallel"),
        ({"zero": 0}, "plan.zero_stage"),
    ],
)
@pytest.mark.parametrize("tool", ["axolotl", "llama-factory"])
def test_what_runs_on_replicas_alone_refuses_the_rest(tool: str, pins: dict[str, Any], field: str) -> None:
    job = JOB | {"task": "lora"}
    with pytest.raises(SpecError) as caught:
        planner.export("llama-3-8b", "8xA100-80GB", job, format=tool, framework="deepspeed", plan=pins)
    assert caught.value.field == field


@pytest.mark.parametrize("tool", ["axolotl", "llama-factory"])
def test_the_best_plan_that_a_tool_runs_is_found(tool: str) -> None:
    result = planner.export("llama-3-8b", "4xA100-80GB", JOB, format=tool)
    assert result.fits
    assert result.plan is not None
    assert (result.plan.tensor_parallel, result.plan.context_parallel) == (1, 1)
    packed = planner.export("llama-3-8b", "4xA100-80GB", JOB | {"sample_tokens": 512, "task": "lora"}, format=tool)
    assert packed.exported is not None
    settings = yaml.safe_load(packed.exported.files[f"{tool.replace('-', '_')}.yaml"])
    assert settings["sample_packing" if tool == "axolotl" else "neat_packing"] is True
