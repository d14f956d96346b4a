"""axolotl: its YAML file, DeepSpeed's JSON where that shards, and ``torchrun -m axolotl.cli.train``.

Target: axolotl 0.12 and later (axolotl-ai-cloud/axolotl, ``src/axolotl/utils/schemas``; launched as its
``docs/multi-node.qmd`` has it).
"""

from typing import Any

from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from planner.exporters.deepspeed import CONFIG as DEEPSPEED_CONFIG
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    finished,
    gaps,
    on_every_node,
    torchrun,
    whole_steps,
)
from planner.exporters.trainer import optimizer_name
from planner.exporters.trainer_tools import (
    COMPILED,
    LIGER,
    STACKS,
    adapter_notes,
    adapter_settings,
    attention_of,
    copy_notes,
    in_files,
    job_gaps,
    nothing_in_fp32,
    start_notes,
)
from planner.exporters.trainer_tools import plan_checks as trainer_plan_checks
from planner.results import Request

_QUANTISED_EXPERTS = "hf-trainer-4bit-experts"
TARGET = Target(name="axolotl", title="axolotl 0.12", stacks=(*STACKS, _QUANTISED_EXPERTS))
CONFIG = "axolotl.yaml"
_NAMED = "attn_implementation"  # of what has no option of its own
_FLASH_3 = "kernels-community/vllm-flash-attn3"
_ATTENTION = {
    "sdpa": "sdp_attention",
    "flash_attention_2": "flash_attention",
    "flash_attention_3": _NAMED,
    _FLASH_3: _NAMED,
    "eager": "eager_attention",
    "flex_attention": "flex_attention",
}
_LIGER_PLUGIN = "axolotl.integrations.liger.LigerPlugin"
_LIGER_LAYERS = ("liger_rope", "liger_rms_norm", "liger_glu_activation")  # integrations/liger/args.py


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The files and the launch.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    data = "pretraining_dataset" if request.job.task == "pretrain" else "datasets"
    return finished(
        TARGET,
        plan,
        request,
        command=[*torchrun(request.cluster), ["-m", "axolotl.cli.train", CONFIG]],
        files=in_files(TARGET, CONFIG, _settings(plan, request), plan, request),
        gaps=unsupported(plan, request),
        left_to_you=(
            f"base_model: the path or the name on the hub of {request.model.name}; {data}, learning_rate, output_dir",
            *start_notes(request),
            *copy_notes(request),
            *adapter_notes(request, "lora_target_modules"),
            *on_every_node(request.cluster),
        ),
    )


def _settings(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    job = request.job
    found: dict[str, Any] = {
        "base_model": request.model.name,
        "sequence_len": job.sequence_length,
        "sample_packing": bool(job.sample_tokens),
        "pad_to_sequence_len": True,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_microbatches,
        "gradient_checkpointing": "offload" if plan.offload_activations else plan.recompute == Recompute.FULL,
        "optimizer": optimizer_name(job),
        **_precision(request),
        **_attention(request),
        **_kernels(request),
    }
    if job.lora is not None:
        found |= {"adapter": job.task, "load_in_4bit": job.task == "qlora"}
        found |= adapter_settings(
            request, ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters")
        )
        if request.stack.name == _QUANTISED_EXPERTS:
            found["quantize_moe_experts"] = True
    if plan.zero_stage:
        found["deepspeed"] = DEEPSPEED_CONFIG
    steps = whole_steps(job)
    return {**found, "max_steps": steps} if steps is not None else found


def _precision(request: Request) -> dict[str, Any]:
    """``full``: no autocast, as nothing is in fp32."""
    job = request.job
    if nothing_in_fp32(job):
        return {"bf16": "full"}
    return {job.precision: True} if job.precision in ("bf16", "fp16", "tf32") else {"bf16": False}


def _attention(request: Request) -> dict[str, Any]:
    option = attention_of(request, _ATTENTION)
    if option is None:
        return {}
    return {option: _FLASH_3 if option == _NAMED else True}


def _kernels(request: Request) -> dict[str, Any]:
    """Liger's, each by its name, and the compiler's."""
    job, stack = request.job, request.stack.name
    chosen = list(_LIGER_LAYERS) if stack == LIGER else []
    chosen += ["liger_fused_linear_cross_entropy"] if job.linear_cross_entropy else []
    chosen += ["liger_cross_entropy"] if job.fused_cross_entropy and not job.linear_cross_entropy else []
    found: dict[str, Any] = {"plugins": [_LIGER_PLUGIN], **dict.fromkeys(chosen, True)} if chosen else {}
    return found | ({"torch_compile": True} if stack == COMPILED else {})


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    return (*gaps(*checks), *job_gaps(request, _ATTENTION))


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    job, alone = request.job, plans.zero_stage == 0
    # The weights are loaded in the format of autocast (utils/config, normalize_config), and DDP copies them nowhere.
    only = alone & (job.lora is None) & (job.precision in ("bf16", "fp16")) & (job.master_dtype == "fp32")
    compiled = ~alone & (request.stack.name == COMPILED)
    half = "zero 1, or --master-dtype none --state-dtype bf16 --gradient-dtype bf16"
    return (
        *trainer_plan_checks(plans, request),
        (only, "job.master_dtype", "weights are loaded in 16 bits, and without DeepSpeed there are no others", half),
        # schemas/config.py, check_torch_compile_deepspeed
        (compiled, "plan.zero_stage", "torch_compile goes without DeepSpeed", f"zero 0, or --framework {LIGER}"),
    )
