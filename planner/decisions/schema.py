"""JSON Schema (2020-12) of the documents of decisions under uncertainty."""

from planner.schema_types import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    SCHEMA_VERSION,
    Shape,
    closed_object,
    estimate_shape,
    infeasible_shape,
    list_of,
    note_shape,
    or_null,
    plan_shape,
    request_shape,
)

_SHARE: Shape = {"type": "number", "minimum": 0, "maximum": 1}
_PLAN: Shape = {"$ref": "#/$defs/plan"}


def portfolio_schema() -> Shape:
    """The schema of what ``document.portfolio_document`` returns."""
    return _document(
        "planner portfolio",
        schema_version={"const": SCHEMA_VERSION},
        kind={"const": "portfolio"},
        fits=FLAG,
        request=request_shape(),
        trials=list_of(_trial()),
        ranked_regret=or_null(AMOUNT),
        grounds=_grounds(),
        infeasible=or_null(infeasible_shape()),
        assumptions=list_of(note_shape()),
    )


def _document(title: str, **properties: Shape) -> Shape:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **closed_object(**properties),
        "$defs": {"plan": plan_shape(), "estimate": estimate_shape()},
    }


def _trial() -> Shape:
    return closed_object(
        rank=COUNT,
        plan=_PLAN,
        num_devices=COUNT,
        step_time_s=AMOUNT,
        step_time_low_s=AMOUNT,
        step_time_high_s=AMOUNT,
        peak_memory_bytes=AMOUNT,
        oom_probability=_SHARE,
        best_probability=_SHARE,
        regret=AMOUNT,
        regret_high=AMOUNT,
        device_hours=AMOUNT,
        cost_usd=or_null(AMOUNT),
        saved_device_hours=or_null(NUMBER),
    )


def _grounds() -> Shape:
    return closed_object(
        considered=COUNT,
        candidates=COUNT,
        draws=COUNT,
        effective_draws=AMOUNT,
        table_error=AMOUNT,
        priced_exactly=COUNT,
        trial_steps=COUNT,
        oom_penalty=_SHARE,
        seed=COUNT,
    )
