"""The published measurements of serving: that they are complete, cited, sane and agree with themselves. No prices."""

from collections import Counter
from dataclasses import replace
from math import ceil
from urllib.parse import urlsplit

import pytest

from planner.validate.dataflow.blind import ADDRESSES
from planner.validate.dataflow.setups import model_named
from planner.validate.serving.rows import LATER, PUBLISHED, QUANTISED, Lengths, Load, ServingRow, serving_rows
from profiles.catalog import default_catalog
from profiles.parameters import active_parameters, total_parameters

ROWS = serving_rows()
LATENCIES = ("ttft_mean_s", "ttft_p50_s", "tpot_mean_s", "tpot_p50_s", "itl_mean_s", "itl_p50_s", "e2e_mean_s")
RATES = ("output_tokens_per_s", "requests_per_s", "total_tokens_per_s")
BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8-block": 1.0, "mxfp4": 0.53, "int4": 0.52, "nvfp4": 0.5625}
_ROUNDED = 0.005  # requests a second are printed with two decimals
PEAKS = {"fp8": "fp8", "fp8-block": "fp8", "nvfp4": "fp4", "mxfp4": "fp8"}  # the most that products may be in


def answer_s(row: ServingRow) -> float | None:
    """Seconds of a whole answer, as the row's own latencies have it; in a burst means per token favour short ones."""
    per_token = row.tpot_mean_s or row.tpot_p50_s
    burst = row.lengths is Lengths.SPREAD and (row.concurrency or 1) >= 100
    if per_token is None or (burst and row.e2e_mean_s):
        return row.e2e_mean_s
    return (row.ttft_mean_s or row.ttft_p50_s or 0.0) + per_token * (row.output_tokens - 1)


def contradictions(row: ServingRow) -> list[str]:
    """Which published figures of a row do not fit each other."""
    found = []
    out, requests, total = (getattr(row, name) for name in RATES)
    if out and requests and out / requests != pytest.approx(row.output_tokens, rel=0.03 + _ROUNDED / requests):
        found.append("tokens of an answer")
    if out and total and total / out - 1 != pytest.approx(row.prompt_tokens / row.output_tokens, rel=0.03):
        found.append("tokens of a prompt")
    answer = answer_s(row)
    if row.load in (Load.CLOSED_LOOP, Load.STATIC_BATCH) and out and answer and row.concurrency:
        at_once = out / row.output_tokens * answer  # Little's law
        waves = (row.num_requests or row.concurrency) / row.concurrency
        if not 0.82 * waves / ceil(waves) <= at_once / row.concurrency <= 1.1:  # the last of them may be small
            found.append("requests at a time")
    if answer and row.e2e_mean_s and row.tpot_mean_s and answer != pytest.approx(row.e2e_mean_s, rel=0.1):
        found.append("latency")
    return found


def test_there_are_enough_of_many_kinds() -> None:
    assert len(ROWS) >= 250
    publishers = Counter(row.publisher for row in ROWS)
    assert len(publishers) >= 15
    assert max(publishers.values()) <= 0.25 * len(ROWS)
    assert len({row.gpu for row in ROWS}) >= 12
    assert {"vllm", "sglang", "tensorrt-llm", "tgi"} <= {row.engine for row in ROWS}
    assert {row.load for row in ROWS} == set(Load)
    experts = {row.model for row in ROWS if model_named(row.model).moe is not None}
    assert len(experts) >= 5
    assert len({row.model for row in ROWS} - experts) >= 15


def test_models_and_gpus_are_catalogued() -> None:
    catalog = default_catalog()
    for name in {row.model for row in ROWS}:
        assert model_named(name).name == name
    assert {row.gpu for row in ROWS} <= set(catalog.devices)


