"""What exports say of how kernels run: optimizers, attention, queues."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import planner
from planner.exporters.trainer import script_notes
from profiles.errors import SpecError
from tests.exported import export, options, overrides, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


@pytest.mark.parametrize(
    ("format", "zero", "name"),
    [("accelerate", 3, "adamw_torch_8bit"), ("accelerate", 0, "adamw_bnb_8bit"), ("deepspeed", 3, "adamw_bnb_8bit")],
)
def test_eight_bit_states_are_of_who_can_shard_them(format: str, zero: int, name: str) -> None:
    """bitsandbytes' kernels do not take the tensors of FSDP2 (its issue 1633)."""
    job = JOB | {"task": "full", "optimizer": "adamw8bit"}
    exported = export(
        format, plan_of(request := request_of("llama-3-8b", "8xA100-80GB", "huggingface", **job), zero=zero), request
    )
    assert options(script_words(exported))["--optim"] == [name]
    loads = any("from_pretrained(dtype=torch.float32)" in words for words in exported.left_to_you)
    assert loads is (format == "accelerate")


@pytest.mark.parametrize(
    ("library", "backend"), [("", "auto"), ("flash_2", "flash"), ("flash_3", "flash"), ("cudnn", "fused")]
)
def test_the_attention_that_was_priced_is_named(library: str, backend: str) -> None:
    job = JOB | ({"attention_library": library} if library else {})
    request = request_of("llama-3-8b", "8xH100", "megatron", **job)
    exported = export("megatron_lm", plan_of(request, tp=2), request)
    assert options(script_words(exported))["--attention-backend"] == [backend]
    trainer = request_of("llama-3-8b", "8xH100", "huggingface", task="full", **job)
    (words,) = (words for words in script_notes(trainer) if words.startswith("attention"))
    assert ("flash_attention_3" in words) is (library == "flash_3")


@pytest.mark.parametrize(("stack", "connections"), [("megatron-core", "1"), ("megatron-core-ep-overlap", None)])
def test_an_exchange_beside_kernels_has_a_queue_of_its_own(stack: str, connections: str | None) -> None:
    request = request_of("qwen3-30b-a3b", "8xH100", stack, **JOB)
    exported = export("megatron_lm", plan_of(request, tp=2, sp=True, ep=4, zero=1), request)
    assert exported.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == connections


def implementation(words: tuple[str, ...]) -> str:
    (found,) = (each for each in words if each.startswith("attention: attn_implementation "))
    return found.removeprefix("attention: attn_implementation ").partition(" in from_pretrained")[0]


@pytest.mark.parametrize(
    ("model", "device", "job", "found"),
    [
        ("llama-3.2-1b", "A100", {}, "sdpa or flash_attention_2"),
        ("llama-3.2-1b", "T4", {}, "sdpa"),
        ("llama-3.2-1b", "V100", {}, "sdpa"),
        ("llama-3.2-1b", "A100", {"precision": "tf32"}, "sdpa"),
        ("gpt-oss-20b", "H100", {}, "eager"),
        ("gpt-oss-20b", "A100", {"attention": "flash"}, "flex_attention"),
        ("gpt-oss-20b", "H100", {"attention_library": "flash_3"}, "kernels-community/vllm-flash-attn3"),
        ("gemma-2-2b", "A100", {}, "eager"),
        ("gemma-2-2b", "A100", {"attention": "flash"}, "flex_attention"),
        ("gemma-2-2b", "A100", {"attention_library": "flash_2"}, "flash_attention_2"),
    ],
)
def test_the_attention_that_is_named_runs_on_the_device(
    model: str, device: str, job: dict[str, Any], found: str
) -> None:
    """FlashAttention-2 is for 16 bits on Ampere and newer; neither it nor PyTorch's knows sinks, and it alone caps."""
    request = request_of(model, f"1x{device}", "huggingface", task="lora", **JOB, **job)
    assert implementation(script_notes(request)) == found


