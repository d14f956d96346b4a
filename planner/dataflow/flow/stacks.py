"""Which framework trains a workflow's roles, and infers with them, where the user names none.

The default is that of a single job (``profiles.stacks.default_stack``): Hugging Face for fine-tuning. It splits no
model over GPUs. Workflows that both generate and train take Megatron-Core instead: theirs are the models that are
split, on it published steps ran, and by those are its times between generations fitted. That holds for adapters too,
which verl, NeMo-RL and SkyRL train with FSDP or Megatron-Bridge, but not for those of quantised weights: 4-bit weights
are split by no framework, and quantised by Hugging Face's.
"""

from collections.abc import Mapping
from itertools import product

from costmodels.plan import MODEL_AXES
from costmodels.workload import ADAPTER_TASKS, QUANTISED_TASK, TrainingJob
from planner.dataflow.flow.pins import CallPin
from planner.dataflow.graphs.graph import GENERATE, INFERENCE, TRAIN, Dataflow
from planner.question.job_checks import check_attention_library, check_chosen_keys
from planner.question.jobs import wide_experts, with_attention
from planner.question.lora import check_adapted
from planner.question.request import name_notes, names_several
from planner.results import Note
from planner.rules.base import HUGGINGFACE, MEGATRON, NANOTRON
from planner.rules.formats import NO_ADAPTERS
from planner.rules.indexer import check_indexer_trained
from planner.rules.linear import check_trained
from planner.rules.state import NO_QLORA
from profiles.engines import TRAINER
from profiles.errors import SpecError
from profiles.mixed_cluster import MixedCluster
from profiles.model import ModelSpec
from profiles.stack import StackSpec
from profiles.stacks import default_stack, find_stack, in_reinforcement_learning, load_stacks


def stacks_of(
    graph: Dataflow, framework: str | None, pins: Mapping[str, CallPin]
) -> tuple[dict[str, StackSpec], tuple[Note, ...]]:
    """Role to the stack that runs it, and what was assumed of it.

    All roles have one stack. Its intervals are as wide as for runs of what each trains, which a frozen role says too.

    Args:
        graph: The workflow.
        framework: Framework or stack the user names; None for the usual one.
        pins: Call to what is fixed of it: split models need a framework that splits them.

    Raises:
        SpecError: If the name is unknown, stands for several, or for one that does not train what a role trains.
    """
    notes: tuple[Note, ...] = ()
    if framework is None:
        framework, reason = _usual(graph, pins)
        stack = find_stack(framework)
        message = f"{stack.name}: {stack.description}{reason}"
        notes = (Note(code="assumed_default", field="framework", message=message),)
    elif names_several(framework):
        raise SpecError("framework", f"workflows are planned for one; got {framework[:40]!r}", "name one")
    else:
        notes = tuple(name_notes(framework, find_stack(framework)))
    stacks = {role.name: find_stack(framework, load_stacks(role.task)) for role in graph.roles}
    for role in graph.roles:
        if role.task == QUANTISED_TASK and stacks[role.name].framework == MEGATRON:
            raise SpecError(f"job.roles.{role.name}.task", *NO_QLORA)
        if role.task in ADAPTER_TASKS and stacks[role.name].framework == NANOTRON:
            raise SpecError(f"job.roles.{role.name}.task", *NO_ADAPTERS)
    if graph.trains_between_generations:
        stacks = {name: in_reinforcement_learning(stack) for name, stack in stacks.items()}
    return stacks, notes


def check_roles(
    graph: Dataflow, specs: Mapping[str, ModelSpec], machines: MixedCluster, stacks: Mapping[str, StackSpec]
) -> None:
    """Refuse roles that their framework does not train or infer with, or that a device has no kernels for.

    Raises:
        SpecError: With the role's model, device or adapters.
    """
    for role in {call.role for call in graph.calls if call.kind in (INFERENCE, TRAIN)}:
        check_trained(specs[role], stacks[role].framework)
        check_indexer_trained(specs[role], stacks[role].framework)
        for group in machines.groups:
            check_chosen_keys(specs[role], group.device)
        lora = graph.role(role).adapters(specs[role]).lora
        check_adapted(lora, specs[role], stacks[role], where=f"job.roles.{role}")


