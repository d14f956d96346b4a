"""The public calls: ``plan`` ranks every legal plan, ``estimate`` prices and explains one.

Both are pure functions of their arguments and the catalogue, safe to call from several threads, and
answer the same to the same question.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from costmodels.autocast import fp32_stream
from costmodels.memory.peaks import memory_error_factor
from costmodels.plan import ExecutionPlan, PlanBatch
from planner.answer.batches import batch_notes
from planner.answer.estimates import plan_estimates
from planner.answer.explain import explain, wished_rows
from planner.answer.parts import Taken, idle_notes, part_laid_out, search_on, search_parts
from planner.answer.pricing import blocks_of_one, join, memory_rejections, nearest_to_fit, price_all
from planner.answer.remedies import find_remedies
from planner.answer.risks import oom_risks
from planner.answer.switches import switches
from planner.borrowed import borrowed
from planner.exporters.formats import format_notes
from planner.host_notes import host_notes, offload_notes, run_notes
from planner.phrases import percent, plan_label, seconds
from planner.question.jobs import wide_experts
from planner.question.layouts import needs_layout
from planner.question.machines import ClusterInput
from planner.question.request import (
    JobInput,
    ModelInput,
    Options,
    PinsInput,
    cost_context,
    fixed_by,
    given_options,
    on_used_part,
    part_of,
    resolve_request,
    setting_of,
    space_of,
)
from planner.ranking import MAY_USE_FEWER_DEVICES, Priced, best_rows, objective_values, pareto_rows
from planner.results import FrontierPoint, Infeasible, Note, PlanEstimate, PlanResult, Request
from planner.space.constraints import check_plan
from profiles.errors import SpecError, shown
from profiles.scalars import plain

MAX_TOP = 1000
_BETTER = 0.0005  # share of the objective that a plan which is not ranked for its risk must save to be told
_MATERIAL = 0.05  # share of a layer's time from which extrapolated prices are told
_THINNED = Note(
    code="thinned",
    field="cluster",
    message="too many plans: micro-batches that are powers of two and block recomputation in quarters, at most, were "
    "considered; fix tp, pp, cp or the micro-batch size for the rest",
)
_EXTRAPOLATED = {
    "kernels": "{share} of the time of a layer is kernels larger or smaller than any timed on such hardware",
    "collectives": "{share} of the time of a layer is messages or groups of sizes nobody timed on such links",
}


def plan(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    top: int = 10,
    pins: PinsInput = None,
    options: Options | None = None,
    **settings: Any,
) -> PlanResult:
    """Rank every legal plan for a job on a cluster.

    Args:
        model: Name, Hugging Face config (mapping or path), or ``ModelSpec``.
        cluster: Text such as ``"2x8xH100"``, a mapping, or ``ClusterSpec``.
        job: ``TrainingJob`` or a mapping of its fields; what is missing is filled in and reported.
        top: Most plans to return.
        pins: Plan fields to hold fixed, e.g. ``{"tensor_parallel": 8}`` or ``{"tp": 8}``.
        options: Framework, objective and the rest; or give its fields as keywords.
        **settings: Fields of ``Options``.

    Returns:
        The ranking; ``result.infeasible`` is set, and ``plans`` empty, when nothing fits.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> result = planner.plan("llama-2-13b", "8xA100-80GB", top=3)
        >>> result.best.fits
        True
    """
    top = plain(top)
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= MAX_TOP:
        raise SpecError("top", f"must be a whole number between 1 and {MAX_TOP}; got {shown(top)}", "10, for example")
    request = resolve_request(model, cluster, job, pins, given_options(options, settings))
    return _answer("plan", request, top)


def estimate(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    plan: ExecutionPlan | Mapping[str, Any] | None = None,
    options: Options | None = None,
    **settings: Any,
) -> PlanResult:
    """Price and explain one plan: the one given, or the best with the given fields fixed.

    Args:
        model: As for ``plan``.
        cluster: As for ``plan``.
        job: As for ``plan``.
        plan: An ``ExecutionPlan`` to price as it is, or plan fields to hold fixed.
        options: Framework, objective and the rest; or give its fields as keywords.
        **settings: Fields of ``Options``.

    Returns:
        One plan in ``plans``, even when it does not fit (then ``result.infeasible`` says what would);
        none only when no plan is legal.

    Raises:
        SpecError: If the question itself is wrong, or the framework would refuse the plan.
    """
    request = resolve_request(model, cluster, job, fixed_by(plan), given_options(options, settings, fixed="plan"))
    return price_plan(request, plan) if isinstance(plan, ExecutionPlan) else _answer("estimate", request, 1)


def price_plan(request: Request, plan: ExecutionPlan) -> PlanResult:
    """Exactly one plan of a question that is complete, no search.

    Raises:
        SpecError: If the framework would refuse the plan.
    """
    used = part_laid_out(request, plan)
    return _alone(request, check_plan(plan, setting_of(used)), {})


def _alone(request: Request, batch: PlanBatch, rejected: Mapping[str, int]) -> PlanResult:
    """The only plan there is, priced once."""
    context = cost_context(request, part_of(request.cluster, int(batch.num_devices[0])))
    answers = plan_estimates(batch, context, price=request.price, costs=blocks_of_one(batch, context))
    priced = Priced(
        plans=batch,
        step_time_s=np.asarray([answer.step_time_s for answer in answers]),
        peak_memory_bytes=np.asarray([answer.peak_memory_bytes for answer in answers]),
        host_memory_bytes=np.asarray([answer.host_memory_bytes for answer in answers]),
        fits=np.asarray([answer.fits for answer in answers]),
        likely=np.asarray([answer.lives(request.max_oom_risk) for answer in answers]),
        likely_below=request.max_oom_risk,
    )
    return _result("estimate", request, priced, answers, dict(rejected) | memory_rejections(priced, context))


def _answer(kind: str, request: Request, top: int) -> PlanResult:
    whole = None
    if kind == "estimate" and request.objective not in MAY_USE_FEWER_DEVICES:
        with suppress(SpecError):  # which the search below tells, unless a part of the cluster is meant
            whole = space_of(request)
        if whole is not None and len(whole.plans) == 1:
            return _alone(request, whole.plans, whole.rejected)
    priced, rejected, thinned = search_parts(request, whole)
    rows = best_rows(priced, objective=request.objective, count=top, variants=request.variants)
    if not len(rows):
        if kind == "plan" or not len(priced):
            return _result(kind, request, priced, [], rejected, thinned=thinned)
        rows = np.asarray([nearest_to_fit(priced, request.cluster.node)])
    return _result(kind, request, priced, _estimates(request, priced, rows), rejected, thinned=thinned)


def best_among(request: Request, taken: Taken) -> tuple[ExecutionPlan, bool] | None:
    """The best of the legal plans that are taken, and whether it fits; None where none is taken.

    Besides the plans that are ranked, which split tensor-parallel traffic wherever they may, those that do not.

    Args:
        request: The question.
        taken: (N,) which of N plans are.
    """
    whole = replace(request, pins={"tensor_parallel_overlap": 0, **request.pins})
    found = [search_parts(each, taken=taken)[0] for each in (request, whole)]
    priced = join([each for each in found if len(each)] or found[:1])
    if not len(priced):
        return None
    rows = best_rows(priced, objective=request.objective, count=1)
    fits = len(rows) > 0
    return priced.plans.plan(int(rows[0]) if fits else nearest_to_fit(priced, request.cluster.node)), fits


def _estimates(request: Request, priced: Priced, rows: Any) -> list[PlanEstimate]:
    """The chosen rows in full, each on the part of the cluster it uses."""
    plans = priced.plans.take(rows)
    devices = plans.num_devices
    found: dict[int, PlanEstimate] = {}
    for size in np.unique(devices):
        members = np.flatnonzero(devices == size)
        context = cost_context(request, part_of(request.cluster, int(size)))
        costs = None if priced.costs is None else priced.costs.take(rows[members])
        answers = plan_estimates(plans.take(members), context, price=request.price, costs=costs)
        found |= dict(zip(members.tolist(), answers, strict=True))
    return [_ranked(found[index], index + 1) for index in range(len(plans))]


def _ranked(answer: PlanEstimate, rank: int) -> PlanEstimate:
    return replace(answer, rank=rank)


def what_stands_in_the_way(request: Request) -> Infeasible:
    """Of a request to which no uniform plan fits: the nearest plan, and what would make one fit."""
    priced, rejected, _ = search_on(request, [request.cluster])
    return _infeasible(request, priced, [], rejected)


def _infeasible(request: Request, priced: Priced, answers: list[PlanEstimate], rejected: dict[str, int]) -> Infeasible:
    nearest = answers[0] if answers else None
    if nearest is None and len(priced):
        (nearest,) = _estimates(request, priced, np.asarray([nearest_to_fit(priced, request.cluster.node)]))
    return Infeasible(
        reasons=rejected or memory_rejections(priced, cost_context(request)),
        nearest=nearest,
        remedies=find_remedies(
            request, needed_bytes=nearest.peak_memory_bytes if nearest else inf, legal=nearest is not None
        ),
    )


def _result(
    kind: str,
    request: Request,
    priced: Priced,
    answers: list[PlanEstimate],
    rejected: dict[str, int],
    *,
    thinned: bool = False,
) -> PlanResult:
    fitting = int(priced.fits.sum())
    infeasible = None if fitting else _infeasible(request, priced, answers, rejected)
    told = _with_wishes(request, priced, answers[0].plan) if answers and fitting and len(priced) > 1 else priced
    front = told.take(pareto_rows(told) if fitting else np.zeros(0, dtype=np.int64))
    risks = np.asarray([answer.oom_probability for answer in answers[: len(front)]])
    if len(front) and len(priced) > 1:  # a plan alone is its own front, and its answer knows the risk
        risks = oom_risks(front.plans, cost_context(request))
    return PlanResult(
        kind=kind,
        request=request,
        plans=tuple(answers),
        riskier=_riskier(request, priced, answers),
        pareto=tuple(
            FrontierPoint(
                plan=(plan := front.plans.plan(row)),
                num_devices=plan.num_devices,
                step_time_s=float(front.step_time_s[row]),
                peak_memory_bytes=float(front.peak_memory_bytes[row]),
                oom_probability=float(risks[row]),
            )
            for row in range(len(front))
        ),
        considered=len(priced),
        fitting=fitting,
        likely=_as_likely_as_asked(request, priced),
        rejected=rejected,
        explanation=explain(answers[0], told, objective=request.objective) if answers else None,
        switches=switches(request, answers[0], told) if answers else (),
        infeasible=infeasible,
        warnings=(
            *warnings_about(request, answers[0] if answers else None),
            *idle_notes(request, priced, answers),
            *batch_notes(request, answers),
            *_risk_notes(request, priced),
            *(format_notes(answers[0].plan, on_used_part(request, answers[0].num_devices)) if answers else ()),
            *([_THINNED] if thinned else []),
        ),
    )


def _riskier(request: Request, priced: Priced, answers: list[PlanEstimate]) -> PlanEstimate | None:
    """The best of the plans that fit and are not ranked, where it is better than the first; it follows the answers."""
    if not answers or len(priced) == 1:
        return None
    left_out = priced.fits & ~priced.ranked
    if not left_out.any():
        return None
    rows = best_rows(priced, objective=request.objective, count=1, among=left_out)
    values = objective_values(priced, request.objective)
    if values[rows[0]] >= values[priced.ranked].min() * (1 - _BETTER):
        return None
    return _ranked(_estimates(request, priced, rows)[0], len(answers) + 1)


def _as_likely_as_asked(request: Request, priced: Priced) -> int:
    """How many plans run out of memory no more often than was asked for."""
    if priced.likely is None:
        return int(priced.fits.sum())
    return int(priced.likely.sum()) if priced.likely_below <= request.max_oom_risk else 0


def _risk_notes(request: Request, priced: Priced) -> tuple[Note, ...]:
    """Says so where plans are ranked that are less likely to live than was asked for; a single one tells its own."""
    if len(priced) == 1 or priced.likely is None or not priced.fits.any():
        return ()
    most, all_that_fit = percent(request.max_oom_risk), bool((priced.ranked & ~priced.likely).any())
    if _as_likely_as_asked(request, priced):
        if not all_that_fit:
            return ()
        (row,) = best_rows(priced, objective="step_time", count=1, among=priced.likely)
        message = f"the fastest plan that runs out of memory in less than {most} of runs takes "
        message += f"{seconds(float(priced.step_time_s[row]))} ({plan_label(priced.plans.plan(row))})"
    else:
        row = best_rows(priced, objective="memory_headroom", count=1)
        least = percent(float(oom_risks(priced.plans.take(row), cost_context(request))[0]))
        message = f"no plan runs out of memory in less than {most} of runs, that with the lowest peak does in {least}"
    ranked = "all that fit" if all_that_fit else f"those that do in less than {percent(priced.likely_below)}"
    return (Note(code="at_risk", field="max_oom_risk", message=f"{message}, so {ranked} are ranked"),)


def _with_wishes(request: Request, priced: Priced, plan: ExecutionPlan) -> Priced:
    """What fits, and what does not where an explanation of a plan tells of it, with its time and memory."""
    kept = priced.fits.copy()  # those at risk among them: they belong to the front
    kept[np.concatenate(list(wished_rows(plan, priced).values()))] = True
    told = priced.take(np.flatnonzero(kept))
    rows = np.flatnonzero(np.isinf(told.step_time_s))
    if not len(rows):
        return told
    context = cost_context(request, part_of(request.cluster, plan.num_devices))
    asked = price_all(told.plans.take(rows), context)
    told.step_time_s[rows], told.peak_memory_bytes[rows] = asked.step_time_s, asked.peak_memory_bytes
    return told


def warnings_about(request: Request, best: PlanEstimate | None) -> tuple[Note, ...]:
    """What to know before trusting the numbers of the first plan."""
    notes: list[Note] = []

    def warn(code: str, name: str, message: str) -> None:
        notes.append(Note(code=code, field=name, message=message))

    if wide := wide_experts(request.job.task, request.stack, request.model):
        warn("wide_experts", "job.task", wide)
    longest, length = request.model.max_sequence_length, request.job.sequence_length
    if longest and length > longest:
        warn("beyond_model_length", "job.sequence_length", f"{request.model.name} was built for {longest} tokens")
    if best is None:
        return tuple(notes)
    for kind, share in best.extrapolated_share.items():
        if share >= _MATERIAL:
            warn("extrapolated", "step_time_s", _EXTRAPOLATED[kind].format(share=percent(share)))
    if best.basis == "assumed":
        notes.append(borrowed("step_time_s", [request.cluster.device.name]))
    if needs_layout(best.plan, request):
        problem = f"{request.model.num_layers} layers do not divide into pp x vpp chunks"
        warn("needs_layout", "plan.pipeline_parallel", f"{problem}: spread them by --pipeline-model-parallel-layout")
    if request.job.task == "qlora" and best.plan.zero_stage < 3 and fp32_stream(request.job, request.stack):
        rest = "plans that shard weights (ZeRO-3) keep it in 16 bits, and their kernels take less time"
        warn("fp32_unquantised", "job.fp32_unquantised", f"what QLoRA leaves unquantised is fp32 here; {rest}")
    notes += host_notes([(part_of(request.cluster, best.num_devices), request.stack)])
    notes += offload_notes(best.plan)
    notes += run_notes(best.run)
    usable = best.usable_memory_bytes
    # As risks of running out are told: without what publishers nobody has seen add to intervals.
    usual = memory_error_factor(request.stack, unseen_publisher=False)
    errs = f"on setups seen before memory errs by up to {percent(usual - 1)}, which is more than is"
    if best.fits and best.peak_memory_bytes * usual > usable:
        warn("may_not_fit", "peak_memory_bytes", f"{errs} free")
    if best.peak_memory_bytes / usual <= usable < best.peak_memory_bytes:
        warn("might_fit", "peak_memory_bytes", f"{errs} missing")
    return tuple(notes)
