"""TRL's file: the batch, the weights, the loss and the adapters that were priced, or a refusal."""

from typing import Any

import pytest
import yaml

import planner
from planner.exporters.exported import Exported
from profiles.errors import SpecError
from tests.exported import export, options, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64, "task": "full"}


def written(*, cluster: str = "8xA100-80GB", stack: str = "hf-trainer", **more: Any) -> tuple[Exported, dict[str, Any]]:
    """An export with its own YAML file; settings that plans have are pins, all else is of the job."""
    pins = {name: more.pop(name) for name in ("zero", "recompute", "mbs", "offload_activations") if name in more}
    model = more.pop("model", "llama-3-8b")
    request = request_of(model, cluster, stack, **JOB | more)
    exported = export("trl", plan_of(request, **{"zero": 3, **pins}), request)
    return exported, yaml.safe_load(exported.files["trl_sft.yaml"])


def fields(exported: Exported) -> set[str]:
    return {gap.field for gap in exported.unsupported}


@pytest.mark.parametrize(("cluster", "devices"), [("8xA100-80GB", 8), ("2x8xA100-80GB", 16)])
def test_a_step_has_the_batch_that_was_asked_for(cluster: str, devices: int) -> None:
    exported, settings = written(cluster=cluster, mbs=2)
    assert settings["per_device_train_batch_size"] == 2
    assert 2 * settings["gradient_accumulation_steps"] * devices == 64
    assert settings["max_length"] == 2048
    sharded = yaml.safe_load(exported.files["accelerate.yaml"])
    assert sharded["num_processes"] == devices
    assert sharded["fsdp_config"]["fsdp_reshard_after_forward"] is True
    assert exported.unsupported == ()
    assert exported.launch.startswith("trl sft --config trl_sft.yaml")
    assert ("--machine_rank" in options(script_words(exported))) is (devices > 8)


def test_weights_are_loaded_as_they_are_trained() -> None:
    assert written()[1]["dtype"] == "float32"
    _, adapters = written(task="lora", zero=0, lora={"rank": 8, "targets": ["q", "v"]})
    assert adapters["dtype"] == "bfloat16"
    assert (adapters["use_peft"], adapters["lora_r"], adapters["lora_alpha"]) == (True, 8, 16)
    assert adapters["lora_target_modules"] == ["q_proj", "v_proj"]
    assert "load_in_4bit" not in adapters
    assert written(task="qlora", zero=0)[1]["load_in_4bit"] is True
    assert "use_peft" not in written()[1]


def test_checkpoints_are_of_who_makes_them() -> None:
    """FSDP2 recomputes what Accelerate's file says; TRL would besides, unless told not to."""
    exported, settings = written(recompute="full")
    assert settings["gradient_checkpointing"] is False
    assert yaml.safe_load(exported.files["accelerate.yaml"])["fsdp_config"]["fsdp_activation_checkpointing"] is True
    _, whole = written(task="lora", zero=0, recompute="full", offload_activations=True)
    assert whole["gradient_checkpointing"] is whole["activation_offloading"] is True
    assert written(task="lora", zero=0)[1]["gradient_checkpointing"] is False


def test_the_loss_is_the_one_that_was_priced() -> None:
    assert written()[1]["loss_type"] == "nll"
    assert written(linear_cross_entropy=True)[1]["loss_type"] == "chunked_nll"
    exported, settings = written(stack="hf-trainer-liger", linear_cross_entropy=True)
    assert (settings["use_liger_kernel"], settings["loss_type"], exported.unsupported) == (True, "nll", ())
    assert fields(written(stack="hf-trainer-liger")[0]) == {"job.linear_cross_entropy"}
    assert fields(written(fused_cross_entropy=True)[0]) == {"job.fused_cross_entropy"}


def test_attention_packs_and_steps() -> None:
    assert written()[1]["attn_implementation"] == "sdpa"
    assert written(cluster="8xH100", attention_library="flash_3")[1]["attn_implementation"] == "flash_attention_3"
    assert fields(written(cluster="8xH100", attention_library="cudnn")[0]) == {"job.attention_library"}
    assert written()[1]["packing_strategy"] == "wrapped"
    assert written(sample_tokens=256)[1]["packing_strategy"] == "bfd"
    assert written(train_tokens=64 * 2048 * 50)[1]["max_steps"] == 50
    assert written(precision="fp16")[1]["bf16"] is False
    begun, _ = written(task="pretrain")
    assert any("goes on from those of the checkpoint" in words for words in begun.left_to_you)
    assert begun.unsupported == ()


@pytest.mark.parametrize(
    ("pins", "field"),
    [({"tp": 2, "zero": 3}, "plan.tensor_parallel"), ({"cp": 2, "zero": 3}, "plan.context_parallel")],
)
def test_what_needs_a_script_is_refused(pins: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        planner.export("llama-3-8b", "8xA100-80GB", JOB, format="trl", framework="hf-trainer", plan=pins)
    assert caught.value.field == field


def test_the_best_plan_that_it_runs_is_found() -> None:
    result = planner.export("llama-3-8b", "8xA100-80GB", JOB, format="trl")
    assert result.fits
    assert result.plan is not None
    assert result.plan.zero_stage in (2, 3)