def test_context_ranks_share_pytorch_s_attention_alone() -> None:
    """The Trainer raises otherwise (_prepare_context_parallel_inputs), and the guide wants shifted labels."""
    request = request_of("llama-2-7b", "8xA100-80GB", "fsdp", **JOB)
    ring = export("accelerate", plan_of(request, cp=2, zero=3, context_kind="ring"), request).left_to_you
    gathered = export("accelerate", plan_of(request, cp=2, zero=3, context_kind="all_gather"), request).left_to_you
    whole = export("accelerate", plan_of(request, zero=3), request).left_to_you
    assert implementation(ring) == implementation(gathered) == "sdpa"
    assert implementation(whole) == "sdpa or flash_attention_2"
    assert any("allgather" in words for words in ring)
    for said in ("no packing masks", "shift_labels"):
        assert [any(said in words for words in each) for each in (ring, gathered, whole)] == [True, True, False]
    assert not any("alltoall" in words for words in (*gathered, *whole))


@pytest.mark.parametrize("job", [{"attention_library": "flash_3"}, {"attention": "unfused"}])
def test_accelerate_refuses_other_attention_of_context_ranks(job: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"format": "accelerate", "framework": "fsdp"}
    with pytest.raises(SpecError, match=rf"^job\.{next(iter(job))}: .* context ranks share PyTorch's attention alone"):
        planner.export("llama-2-7b", "8xH100", JOB | job, plan={"cp": 2, "zero": 3}, **asked)
    assert planner.export("llama-2-7b", "8xH100", JOB | job, plan={"cp": 1, "zero": 3}, **asked).exported


@pytest.mark.parametrize(("format", "framework"), [("accelerate", "fsdp"), ("deepspeed", "deepspeed")])
def test_a_kernel_that_knows_no_sinks_is_not_written(format: str, framework: str) -> None:
    job = JOB | {"task": "lora", "attention_library": "flash_2"}
    with pytest.raises(SpecError, match=r"job\.attention_library: .*flash_2"):
        planner.export("gpt-oss-20b", "8xH100", job, format=format, framework=framework)


@pytest.mark.parametrize(("format", "framework"), [("accelerate", "fsdp"), ("deepspeed", "deepspeed")])
def test_exports_name_attention_that_caps_logits(format: str, framework: str) -> None:
    job = JOB | {"task": "lora", "attention_library": "flash_2"}
    written = planner.export("gemma-2-9b", "8xH100", job, format=format, framework=framework).exported
    assert written is not None
    assert implementation(written.left_to_you) == "flash_attention_2"
    with pytest.raises(SpecError, match=r"job\.attention_library: .*cudnn"):
        planner.export("gemma-2-9b", "8xH100", job | {"attention_library": "cudnn"}, format=format, framework=framework)


def test_megatron_lm_caps_no_logits() -> None:
    """There is no such argument in megatron-core 0.19.2; four norms are not its, either."""
    with pytest.raises(SpecError, match=r"nor model\.attention_softcap"):
        planner.export("gemma-2-9b", "8xH100", JOB, format="megatron-lm", framework="megatron")


def test_deepspeed_is_told_no_batch_that_it_would_check_against_tensor_ranks() -> None:
    """It takes AutoTP's ranks for replicas: 64 sequences are not 4 x 16 x 4 of them."""
    request = request_of("llama-3-8b", "4xL40S", "deepspeed", **JOB)
    for tensor, told in ((1, True), (4, False)):
        exported = export("deepspeed", plan_of(request, tp=tensor, zero=2, mbs=4), request)
        assert ("train_batch_size" in json.loads(exported.files["ds_config.json"])) == told


def test_what_scripts_do_for_ranks_that_share_a_sequence_or_a_layer_is_left_to_them() -> None:
    split = request_of("llama-3-8b", "8xH100", "deepspeed", **JOB | {"sequence_length": 8192})
    words = export("deepspeed", plan_of(split, cp=2, context_kind="ulysses", zero=3), split).left_to_you
    assert any("UlyssesSPAttentionHF.register_with_transformers" in each for each in words)
    shared = request_of("llama-3-8b", "4xL40S", "fsdp", **JOB)
    for tensor in (1, 2):
        words = export("accelerate", plan_of(shared, tp=tensor, sp=tensor > 1, zero=3), shared).left_to_you
        assert any('tp_plan="auto"' in each for each in words) == (tensor > 1)


def test_a_checkpoint_in_mxfp4_is_trained_in_16_bits() -> None:
    for model, told in (("gpt-oss-20b", True), ("qwen3-30b-a3b", False)):
        request = request_of(model, "8xH100", "hf-trainer", **JOB | {"task": "lora"})
        words = export("accelerate", plan_of(request), request).left_to_you
        assert any("Mxfp4Config(dequantize=True)" in each for each in words) == told


