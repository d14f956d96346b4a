"""From what a user writes about a workflow to a ``FlowRequest``: names looked up, defaults filled in and recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from costmodels.energy_cost import Price
from costmodels.lengths import OutputLengths
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.dataflow.flow.engines import engines_of
from planner.dataflow.flow.lengths import sequence_lengths
from planner.dataflow.flow.notes import replaced_notes
from planner.dataflow.flow.pins import CallPin, parse_call_pins
from planner.dataflow.flow.role_models import by_role, models_of
from planner.dataflow.flow.stacks import adapter_notes, check_roles, fused_or_not, stacks_of
from planner.dataflow.graphs.file import graph_from_mapping, load_graph
from planner.dataflow.graphs.graph import GENERATE, Call, Dataflow
from planner.dataflow.graphs.presets import PRESETS, ROLE_SETTINGS, as_setting, build_preset
from planner.dataflow.length_text import LengthInput
from planner.dataflow.rollouts import PARTIAL, ROLLOUTS, WHOLE, check_rollout
from planner.dataflow.solving.iterations import BARRIER, MAX_STALENESS, STALE, VERSION, iteration_edges
from planner.dataflow.streams import streamed
from planner.question.job_checks import check_precision
from planner.question.jobs import default_precision
from planner.question.machines import ClusterInput, fabric_notes, mixed_of, resolve_cluster, with_own_reserve
from planner.question.option_kinds import check_kinds, check_oom_risk, in_small_letters
from planner.question.request import ModelInput
from planner.results import RISKY, Note
from profiles.engines import TRAINER
from profiles.errors import SpecError, check_between, shown
from profiles.mixed_cluster import MixedCluster, alone
from profiles.model import ModelSpec
from profiles.precision import parse_precision
from profiles.scalars import plain, whole_number
from profiles.stack import StackSpec

HYBRID, COLOCATED, DISAGGREGATED, ASYNC = "hybrid", "colocated", "disaggregated", "async"
MODES = (HYBRID, COLOCATED, DISAGGREGATED, ASYNC)
OBJECTIVES = ("time", "cost", "fewest_gpus")
DEFAULT_BATCH = 512  # prompts; the batch of ReaLHF's and RLHFuse's experiments (arXiv:2406.14088, 2409.13221)
_WORDS = ("mode", "objective", "rollout", "dependency", "engine", "attention_library")  # in capitals too
MAX_ITERATIONS = 16
MAX_GPUS = 4096
MAX_FILE_NAME_BYTES = 256  # what file systems take

GraphInput = str | Path | Mapping[str, Any] | Dataflow


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOptions:
    """Everything about a workflow's plan that is neither graph, models nor cluster.

    Attributes:
        batch: Items (prompts, pairs, texts) per iteration; None for ``DEFAULT_BATCH``.
        prompt: Tokens per prompt.
        generate: Tokens per response, a number or a distribution, see ``length_text``.
        settings: Settings of a preset, e.g. ``{"group_size": 8}``.
        mode: ``hybrid`` (every call where it is best), ``colocated`` (all on all GPUs),
            ``disaggregated`` (generation apart from the rest), ``async`` (that, with generation ahead).
        staleness: Training steps by which generating weights may lag in ``async``; None for 1.
        rollout: ``whole`` (generation ends with its last response), ``in_flight`` (in ``async``: new weights interrupt
            it, and the next responses start while its last ones go on) or ``partial`` (in ``async``: it ends when
            enough responses have; the others are interrupted by the new weights and go on in the next iterations).
        keep_cache: Whether interrupted responses keep keys and values of older weights, or compute them anew.
        stream: Whether scoring and services take responses as they end; see ``planner.dataflow.streams``.
        dependency: ``version`` or ``barrier``, see ``planner.dataflow.solving.iterations``; None for what the mode
            needs.
        objective: ``time``, ``cost`` or ``fewest_gpus``.
        max_oom_risk: Share of runs, up to 1, in which a call may run out of memory at most, where there is such a plan.
        offload: Whether frozen weights and optimizer states may lie in host memory between calls.
        engine: Engine of every generating call that pins none; None for the best of those there are.
        eager: Whether engines capture no CUDA graphs (``rollout.enforce_eager`` of verl, which it set by default in
            2025).
        linear_loss: Whether losses and log-probabilities take the output layer into themselves, a few tokens at a time,
            so that no logits are held (Liger's kernels; ``model.use_fused_kernels`` of verl); None as the training
            framework does unasked.
        attention_library: Whose fused attention trains and infers (``flash_2``, ``flash_3`` or ``cudnn``); None for the
            one the training framework picks.
        pins: Call to what is fixed of it, see ``flow.pins``.
        min_mesh: Fewest GPUs a call may use.
        framework: Training framework or stack; None for the usual one, see ``planner.dataflow.flow.stacks``.
        precision: Number format of all models.
        iterations: Iterations shown. With several, plans are judged by their pace once settled; a single one by itself.
        seed: Of the search.
        effort: Search budget relative to the usual one.
        fabric: Network link of the nodes, when the cluster text does not say.
        memory_reserve_bytes: Device memory to leave free.
        price_per_device_hour_usd: Dollars; None when not given.
        allow_files: Whether a model or a graph may be named by a path.
    """

    batch: int | None = None
    prompt: int | None = None
    generate: LengthInput | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    mode: str = HYBRID
    staleness: int | None = None
    rollout: str = WHOLE
    keep_cache: bool = False
    stream: bool = False
    dependency: str | None = None
    objective: str = "time"
    max_oom_risk: float = RISKY
    offload: bool = True
    engine: str | None = None
    eager: bool = False
    linear_loss: bool | None = None
    attention_library: str | None = None
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    min_mesh: int | None = None
    framework: str | None = None
    precision: str | None = None
    iterations: int = 5
    seed: int = 0
    effort: float = 1.0
    fabric: str | None = None
    memory_reserve_bytes: float = 0.0
    price_per_device_hour_usd: float | None = None
    allow_files: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRequest:
    """A question about a workflow, with everything the user left open filled in.

    Attributes:
        graph: The workflow.
        models: Role to its model.
        cluster: The GPUs and links, of one kind of machines or of several.
        stacks: Role to the training framework, which also runs inference: one for all, but for the width of intervals.
        batch: Items per iteration.
        prompt_tokens: Tokens per prompt.
        output: Tokens per response.
        mode: Placement, see ``FlowOptions``.
        dependency: How iterations depend on each other, see ``planner.dataflow.solving.iterations``.
        staleness: Training steps by which generating weights may lag.
        precision: Number format of all models.
        engines: Engines that may generate where no pin says which, see ``engines_of``.
        pins: Call to what is fixed of it.
        options: The rest, as given.
        assumptions: What was filled in.
    """

    graph: Dataflow
    models: Mapping[str, ModelSpec]
    cluster: MixedCluster
    stacks: Mapping[str, StackSpec]
    batch: int
    prompt_tokens: int
    output: OutputLengths
    mode: str
    dependency: str
    staleness: int
    precision: str
    engines: tuple[str, ...]
    pins: Mapping[str, CallPin]
    options: FlowOptions
    assumptions: tuple[Note, ...]

    @property
    def stack(self) -> StackSpec:
        """The training framework, as the first role has it."""
        return next(iter(self.stacks.values()))

    def engines_of(self, call: Call) -> tuple[str, ...]:
        """Engines that may run a call: the one it pins, or those of all; the trainer where it generates nothing."""
        if call.kind != GENERATE:
            return (TRAINER,)
        pinned = self.pins.get(call.name, CallPin()).engine
        return self.engines if pinned is None else (pinned,)

    @property
    def generators(self) -> tuple[str, ...]:
        """Engines that may run any generating call; where none generates, those that would."""
        calls = [call for call in self.graph.calls if call.kind == GENERATE]
        return tuple(dict.fromkeys(name for call in calls for name in self.engines_of(call))) or self.engines

    @property
    def ahead(self) -> int:
        """Training steps by which generation runs ahead of training."""
        return min(self.staleness, 1) if self.options.rollout == PARTIAL else self.staleness

    @property
    def carried_over(self) -> int:
        """Further iterations an unfinished response may go on in; running ahead uses up one step of the staleness."""
        return self.staleness - self.ahead


def resolve_flow(
    job: GraphInput, models: Mapping[str, ModelInput], cluster: ClusterInput | MixedCluster, options: FlowOptions
) -> FlowRequest:
    """The question in full.

    Raises:
        SpecError: If anything named is unknown, out of bounds or contradictory.
    """
    job, models, cluster, options = plain((job, models, cluster, options))
    options = in_small_letters(options, _WORDS)
    _check_options(options)
    graph, described = _graph(job, options)
    graph = streamed(graph) if options.stream else graph
    try:
        return _resolved(graph, described, models, cluster, options)
    except SpecError as error:
        if isinstance(job, str) and not _is_file(job):
            raise as_setting(error, graph, options.batch or DEFAULT_BATCH) from None
        raise


def _resolved(
    graph: Dataflow,
    described: Mapping[str, ModelInput],
    models: Mapping[str, ModelInput],
    cluster: ClusterInput | MixedCluster,
    options: FlowOptions,
) -> FlowRequest:
    """The question in full, of models that the workflow's description or the user names, as ``resolve_flow``."""
    notes: list[Note] = []
    machines = _machines(cluster, options)
    notes += [_assumed("cluster", text) for text in machines.assumptions]
    notes += fabric_notes(machines.groups[0], options.fabric)
    given = by_role(models, graph)
    notes += replaced_notes(described, given)
    specs, model_notes = models_of(graph, {**described, **given}, allow_files=options.allow_files)
    notes += model_notes
    batch = options.batch if options.batch is not None else DEFAULT_BATCH
    if options.batch is None:
        notes.append(_assumed("batch", f"{batch} items per iteration (not given)"))
    prompt, output = sequence_lengths(options.prompt, options.generate, specs, notes)
    for call in graph.calls:  # whole numbers of sequences, and training ones whole mini-batches
        call.sequences(batch)
    staleness = _staleness(graph, options, notes)
    pins = parse_call_pins(options.pins, graph, machines)
    stacks, stack_notes = stacks_of(graph, options.framework, pins)
    check_roles(graph, specs, machines, stacks)
    notes += [*adapter_notes(graph, specs, stacks), *stack_notes]
    notes += fused_or_not(graph, stacks, specs, machines, options.attention_library)
    return FlowRequest(
        graph=graph,
        models=specs,
        cluster=machines,
        stacks=stacks,
        batch=batch,
        prompt_tokens=prompt,
        output=output,
        mode=options.mode,
        dependency=_dependency(options),
        staleness=staleness,
        precision=_precision(options, machines, notes),
        engines=engines_of(
            graph,
            specs,
            machines,
            pins,
            asked=options.engine,
            interrupts=options.rollout != WHOLE,
            eager=options.eager,
        ),
        pins=pins,
        options=options,
        assumptions=tuple(notes),
    )


def _assumed(name: str, message: str) -> Note:
    return Note(code="assumed_default", field=name, message=message)


def _graph(job: GraphInput, options: FlowOptions) -> tuple[Dataflow, Mapping[str, ModelInput]]:
    """The workflow and the models its description names."""
    if isinstance(job, Dataflow) or (isinstance(job, (Mapping, Path)) or _is_file(job)):
        if options.settings:
            name = next(iter(options.settings))
            where = "roles" if name in ROLE_SETTINGS else "calls"
            raise SpecError(f"job.{name}", "is a setting of presets", f"write it into the {where} of the workflow")
        if isinstance(job, Dataflow):
            return job, {}
        if isinstance(job, Mapping):
            found = graph_from_mapping(job)
        elif options.allow_files:
            found = load_graph(Path(job))
        else:
            raise SpecError("job", "names a file, which is not read here", "the graph itself, as a mapping")
        return found.graph, found.models
    if not isinstance(job, str):
        raise SpecError("job", f"must be a name, a file or a graph; got {shown(job)}", ", ".join(PRESETS))
    if options.allow_files and job.lower() not in PRESETS and _exists(job):
        raise SpecError(
            "job", f"{job[:60]!r} is a file, but not named as YAML", f"rename it to {Path(job).name[:40]}.yaml"
        )
    return build_preset(job, options.settings, allow_files=options.allow_files), {}


def _exists(job: str) -> bool:
    """Whether a text, which may be anything, names a file."""
    return len(job.encode(errors="replace")) < MAX_FILE_NAME_BYTES and Path(job).is_file()


def _is_file(job: object) -> bool:
    return isinstance(job, str) and job.lower().endswith((".yaml", ".yml"))


def _check_options(options: FlowOptions) -> None:
    for name, known in (("mode", MODES), ("objective", OBJECTIVES), ("rollout", ROLLOUTS)):
        value = getattr(options, name)
        if value not in known:
            raise SpecError(name, f"unknown value {shown(value)}", f"use one of {', '.join(known)}")
    for name, low, high in (
        ("batch", 1, MAX_GLOBAL_BATCH),
        ("iterations", 1, MAX_ITERATIONS),
        ("min_mesh", 1, MAX_GPUS),
        ("seed", 0, 1 << 31),
        ("staleness", 0, MAX_STALENESS),
    ):
        value = getattr(options, name)
        if value is None:
            continue
        whole_number(name, value, least=low, most=high)
    check_kinds(options)
    check_oom_risk(options.max_oom_risk)
    check_between("effort", options.effort, 0.01, 100)
    if options.staleness is not None and options.mode != ASYNC:
        raise SpecError("staleness", f"has a meaning in mode async only; mode is {options.mode}", "mode async")
    check_rollout(
        options.rollout,
        mode=options.mode,
        runs_ahead=options.mode == ASYNC,
        staleness=options.staleness,
        keep_cache=options.keep_cache,
    )
    if options.price_per_device_hour_usd is not None:
        Price(usd_per_device_hour=options.price_per_device_hour_usd)


def _dependency(options: FlowOptions) -> str:
    """How iterations depend on each other."""
    if options.mode == ASYNC:
        if options.dependency not in (None, STALE):
            problem = f"{shown(options.dependency)} leaves nothing to run ahead"
            raise SpecError("dependency", problem, f"{STALE}, or another mode")
        return STALE
    if options.dependency not in (None, VERSION, BARRIER):
        hint = "mode async" if options.dependency == STALE else f"{VERSION} or {BARRIER}"
        raise SpecError("dependency", f"must suit mode {options.mode}; got {shown(options.dependency)}", hint)
    return options.dependency or VERSION


def _staleness(graph: Dataflow, options: FlowOptions, notes: list[Note]) -> int:
    """Steps generation may lag; checked against the graph."""
    if options.mode != ASYNC:
        return 0
    learning = [call.name for call in graph.calls if call.kind == GENERATE and graph.trainable(call.role)]
    if not learning:
        problem = f"{graph.name} does not generate with a model it trains, so nothing can run ahead"
        raise SpecError("mode", problem, "hybrid")
    if options.staleness is None:
        notes.append(_assumed("staleness", "generation runs one step ahead (staleness not given)"))
    staleness = 1 if options.staleness is None else options.staleness
    iteration_edges(graph, dependency=STALE, staleness=staleness)
    return staleness


def _precision(options: FlowOptions, cluster: MixedCluster, notes: list[Note]) -> str:
    """The number format asked for, or the usual one that every device has."""
    devices = [group.device for group in cluster.groups]
    if options.precision is not None:
        for device in devices:
            check_precision(options.precision, device)
        return parse_precision(options.precision).name
    chosen = default_precision(devices)
    notes.append(_assumed("precision", f"{chosen} (not given)"))
    return chosen


def _machines(cluster: ClusterInput | MixedCluster, options: FlowOptions) -> MixedCluster:
    """The machines, with less memory where some is reserved."""
    mixed = mixed_of(cluster)
    if mixed is None:
        mixed = alone(resolve_cluster(cluster, options.fabric))  # type: ignore[arg-type]
    elif options.fabric is not None:
        raise SpecError("fabric", "cannot be that of several kinds of machines", "groups with a fabric each")
    if len(mixed.groups) > 1 and options.objective in OBJECTIVES[1:]:
        problem = f"{options.objective} looks at parts of a cluster of one kind of machines; here are several"
        raise SpecError("objective", problem, "time")
    if mixed.num_devices > MAX_GPUS:
        raise SpecError("cluster", f"workflows are planned on up to {MAX_GPUS} GPUs; got {mixed.num_devices}")
    groups = tuple(with_own_reserve(group, options.memory_reserve_bytes) for group in mixed.groups)
    return replace(mixed, groups=groups)
