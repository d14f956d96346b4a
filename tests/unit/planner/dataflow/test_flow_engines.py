"""Engines of generating calls: pinned for one, asked for all, or the usual ones."""

from typing import Any

import pytest

from planner.dataflow.flow.costs import flow_costs
from planner.dataflow.flow.request import FlowOptions, FlowRequest, resolve_flow
from planner.document_flow import flow_document
from planner.workflows import plan_dataflow
from profiles.errors import SpecError

SIZES: dict[str, Any] = {"batch": 16, "prompt": 128, "generate": 128, "effort": 0.01, "iterations": 1}
TWO = {
    "roles": {"actor": {"model": "llama-3.2-1b"}, "helper": {"like": "actor"}},
    "calls": {
        "draft": {"role": "helper", "kind": "generate", "inputs": ["prompts"], "outputs": ["drafts"]},
        "gen": {"role": "actor", "kind": "generate", "inputs": ["drafts"], "outputs": ["text"]},
        "train": {"role": "actor", "kind": "train", "inputs": ["text"]},
    },
}


def asked(job: Any = "grpo", cluster: str = "1xH100", **options: Any) -> FlowRequest:
    models = {"actor": "llama-3.2-1b"} if isinstance(job, str) else {}
    return resolve_flow(job, models, cluster, FlowOptions(**SIZES | options))


def engines(request: FlowRequest) -> dict[str, set[str]]:
    """Call to the engines that its ways to run have."""
    rows = flow_costs(request, request.cluster, [[1]]).rows
    return {name: {each.table.engines[code] for code in each.table.engine} for name, each in rows.items()}


@pytest.mark.parametrize("name", ["tensorrt-llm", "vllm-2024", "vllm-0.3", "sglang-2025", "trainer", " TensorRT-LLM"])
def test_a_call_may_pin_any_engine_that_may_be_asked_for(name: str) -> None:
    pinned, whole = asked(pins={"actor_gen": {"engine": name}}), asked(engine=name)
    assert pinned.generators == whole.generators == (name.strip().lower(),)
    assert engines(pinned) == engines(whole)


def test_a_plan_has_the_engine_that_is_pinned_and_says_so() -> None:
    pins = {"actor_gen": {"engine": "tensorrt-llm"}}
    result = plan_dataflow("grpo", "llama-3.2-1b", "1xH100", **SIZES, pins=pins)
    assert result.plan is not None
    assert {call.name: call.engine for call in result.plan.calls}["actor_gen"] == "tensorrt-llm"
    assert flow_document(result)["request"]["engines"] == ["tensorrt-llm"]


def test_a_pinned_engine_is_that_of_its_call_alone() -> None:
    usual = asked(TWO, pins={"draft": {"engine": "tensorrt-llm"}})
    assert engines(usual)["draft"] == {"tensorrt-llm"}
    assert engines(usual)["gen"] <= {"vllm", "sglang"}
    assert usual.generators == ("tensorrt-llm", "vllm", "sglang")
    other = engines(asked(TWO, engine="vllm", pins={"draft": {"engine": "trainer"}}))
    assert (other["draft"], other["gen"], other["train"]) == ({"trainer"}, {"vllm"}, {"trainer"})


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"pins": {"actor_gen": {"engine": "vlm"}}}, "pins.actor_gen.engine", "unknown name 'vlm'", "did you mean 'vllm'"),
    ({"pins": {"actor_train": {"engine": "vllm"}}}, "pins.actor_train.engine", "in the trainer; got 'vllm'", "trainer"),
    (
        {"cluster": "1xV100", "pins": {"actor_gen": {"engine": "tensorrt-llm"}}},
        "pins.actor_gen.engine",
        "tensorrt-llm does not support V100",
        "leave it out",
    ),
    (
        {"mode": "async", "rollout": "in_flight", "pins": {"actor_gen": {"engine": "trainer"}}},
        "pins.actor_gen.engine",
        "cannot interrupt responses",
        "use one of vllm, sglang",
    ),
    (
        {"engine": "sglang", "pins": {"actor_gen": {"engine": "vllm"}}},
        "engine",
        "sglang generates nothing: every call that generates has another one pinned",
        "leave it out",
    ),
    (
        {"eager": True, "pins": {"actor_gen": {"engine": "trainer"}}},
        "eager",
        "trainer captures no graphs anyway",
        "leave it out",
    ),
    ({"eager": True, "pins": {"actor_gen": {"engine": "tensorrt-llm"}}}, "eager", "is not priced", "leave it out"),
]


@pytest.mark.parametrize(("options", "field", "words", "hint"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_a_pin_that_an_engine_cannot_keep_is_named(options: dict[str, Any], field: str, words: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        asked(**options)
    assert caught.value.field == field
    assert words in caught.value.problem
    assert caught.value.hint.startswith(hint)


def test_a_model_without_kernels_is_refused_where_its_engine_is_pinned() -> None:
    options = FlowOptions(**SIZES, pins={"actor_gen": {"engine": "vllm-0.3"}})
    with pytest.raises(SpecError, match=r"^pins\.actor_gen\.engine: vllm-0\.3 runs no model with"):
        resolve_flow("best-of-n", {"actor": "qwen3-next-80b-a3b", "reward": "gpt2"}, "8xH100", options)


def test_an_engine_may_be_asked_for_and_pinned() -> None:
    request = asked(engine="vllm", pins={"actor_gen": {"engine": "vllm"}})
    assert request.generators == ("vllm",)
    asked(TWO, eager=True, pins={"draft": {"engine": "trainer"}})  # what the other call has captures graphs
