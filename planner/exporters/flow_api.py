"""The public call: the plan of a workflow as the launch script of a framework that runs it.

The plan is the one that ``planner.plan_dataflow`` finds, where the target expresses it. Where its meshes or layouts are
in the way, the question is asked again in the ways the target places calls, with the layouts pinned to what it has, and
the fastest of those answers is taken, which the script says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from planner.dataflow.flow.pins import CallPin
from planner.dataflow.flow.request import ASYNC, DISAGGREGATED, FlowRequest, GraphInput
from planner.dataflow.flow.results import FlowPlan, FlowResult
from planner.dataflow.graphs.presets import preset_name
from planner.exporters.exported import Exported, Gap, Target
from planner.exporters.flow_target import FlowTarget, Pins, merged, pin_options
from planner.exporters.formats import FLOW_FORMATS
from planner.phrases import seconds
from planner.question.machines import ClusterInput
from planner.question.request import ModelInput
from planner.results import RISKY
from planner.workflows import plan_dataflow
from profiles.errors import SpecError, did_you_mean, shown
from profiles.mixed_cluster import MixedCluster
from profiles.stack_names import serves


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowExportResult:
    """The answer.

    Attributes:
        format: Name of the target.
        flow: The question and the plan that is written.
        exported: The script and the rest; None when nothing fits.
        searched: The faster plan that the target cannot express; None where that is the one written.
        in_the_way: Why it cannot.
    """

    format: str
    flow: FlowResult
    exported: Exported | None
    searched: FlowPlan | None = None
    in_the_way: tuple[Gap, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.flow.fits

    @property
    def risky(self) -> bool:
        """Whether there is, and one of its calls runs out of memory in ``RISKY`` of runs or more."""
        return self.flow.plan is not None and self.flow.plan.riskiest.oom_probability >= RISKY


_Question = tuple[GraphInput, Mapping[str, ModelInput] | ModelInput, ClusterInput | MixedCluster]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """An answer with a plan."""

    flow: FlowResult
    plan: FlowPlan

    @property
    def parts(self) -> tuple[FlowRequest, FlowPlan]:
        return self.flow.request, self.plan


def export_dataflow(
    job: GraphInput,
    models: Mapping[str, ModelInput] | ModelInput,
    cluster: ClusterInput | MixedCluster,
    *,
    format: str,
    allow_partial: bool = False,
    **settings: Any,
) -> FlowExportResult:
    """The best plan of a workflow that a target expresses, as its launch script.

    Args:
        job: Name of a workflow, one of those that the target runs.
        models: As for ``planner.plan_dataflow``.
        cluster: As for ``planner.plan_dataflow``.
        format: The target, one of ``FLOW_FORMATS``.
        allow_partial: Leave out what the target cannot express, and list it, instead of refusing.
        **settings: As for ``planner.plan_dataflow``; the framework is one that the target belongs to, its first where
            the usual one of the workflow is none of those.

    Returns:
        The export; ``flow.infeasible`` is set when nothing fits.

    Raises:
        SpecError: If the question is wrong, the plan is for other software, or the target cannot express it.

    Example:
        >>> import planner
        >>> asked = {"batch": 64, "prompt": 256, "generate": 256, "settings": {"reward": "external"}}
        >>> result = planner.export_dataflow("grpo", "llama-3.2-1b", "8xH100", format="verl", **asked)
        >>> "algorithm.adv_estimator=grpo" in result.exported.launch
        True
    """
    target = _check_target(job, format, settings)
    first, settings, said = _planned((job, models, cluster), settings, target)
    request, stacks = first.request, target.target.stacks
    if request.stack.name not in stacks:
        problem = f"plans for {request.stack.name} are not plans for {target.target.title}"
        raise SpecError("framework", problem, f"framework {' or '.join(stacks)}")
    _refuse(target.target, () if allow_partial else target.question_gaps(request))
    if first.plan is None:
        return FlowExportResult(format=format, flow=first, exported=None)
    gaps = target.placement_gaps(request, first.plan)
    again = _again((job, models, cluster), settings, target, request, first.plan) if gaps else None
    if again is None:
        exported = _checked(target.export(request, first.plan, said), allow_partial)
        return FlowExportResult(format=format, flow=first, exported=exported)
    said = (*said, _said(first.plan, again.flow, gaps))
    exported = _checked(target.export(*again.parts, said), allow_partial)
    return FlowExportResult(format=format, flow=again.flow, exported=exported, searched=first.plan, in_the_way=gaps)


def _planned(
    question: _Question, settings: dict[str, Any], target: FlowTarget
) -> tuple[FlowResult, dict[str, Any], tuple[str, ...]]:
    """The answer, the settings it was asked with and what is to be said of them.

    Where no framework is given and the usual one is none of the target's, or what the target says would do is another,
    that is the first of the target's under which it says so no more.
    """
    usual, stacks = plan_dataflow(*question, **settings), target.target.stacks
    here = usual.request.stack.name in stacks

    def another(answer: FlowResult) -> bool:
        return any(gap.hint.startswith("framework ") for gap in target.question_gaps(answer.request))

    if settings.get("framework") is not None or (here and not another(usual)):
        return usual, settings, ()
    others = []
    for stack in stacks:
        if stack == usual.request.stack.name:
            continue
        asked = {**settings, "framework": stack}
        others.append((plan_dataflow(*question, **asked), asked, (f"Planned with --framework {stack}.",)))
        if not another(others[-1][0]):
            return others[-1]
    return (usual, settings, ()) if here else others[0]


def _check_target(job: GraphInput, format: str, settings: Mapping[str, Any]) -> FlowTarget:
    """The target, which no plan would help where it is refused.

    Raises:
        SpecError: If the target is unknown, or runs no such workflow in no such way.
    """
    if not isinstance(format, str):
        raise SpecError("format", f"must be a name; got {shown(format)}", f"one of {', '.join(FLOW_FORMATS)}")
    if format not in FLOW_FORMATS:
        hint = serves(format) or did_you_mean(format, FLOW_FORMATS)
        raise SpecError("format", f"unknown for workflows: {shown(format)}", hint)
    found = flow_target(format)
    name = found.target.name
    if not isinstance(job, str) or preset_name(job) not in found.workflows:
        other = shown(job) if isinstance(job, str) else "a graph of one's own"
        problem = f"{name} cannot express it: exports are written for {', '.join(found.workflows)}; got {other}"
        raise SpecError("job", problem, "one of these")
    mode = str(settings.get("mode", "")).strip().lower()
    if found.one_pool and mode in (ASYNC, DISAGGREGATED):
        problem = f"{name} cannot express it as exports are written: one pool of GPUs for all calls; got {mode}"
        raise SpecError("mode", problem, "mode hybrid or colocated")
    return found


def flow_target(format: str) -> FlowTarget:
    """The target of that name, one of ``FLOW_FORMATS``."""
    found: FlowTarget = import_module(f"planner.exporters.{format.replace('-', '_')}").FLOW
    return found


def _again(
    question: _Question, settings: Mapping[str, Any], target: FlowTarget, request: FlowRequest, first: FlowPlan
) -> _Answer | None:
    """The fastest of the answers that the target expresses; None where there is none.

    The first of each mode has layouts as they come, which nothing that is pinned further beats; the others have the
    layouts that calls have there and had at first.
    """
    best: _Answer | None = None
    for mode, base in target.bases(request, first):
        asked = {**settings, "mode": mode}
        free = _solved(question, asked, base)
        if free is not None:
            best = _better(question, asked, target, free, best)
        if free is None or (_beats(free, best) and not _helped(target, free, target.further)):
            plans = [first] if free is None else [free.plan, first]
            for pins in target.other_pins(request, plans, mode, base):
                best = _better(question, asked, target, _solved(question, asked, pins), best)
    return best


def _better(
    question: _Question,
    settings: Mapping[str, Any],
    target: FlowTarget,
    answer: _Answer | None,
    best: _Answer | None,
) -> _Answer | None:
    """The best so far, or an answer that is faster and expressed; with more pinned of it where that is in the way."""
    if answer is None or not _beats(answer, best):
        return best
    if not target.placement_gaps(*answer.parts):
        return answer
    if not _helped(target, answer, (*target.further, *target.eased)):
        return best
    pinned = {name: dict(pin.columns) | _place(pin) for name, pin in answer.flow.request.pins.items()}
    for pins in target.further_pins(*answer.parts):
        found = _solved(question, {**settings, "pins": pinned}, pins)
        if found is not None and _beats(found, best) and not target.placement_gaps(*found.parts):
            best = found
    return best


def _helped(target: FlowTarget, answer: _Answer, columns: tuple[str, ...]) -> bool:
    """Whether nothing but some columns is in the way."""
    return all(gap.field.rpartition(".")[2] in columns for gap in target.placement_gaps(*answer.parts))


def _beats(answer: _Answer, best: _Answer | None) -> bool:
    return best is None or answer.plan.steady_s < best.plan.steady_s


def _place(pin: CallPin) -> dict[str, Any]:
    """Where and by whom a call runs, as it was pinned."""
    found: dict[str, Any] = {} if pin.engine is None else {"engine": pin.engine}
    if pin.num_gpus is None:
        return found
    last = None if pin.first_gpu is None else pin.first_gpu + pin.num_gpus - 1
    return found | {"gpus": pin.num_gpus if last is None else f"{pin.first_gpu}-{last}"}


def _solved(question: _Question, settings: Mapping[str, Any], pins: Pins) -> _Answer | None:
    """The answer with those pins; None where nothing fits, or the user's pins contradict them."""
    together = merged(settings.get("pins") or {}, pins)
    if together is None:
        return None
    try:
        flow = plan_dataflow(*question, **{**settings, "pins": together})
    except SpecError:  # the question itself has an answer, so that it is these pins that no layout has
        return None
    return None if flow.plan is None else _Answer(flow=flow, plan=flow.plan)


def _said(searched: FlowPlan, again: FlowResult, gaps: tuple[Gap, ...]) -> str:
    """Why another plan is written than the one that planner plan shows, and how to get it there."""
    words = (
        f"The plan of {seconds(searched.steady_s)} per iteration cannot be written: {gaps[0].field}: {gaps[0].problem}."
    )
    asked = again.request
    return " ".join((words, f"This is the answer with --mode {asked.mode}", *pin_options(asked.pins)))


def _checked(exported: Exported, allow_partial: bool) -> Exported:
    """The export.

    Raises:
        SpecError: For the first setting that the target cannot express, naming the others.
    """
    _refuse(exported.target, () if allow_partial else exported.unsupported)
    return exported


def _refuse(target: Target, gaps: tuple[Gap, ...]) -> None:
    """Refuse what a target cannot express, if there is anything.

    Raises:
        SpecError: For the first setting, naming the others.
    """
    if gaps:
        first, *others = gaps
        also = f"; nor {', '.join(gap.field for gap in others)}" if others else ""
        problem = f"{target.title} cannot express it: {first.problem}{also}"
        raise SpecError(first.field, problem, "; or ".join(filter(None, (first.hint, "allow_partial"))))
