"""What ``planner.serving`` refuses, its document and its command."""

import io
import json
import re
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from rich.console import Console

import planner
from planner.document_serving import serving_document, serving_schema
from planner.render.serving import render_serving
from profiles.errors import SpecError
from tests.command import Command, command_line, instead
from tests.unit.costmodels.serving.test_serving import CHAT, served


def test_few_tokens_are_told_apart() -> None:
    """Two users at 1.9 and 1.1 tokens a second are not alike; 47 is 47."""
    result = planner.serving("deepseek-v3", "2x8xH20", prompt=2048, generate=512, top=3)
    console = Console(file=io.StringIO(), width=120)
    render_serving(result, console, quiet=True)
    table, _, front = console.file.getvalue().partition("Throughput against speed")
    shown = [line.split()[-1] for text in (table, front) for line in text.splitlines() if " 16 " in line[:8]]
    assert re.fullmatch(r"\d\.\d", shown[0])
    assert any(re.fullmatch(r"[3-9]\d", each) for each in shown)
    assert not any(re.fullmatch(r"[3-9]\d\.\d", each) for each in shown)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"prompt": 0}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"generate": -1}, "generate"),
        ({"generate": False}, "generate"),
        ({"generate": "cdf:0.5=1,1=2"}, "generate"),
        ({"generate": 1, "tpot_s": 1.0}, "tpot_s"),
        ({"generate": 1, "speculate": "eagle3"}, "speculate"),
        ({"generate": 0, "disaggregated": True}, "disaggregated"),
        ({"generate": 0, "engine": "tensorrt-llm"}, "engine"),
        ({"generate": 0, "engine": "vllm-0.3"}, "engine"),
        ({"generate": 1, "concurrency": 8, "percentile": 99}, "percentile"),
        ({"generate": "lognormal:mean=3"}, "generate"),
        ({"prefix": 1024}, "prefix"),
        ({"rate_per_s": 1.0, "concurrency": 2}, "rate_per_s"),
        ({"rate_per_s": float("nan")}, "rate_per_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"ttft_s": -1}, "ttft_s"),
        ({"tpot_s": float("inf")}, "tpot_s"),
        ({"requests": 0}, "requests"),
        ({"requests": 2.5}, "requests"),
        ({"requests": 10**9}, "requests"),
        ({"requests": 100, "rate_per_s": 1}, "requests"),
        ({"requests": 100, "percentile": 99}, "percentile"),
        ({"percentile": 99}, "percentile"),
        ({"percentile": 99, "concurrency": 8}, "percentile"),
        ({"percentile": 100, "rate_per_s": 1}, "percentile"),
        ({"percentile": 49, "rate_per_s": 1}, "percentile"),
        ({"percentile": "p99", "rate_per_s": 1}, "percentile"),
        ({"percentile": 99, "rate_per_s": 1, "latency_s": 9}, "latency_s"),
        ({"max_model_len": 1000}, "max_model_len"),
        ({"memory_utilization": 1.5}, "memory_utilization"),
        ({"engine": "trainer"}, "engine"),
        ({"engine": "vlm"}, "engine"),
        ({"pins": {"zero": 1}}, "pins.zero"),
        ({"pins": {"tp": 0}}, "pins.tp"),
        ({"pins": {"tensor_parallel": 0}}, "pins.tensor_parallel"),
        ({"pins": {"tp": 2, "tensor_parallel": 2}}, "pins.tensor_parallel"),
        ({"pins": {"zero_stage": 1}}, "pins.zero_stage"),
        ({"pins": [1]}, "pins"),
        ({"pins": 5}, "pins"),
        ({"pins": {"tp": 3}}, "pins.tp"),
        ({"pins": {"tensor_parallel": 3}}, "pins.tensor_parallel"),
        ({"pins": {"tp": 8, "ep": 2}}, "pins"),
        ({"pins": {"tp": 10**30}}, "pins.tp"),
        ({"engine": None}, "engine"),
        ({"engine": ["vllm"]}, "engine"),
        ({"precision": "fp8"}, "precision"),
        ({"gpus": "1xT4", "precision": "bf16"}, "precision"),
        ({"prompt": None}, "prompt"),
        ({"weights": "int3"}, "weights"),
        ({"weights": 8}, "weights"),
        ({"weights": "mxfp4"}, "weights"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype"),
        ({"gpus": "1xT4", "kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"gpus": "1xV100-SXM-32GB", "kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens"),
        ({"gpus": "1xA100-80GB", "weights": "fp8", "engine": "tensorrt-llm"}, "weights"),
        ({"gpus": "1xMI300X", "weights": "int4"}, "weights"),
        ({"promt": 3}, "promt"),
        ({"eager": 1}, "eager"),
        ({"eager": True, "engine": "tensorrt-llm"}, "eager"),
        ({"eager": True, "engine": "vllm-2024"}, "eager"),
        ({"top": 0}, "top"),
        ({"price_date": "2026-01"}, "price_date"),
        ({"memory_reserve_bytes": 1e12}, "memory_reserve_bytes"),
        ({"price_per_device_hour_usd": -1.0}, "price_per_device_hour_usd"),
        ({"price_per_device_hour_usd": 10**400}, "price_per_device_hour_usd"),
        ({"memory_reserve_bytes": 10**400}, "memory_reserve_bytes"),
        ({"precision": np.array(["bf16", "fp16"])}, "precision"),
        ({"weights": np.array(["fp8", "fp8"])}, "weights"),
        ({"kv_cache_dtype": np.array(["auto", "fp8"])}, "kv_cache_dtype"),
    ],
)
def test_what_is_wrong_is_named(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        served(**asked)
    assert caught.value.field == field


def test_engines_may_be_written_large() -> None:
    assert served(engine=" SGLang").engine == served(engine="sglang").engine


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"weights": "fp8", "kv_cache_dtype": "fp8"},
        {"tpot_s": 0.001},
        {"price_per_device_hour_usd": 2.0, "rate_per_s": 9},
        {"requests": 500, "concurrency": 64},
        {"requests": 50, "ttft_s": 1e-3, "generate": "lognormal:mean=256,sigma=1,max=2048"},
        {"rate_per_s": 9, "ttft_s": 0.2, "percentile": 95, "generate": "lognormal:mean=256,sigma=1,max=2048"},
    ],
)
def test_the_document_keeps_to_its_schema(asked: dict[str, Any]) -> None:
    result = served(**asked)
    document = json.loads(json.dumps(planner.to_document(result)))
    jsonschema_rs.validate(serving_schema(), document)
    assert document == json.loads(json.dumps(serving_document(result)))
    assert document["fits"] == result.fits
    if result.fits:
        first = document["plans"][0]
        assert first["tpot_low_s"] < first["tpot_s"] < first["tpot_high_s"]


