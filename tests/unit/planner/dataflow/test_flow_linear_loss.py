"""Losses of workflows that hold no logits: what they save, who has them unasked, and who is told of them."""

from typing import Any

import pytest

from planner.dataflow.flow.costs import model_call
from planner.dataflow.flow.results import FlowResult
from planner.document_flow import flow_document
from planner.flow_phrases import minimum_sentence
from planner.workflows import plan_dataflow
from profiles.errors import SpecError
from profiles.stacks import load_stacks
from profiles.units import GIB

VOCABULARY = 151_936  # of Qwen3
LONG: dict[str, Any] = {
    "batch": 2, "prompt": 32768, "generate": 32768, "mode": "colocated", "framework": "hf-fsdp", "iterations": 1,
    "pins": {"actor_train": {"micro_batch_size": 1}},
}  # fmt: skip


def long(**options: Any) -> FlowResult:
    return plan_dataflow("sft", "qwen3-0.6b", "1xH100", **{**LONG, **options})


def test_logits_are_not_held() -> None:
    plans = [long(prompt=4096, generate=4096, linear_loss=said).plan for said in (False, True)]
    active = [plan.calls[0].active_bytes for plan in plans if plan is not None]
    each = 2 + 4 * load_stacks()["hf-fsdp"].logits_fp32_copies
    assert active[0] - active[1] == pytest.approx(each * 8192 * VOCABULARY, rel=0.1)


def test_who_does_not_fit_for_logits_is_told_of_losses_without() -> None:
    refused, joined = long().infeasible, long(linear_loss=True)
    assert joined.fits
    assert refused is not None
    assert joined.plan is not None
    assert refused.shortages[0].needs_bytes > 150 * GIB
    assert refused.linear_loss_steady_s == pytest.approx(joined.plan.steady_s, rel=0.05)
    assert "Losses that hold no logits (linear_loss) fit these GPUs, about " in minimum_sentence(refused)


def test_who_said_no_is_not_told() -> None:
    refused = long(linear_loss=False).infeasible
    assert refused is not None
    assert refused.linear_loss_steady_s is None
    assert "linear_loss" not in minimum_sentence(refused)


@pytest.mark.parametrize(
    ("prompt", "asked", "joins"), [(2048, None, True), (512, None, False), (2048, False, False), (512, True, True)]
)
def test_unsloth_joins_them_beyond_1024_tokens_unless_told_otherwise(
    prompt: int, asked: bool | None, joins: bool
) -> None:
    sizes: dict[str, Any] = {"batch": 8, "prompt": prompt, "generate": 16, "settings": {"task": "lora"}}
    result = plan_dataflow("sft", "qwen3-0.6b", "1xH100", framework="unsloth", linear_loss=asked, **sizes)
    request = result.request
    assert model_call(request, request.graph.call("actor_train")).linear_cross_entropy is joins
    assert flow_document(result)["request"]["linear_loss"] is asked


def test_it_is_true_or_false() -> None:
    with pytest.raises(SpecError, match="linear_loss: must be true or false"):
        long(linear_loss="yes")
