"""Whose attention an engine runs on a device, and how fast that may be."""

import pytest

from costmodels.kernels.implementations import Library, library_of
from costmodels.serving.generation import engine_context
from planner.deployments.plans import serving
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.engines import find_engine
from tests.fakes import context


@pytest.mark.parametrize(
    ("engine", "gpus", "library"),
    [
        ("vllm", "1xA100", Library.FLASH_2),
        ("vllm", "1xL40S", Library.FLASH_2),
        ("vllm", "1xRTX-5090", Library.FLASH_2),
        ("vllm", "1xH200", Library.FLASH_3),
        ("vllm", "1xB200", Library.TRTLLM_GEN),
        ("vllm-2024", "1xH100", Library.FLASH_2),
        ("sglang", "1xA100", Library.FLASHINFER),
        ("sglang", "1xRTX4090", Library.FLASHINFER),
        ("sglang-2025", "1xH100", Library.FLASH_3),
        ("sglang", "1xGB200", Library.TRTLLM_GEN),
        ("sglang", "1xMI300X", Library.UNKNOWN),  # AMD's own
        ("tensorrt-llm", "1xA100", Library.NATIVE),
    ],
)
def test_engines_run_the_attention_that_they_choose_for_a_device(engine: str, gpus: str, library: Library) -> None:
    where = context(cluster=parse_cluster(gpus, default_catalog(), fabric=None))
    found = engine_context(where, find_engine(engine), where.job, read_tokens=1024)
    assert library_of(found.implementation) == library


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("gpus", ["1xA100", "1xL40S", "1xH100", "1xB200"])
def test_long_prompts_take_no_more_of_a_device_than_fused_attention_reaches(engine: str, gpus: str) -> None:
    """Of 100,000 tokens most is attention, timed at 0.4 to 0.7 of the peak: FlashAttention-3 on Hopper takes most."""
    asked = {"prompt": 100_000, "generate": 16, "concurrency": 1, "engine": engine}
    found = serving("llama-3.1-8b", gpus, **asked)
    attention = 32 * 2 * 32 * 128 * 100_000.0**2  # layers, two products of causal halves, heads, their width
    linear = 2 * 7e9 * 100_000
    peak = found.cluster.device.peak_flops_per_s["bf16"]
    assert 0.3 < (attention + linear) / found.plans[0].ttft_s / peak < 0.72
