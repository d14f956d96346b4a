"""The public calls: a plan as the files and the launch line of a training framework.

``export`` takes the plan that ``planner.estimate`` would explain for the same question, or the best that the target
expresses where that is another, which is told; ``export_saved`` one of an answer that was saved. Neither drops what the
target cannot express: it is an error unless the caller allows it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from costmodels.evaluate import peaks
from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch
from planner.answer.estimates import plan_estimates
from planner.answer.risks import oom_risks
from planner.api import best_among, estimate
from planner.exporters.exported import (
    OTHER_FRAMEWORK,
    Exported,
    ExportResult,
    Target,
    Unwritten,
    expressed,
    gaps,
    warned,
)
from planner.exporters.formats import FLOW_FORMATS, FORMATS, says_all, target_of
from planner.exporters.saved import DOCUMENT, saved_plan, saved_workflow
from planner.phrases import gib
from planner.question.machines import ClusterInput
from planner.question.request import (
    JobInput,
    ModelInput,
    Options,
    cost_context,
    fixed_by,
    given_options,
    on_used_part,
    resolve_request,
)
from planner.results import Note, PlanEstimate, PlanResult, Request
from profiles.errors import SpecError, did_you_mean, shown
from profiles.stack_names import serves, stack_name, tool_name

_UNFIT, _REMEDY = "Warning: the plan is predicted not to fit into memory:", "planner estimate says what would."
_ANY_SHAPE = ("accelerate", "deepspeed")  # run a model's own code in transformers
_TRAINER = "accelerate or deepspeed, whose settings it takes; docs/fine-tuning.md has its own"
_FORMATS_OF = {
    **dict.fromkeys(("fsdp", "fsdp2"), "torchtitan or accelerate"),
    **dict.fromkeys(("huggingface", "hf-trainer", "ms-swift"), _TRAINER),
    "llama-factory": "llama-factory",
    "nemo": "megatron-bridge",
    "torchtune": "torchtitan or accelerate; docs/fine-tuning.md has torchtune's own settings",
}


def export(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    format: str,
    plan: ExecutionPlan | Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    options: Options | None = None,
    **settings: Any,
) -> ExportResult:
    """The best plan that a target expresses, as files and a launch line.

    That is the one that ``planner.estimate`` explains under a framework of the target, unless the target cannot express
    it, and can another that fits: ``searched`` holds it then.

    Args:
        model: As for ``planner.plan``.
        cluster: As for ``planner.plan``.
        job: As for ``planner.plan``.
        format: The target, one of ``FORMATS``.
        plan: As for ``planner.estimate``.
        allow_partial: Leave out what the target cannot express, and list it, instead of refusing.
        options: As for ``planner.plan``; the framework is one that the target belongs to, its first unless named.
        **settings: Fields of ``Options``.

    Returns:
        The export; ``infeasible`` is set when the plan does not fit.

    Raises:
        SpecError: If the question is wrong, the plan is for other software, or the target cannot express it.

    Example:
        >>> import planner
        >>> result = planner.export("llama-2-13b", "8xA100-80GB", format="megatron-lm", plan={"tp": 2})
        >>> "--tensor-model-parallel-size 2" in result.exported.launch
        True
    """
    _check_format(format)
    chosen = given_options(options, settings, fixed="plan")
    result = _estimate(model, cluster, job, plan, chosen, format=format)
    best = result.best
    if best is None:
        return ExportResult(format=format, request=result.request, fits=False, infeasible=result.infeasible)
    whole = isinstance(plan, ExecutionPlan)
    taken, fits = (best.plan, best.fits) if whole else _expressed(best, result.request, format=format)
    request = on_used_part(result.request, taken.num_devices)
    exported = _exported(taken, request, format=format, allow_partial=allow_partial)
    searched = _unwritten(best, taken, result.request, format=format)
    exported = exported if searched is None else warned(exported, searched.words)
    return ExportResult(
        format=format,
        request=request,
        plan=taken,
        exported=exported if fits else warned(exported, _too_large(taken, request)),
        searched=searched,
        fits=fits,
        oom_probability=float(oom_risks(PlanBatch.from_plans([taken]), cost_context(request))[0]),
        infeasible=result.infeasible,
    )


def export_saved(
    document: Mapping[str, Any], *, format: str, rank: int = 1, allow_partial: bool = False
) -> ExportResult:
    """A plan of an answer that was saved, as files and a launch line; nothing is priced anew.

    Args:
        document: What ``planner plan --json`` or ``planner estimate --json`` printed.
        format: As for ``export``.
        rank: Which plan of it, from 1.
        allow_partial: As for ``export``.

    Raises:
        SpecError: If the document is none, or as for ``export``.
    """
    workflow = saved_workflow(document)
    if workflow:
        problem = "is the plan of a workflow; those of single jobs are exported from saved answers"
        raise SpecError(DOCUMENT, problem, f"ask its question again with export --job {workflow}")
    _check_format(format)
    saved = saved_plan(document, rank, priced=False)
    exported = _exported(saved.plan, saved.request, format=format, allow_partial=allow_partial)
    if not saved.fits:
        exported = warned(exported, _beyond(saved.peak_memory_bytes or 0.0, saved.request))
    return ExportResult(
        format=format,
        request=saved.request,
        plan=saved.plan,
        exported=exported,
        fits=saved.fits,
        oom_probability=saved.oom_probability,
    )


def _too_large(plan: ExecutionPlan, request: Request) -> str:
    """By how much a plan does not fit, as a script says it."""
    needs = peaks(PlanBatch.from_plans([plan]), cost_context(request))
    needed, node = float(needs.host_memory_bytes[0]), request.cluster.node
    if needed <= node.host_memory_bytes:
        return _beyond(float(needs.peak_memory_bytes[0]), request)
    return f"{_UNFIT} a host would need {gib(needed)} and has {gib(node.host_memory_bytes)}. {_REMEDY}"


def _beyond(peak_bytes: float, request: Request) -> str:
    usable = request.cluster.device.usable_memory_bytes
    if peak_bytes <= usable:  # as far as a saved answer says
        return f"{_UNFIT.removesuffix(':')}. {_REMEDY}"
    beyond = f"{gib(peak_bytes - usable)} more than are usable"
    return f"{_UNFIT} the fullest GPU would need {gib(peak_bytes)}, {beyond}. {_REMEDY}"


def _expressed(best: PlanEstimate, request: Request, *, format: str) -> tuple[ExecutionPlan, bool]:
    """The best plan that a target expresses, and whether it fits; the best of all where only such plans fit."""
    module = target_of(format)
    _check_stack(request, module.TARGET)
    says = partial(_says, module)
    if says(PlanBatch.from_plans([best.plan]), request)[0]:
        return best.plan, best.fits
    found = best_among(request, says)
    return (best.plan, best.fits) if found is None or best.fits > found[1] else found


def _estimate(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput,
    plan: ExecutionPlan | Mapping[str, Any] | None,
    options: Options,
    *,
    format: str,
) -> PlanResult:
    """The answer of ``planner.estimate``, with the target's first framework where the usual one is none of its."""
    stacks = target_of(format).TARGET.stacks
    if options.framework is None:
        usual = resolve_request(model, cluster, job, fixed_by(plan), options).stack.name
        if usual not in stacks:
            result = estimate(model, cluster, job, plan=plan, options=replace(options, framework=stacks[0]))
            request = result.request
            words = f"{request.stack.name}, for the format (not given; planner estimate takes {usual})"
            note = Note(code=OTHER_FRAMEWORK, field="framework", message=words)
            return replace(result, request=replace(request, assumptions=(*request.assumptions, note)))
    return estimate(model, cluster, job, plan=plan, options=options)


