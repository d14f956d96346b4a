"""Which engines a workflow may generate with: the one asked for, or the usual ones that run its models."""

from collections.abc import Mapping, Sequence

from planner.dataflow.graphs.graph import GENERATE, Dataflow
from profiles.engine_checks import check_engine
from profiles.engines import TRAINER, find_engine
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.mixed_cluster import MixedCluster
from profiles.model import ModelSpec

DEFAULT_ENGINES = ("vllm", "sglang")  # what current training systems generate with


def engines_of(
    graph: Dataflow,
    models: Mapping[str, ModelSpec],
    machines: MixedCluster,
    *,
    asked: str | None,
    interrupts: bool,
    eager: bool = False,
) -> tuple[str, ...]:
    """Names of engines: the one asked for, or the usual ones; where none of these runs, the trainer generates.

    Args:
        graph: The workflow.
        models: By role.
        machines: Where they run.
        asked: Name of the one engine to use, if any.
        interrupts: Whether responses may be interrupted.
        eager: Whether they shall capture no graphs.

    Raises:
        SpecError: If the engine is unknown, or cannot do what the workflow needs.
    """
    devices = [group.device for group in machines.groups]
    generating = [models[call.role] for call in graph.calls if call.kind == GENERATE]
    if eager and not generating:
        raise SpecError("eager", f"is given, but no call of {graph.name} generates", "leave it out")
    if asked is None:
        found = [name for name in DEFAULT_ENGINES if _runs(name, generating, devices)]
        if eager:  # a choice among those whose steps without graphs were timed
            found = [name for name in found if find_engine(name).eager_launch_s]
        return tuple(found) or (TRAINER,)
    engine = find_engine(asked)
    if not any(map(engine.runs_on, devices)):
        raise SpecError("engine", f"{engine.name} does not support {devices[0].name}", "leave it out")
    if not generating:
        raise SpecError("engine", f"is given, but no call of {graph.name} generates", "leave it out")
    if eager and not engine.captures_graphs:
        raise SpecError("eager", f"changes nothing: {engine.name} captures no graphs anyway", "leave it out")
    if eager:
        engine.eager()  # whether that was timed
    if interrupts and not engine.continuous:
        problem = f"{engine.name} cannot interrupt responses: its batches end together"
        raise SpecError("engine", problem, "use one of " + ", ".join(DEFAULT_ENGINES))
    for model in generating:
        check_engine(engine, model, next((each for each in devices if engine.chooses_on(model, each)), devices[0]))
    return (engine.name,)


def _runs(name: str, models: Sequence[ModelSpec], devices: Sequence[DeviceSpec]) -> bool:
    engine = find_engine(name)
    devices = [device for device in devices if engine.runs_on(device)]
    placed = all(any(engine.chooses_on(model, device) for device in devices) for model in models)
    return bool(devices) and placed and all(map(engine.knows, models))
