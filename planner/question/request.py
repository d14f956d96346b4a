"""From what a user writes to a ``Request``: names looked up, defaults filled in and recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from costmodels.context import CostContext
from costmodels.energy_cost import Price
from costmodels.plan import MODEL_AXES, ExecutionPlan
from costmodels.step.layer_costs import joined_devices
from costmodels.workload import TrainingJob
from planner.prices.price_lists import collective_model, kernel_model_of
from planner.question.field_names import meant_setting
from planner.question.job_checks import check_on_stack
from planner.question.jobs import (
    JOB_FIELDS,
    cast_notes,
    expert_notes,
    gradient_notes,
    resolve_job,
    state_notes,
    with_attention,
    with_loss,
)
from planner.question.machines import ClusterInput, fabric_notes, resolve_cluster, with_own_reserve
from planner.question.option_kinds import check_kinds, check_oom_risk
from planner.question.pins import check_values, parse_pins
from planner.question.states import with_states
from planner.ranking import check_objective
from planner.results import RISKY, Note, Request, assumed_notes
from planner.rules.base import FRAMEWORKS, HUGGINGFACE, MEGATRON, Setting
from planner.space.enumeration import Space, plan_space
from profiles.catalog import default_catalog
from profiles.errors import SpecError, did_you_mean, meant_among, shown
from profiles.hardware import ClusterSpec, NodeSpec
from profiles.model import ModelSpec
from profiles.model_presets import ResolvedModel, resolve_model
from profiles.scalars import plain
from profiles.stack import StackSpec
from profiles.stack_names import taken_as
from profiles.stacks import default_stack, find_stack, fitted_in, load_stacks, with_fit

ModelInput = str | Path | Mapping[str, Any] | ModelSpec
JobInput = TrainingJob | Mapping[str, Any] | None
PinsInput = Mapping[str, Any] | None
ANY = "any"  # of the frameworks, where several may be named


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything about a question that is neither model, cluster nor job.

    Attributes:
        framework: Framework or stack name; None for the usual one of the task.
        stack_fit: File of stacks fitted on one's own runs (``planner calibrate --runs``).
        objective: What "best" means, see ``planner.ranking.OBJECTIVES``.
        max_oom_risk: Share of runs, up to 1: plans that run out of memory more often are ranked only where all others
            do, too, or, if no other share than the usual one was asked for, take twice as long.
        offload: Also consider offloading optimizer states, checkpoints and weights to host memory.
        named_modules: Also consider recomputing named modules of layers, as Megatron-Core can be told.
        variants: List plans that differ only in virtual stages, placement and other details (see
            ``planner.ranking.FAMILY``) one by one, instead of the best of them.
        fabric: Network link of the nodes, when the cluster text does not say.
        price_per_device_hour_usd: Dollars; None when not given.
        price_date: When that was the price.
        memory_reserve_bytes: Device memory to leave free.
        allow_files: Whether a model or a fit may be named by a path; False for text from a network.
    """

    framework: str | None = None
    stack_fit: str | None = None
    objective: str = "step_time"
    max_oom_risk: float = RISKY
    offload: bool = False
    named_modules: bool = False
    variants: bool = False
    fabric: str | None = None
    price_per_device_hour_usd: float | None = None
    price_date: str = ""
    memory_reserve_bytes: float = 0.0
    allow_files: bool = True


def given_options(options: Options | None, settings: Mapping[str, Any], *, fixed: str = "pins") -> Options:
    """The options of a public call, which come as one object or as keywords.

    Args:
        options: The one.
        settings: The others.
        fixed: The call's keyword of what is held fixed.

    Raises:
        SpecError: If a keyword is none of them.
        TypeError: If they come as both.
    """
    if options is not None and settings:
        raise TypeError("give options or keywords, not both")
    known = [item.name for item in fields(Options)]
    for name in settings:
        if name not in known:
            hint = meant_setting(name, known, JOB_FIELDS, fixed=fixed) or meant_among(name, known)
            raise SpecError(name[:40], "unknown setting", hint)
    return options or Options(**settings)


