"""TRL: the YAML file of ``trl sft``, with Accelerate's for FSDP2 or DDP.

Target: TRL 1 (huggingface/trl, ``trl/trainer/sft_config.py``, ``model_config.py``; launched as its
``docs/source/clis.md`` has it) and the versions of ``planner.exporters.accelerate``.
"""

from typing import Any

import yaml

from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from planner.exporters.accelerate import CONFIG as ACCELERATE_CONFIG
from planner.exporters.accelerate import configuration as accelerate_configuration
from planner.exporters.accelerate import placed, unsupported_by_job
from planner.exporters.accelerate import plan_checks as accelerate_plan_checks
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    finished,
    gaps,
    headed,
    on_every_node,
    whole_steps,
)
from planner.exporters.trainer import attention_implementation, optimizer_name
from planner.exporters.trainer_tools import LIGER, adapter_notes, adapter_settings, copy_notes, start_notes
from planner.results import Request

TARGET = Target(name="trl", title="TRL 1", stacks=("hf-trainer", LIGER, "hf-trainer-compiled"))
CONFIG = "trl_sft.yaml"
_SDPA = "sdpa"


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The files and the launch.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    packs = "samples in packs: what keeps them apart is FlashAttention-2 or 3 (packing_strategy bfd)"
    text = yaml.safe_dump(_settings(plan, request), sort_keys=False)
    return finished(
        TARGET,
        plan,
        request,
        command=[["trl", "sft", "--config", CONFIG], *placed(request.cluster)],
        files={
            CONFIG: headed(text, TARGET, plan, request),
            ACCELERATE_CONFIG: accelerate_configuration(plan, request, TARGET),
        },
        gaps=unsupported(plan, request),
        left_to_you=(
            f"model_name_or_path of {request.model.name}, dataset_name, output_dir and learning_rate: in {CONFIG}, or "
            "behind train.sh",
            *([packs] if request.job.sample_tokens else []),
            *start_notes(request),
            *copy_notes(request),
            *adapter_notes(request, "lora_target_modules"),
            *on_every_node(request.cluster),
        ),
    )


def _settings(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    job = request.job
    attention = attention_implementation(request)
    whole = job.lora is None and job.master_dtype == "fp32"
    found: dict[str, Any] = {
        "accelerate_config": ACCELERATE_CONFIG,
        "model_name_or_path": request.model.name,
        # What is trained in full has no other fp32 weights than those it is loaded with.
        "dtype": "float32" if whole or job.numerics.storage_bytes == 4 else "bfloat16",
        "attn_implementation": _SDPA if attention is not None and attention.startswith(f"{_SDPA} or") else attention,
        "max_length": job.sequence_length,
        "packing": True,
        "packing_strategy": "bfd" if job.sample_tokens else "wrapped",
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_microbatches,
        # FSDP2 has its own, in Accelerate's file; unasked TRL checkpoints.
        "gradient_checkpointing": plan.recompute == Recompute.FULL and plan.zero_stage == 0,
        "bf16": job.precision == "bf16",
        "optim": optimizer_name(job, shards=plan.zero_stage > 0),
        **_loss(request),
    }
    if job.precision in ("fp16", "tf32"):
        found[job.precision] = True
    if plan.offload_activations and plan.zero_stage == 0:
        found["activation_offloading"] = True
    if job.lora is not None:
        words = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters")
        found |= {"use_peft": True, **adapter_settings(request, words)}
    if job.task == "qlora":
        found |= {"load_in_4bit": True, "use_bnb_nested_quant": True}
        # FSDP shards no integers (bitsandbytes documentation, FSDP-QLoRA).
        found["bnb_4bit_quant_storage"] = "float16" if job.precision == "fp16" else "bfloat16"
    steps = whole_steps(job)
    return {**found, "max_steps": steps} if steps is not None else found


def _loss(request: Request) -> dict[str, Any]:
    """``chunked_nll`` takes the output layer into the loss, a few tokens at a time, as Liger's does."""
    joined = request.job.linear_cross_entropy
    if request.stack.name == LIGER:
        return {"use_liger_kernel": True, "loss_type": "nll"}
    return {"loss_type": "chunked_nll" if joined else "nll"}


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    return (*gaps(*checks), *unsupported_by_job(request), *_own_gaps(request))


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    t, c = plans.tensor_parallel > 1, plans.context_parallel > 1
    return (
        *accelerate_plan_checks(plans, request),
        (
            t,
            "plan.tensor_parallel",
            "the command builds no mesh of tensor-parallel ranks",
            "tp 1, or --format accelerate",
        ),
        (c, "plan.context_parallel", "sequences are cut by a script of one's own", "cp 1, or --format accelerate"),
    )


def _own_gaps(request: Request) -> tuple[Gap, ...]:
    job, liger = request.job, request.stack.name == LIGER
    attention = attention_implementation(request)
    named = attention is not None and "under" not in attention
    return gaps(
        (liger and not job.linear_cross_entropy, "job.linear_cross_entropy", "is part of Liger's", "--linear-loss"),
        (job.fused_cross_entropy, "job.fused_cross_entropy", "is no loss_type", "--linear-loss"),
        (
            attention is not None and not named,
            "job.attention_library",
            "is chosen by code around the model",
            "leave it out",
        ),
        (
            job.frozen_dtype == "fp32",
            "job.frozen_dtype",
            "weights beside adapters are loaded in 16 bits",
            "leave it out",
        ),
    )
