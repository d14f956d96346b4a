"""The bodies accept every word the library knows, and no other; both follow the same field names."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from costmodels.plan import AxisOrder, ContextKind, ExecutionPlan
from costmodels.workload import (
    ATTENTION_KERNELS,
    ATTENTION_LIBRARIES,
    FROZEN_DTYPES,
    GRADIENT_DTYPES,
    JOINT_TARGET,
    LORA_TARGETS,
    MASTER_DTYPES,
    OPTIMIZERS,
    STATE_DTYPES,
    TASKS,
    LoraSpec,
)
from planner.question.jobs import JOB_FIELDS
from planner.question.lora import ALL_LINEAR
from planner.question.request import Options
from planner.ranking import OBJECTIVES
from planner.rules.pipeline import SCHEDULE_NAMES
from profiles.precision import PRECISIONS
from service.job_bodies import JobBody, LoraBody, PlanBody
from service.schemas import EstimateRequest, PlanRequest, given


def words(body: type[BaseModel], field: str) -> set[str]:
    """The members of a field's ``Literal``, however deep it is wrapped."""
    found: set[str] = set()
    open_types: list[Any] = [body.model_fields[field].annotation]
    while open_types:
        for part in get_args(open_types.pop()):
            if isinstance(part, str):
                found.add(part)
            else:
                open_types.append(part)
    return found


@pytest.mark.parametrize(
    ("body", "field", "known"),
    [
        (JobBody, "task", TASKS),
        (JobBody, "precision", PRECISIONS),
        (JobBody, "optimizer", OPTIMIZERS),
        (JobBody, "attention", ATTENTION_KERNELS),
        (JobBody, "attention_library", ATTENTION_LIBRARIES[1:]),
        (JobBody, "frozen_dtype", FROZEN_DTYPES[1:]),
        (JobBody, "lora_targets", (*LORA_TARGETS, JOINT_TARGET, ALL_LINEAR)),
        (JobBody, "gradient_dtype", GRADIENT_DTYPES),
        (JobBody, "master_dtype", MASTER_DTYPES),
        (JobBody, "state_dtype", STATE_DTYPES),
        (PlanBody, "schedule", SCHEDULE_NAMES),
        (PlanBody, "context_kind", [kind.name.lower() for kind in ContextKind]),
        (PlanBody, "axis_order", [order.name.lower() for order in AxisOrder]),
        (PlanRequest, "objective", OBJECTIVES),
    ],
)
def test_words_are_those_of_the_library(body: type[BaseModel], field: str, known: Any) -> None:
    assert words(body, field) == set(known)


def test_fields_are_those_of_the_library() -> None:
    assert set(JobBody.model_fields) == set(JOB_FIELDS)
    assert set(LoraBody.model_fields) == set(LoraSpec.__dataclass_fields__)
    assert set(PlanBody.model_fields) == set(ExecutionPlan.__dataclass_fields__)
    options = set(Options.__dataclass_fields__) - {"allow_files", "stack_fit"}
    assert options <= set(PlanRequest.model_fields)
    assert set(EstimateRequest.model_fields) <= set(PlanRequest.model_fields)


def test_nulls_and_omissions_are_left_to_the_library() -> None:
    assert given(JobBody(sequence_length=4096, task=None)) == {"sequence_length": 4096}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("value", [nested(8), {"a": ["x"] * 4000}, {"a": 2**63}, {"a": None, "b": True}])
def test_configurations_within_bounds_are_accepted(value: dict[str, Any]) -> None:
    assert EstimateRequest(model=value, cluster="8xH100").model == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(9), "may be nested at most 8 levels deep"),
        ({"a": ["x"] * 4096}, "may hold at most 4096 values"),
        ({"a": 2**63 + 1}, "whole numbers must fit into 64 bits"),
        ({"a": float("inf")}, "numbers must be finite"),
        ({"a": "x" * 4097}, "texts may have at most 4096 printable characters"),
        ({"a\n": 1}, "texts may have at most 4096 printable characters"),
    ],
)
def test_configurations_out_of_bounds_are_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EstimateRequest(model=value, cluster="8xH100")