def _unwritten(best: PlanEstimate, taken: ExecutionPlan, request: Request, *, format: str) -> Unwritten | None:
    """The best plan beside the one that is written instead; None where it is the one."""
    if taken == best.plan:
        return None
    used = on_used_part(request, taken.num_devices)
    written = plan_estimates(PlanBatch.from_plans([taken]), cost_context(used))[0]
    return Unwritten(
        plan=best.plan,
        step_time_s=best.step_time_s,
        written=taken,
        written_step_time_s=written.step_time_s,
        in_the_way=gaps(*target_of(format).plan_checks(PlanBatch.from_plans([best.plan]), request)),
    )


def _says(module: Any, plans: PlanBatch, request: Request) -> BoolArray:
    """(N,) which plans a target expresses."""
    return expressed(plans, module.plan_checks(plans, request))


def _check_format(format: str) -> None:
    if not isinstance(format, str):
        raise SpecError("format", f"must be a name; got {shown(format)}", f"one of {', '.join(FORMATS)}")
    if format in FLOW_FORMATS:
        raise SpecError("format", f"{format} runs workflows, and this is a single model", "add --job grpo")
    if format not in FORMATS:
        raise SpecError("format", f"unknown name {shown(format)}", _instead(format))


def _instead(format: str) -> str:
    """The formats for a tool that has none of its own, or those of names like it."""
    name = tool_name(format)
    known = _FORMATS_OF.get(name) or _FORMATS_OF.get(stack_name(name))
    return known or serves(name) or did_you_mean(format, FORMATS)


def _check_stack(request: Request, target: Target) -> None:
    """Refuse a plan made for other software than the target.

    Raises:
        SpecError: Naming the stacks to plan with.
    """
    if request.stack.name not in target.stacks:
        problem = f"plans for {request.stack.name} are not plans for {target.title}"
        raise SpecError("framework", problem, f"framework {' or '.join(target.stacks)}")


def _exported(plan: ExecutionPlan, request: Request, *, format: str, allow_partial: bool) -> Exported:
    """The export.

    Raises:
        SpecError: If the plan was made for other software, or for the first setting that the target cannot express,
            naming the others.
    """
    target = target_of(format)
    _check_stack(request, target.TARGET)
    exported: Exported = target.export(plan, request)
    samples = request.job.sample_tokens
    if samples is not None:
        packs = f"packs with samples of {samples} tokens, and attention that stays inside each, which go with the data"
        exported = replace(exported, left_to_you=(*exported.left_to_you, packs))
    if exported.unsupported and not allow_partial:
        first, *others = exported.unsupported
        also = f"; nor {', '.join(gap.field for gap in others)}" if others else ""
        problem = f"{exported.target.title} cannot express it: {first.problem}{also}"
        hint = first.hint or _elsewhere(first.field, plan, request, format=format)
        raise SpecError(first.field, problem, "; or ".join(filter(None, (hint, "allow_partial"))))
    return exported


def _elsewhere(field: str, plan: ExecutionPlan, request: Request, *, format: str) -> str:
    """Formats that say all of a plan that another cannot say; of a model's shape, that none does, and what to do."""
    able = [other for other in FORMATS if other != format and says_all(other, plan, request)]
    if able:
        return f"format {' or '.join(able)}"
    if not field.startswith("model."):
        return ""
    return f"no other format says all of this plan; format {' or '.join(_ANY_SHAPE)} plans the model anew"
