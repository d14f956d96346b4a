"""JSON Schema (2020-12) of the documents of decisions under uncertainty."""

from planner.schema_types import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    SHARE,
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

_PLAN: Shape = {"$ref": "#/$defs/plan"}


def portfolio_schema() -> Shape:
    """The schema of what ``document.portfolio_document`` returns."""
    return answer_about_plans(
        "planner portfolio",
        "portfolio",
        fits=FLAG,
        request=request_shape(),
        trials=list_of(_trial()),
        ranked_regret=or_null(AMOUNT),
        grounds=_grounds(),
        infeasible=or_null(infeasible_shape()),
        assumptions=list_of(note_shape()),
    )


def sensitivity_schema() -> Shape:
    """The schema of what ``document.sensitivity_document`` returns."""
    return answer_about_plans(
        "planner sensitivity",
        "sensitivity",
        fits=FLAG,
        request=request_shape(),
        choice=or_null(_PLAN),
        step_time_s=or_null(AMOUNT),
        regret_of_not_knowing=closed_object(everything=NUMBER, hardware=NUMBER, stack=NUMBER),
        parameters=list_of(_worth()),
        rivals=list_of(_rival()),
        grounds=_grounds(),
        infeasible=or_null(infeasible_shape()),
        assumptions=list_of(note_shape()),
    )


def observe_schema() -> Shape:
    """The schema of what ``document.observe_document`` returns."""
    return answer_about_plans(
        "planner observe",
        "observe",
        fits=FLAG,
        request=request_shape(),
        observed=list_of(_observed()),
        plans=list_of(
            closed_object(rank=COUNT, rank_before=COUNT, plan=_PLAN, tried=FLAG, before=_view(), after=_view())
        ),
        learned=list_of(closed_object(name=TEXT, factor=AMOUNT, std_before=AMOUNT, std_after=AMOUNT)),
        regret=or_null(AMOUNT),
        next_trials=list_of(_trial()),
        grounds=_grounds(),
        infeasible=or_null(infeasible_shape()),
        unused_rows=list_of(closed_object(file=TEXT, line=COUNT, reason=TEXT)),
        assumptions=list_of(note_shape()),
        warnings=list_of(note_shape()),
    )


def _trial() -> Shape:
    return closed_object(
        rank=COUNT,
        plan=_PLAN,
        num_devices=COUNT,
        step_time_s=AMOUNT,
        step_time_low_s=AMOUNT,
        step_time_high_s=AMOUNT,
        peak_memory_bytes=AMOUNT,
        oom_probability=SHARE,
        best_probability=SHARE,
        regret=AMOUNT,
        regret_high=AMOUNT,
        device_hours=AMOUNT,
        cost_usd=or_null(AMOUNT),
        saved_device_hours=or_null(NUMBER),
    )


def _worth() -> Shape:
    return closed_object(
        name=TEXT,
        kind={"enum": ["hardware", "stack"]},
        std=AMOUNT,
        regret=NUMBER,
        device_hours=or_null(NUMBER),
        measured_by=TEXT,
    )


def _rival() -> Shape:
    return closed_object(
        plan=_PLAN,
        step_time_ratio=AMOUNT,
        faster_probability=SHARE,
        std=AMOUNT,
        deciders=list_of(closed_object(name=TEXT, first=SHARE, total=SHARE)),
    )


def _observed() -> Shape:
    return closed_object(
        file=TEXT,
        line=COUNT,
        repeats=COUNT,
        plan=_PLAN,
        num_devices=COUNT,
        same_job=FLAG,
        died=or_null(FLAG),
        measured_s=or_null(AMOUNT),
        step_time_s=AMOUNT,
        step_time_low_s=AMOUNT,
        step_time_high_s=AMOUNT,
        surprise=or_null(NUMBER),
        oom_probability=SHARE,
    )


def _view() -> Shape:
    return closed_object(
        step_time_s=AMOUNT,
        step_time_low_s=AMOUNT,
        step_time_high_s=AMOUNT,
        oom_probability=SHARE,
        best_probability=SHARE,
    )


def _grounds() -> Shape:
    return closed_object(
        considered=COUNT,
        candidates=COUNT,
        draws=COUNT,
        effective_draws=AMOUNT,
        table_error=AMOUNT,
        table_error_largest=AMOUNT,
        priced_exactly=COUNT,
        trial_steps=COUNT,
        oom_penalty=SHARE,
        seed=COUNT,
    )
