"""Published measurements of serving against prices: first ones stay, rows are read as settled, the page is current."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.serving.first import key_of
from planner.validate.serving.page import first_prices, serving_page
from planner.validate.serving.prices import ServingPrice, engine_of, left_out, measured_figures, serving_prices
from planner.validate.serving.rows import PUBLISHED, Load, serving_rows
from tests.pages import assert_same_page
from tests.places import ROOT

ROWS = serving_rows()
PAGE = ROOT / "docs" / "serving-runs.md"


@pytest.mark.long
def test_the_page_is_what_its_command_writes() -> None:
    assert_same_page(PAGE.read_text(encoding="utf-8"), serving_page())


# More requests a second, or at once, than its first price said were possible, so that it had no times.
BEARABLE_SINCE = {
    ("Systalyze: vLLM serving on G7e and H200, stock BF16 arm", "gemma-4-26b-a4b, G7e, 85 % of capacity", "tpot"),
    ("SGLang PR 31044: MiniMax-M2.7 on MI300X", "TP8/EP8, 1024 at once", "ttft"),
}


@pytest.mark.long
def test_every_price_has_a_first_one() -> None:
    first = first_prices()
    assert {key_of(price) for price in serving_prices()} == set(first) | BEARABLE_SINCE
    assert BEARABLE_SINCE.isdisjoint(first)
    assert all(price.low < price.predicted < price.high for price in first.values())


@pytest.mark.long
def test_first_prices_were_this_good() -> None:
    """Blind errors are history: these are the figures that the documentation quotes."""
    first = [price for price in first_prices().values() if price.row.table == PUBLISHED]
    means = {}
    for figure in ("tpot", "ttft", "latency", "tokens"):
        groups: dict[str, list[float]] = {}
        for price in first:
            if price.figure == figure and price.row.weights_dtype in ("bf16", "fp16"):
                groups.setdefault(price.row.publisher, []).append(abs(price.error))
        means[figure] = sum(sum(group) / len(group) for group in groups.values()) / len(groups)
    assert means == pytest.approx({"tpot": 0.218, "ttft": 0.418, "latency": 0.375, "tokens": 0.249}, abs=1e-3)


@pytest.mark.long
def test_fewer_bits_are_as_much_faster_as_measured() -> None:
    """Marlin's products under vLLM, beside 16 bits on the same GPU under the same load: blind, and now."""
    first, now = first_prices(), {key_of(price): price for price in serving_prices()}
    sources = ("sakogan", "FrankXu0908", "RedHatAI", "bereketlemma")
    rows = {key: price for key, price in first.items() if price.row.publisher in sources}
    ratios = []
    for key, price in rows.items():
        row, alike = price.row, ("source", "model", "gpus", "gpu", "prompt_tokens", "output_tokens", "concurrency")
        for other, plain in rows.items():
            same = all(getattr(row, name) == getattr(plain.row, name) for name in alike) and key[2] == other[2]
            if same and row.weights_dtype == "int4" and plain.row.weights_dtype in ("bf16", "fp16"):
                measured = plain.measured / price.measured
                ratios.append([each[other].predicted / each[key].predicted / measured for each in (first, now)])
    blind, mended = np.abs(np.log(np.array(ratios))).T
    assert len(ratios) == 12
    assert blind.mean() == pytest.approx(0.103, abs=2e-3)
    assert mended.mean() < 0.07


@pytest.mark.long
def test_prices_of_now_are_no_worse() -> None:
    first, now = first_prices(), {key_of(price): price for price in serving_prices()}
    for figure, most in (("tpot", 0.225), ("latency", 0.35), ("tokens", 0.29), ("ttft", 0.43)):
        groups: dict[str, list[float]] = {}
        for key in first:
            row = now[key].row
            if key[2] == figure and row.weights_dtype in ("bf16", "fp16") and row.table == PUBLISHED:
                groups.setdefault(now[key].row.publisher, []).append(abs(now[key].error))
        assert sum(sum(group) / len(group) for group in groups.values()) / len(groups) < most


def test_errors_are_relative_to_the_measurement() -> None:
    price = ServingPrice(row=ROWS[0], figure="tpot", measured=0.02, predicted=0.03, low=0.015, high=0.04)
    assert price.error == pytest.approx(0.5)
    assert price.inside
    assert not replace(price, low=0.021).inside


@pytest.mark.parametrize(
    ("engine", "version", "name"),
    [
        ("vllm", "0.6.0", "vllm-2024"), ("vllm", "2024", "vllm-2024"), ("vllm", "0.8.5", "vllm"),
        ("vllm", "2025", "vllm"), ("vllm", "0.11.0", "vllm"), ("sglang", "0.3.0", "sglang-2025"),
        ("sglang", "0.5.10.post1", "sglang"), ("tensorrt-llm", "1.0", "tensorrt-llm"), ("tgi", "3", ""),
    ],
)  # fmt: skip
def test_the_engine_is_that_of_its_version(engine: str, version: str, name: str) -> None:
    row = replace(ROWS[0], engine=engine, engine_version=version)
    assert engine_of(row) == name
    assert bool(left_out(row)) == (name == "")


@pytest.mark.long
def test_medians_are_judged_by_medians() -> None:
    """Of answers whose lengths vary, at a rate, where only medians are published; the mean lies above."""
    prices = {key_of(price): price for price in serving_prices()}
    key = next(key for key in prices if key[0].startswith("SGLang 0.3.0") and key[2] == "latency")
    first = first_prices()[key]
    assert first.row.e2e_mean_s is None
    assert prices[key].predicted < 0.85 * first.predicted


@pytest.mark.long
def test_runs_are_priced_with_their_start() -> None:
    """Where the requests of a closed loop are published; not where their number is not."""
    first, now = first_prices(), {key_of(price): price for price in serving_prices()}
    published = {key: price for key, price in first.items() if price.row.table == PUBLISHED}
    loops = [key for key in published if key[2] == "ttft" and first[key].row.load is Load.CLOSED_LOOP]
    later = ("DeepSeek-R1 on 8 H200 and 8 MI300X", "tensorrt-llm")  # had no price before, of any kind
    told = [key for key in loops if (first[key].row.source, first[key].row.engine) != later]
    known = [key for key in told if first[key].row.num_requests and (first[key].row.concurrency or 1) >= 16]
    assert len(known) >= 12
    assert all(now[key].predicted > 1.25 * first[key].predicted for key in known)
    # DeepSeek-R1's weights are read as the blocks they are since.
    others = [key for key in loops if not first[key].row.num_requests and first[key].row.model != "deepseek-v3"]
    assert all(now[key].predicted == pytest.approx(first[key].predicted, rel=0.15) for key in others)


def test_loads_say_what_is_judged() -> None:
    row = replace(
        ROWS[0], ttft_mean_s=None, ttft_p50_s=0.1, tpot_mean_s=0.01, tpot_p50_s=0.02, e2e_mean_s=3.0,
        output_tokens_per_s=None, requests_per_s=2.0, output_tokens=50.0,
    )  # fmt: skip
    everything = {"ttft": 0.1, "tpot": 0.01, "latency": 3.0, "tokens": 100.0}
    assert measured_figures(replace(row, load=Load.CLOSED_LOOP)) == everything
    assert measured_figures(replace(row, load=Load.ALL_AT_ONCE)) == everything
    assert measured_figures(replace(row, load=Load.STATIC_BATCH)) == {"latency": 3.0}
    assert set(measured_figures(replace(row, load=Load.REQUEST_RATE))) == {"ttft", "tpot", "latency"}
