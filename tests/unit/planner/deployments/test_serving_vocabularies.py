"""Vocabularies that engines share out over ranks."""

import pytest

from planner.deployments.plans import serving
from profiles.errors import SpecError


@pytest.mark.parametrize(
    ("model", "gpus", "t", "engine", "loads"),
    [
        # 100,352 tokens are no multiple of 5, 151,936 none of 3.
        ("phi-4", "8xA10G", 5, "vllm", False),
        ("phi-4", "8xA10G", 5, "vllm-2024", False),
        ("phi-4", "8xA10G", 5, "sglang", False),
        ("phi-4", "8xA10G", 5, "tensorrt-llm", True),
        ("phi-4", "8xA10G", 2, "vllm", True),
        ("qwen3-30b-a3b", "72xGB200", 12, "vllm", False),
        ("qwen3-30b-a3b", "72xGB200", 8, "vllm", True),
        # 50,257 are padded to 50,304.
        ("gpt2-xl", "8xA10G", 5, "vllm", False),
        ("gpt2", "8xA10G", 2, "vllm", True),
    ],
)
def test_ranks_share_out_what_the_engine_pads_vocabularies_to(
    model: str, gpus: str, t: int, engine: str, loads: bool
) -> None:
    asked = {"prompt": 256, "generate": 64, "concurrency": 4, "engine": engine, "pins": {"tp": t}}
    if loads:
        assert serving(model, gpus, **asked).plans
        return
    with pytest.raises(SpecError):
        serving(model, gpus, **asked)
