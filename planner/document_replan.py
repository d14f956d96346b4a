"""Ways for a running job to go on as plain data, and the JSON Schema of that document."""

from typing import Any

from planner.document_plan import estimate_document, infeasible_document, notes_document, request_document
from planner.replanning import Continuation, ReplanResult
from planner.schema_types import (
    COUNT,
    FLAG,
    SCHEMA_VERSION,
    TEXT,
    Shape,
    answer_about_plans,
    closed_object,
    infeasible_shape,
    list_of,
    note_shape,
    or_null,
    request_shape,
)


def replan_document(result: ReplanResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "replan",
        "fits": result.fits,
        "request": request_document(result.request),
        "running": estimate_document(result.running),
        "onto": result.onto.name,
        "num_devices": result.onto.num_devices,
        "options": [_option(option) for option in result.options],
        "loads": result.loads,
        "infeasible": infeasible_document(result.infeasible),
        "assumptions": notes_document(result.assumptions),
    }


def _option(option: Continuation) -> dict[str, Any]:
    return {
        "keeps_layout": option.keeps_layout,
        "global_batch_size": option.request.job.global_batch_size,
        "request": request_document(option.request),
        "estimate": estimate_document(option.estimate),
    }


def replan_schema() -> Shape:
    """The schema of what ``replan_document`` returns."""
    estimate: Shape = {"$ref": "#/$defs/estimate"}
    option = closed_object(keeps_layout=FLAG, global_batch_size=COUNT, request=request_shape(), estimate=estimate)
    return answer_about_plans(
        "planner replan",
        "replan",
        fits=FLAG,
        request=request_shape(),
        running=estimate,
        onto=TEXT,
        num_devices=COUNT,
        options=list_of(option),
        loads=TEXT,
        infeasible=or_null(infeasible_shape()),
        assumptions=list_of(note_shape()),
    )
