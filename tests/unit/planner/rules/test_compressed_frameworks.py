"""Who serves models with compressed keys and how, and that nobody trains them: rules, engines, layouts and launches."""

from itertools import pairwise
from typing import Any

import pytest

import planner
from costmodels.plan import ExecutionPlan, PlanBatch
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.deployments.launch import launch_words
from planner.deployments.results import ServingResult
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import rules_for
from profiles.engines import load_engines
from profiles.errors import SpecError
from tests.fakes import compressed, job, latent

WIDTHS_ALONE = "sglang shares experts in mxfp4-fp8 out by width alone on H200-SXM-141GB, ep 1. Hint: "
FLASH_WEIGHTS = 155.8e9  # bytes: the checkpoint's 159.6 without the layer that predicts further words


def served(model: str = "deepseek-v4-flash", gpus: str = "4xB200", **asked: Any) -> ServingResult:
    return planner.serving(
        model, gpus, **{"prompt": 8192, "generate": 256, "concurrency": 4, "engine": "vllm", **asked}
    )


def given(result: ServingResult, option: str) -> list[str]:
    words = launch_words(result.plans[0], result)
    return [after for word, after in pairwise(words) if word == option]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_framework_trains_compressed_keys(framework: str) -> None:
    plan = ExecutionPlan(data_parallel=8, num_microbatches=8)
    for model, broken in ((compressed(), True), (compressed(compressed_attention=None), True), (latent(), False)):
        where = Setting(model=model, job=job(), num_devices=8, framework=framework)
        rule = next(rule for rule in rules_for(framework) if rule.name == "compressed_keys_are_released")
        assert rule.holds(PlanBatch.from_plans([plan]), where)[0] is not broken
        assert rule.error(plan, where).hint


def test_plans_and_workflows_say_so_before_they_search() -> None:
    refusal = (
        r"model\.compressed_attention: no release of a training framework .* branch dev only\. Hint: planner serving"
    )
    with pytest.raises(SpecError, match=refusal):
        planner.plan("deepseek-v4-flash", "64x8xH100", job={"sequence_length": 4096})
    with pytest.raises(SpecError, match=refusal):
        planner.plan("deepseek-v4-pro", "64x8xB200", job={"sequence_length": 4096, "task": "lora"})
    for workflow in ("sft", "grpo"):
        with pytest.raises(SpecError, match=refusal):
            resolve_flow(workflow, {"": "deepseek-v4-flash"}, "64x8xH100", FlowOptions(framework="megatron"))
    only_streams = compressed(compressed_attention=None)
    with pytest.raises(SpecError, match=r"model\.hyper_connections: no release of a training framework"):
        planner.plan(only_streams, "8xH100", job={"sequence_length": 2048, "global_batch_size": 64})


