"""The export of a workflow as plain data, and the JSON Schema of that document."""

from typing import Any

from planner.document_flow import flow_document, flow_document_schema
from planner.exporters.document import unsupported_document, unsupported_shape
from planner.exporters.flow_api import FlowExportResult
from planner.exporters.formats import FLOW_FORMATS
from planner.schema_types import AMOUNT, TEXT, Shape, closed_object, list_of, map_of, or_null

_KIND = "workflow_export"


def flow_export_document(result: FlowExportResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON: the document of the plan with what was written besides."""
    exported, searched = result.exported, result.searched
    in_the_way = None if searched is None else unsupported_document(result.in_the_way)
    return {
        **flow_document(result.flow),
        "kind": _KIND,
        "format": result.format,
        "target": None if exported is None else exported.target.title,
        "files": {} if exported is None else dict(sorted(exported.files.items())),
        "environment": {} if exported is None else dict(exported.environment),
        "launch": None if exported is None else exported.launch,
        "unsupported": [] if exported is None else unsupported_document(exported.unsupported),
        "left_to_you": [] if exported is None else list(exported.left_to_you),
        "searched": None if searched is None else {"steady_s": searched.steady_s, "in_the_way": in_the_way},
    }


def flow_export_schema() -> Shape:
    """The schema of what ``flow_export_document`` returns."""
    whole = flow_document_schema()
    answer = closed_object(
        **whole["properties"]
        | {
            "kind": {"const": _KIND},
            "format": {"enum": list(FLOW_FORMATS)},
            "target": or_null(TEXT),
            "files": map_of(TEXT),
            "environment": map_of(TEXT),
            "launch": or_null(TEXT),
            "unsupported": unsupported_shape(),
            "left_to_you": list_of(TEXT),
            "searched": or_null(closed_object(steady_s=AMOUNT, in_the_way=unsupported_shape())),
        }
    )
    return {**whole, "title": "planner export of a workflow", **answer}
