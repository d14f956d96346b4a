"""Steady states of serving: clocks by hand, queues, Little's law, and what long batches of the same requests take."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from costmodels.kv_cache import bytes_per_cached_token
from costmodels.lengths import OutputLengths, fixed_length, log_normal_lengths
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch
from costmodels.serving.generation import generation
from costmodels.serving.memory import serving_memory
from costmodels.serving.queues import most_of
from costmodels.serving.steady import (
    ServingPoints,
    ServingPrices,
    at_concurrency,
    at_rate,
    serving_prices,
    steady_states,
)
from planner.dataflow.call_costs import CallSetting, call_context
from planner.question.machines import resolve_cluster
from planner.question.request import resolve_named_model
from profiles.engines import EngineSpec, find_engine
from profiles.stacks import find_stack
from tests.fakes import UnitKernels, context, llama

# Every step takes a second, nothing else takes time: seconds are steps.
CLOCK = EngineSpec(name="clock", description="", captures_graphs=True, step_overhead_s=1.0, kernels="vllm-1;fa2")
N, P = 100, 128
ONE = PlanBatch.from_columns(1)


def call(output: OutputLengths, prompt: int = P) -> ModelCall:
    return ModelCall(kind=CallKind.GENERATE, num_sequences=64, prompt_tokens=prompt, output=output)


def clock(output: OutputLengths | None = None, **changes: Any) -> ServingPrices:
    where = context(kernels=UnitKernels(ops=()))
    wanted = call(output or fixed_length(N))
    prices = serving_prices(ONE, wanted, CLOCK, where, cached_tokens=0, most_running=1024)
    return replace(prices, **changes)


def real(prompt: int = 1000, generate: int = 200, *, cached: int = 0, t: int = 1) -> tuple[ServingPrices, Any]:
    """vLLM's prices of Llama-3.1-8B on H100s, and what they rest on."""
    cluster = resolve_cluster("8xH100-SXM-80GB", None)
    model = resolve_named_model("llama-3.1-8b", allow_files=False).spec
    wanted, engine = call(fixed_length(generate), prompt), find_engine("vllm")
    where = call_context(wanted, model, CallSetting(cluster=cluster, stack=find_stack("megatron-core")))
    plans = PlanBatch.from_columns(1, tensor_parallel=t, micro_batch_size=8192 // prompt)
    prices = serving_prices(plans, wanted, engine, where, cached_tokens=cached, most_running=512)
    return prices, (plans, wanted, engine, where)


@given(st.integers(1, 64), st.floats(1e-6, 50.0))
@settings(max_examples=40, deadline=None)
def test_the_most_prompts_of_any_group(groups: int, mean: float) -> None:
    """Against the sum over the distribution of the largest of independent Poisson numbers."""
    exact = float((1 - poisson.cdf(np.arange(400), mean) ** groups).sum())
    assert float(most_of(np.array([[groups]]), np.array([[mean]]))[0, 0]) == pytest.approx(exact, rel=0.02)


def test_groups_that_share_experts_wait_for_the_one_that_reads_most() -> None:
    """By hand: a step of one second, prompts that add two, half of it experts; one prompt per group and step."""
    two = replace(ONE, tensor_parallel=np.array([1]), expert_parallel=np.array([2]))
    prices = clock(plans=two, added_s=np.array([2.0]), routed=np.array([0.5]))
    most = float((1 - poisson.cdf(np.arange(60), 1.0) ** 2).sum())
    points = one(steady_states(prices, np.array([[N - 1.0]])))
    assert points["token_s"] == pytest.approx(1 + 2 * (0.5 * 1 + 0.5 * most), rel=1e-3)
    alone = one(steady_states(replace(prices, plans=ONE), np.array([[N - 1.0]])))
    assert alone["token_s"] == pytest.approx(1 + 2)
    assert alone["rate_per_s"] == pytest.approx(1 / 3)


def one(points: ServingPoints) -> dict[str, float]:
    names = ("generating", "rate_per_s", "first_token_s", "token_s", "latency_s", "at_once")
    return {name: float(getattr(points, name)[0, 0]) for name in names}


def loop(prices: ServingPrices, at_once: float) -> dict[str, float]:
    return one(at_concurrency(prices, np.array([[at_once]])))


def open_loop(prices: ServingPrices, rate: float, places: float = 1024.0) -> dict[str, float]:
    return one(at_rate(prices, np.array([[rate]]), np.array([places])))


def test_a_request_alone_takes_a_step_per_token() -> None:
    found = loop(clock(), 1)
    assert found["latency_s"] == pytest.approx(N)
    assert (found["first_token_s"], found["token_s"]) == pytest.approx((1, 1))
    assert found["rate_per_s"] == pytest.approx(1 / N)


def test_others_are_waited_for_and_slow_nobody_down_whose_steps_take_no_longer() -> None:
    """Half a step on average, and one's prompt goes into the next; three of four are met."""
    found = loop(clock(step_tokens=1 << 40), 4)
    assert found["first_token_s"] == pytest.approx(0.75 / 2 + 1)
    assert found["token_s"] == pytest.approx(1)
    assert found["rate_per_s"] == pytest.approx(4 / (0.75 / 2 + 1 + N - 1))


def test_reading_prompts_slows_steps_down() -> None:
    """Ten requests come and go per 100 steps or so; each adds half a second to them."""
    slow = clock(added_s=np.array([0.5]), step_tokens=1 << 40)
    found = one(steady_states(slow, np.array([[10.0]])))
    rate = 10 / (99 * 1 + 10 * 0.5)
    assert found["rate_per_s"] == pytest.approx(rate)
    assert found["token_s"] == pytest.approx(1 / (1 - rate * 0.5))
    assert found["rate_per_s"] * (N - 1) * found["token_s"] == pytest.approx(10)  # Little's law of those that generate


def test_prompts_wait_for_each_other_as_in_a_queue_with_equal_service() -> None:
    """Half of a step's tokens each: a turn takes half a second of steps, at 20 of 99 seconds; M/D/1 by hand."""
    found = one(steady_states(clock(step_tokens=2 * P), np.array([[20.0]])))
    load = 20 / 99 * 0.5
    assert found["first_token_s"] == pytest.approx(0.5 + load * 0.5 / (2 * (1 - load)) + 1)


def test_prompts_that_do_not_go_into_the_steps_never_end() -> None:
    found = one(steady_states(clock(step_tokens=P), np.array([[120.0]])))  # more than one prompt per step
    assert found["first_token_s"] == np.inf


def test_long_prompts_take_several_steps() -> None:
    found = loop(clock(step_tokens=32), 2)  # four steps, and others' are half met
    assert found["first_token_s"] > 0.5 / 2 + 0.5 * 4


@given(st.floats(1, 900), st.integers(2, 400))
@settings(max_examples=30, deadline=None)
def test_little_s_law_holds(at_once: float, tokens: int) -> None:
    found = loop(clock(fixed_length(tokens), added_s=np.array([0.01])), at_once)
    assert found["at_once"] == pytest.approx(at_once, rel=1e-6)
    assert found["rate_per_s"] * found["latency_s"] == pytest.approx(at_once, rel=1e-6)
    assert found["latency_s"] == pytest.approx(found["first_token_s"] + (tokens - 1) * found["token_s"])


def test_a_rate_that_is_nearly_nothing_finds_a_server_idle() -> None:
    prices, _ = real()
    found, alone = open_loop(prices, 1e-5), loop(prices, 1)
    assert found["first_token_s"] == pytest.approx(float(prices.alone_s[0]), rel=1e-2)
    assert found["token_s"] == pytest.approx(alone["token_s"], rel=1e-3)
    assert alone["first_token_s"] == pytest.approx(float(prices.alone_s[0]))


def test_rates_beyond_what_is_held_wait_without_end() -> None:
    prices, _ = real()
    most = loop(prices, 64)["rate_per_s"]
    below, above = open_loop(prices, 0.9 * most, 64.0), open_loop(prices, 1.1 * most, 64.0)
    assert below["latency_s"] < np.inf
    assert above["latency_s"] == above["first_token_s"] == np.inf
    assert below["rate_per_s"] == pytest.approx(0.9 * most, rel=1e-6)


def test_waiting_for_a_place_is_sakasegawa_s_queue() -> None:
    """Two places for requests that all take as long: 1 / 2 of the wait of random service."""
    prices = clock(step_tokens=1 << 40)
    free, tight = open_loop(prices, 0.015), open_loop(prices, 0.015, 2.0)
    load = free["at_once"] / 2
    wait_s = 0.5 * free["latency_s"] * load ** (np.sqrt(2 * 3) - 1) / (2 * (1 - load))
    assert tight["first_token_s"] - free["first_token_s"] == pytest.approx(wait_s, rel=1e-6)
    varied = clock(log_normal_lengths(mean=N, sigma=1.0, most=4000), step_tokens=1 << 40)
    longer = open_loop(varied, 0.015, 2.0)["first_token_s"] - open_loop(varied, 0.015)["first_token_s"]
    assert longer > 1.5 * wait_s


@pytest.mark.parametrize("at_once", [16, 256])
def test_a_long_batch_takes_as_long(at_once: int) -> None:
    """20,000 requests in places that are refilled at once: what ``costmodels.serving.generation`` says of one call."""
    prices, (plans, wanted, engine, where) = real()
    many = replace(wanted, num_sequences=20_000)
    dropped = replace(engine, drops_put_off=False)
    batch = generation(plans, many, dropped, where, np.array([at_once]), np.array([True]))
    assert 20_000 / loop(prices, at_once)["rate_per_s"] == pytest.approx(float(batch.time_s[0]), rel=0.05)


@given(st.integers(1, 400), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_more_at_once_give_more_and_take_longer(at_once: int, t: int) -> None:
    prices, _ = real(t=t)
    few, more = loop(prices, at_once), loop(prices, at_once + 32)
    assert more["rate_per_s"] > few["rate_per_s"]
    assert more["token_s"] > few["token_s"] * (1 - 1e-9)
    assert more["first_token_s"] > few["first_token_s"] * (1 - 1e-9)


@pytest.mark.parametrize("cached", [200, 900, 1999])
def test_layers_with_a_window_keep_no_more_of_a_prefix_than_it_holds(cached: int) -> None:
    wanted, engine = call(fixed_length(200), 2000), find_engine("vllm")
    model = llama()
    model = replace(model, sliding_window=512, windowed_layers=model.num_layers // 2)
    where = context(model=model)
    each = float(bytes_per_cached_token(ONE, model, where.cache_element_bytes)[0])
    own, shared = serving_memory(ONE, wanted, engine, where, cached_tokens=cached)
    assert shared[0] == pytest.approx(each * (cached / 2 + min(cached, 512) / 2))
    rest = 2000 - cached + 100 + 8  # half of the output, and of a block
    assert own.staggered_bytes[0] == pytest.approx(each * (rest / 2 + min(rest, 512) / 2))


def test_longer_prompts_and_fewer_cached_tokens_take_longer() -> None:
    base, longer = real(1000)[0], real(4000)[0]
    cached = real(4000, cached=3000)[0]
    assert 3.5 < longer.added_s[0] / base.added_s[0] < 5
    assert longer.alone_s[0] > 3 * base.alone_s[0]
    assert base.added_s[0] < cached.added_s[0] < 1.6 * base.added_s[0]  # attention reads all 4,000
    assert loop(cached, 32)["first_token_s"] < loop(longer, 32)["first_token_s"]
    assert cached.read_tokens == 1000


def test_a_shared_prefix_is_kept_once() -> None:
    _, (plans, wanted, engine, where) = real(4000)
    whole, nothing = serving_memory(plans, wanted, engine, where, cached_tokens=0)
    rest, shared = serving_memory(plans, wanted, engine, where, cached_tokens=3000)
    each = 2 * 8 * 128 * 2 * 32  # bytes per token: keys and values of 8 heads of 128, 16 bits, 32 layers
    assert (nothing[0], shared[0]) == (0, 3000 * each)
    assert whole.staggered_bytes[0] - rest.staggered_bytes[0] == pytest.approx(shared[0])
    assert whole.staggered_bytes[0] == pytest.approx((4000 + 100 + 8) * each)  # half of the output, and of a block


def test_no_more_is_worked_on_than_a_step_takes() -> None:
    _, (_, wanted, engine, where) = real(32_000)
    plans = PlanBatch.from_columns(1)
    long, _ = serving_memory(plans, wanted, engine, where, cached_tokens=0)
    short, _ = serving_memory(plans, replace(wanted, prompt_tokens=8192), engine, where, cached_tokens=0)
    assert long.working_bytes[0] == pytest.approx(short.working_bytes[0], rel=1e-3)


def test_a_prompt_of_a_token_more_than_a_chunk_waits_for_a_pass_of_one_token() -> None:
    """What the last pass reads is what is left of the prompt, and of a cached one no more than what is not there."""
    chunk = find_engine("vllm").prefill_tokens

    def first_s(prompt: int, cached: int = 0) -> float:
        return float(real(prompt, cached=cached)[0].alone_s[0])

    one_token_s = first_s(1)
    assert first_s(chunk) < first_s(chunk + 1) < first_s(chunk) + 1.5 * one_token_s
    assert first_s(chunk + chunk // 2) == pytest.approx(first_s(chunk) + first_s(chunk // 2), rel=0.15)
    assert first_s(chunk + 1, cached=chunk // 2) < first_s(chunk, cached=chunk // 2) + 1.5 * one_token_s
    lengths = [chunk // 2, chunk, chunk + 1, chunk + 64, 2 * chunk - 64, 2 * chunk, 2 * chunk + 1]
    times_s = [first_s(length) for length in lengths]
    assert all(later > 0.98 * earlier for earlier, later in pairwise(times_s))  # chunks are not priced as one pass
