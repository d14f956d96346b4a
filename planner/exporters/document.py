"""An export as plain data, and the JSON Schema of that document."""

from collections.abc import Iterable
from typing import Any

from planner.document_plan import infeasible_document, notes_document, plan_document, request_document
from planner.exporters.exported import ExportResult, Gap, Unwritten
from planner.exporters.formats import FORMATS
from planner.schema_types import (
    AMOUNT,
    FLAG,
    SCHEMA_VERSION,
    SHARE,
    TEXT,
    Shape,
    answer_about_plans,
    closed_object,
    infeasible_shape,
    list_of,
    map_of,
    note_shape,
    or_null,
    request_shape,
)


def export_document(result: ExportResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    exported = result.exported
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "export",
        "format": result.format,
        "target": None if exported is None else exported.target.title,
        "fits": result.fits,
        "oom_probability": result.oom_probability,
        "request": request_document(result.request),
        "plan": None if result.plan is None else plan_document(result.plan),
        "files": {} if exported is None else dict(sorted(exported.files.items())),
        "environment": {} if exported is None else dict(exported.environment),
        "launch": None if exported is None else exported.launch,
        "unsupported": [] if exported is None else unsupported_document(exported.unsupported),
        "left_to_you": [] if exported is None else list(exported.left_to_you),
        "infeasible": infeasible_document(result.infeasible),
        "searched": None if result.searched is None else _searched_document(result.searched),
        "assumptions": notes_document(result.request.assumptions),
    }


def _searched_document(searched: Unwritten) -> dict[str, Any]:
    return {
        "plan": plan_document(searched.plan),
        "step_time_s": searched.step_time_s,
        "written_step_time_s": searched.written_step_time_s,
        "in_the_way": unsupported_document(searched.in_the_way),
    }


def unsupported_document(gaps: Iterable[Gap]) -> list[dict[str, Any]]:
    """What a target cannot express."""
    return [{"field": gap.field, "problem": gap.problem, "hint": gap.hint} for gap in gaps]


def unsupported_shape() -> Shape:
    """The schema of what ``unsupported_document`` returns."""
    return list_of(closed_object(field=TEXT, problem=TEXT, hint=TEXT))


def export_schema() -> Shape:
    """The schema of what ``export_document`` returns."""
    return answer_about_plans(
        "planner export",
        "export",
        format={"enum": list(FORMATS)},
        target=or_null(TEXT),
        fits=FLAG,
        oom_probability=or_null(SHARE),
        request=request_shape(),
        plan=or_null({"$ref": "#/$defs/plan"}),
        files=map_of(TEXT),
        environment=map_of(TEXT),
        launch=or_null(TEXT),
        unsupported=unsupported_shape(),
        left_to_you=list_of(TEXT),
        infeasible=or_null(infeasible_shape()),
        searched=or_null(
            closed_object(
                plan={"$ref": "#/$defs/plan"},
                step_time_s=AMOUNT,
                written_step_time_s=AMOUNT,
                in_the_way=unsupported_shape(),
            )
        ),
        assumptions=list_of(note_shape()),
    )
