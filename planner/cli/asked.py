"""What the options of a question say to the library."""

from collections.abc import Mapping
from typing import Any

from planner.cli.options import asked_risk
from planner.cli.words import amount, cluster_of, one_model
from profiles.errors import SpecError
from profiles.units import GIB

_JOB_OPTIONS = {
    "task": "task",
    "seq": "sequence_length",
    "global_batch": "global_batch_size",
    "precision": "precision",
    "optimizer": "optimizer",
    "gradient_dtype": "gradient_dtype",
    "master_dtype": "master_dtype",
    "state_dtype": "state_dtype",
    "attention": "attention",
    "attention_library": "attention_library",
    "dropout": "dropout",
    "fused_loss": "fused_cross_entropy",
    "linear_loss": "linear_cross_entropy",
    "optimizer_in_backward": "optimizer_in_backward",
    "paged_optimizer": "paged_optimizer",
    "fp32_unquantised": "fp32_unquantised",
    "frozen_dtype": "frozen_dtype",
    "fp8_activation": "fp8_activation",
    "fp8_attention": "fp8_attention",
    "padding_efficiency": "padding_efficiency",
    "varied_lengths": "varied_lengths",
    "sample_tokens": "sample_tokens",
    "lora_rank": "lora_rank",
    "lora_targets": "lora_targets",
}
_TOKENS = {
    "tokens": ("train_tokens", "15T, 300B or 1e12"),
    "batch_tokens": ("global_batch_tokens", "4M, 4Mi or 4194304"),
}
_SAME_NAME = (
    *("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "zero", "hsdp", "sp", "micro_batch", "recompute", "schedule"),
    *("context_kind", "axis_order", "first_stage_layers", "last_stage_layers"),
    *("offload_optimizer", "offload_activations", "offload_parameters"),
)
_PLAN_OPTIONS = {name: name for name in _SAME_NAME} | {"micro_batches": "num_microbatches"}


def inputs_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``api.plan`` and ``api.estimate`` that both have."""
    job = {field: values[name] for name, field in _JOB_OPTIONS.items() if values[name] is not None}
    _check_words(values)
    for name, (field, example) in _TOKENS.items():
        if values[name] is not None:
            job[field] = amount(f"job.{field}", values[name], example)
    return asked_risk(values) | {
        "model": one_model(values["model"]),
        "cluster": cluster_of(values["gpus"]),
        "job": job,
        "framework": values["framework"],
        "stack_fit": values["stack_fit"],
        "objective": values["objective"],
        "offload": values["offload"],
        "named_modules": values["named_modules"],
        "fabric": values["fabric"],
        "memory_reserve_bytes": values["reserve_gib"] * GIB,
        "price_per_device_hour_usd": values["price_per_gpu_hour"],
        "price_date": values["price_date"],
    }


def pins_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a plan that are fixed."""
    return {field: values[name] for name, field in _PLAN_OPTIONS.items() if values[name] is not None}


def _check_words(values: Mapping[str, Any]) -> None:
    """Refuse options that do nothing here, or say two things at once.

    The library cannot: what it is told may be the job that a document echoes, with defaults that nobody gave.

    Raises:
        SpecError: Naming the first of them.
    """
    if values["fp32_unquantised"] is not None:
        from costmodels.workload import TASKS  # only now: the help needs none of what they import
        from planner.question.job_checks import check_casts, check_quantised
        from planner.question.request import names_several
        from profiles.stacks import find_stack

        check_quantised(str(values["task"] or TASKS[0]).strip().lower())
        framework = values["framework"]
        if framework is not None and not names_several(framework):
            check_casts(find_stack(framework))
    if values["linear_loss"] and values["fused_loss"] is False:
        problem = "is off, but a loss that takes the output layer into itself is fused"
        raise SpecError("job.fused_cross_entropy", problem, "leave --no-fused-loss or --linear-loss out")
