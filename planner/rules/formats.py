"""Rules on the number formats of gradients, master weights and optimizer states, and on which optimizers there are."""

from collections.abc import Callable

import numpy as np

from costmodels.workload import TrainingJob
from planner.rules.base import (
    DEEPSPEED,
    FRAMEWORK_TITLES,
    FRAMEWORKS,
    FSDP,
    HUGGINGFACE,
    MEGATRON,
    NANOTRON,
    PRECISION_AWARE,
    Complaint,
    Rule,
    Setting,
    columns,
    mask,
)

_MEGATRON_ARGUMENTS = "Megatron-LM of megatron-core 0.19.2 megatron/training/arguments.py"
NO_ADAPTERS = ("nanotron trains all weights", "task full, or framework hf-trainer")
_NANOTRON_ARGUMENTS = "nanotron/config/config.py"
_MEGATRON_STATES = ("fp32", "fp16", "bf16", "fp8")


def weights_format(job: TrainingJob) -> str:
    """Format that weights are stored in."""
    if job.numerics.storage_bytes >= 4:
        return "fp32"
    return "fp16" if job.precision == "fp16" else "bf16"


def _not_its_own(setting: Setting) -> bool:
    """Whether a framework's formats do not matter: adapters have others, and so may optimizers of others."""
    return setting.job.trains_adapters_only or setting.own_optimizer


def least_zero(setting: Setting) -> int:
    """Lowest ZeRO stage at which a framework has the formats of a job's master weights and moments.

    Megatron-LM's precision-aware optimizer is the distributed one, and master weights in bf16 are Megatron-FSDP's;
    DeepSpeed's 16-bit ones are ZeRO's.
    """
    job, framework = setting.job, setting.framework
    if _not_its_own(setting):
        return 0
    short = weights_format(job) != "fp32" and job.master_dtype not in ("fp32", "none")
    if framework == MEGATRON:
        return max(int(job.state_dtype != "fp32"), {"fp16": 1, "bf16": 2}[job.master_dtype] if short else 0)
    return int(short and framework in (DEEPSPEED, HUGGINGFACE))


def of_fsdp(job: TrainingJob) -> bool:
    """Whether FSDP has the format of a job's master weights."""
    return job.master_dtype in _masters(job, FSDP)


