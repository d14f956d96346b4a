"""A search's answer as plain data, and the JSON Schema of that document."""

import math
from dataclasses import asdict
from typing import Any

from costmodels.estimate import BASES
from planner.document_plan import infeasible_document, notes_document, request_document
from planner.rules.pipeline import SCHEDULE_NAMES
from planner.schema_types import (
    AMOUNT,
    COUNT,
    FLAG,
    FREE,
    NUMBER,
    SCHEMA_VERSION,
    TEXT,
    Shape,
    closed_object,
    estimate_shape,
    infeasible_shape,
    list_of,
    map_of,
    note_shape,
    or_null,
    plan_shape,
    titled,
)
from planner.search.result import EngineRun, FoundPlan, SearchResult, StageChoice, Verdict

CONVENTIONS = {
    "bound": "no plan of the spaces searched has a shorter step; the cost model's own error is not part of it",
    "gap": "share of the step time that a better plan of these spaces could still save",
    "best_runnable": "the best plan that the job's framework can run, with a bound and a gap of its own",
    "gain": "share of the step time that the best plan saves over the best that planner plan knows",
    "evaluations": "plans and stages of plans priced",
    "left_out": "plans that the bound says nothing about; of an engine: plans that are not in the space it searched",
}


def search_document(result: SearchResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "search",
        "fits": result.fits,
        "cluster": result.cluster,
        "requests": [request_document(request) for request in result.requests],
        "strategy": result.strategy,
        "seed": result.seed,
        "runnable": result.runnable,
        "best": None if result.best is None else _plan(result.best),
        "best_runnable": None if result.best_runnable is None else _plan(result.best_runnable),
        "runnable_bound_s": result.runnable_bound_s,
        "runnable_gap": result.runnable_gap,
        "uniform_step_time_s": _known(result.uniform_step_time_s),
        "gain": result.gain,
        "bound_s": result.bound_s,
        "left_out": list(result.left_out),
        "gap": result.gap,
        "optimal": result.optimal,
        "evaluations": result.evaluations,
        "elapsed_s": result.elapsed_s,
        "engines": [_engine(run) for run in result.engines],
        "improvements": [asdict(item) for item in result.improvements],
        "assumptions": notes_document(note for request in result.requests for note in request.assumptions),
        "infeasible": [infeasible_document(item) for item in result.infeasible],
        "warnings": notes_document(result.warnings),
        "conventions": dict(CONVENTIONS),
    }


def _plan(plan: FoundPlan) -> dict[str, Any]:
    return {
        "schedule": plan.schedule,
        "virtual_stages": plan.virtual_stages,
        "num_microbatches": plan.num_microbatches,
        "num_devices": plan.num_devices,
        "idle_devices": plan.idle_devices,
        "uniform": plan.uniform,
        "step_time_s": plan.step_time_s,
        "step_time_low_s": plan.step_time_low_s,
        "step_time_high_s": plan.step_time_high_s,
        "played_step_time_s": plan.played_step_time_s,
        "time_parts_s": dict(plan.time_parts_s),
        "peak_memory_bytes": plan.peak_memory_bytes,
        "fits": plan.fits,
        "basis": plan.basis,
        "stages": [asdict(stage) | {"recomputed_modules": list(stage.recomputed_modules)} for stage in plan.stages],
        "frameworks": [_verdict(verdict) for verdict in plan.frameworks],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    broken = [{"rule": rule, "text": text} for rule, text in verdict.broken.items()]
    return {"framework": verdict.framework, "runs": verdict.runs, "broken": broken}


def _engine(run: EngineRun) -> dict[str, Any]:
    return {
        "engine": run.engine,
        "status": run.status,
        "space": run.space,
        "left_out": list(run.left_out),
        "evaluations": run.evaluations,
        "elapsed_s": run.elapsed_s,
        "step_time_s": _known(run.step_time_s),
        "bound_s": None if run.bound_s is None else _known(run.bound_s),
        "statistics": dict(run.statistics),
    }


def _known(number: float) -> float | None:
    """The number; None for infinity, which JSON does not have."""
    return number if math.isfinite(number) else None


def search_schema() -> Shape:
    """The schema of what ``search_document`` returns."""
    maybe = or_null(AMOUNT)
    of_type: dict[Any, Shape] = {int: COUNT, float: AMOUNT, str: TEXT, bool: FLAG, tuple[str, ...]: list_of(TEXT)}
    stage = closed_object(**{name: of_type[item.type] for name, item in StageChoice.__dataclass_fields__.items()})
    verdict = closed_object(framework=TEXT, runs=FLAG, broken=list_of(closed_object(rule=TEXT, text=TEXT)))
    plan = closed_object(
        schedule={"enum": list(SCHEDULE_NAMES)},
        **dict.fromkeys(("virtual_stages", "num_microbatches", "num_devices", "idle_devices"), COUNT),
        uniform=FLAG,
        **dict.fromkeys(("step_time_s", "step_time_low_s", "step_time_high_s"), AMOUNT),
        played_step_time_s=maybe,
        time_parts_s=map_of(AMOUNT),
        peak_memory_bytes=AMOUNT,
        fits=FLAG,
        basis={"enum": list(BASES)},
        stages=list_of(stage),
        frameworks=list_of(verdict),
    )
    engine = closed_object(
        engine=TEXT, status=TEXT, space=TEXT, left_out=list_of(TEXT), evaluations=COUNT, elapsed_s=AMOUNT,
        step_time_s=maybe, bound_s=maybe, statistics=FREE,
    )  # fmt: skip
    return titled(
        "planner search answer",
        closed_object(
            schema_version={"const": SCHEMA_VERSION},
            kind={"const": "search"},
            fits=FLAG,
            cluster=TEXT,
            requests=list_of(FREE),
            strategy=TEXT,
            seed=COUNT,
            runnable=FLAG,
            best=or_null(plan),
            best_runnable=or_null(plan),
            runnable_bound_s=maybe,
            runnable_gap=maybe,
            uniform_step_time_s=maybe,
            gain=NUMBER,
            bound_s=maybe,
            left_out=list_of(TEXT),
            gap=maybe,
            optimal=FLAG,
            evaluations=COUNT,
            elapsed_s=AMOUNT,
            engines=list_of(engine),
            improvements=list_of(closed_object(engine=TEXT, elapsed_s=AMOUNT, step_time_s=AMOUNT)),
            assumptions=list_of(note_shape()),
            infeasible=list_of(infeasible_shape()),
            warnings=list_of(note_shape()),
            conventions=closed_object(**dict.fromkeys(CONVENTIONS, TEXT)),
        ),
        plan=plan_shape(),
        estimate=estimate_shape(),
    )
