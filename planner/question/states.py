"""Formats of model states that nobody gave: those of a tool that was named, and those that follow from others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from costmodels.workload import TrainingJob
from planner.question.jobs import said
from planner.results import Note
from planner.rules.base import FSDP, HUGGINGFACE, NANOTRON
from planner.rules.formats import weights_format
from profiles.stack import StackSpec
from profiles.stack_names import keeps_sixteen_bits


def with_states(
    job: TrainingJob, given: TrainingJob | Mapping[str, Any] | None, framework: str, stack: StackSpec
) -> tuple[TrainingJob, tuple[Note, ...]]:
    """The job with formats of model states that follow from what was said of it, and what was assumed.

    Args:
        job: The job in full.
        given: What was said of it.
        framework: The framework or tool that was named, if any.
        stack: Who runs it.
    """
    if said("state_dtype", given):
        return job, ()
    if said("master_dtype", given):
        return _states_of_weights(job, stack)
    if job.task != "full" or job.precision != "bf16" or said("gradient_dtype", given):
        return job, ()
    return _states_of_tool(job, framework) if keeps_sixteen_bits(framework) else (job, ())


def _states_of_tool(job: TrainingJob, framework: str) -> tuple[TrainingJob, tuple[Note, ...]]:
    """The job with the formats in which a tool keeps model states."""
    message = f"weights and gradients in bf16, without a master copy, as {framework.strip()} has them"
    kept = replace(job, master_dtype="none", gradient_dtype="bf16")
    if job.optimizer != "adamw8bit":
        kept, message = replace(kept, state_dtype="bf16"), f"{message}; so are optimizer states"
    return kept, (Note(code="assumed_default", field="job.master_dtype", message=message),)


def _states_of_weights(job: TrainingJob, stack: StackSpec) -> tuple[TrainingJob, tuple[Note, ...]]:
    """The job with moments in the format of weights that have no master copy.

    Source:
        torch.optim.AdamW, which torchtitan, nanotron and Hugging Face's Trainer run: ``torch.zeros_like(p)`` in
        ``_init_group`` of torch/optim/adam.py. DeepSpeed's and Megatron-LM's formats are options of their own.
    """
    torch = stack.framework in (FSDP, NANOTRON, HUGGINGFACE) and not stack.own_optimizer
    kept = weights_format(job)
    alone = job.master_dtype == "none" and kept != "fp32" and not job.trains_adapters_only
    if not (torch and alone and job.optimizer == "adamw"):
        return job, ()
    message = f"optimizer states in {kept}, the format of the weights (not given)"
    note = Note(code="assumed_default", field="job.state_dtype", message=message)
    return replace(job, state_dtype=kept), (note,)
