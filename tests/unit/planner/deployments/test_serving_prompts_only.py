"""``planner.serving`` of requests that end with their prompt: 1 token generated, or 0."""

import io
import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import planner
from planner.deployments.results import ServingPlan, ServingResult
from planner.document_serving import serving_document, serving_schema
from planner.render.serving import render_serving
from profiles.errors import SpecError
from tests.command import command_line
from tests.unit.planner.deployments.test_serving_launch import run, value

DOCUMENTS: dict[str, Any] = {"prompt": 512, "generate": 0}


def asked(model: str = "qwen3-8b", gpus: str = "8xH100-SXM-80GB", **more: Any) -> ServingResult:
    return planner.serving(model, gpus, **{**DOCUMENTS, **more})


def best(**more: Any) -> ServingPlan:
    plan = asked(**more).best
    assert plan is not None
    return plan


def shown(result: ServingResult) -> str:
    console = Console(file=io.StringIO(), width=130)
    render_serving(result, console, quiet=True)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_twice_the_replicas_answer_twice_as_many() -> None:
    for more in ({}, {"concurrency": 64}, {"ttft_s": 0.1}):
        one, two = (best(pins={"tp": 1, "pp": 1, "dp": count}, **more) for count in (2, 4))
        assert two.requests_per_s == pytest.approx(2 * one.requests_per_s)
        assert two.prompt_tokens_per_s == pytest.approx(512 * two.requests_per_s)
        assert two.ttft_s == pytest.approx(one.ttft_s)


def test_how_many_gpus_for_so_many_embeddings_a_second() -> None:
    """The fewest that are not busy all the time, and no fewer: one less answers less than is asked."""
    result = asked(gpus="8x8xH100-SXM-80GB", rate_per_s=2000.0, ttft_s=0.5)
    plan = result.best
    assert plan is not None
    assert plan.requests_per_s == 2000
    assert plan.ttft_s < 0.5
    fewer = asked(gpus=f"{plan.num_devices - 1}xH100-SXM-80GB" if plan.num_devices <= 8 else "2x8xH100-SXM-80GB")
    assert fewer.best is not None
    assert fewer.best.num_devices < plan.num_devices
    assert fewer.best.requests_per_s < 2000


def test_the_highest_rate_keeps_the_bound_and_is_answered_when_asked_for() -> None:
    result = asked(ttft_s=0.05, pins={"tp": 1, "pp": 1})
    plan = result.best
    assert plan is not None
    assert plan.ttft_s == pytest.approx(0.05, rel=1e-6)
    again = best(rate_per_s=plan.requests_per_s, pins={"tp": 1, "pp": 1, "dp": plan.replicas})
    assert again.ttft_s == pytest.approx(plan.ttft_s)
    tail = asked(ttft_s=0.05, percentile=99, pins={"tp": 1, "pp": 1}).best
    assert tail is not None
    assert tail.ttft_percentiles_s is not None
    assert tail.ttft_percentiles_s["p99"] <= 0.05 * (1 + 1e-6)
    assert tail.requests_per_s < plan.requests_per_s


@given(st.floats(1.0, 500.0), st.floats(1.05, 1.5), st.integers(32, 4096))
@settings(max_examples=8, deadline=None)
def test_latency_rises_with_rate_and_with_length(rate: float, more: float, prompt: int) -> None:
    pins = {"tp": 1, "pp": 1, "dp": 8}
    found = [
        asked(prompt=length, rate_per_s=each, pins=pins).best
        for length, each in ((prompt, rate), (prompt, rate * more), (2 * prompt, rate))
    ]
    base = found[0]
    for other in found[1:]:
        assert base is None or other is None or other.ttft_s >= base.ttft_s * (1 - 1e-9)


def test_memory_holds_no_head_and_no_logits() -> None:
    """An untied head of 152k words: 1.2 GB of weights; and nothing is set aside to draw tokens."""
    pooled, drawn = (best(generate=count, pins={"tp": 1, "pp": 1}).memory for count in (0, 1))
    assert drawn.weights - pooled.weights == pytest.approx(2 * 4096 * (151_936 - 1))
    assert pooled.activations < drawn.activations
    assert pooled.cache > drawn.cache


def test_some_engines_keep_an_output_layer_that_nobody_asks() -> None:
    """Its weights lie there as for generation where the model has its own, and not where they are the embedding's."""
    for model, own in (("qwen3-8b", 151_936 * 4096), ("qwen3-0.6b", 0)):
        for engine, kept in (("sglang", own), ("vllm", 0)):
            held = {
                count: best(model=model, gpus="H100-SXM-80GB", engine=engine, generate=count).memory.weights
                for count in (0, 1)
            }
            assert held[1] - held[0] == pytest.approx(2 * (own - kept), abs=2 * 4096)


