"""Rows of a user's own table: they mean what ``planner estimate`` means where they say nothing.

Published tables leave out what everybody who uses a stack knows, and what their publishers' scripts say: the other
modules of this package fill that in from ``source``, ``framework`` and the era these speak of. A user's own row has a
planner's answer beside it. It runs on the stack it names, ``source`` is but a label, and what it leaves out is as in
that answer: 32-bit master copy and moments, adapters of the usual rank on all linear layers, traffic that runs under
compute wherever it may. What was filled in so is among the row's assumptions.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from costmodels.plan import ExecutionPlan
from costmodels.step.layer_costs import joined_devices
from costmodels.workload import LoraSpec, TrainingJob
from planner.question.attention import default_attention
from planner.rules.base import FRAMEWORKS, Setting, overlaps_tensor
from planner.space.enumeration import context_kinds
from planner.validate.tables import wording
from planner.validate.tables.layouts import Reading
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore, MemoryKind
from planner.validate.tables.stack_choice import RL, UNKNOWN_FRAMEWORK, StackDefaults, defaults_of, usual_defaults
from profiles.errors import SpecError, did_you_mean
from profiles.stack_names import TOOLS, taken_as, tool_name
from profiles.stacks import default_names, find_stack, load_priors

# What a framework's own name may say of a plan, and no column can.
_SCHEDULES = re.compile(r"zb-1p|zb-2p|zb-v|gpipe")


def framework_names() -> tuple[str, ...]:
    """What ``planner frameworks`` lists: stacks, and frameworks that stand for their usual one."""
    stacks = (name for name, stack in load_priors().items() if stack.framework in FRAMEWORKS)
    return tuple(dict.fromkeys([*default_names(), *stacks]))


def without_publisher(row: Row) -> Row:
    """The row without the cells by which published tables are recognised; the schedule that one names stays."""
    schedules = " ".join(_SCHEDULES.findall(row.text("framework").lower()))
    return replace(row, cells={**row.cells, "source": "", "framework": schedules})


def stack_of(row: Row) -> tuple[StackDefaults, list[str]]:
    """The stack of a row, nothing of its habits but ZeRO stage and sequence parallelism, and what was assumed.

    A name of ``framework_names``, or of a tool that ``--framework`` takes, is meant as it stands, whatever else the row
    says. Other words are read as published tables word it, and ``source`` only where there are none.

    Raises:
        CannotScore: If no stack is named, or none known.
    """
    words = row.text("framework")
    if row.text("task").lower().startswith("rl"):
        raise CannotScore(RL)
    if words.lower() in framework_names() or tool_name(words) in TOOLS:
        taken = find_stack(words, load_priors()).name
        found, assumed = usual_defaults(taken), [said] if (said := taken_as(words, taken)) else []
    else:
        found = _worded(row)
        told = f"framework {words[:40]!r}" if words else "framework not printed"
        assumed = [f"{told}: {found.stack}"]
    return StackDefaults(
        stack=found.stack,
        zero_stage=3 if "fsdp" in found.stack else found.zero_stage,
        zero_is_known=False,
        sequence_parallel=found.sequence_parallel,
        tensor_parallel_overlap=True,
    ), assumed


def _worded(row: Row) -> StackDefaults:
    words = row.text("framework")
    try:
        return defaults_of(replace(row, cells={**row.cells, "source": ""}) if words else row)
    except CannotScore as error:
        if not error.reason.startswith(UNKNOWN_FRAMEWORK):
            raise
        hint = f"{did_you_mean(words, framework_names())} " if words else ""
        raise CannotScore(f"{error.reason}; {hint}planner frameworks lists the names") from None


def job_as_estimated(reading: Reading, job: TrainingJob) -> TrainingJob:
    """A job as read, with the adapters and the attention that ``planner estimate`` assumes of it.

    Raises:
        SpecError: If the row says something of adapters that cannot be.
    """
    row, assumptions = reading.row, reading.assumptions
    if not row.text("task"):
        assumptions.append(f"task not printed: {job.task}")
    said = "fp32" in row.text("optimizer").lower() or wording.has_fp32_weights(row)
    if job.task == "full" and job.master_dtype == job.state_dtype == "fp32" and not said:
        assumptions.append("formats of model states not printed: master copy and moments in fp32")
    flash = row.flag("flash_attention")
    stack = find_stack(reading.defaults.stack, load_priors())
    usual = default_attention(stack, reading.cluster.device, reading.model)
    attention = usual if flash is None else "flash" if flash else "unfused"
    library = job.attention_library if attention == "flash" else ""
    return replace(job, attention=attention, attention_library=library, lora=_adapters(reading, job))


def _adapters(reading: Reading, job: TrainingJob) -> LoraSpec | None:
    """Adapters by columns, else by notes, else as ``planner plan`` assumes them."""
    row, usual = reading.row, LoraSpec()
    rank, targets = wording.adapter_columns(row)
    if not job.trains_adapters_only:
        column = "lora_rank" if rank is not None else "lora_targets"
        if (rank, targets) != (None, None):
            raise SpecError(row.where(column), f"is given, but the task is {job.task}", "task lora or qlora")
        return None
    rank = rank or wording.noted_rank(row)
    targets = targets or wording.noted_targets(row)
    if rank is None:
        reading.assumptions.append(f"rank of adapters not printed: {usual.rank}")
    if targets is None:
        reading.assumptions.append(f"adapted layers not printed: {', '.join(usual.targets)}")
    dropout = wording.names_adapter_dropout(row)
    return LoraSpec(rank=rank or usual.rank, targets=targets or usual.targets, dropout=dropout)


def plan_as_estimated(reading: Reading, plan: ExecutionPlan) -> ExecutionPlan:
    """A plan as read, with the overlaps and the context parallelism that plans of its framework have."""
    row, framework = reading.row, find_stack(reading.defaults.stack, load_priors()).framework
    if plan.tensor_parallel > 1 and row.flag("sp") is None:
        reading.assumptions.append(f"sequence parallelism not printed: {'on' if plan.sequence_parallel else 'off'}")
    kind = plan.context_kind
    if kind not in context_kinds(framework):
        kind = context_kinds(framework)[0]
    hidden = plan.tensor_parallel_overlap and _may_overlap(reading, plan, framework)
    gathers = plan.overlap_param_gather and plan.zero_stage > 0
    return replace(plan, context_kind=kind, tensor_parallel_overlap=hidden, overlap_param_gather=gathers)


def _may_overlap(reading: Reading, plan: ExecutionPlan, framework: str) -> bool:
    """Whether tensor-parallel traffic runs under products in a plan that says nothing of it."""
    setting = Setting(
        model=reading.model,
        # Of which the format of products is looked at alone.
        job=TrainingJob(sequence_length=1, global_batch_size=1, precision=wording.precision_of(reading.row) or "bf16"),
        num_devices=reading.cluster.num_devices,
        framework=framework,
        joined_devices=joined_devices(reading.cluster),
    )
    columns: Mapping[str, object] = {
        name: np.array([getattr(plan, name)]) for name in ("sequence_parallel", "tensor_parallel")
    }
    return bool(overlaps_tensor(columns, setting)[0])


def counted_as(kind: MemoryKind) -> list[str]:
    """What is assumed of a peak where the row does not say what it counts."""
    unknown = kind is MemoryKind.UNKNOWN
    return ["what the peak counts is not printed: what the allocator holds"] if unknown else []