def resolve_request(
    model: ModelInput, cluster: ClusterInput, job: JobInput, pins: PinsInput, options: Options
) -> Request:
    """The question in full.

    Raises:
        SpecError: If anything named is unknown, out of bounds or contradictory.
    """
    model, cluster, job, pins, options = plain((model, cluster, job, pins, options))
    check_options(options)
    resolved = resolve_named_model(model, allow_files=options.allow_files)
    machines = resolve_cluster(cluster, options.fabric)
    notes = [*assumed_notes("model", resolved.assumptions), *assumed_notes("cluster", machines.assumptions)]
    notes += fabric_notes(machines, options.fabric)
    fixed = parse_pins(pins)
    training, job_notes = resolve_job(job, resolved.spec, machines, fixed)
    stack, stack_notes = _stack(options, training, fixed)
    check_on_stack(training, job, stack, resolved.spec)
    training, attention_notes = with_attention(training, job, stack, machines, resolved.spec)
    training, loss_notes = with_loss(training, job, stack)
    training, kept_notes = with_states(training, job, options.framework or "", stack)
    return Request(
        model=resolved.spec,
        cluster=with_own_reserve(machines, options.memory_reserve_bytes),
        job=training,
        stack=stack,
        stack_fitted=options.stack_fit is not None,
        pins=fixed,
        objective=check_objective(options.objective),
        max_oom_risk=float(options.max_oom_risk),
        offload=options.offload,
        named_modules=options.named_modules,
        variants=options.variants,
        price=price_of(options),
        memory_reserve_bytes=max(options.memory_reserve_bytes, machines.device.reserved_memory_bytes),
        assumptions=(
            *notes,
            *job_notes,
            *attention_notes,
            *loss_notes,
            *(kept_notes or (*state_notes(training, job), *gradient_notes(training, job, stack))),
            *cast_notes(training, stack),
            *expert_notes(stack, resolved.spec),
            *stack_notes,
        ),
        asked=job,
    )


def price_of(options: Options) -> Price | None:
    """What a device-hour costs, if the options say so."""
    usd = options.price_per_device_hour_usd
    return None if usd is None else Price(usd_per_device_hour=float(usd), date=options.price_date)


def check_options(options: Options) -> None:
    """Refuse values of the wrong type, which only a caller in Python can give."""
    if not isinstance(options, Options):
        raise SpecError("options", f"must be planner.question.request.Options; got {shown(options)}")
    check_kinds(options)
    check_oom_risk(options.max_oom_risk)
    if options.price_date and options.price_per_device_hour_usd is None:
        raise SpecError("price_date", "is given without a price", "give price_per_device_hour_usd too, or neither")
    if options.price_date:
        try:
            date.fromisoformat(options.price_date if len(options.price_date) > 7 else f"{options.price_date}-01")
        except ValueError:
            raise SpecError(
                "price_date", f"must be a date; got {options.price_date[:40]!r}", "for example 2026-11-20 or 2026-11"
            ) from None


def cost_context(request: Request, cluster: ClusterSpec | None = None) -> CostContext:
    """What prices depend on besides the plan, on the request's cluster or a part of it."""
    chosen = cluster or request.cluster
    return CostContext(
        model=request.model,
        cluster=chosen,
        job=request.job,
        stack=request.stack,
        kernels=kernel_model_of(chosen.device),
        collectives=collective_model(),
    )


def setting_of(request: Request, cluster: ClusterSpec | None = None) -> Setting:
    """What legality rules look at besides the plan."""
    chosen = cluster or request.cluster
    return Setting.of_stack(
        request.model,
        request.job,
        request.stack,
        num_devices=chosen.num_devices,
        joined_devices=joined_devices(chosen),
    )


def space_of(request: Request, cluster: ClusterSpec | None = None) -> Space:
    """The legal plans of a request, on its cluster or another; on coarser grids where they are too many.

    Raises:
        SpecError: As ``plan_space``.
    """
    chosen = cluster or request.cluster
    return plan_space(
        setting_of(request, chosen),
        domain_devices=chosen.domain_devices,
        pins=request.pins,
        offload=request.offload,
        named_modules=request.named_modules,
    )


def full_node(cluster: ClusterSpec) -> NodeSpec:
    """The node with all its devices, where only some of a single one are used."""
    node = cluster.node
    known = default_catalog().nodes.get(node.name)
    if cluster.num_nodes > 1 or known is None or known.devices_per_node <= node.devices_per_node:
        return node
    return replace(node, devices_per_node=known.devices_per_node, domain_devices=known.domain_devices)


