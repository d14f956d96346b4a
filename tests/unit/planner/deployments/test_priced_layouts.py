"""Layouts are priced once for all loads."""

from typing import Any

from planner.deployments import layouts
from planner.deployments.plans import serving
from planner.deployments.results import ServingPlan


def test_layouts_are_priced_once_for_all_loads_and_bounds_and_anew_for_anything_else() -> None:
    asked: dict[str, Any] = {"prompt": 512, "generate": 128}
    loads: list[dict[str, Any]] = [
        {"rate_per_s": 2.0}, {"concurrency": 16}, {"requests": 64}, {"rate_per_s": 2.0, "ttft_s": 2.0},
        {"rate_per_s": 2.0, "ttft_s": 2.0, "percentile": 99}, {},
    ]  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"prompt": 1024}, {"generate": 256}, {"pins": {"tp": 1}}, {"kv_cache_dtype": "fp8"}, {"weights": "fp8"},
        {"engine": "sglang"}, {"max_model_len": 4096}, {"prefix": 256},
    ]  # fmt: skip

    def plans(**more: Any) -> tuple[ServingPlan, ...]:
        return serving("llama-3.1-8b", "2xH100", **asked | more).plans

    layouts._priced.cache_clear()
    together = [plans(**load) for load in loads]
    assert layouts._priced.cache_info().misses == 1
    for load, found in zip(loads, together, strict=True):
        layouts._priced.cache_clear()
        assert plans(**load) == found
    for place, change in enumerate(changes, start=2):
        assert plans(**loads[-1] | change)
        assert layouts._priced.cache_info().misses == place
