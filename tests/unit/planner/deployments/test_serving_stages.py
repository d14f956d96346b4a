"""Pipeline stages of SGLang and TensorRT-LLM: which layouts, what they are told, and what published runs say."""

from typing import Any

import pytest

import planner
from planner.deployments.launch import launch_words, most_running
from planner.deployments.results import ServingResult
from profiles.engines import find_engine, load_engines
from tests.unit.planner.deployments.test_serving_launch import run, value

BOTH = pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm"])


def served(model: str = "llama-3.1-70b", gpus: str = "8xH100-SXM-80GB", **asked: Any) -> ServingResult:
    return planner.serving(model, gpus, **{"prompt": 1024, "generate": 256, **asked})


@BOTH
@pytest.mark.parametrize("at_once", [1, 16])
def test_tensors_come_before_stages_where_few_run(engine: str, at_once: int) -> None:
    plans = served(engine=engine, concurrency=at_once, top=100).plans
    assert {plan.pipeline_parallel for plan in plans} > {1, 2, 4}
    assert plans[0].pipeline_parallel == 1
    fastest = min(plans, key=lambda plan: plan.latency_s)
    assert (fastest.tensor_parallel, fastest.pipeline_parallel) == (8, 1)


@BOTH
def test_reinforcement_learning_runs_them_without(engine: str) -> None:
    assert find_engine(engine).splits_stages
    assert not find_engine(engine).between_training().splits_stages
    assert all(each.sources.get("rollout_stages") for each in load_engines().values() if not each.rollout_stages)


def test_sglang_s_limit_is_of_all_micro_batches() -> None:
    """It divides the limit by the stages and rounds down: 21 over two stages would run 20."""
    result = served(engine="sglang", pins={"tp": 2, "pp": 2}, concurrency=21)
    arguments = run(result)
    assert [value(arguments, f"--{name}-size") for name in ("tp", "pp")] == ["2", "2"]
    assert value(arguments, "--max-running-requests") == "22"
    assert "--pp-size" not in run(served(engine="sglang", pins={"tp": 4, "pp": 1}))
    grouped = run(served("deepseek-v3", "2x8xH200-SXM-141GB", engine="sglang", pins={"tp": 1, "ep": 8, "pp": 2}))
    assert [value(grouped, f"--{name}-size") for name in ("tp", "pp", "dp", "ep")] == ["8", "2", "8", "8"]
    assert value(grouped, "--nnodes") == "2"


def test_tensorrt_llm_s_limit_is_of_one_micro_batch() -> None:
    result = served(engine="tensorrt-llm", pins={"tp": 2, "pp": 4})
    arguments, most = run(result), most_running(result.plans[0], result)
    assert [value(arguments, f"--{name}_size") for name in ("tp", "pp")] == ["2", "4"]
    assert most <= 4 * int(value(arguments, "--max_batch_size")) < most + 4


def test_sglang_has_no_command_where_nodes_would_hold_parts_of_stages() -> None:
    """Of eight stages of three devices three nodes hold no whole number each."""
    result = served("gpt3-175b", "3x8xH100-SXM-80GB", engine="sglang", pins={"tp": 3, "pp": 8})
    assert launch_words(result.plans[0], result) == []


def test_what_a_second_stage_gains_beside_what_was_published() -> None:
    """TensorRT-LLM's performance overview, Llama 3.3 70B, NVFP4, RTX 6000 Pro, 1024/1024: 1,708 and 1,887 per GPU."""
    asked: dict[str, Any] = {"weights": "nvfp4", "kv_cache_dtype": "fp8", "generate": 1024, "requests": 3000}
    one, two = (
        served("llama-3.3-70b", f"{stages}xRTX-PRO-6000", engine="tensorrt-llm", pins={"tp": 1, "pp": stages}, **asked)
        for stages in (1, 2)
    )
    found = [result.plans[0].tokens_per_s_per_device for result in (one, two)]
    assert found == pytest.approx([1708, 1887], rel=0.1)
    assert found[1] / found[0] == pytest.approx(1887 / 1708, rel=0.05)


@pytest.mark.parametrize(
    ("engine", "least", "most"), [("sglang", 2.9, 4.0), ("vllm", 2.9, 4.0), ("tensorrt-llm", 0.8, 1.2)]
)
def test_chunks_of_a_long_prompt_follow_each_other_through_stages(engine: str, least: float, most: float) -> None:
    """SGLang's four stages read DeepSeek-V3.1's prompts 3.31 times as fast on H20s (LMSYS blog of 2026-01-15)."""
    asked: dict[str, Any] = {"engine": engine, "prompt": 120_000, "generate": 2, "concurrency": 1}
    asked |= {"max_num_batched_tokens": 12_288, "memory_utilization": 0.96}
    flat = served("deepseek-v3", "8xH20", pins={"tp": 8, "pp": 1, "ep": 1}, **asked).plans[0]
    deep = served("deepseek-v3", "4x8xH20", pins={"tp": 8, "pp": 4, "ep": 1}, **asked).plans[0]
    assert least < flat.ttft_s / deep.ttft_s < most


@BOTH
def test_a_prompt_of_one_chunk_goes_through_all_stages(engine: str) -> None:
    flat, deep = (
        served(engine=engine, concurrency=1, pins={"tp": 4, "pp": stages}, prompt=8192).plans[0] for stages in (1, 2)
    )
    assert deep.ttft_s > 0.98 * flat.ttft_s
