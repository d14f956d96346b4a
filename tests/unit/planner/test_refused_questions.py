"""Questions that no plan of a framework, or of a size, can answer."""

from typing import Any

import pytest

import planner
from profiles.errors import SpecError

MODEL = "llama-3.2-1b"


@pytest.mark.parametrize("framework", ["megatron", "deepspeed", "nanotron"])
@pytest.mark.parametrize("setting", ["optimizer_in_backward", "paged_optimizer"])
def test_a_setting_that_a_framework_lacks_is_an_error_about_it(setting: str, framework: str) -> None:
    with pytest.raises(SpecError, match=f"leave {setting} out") as refused:
        planner.plan(MODEL, "8xH100", {setting: True}, framework=framework)
    assert refused.value.field == f"job.{setting}"


def test_a_setting_of_one_gpu_is_an_error_on_several() -> None:
    job = {"optimizer_in_backward": True, "task": "full"}
    with pytest.raises(SpecError, match="runs on one GPU in the Hugging Face Trainer; got 8"):
        planner.plan(MODEL, "8xH100", job, framework="huggingface")
    fewest = planner.plan(MODEL, "8xH100", job, framework="huggingface", objective="fewest_gpus")
    assert fewest.best is not None
    assert fewest.best.num_devices == 1


def test_parts_of_a_cluster_that_are_too_small_for_what_is_fixed_are_no_candidates() -> None:
    best = planner.plan("mixtral-8x7b", "8xH100", {"task": "lora"}, pins={"ep": 8}, objective="fewest_gpus").best
    assert best is not None
    assert (best.num_devices, best.plan.expert_parallel) == (8, 8)
    with pytest.raises(SpecError, match=r"plan\.expert_parallel"):
        planner.plan("mixtral-8x7b", "4xH100", {"task": "lora"}, pins={"ep": 8}, objective="fewest_gpus")


@pytest.mark.parametrize(
    ("ask", "instead"),
    [
        (planner.search, "memory_reserve_bytes leaves memory free"),
        (planner.portfolio, "oom_penalty says what it costs to run out of memory"),
        (planner.sensitivity, "oom_penalty says what it costs to run out of memory"),
    ],
)
def test_a_risk_is_refused_in_one_phrase_where_nothing_is_ranked_by_it(ask: Any, instead: str) -> None:
    with pytest.raises(SpecError) as refused:
        ask(MODEL, "8xH100", max_oom_risk=0.5)
    problem = "decides which plans a ranking holds, and no ranking is asked for here"
    assert str(refused.value) == f"max_oom_risk: {problem}. Hint: leave it out; {instead}"
