"""Options of the wrong type are named, in every public call, and never end in a traceback."""

import math
from typing import Any

import pytest

import planner
from planner.dataflow.flow.request import FlowOptions
from planner.question.option_kinds import check_kinds
from planner.question.request import Options
from profiles.errors import SpecError


def test_what_the_defaults_are_is_taken() -> None:
    check_kinds(Options())
    check_kinds(FlowOptions())
    check_kinds(FlowOptions(batch=4, effort=1, price_per_device_hour_usd=2, settings={"group_size": 8}, generate="8"))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("effort", "x", "must be a number; got 'x'"),
        ("effort", True, "must be a number; got True"),
        ("effort", math.nan, "must be between 0.01 and 100; got nan"),
        ("batch", 1.5, "must be a whole number from 1 to"),
        ("offload", 1, "must be true or false; got 1"),
        ("stream", "yes", "must be true or false; got 'yes'"),
        ("settings", [1], "must be a mapping; got a list"),
        ("pins", "tp=8", "must be a mapping; got 'tp=8'"),
        ("fabric", 3, "must be text; got 3"),
        ("engine", 7, "must be text; got 7"),
        ("framework", 7, "must be text; got 7"),
        ("precision", 3, "must be text; got 3"),
        ("memory_reserve_bytes", "1", "must be a number; got '1'"),
        ("price_per_device_hour_usd", "2 dollars", "must be a number; got '2 dollars'"),
        ("price_per_device_hour_usd", -2.0, "must be between 0 and 1e"),
        ("price_per_device_hour_usd", math.nan, "must be between 0 and 1e"),
    ],
)
def test_a_workflow_names_the_option_that_is_wrong(name: str, value: Any, problem: str) -> None:
    with pytest.raises(SpecError) as error:
        planner.plan_dataflow("grpo", "llama-3.2-1b", "8xH100", **{name: value})
    assert str(error.value).startswith(f"{name}: {problem}")


@pytest.mark.parametrize("trials", [None, 3])
def test_trials_are_tables_or_rows(trials: Any) -> None:
    with pytest.raises(SpecError, match="trials: must be tables or rows; got"):
        planner.observe("llama-2-7b", "8xA100-80GB", {"global_batch_size": 64}, trials=trials)


def test_questions_of_a_sweep_are_mappings() -> None:
    with pytest.raises(SpecError, match=r"questions\.1: must be a mapping of arguments; got 3"):
        planner.sweep([{"model": "llama-2-7b", "cluster": "8xA100-80GB"}, 3], backend="sequential")  # type: ignore[list-item]