def _one_of(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _gradients(job: TrainingJob) -> tuple[str, ...]:
    """Formats in which gradients are summed."""
    weights = weights_format(job)
    return ("fp32",) if weights == "fp32" else ("fp32", weights)


def _masters(job: TrainingJob, framework: str) -> tuple[str, ...]:
    """Formats of master weights that some plan of a framework has; weights in fp32 have none besides."""
    weights = weights_format(job)
    if weights == "fp32":
        return ("fp32", "none")
    if framework == MEGATRON:
        return ("fp32", "fp16", "bf16") if job.optimizer == "adamw" else ("fp32", "bf16")
    return ("fp32", "none", weights) if framework in (DEEPSPEED, HUGGINGFACE) else ("fp32", "none")


def _states(job: TrainingJob, framework: str) -> tuple[str, ...]:
    """Formats of an optimizer's moments."""
    if framework == MEGATRON:
        return _MEGATRON_STATES if job.optimizer == "adamw" else ("fp32",)
    own = () if job.master_dtype == "fp32" else (weights_format(job),)
    return tuple(dict.fromkeys(("fp32", *(("bf16", "fp8") if framework == FSDP else ()), *own)))


def _of_job(
    name: str,
    frameworks: tuple[str, ...],
    field: str,
    *,
    text: str,
    source: str,
    has: Callable[[Setting], bool],
    complaint: Complaint,
) -> Rule:
    """A rule on the job alone, whatever the plan."""
    return Rule(
        name=name,
        frameworks=frameworks,
        field=f"job.{field}",
        text=text,
        source=source,
        columns=columns(),
        holds=lambda plans, setting: np.full(len(plans), _not_its_own(setting) or has(setting), dtype=np.bool_),
        complaint=complaint,
    )


def _has_states(setting: Setting) -> bool:
    job = setting.job
    own = job.optimizer != "adamw" and setting.framework != MEGATRON  # an optimizer that keeps them as it does
    return own or job.state_dtype in _states(job, setting.framework)


def _states_complaint(setting: Setting) -> tuple[str, str]:
    job, framework = setting.job, setting.framework
    known = _one_of(_states(job, framework))
    bits = job.state_dtype == "int8" and framework != MEGATRON
    title = FRAMEWORK_TITLES[framework]
    return (
        f"{title} has no {job.optimizer} with moments in {job.state_dtype}",
        f"{known}{', or optimizer adamw8bit' * bits}",
    )


FORMAT_RULES = (
    Rule(
        name="mxfp4_is_transformer_engines",
        frameworks=(DEEPSPEED, FSDP, HUGGINGFACE, NANOTRON),
        field="job.precision",
        text="does not multiply in MXFP4",
        source="ROCm/TransformerEngine transformer_engine/common/recipe (MXFP4BlockScaling), which Megatron-LM's "
        "--fp4-recipe takes",
        columns=columns(),
        holds=lambda plans, setting: np.full(len(plans), setting.job.precision != "mxfp4", dtype=np.bool_),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} has no option for mxfp4, which is Transformer Engine's",
            "bf16, or framework megatron",
        ),
    ),
    _of_job(
        "gradients_have_a_known_format",
        FRAMEWORKS,
        "gradient_dtype",
        text="gradients are summed in fp32, or in the format of the weights",
        source="torch autograd makes gradients in the format of the tensor; Megatron-Core DistributedDataParallel: "
        "torch.float if grad_reduce_in_fp32 else param.dtype; deepspeed data_types.grad_accum_dtype; torch FSDP's "
        "MixedPrecisionPolicy.reduce_dtype",
        has=lambda setting: setting.job.gradient_dtype in ("", *_gradients(setting.job)),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} sums no gradients of {weights_format(setting.job)} weights in "
            f"{setting.job.gradient_dtype}",
            f"{_one_of(_gradients(setting.job))}, or leave it out",
        ),
    ),
    _of_job(
        "master_weights_have_a_known_format",
        FRAMEWORKS,
        "master_dtype",
        text="master weights are fp32, or in another format that the framework has",
        source=f"{_MEGATRON_ARGUMENTS}: --main-params-dtype fp32 or fp16, --megatron-fsdp-main-params-dtype; deepspeed/"
        "runtime/precision_config.py bf16_master_weights_and_grads, fp16_master_weights_and_grads; torchtitan "
        "training.dtype and nanotron accumulate_grad_in_fp32: fp32 ones or none",
        has=lambda setting: setting.job.master_dtype in _masters(setting.job, setting.framework),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} has no master weights {setting.job.master_dtype} beside "
            f"{weights_format(setting.job)} weights",
            _one_of(_masters(setting.job, setting.framework)),
        ),
    ),
    _of_job(
        "moments_have_a_known_format",
        FRAMEWORKS,
        "state_dtype",
        text="moments are in a format that the framework's optimizer has",
        source=f"{_MEGATRON_ARGUMENTS}: --exp-avg-dtype fp32, fp16, bf16 or fp8; torchtitan 0.3.0 "
        "optimizer.implementation fused_opt_states_bf16; torchao.optim.AdamWFp8; torch.optim.AdamW, which DeepSpeed, "
        "nanotron and transformers run: in the format of what it updates",
        has=_has_states,
        complaint=lambda _plan, setting: _states_complaint(setting),
    ),
    _of_job(
        "optimizer_exists",
        (MEGATRON,),
        "optimizer",
        text="the optimizer is Adam or SGD",
        source=f"{_MEGATRON_ARGUMENTS}: --optimizer adam, sgd, muon, dist_muon, lion, soap or adaptive_muon",
        has=lambda setting: setting.job.optimizer not in ("adamw8bit", "adafactor"),
        complaint=lambda _plan, setting: (
            f"Megatron-LM has no {setting.job.optimizer}",
            "adamw, with state_dtype fp8 for moments in 8 bits" if setting.job.optimizer == "adamw8bit" else "adamw",
        ),
    ),
    _of_job(
        "nanotron_optimizer_exists",
        (NANOTRON,),
        "optimizer",
        text="the optimizer is AdamW or SGD",
        source=f"{_NANOTRON_ARGUMENTS} OptimizerArgs.optimizer_factory: SGDOptimizerArgs or AdamWOptimizerArgs",
        has=lambda setting: setting.job.optimizer not in ("adamw8bit", "adafactor"),
        complaint=lambda _plan, setting: (f"nanotron has no {setting.job.optimizer}", "adamw"),
    ),
    Rule(
        name="nanotron_trains_all_weights",
        frameworks=(NANOTRON,),
        field="job.task",
        text="all weights are trained",
        source=f"{_NANOTRON_ARGUMENTS} Config, whose arguments name no adapters; neither do its models",
        columns=columns(),
        holds=lambda plans, setting: np.full(len(plans), not setting.job.trains_adapters_only, dtype=np.bool_),
        complaint=lambda _plan, _setting: NO_ADAPTERS,
    ),
    Rule(
        name="short_states_need_sharding",
        frameworks=(MEGATRON, DEEPSPEED, HUGGINGFACE),
        field="zero_stage",
        text="moments and master weights in fewer than 32 bits are a sharded optimizer's",
        source=f"{PRECISION_AWARE}; {_MEGATRON_ARGUMENTS}: bf16 is among --megatron-fsdp-main-params-dtype alone; "
        "deepspeed/runtime/config.py: bf16_master_weights_and_grads is only supported with ZeRO stage 1, 2 or 3",
        columns=columns("zero_stage"),
        holds=lambda plans, setting: mask(plans.zero_stage >= least_zero(setting)),
        complaint=lambda plan, setting: (
            f"must be {least_zero(setting)} or more with master weights in {setting.job.master_dtype} and moments in "
            f"{setting.job.state_dtype}; got {plan.zero_stage}",
            f"zero {least_zero(setting)}, or both in fp32",
        ),
    ),
)
