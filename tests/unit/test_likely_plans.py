"""Beside a best plan that may well run out of memory, the best one that is likely to live."""

import io

import pytest
from rich.console import Console

import planner
from planner.document_plan import to_document
from planner.render.plans import render
from planner.results import RISKY, PlanResult

JOB = {"sequence_length": 8192, "global_batch_size": 512}


@pytest.fixture(scope="module")
def tight() -> PlanResult:
    """Many fast plans of which fill the devices to the brim."""
    return planner.plan("llama-3-70b", "32x8xH100", JOB, top=100)


def text_of(result: PlanResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    render(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_is_the_fastest_below_the_risk(tight: PlanResult) -> None:
    assert tight.best is not None
    assert tight.likely is not None
    assert tight.best.risky
    assert tight.best.oom_probability >= RISKY
    assert tight.likely == next(item for item in tight.plans if item.oom_probability < RISKY)
    assert tight.likely.rank > 1
    assert f"(number {tight.likely.rank})" in text_of(tight)


def test_an_estimate_and_a_short_list_name_the_same_plan(tight: PlanResult) -> None:
    assert tight.likely is not None
    short = planner.plan("llama-3-70b", "32x8xH100", JOB, top=1)
    told = planner.estimate("llama-3-70b", "32x8xH100", JOB)
    for result in (short, told):
        assert result.likely is not None
        assert (result.likely.plan, result.likely.rank) == (tight.likely.plan, len(result.plans) + 1)
        assert to_document(result)["likely"]["memory"]["oom_probability"] < RISKY
        assert "likely to live" in text_of(result)


@pytest.mark.parametrize("asked", [{}, {"tensor_parallel": 4, "micro_batch_size": 1}])
def test_where_the_first_is_likely_to_live_there_is_no_other(asked: dict[str, int]) -> None:
    result = planner.plan("llama-3-8b", "8xH100", {"sequence_length": 2048, "global_batch_size": 64}, pins=asked)
    assert result.best is not None
    assert not result.best.risky
    assert result.likely is None
    assert to_document(result)["likely"] is None
    assert "likely to live" not in text_of(result)