def part_of(cluster: ClusterSpec, num_devices: int) -> ClusterSpec:
    """The same machines, fewer or more of them: part of one node, or whole nodes; the cluster itself if as many."""
    if num_devices == cluster.num_devices:
        return cluster
    node = full_node(cluster)
    if num_devices < node.devices_per_node:
        node = replace(node, devices_per_node=num_devices, domain_devices=num_devices)
        return replace(cluster, node=node, num_nodes=1)
    return replace(cluster, node=node, num_nodes=num_devices // node.devices_per_node)


def on_used_part(request: Request, num_devices: int) -> Request:
    """The question on that part of the cluster that a plan uses."""
    return replace(request, cluster=part_of(request.cluster, num_devices))


def resolve_named_model(model: ModelInput, *, allow_files: bool) -> ResolvedModel:
    """The model a user names or describes; text names a file only where that is allowed."""
    if isinstance(model, str):
        try:
            return _named_model(model)
        except SpecError:
            if not allow_files:
                raise
    text = str(model) if isinstance(model, Path) else model
    return resolve_model(text, default_catalog(), allow_paths=allow_files)


@lru_cache(maxsize=256)
def _named_model(name: str) -> ResolvedModel:
    return resolve_model(name, default_catalog(), allow_paths=False)


def _stack(options: Options, job: TrainingJob, pins: Mapping[str, int]) -> tuple[StackSpec, list[Note]]:
    name, stacks = options.framework, load_stacks(job.task)
    if options.stack_fit is not None:
        if not options.allow_files:
            raise SpecError("stack_fit", "names a file, which is not read here")
        stacks = with_fit(Path(options.stack_fit), job.task)
    stack, notes = _stack_among(stacks, name, job, pins)
    if options.stack_fit is not None:
        _check_fitted(stack, options.stack_fit)
    return stack, notes


def _check_fitted(stack: StackSpec, path: str) -> None:
    if stack.name not in (fitted := fitted_in(Path(path))):
        hint = f"give framework {' or '.join(fitted[:3])}" if fitted else "write it with planner calibrate --runs"
        raise SpecError("stack_fit", f"says nothing of {stack.name}, which is what is planned for", hint)


def with_stack_fit(request: Request, path: str) -> Request:
    """The question of a saved answer, priced by the fit of one's own runs that it rests on.

    Raises:
        SpecError: If the file is no such fit, or says nothing of the framework.
    """
    check_options(Options(stack_fit=path))
    stack = find_stack(request.stack.name, with_fit(Path(path), request.job.task))
    _check_fitted(stack, path)
    return replace(request, stack=stack, stack_fitted=True)


def _stack_among(
    stacks: Mapping[str, StackSpec], name: str | None, job: TrainingJob, pins: Mapping[str, int]
) -> tuple[StackSpec, list[Note]]:
    """The stack asked for, or the usual one of the task and what was assumed with it."""
    if name is not None and names_several(name):
        problem = f"plans of one framework are compared; got {name[:40]!r}"
        raise SpecError("framework", problem, "name one, or let planner search compare several")
    if name is not None:
        stack = find_stack(name, stacks)
        if stack.framework not in FRAMEWORKS:
            raise SpecError("framework", f"unknown name {name[:40]!r}", did_you_mean(name, FRAMEWORKS))
        return stack, name_notes(name, stack)
    stack = default_stack(job.task, stacks)
    split = max((pins.get(column, 1) for column in MODEL_AXES), default=1) > 1
    if stack.framework == HUGGINGFACE and split:
        stack = find_stack(MEGATRON, stacks)
    note = Note(code="assumed_default", field="framework", message=f"{stack.name}: {stack.description}")
    return stack, [note]


def name_notes(name: str, stack: StackSpec) -> list[Note]:
    """That the name of a tool was taken for that of a stack, where it was.

    Args:
        name: What was asked for.
        stack: What was found for it.
    """
    message = taken_as(name, stack.name)
    return [Note(code="assumed_default", field="framework", message=message)] if message else []


def names_several(framework: str) -> bool:
    """Whether a name stands for several frameworks: ``any``, or names with commas between."""
    return "," in framework or framework.strip().lower() == ANY


def fixed_by(plan: ExecutionPlan | PinsInput) -> PinsInput:
    """What a plan holds fixed, of which all or some fields are given.

    Raises:
        SpecError: If a field of a whole plan is out of bounds.
    """
    if not isinstance(plan, ExecutionPlan):
        return plan
    check_values(plan)
    return pins_of(plan)


def pins_of(plan: ExecutionPlan) -> dict[str, int]:
    """A whole plan as pins, for what the batch of a job may be derived from."""
    return {
        "tensor_parallel": plan.tensor_parallel,
        "pipeline_parallel": plan.pipeline_parallel,
        "context_parallel": plan.context_parallel,
        "data_parallel": plan.data_parallel,
        "micro_batch_size": plan.micro_batch_size,
        "num_microbatches": plan.num_microbatches,
    }