def test_engines_of_today_know_it() -> None:
    knowing = {name for name, engine in load_engines().items() if engine.knows(compressed())}
    assert knowing == {"vllm", "sglang", "tensorrt-llm"}
    assert all(engine.sources["compressed_attention"] for name, engine in load_engines().items() if name in knowing)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": "8xA100"}, r"engine: vllm has no kernels on A100-SXM-80GB .* Hint: a GPU of Hopper or data-centre"),
        ({"gpus": "8xMI355X"}, r"engine: vllm has no kernels on MI355X for compressed keys"),
        ({"gpus": "8xH100", "engine": "tensorrt-llm"}, r"engine: tensorrt-llm .* H100.* Hint: vllm or sglang"),
        ({"engine": "vllm-0.3"}, r"engine: vllm-0\.3 runs no model with compressed keys"),
        ({"engine": "sglang-2025"}, r"engine: sglang-2025 runs no model with compressed keys"),
        ({"kv_cache_dtype": "bf16"}, r"kv_cache_dtype: engines keep the compressed keys .* in fp8; got 'bf16'"),
        ({"weights": "nvfp4"}, r"weights: no checkpoint of .* is all in nvfp4.* Hint: mxfp4-fp8 or fp8-block, or bf16"),
        ({"model": "qwen3-32b", "weights": "mxfp4-fp8"}, r"weights: mxfp4-fp8 is of the matrices of experts"),
    ],
)
def test_what_no_engine_does_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        served(**asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": "16xB200", "pins": {"tp": 16}}, "8 groups of heads in the output do not divide by tp 16"),
        ({"pins": {"pp": 2}}, "vllm runs compressed keys on one pipeline stage only"),
        ({"engine": "sglang", "pins": {"pp": 2}}, "sglang runs compressed keys on one pipeline stage only"),
        ({"engine": "sglang", "gpus": "8xH200", "pins": {"ep": 4}}, f"^pins.ep: {WIDTHS_ALONE}"),
        ({"engine": "sglang", "gpus": "8xH200", "pins": {"tp": 8, "ep": 2}}, f"^pins: {WIDTHS_ALONE}"),
    ],
)
def test_layouts_that_no_engine_has_are_told_apart(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        served(**asked)


def test_stages_are_tensorrt_s_alone() -> None:
    for engine, stages in (("vllm", {1}), ("sglang", {1}), ("tensorrt-llm", {1, 2, 3, 4})):
        assert {plan.pipeline_parallel for plan in served(engine=engine, top=100).plans} == stages


def test_sglang_spreads_four_bit_experts_on_blackwell_only() -> None:
    for gpus, weights, spread in (("8xB200", None, True), ("8xH200", None, False), ("8xH200", "fp8-block", True)):
        plans = served(gpus=gpus, engine="sglang", weights=weights).plans
        assert any(plan.expert_parallel > 1 for plan in plans) is spread


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_hold_what_the_checkpoint_holds(ranks: int) -> None:
    """All but what every rank keeps whole is shared out: down products, compressors, indexers, routers, connections."""
    plan = served(pins={"tp": ranks, "ep": ranks, "pp": 1}).plans[0]
    assert plan.memory.weights == pytest.approx(FLASH_WEIGHTS / ranks, rel=0.01 if ranks == 1 else 0.03)
    assert plan.memory.weights >= 0.998 * FLASH_WEIGHTS / ranks


def test_eight_bit_experts_take_twice_as_much() -> None:
    four, eight = (served(weights=weights, pins={"tp": 4, "ep": 4}).plans[0] for weights in ("mxfp4-fp8", "fp8-block"))
    experts = 43 * 256 * 3 * 4096 * 2048
    grown = experts * (1 + 4 / 128**2 - 17 / 32) / 4  # a scale in 32 bits per 128 x 128, or in 8 per 32
    assert eight.memory.weights - four.memory.weights == pytest.approx(grown, rel=0.001)


def test_a_layer_that_predicts_further_words_may_draft() -> None:
    """It takes a layer's experts: 256 of 25.2 million weights in 4.25 bits, and its own attention."""
    plain = served(pins={"tp": 4, "ep": 4})
    drafts = served(pins={"tp": 4, "ep": 4}, speculate="mtp", draft_tokens=3, accepted=2.0)
    more = 4 * (drafts.plans[0].memory.weights - plain.plans[0].memory.weights)
    assert more == pytest.approx(256 * 3 * 4096 * 2048 * 17 / 32, rel=0.15)
    assert drafts.plans[0].tpot_s < plain.plans[0].tpot_s


def test_servers_are_told_what_the_model_needs() -> None:
    assert given(served(), "--block-size") == ["256"]
    assert given(served(), "--kv-cache-dtype") == ["fp8"]
    for gpus, weights, backend in (
        ("8xH200", None, ["marlin"]),
        ("8xH200", "fp8-block", []),
        ("4xB200", None, ["flashinfer_mxfp4"]),
    ):
        answer = served(gpus=gpus, engine="sglang", weights=weights)
        assert given(answer, "--moe-runner-backend") == backend
        assert given(answer, "--kv-cache-dtype") == ["fp8_e4m3"]
    plan = served(engine="tensorrt-llm")
    assert any("dtype: fp8, tokens_per_block: 128" in word for word in launch_words(plan.plans[0], plan))
    assert given(served("qwen3-32b"), "--block-size") == []


def test_longer_requests_take_longer_and_more_room() -> None:
    answers = [served(prompt=prompt, pins={"tp": 4, "ep": 1}).plans[0] for prompt in (8192, 65536, 524288)]
    assert sorted(answers, key=lambda plan: plan.ttft_s) == answers
    assert sorted(answers, key=lambda plan: plan.tpot_s) == answers
    assert [plan.most_longest for plan in answers] == sorted((plan.most_longest for plan in answers), reverse=True)
