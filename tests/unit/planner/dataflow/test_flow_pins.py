"""``--pin CALL.recompute`` and ``--pin CALL.tensor_parallel_overlap``: ways to train that are fixed for one call."""

from typing import Any

import pytest

from costmodels.plan import ExecutionPlan, Recompute
from planner.workflows import plan_dataflow
from profiles.errors import SpecError

SMALL: dict[str, Any] = {"batch": 64, "prompt": 512, "generate": 512, "framework": "megatron"}


def trained(**pins: Any) -> ExecutionPlan:
    result = plan_dataflow("sft", "qwen3-8b", "8xH100", **SMALL, pins={"actor_train": pins})
    assert result.plan is not None
    assert result.request.pins["actor_train"].columns.keys() == pins.keys()
    plan = result.plan.calls[0].plan
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", ["full", "Full", 2])
def test_recomputation_is_fixed_by_its_name(name: object) -> None:
    assert trained(recompute="none").recompute is Recompute.NONE
    assert trained(recompute=name).recompute is Recompute.FULL


def test_tensor_parallel_traffic_may_be_kept_from_running_under_products() -> None:
    pins = {"tensor_parallel": 4, "tensor_parallel_overlap": 1}
    assert trained(**pins).tensor_parallel_overlap
    assert not trained(**pins | {"tensor_parallel_overlap": 0}).tensor_parallel_overlap


@pytest.mark.parametrize(
    ("call", "pin", "words"),
    [
        (
            "actor_train",
            {"recompute": "ful"},
            "pins.actor_train.recompute: unknown value 'ful'. Hint: did you mean 'full'?",
        ),
        (
            "actor_train",
            {"recompute": True},
            "pins.actor_train.recompute: unknown value True. Hint: known: block, full, none, selective",
        ),
        (
            "actor_train",
            {"recompute": "selective"},
            "pins.actor_train.recompute: no layout of actor_train has it; got selective. Hint: none or full",
        ),
        (
            "actor_train",
            {"tensor_parallel_overlap": 2},
            "pins.actor_train.tensor_parallel_overlap: must be a whole number from 0 to 1; got 2. Hint: 1",
        ),
        (
            "ref_inf",
            {"recompute": "full"},
            "pins.ref_inf.recompute: is a matter of training: other calls go backward over nothing. "
            "Hint: fix it for the call that trains",
        ),
    ],
)
def test_what_cannot_be_fixed_is_named(call: str, pin: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_dataflow("dpo", "qwen3-8b", "8xH100", **SMALL | {"framework": "hf-fsdp"}, pins={call: pin})
    assert str(caught.value) == words
