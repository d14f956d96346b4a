"""What devices have kernels for, in engines of today."""

import pytest

from planner.deployments.plans import serving
from profiles.errors import SpecError


@pytest.mark.parametrize(
    ("model", "gpus", "read"),
    [
        ("deepseek-v2-lite", "1xA100-80GB", False),
        ("deepseek-v2-lite", "1xA10G", False),
        ("deepseek-v2-lite", "1xL40S", True),
        ("deepseek-v2-lite", "1xH100", True),
        ("llama-3.1-8b", "1xA100-80GB", True),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_latent_keys_of_8_bits_have_no_kernel_on_ampere(model: str, gpus: str, engine: str, read: bool) -> None:
    asked = {"prompt": 256, "generate": 64, "concurrency": 1, "kv_cache_dtype": "fp8", "engine": engine}
    if read:
        assert serving(model, gpus, **asked).kv_cache_dtype == "fp8"
        return
    with pytest.raises(SpecError, match="latent"):
        serving(model, gpus, **asked)


def test_releases_that_left_a_device_out_are_told() -> None:
    """CUDA 13, which vLLM has been built with since 0.20, compiles nothing for a V100."""
    old, newer = (serving("llama-2-7b", gpus, prompt=256, generate=64, concurrency=1) for gpus in ("1xV100", "1xT4"))
    told = [[note.message for note in each.assumptions if note.field == "engine"] for each in (old, newer)]
    assert told == [["vllm before 0.20, which no longer runs on V100-SXM-32GB"], []]
