"""Exports: what each target is told, what it cannot be told, and plans of saved answers."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

import planner
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.table import stage_table
from planner.exporters.document import export_schema
from planner.exporters.formats import FORMATS
from planner.exporters.trainer import script_notes
from planner.question.request import Options
from profiles.errors import SpecError
from tests.exported import export, options, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


def test_megatron_lm_is_told_plan_model_and_job() -> None:
    request = request_of("llama-3-70b", "4x8xH100", "megatron", **JOB | {"train_tokens": 2048 * 64 * 100})
    plan = plan_of(request, tp=4, pp=2, vpp=4, cp=2, sp=True, zero=1, recompute="block:8", mbs=2)
    exported = export("megatron_lm", plan, request)
    read = options(script_words(exported))
    assert exported.unsupported == ()
    wanted = {
        "--nnodes": ["4"],
        "--nproc-per-node": ["8"],
        "--num-layers": ["80"],
        "--hidden-size": ["8192"],
        "--ffn-hidden-size": ["28672"],
        "--num-query-groups": ["8"],
        "--kv-channels": ["128"],
        "--tensor-model-parallel-size": ["4"],
        "--pipeline-model-parallel-size": ["2"],
        "--num-virtual-stages-per-pipeline-rank": ["4"],
        "--context-parallel-size": ["2"],
        "--cp-comm-type": ["p2p"],
        "--micro-batch-size": ["2"],
        "--global-batch-size": ["64"],
        "--train-samples": ["6400"],
        "--recompute-method": ["block"],  # of each of 4 chunks, so that a rank recomputes 8
    }
    assert {name: read.get(name) for name in wanted} == wanted
    assert read["--recompute-num-layers"] == ["2"]
    assert {"--swiglu", "--sequence-parallel", "--use-distributed-optimizer", "--bf16"} <= set(read)
    assert exported.environment == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert "--train-iters" not in exported.files["train.sh"]


def test_megatron_lm_builds_mixtures_and_latent_attention() -> None:
    request = request_of("deepseek-v3", "64x8xH800", "megatron", **JOB | {"global_batch_size": 256})
    exported = export("megatron_lm", plan_of(request, ep=64, pp=2, first_stage_layers=30), request)
    read = options(script_words(exported))
    assert read["--moe-layer-freq"] == ["([0]*3+[1]*58)"]
    assert (read["--num-experts"], read["--moe-router-topk"]) == (["256"], ["8"])
    assert (read["--q-lora-rank"], read["--kv-lora-rank"], read["--v-head-dim"]) == (["1536"], ["512"], ["128"])
    assert "--group-query-attention" not in read  # its parser refuses both


@pytest.mark.parametrize(
    ("cluster", "pins", "connections"),
    [
        ("8xH100", {"tp": 2, "zero": 1}, "1"),
        ("8xH100", {"zero": 1}, None),
        ("8xB200", {"tp": 2, "zero": 1}, None),  # from Blackwell on, nobody asks for it
        ("8xH100", {"tp": 2, "zero": 3}, "8"),  # Megatron-FSDP refuses 1
    ],
)
def test_megatron_lm_queues(cluster: str, pins: dict[str, Any], connections: str | None) -> None:
    request = request_of("llama-3-8b", cluster, "megatron", **JOB)
    exported = export("megatron_lm", plan_of(request, **pins), request)
    assert exported.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == connections
    assert (connections is not None) == ("export CUDA_DEVICE_MAX_CONNECTIONS=" in exported.files["train.sh"])


def test_stages_laid_out_by_hand() -> None:
    request = request_of("llama-2-7b", "8xA100-80GB", "megatron", **JOB)
    plan = replace(plan_of(request, pp=4, zero=1), stage_layers=(6, 9, 9, 8))
    read = options(script_words(export("megatron_lm", plan, request)))
    assert read["--pipeline-model-parallel-layout"] == ["Et*6|t*9|t*9|t*8L"]


def test_layers_that_do_not_divide_are_laid_out_chunk_by_chunk() -> None:
    """61 layers on 2 ranks of 4 chunks: 30 and 31, the first chunks of both ranks first."""
    job = {"sequence_length": 4096, "global_batch_size": 512, "precision": "fp8"}
    request = request_of("deepseek-v3", "64x8xH100", "megatron-core-hybrid-ep-overlap", **job)
    plan = plan_of(request, tp=4, pp=2, vpp=4, sp=True, ep=64, zero=1)
    read = options(script_words(export("megatron_lm", plan, request)))
    layout = read["--pipeline-model-parallel-layout"][0]
    counts = [int(chunk.strip("ELt*")) for chunk in layout.split("|")]
    assert len(counts) == 8
    assert (sum(counts[::2]), sum(counts[1::2])) == tuple(
        int(n) for n in stage_table(PlanBatch.from_plans([plan]), request.model, full=True).layers[0]
    )
    assert sum(counts) == 61
    assert max(counts) - min(counts) == 1
    assert (layout[0], layout[-1]) == ("E", "L")
    assert "--num-virtual-stages-per-pipeline-rank" not in read
    assert read["--moe-token-dispatcher-type"] == ["flex"]
    assert read["--moe-flex-dispatcher-backend"] == ["hybridep"]
    assert (read["--moe-router-num-groups"], read["--moe-router-group-topk"]) == (["8"], ["4"])
    assert {"--overlap-moe-expert-parallel-comm", "--delay-wgrad-compute"} <= read.keys()


def test_settings_for_exchanges_are_left_off_where_nothing_is_exchanged() -> None:
    request = request_of("qwen3-30b-a3b", "8xH200", "megatron-core-hybrid-ep-overlap", **JOB)
    read = options(script_words(export("megatron_lm", plan_of(request, tp=8, sp=True, zero=1), request)))
    assert read["--moe-token-dispatcher-type"] == ["alltoall"]
    assert not {"--moe-flex-dispatcher-backend", "--overlap-moe-expert-parallel-comm"} & read.keys()


def test_deepspeed_is_told_everything_its_configuration_has() -> None:
    request = request_of("llama-2-7b", "2x8xA100-80GB", "deepspeed", **JOB | {"gradient_dtype": "fp32"})
    plan = plan_of(request, zero=3, mbs=2, offload_optimizer=True, offload_parameters=True, recompute="full")
    exported = export("deepspeed", plan, request)
    assert json.loads(exported.files["ds_config.json"]) == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "offload_param": {"device": "cpu", "pin_memory": True},
        },
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {"type": "AdamW"},
    }
    words = "deepspeed --num_nodes 2 --num_gpus 8 --hostfile hostfile train.py"
    assert exported.launch == f"{words} --deepspeed --deepspeed_config ds_config.json"
    assert any("gradient_checkpointing_enable" in words for words in exported.left_to_you)


def test_the_trainer_is_told_what_its_file_is_told() -> None:
    request = request_of("llama-2-7b", "8xA100-80GB", "huggingface", task="lora", **JOB)
    exported = export("deepspeed", plan_of(request, zero=2, mbs=4, recompute="full"), request)
    read = options(script_words(exported))
    assert read["--per_device_train_batch_size"] == ["4"]
    assert read["--gradient_accumulation_steps"] == ["2"]
    assert read["--gradient_checkpointing"] == ["true"]
    assert "optimizer" not in json.loads(exported.files["ds_config.json"])  # it is the Trainer's: --optim
    assert any("peft.LoraConfig(r=16, target_modules=" in words for words in exported.left_to_you)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "torch.bfloat16"), ("fp16", "torch.float16")])
def test_four_bit_weights_are_stored_as_numbers_that_fsdp_shards(precision: str, dtype: str) -> None:
    request = request_of("llama-3-8b", "4xA10G", "huggingface", task="qlora", precision=precision, **JOB)
    (words,) = (words for words in script_notes(request) if "BitsAndBytesConfig" in words)
    assert words.endswith(f"bnb_4bit_compute_dtype={dtype}, bnb_4bit_quant_storage={dtype})")
    assert 'bnb_4bit_quant_type="nf4"' in words


@pytest.mark.parametrize(
    ("framework", "regional"),
    [("fsdp", True), ("hf-trainer-compiled", False), ("fsdp-eager", None), ("hf-trainer", None)],
)
def test_accelerate_compiles_what_was_priced_compiled(framework: str, regional: bool | None) -> None:
    found = planner.export("llama-3.2-1b", "8xA100-80GB", JOB, format="accelerate", framework=framework).exported
    assert found is not None
    compiler = yaml.safe_load(found.files["accelerate.yaml"]).get("dynamo_config")
    wanted = {"dynamo_backend": "INDUCTOR", "dynamo_use_regional_compilation": regional}
    assert compiler == (None if regional is None else wanted)


def test_accelerate_shards_over_context_ranks_too() -> None:
    request = request_of("llama-2-7b", "2x8xA100-80GB", "fsdp", **JOB)
    plan = plan_of(request, cp=2, zero=3, hsdp=8, context_kind="all_gather", recompute="full")
    exported = export("accelerate", plan, request)
    config = yaml.safe_load(exported.files["accelerate.yaml"])
    assert exported.unsupported == ()
    assert (config["num_machines"], config["num_processes"], config["mixed_precision"]) == (2, 16, "bf16")
    sizes = {name.removeprefix("parallelism_config_"): size for name, size in config["parallelism_config"].items()}
    assert sizes == {
        "dp_replicate_size": 2,
        "dp_shard_size": 4,
        "tp_size": 1,
        "cp_size": 2,
        "cp_comm_strategy": "allgather",
    }
    assert config["fsdp_config"]["fsdp_reshard_after_forward"] is True
    assert config["fsdp_config"]["fsdp_activation_checkpointing"] is True


@pytest.mark.parametrize("model", ["deepseek-v2-lite", "deepseek-v3", "kimi-k2"])
def test_latent_attention_has_its_norms_in_megatron_lm(model: str) -> None:
    request = request_of(model, "8xH100", "megatron", **JOB)
    assert "--qk-layernorm" in script_words(export("megatron_lm", plan_of(request), request))


def test_megatron_lm_keeps_the_last_layer_s_activations_on_the_device() -> None:
    request = request_of("llama-2-7b", "8xA100-80GB", "megatron", **JOB)
    exported = export("megatron_lm", plan_of(request, offload_activations=True), request)
    assert exported.unsupported == ()
    assert options(script_words(exported))["--cpu-offloading-num-layers"] == ["31"]


def test_a_model_of_the_same_shape_has_the_same_recipe() -> None:
    request = request_of("llama-3.1-8b", "8xH100", "fsdp", **JOB)
    plan = plan_of(request, zero=3)
    renamed = replace(request, model=replace(request.model, name="mine"))
    assert "--config llama3_8b " in export("torchtitan", plan, renamed).launch
    other = replace(request, model=replace(request.model, num_layers=30))
    with pytest.raises(SpecError, match=r"model: torchtitan 0\.3\.0 has no configuration"):
        export("torchtitan", plan, other)


GAPS = [
    ("accelerate", "llama-2-7b", "fsdp", {"precision": "bf16", "gradient_dtype": "bf16"}, {}, "job.gradient_dtype"),
    ("torchtitan", "llama-3.1-8b", "fsdp", {"task": "full"}, {"zero": 3}, "job.task"),
    (
        "torchtitan",
        "llama-3.1-8b",
        "fsdp",
        {},
        {"zero": 3, "recompute": "full", "offload_activations": True},
        "plan.offload_activations",
    ),
    ("megatron_lm", "falcon-7b", "megatron", {}, {"zero": 1}, "model.parallel_residual"),
    ("megatron_lm", "llama-2-7b", "megatron", {"task": "lora"}, {}, "job.task"),
    ("megatron_lm", "llama-2-7b", "megatron", {"precision": "fp8", "fp8_attention": True}, {}, "job.fp8_attention"),
    ("accelerate", "llama-2-7b", "fsdp", {}, {"tp": 8, "sp": True}, "plan.tensor_parallel"),
    ("deepspeed", "llama-2-7b", "huggingface", {}, {"zero": 3, "hsdp": 2}, "plan.zero_shard_degree"),
    ("deepspeed", "llama-2-7b", "huggingface", {}, {"zero": 0}, "plan.zero_stage"),
    ("accelerate", "llama-2-7b", "huggingface", {}, {"zero": 1}, "plan.zero_stage"),
    (
        "accelerate",
        "llama-2-7b",
        "huggingface",
        {"task": "full", "optimizer": "adamw8bit", "paged_optimizer": True},
        {"zero": 3},
        "job.paged_optimizer",
    ),
    ("accelerate", "llama-2-7b", "fsdp", {}, {"pp": 2, "zero": 3}, "plan.pipeline_parallel"),
    ("torchtitan", "llama-3.1-8b", "fsdp", {}, {"cp": 2, "zero": 3}, "plan.context_kind"),
    ("torchtitan", "llama-3.1-8b", "fsdp", {"precision": "bf16", "dropout": True}, {}, "job.dropout"),
]


@pytest.mark.parametrize(("format_", "model", "framework", "job", "pins", "field"), GAPS)
def test_what_cannot_be_said_is_told(
    format_: str, model: str, framework: str, job: dict[str, Any], pins: dict[str, Any], field: str
) -> None:
    cluster = "8xH100" if "fp8_attention" in job else "8xA100-80GB"
    request = request_of(model, cluster, framework, **JOB | job)
    exported = export(format_, plan_of(request, **pins), request)
    (gap,) = [gap for gap in exported.unsupported if gap.field == field]
    comments = " ".join(line.removeprefix("#").strip() for line in exported.files["train.sh"].splitlines())
    assert f"{field}: {gap.problem}" in comments


def test_a_gap_is_an_error_unless_it_is_allowed() -> None:
    asked: dict[str, Any] = {"format": "deepspeed", "framework": "huggingface", "plan": {"hsdp": 2, "zero": 3}}
    with pytest.raises(SpecError) as caught:
        planner.export("llama-2-7b", "8xA100-80GB", JOB, **asked)
    assert caught.value.field == "plan.zero_shard_degree"
    assert caught.value.hint.endswith("hsdp 0; or allow_partial")
    result = planner.export("llama-2-7b", "8xA100-80GB", JOB, **asked, allow_partial=True)
    assert result.exported is not None
    assert result.exported.unsupported[0].field == "plan.zero_shard_degree"


@pytest.mark.parametrize(("format_", "framework"), [("megatron-lm", "fsdp"), ("torchtitan", "megatron-2021")])
def test_other_software_is_refused(format_: str, framework: str) -> None:
    with pytest.raises(SpecError, match=r"framework: plans for .* are not plans for .* Hint: framework "):
        planner.export("llama-2-7b", "8xA100-80GB", JOB, format=format_, framework=framework)


@pytest.mark.parametrize(("format_", "stack"), [("deepspeed", "deepspeed"), ("torchtitan", "fsdp")])
def test_a_format_says_which_framework_to_plan_for(format_: str, stack: str) -> None:
    model = "llama-3.1-8b"
    for asked in ({}, {"options": Options()}):
        result = planner.export(model, "8xH100", JOB, format=format_, **asked)
        assert result.request.stack.name == stack
    assert result.plan == planner.export(model, "8xH100", JOB, format=format_, framework=stack).plan


def test_the_plan_is_the_one_that_is_explained() -> None:
    explained = planner.estimate("llama-2-7b", "8xA100-80GB", JOB, plan={"tp": 2})
    result = planner.export("llama-2-7b", "8xA100-80GB", JOB, plan={"tp": 2}, format="megatron-lm")
    assert explained.best is not None
    assert result.plan == explained.best.plan
    document = planner.to_document(result)
    jsonschema_rs.validate(export_schema(), document)
    assert json.loads(json.dumps(document)) == document


def test_a_plan_that_uses_fewer_devices_is_launched_on_these() -> None:
    job = {"sequence_length": 512, "global_batch_size": 8}
    result = planner.export("llama-3.2-1b", "2x8xH100", job, format="megatron-lm", objective="fewest_gpus")
    assert result.plan is not None
    assert result.exported is not None
    assert result.plan.num_devices < 8
    assert f"--nnodes 1 --nproc-per-node {result.plan.num_devices} " in result.exported.launch


def test_without_a_legal_plan_there_is_nothing_to_write() -> None:
    result = planner.export(
        "llama-2-7b", "8xA100-80GB", JOB | {"global_batch_size": 12}, format="accelerate", framework="huggingface"
    )
    assert (result.exported, result.fits) == (None, False)
    jsonschema_rs.validate(export_schema(), planner.to_document(result))


def test_a_saved_plan_is_the_same_plan() -> None:
    answer = planner.plan("llama-3-8b", "2x8xH100", JOB, top=4, memory_reserve_bytes=1e9)
    document = json.loads(json.dumps(planner.to_document(answer)))
    for rank, item in enumerate(answer.plans, 1):
        result = planner.export_saved(document, format="megatron-lm", rank=rank)
        assert (result.plan, result.fits) == (item.plan, item.fits)
        assert replace(result.request.model, source="") == replace(answer.request.model, source="")
        assert result.request.job == answer.request.job
        assert result.exported is not None
        assert result.exported == export("megatron_lm", item.plan, answer.request)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "search"}, "document"),
        ({"schema_version": "9.0"}, "document"),
        ({"plans": []}, "rank"),
        ({"plans": "none"}, "rank"),
        ({"request": None}, "document"),
        ({"request": {"model": {"num_layers": "x"}, "cluster": {}, "job": {}}}, "document.request.model.num_layers"),
    ],
)
def test_other_documents_are_refused(change: dict[str, Any], field: str) -> None:
    document = planner.to_document(planner.plan("llama-2-7b", "8xA100-80GB", JOB, top=1))
    with pytest.raises(SpecError) as caught:
        planner.export_saved(document | change, format="megatron-lm")
    assert caught.value.field == field


def test_a_saved_plan_that_its_framework_refuses_is_refused() -> None:
    document = planner.to_document(planner.plan("llama-2-7b", "8xA100-80GB", JOB, top=1))
    document["plans"][0]["plan"]["tensor_parallel"] = 3
    with pytest.raises(SpecError, match=r"document\.plans\.0\.plan\.data_parallel: "):
        planner.export_saved(document, format="megatron-lm")


@pytest.mark.parametrize("given", [[], ["--data-path", "my data"]])
def test_the_shell_runs_what_is_said(given: list[str], tmp_path: Path) -> None:
    """Patterns of layers stay one word, variables are filled in, and mock data go where the user names data."""
    request = request_of("deepseek-v3", "64x8xH800", "megatron", **JOB | {"global_batch_size": 256})
    exported = export("megatron_lm", plan_of(request, ep=64, pp=2, first_stage_layers=30), request)
    (tmp_path / "train.sh").write_text(exported.files["train.sh"])
    (tmp_path / "torchrun").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "torchrun").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODE_RANK": "3", "MASTER_ADDR": "first"}
    done = subprocess.run(
        ["bash", "train.sh", *given], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    read = options(words)
    assert (read["--node-rank"], read["--master-addr"], read["--master-port"][0]) == (["3"], ["first"], "29500")
    assert read["--moe-layer-freq"] == ["([0]*3+[1]*58)"]
    assert words[-len(given) :] == given if given else words[-2:] == ["--train-iters", "20"]
    assert ("--mock-data" in words) == (not given)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_name_cannot_leave_its_comment(format_: str) -> None:
    of = {"megatron-lm": "megatron", "megatron-bridge": "megatron", "deepspeed": "deepspeed", "nanotron": "nanotron"}
    framework = of.get(format_, "fsdp")
    request = request_of("llama-3.1-8b", "8xA100-80GB", framework, **JOB)
    named = replace(request, model=replace(request.model, name="x\n$(touch /tmp/y)\rz\u2028w; a"))
    exported = export(
        format_.replace("-", "_"), ExecutionPlan(data_parallel=8, zero_stage=3, num_microbatches=8), named
    )
    outside = [line for line in exported.files["train.sh"].splitlines() if not line.startswith("#")]
    assert "touch" not in "".join(outside)
    assert "touch" not in exported.launch
    files = exported.files.get("accelerate.yaml", "") + exported.files.get("config.yaml", "")
    comments = [line for line in files.splitlines() if "touch" in line]
    assert all(line.startswith("#") for line in comments)


def test_packs_are_left_to_who_makes_them() -> None:
    asked = {"sequence_length": 2048, "global_batch_size": 64}
    for job, packs in ((asked, []), (asked | {"sample_tokens": 256}, ["packs with samples of 256 tokens"])):
        result = planner.export("llama-2-7b", "8xA100-80GB", job, format="megatron-lm")
        assert result.exported is not None
        assert [text.split(",")[0] for text in result.exported.left_to_you if text.startswith("packs")] == packs


@pytest.mark.parametrize("given", [None, 3, ["nanotron"]])
def test_a_format_that_is_no_name_is_told_the_names(given: Any) -> None:
    with pytest.raises(SpecError, match=r"^format: must be a name; got .*\. Hint: one of megatron-.*, trl$"):
        planner.export("llama-2-7b", "8xA100-80GB", JOB, format=given)
    with pytest.raises(SpecError, match=r"^format: must be a name; got .*\. Hint: one of verl, nemo-rl, openrlhf$"):
        planner.export_dataflow("grpo", "llama-3.2-1b", "8xA100-80GB", format=given)