def test_mxfp4_is_a_recipe_of_amds_megatron_alone() -> None:
    request = request_of("llama-3-8b", "8xMI355X", "megatron", **JOB | {"precision": "mxfp4"})
    plan = plan_of(request)
    exported = export("megatron_lm", plan, request)
    words = script_words(exported)
    assert words[words.index("--fp4-format") :][:4] == ["--fp4-format", "e2m1", "--fp4-recipe", "mxfp4"]
    assert any("ROCm/Megatron-LM" in words for words in exported.left_to_you)
    with pytest.raises(SpecError, match=r"mxfp4 is a recipe of AMD's libraries. Hint: --format megatron-lm"):
        planner.export("llama-3-8b", "8xMI355X", JOB | {"precision": "mxfp4"}, format="megatron-bridge")


GATHERS, SHARES = "--fp8-param-gather", "--reuse-grad-buf-for-mxfp8-param-ag"


@pytest.mark.parametrize(
    ("cluster", "precision", "pins", "written"),
    [
        ("8xH100", "bf16", {"zero": 1}, set()),
        ("8xH100", "fp8", {"zero": 1}, {GATHERS}),
        ("8xH100", "fp8", {"zero": 2}, {GATHERS}),
        ("8xH100", "fp8", {"zero": 1, "offload_optimizer": True}, {GATHERS}),
        ("8xB200", "mxfp8", {"zero": 1}, {GATHERS, SHARES}),
        ("8xB200", "mxfp8", {"zero": 2}, {GATHERS}),
        ("8xB200", "nvfp4", {"zero": 1}, set()),
        ("8xH100", "fp8", {"zero": 3}, set()),  # priced in 16 bits
        ("8xH100", "fp8", {"zero": 0}, None),
        ("8xB200", "mxfp8", {"zero": 1, "offload_optimizer": True}, None),
    ],
)
def test_megatron_core_keeps_weights_in_eight_bits_where_they_are_priced_so(
    cluster: str, precision: str, pins: dict[str, Any], written: set[str] | None
) -> None:
    """Unasked, Transformer Engine keeps copies beside the 16-bit weights that the plan's memory has none of."""
    request = request_of("llama-3-8b", cluster, "megatron", **JOB | {"precision": precision})
    plan = plan_of(request, tp=2, **pins)
    exported = export("megatron_lm", plan, request)
    assert {GATHERS, SHARES} & set(script_words(exported)) == (written or set())
    warned = [words for words in exported.left_to_you if "live in 8 bits" in words]
    assert len(warned) == (written is None)
    assert "param-gather" not in " ".join(exported.left_to_you)
    bridge = export("megatron_bridge", plan, request)
    fields = overrides(script_words(bridge))
    told = {field for field in fields if "fp8_param" in field or "reuse_grad_buf" in field}
    wanted = {"model.fp8_param", "ddp.fp8_param_gather"} if written else set()
    reused = {f"{part}.reuse_grad_buf_for_mxfp8_param_ag" for part in ("ddp", "optimizer")}
    assert told == wanted | (reused if SHARES in (written or ()) else set())
    assert len([words for words in bridge.left_to_you if "live in 8 bits" in words]) == len(warned)


@pytest.mark.parametrize(("given", "found"), [({}, None), ({"OMP_NUM_THREADS": "3"}, 3)])
@pytest.mark.parametrize("format", ["deepspeed", "accelerate", "axolotl", "llama_factory"])
def test_ranks_that_update_on_the_host_have_its_cores(
    format: str, given: dict[str, str], found: int | None, tmp_path: Path
) -> None:
    """torchrun and Accelerate would leave one thread to each."""
    request = request_of("llama-3-8b", "2x8xA100-80GB", "huggingface", **JOB | {"task": "full"})
    pins: dict[str, Any] = {"zero": 3, "offload_optimizer": True, "offload_parameters": True}
    exported = export(format, plan_of(request, **pins), request)
    (tmp_path / "train.sh").write_text(exported.files["train.sh"])
    for name in ("torchrun", "accelerate", "llamafactory-cli"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$OMP_NUM_THREADS"\n')
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODE_RANK": "0", "MASTER_ADDR": "first"} | given
    done = subprocess.run(["bash", "train.sh"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    cores = int(subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout)
    assert int(done.stdout) == (found or -(-cores // 8))
    whole = export(format, plan_of(request, zero=3), request)
    assert "OMP_NUM_THREADS" not in whole.files["train.sh"]
