"""LLaMA-Factory: its YAML file, DeepSpeed's JSON where that shards, and ``llamafactory-cli train``.

Target: LLaMA-Factory 0.9 (hiyouga/LLaMA-Factory, ``src/llamafactory/hparams`` and ``cli.py``). Every argument of
transformers' ``TrainingArguments`` is one of its own; which combinations it refuses is in ``hparams/parser.py``.
"""

from typing import Any

from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from planner.exporters.adapters import adapted
from planner.exporters.deepspeed import CONFIG as DEEPSPEED_CONFIG
from planner.exporters.exported import Check, Exported, Gap, Target, finished, gaps, on_every_node, whole_steps
from planner.exporters.trainer import optimizer_name
from planner.exporters.trainer_tools import (
    COMPILED,
    LIGER,
    STACKS,
    adapter_notes,
    adapter_settings,
    attention_of,
    in_files,
    job_gaps,
    nothing_in_fp32,
    start_notes,
)
from planner.exporters.trainer_tools import plan_checks as trainer_plan_checks
from planner.results import Request

TARGET = Target(name="llama-factory", title="LLaMA-Factory 0.9", stacks=STACKS)
CONFIG = "llama_factory.yaml"
# ``flash_attn`` (model_args.py, AttentionFunction of extras/constants.py).
_ATTENTION = {"sdpa": "sdpa", "flash_attention_2": "fa2", "flash_attention_3": "fa3", "eager": "disabled"}


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The files and the launch.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    cluster, job = request.cluster, request.job
    packs = "neat_packing: LLaMA-Factory takes it with transformers before 4.53 alone"
    return finished(
        TARGET,
        plan,
        request,
        command=[["llamafactory-cli", "train", CONFIG]],
        files=in_files(TARGET, CONFIG, _settings(plan, request), plan, request),
        gaps=unsupported(plan, request),
        # One process alone would not be launched by torchrun, which DeepSpeed asks for (parser.py).
        environment={
            "FORCE_TORCHRUN": "1",
            "NNODES": str(cluster.num_nodes),
            "NPROC_PER_NODE": str(cluster.node.devices_per_node),
        },
        left_to_you=(
            f"model_name_or_path of {request.model.name}, dataset, template, output_dir, learning_rate: in {CONFIG} "
            "or behind train.sh, as dataset=NAME",
            *([packs] if job.sample_tokens else []),
            # MXFP4 it dequantises itself (model/model_utils/quantization.py, configure_quantization).
            *start_notes(request),
            *adapter_notes(request, "lora_target"),
            *on_every_node(cluster),
        ),
    )


def _settings(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    job = request.job
    half = nothing_in_fp32(job)
    found: dict[str, Any] = {
        "model_name_or_path": request.model.name,
        "stage": "pt" if job.task == "pretrain" else "sft",
        "do_train": True,
        "finetuning_type": "full" if job.lora is None else "lora",
        "cutoff_len": job.sequence_length,
        # With packing it takes one token less, which padding to eights brings back (data_args.py).
        "neat_packing" if job.sample_tokens else "packing": True,
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_microbatches,
        "disable_gradient_checkpointing": plan.recompute != Recompute.FULL,
        "flash_attn": attention_of(request, _ATTENTION),
    }
    adapters = adapter_settings(request, ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", ""))
    if "lora_target" in adapters:
        adapters["lora_target"] = ",".join(adapters["lora_target"])
    found |= adapters
    if job.task == "qlora":
        found["quantization_bit"] = 4  # in nf4, with its own constants quantised, unless told otherwise
    if plan.offload_activations:
        found["use_unsloth_gc"] = True
    if request.stack.name == LIGER:
        found["enable_liger_kernel"] = True
    if request.stack.name == COMPILED:
        found["torch_compile"] = True
    if half:
        found["pure_bf16"] = True
    elif job.precision in ("bf16", "fp16", "tf32"):
        found[job.precision] = True
    found["optim"] = optimizer_name(job)
    if plan.zero_stage:
        found["deepspeed"] = DEEPSPEED_CONFIG
    steps = whole_steps(job)
    return {**found, "max_steps": steps} if steps is not None else found


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    return (*gaps(*checks), *job_gaps(request, _ATTENTION), *_own_gaps(request))


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    return trainer_plan_checks(plans, request)


def _own_gaps(request: Request) -> tuple[Gap, ...]:
    job, liger = request.job, request.stack.name == LIGER
    known = None if job.lora is None else adapted(request.model, job.lora)
    stacked = known is not None and bool(known.parameters)
    # Liger's kernels come all together, its loss with the output layer among them (model_utils/liger_kernel.py).
    return gaps(
        (liger and not job.linear_cross_entropy, "job.linear_cross_entropy", "is part of Liger's", "--linear-loss"),
        (
            job.fuses_loss and not liger,
            "job.linear_cross_entropy" if job.linear_cross_entropy else "job.fused_cross_entropy",
            "is Liger's, with all its kernels",
            f"--framework {LIGER} --linear-loss",
        ),
        (stacked, "job.lora.targets", "experts' stacked weights carry no adapters", "--lora-targets q,k,v,o"),
    )
