"""Every legal plan, exported and read back, is the same plan; or the export says what is missing."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from costmodels.plan import ExecutionPlan, Recompute, Schedule
from planner.exporters.exported import Exported
from planner.results import Request
from planner.rules.modules import module_names
from profiles.errors import SpecError
from tests.exported import (
    BEST,
    QUESTIONS,
    export,
    export_refusals,
    legal_plans,
    options,
    overrides,
    script_words,
    some_plans,
)

DEGREES = ("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "expert_parallel")


def first(read: Mapping[str, list[str]], name: str, default: Any = 1) -> int:
    return int(read[name][0]) if name in read else default


def from_megatron(exported: Exported, request: Request) -> dict[str, Any]:
    read = options(script_words(exported))
    t, p = first(read, "--tensor-model-parallel-size"), first(read, "--pipeline-model-parallel-size")
    c = first(read, "--context-parallel-size")
    ranks = first(read, "--nnodes") * first(read, "--nproc-per-node") // (t * p)
    d, b = ranks // c, first(read, "--micro-batch-size")
    zero = {"optim_grads": 2, "optim_grads_params": 3}.get(
        read.get("--data-parallel-sharding-strategy", [""])[0], int("--use-distributed-optimizer" in read)
    )
    # Without it every device would first hold all weights.
    assert ("--init-model-with-meta-device" in read) == (zero == 3)
    copies = first(read, "--num-distributed-optimizer-instances", 0)
    method = read.get("--recompute-method", [""])[0]
    kind = {"uniform": "full", "block": "block"}.get(method, "selective" if "--recompute-modules" in read else "none")
    layout = read.get("--pipeline-model-parallel-layout", [""])[0]
    v = len(layout.split("|")) // p if layout else first(read, "--num-virtual-stages-per-pipeline-rank")
    return {
        **dict(zip(DEGREES, (t, p, d, c, first(read, "--expert-model-parallel-size")), strict=True)),
        "expert_tensor_parallel": first(read, "--expert-tensor-parallel-size"),
        "virtual_stages": v,
        "micro_batch_size": b,
        "num_microbatches": first(read, "--global-batch-size") // (b * d),
        "zero_stage": zero,
        "zero_shard_degree": ranks // copies if copies else 0,
        "recompute": Recompute[kind.upper()],
        "recompute_layers": first(read, "--recompute-num-layers") * v if kind == "block" else 0,
        "modules": tuple(read.get("--recompute-modules", ["core_attn"])),
        "sequence_parallel": "--sequence-parallel" in read,
        "tensor_parallel_overlap": "--tp-comm-overlap" in read,
        "offload_optimizer": "--optimizer-cpu-offload" in read,
        "offload_activations": "--cpu-offloading-num-layers" in read,
        "first_stage_layers": first(read, "--decoder-first-pipeline-num-layers", 0),
        "last_stage_layers": first(read, "--decoder-last-pipeline-num-layers", 0),
    }


def from_bridge(exported: Exported, request: Request) -> dict[str, Any]:
    words = script_words(exported)
    launch, said = options(words[: words.index("--recipe")]), overrides(words)
    of = {name.removeprefix("model."): value for name, value in said.items()}
    t, p, c = (int(of[f"{kind}_parallel_size"]) for kind in ("tensor_model", "pipeline_model", "context"))
    ranks = first(launch, "--nnodes") * int(launch["--nproc-per-node"][0]) // (t * p)
    b, d = int(said["train.micro_batch_size"]), ranks // c
    sharded = said.get("ddp.data_parallel_sharding_strategy")
    zero = {"optim_grads": 2, "optim_grads_params": 3}.get(
        str(sharded), int(said["ddp.use_distributed_optimizer"] == "true")
    )
    copies = int(said.get("ddp.num_distributed_optimizer_instances", 0))
    kind = {"uniform": "full", "block": "block"}.get(of["recompute_method"], of["recompute_granularity"])
    chunks, layout = of["virtual_pipeline_model_parallel_size"], of["pipeline_model_parallel_layout"]
    v = len(layout.split("|")) // p if layout != "null" else int(chunks.replace("null", "1"))
    assert (of.get("overlap_p2p_comm") == "true") == (v > 1)
    ends = {name: of[f"num_layers_in_{name}_pipeline_stage"].replace("null", "0") for name in ("first", "last")}
    return {
        **dict(zip(DEGREES, (t, p, d, c, int(of.get("expert_model_parallel_size", 1))), strict=True)),
        "expert_tensor_parallel": int(of.get("expert_tensor_parallel_size", 1)),
        "virtual_stages": v,
        "micro_batch_size": b,
        "num_microbatches": int(said["train.global_batch_size"]) // (b * d),
        "zero_stage": zero,
        "zero_shard_degree": ranks // copies if copies else 0,
        "recompute": Recompute[kind.upper().replace("NULL", "NONE")],
        "recompute_layers": int(of["recompute_num_layers"]) * v if kind == "block" else 0,
        "modules": tuple(of["recompute_modules"].replace("null", "[core_attn]")[1:-1].split(",")),
        "sequence_parallel": of["sequence_parallel"] == "true",
        "tensor_parallel_overlap": of["tp_comm_overlap"] == "true",
        "offload_optimizer": said.get("optimizer.optimizer_cpu_offload") == "true",
        "offload_activations": of.get("cpu_offloading") == "true",
        "first_stage_layers": int(ends["first"]),
        "last_stage_layers": int(ends["last"]),
    }


def from_deepspeed(exported: Exported, request: Request) -> dict[str, Any]:
    config = json.loads(exported.files["ds_config.json"])
    zero, read = config["zero_optimization"], options(script_words(exported))
    nodes, devices = ("--num_nodes", "--num_gpus") if "--num_nodes" in read else ("--nnodes", "--nproc-per-node")
    t, c = config.get("tensor_parallel", {}).get("autotp_size", 1), config.get("sequence_parallel_size", 1)
    b, m = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    d = first(read, nodes) * first(read, devices) // (t * c)
    if t == 1:
        assert config["train_batch_size"] == b * m * d
    else:  # DeepSpeed would take AutoTP's ranks for replicas
        assert "train_batch_size" not in config
    return {
        **dict(zip(DEGREES, (t, 1, d, c, 1), strict=True)),
        "micro_batch_size": b,
        "num_microbatches": m,
        "zero_stage": zero["stage"],
        "offload_optimizer": "offload_optimizer" in zero,
        "offload_parameters": "offload_param" in zero,
    }


def from_trainer(exported: Exported, request: Request) -> dict[str, Any]:
    read = options(script_words(exported))
    return from_accelerate(exported) | {
        "micro_batch_size": first(read, "--per_device_train_batch_size"),
        "num_microbatches": first(read, "--gradient_accumulation_steps"),
        **({"recompute": Recompute.FULL} if "--gradient_checkpointing" in read else {}),
    }


def from_trl(exported: Exported, request: Request) -> dict[str, Any]:
    config = yaml.safe_load(exported.files["trl_sft.yaml"])
    assert config["accelerate_config"] == "accelerate.yaml"
    found = from_accelerate(exported)
    return found | {
        "micro_batch_size": config["per_device_train_batch_size"],
        "num_microbatches": config["gradient_accumulation_steps"],
        "offload_activations": found["offload_activations"] or config.get("activation_offloading", False),
        **({"recompute": Recompute.FULL} if config["gradient_checkpointing"] else {}),
    }


def from_accelerate(exported: Exported) -> dict[str, Any]:
    config = yaml.safe_load(exported.files["accelerate.yaml"])
    sizes = {name: size for name, size in config.get("parallelism_config", {}).items() if "size" in name}
    sizes = {name.removeprefix("parallelism_config_"): size for name, size in sizes.items()}
    fsdp = config.get("fsdp_config", {})
    d = sizes["dp_replicate_size"] * sizes["dp_shard_size"] if sizes else config["num_processes"]
    t, c = sizes.get("tp_size", 1), sizes.get("cp_size", 1)
    assert d * t * c == config["num_processes"]
    sharded = {True: 3, False: 2}.get(fsdp.get("fsdp_reshard_after_forward"), 0)
    return {
        **dict(zip(DEGREES, (t, 1, d, c, 1), strict=True)),
        "zero_stage": sharded,
        "zero_shard_degree": sizes["dp_shard_size"] * c if sizes.get("dp_replicate_size", 1) > 1 else 0,
        "offload_parameters": bool(fsdp.get("fsdp_offload_params")) and sharded == 3,
        "offload_activations": "fsdp_activation_checkpointing_offload" in fsdp
        or any("activation_offloading" in words for words in exported.left_to_you),
        "recompute": Recompute.FULL if fsdp.get("fsdp_activation_checkpointing") else Recompute.NONE,
    }


def from_torchtitan(exported: Exported, request: Request) -> dict[str, Any]:
    read = options(script_words(exported), values=1)
    of = {name.rpartition(".")[2]: value for name, value in read.items() if "." in name}
    replicas, shard = (int(of[f"data_parallel_{kind}_degree"][0]) for kind in ("replicate", "shard"))
    c, p = int(of["context_parallel_degree"][0]), int(of["pipeline_parallel_degree"][0])
    local, total = int(of["local_batch_size"][0]), int(of["global_batch_size"][0])
    b = int(of["pipeline_parallel_microbatch_size"][0]) if p > 1 else local
    (kind,) = [word.partition(":")[2] for word in read[""] if word.startswith("activation-checkpoint:")]
    sharded = {"never": 2, "always": 3}[of["fsdp_reshard_after_forward"][0]] if shard > 1 or c > 1 else 0
    degrees = (int(of["tensor_parallel_degree"][0]), p, replicas * shard, c, int(of["expert_parallel_degree"][0]))
    return {
        **dict(zip(DEGREES, degrees, strict=True)),
        "micro_batch_size": b,
        "num_microbatches": total // (b * replicas * shard),
        "zero_stage": sharded,
        "recompute": Recompute[kind.upper()],
        "offload_optimizer": "--training.enable_cpu_offload" in read,
    }


def from_nanotron(exported: Exported, request: Request) -> dict[str, Any]:
    config, launch = yaml.safe_load(exported.files["config.yaml"]), options(script_words(exported))
    of, tokens = config["parallelism"], config["tokens"]
    degrees = [of[name] for name in ("tp", "pp", "dp", "context_parallel_size", "expert_parallel_size")]
    assert degrees[0] * degrees[1] * degrees[2] * degrees[3] == first(launch, "--nnodes") * first(
        launch, "--nproc-per-node"
    )
    return {
        **dict(zip(DEGREES, degrees, strict=True)),
        "micro_batch_size": tokens["micro_batch_size"],
        "num_microbatches": tokens["batch_accumulation_per_replica"],
        "zero_stage": config["optimizer"]["zero_stage"],
        "recompute": Recompute.FULL if of["recompute_layer"] else Recompute.NONE,
        "sequence_parallel": of["tp_mode"] == "REDUCE_SCATTER",
        "tensor_parallel_overlap": of["tp_linear_async_communication"],
        "schedule": {"1f1b": Schedule.ONE_F_ONE_B, "afab": Schedule.GPIPE}[of["pp_engine"]],
    }


def from_axolotl(exported: Exported, request: Request) -> dict[str, Any]:
    config, read = yaml.safe_load(exported.files["axolotl.yaml"]), options(script_words(exported))
    ranks, checkpoints = first(read, "--nnodes") * first(read, "--nproc-per-node"), config["gradient_checkpointing"]
    return from_tool(exported, ranks, config["micro_batch_size"], config["gradient_accumulation_steps"]) | {
        "recompute": Recompute.FULL if checkpoints else Recompute.NONE,
        "offload_activations": checkpoints == "offload",
    }


def from_llama_factory(exported: Exported, request: Request) -> dict[str, Any]:
    config, launched = yaml.safe_load(exported.files["llama_factory.yaml"]), exported.environment
    ranks, b = int(launched["NNODES"]) * int(launched["NPROC_PER_NODE"]), config["per_device_train_batch_size"]
    return from_tool(exported, ranks, b, config["gradient_accumulation_steps"]) | {
        "recompute": Recompute.NONE if config["disable_gradient_checkpointing"] else Recompute.FULL,
        "offload_activations": config.get("use_unsloth_gc", False),
    }


def from_tool(exported: Exported, ranks: int, micro_batch: int, accumulated: int) -> dict[str, Any]:
    sharded = json.loads(exported.files.get("ds_config.json", "{}")).get("zero_optimization", {"stage": 0})
    return {
        **dict(zip(DEGREES, (1, 1, ranks, 1, 1), strict=True)),
        "micro_batch_size": micro_batch,
        "num_microbatches": accumulated,
        "zero_stage": sharded["stage"],
        "offload_optimizer": "offload_optimizer" in sharded,
        "offload_parameters": "offload_param" in sharded,
    }


READERS = {
    "megatron_lm": from_megatron,
    "megatron_bridge": from_bridge,
    "deepspeed": from_deepspeed,
    "accelerate": from_trainer,
    "torchtitan": from_torchtitan,
    "nanotron": from_nanotron,
    "axolotl": from_axolotl,
    "llama_factory": from_llama_factory,
    "trl": from_trl,
}


def meant(plan: ExecutionPlan, name: str) -> Any:
    if name == "modules":
        return module_names(plan.recompute_modules)
    return getattr(plan, name)


@pytest.mark.parametrize("question", QUESTIONS, ids="-".join)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_plan_comes_back_from_what_is_written(question: tuple[str, str, str, str], data: st.DataObject) -> None:
    format_, *asked = question
    request, plans = legal_plans(*asked)
    plan = plans.plan(data.draw(st.integers(0, len(plans) - 1)))
    exported = export(format_, plan, request)
    missing = {gap.field.removeprefix("plan.") for gap in exported.unsupported}
    if not format_.startswith("megatron") and missing & set(DEGREES):  # what is missing moves ranks to another degree
        return
    read = READERS[format_](exported, request)
    assert read["data_parallel"] * read["num_microbatches"] * read["micro_batch_size"] == 96
    wrong = {name: (value, meant(plan, name)) for name, value in read.items() if value != meant(plan, name)}
    if plan.data_parallel * plan.context_parallel == 1:
        wrong.pop("zero_stage", None)  # nothing is sharded over one rank, whatever it is called
    assert {name: values for name, values in wrong.items() if name not in missing} == {}


@pytest.mark.parametrize("question", QUESTIONS, ids="-".join)
def test_most_kinds_of_plans_can_be_said(question: tuple[str, str, str, str]) -> None:
    """The property above would hold of an exporter that refuses everything."""
    format_, *asked = question
    said = sum(not export(format_, plan, request).unsupported for plan, request in some_plans(400, *asked))
    assert said


@pytest.mark.parametrize(("framework", "model", "cluster"), BEST)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"offload": True},
        {"named_modules": True},
        {"pins": {"recompute": "full"}},
        {"job": {"sequence_length": 32768, "global_batch_size": 512}},
        {"job": {"state_dtype": "bf16"}},
        {"job": {"state_dtype": "bf16", "master_dtype": "bf16"}},
        {"job": {"state_dtype": "int8"}},
    ],
    ids=str,
)
def test_the_best_plans_can_be_said(framework: str, model: str, cluster: str, asked: dict[str, Any]) -> None:
    """What is ranked is what the framework runs: a format of its own says it. What no plan has is refused."""
    question = {"job": {}, **asked}
    with suppress(SpecError):
        answer = planner.plan(model, cluster, question.pop("job"), top=5, framework=framework, **question)
        for plan in answer.plans:
            assert export_refusals(plan.plan, answer.request) == []


@pytest.mark.parametrize(
    ("framework", "job", "field"),
    [
        ("megatron", {"state_dtype": "int8"}, "job.state_dtype"),
        ("megatron", {"gradient_dtype": "fp16", "master_dtype": "none"}, "job.gradient_dtype"),
        ("megatron", {"optimizer": "adamw8bit"}, "job.optimizer"),
        ("fsdp", {"gradient_dtype": "fp16"}, "job.gradient_dtype"),
        ("deepspeed", {"state_dtype": "bf16"}, "job.state_dtype"),
        ("huggingface", {"state_dtype": "fp8"}, "job.state_dtype"),
    ],
)
def test_a_job_that_a_framework_does_not_run_is_refused(framework: str, job: dict[str, str], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        planner.plan("llama-3-8b", "8xH100", job, framework=framework)
    assert (caught.value.field, bool(caught.value.hint)) == (field, True)
