"""Engines of workflows that capture no graphs, and pins that only a user would ask for."""

from typing import Any

import pytest

from planner.workflows import plan_dataflow
from profiles.errors import SpecError

SIZES: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "mode": "colocated"}


def planned(job: str = "grpo", **options: Any) -> Any:
    return plan_dataflow(job, {"actor": "qwen2.5-0.5b"}, "8xH100", **{**SIZES, **options})


def test_generation_without_graphs_takes_longer() -> None:
    seconds = {}
    for eager in (False, True):
        plan = planned(eager=eager, engine="vllm").plan
        seconds[eager] = next(call.time_s for call in plan.calls if call.name == "actor_gen")
    assert seconds[True] > 1.5 * seconds[False]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"job": "sft"}, "no call of sft generates"),
        ({"engine": "trainer"}, "captures no graphs anyway"),
    ],
)
def test_what_it_changes_nothing_of_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        planned(eager=True, **options)


def test_short_sequences_may_be_split_where_that_is_asked() -> None:
    plan = planned(pins={"actor_train": {"context_parallel": 2}}).plan
    train = next(call for call in plan.calls if call.name == "actor_train")
    assert train.plan.context_parallel == 2


def test_no_gpu_hints_at_the_first() -> None:
    with pytest.raises(SpecError, match="0-0 for GPU 0"):
        planned(pins={"actor_train": {"gpus": 0}})
