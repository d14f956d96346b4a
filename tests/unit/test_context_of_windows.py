"""Context parallelism of models whose attention Transformer Engine does not share in every way, under Megatron-Core."""

import pytest

import planner
from profiles.errors import SpecError

LONG = {"sequence_length": 65_536, "global_batch_size": 16}
PINS = {"tensor_parallel": 1, "pipeline_parallel": 1, "context_parallel": 4}


@pytest.mark.parametrize(
    ("model", "legal"),
    [("llama-3-8b", "ring all_gather ulysses"), ("mistral-7b-v0.1", "all_gather ulysses"), ("gpt-oss-20b", "ulysses")],
)
def test_windows_exclude_rings_and_sinks_all_but_ulysses(model: str, legal: str) -> None:
    for kind in ("ring", "all_gather", "ulysses"):
        pins = {**PINS, "context_kind": kind}
        if kind in legal.split():
            found = planner.plan(model, "2x8xH200", LONG, pins=pins, framework="megatron-core")
            assert {item.plan.context_kind.name.lower() for item in found.plans} == {kind}
            continue
        with pytest.raises(SpecError, match="which Transformer Engine does not share as") as caught:
            planner.estimate(model, "2x8xH200", LONG, plan=pins, framework="megatron-core")
        assert caught.value.field == "plan.context_kind"
        assert caught.value.hint == "context_kind " + " or ".join(reversed(legal.split()))


def test_no_plan_of_a_long_context_is_one_that_would_be_refused() -> None:
    for model, refused in (("mistral-7b-v0.1", {"ring"}), ("gpt-oss-20b", {"ring", "all_gather"})):
        found = planner.plan(model, "4x8xH100", LONG, framework="megatron-core")
        kinds = {item.plan.context_kind.name.lower() for item in found.plans if item.plan.context_parallel > 1}
        assert not kinds & refused
