"""Which engines a workflow may generate with: the one asked for, or the usual ones that run its models."""

from collections.abc import Mapping

from planner.dataflow.graph import GENERATE, Dataflow
from profiles.engines import check_engine, find_engine
from profiles.errors import SpecError
from profiles.model import ModelSpec

DEFAULT_ENGINES = ("vllm", "sglang")  # what current training systems generate with


def engines_of(
    graph: Dataflow, models: Mapping[str, ModelSpec], *, asked: str | None, interrupts: bool
) -> tuple[str, ...]:
    """Names of engines.

    Args:
        graph: The workflow.
        models: By role.
        asked: Name of the one engine to use, if any.
        interrupts: Whether responses may be interrupted.

    Raises:
        SpecError: If the engine is unknown, or cannot do what the workflow needs.
    """
    generating = [models[call.role] for call in graph.calls if call.kind == GENERATE]
    if asked is None:
        return tuple(name for name in DEFAULT_ENGINES if all(_runs(name, model) for model in generating))
    engine = find_engine(asked)
    if not generating:
        raise SpecError("engine", f"is given, but no call of {graph.name} generates", "leave it out")
    if interrupts and not engine.continuous:
        problem = f"{engine.name} cannot interrupt responses: its batches end together"
        raise SpecError("engine", problem, "use one of " + ", ".join(DEFAULT_ENGINES))
    for model in generating:
        check_engine(engine, model)
    return (engine.name,)


def _runs(name: str, model: ModelSpec) -> bool:
    linear = model.linear_attention
    return linear is None or linear.kind in find_engine(name).linear_attention