def test_the_cache_holds_what_is_read_and_not_what_waits() -> None:
    """Sixteen prompts of a step at most: as fast with room for forty, and with so many more waiting."""
    roomy = best(pins={"tp": 1, "pp": 1}, concurrency=5000)
    tight = best(pins={"tp": 1, "pp": 1}, concurrency=5000, max_num_seqs=40)
    assert roomy.most_requests < 5000
    assert tight.requests_per_s == pytest.approx(roomy.requests_per_s)
    few = best(pins={"tp": 1, "pp": 1}, concurrency=5000, max_num_seqs=2)
    assert few.requests_per_s < roomy.requests_per_s


def test_runs_take_as_long_as_their_prompts() -> None:
    plan = best(requests=100_000, concurrency=64)
    steady = best(concurrency=64)
    assert plan.duration_s == pytest.approx(100_000 / steady.requests_per_s, rel=0.01)
    assert plan.ttft_percentiles_s is None
    burst = best(requests=8 * 16, pins={"tp": 1, "pp": 1, "dp": 8})
    assert burst.duration_s == pytest.approx(burst.ttft_s)  # one step each


@pytest.mark.parametrize("more", [{}, {"rate_per_s": 50.0}, {"concurrency": 8}, {"requests": 100}, {"ttft_s": 1e-3}])
@pytest.mark.parametrize("generate", [0, 1])
def test_documents_say_null_where_no_token_follows(generate: int, more: dict[str, Any]) -> None:
    result = asked(generate=generate, price_per_device_hour_usd=3.6, **more)
    document = json.loads(json.dumps(serving_document(result)))
    jsonschema_rs.validate(serving_schema(), document)
    assert document["request"]["output_tokens"] == generate
    plan = document["plans"][0] if document["plans"] else document["infeasible"]["nearest"]
    for name in ("tpot_s", "tpot_low_s", "tpot_high_s", "output_tokens_per_s_per_user", "output_tokens_low_per_s"):
        assert plan[name] is None
    assert plan["usd_per_million_output_tokens"] is None
    assert plan["usd_per_million_prompt_tokens"] == pytest.approx(1e3 / plan["prompt_tokens_per_s_per_device"])
    assert plan["latency_s"] == plan["ttft_s"]
    assert plan["output_tokens_per_s"] == pytest.approx(generate * plan["requests_per_s"])


def test_documents_of_generation_have_dollars_for_its_tokens_alone() -> None:
    result = planner.serving("qwen3-8b", "1xH100-SXM-80GB", prompt=512, generate=64, price_per_device_hour_usd=2)
    plan = serving_document(result)["plans"][0]
    assert plan["usd_per_million_prompt_tokens"] is None
    assert plan["tpot_s"] > 0
    assert plan["prompt_tokens_per_s"] == pytest.approx(512 * plan["requests_per_s"])


def test_tables_say_which_parameters_are_counted() -> None:
    console = Console(file=io.StringIO(), width=100)
    render_serving(asked(), console)
    assert "parameters, without an output layer over words)" in console.file.getvalue()


def test_tables_have_prompts_and_no_time_per_token() -> None:
    text = shown(asked(price_per_device_hour_usd=2.5))
    assert "none generated" in text
    assert "prompts/s" in text
    assert "prompt tok/s/gpu" in text
    assert "$/1M prompt tokens" in text
    for word in ("TPOT", "TTFT", "tok/s/user", "nan", "req/s"):
        assert word not in text
    drawn = shown(asked(generate=1))
    assert "TTFT" in drawn
    assert "TPOT" not in drawn


