"""Libraries of attention in workflows: what they save, and who has none."""

from typing import Any

import pytest

from costmodels.plan import Recompute
from planner.api import estimate
from planner.dataflow.flow.costs import model_call
from planner.dataflow.flow.results import FlowResult
from planner.document_flow import flow_document
from planner.workflows import plan_dataflow
from profiles.errors import SpecError

LONG: dict[str, Any] = {
    "batch": 16, "prompt": 32768, "generate": 32768, "mode": "colocated", "framework": "hf-fsdp", "iterations": 1,
    "linear_loss": True, "pins": {"actor_train": {"micro_batch_size": 1}},
}  # fmt: skip
SMALL: dict[str, Any] = {"batch": 16, "prompt": 256, "generate": 256, "framework": "hf-fsdp", "iterations": 1}


def trained(model: str = "qwen3-4b-2507", cluster: str = "8xH100", **options: Any) -> FlowResult:
    return plan_dataflow("sft", model, cluster, **{**LONG, **options})


@pytest.mark.parametrize("library", ["flash_2", "flash_3"])
def test_training_takes_as_long_as_the_job_alone(library: str) -> None:
    found = trained(attention_library=library).plan
    assert found is not None
    layout = found.calls[0].plan
    assert layout is not None
    assert layout.recompute == Recompute.FULL
    job = {
        "sequence_length": 65536, "global_batch_size": 16, "linear_cross_entropy": True, "attention_library": library,
    }  # fmt: skip
    alone = estimate("qwen3-4b-2507", "8xH100", job=job, framework="hf-fsdp", plan=layout).best
    assert alone is not None
    assert found.calls[0].time_s == pytest.approx(alone.step_time_s, rel=0.02)


def test_flash_attention_3_is_faster_on_hopper_where_sequences_are_long() -> None:
    """prime-rl's own runs of this model, with it, take 30.6 s."""
    times_s = [plan.calls[0].time_s for said in (None, "flash_3") if (plan := trained(attention_library=said).plan)]
    assert times_s[1] < 0.8 * times_s[0]
    assert times_s[1] == pytest.approx(30.6, rel=0.1)


def test_generation_has_attention_of_its_engine() -> None:
    request = plan_dataflow("grpo", "qwen3-0.6b", "8xH100", attention_library="flash_3", **SMALL).request
    found = {call.name: model_call(request, call).attention_library for call in request.graph.calls if call.role}
    assert found["actor_gen"] == ""
    assert found["actor_train"] == found["ref_inf"] == "flash_3"


def test_answers_repeat_it() -> None:
    assert flow_document(trained(attention_library="flash_3"))["request"]["attention_library"] == "flash_3"
    assert flow_document(trained())["request"]["attention_library"] is None


@pytest.mark.parametrize(
    ("model", "cluster", "library", "words"),
    [
        ("qwen3-0.6b", "8xH100", "flash_9", "unknown value 'flash_9'. Hint: use one of flash_2, flash_3, cudnn"),
        ("qwen3-0.6b", "8xA100-80GB", "flash_3", "kernels for Hopper, not for A100-SXM-80GB. Hint: flash_2 or cudnn"),
        ("gpt-oss-20b", "8xA100-80GB", "cudnn", "which cudnn does not know in transformers. Hint: leave it out"),
    ],
)
def test_who_has_none_is_told(model: str, cluster: str, library: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        trained(model, cluster, attention_library=library)
    assert str(caught.value).startswith("attention_library: ")
    assert words in str(caught.value)