def test_rows_are_unlike_and_cited() -> None:
    assert len({(row.source, row.locator) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        address = urlsplit(row.address)
        assert address.scheme == "https"
        assert "." in address.netloc
        assert address.path.strip("/")
        assert all((row.source, row.publisher, row.locator, row.engine, row.engine_version, row.notes))
    assert len({(row.source, row.publisher) for row in ROWS}) == len({row.source for row in ROWS})


def test_none_is_judged_already() -> None:
    judged = {page.split("/blob/")[1].split("/", 1)[1] for pages in ADDRESSES.values() for page in pages}
    versions = {row.engine_version for row in ROWS if row.address.endswith("performance/perf-overview.md")}
    assert versions == {"1.0"}  # the same page of 0.17 is judged
    pages = {row.address.partition("/blob/")[2].partition("/")[2] for row in ROWS}
    again = {"docs/source/performance/perf-overview.md", "docs/source/getting_started/speed_benchmark.md"}
    assert pages & judged == again  # the latter of Qwen2.5 is judged, and its successor's of Qwen3 is here
    qwen = {row.model.split("-")[0] for row in ROWS if row.address.endswith("speed_benchmark.md")}
    assert qwen == {"qwen3"}


@pytest.mark.parametrize("name", LATENCIES)
def test_seconds_are_seconds(name: str) -> None:
    values = [value for row in ROWS if (value := getattr(row, name)) is not None]
    assert values
    least, most = (1e-3, 2.0) if name.startswith(("tpot", "itl")) else (5e-3, 600.0)
    assert min(values) >= least
    assert max(values) <= most


def test_every_row_measures_something_of_a_load_that_is_said() -> None:
    for row in ROWS:
        assert any(getattr(row, name) is not None for name in (*LATENCIES, "e2e_p50_s", *RATES))
        needed = {
            Load.CLOSED_LOOP: row.concurrency,
            Load.STATIC_BATCH: row.concurrency,
            Load.REQUEST_RATE: row.request_rate_per_s,
            Load.ALL_AT_ONCE: row.num_requests,
        }
        assert needed[row.load]
        assert (row.request_rate_per_s is not None) == (row.load is Load.REQUEST_RATE)
        assert row.prompt_tokens >= 1
        assert row.output_tokens >= 1
        if row.lengths is Lengths.FIXED:
            assert row.prompt_tokens == int(row.prompt_tokens)
            assert row.output_tokens == int(row.output_tokens)


def test_layouts_fill_the_gpus_and_weights_fit_them() -> None:
    catalog = default_catalog()
    for row in ROWS:
        assert row.tensor * row.pipeline * row.data == row.gpus, row
        assert row.gpus % row.expert == 0
        weights = total_parameters(model_named(row.model)) * BYTES[row.weights_dtype]
        assert weights < row.gpus * catalog.devices[row.gpu].memory_bytes, row
        assert row.kv_dtype in ("", "bf16", "fp16", "fp8")


def test_weights_are_read_no_faster_than_memory_goes() -> None:
    """A token of a dense model needs all weights: no row may be quicker than its GPUs' memory allows."""
    catalog = default_catalog()
    for row in ROWS:
        model, per_token = model_named(row.model), row.tpot_mean_s or row.tpot_p50_s or row.itl_p50_s
        if per_token is None or model.moe is not None:
            continue
        bandwidth = row.tensor * catalog.devices[row.gpu].memory_bandwidth_bytes_per_s
        assert per_token > 0.9 * total_parameters(model) * BYTES[row.weights_dtype] / bandwidth, row


def test_tokens_are_no_faster_than_gpus_multiply() -> None:
    """A prompt that beats its GPUs' peak was cached, and so were those of a run that keeps 70 % of it busy."""
    catalog = default_catalog()
    for row in ROWS:
        device = catalog.devices[row.gpu]
        peaks = device.peak_flops_per_s
        peak = row.gpus * peaks.get(PEAKS.get(row.weights_dtype, "bf16"), peaks["bf16"])
        token_s = 2.0 * active_parameters(model_named(row.model)) / peak
        together = (row.num_requests or 1) if row.load is Load.STATIC_BATCH else 1
        first = row.ttft_mean_s or row.ttft_p50_s
        assert first is None or first > token_s * row.prompt_tokens * together, row
        output = row.output_tokens_per_s or 0.0
        total = row.total_tokens_per_s or output * (1 + row.prompt_tokens / row.output_tokens)
        assert total * token_s < 0.7, row


def test_figures_of_a_row_agree() -> None:
    assert {(row.source, row.locator): found for row in ROWS if (found := contradictions(row))} == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tpot_mean_s", "requests at a time"),
        ("requests_per_s", "tokens of an answer"),
        ("total_tokens_per_s", "tokens of a prompt"),
        ("output_tokens_per_s", "requests at a time"),
        ("e2e_mean_s", "latency"),
    ],
)
def test_a_lost_factor_of_two_would_show(name: str, says: str) -> None:
    row = next(row for row in ROWS if row.publisher == "SemiAnalysisAI" and row.e2e_mean_s)
    row = replace(row, requests_per_s=row.output_tokens_per_s / row.output_tokens)
    assert contradictions(row) == []
    for factor in (0.5, 2.0):
        assert says in contradictions(replace(row, **{name: factor * getattr(row, name)}))


def test_quantised_checkpoints_are_a_table_of_their_own() -> None:
    assert {row.table for row in ROWS} == {PUBLISHED, QUANTISED, LATER}
    formats = Counter(row.weights_dtype for row in ROWS if row.table == QUANTISED)
    assert formats == {"int4": 61, "fp8-block": 18, "nvfp4": 17, "mxfp4": 14, "bf16": 27, "fp16": 3}


def test_figures_are_those_published() -> None:
    by_place = {(row.source, row.locator): row for row in ROWS}
    row = by_place["NIM for LLMs, benchmarking guide 1.0", "Llama-3.3-70b, 1.8.0, 5000/500, concurrency 25"]
    assert (row.ttft_mean_s, row.tpot_mean_s, row.output_tokens_per_s) == (0.68869, 0.03875, 623.4)
    assert (row.gpu, row.gpus, row.tensor, row.weights_dtype) == ("H100-SXM-80GB", 2, 2, "fp8")
    row = by_place["TensorRT-LLM performance overview, late 2025", "qwen3-235b-a22b, H200 DEP4, 1024/1024"]
    assert row.output_tokens_per_s == 4 * 3268
    assert (row.tensor, row.data, row.expert) == (1, 4, 4)