def test_commands_say_that_models_pool() -> None:
    result, drawn = asked(), asked(generate=1)
    arguments = run(result)
    assert arguments[:2] == ["serve", "some model"]
    assert value(arguments, "--runner") == "pooling"
    assert int(value(arguments, "--max-num-seqs")) == result.plans[0].most_requests
    assert value(arguments, "--max-model-len") == "512"
    assert "--runner" not in run(drawn)
    assert value(run(drawn), "--max-model-len") == "513"
    assert "--is-embedding" in run(asked(engine="sglang"))
    assert "--is-embedding" not in run(asked(generate=1, engine="sglang"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"generate": 1, "tpot_s": 0.1},
            "tpot_s: bounds tokens after the first, and none is generated with generate 1. Hint: bound ttft_s instead.",
        ),
        (
            {"speculate": "eagle3", "draft_tokens": 3, "accepted": 1},
            "speculate: drafts tokens after the first, and none is generated with generate 0. Hint: leave it out.",
        ),
        (
            {"disaggregated": True},
            "disaggregated: is about replicas that generate, and none does with generate 0. Hint: leave it out: every "
            "replica only reads prompts.",
        ),
        (
            {"engine": "tensorrt-llm"},
            "engine: tensorrt-llm is not priced where what answers a prompt is no token (generate 0). Hint: vllm or "
            "sglang, or generate 1: a prompt and one token.",
        ),
        (
            {"generate": "cdf:0.2=1,1=2"},
            "generate: must be at least 2 tokens on average, or 1 or 0 of every request; got 1.3 on average. Hint: "
            "generate 1, or 2.",
        ),
        ({"generate": -1}, "generate: must be between 0 and 16777216 tokens; got -1. Hint: 0."),
        ({"generate": "-1"}, "generate: must be between 0 and 16777216 tokens; got -1. Hint: 0."),
    ],
)
def test_what_means_nothing_is_refused_with_what_does(more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        asked(**more)
    assert f"{caught.value}." == message


def test_stages_are_of_engines_that_hand_on_what_is_pooled() -> None:
    assert {plan.pipeline_parallel for plan in asked(engine="sglang").plans} == {1}
    assert max(plan.pipeline_parallel for plan in asked().plans) > 1
    assert max(plan.pipeline_parallel for plan in asked(engine="sglang", generate=1).plans) > 1
    with pytest.raises(SpecError, match=r"sglang answers with no token \(generate 0\) on one pipeline stage") as caught:
        asked(engine="sglang", pins={"pp": 2})
    assert "pp 1" in caught.value.hint


def test_too_many_are_told_with_what_would_do() -> None:
    result = asked(gpus="1xH100-SXM-80GB", rate_per_s=500.0)
    shortage = result.shortage
    assert shortage is not None
    plain = Console(file=io.StringIO(), width=130, markup=False)
    render_serving(result, plain, quiet=True)
    assert f"\nNo deployment serves that: {shortage.message}"[:100] in plain.file.getvalue()  # type: ignore[attr-defined]
    assert shortage.reason == "too_many"
    rate = float(shortage.remedy.split(",")[0].removeprefix("rate_per_s "))
    assert asked(gpus="1xH100-SXM-80GB", rate_per_s=rate).best is not None


def test_the_command_line_takes_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_line(capsys, monkeypatch)
    words = ("serving", "--model", "qwen3-0.6b", "--gpus", "1xL4", "--prompt", "256", "--generate", "0", "--json")
    code, printed, _ = command(*words)
    assert code == 0
    document = json.loads(printed)
    assert document["request"]["output_tokens"] == 0
    assert document["plans"][0]["tpot_s"] is None


# What was published of requests that end with their prompt, looked up before any was priced, with the relative error of
# prices of now; docs/serving.md tells the first too.
H20, LAYOUT = "1xH20-SXM-96GB", {"tp": 8, "pp": 1, "ep": 1}
PUBLISHED = [
    # novitalabs/pegaflow, docs/pd-bench-results.md: vLLM 0.19.1, one request at a time, output_len 1.
    *(
        ("qwen3-8b", H20, {"prompt": prompt, "concurrency": 1}, seconds, error)
        for prompt, seconds, error in (
            *((512, 0.0661, -0.14), (1024, 0.1203, -0.07), (2048, 0.2363, -0.06)),
            *((4096, 0.4812, -0.05), (8192, 1.0196, -0.03), (16_000, 2.2512, -0.02)),
        )
    ),
    (
        "kimi-k2.5",
        "8xH20-SXM-96GB",
        {
            "prompt": 16_384,
            "concurrency": 1,
            "max_num_batched_tokens": 32_768,
            "memory_utilization": 0.9,
            "pins": LAYOUT,
        },
        2.33477,
        0.02,
    ),
    # SGLang issue 2219, bench_latency without a server.
    ("qwen2-7b", "1xA30", {"prompt": 200, "concurrency": 1, "engine": "sglang-2025"}, 0.03508, 0.06),
    # SGLang pull request 14764, bench_one_batch of DeepSeek-V3.1, without a server.
    (
        "deepseek-v3",
        "8xH200-SXM-141GB",
        {"prompt": 512, "requests": 16, "engine": "sglang-2025", "pins": LAYOUT | {"dp": 1}},
        0.28894,
        0.82,
    ),
]


def test_published_scores_a_second() -> None:
    """SGLang pull request 9748: 99 % within half a second at 1,000 prompts of 300 tokens a second."""
    asked_for = {"prompt": 300, "ttft_s": 0.5, "percentile": 99, "engine": "sglang-2025"}
    plan = best(model="qwen3-0.6b", gpus="1xH100-SXM-80GB", generate=1, **asked_for)
    assert plan.requests_per_s == pytest.approx(1290, rel=0.02)


@pytest.mark.parametrize(("model", "gpus", "more", "seconds", "error"), PUBLISHED)
def test_published_first_tokens(model: str, gpus: str, more: dict[str, Any], seconds: float, error: float) -> None:
    plan = best(model=model, gpus=gpus, generate=1, **more)
    assert plan.ttft_s / seconds - 1 == pytest.approx(error, abs=0.03)
