"""Which engines a workflow may generate with: pinned ones, the one asked for, or the usual ones that run its models."""

from collections.abc import Mapping, Sequence

from planner.dataflow.flow.pins import CallPin
from planner.dataflow.graphs.graph import GENERATE, Dataflow
from profiles.engine_checks import check_engine
from profiles.engines import TRAINER, EngineSpec, find_engine
from profiles.errors import SpecError, shown
from profiles.hardware import DeviceSpec
from profiles.mixed_cluster import MixedCluster
from profiles.model import ModelSpec

DEFAULT_ENGINES = ("vllm", "sglang")  # what current training systems generate with


def engines_of(
    graph: Dataflow,
    models: Mapping[str, ModelSpec],
    machines: MixedCluster,
    pins: Mapping[str, CallPin],
    *,
    asked: str | None,
    interrupts: bool,
    eager: bool,
) -> tuple[str, ...]:
    """Engines of calls that pin none: the one asked for, or the usual ones; where none of these runs, the trainer.

    Args:
        graph: The workflow.
        models: By role.
        machines: Where they run.
        pins: Call to what is fixed of it; an engine that is pinned is that of its call alone.
        asked: Name of the one engine to use, if any.
        interrupts: Whether responses may be interrupted.
        eager: Whether they shall capture no graphs.

    Raises:
        SpecError: If an engine is unknown, cannot do what the workflow needs, or generates nothing.
    """
    devices = [group.device for group in machines.groups]
    calls = [call for call in graph.calls if call.kind == GENERATE]
    if eager and not calls:
        raise SpecError("eager", f"is given, but no call of {graph.name} generates", "leave it out")
    fixed = _pinned(graph, models, machines, pins, interrupts=interrupts)
    free = [models[call.role] for call in calls if call.name not in fixed]
    if asked is None:
        found = [name for name in DEFAULT_ENGINES if _runs(name, free, devices)]
        if eager:  # a choice among those whose steps without graphs were timed
            found = [name for name in found if find_engine(name).eager_launch_s]
        engines = [find_engine(name) for name in found or (TRAINER,)]
    else:
        engines = [_asked(asked, graph, free, devices, interrupts=interrupts)]
        if calls and not free and engines[0] not in fixed.values():
            problem = f"{engines[0].name} generates nothing: every call that generates has another one pinned"
            raise SpecError("engine", problem, "leave it out")
    if eager:
        _check_eager([*fixed.values(), *(engines if free else ())])
    return tuple(engine.name for engine in engines)


def _pinned(
    graph: Dataflow,
    models: Mapping[str, ModelSpec],
    machines: MixedCluster,
    pins: Mapping[str, CallPin],
    *,
    interrupts: bool,
) -> dict[str, EngineSpec]:
    """Generating call to the engine that is fixed for it."""
    found = {}
    for name, pin in pins.items():
        if pin.engine is None:
            continue
        call, where = graph.call(name), f"pins.{name}.engine"
        if call.kind != GENERATE:
            if pin.engine != TRAINER:
                raise SpecError(where, f"{name} runs in the trainer; got {shown(pin.engine)}", TRAINER)
            continue
        devices = [group.device for group in machines.groups]
        if pin.first_gpu is not None:
            devices = [devices[machines.group_of(pin.first_gpu)]]
        engine = find_engine(pin.engine)
        learns = graph.trainable(call.role)  # others end with their last response
        _check(where, engine, [models[call.role]], devices, interrupts=interrupts and learns)
        found[name] = engine
    return found


def _asked(
    asked: str, graph: Dataflow, models: Sequence[ModelSpec], devices: Sequence[DeviceSpec], *, interrupts: bool
) -> EngineSpec:
    """The engine of all calls that pin none."""
    engine = find_engine(asked)
    if all(call.kind != GENERATE for call in graph.calls):
        raise SpecError("engine", f"is given, but no call of {graph.name} generates", "leave it out")
    _check("engine", engine, models, devices, interrupts=interrupts)
    return engine


def _check(
    where: str, engine: EngineSpec, models: Sequence[ModelSpec], devices: Sequence[DeviceSpec], *, interrupts: bool
) -> None:
    """Refuse an engine that cannot do what a field asks it to."""
    if not any(map(engine.runs_on, devices)):
        raise SpecError(where, f"{engine.name} does not support {devices[0].name}", "leave it out")
    if interrupts and not engine.continuous:
        problem = f"{engine.name} cannot interrupt responses: its batches end together"
        raise SpecError(where, problem, "use one of " + ", ".join(DEFAULT_ENGINES))
    for model in models:
        try:
            check_engine(engine, model, next((each for each in devices if engine.chooses_on(model, each)), devices[0]))
        except SpecError as error:
            raise error.at(where) from None


def _check_eager(engines: Sequence[EngineSpec]) -> None:
    """Refuse to leave out graphs that no engine captures, or whose lack was not timed."""
    if not any(engine.captures_graphs for engine in engines):
        problem = f"changes nothing: {engines[0].name} captures no graphs anyway"
        raise SpecError("eager", problem, "leave it out")
    for engine in engines:
        engine.eager()  # whether that was timed


def _runs(name: str, models: Sequence[ModelSpec], devices: Sequence[DeviceSpec]) -> bool:
    engine = find_engine(name)
    devices = [device for device in devices if engine.runs_on(device)]
    placed = all(any(engine.chooses_on(model, device) for device in devices) for model in models)
    return bool(devices) and placed and all(map(engine.knows, models))
