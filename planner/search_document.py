"""A search's answer as plain data, and the JSON Schema of that document."""

import math
from dataclasses import asdict
from typing import Any

from costmodels.estimate import BASES
from planner.results import Note
from planner.rules.pipeline import SCHEDULE_NAMES
from planner.schema import request_document
from planner.schema_types import SCHEMA_VERSION
from planner.search.result import EngineRun, FoundPlan, SearchResult, StageChoice

CONVENTIONS = {
    "bound": "no plan of the spaces searched has a shorter step; the cost model's own error is not part of it",
    "gap": "share of the step time that a better plan of these spaces could still save",
    "gain": "share of the step time that the best plan saves over the best that planner plan knows",
    "evaluations": "plans and stages of plans priced",
}

Shape = dict[str, Any]


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
        "best": None if result.best is None else _plan(result.best),
        "uniform_step_time_s": _known(result.uniform_step_time_s),
        "gain": result.gain,
        "bound_s": result.bound_s,
        "gap": result.gap,
        "optimal": result.optimal,
        "evaluations": result.evaluations,
        "elapsed_s": result.elapsed_s,
        "engines": [_engine(run) for run in result.engines],
        "improvements": [asdict(item) for item in result.improvements],
        "assumptions": [_note(note) for request in result.requests for note in request.assumptions],
        "warnings": [_note(note) for note in result.warnings],
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
        "time_parts_s": dict(plan.time_parts_s),
        "peak_memory_bytes": plan.peak_memory_bytes,
        "fits": plan.fits,
        "basis": plan.basis,
        "stages": [asdict(stage) for stage in plan.stages],
    }


def _engine(run: EngineRun) -> dict[str, Any]:
    return {
        "engine": run.engine,
        "status": run.status,
        "space": run.space,
        "evaluations": run.evaluations,
        "elapsed_s": run.elapsed_s,
        "step_time_s": _known(run.step_time_s),
        "bound_s": None if run.bound_s is None else _known(run.bound_s),
        "statistics": dict(run.statistics),
    }


def _known(number: float) -> float | None:
    """The number; None for infinity, which JSON does not have."""
    return number if math.isfinite(number) else None


def _note(note: Note) -> dict[str, str]:
    return {"code": note.code, "field": note.field, "message": note.message}


def search_schema() -> Shape:
    """The schema of what ``search_document`` returns."""
    text: Shape = {"type": "string"}
    flag: Shape = {"type": "boolean"}
    amount: Shape = {"type": "number", "minimum": 0}
    count: Shape = {"type": "integer", "minimum": 0}
    free: Shape = {"type": "object"}
    maybe: Shape = {"anyOf": [amount, {"type": "null"}]}
    note = _object(code=text, field=text, message=text)
    of_type: dict[Any, Shape] = {int: count, float: amount, str: text, bool: flag}
    stage = _object(**{name: of_type[item.type] for name, item in StageChoice.__dataclass_fields__.items()})
    plan = _object(
        schedule={"enum": list(SCHEDULE_NAMES)},
        **dict.fromkeys(("virtual_stages", "num_microbatches", "num_devices", "idle_devices"), count),
        uniform=flag,
        **dict.fromkeys(("step_time_s", "step_time_low_s", "step_time_high_s"), amount),
        time_parts_s={"type": "object", "additionalProperties": amount},
        peak_memory_bytes=amount,
        fits=flag,
        basis={"enum": list(BASES)},
        stages={"type": "array", "items": stage},
    )
    engine = _object(
        engine=text, status=text, space=text, evaluations=count, elapsed_s=amount, step_time_s=maybe, bound_s=maybe,
        statistics=free,
    )  # fmt: skip
    answer = _object(
        schema_version={"const": SCHEMA_VERSION},
        kind={"const": "search"},
        fits=flag,
        cluster=text,
        requests={"type": "array", "items": free},
        strategy=text,
        seed=count,
        best={"anyOf": [plan, {"type": "null"}]},
        uniform_step_time_s=maybe,
        gain={"type": "number"},
        bound_s=maybe,
        gap=maybe,
        optimal=flag,
        evaluations=count,
        elapsed_s=amount,
        engines={"type": "array", "items": engine},
        improvements={"type": "array", "items": _object(engine=text, elapsed_s=amount, step_time_s=amount)},
        assumptions={"type": "array", "items": note},
        warnings={"type": "array", "items": note},
        conventions=_object(**dict.fromkeys(CONVENTIONS, text)),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "planner search answer",
        **answer,
    }


def _object(**properties: Shape) -> Shape:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
