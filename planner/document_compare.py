"""Plans beside each other as plain data, and the JSON Schema of that document."""

from typing import Any

from costmodels.estimate import MEMORY_PARTS, TIME_PARTS
from planner.comparing import Change, CompareResult
from planner.document_plan import estimate_document, request_document
from planner.schema_types import (
    AMOUNT,
    FLAG,
    NUMBER,
    SCHEMA_VERSION,
    TEXT,
    Shape,
    answer_about_plans,
    closed_object,
    list_of,
    map_of,
    or_null,
    request_shape,
)


def compare_document(result: CompareResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "compare",
        "compared": [
            {
                "name": item.name,
                "saved_step_time_s": item.saved_step_time_s,
                "saved_peak_memory_bytes": item.saved_peak_memory_bytes,
                "request": request_document(item.request),
                "estimate": estimate_document(item.estimate),
            }
            for item in result.compared
        ],
        "differing": {
            "question": {name: list(values) for name, values in result.question.items()},
            "plan": {name: list(values) for name, values in result.plan.items()},
        },
        "changes": [_change(change) for change in result.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "name": change.name,
        "tokens_per_s_ratio": change.tokens_per_s_ratio,
        "device_seconds_per_token_ratio": change.device_seconds_per_token_ratio,
        "peak_memory_difference_bytes": change.peak_memory_difference_bytes,
        "time_per_token": dict(change.time_per_token),
        "memory_bytes": dict(change.memory_bytes),
        "intervals_overlap": change.intervals_overlap,
    }


def compare_schema() -> Shape:
    """The schema of what ``compare_document`` returns."""
    item = closed_object(
        name=TEXT,
        saved_step_time_s=or_null(AMOUNT),
        saved_peak_memory_bytes=or_null(AMOUNT),
        request=request_shape(),
        estimate={"$ref": "#/$defs/estimate"},
    )
    values = map_of({"type": "array"})
    change = closed_object(
        name=TEXT,
        tokens_per_s_ratio=AMOUNT,
        device_seconds_per_token_ratio=AMOUNT,
        peak_memory_difference_bytes=NUMBER,
        time_per_token=closed_object(**dict.fromkeys(TIME_PARTS, NUMBER)),
        memory_bytes=closed_object(**dict.fromkeys(MEMORY_PARTS, NUMBER)),
        intervals_overlap=FLAG,
    )
    return answer_about_plans(
        "planner compare",
        "compare",
        compared=list_of(item),
        differing=closed_object(question=values, plan=values),
        changes=list_of(change),
    )