def _usual(graph: Dataflow, pins: Mapping[str, CallPin]) -> tuple[str, str]:
    """Name of the stack nobody named, and why it is not that of a single job where it is not."""
    tasks = [graph.role(call.role).task for call in graph.calls if call.kind == TRAIN]
    if not tasks:
        return MEGATRON, ""
    tuned = next((task for task in (QUANTISED_TASK, *ADAPTER_TASKS) if task in tasks), tasks[0])
    usual = default_stack(tuned)
    if usual.framework != HUGGINGFACE:
        return usual.name, ""
    if tuned == QUANTISED_TASK:
        return usual.name, ""
    if any(_splits(graph, name, pin) for name, pin in pins.items()):
        return MEGATRON, f"; {usual.name} splits no model"
    if graph.trains_between_generations:
        return MEGATRON, f", as published runs that generate and train; {usual.name} splits no model"
    return usual.name, ""


def _splits(graph: Dataflow, name: str, pin: CallPin) -> bool:
    """Whether what is fixed of a call splits its model in the training framework."""
    trainer = graph.call(name).kind != GENERATE or pin.engine == TRAINER
    return trainer and max((pin.columns.get(axis, 1) for axis in MODEL_AXES), default=1) > 1


def fused_or_not(
    graph: Dataflow,
    stacks: Mapping[str, StackSpec],
    models: Mapping[str, ModelSpec],
    machines: MixedCluster,
    library: str | None,
) -> list[Note]:
    """What is assumed of the attention of every role's model on every kind of device, once where it is the same.

    Args:
        graph: The workflow.
        stacks: Role to what trains it and infers with it.
        models: Role to its model.
        machines: Their devices have kernels of a library or not.
        library: Whose attention it is; None for what the stack picks.

    Raises:
        SpecError: If that library is unknown, or has no attention for a model on a device.
    """
    job = _with_library(library or "", machines)
    roles = dict.fromkeys(call.role for call in graph.calls if call.kind in (INFERENCE, TRAIN))
    notes: dict[Note, None] = {}
    for role, group in product(roles, machines.groups):
        try:
            notes.update(dict.fromkeys(with_attention(job, None, stacks[role], group, models[role])[1]))
        except SpecError as error:  # its hint may be of jobs, which can ask for other kernels too
            raise SpecError("attention_library", error.problem, "leave it out") from None
    return list(notes)


def _with_library(library: str, machines: MixedCluster) -> TrainingJob:
    """The least job that asks for it, on devices that it has kernels for."""
    try:
        job = TrainingJob(sequence_length=1, global_batch_size=1, attention_library=library)
        for group in machines.groups:
            check_attention_library(job, group.device)
    except SpecError as error:
        raise error.at("attention_library") from None
    return job


def adapter_notes(graph: Dataflow, models: Mapping[str, ModelSpec], stacks: Mapping[str, StackSpec]) -> list[Note]:
    """What was assumed of the adapters that roles train, of how they reach the engine, and of what is not quantised."""
    notes = []
    for role in graph.roles:
        if not graph.trainable(role.name):
            continue
        if role.task in ADAPTER_TASKS and any(call.kind == GENERATE for call in graph.calls_of(role.name)):
            message = f"{role.name}: adapters alone go to the engine, whose copy of the base stays or waits on the host"
            notes.append(Note(code="assumed_default", field=f"job.roles.{role.name}.lora", message=message))
        if wide := wide_experts(role.task, stacks[role.name], models[role.name]):
            message = f"{role.name}: {wide}"
            notes.append(Note(code="wide_experts", field=f"job.roles.{role.name}.task", message=message))
        for name, message in role.adapters(models[role.name]).assumed.items():
            field = f"job.roles.{role.name}.lora.{name}"
            notes.append(Note(code="assumed_default", field=field, message=f"{role.name}: {message}"))
    return notes
