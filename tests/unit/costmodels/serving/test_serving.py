"""``planner.serving``: which deployment is best, what bounds do, why nothing serves, and how it is printed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from planner.deployments.results import ServingPlan, ServingResult
from profiles.engines import find_engine
from profiles.errors import SpecError
from profiles.units import GIB

CHAT: dict[str, Any] = {"prompt": 1024, "generate": 256}


def more(remedy: str, device: str = "H100-SXM-80GB") -> str:
    """The cluster that a remedy names: ``24 of these devices``."""
    return f"{int(remedy.split()[0])}x{device}"


def served(model: str = "llama-3.1-8b", gpus: str = "8xH100-SXM-80GB", **asked: Any) -> ServingResult:
    return planner.serving(model, gpus, **CHAT | asked)


def best(*args: str, **asked: Any) -> ServingPlan:
    return served(*args, **asked).plans[0]


def test_the_first_plan_gives_most_tokens_per_device() -> None:
    result = served("llama-3.1-70b", top=20)
    rates = [plan.output_tokens_per_s for plan in result.plans]
    assert rates == sorted(rates, reverse=True)
    layouts = {(plan.tensor_parallel, plan.pipeline_parallel): plan for plan in result.plans}
    assert layouts.keys() >= {(2, 1), (4, 1), (8, 1), (2, 2), (2, 3)}
    assert all(8 - plan.num_devices < plan.num_devices // plan.replicas for plan in result.plans)
    assert (layouts[2, 3].replicas, layouts[2, 3].num_devices) == (1, 6)
    assert len(result.plans) == result.considered


@given(st.floats(0.01, 0.2), st.floats(0.08, 2.0))
@settings(max_examples=15, deadline=None)
def test_bounds_hold_and_cost_throughput(tpot_s: float, ttft_s: float) -> None:
    free, bound = served("llama-3.1-70b"), served("llama-3.1-70b", tpot_s=tpot_s, ttft_s=ttft_s)
    for plan in (*bound.plans, *bound.frontier):
        assert plan.tpot_s <= tpot_s
        assert plan.ttft_s <= ttft_s
    if bound.fits:
        assert bound.plans[0].tokens_per_s_per_device <= free.plans[0].tokens_per_s_per_device
    else:
        assert bound.shortage is not None
        assert bound.shortage.nearest is not None


def test_percentiles_are_told_of_requests_at_a_rate() -> None:
    plan, loop = best(rate_per_s=20), best(concurrency=32)
    assert plan.ttft_percentiles_s is not None
    assert list(plan.ttft_percentiles_s) == ["p50", "p90", "p99"]
    assert (
        plan.ttft_percentiles_s["p50"] < plan.ttft_s < plan.ttft_percentiles_s["p90"] < plan.ttft_percentiles_s["p99"]
    )
    assert plan.latency_percentiles_s is None  # of equal lengths
    assert (loop.ttft_percentiles_s, loop.latency_percentiles_s) == (None, None)
    varied = best(rate_per_s=10, generate="lognormal:mean=256,sigma=1,max=2048", percentile=97.5)
    assert varied.latency_percentiles_s is not None
    assert list(varied.latency_percentiles_s) == ["p50", "p90", "p97.5", "p99"]
    assert varied.latency_percentiles_s["p50"] < varied.latency_s < varied.latency_percentiles_s["p90"]


@given(st.sampled_from([50, 75, 90, 99, 99.9]), st.floats(0.08, 1.0))
@settings(max_examples=15, deadline=None)
def test_bounds_on_percentiles_hold_and_what_would_do_does(percentile: float, ttft_s: float) -> None:
    asked = {"rate_per_s": 8, "percentile": percentile}
    bound = served("llama-3.1-70b", ttft_s=ttft_s, **asked)
    for plan in (*bound.plans, *bound.frontier):
        assert plan.ttft_percentiles_s is not None
        assert plan.ttft_percentiles_s[f"p{percentile:g}"] <= ttft_s
    if bound.shortage is not None:
        assert f"of {percentile:g} %" in bound.shortage.message
        bounds, *lighter, devices = bound.shortage.remedy.split(", or ")
        name, value = bounds.split()
        assert lighter in ([], ["weights fp8, an 8-bit checkpoint"], ["weights int4, a 4-bit checkpoint (AWQ, GPTQ)"])
        for words in lighter:
            assert served("llama-3.1-70b", weights=words[8:].split(",")[0], ttft_s=ttft_s, **asked).fits
        assert served("llama-3.1-70b", **{name: float(value)}, **asked).fits
        assert served("llama-3.1-70b", more(devices), ttft_s=ttft_s, **asked).fits


def test_percentiles_take_more_devices_than_means() -> None:
    """A replica whose mean is just within the bound misses it with one request of a hundred."""
    asked = {"gpus": "8x8xH100-SXM-80GB", "rate_per_s": 100, "ttft_s": 0.08, "pins": {"tp": 1, "pp": 1}}
    assert best(**asked, percentile=99).replicas > best(**asked).replicas
    assert best(**asked, percentile=50).replicas <= best(**asked).replicas


def test_a_run_is_priced_from_its_first_request_to_its_last_token() -> None:
    steady, run = (best(concurrency=64, requests=count, gpus="1xH100-SXM-80GB") for count in (None, 256))
    assert steady.duration_s is None
    assert run.duration_s == pytest.approx(256 / run.requests_per_s)
    assert run.duration_s > 3.9 * run.latency_s
    assert run.output_tokens_per_s == pytest.approx(256 * 256 / run.duration_s)
    assert run.ttft_s > 2 * steady.ttft_s
    assert (steady.ttft_percentiles_s, run.latency_percentiles_s) == (None, None)
    assert run.ttft_percentiles_s is not None
    assert run.ttft_percentiles_s["p50"] < run.ttft_s < run.ttft_percentiles_s["p90"]  # a quarter are of the burst


def test_replicas_share_the_requests_of_a_run() -> None:
    one = best(gpus="1xH100-SXM-80GB", requests=100)
    four = best(gpus="4xH100-SXM-80GB", requests=400, pins={"tp": 1})
    uneven = best(gpus="4xH100-SXM-80GB", requests=397, pins={"tp": 1})
    assert (four.replicas, four.duration_s) == (4, pytest.approx(one.duration_s))
    assert four.output_tokens_per_s == pytest.approx(4 * one.output_tokens_per_s)
    assert uneven.duration_s == pytest.approx(four.duration_s)
    assert uneven.requests_per_s == pytest.approx(397 / 400 * four.requests_per_s)


def test_requests_of_a_run_that_find_no_place_wait() -> None:
    fits, waits = (best(gpus="1xH100-SXM-80GB", requests=2000, concurrency=count) for count in (300, 2000))
    assert waits.most_requests < 2000
    assert waits.duration_s == pytest.approx(best(gpus="1xH100-SXM-80GB", requests=2000).duration_s)
    assert waits.ttft_s > 5 * fits.ttft_s


def test_equal_lengths_that_start_together_are_all_long_at_once() -> None:
    """Waves are as large as the cache has room for requests of 1,280 tokens, not of all ages."""
    asked = {"gpus": "1xH100-SXM-80GB", "engine": "sglang"}
    wave = best(requests=1, **asked).most_longest - 2  # half a block more of each
    assert wave < 0.95 * best(requests=1, **asked).most_requests
    one, twenty = (best(requests=count * wave, **asked).duration_s or 0 for count in (1, 20))
    assert twenty == pytest.approx(20 * one, rel=0.01)


def test_bounds_hold_for_the_means_of_a_run() -> None:
    bound = served(requests=500, concurrency=64, ttft_s=0.2)
    assert bound.fits
    assert all(plan.ttft_s <= 0.2 for plan in bound.plans)
    shortage = served(requests=500, concurrency=64, ttft_s=0.01).shortage
    assert shortage is not None
    name, value = shortage.remedy.split()
    assert served(requests=500, concurrency=64, **{name: float(value)}).fits


def test_what_would_do_does() -> None:
    shortage = served(tpot_s=0.001).shortage
    assert shortage is not None
    assert shortage.reason == "too_slow"
    name, value = shortage.remedy.split()
    assert served(**{name: float(value)}).fits
    assert not served(**{name: float(value) * 0.98}).fits


def test_a_rate_is_served_by_the_fewest_devices() -> None:
    plan = best(gpus="16x8xH100-SXM-80GB", rate_per_s=200)
    assert plan.requests_per_s == pytest.approx(200)
    one = best(gpus="1xH100-SXM-80GB")  # all that one device gives
    assert plan.num_devices >= 200 * 256 / one.output_tokens_per_s
    assert plan.num_devices < 1.5 * 200 * 256 / one.output_tokens_per_s
    assert best(gpus="16x8xH100-SXM-80GB", rate_per_s=200, tpot_s=0.015).num_devices > plan.num_devices


@pytest.mark.parametrize(("gpus", "rate"), [("512x8xH100", 10_000), ("60x8xH100", 5000), ("16x8xH100", 300)])
def test_one_replica_fewer_does_not_serve_the_rate(gpus: str, rate: float) -> None:
    plan = best(gpus=gpus, rate_per_s=rate, ttft_s=2.0, pins={"tp": 1, "pp": 1})
    fewer = served(gpus=gpus, rate_per_s=rate, ttft_s=2.0, pins={"tp": 1, "pp": 1, "dp": plan.replicas - 1})
    assert not fewer.fits


def test_replicas_that_are_fixed_are_all_there_are() -> None:
    fixed = best(rate_per_s=20, pins={"tp": 1, "dp": 4})
    assert (fixed.replicas, fixed.num_devices) == (4, 4)
    assert fixed.requests_per_s == pytest.approx(20)
    assert best(pins={"tp": 2}).tensor_parallel == best(pins={"tensor_parallel": 2}).tensor_parallel == 2


def test_concurrency_is_that_of_a_replica() -> None:
    plan = best(concurrency=32, pins={"tp": 1})
    assert (plan.replicas, plan.concurrency) == (8, pytest.approx(32))
    assert plan.requests_per_s * plan.latency_s == pytest.approx(8 * 32)
    assert plan.output_tokens_per_s == pytest.approx(256 * plan.requests_per_s)
    assert plan.tokens_per_s_per_device == pytest.approx(plan.output_tokens_per_s / 8)
    shortage = served(concurrency=100_000).shortage
    assert shortage is not None
    assert shortage.remedy == "concurrency 1024, or requests 1000000, a run in which some wait for a place"
    assert served(concurrency=1024).fits
    assert served(concurrency=100_000, requests=1_000_000).fits


def test_memory_adds_up_to_the_device() -> None:
    plan = best(gpus="1xH100-SXM-80GB")
    memory, engine = plan.memory, find_engine("vllm")
    parts = memory.weights + memory.cache + memory.activations + memory.fixed
    assert parts == pytest.approx(engine.memory_utilization * 79.19 * GIB, rel=1e-9)  # as PyTorch prints it
    kept = best(gpus="1xH100-SXM-80GB", memory_reserve_bytes=4e9).memory  # less than the engine leaves anyway
    assert kept.cache == memory.cache
    assert kept.left_to_others == pytest.approx(memory.left_to_others - 4e9)
    assert memory.weights == pytest.approx(2 * 8.03e9, rel=1e-3)
    each = 2 * 8 * 128 * 2 * 32  # bytes per token of Llama-3.1-8B
    assert plan.cache_tokens == pytest.approx(memory.cache / each)
    assert plan.most_longest == plan.cache_tokens // 1280
    assert plan.most_requests > plan.most_longest  # of all ages


@pytest.mark.parametrize(("t", "parts"), [(2, 2), (8, 8)])
def test_caches_are_split_by_heads(t: int, parts: int) -> None:
    one, split = best(pins={"tp": 1}), best(pins={"tp": t})
    assert split.cache_tokens / split.memory.cache == pytest.approx(parts * one.cache_tokens / one.memory.cache)


def test_experts_are_spread_over_the_ranks_of_a_replica_or_split() -> None:
    plans = served("qwen3-30b-a3b", engine="vllm-2024").plans
    assert all(plan.expert_parallel in (1, plan.tensor_parallel) for plan in plans)
    assert best("qwen3-30b-a3b", pins={"tp": 4, "ep": 4}).expert_parallel == 4


def test_the_frontier_trades_speed_for_throughput() -> None:
    front = served("llama-3.1-70b").frontier
    speed = [plan.tokens_per_s_per_user for plan in front]
    tokens = [plan.tokens_per_s_per_device for plan in front]
    assert speed == sorted(speed, reverse=True)
    assert tokens == sorted(tokens)
    assert 2 < len(front) <= 12
    assert tokens[-1] == served("llama-3.1-70b").plans[0].tokens_per_s_per_device


def test_prefixes_and_engines_change_what_is_priced() -> None:
    plain, cached = best(prompt=8000, concurrency=16), best(prompt=8000, prefix=7000, concurrency=16)
    assert cached.ttft_s < 0.5 * plain.ttft_s
    assert cached.most_requests > plain.most_requests
    assert best(engine="sglang", concurrency=16).tpot_s != best(concurrency=16).tpot_s
    less = best(memory_utilization=0.5, gpus="1xH100-SXM-80GB")
    assert less.memory.cache < best(gpus="1xH100-SXM-80GB").memory.cache - 30e9


def test_devices_without_bf16_serve_in_fp16() -> None:
    result = served("tinyllama-1.1b", "1xT4")
    assert [note.field for note in result.assumptions if "fp16" in note.message] == ["precision"]
    assert result.plans[0].memory.weights == pytest.approx(2 * 1.1e9, rel=1e-3)


def test_eight_bit_weights_halve_the_matrices() -> None:
    """Llama-3.1-8B: embedding and head of 128,256 x 4,096 and 65 norms stay in 16 bits."""
    whole, small = (best(gpus="1xH100-SXM-80GB", weights=weights) for weights in (None, "fp8"))
    kept = 2 * 128_256 * 4096 + 65 * 4096
    assert whole.memory.weights - small.memory.weights == pytest.approx(8_030_261_248 - kept, rel=1e-6)
    assert small.memory.cache - whole.memory.cache == pytest.approx(
        whole.memory.weights - small.memory.weights, rel=0.05
    )


def test_eight_bit_weights_are_read_faster() -> None:
    slow, fast = (
        best("llama-3.1-70b", "2xH200", concurrency=1, pins={"tp": 2}, weights=weights) for weights in (None, "fp8")
    )
    assert 1.1 < slow.tpot_s / fast.tpot_s < 2
    assert 1.2 < slow.ttft_s / fast.ttft_s < 2.2


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize(
    ("model", "gpus", "least"),
    [("llama-3.1-8b", "1xB200", 1.15), ("llama-3.1-8b", "1xH100-SXM-80GB", 1.35), ("llama-3.1-70b", "8xH100", 1.2)],
)
def test_eight_bit_weights_decode_one_request_faster(model: str, gpus: str, engine: str, least: float) -> None:
    """Also where layers are short: an eighth of 70B, or 8B on a memory of 8 TB/s."""
    tp = int(gpus.partition("x")[0])
    slow, fast = (
        best(model, gpus, concurrency=1, pins={"tp": tp}, engine=engine, weights=weights) for weights in (None, "fp8")
    )
    assert least < slow.tpot_s / fast.tpot_s < 1.8


def test_eight_bits_fit_where_sixteen_do_not() -> None:
    assert not served("llama-3.1-405b").fits
    assert served("llama-3.1-405b", weights="fp8").fits
    assert not served("llama-3.1-70b", "1xL40S", weights="fp8").fits


def test_an_eight_bit_cache_holds_twice_the_tokens_and_is_read_faster() -> None:
    asked = {"gpus": "1xH100-SXM-80GB", "prompt": 8000, "concurrency": 32}
    whole, small = (best(kv_cache_dtype=dtype, **asked) for dtype in (None, "fp8"))
    assert small.memory.cache == whole.memory.cache
    assert small.cache_tokens == pytest.approx(2 * whole.cache_tokens)
    assert small.most_longest in (2 * whole.most_longest, 2 * whole.most_longest + 1)
    assert small.tpot_s < 0.9 * whole.tpot_s


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"model": "llama-2-7b", "prompt": 8000}, "prompt"),
        ({"model": "gpt2", "prompt": 500, "max_model_len": 5000}, "max_model_len"),
        ({"prompt": 130_900, "generate": 256}, "prompt"),
    ],
)
def test_requests_are_no_longer_than_the_model_was_built_for(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        served(**asked)
    assert caught.value.field == field
    assert best("llama-3.1-8b").longest_tokens == 131_072


def test_the_smallest_rates_are_served() -> None:
    plan = best(rate_per_s=1e-9)
    assert plan.requests_per_s == pytest.approx(1e-9)
    assert plan.num_devices == 1


def test_dollars_follow_tokens() -> None:
    result = served(price_per_device_hour_usd=2.0)
    assert result.price is not None
    plan = result.plans[0]
    assert plan.usd_per_million_tokens(result.price) == pytest.approx(2e6 / 3600 / plan.tokens_per_s_per_device)


def test_engines_serve_where_their_makers_support_it() -> None:
    for engine, gpus, others in (
        ("tensorrt-llm", "8xMI300X", "vllm or"),
        ("vllm", "1xP100-PCIe-16GB", "no engine"),
        ("sglang", "8xV100", "vllm"),
    ):
        with pytest.raises(SpecError, match="does not support") as caught:
            served(gpus=gpus, engine=engine)
        assert (caught.value.field, others in str(caught.value)) == ("engine", True)
    assert served(gpus="8xMI300X", engine="sglang").fits


def test_limits_of_the_engine_can_be_set() -> None:
    few = best(gpus="1xH100-SXM-80GB", max_num_seqs=16)
    assert (few.most_requests, round(few.concurrency)) == (16, 16)
    large, small = (
        best(gpus="1xH100-SXM-80GB", prompt=8000, concurrency=32, max_num_batched_tokens=count, max_num_seqs=64)
        for count in (8192, 1024)
    )
    assert small.memory.activations < 0.5 * large.memory.activations
    assert small.ttft_s > large.ttft_s
    shortage = served(gpus="1xH100-SXM-80GB", prompt=100, generate=100, concurrency=1500).shortage
    assert shortage is not None
    _, limit, _ = shortage.remedy.split(", or ")
    name, value = limit.split()
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 100, "generate": 100, "concurrency": 1500}
    assert served(**asked, **{name: int(value)}).fits


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_without_graphs_a_token_takes_as_long_as_issuing_its_kernels(engine: str) -> None:
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "concurrency": 1, "engine": engine}
    graphs, eager = (best(**asked, eager=value) for value in (False, True))
    layers, kernels, launch_s = 32, 12, find_engine(engine).eager_launch_s
    host_s = layers * kernels * launch_s + find_engine(engine).step_overhead_s
    assert graphs.tpot_s < host_s < eager.tpot_s < 1.1 * host_s
    assert graphs.memory.fixed - eager.memory.fixed == find_engine(engine).graph_bytes


def test_a_device_busy_for_longer_than_its_host_does_not_wait_for_it() -> None:
    asked: dict[str, Any] = {"model": "llama-3.1-70b", "gpus": "4xA100-SXM-80GB", "pins": {"tp": 4}}
    graphs, eager = (best(**asked, concurrency=1, eager=value).tpot_s for value in (False, True))
    assert eager > 1.5 * graphs
    graphs, eager = (best(**asked, concurrency=256, eager=value).tpot_s for value in (False, True))
    assert graphs < eager < 1.2 * graphs


def test_a_steady_state_says_when_load_generators_see_waves() -> None:
    def told(**asked: Any) -> bool:
        return any(note.code == "steady_state" for note in served(gpus="1xH100-SXM-80GB", **asked).assumptions)

    assert told(concurrency=16)
    assert not told(concurrency=1)
    assert not told(concurrency=16, requests=160)
    assert not told(concurrency=16, generate="lognormal:mean=256,sigma=1,max=2048")
    assert not told(rate_per_s=2)
