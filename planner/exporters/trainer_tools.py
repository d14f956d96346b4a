"""What tools have in common that read one YAML file and run the Hugging Face Trainer on data-parallel ranks.

Replicas are DDP's, or DeepSpeed shards their states (``transformers/integrations/deepspeed.py``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.workload import TrainingJob
from planner.exporters.adapters import adapted, kinds_of
from planner.exporters.deepspeed import CONFIG as DEEPSPEED_CONFIG
from planner.exporters.deepspeed import configuration as deepspeed_configuration
from planner.exporters.deepspeed import written
from planner.exporters.exported import Check, Gap, Target, always_overlaps, gaps, headed
from planner.exporters.trainer import attention_implementation, trainer_gaps, untrainable_checkpoint
from planner.results import Request
from planner.rules.base import HUGGINGFACE

STACKS = ("hf-trainer", "hf-trainer-liger", "hf-trainer-compiled", "deepspeed")
LIGER = "hf-trainer-liger"
COMPILED = "hf-trainer-compiled"
_PRECISIONS = ("bf16", "fp16", "fp32", "tf32")
_SDPA = "sdpa"


def in_files(
    target: Target, name: str, settings: Mapping[str, Any], plan: ExecutionPlan, request: Request
) -> dict[str, str]:
    """The tool's YAML file, and DeepSpeed's where that shards.

    Args:
        target: The tool.
        name: Of its file.
        settings: What the file says.
        plan: The plan.
        request: What is trained.
    """
    text = yaml.safe_dump(dict(settings), sort_keys=False)
    files = {name: headed(text, target, plan, request)}
    if plan.zero_stage:
        files[DEEPSPEED_CONFIG] = written(deepspeed_configuration(plan, request, trainer=True))
    return files


def attention_of(request: Request, names: Mapping[str, str]) -> str | None:
    """What a tool calls the attention that runs as priced; None where it cannot ask for it.

    Args:
        request: What is trained, on what.
        names: Names of transformers to those of the tool.
    """
    found = attention_implementation(request)
    return names.get(_SDPA if found is not None and found.startswith(f"{_SDPA} or") else found or "")


def nothing_in_fp32(job: TrainingJob) -> bool:
    """Whether weights, gradients and moments are all in bf16."""
    return (job.master_dtype, job.state_dtype, job.gradient_dtype) == ("none", "bf16", "bf16")


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What the Trainer on data-parallel ranks has not, of plans."""
    kept = plans.offload_activations & (plans.recompute != Recompute.FULL)
    alone = (plans.zero_stage == 0) & (request.stack.framework != HUGGINGFACE)
    exposed = (plans.zero_stage == 0) & ~always_overlaps(plans)
    half = (plans.zero_stage > 0) & nothing_in_fp32(request.job)
    return (
        (plans.pipeline_parallel > 1, "plan.pipeline_parallel", "there are no pipeline stages", "pp 1"),
        (plans.tensor_parallel > 1, "plan.tensor_parallel", "ranks are replicas", "tp 1, or --format accelerate"),
        (plans.context_parallel > 1, "plan.context_parallel", "ranks are replicas", "cp 1, or --format accelerate"),
        (plans.expert_parallel > 1, "plan.expert_parallel", "ranks are replicas", "ep 1"),
        (plans.zero_shard_degree > 0, "plan.zero_shard_degree", "DeepSpeed shards over all ranks", "hsdp 0"),
        (alone, "plan.zero_stage", "0 runs as DDP", "zero 1, or --framework hf-trainer"),
        (half, "plan.zero_stage", "DeepSpeed keeps fp32 weights and moments", "zero 0, or fp32 states"),
        (kept, "plan.offload_activations", "goes with recomputation", "recompute full"),
        (exposed, "plan.overlap_grad_reduce", "transfers of DDP overlap", "overlap on"),
    )


def job_gaps(request: Request, names: Mapping[str, str]) -> tuple[Gap, ...]:
    """What it has not, of jobs.

    Args:
        request: What is trained.
        names: What the tool calls the attention of transformers.
    """
    job = request.job
    half = nothing_in_fp32(job)
    moments = job.state_dtype != "fp32" and job.optimizer == "adamw" and not half
    unasked = attention_of(request, names) is None
    frozen = job.frozen_dtype == "fp32"
    return (
        *gaps(
            (job.precision not in _PRECISIONS, "job.precision", f"there is no option for {job.precision}", "bf16"),
            (
                job.gradient_dtype not in ("", "fp32") and not half,
                "job.gradient_dtype",
                f"is not {job.gradient_dtype} beside fp32 states",
                "leave it out",
            ),
            (job.master_dtype != "fp32" and not half, "job.master_dtype", "there are fp32 weights", "fp32"),
            (moments, "job.state_dtype", "moments have the format of the weights", "fp32, or optimizer adamw8bit"),
            (frozen, "job.frozen_dtype", "weights beside adapters are loaded in 16 bits", "leave it out"),
            (
                unasked,
                "job.attention_library" if job.attention_library else "job.attention",
                "there is no option for that attention",
                "leave it out",
            ),
        ),
        *trainer_gaps(request),
    )


def start_notes(request: Request) -> tuple[str, ...]:
    """What pre-training begins with, where tools load a checkpoint."""
    words = "weights: training goes on from those of the checkpoint, unless the tool is told to draw new ones"
    return (words,) if request.job.task == "pretrain" else ()


def copy_notes(request: Request) -> tuple[str, ...]:
    """What tools need that train no checkpoint in MXFP4 and have no option that dequantises one."""
    words = "weights: a copy in 16 bits, as the plan has them; those of the checkpoint are in MXFP4"
    return (words,) if untrainable_checkpoint(request) else ()


def adapter_settings(request: Request, names: Sequence[str]) -> dict[str, Any]:
    """Rank and modules of the adapters; none where a job trains none.

    Args:
        request: What is trained.
        names: What the tool calls the rank, the scale, the dropout, the modules and the stacked weights of experts; ""
            for what it has no word for.
    """
    model, lora = request.model, request.job.lora
    if lora is None:
        return {}
    rank, alpha, dropout, modules, parameters = names
    # Twice the rank is what LLaMA-Factory takes unasked (hparams/finetuning_args.py); axolotl takes nothing.
    found: dict[str, Any] = {rank: lora.rank, alpha: 2 * lora.rank, dropout: 0.05 if lora.dropout else 0.0}
    known = adapted(model, lora)
    if known is not None:
        found[modules] = list(known.modules)
        if known.parameters and parameters:
            found[parameters] = list(known.parameters)
    return found


def adapter_notes(request: Request, where: str) -> tuple[str, ...]:
    """What of the adapters is left to the user: modules of families whose names are not known.

    Args:
        request: What is trained.
        where: What the tool calls the modules.
    """
    lora = request.job.lora
    if lora is None or adapted(request.model, lora) is not None:
        return ()
    return (f"{where}: {kinds_of(lora)}",)