COMMAND = ("serving", "--model", "llama-3.1-70b", "--gpus", "8xH100", "--prompt", "1024", "--generate", "256")


@pytest.fixture
def planner_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_line(capsys, monkeypatch, columns=120)


def test_the_command_prints_what_the_library_finds(planner_line: Command) -> None:
    code, out, _ = planner_line(*COMMAND, "--ttft", "500ms", "--tpot", "0.04", "--price-per-gpu-hour", "2.5", "--json")
    assert code == 0
    asked = {"ttft_s": 0.5, "tpot_s": 0.04, "price_per_device_hour_usd": 2.5}
    expected = planner.to_document(planner.serving("llama-3.1-70b", "8xH100", **CHAT, **asked))
    assert json.loads(out) == json.loads(json.dumps(expected))


def test_the_tables_say_what_is_best_and_why_nothing_is(planner_line: Command) -> None:
    code, out, _ = planner_line(*COMMAND, "--tpot", "40ms")
    assert code == 0
    _, out, _ = planner_line(*COMMAND, "--rate", "4", "--ttft", "300ms", "--percentile", "95")
    _, run, _ = planner_line(*COMMAND, "--requests", "500", "--concurrency", "64")
    for words in ("500 requests in all, 64 at once in every replica", "All 500 requests have ended after"):
        assert words in run
    assert "500 requests in all, all sent at once" in planner_line(*COMMAND, "--requests", "500")[1]
    for words in ("time to first token of 95 % up to 300 ms", " p95 ", "TTFT of the first: p50"):
        assert words in out
    code, out, _ = planner_line(*COMMAND, "--tpot", "40ms")
    for words in ("time per output token up to 40 ms", "tok/s/user", "Throughput against speed", "keys and values"):
        assert words in out
    code, out, _ = planner_line(*COMMAND, "--tpot", "1ms")
    assert code == 3
    assert "out of reach: time per output token 1 ms, at best" in out
    remedy = re.search(r"What would do: --tpot (\d+\.?\d*ms)\.", out)
    assert remedy is not None
    assert planner_line(*COMMAND, "--tpot", remedy[1])[0] == 0
    assert "Nearest" in out


@pytest.mark.parametrize(
    "words", [("--ttft", "soon"), ("--ttft", "0ms"), ("--tpot", "-1s"), ("--ttft", "500"), ("--generate", "many")]
)
def test_bad_words_exit_with_2(planner_line: Command, words: tuple[str, str]) -> None:
    code, _, errors = planner_line(COMMAND[0], *instead(COMMAND[1:], words))
    assert code == 2
    assert "Hint" in errors


@pytest.mark.parametrize("columns", [76, 80, 100, 140])
def test_tables_leave_columns_out_rather_than_cut_them(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command_line(capsys, monkeypatch, columns=columns)
    words = ("serving", "--model", "deepseek-v3", "--gpus", "4x8xH200", "--weights", "fp8", "--prompt", "1024")
    code, out, _ = run(*words, "--generate", "512", "--rate", "5", "--disaggregated", "--price-per-gpu-hour", "3")
    assert code == 0
    assert "…" not in out
    titles = next(line for line in out.splitlines() if "TTFT" in line and "gpus" in line).split()
    assert {"gpus", "tp", "ep", "dp-attn", "replicas", "TTFT", "p99", "TPOT"} <= set(titles)
    assert ("latency" in titles) == (columns > 130)


@pytest.mark.parametrize("columns", [40, 60, 80, 110])
def test_no_part_of_a_plan_is_left_out_and_figures_that_are_get_told(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command_line(capsys, monkeypatch, columns=columns)
    words = ("serving", "--model", "qwen3-8b", "--gpus", "8x8xH100-SXM-80GB", "--prompt", "512", "--generate", "0")
    bounds = ("--rate", "2000", "--ttft", "200ms", "--percentile", "99", "--price-per-gpu-hour", "2.5", "--top", "3")
    code, out, _ = run(*words, *bounds, "--quiet")
    assert code == 0
    table, _, rest = out.partition("\n\n")[2].partition("no room at")
    for title in ("gpus", "tp", "pp", "replicas", "at once", "p99"):
        assert f" {title} " in " ".join(table.splitlines()[0].split()) + " "
    for title in ("prompts/s/gpu", "latency"):
        assert (f" {title} " in table) != (title in " ".join(rest.partition("shows")[0].split()))
    told = " ".join(rest.split())
    assert told.startswith(f"{columns} columns for ")
    assert "prompts/s/gpu" in told.partition(": a wider terminal or --json shows them")[0]
