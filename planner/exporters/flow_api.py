"""The public call: the plan of a workflow as the launch script of a framework that runs it.

The plan is the one that ``planner.plan_dataflow`` finds, where the target expresses it. Where its meshes or layouts are
in the way, the question is asked again with everything on all GPUs and the layouts pinned to what the target has, and
the fastest of those answers is taken, which the script says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.dataflow.flow_request import ASYNC, COLOCATED, DISAGGREGATED, FlowRequest, GraphInput
from planner.dataflow.flow_results import FlowPlan, FlowResult
from planner.dataflow.presets import preset_name
from planner.exporters import verl
from planner.exporters.api import FLOW_FORMATS
from planner.exporters.exported import Exported, Gap
from planner.exporters.verl_checks import Pins, engine_pins, merged, micro_batch_pins, other_pins, placement_gaps
from planner.machines import ClusterInput
from planner.phrases import seconds
from planner.request import ModelInput
from planner.workflows import plan_dataflow
from profiles.errors import SpecError, did_you_mean
from profiles.mixed_cluster import MixedCluster


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
        job: Name of a workflow, one of ``planner.exporters.verl.WORKFLOWS``.
        models: As for ``planner.plan_dataflow``.
        cluster: As for ``planner.plan_dataflow``.
        format: The target, one of ``FLOW_FORMATS``.
        allow_partial: Leave out what the target cannot express, and list it, instead of refusing.
        **settings: As for ``planner.plan_dataflow``.

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
    _check_target(job, format, settings)
    first = plan_dataflow(job, models, cluster, **settings)
    request = first.request
    if request.stack.name not in verl.TARGET.stacks:
        problem = f"plans for {request.stack.name} are not plans for {verl.TARGET.title}"
        raise SpecError("framework", problem, f"framework {' or '.join(verl.TARGET.stacks)}")
    if first.plan is None:
        return FlowExportResult(format=format, flow=first, exported=None)
    gaps = placement_gaps(request, first.plan)
    again = _again((job, models, cluster), settings, request, first.plan) if gaps else None
    if again is None:
        exported = _checked(verl.export_flow(request, first.plan), allow_partial)
        return FlowExportResult(format=format, flow=first, exported=exported)
    said = (_said(first.plan, again.flow, gaps),)
    exported = _checked(verl.export_flow(*again.parts, said=said), allow_partial)
    return FlowExportResult(format=format, flow=again.flow, exported=exported, searched=first.plan, in_the_way=gaps)


def _check_target(job: GraphInput, format: str, settings: Mapping[str, Any]) -> None:
    """Refuse what no plan would help.

    Raises:
        SpecError: If the target is unknown, or runs no such workflow in no such way.
    """
    if not isinstance(format, str) or format not in FLOW_FORMATS:
        raise SpecError(
            "format", f"unknown for workflows: {str(format)[:40]!r}", did_you_mean(str(format), FLOW_FORMATS)
        )
    if not isinstance(job, str) or preset_name(job) not in verl.WORKFLOWS:
        shown = repr(job[:40]) if isinstance(job, str) else "a graph of one's own"
        problem = f"verl cannot express it: exports are written for {', '.join(verl.WORKFLOWS)}; got {shown}"
        raise SpecError("job", problem, "one of these")
    mode = str(settings.get("mode", "")).strip().lower()
    if mode in (ASYNC, DISAGGREGATED):
        problem = f"verl cannot express it as exports are written: one pool of GPUs for all calls; got {mode}"
        raise SpecError("mode", problem, "mode hybrid or colocated")


def _again(question: _Question, settings: Mapping[str, Any], request: FlowRequest, first: FlowPlan) -> _Answer | None:
    """The fastest of the answers that the target expresses; None where there is none.

    The first is on all GPUs with layouts as they come, which nothing that is pinned further beats; the others have the
    layouts that calls have there and had at first.
    """
    alone = _solved(question, settings, engine_pins(request, first))
    if alone is not None and not placement_gaps(*alone.parts):
        return alone
    plans = [first] if alone is None else [alone.plan, first]
    tied = (_evened(question, settings, pins) for pins in other_pins(request, plans))
    fit = [found for found in tied if found is not None and not placement_gaps(*found.parts)]
    return min(fit, key=lambda found: found.plan.steady_s, default=None)


def _evened(question: _Question, settings: Mapping[str, Any], pins: Pins) -> _Answer | None:
    """The answer with those pins, and with micro-batches that divide where they do not."""
    found = _solved(question, settings, pins)
    uneven = {} if found is None else micro_batch_pins(found.plan)
    together = merged(pins, uneven) if uneven else None
    return found if together is None else _solved(question, settings, together)


def _solved(question: _Question, settings: Mapping[str, Any], pins: Pins) -> _Answer | None:
    """The answer in one pool with those pins; None where nothing fits, or the user's pins contradict them."""
    together = merged(settings.get("pins") or {}, pins)
    if together is None:
        return None
    try:
        flow = plan_dataflow(*question, **{**settings, "mode": COLOCATED, "pins": together})
    except SpecError:  # the question itself has an answer, so that it is these pins that no layout has
        return None
    return None if flow.plan is None else _Answer(flow=flow, plan=flow.plan)


def _said(searched: FlowPlan, again: FlowResult, gaps: tuple[Gap, ...]) -> str:
    """Why another plan is written than the one that planner plan shows, and how to get it there."""
    pins = [
        f"--pin {call}.{column}={value}"
        for call, pin in again.request.pins.items()
        for column, value in pin.columns.items()
    ]
    words = (
        f"The plan of {seconds(searched.steady_s)} per iteration cannot be written: {gaps[0].field}: {gaps[0].problem}."
    )
    return " ".join((words, "This is the answer with --mode colocated", *pins))


def _checked(exported: Exported, allow_partial: bool) -> Exported:
    """The export.

    Raises:
        SpecError: For the first setting that the target cannot express, naming the others.
    """
    if exported.unsupported and not allow_partial:
        first, *others = exported.unsupported
        also = f"; nor {', '.join(gap.field for gap in others)}" if others else ""
        problem = f"{exported.target.title} cannot express it: {first.problem}{also}"
        raise SpecError(first.field, problem, "; or ".join(filter(None, (first.hint, "allow_partial"))))
    return exported
