"""Plans for workflows of several models: the public call."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from planner.borrowed import borrowed
from planner.dataflow.flow.notes import graph_notes, vocabulary_notes
from planner.dataflow.flow.request import FlowOptions, FlowRequest, GraphInput, resolve_flow
from planner.dataflow.flow.results import FlowPlan, FlowResult
from planner.dataflow.flow.shortage import explain_shortage
from planner.dataflow.flow.solve import solve_flow
from planner.host_notes import host_notes
from planner.question.machines import ClusterInput
from planner.question.request import ModelInput
from planner.results import Note
from planner.rules.base import HUGGINGFACE, MEGATRON
from profiles.errors import SpecError, meant_among
from profiles.mixed_cluster import MixedCluster


def plan_dataflow(
    job: GraphInput,
    models: Mapping[str, ModelInput] | ModelInput,
    cluster: ClusterInput | MixedCluster,
    **settings: Any,
) -> FlowResult:
    """Plan a workflow of several model calls: which GPUs, engine and layout each gets, and when it runs.

    Args:
        job: Name of a workflow (``planner workflows`` lists them), a YAML file, a mapping of the same form, or a
            ``planner.dataflow.graphs.graph.Dataflow``.
        models: Role to model; a single model is that of the first role. Roles left out take the model of the role
            they are like.
        cluster: Text such as ``"2x8xH100"``, or ``"4x8xA100-80GB+4x8xH100"`` for machines of several kinds; a mapping;
            or ``ClusterSpec`` or ``MixedCluster``.
        **settings: Fields of ``planner.dataflow.flow.request.FlowOptions``.

    Returns:
        The plan; ``result.infeasible`` is set, and ``plan`` None, when nothing fits.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> result = planner.plan_dataflow("grpo", "llama-3.2-1b", "8xH100", batch=64, prompt=256, generate=256)
        >>> result.fits
        True
    """
    known = [item.name for item in fields(FlowOptions)]
    for name in settings:
        if name not in known:
            raise SpecError(name[:40], "unknown setting", meant_among(name, known))
    by_role: Mapping[str, ModelInput] = models if _is_by_role(models) else {"": models}  # type: ignore[assignment]
    request = resolve_flow(job, by_role, cluster, FlowOptions(**settings))
    plan = solve_flow(request)
    infeasible = None
    if plan is None:
        infeasible = explain_shortage(request, _splitting(request, job, by_role, cluster, settings))
    return FlowResult(request=request, plan=plan, infeasible=infeasible, warnings=_warnings(request, plan))


def _splitting(
    request: FlowRequest,
    job: GraphInput,
    by_role: Mapping[str, ModelInput],
    cluster: ClusterInput | MixedCluster,
    settings: Mapping[str, Any],
) -> FlowRequest | None:
    """The question with Megatron-Core, where its framework splits no model and Megatron-Core trains such roles too."""
    if request.stack.framework != HUGGINGFACE:
        return None
    try:
        return resolve_flow(job, by_role, cluster, FlowOptions(**{**settings, "framework": MEGATRON}))
    except SpecError:
        return None


def _is_by_role(models: object) -> bool:
    """Whether a mapping names roles, rather than being the configuration of one model."""
    return isinstance(models, Mapping) and all(not isinstance(value, (int, float, bool)) for value in models.values())


def _warnings(request: FlowRequest, plan: FlowPlan | None) -> tuple[Note, ...]:
    """What to know before trusting the numbers."""
    notes = [*graph_notes(request.graph), *vocabulary_notes(request.graph, request.models)]

    def warn(code: str, name: str, message: str) -> None:
        notes.append(Note(code=code, field=name, message=message))

    longest = request.prompt_tokens + request.output.most
    told = set()
    for role, model in request.models.items():
        limit = model.max_sequence_length
        if limit and longest > limit and model.name not in told:
            told.add(model.name)
            warn("beyond_model_length", f"models.{role}", f"{model.name} was built for {limit} tokens")
    if plan is None:
        return tuple(notes)
    host = min(group.node.host_memory_bytes for group in request.cluster.groups)
    if plan.host_peak_bytes > host:
        warn("may_not_fit", "host_peak_memory_bytes", "what lies in host memory between calls exceeds that of a node")
    if any(call.basis == "assumed" for call in plan.calls if call.num_gpus):
        notes.append(borrowed("time_s", [group.device.name for group in request.cluster.groups]))
    return (*notes, *host_notes((group, request.stack) for group in request.cluster.groups))
