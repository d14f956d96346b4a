"""E17: published generation that was priced blindly, and never fitted."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from planner.validate.dataflow.blind import (
    ADDRESSES,
    SOURCES,
    GenerationRun,
    blind_generation,
    generation_runs,
    price_of,
    prices_of,
    run_prices,
)

pytestmark = pytest.mark.accuracy
RUN = GenerationRun(
    source="made-up",
    engine="sglang",
    model="llama-3.1-8b",
    device="A100-SXM-80GB",
    tensor=1,
    sequences=16,
    prompt_tokens=128,
    output_tokens=512,
    spread=False,
    max_sequences=512,
    prefill_tokens=8192,
    memory_share=0.9,
    time_s=10.0,
    blind_error=0.0,
    blind_inside=True,
)


def test_every_figure_has_a_source_and_a_first_error() -> None:
    runs = generation_runs()
    counted = Counter(run.source for run in runs)
    assert set(counted) == set(SOURCES) == set(ADDRESSES)
    pinned = re.compile(r"https://github.com/[^/]+/[^/]+/blob/[0-9a-f]{12}/docs/\S+$")
    assert all(pinned.match(address) for pages in ADDRESSES.values() for address in pages)
    assert len(runs) == 77
    assert all(run.time_s > 0 and run.blind_error != 0.0 for run in runs)
    first = np.array([run.blind_error for run in runs])
    assert np.abs(first).mean() == pytest.approx(0.312, abs=1e-3)


def test_published_rates_are_turned_into_seconds() -> None:
    runs = generation_runs()
    # 6,627.27 tokens per second of 30,000 answers of 128 tokens each.
    assert runs[0].time_s == pytest.approx(30000 * 128 / 6627.27)
    # Qwen3's speed counts the prompt's tokens too; those of answers alone would make long prompts 16 times as slow.
    long = [run for run in runs if run.source.startswith("qwen3") and run.prompt_tokens > 1000]
    short = {run.model: run for run in runs if run.source.startswith("qwen3") and run.prompt_tokens == 1}
    assert all(1 < run.time_s / short[run.model].time_s < 2.5 for run in long)


@pytest.mark.parametrize(
    ("source", "largest_mean", "largest_bias"),
    [
        ("trtllm-0.17", 0.15, 0.12),
        ("trtllm-0.6", 0.17, 0.17),  # batches that just fitted: of what the device reports one sequence less does
        ("lmdeploy-0.1", 0.15, 0.12),
        ("qwen2.5-vllm-0.6.3", 0.1, 0.1),
        ("qwen3-sglang-0.4.6", 0.3, 0.3),
        ("gpustack-vllm-0.11", 0.4, 0.4),
        ("gpustack-sglang-0.5.5", 0.3, 0.2),
    ],
)
def test_no_source_is_off_by_a_factor_of_two(source: str, largest_mean: float, largest_bias: float) -> None:
    errors = np.array([price.error for price in prices_of(source, run_prices())])
    assert np.abs(errors).mean() < largest_mean
    assert abs(errors.mean()) < largest_bias


def test_the_page_shows_first_errors_beside_those_of_now() -> None:
    found = blind_generation()
    assert len(found.rows) == 77
    assert found.header[-2:] == ("error", "first")
    assert "at first mean error 31% (bias +22%), worst +202%, 51 of 77 within the interval" in found.findings[0]


def test_lengths_that_spread_take_longer_than_their_mean() -> None:
    fixed, spread = price_of(RUN), price_of(replace(RUN, spread=True))
    assert 1.5 < spread.time_s / fixed.time_s < 5
    assert fixed.error == pytest.approx(fixed.time_s / 10.0 - 1)
    assert fixed.low_s < fixed.time_s < fixed.high_s


def test_what_finds_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        price_of(replace(RUN, model="llama-3.1-70b"))
