"""Requests that end with their prompt: steps by hand, an engine played out, and orders that must hold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.lengths import fixed_length
from costmodels.plan import PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.serving.generation import engine_context, prompt_job
from costmodels.serving.prompts import ReadingSteps
from costmodels.serving.reading import (
    highest_rates,
    read_within,
    reads_at_concurrency,
    reads_at_rate,
    reads_per_s,
    reads_run,
)
from costmodels.serving.steady import ServingPrices, serving_prices
from planner.dataflow.call_costs import CallSetting, call_context
from planner.question.machines import resolve_cluster
from planner.question.request import resolve_named_model
from profiles.engines import find_engine
from profiles.stacks import find_stack
from tests.serving_engine import Engine, play
from tests.unit.planner.deployments.test_serving_states import call, clock

ROOM = np.array([1e6])


def steps(constant_s: float, each_s: float, most: float) -> ServingPrices:
    """Steps of so many seconds, and so many more for each prompt, of which so many go into one."""
    counts = np.array([1.0, most]) if most > 1 else np.array([1.0])
    seconds = (constant_s + each_s * counts)[None, :]
    basis = np.zeros(1, dtype=np.int64)
    reading = ReadingSteps(counts=counts, held_s=seconds, whole_s=seconds, basis=basis)
    alone_s = np.array([constant_s + each_s])
    return replace(clock(fixed_length(1)), reading=reading, alone_s=alone_s, added_s=np.array([each_s]))


def at(prices: ServingPrices, rate: float) -> float:
    return float(reads_at_rate(prices, np.array([[rate]]), ROOM).first_token_s[0, 0])


def real(
    prompt: int, *, pools: bool = False, cached: int = 0, t: int = 1, p: int = 1, engine: str = "vllm"
) -> ServingPrices:
    """Prices of Llama-3.1-8B on H100s."""
    cluster = resolve_cluster("8xH100-SXM-80GB", None)
    wanted = replace(call(fixed_length(1), prompt), value_head=pools)
    model = wanted.model(resolve_named_model("llama-3.1-8b", allow_files=False).spec)
    where = call_context(wanted, model, CallSetting(cluster=cluster, stack=find_stack("megatron-core")))
    plans = PlanBatch.from_columns(1, tensor_parallel=t, pipeline_parallel=p, micro_batch_size=max(8192 // prompt, 1))
    return serving_prices(plans, wanted, find_engine(engine), where, cached_tokens=cached, most_running=512)


def test_one_prompt_a_step_is_a_queue_with_equal_service() -> None:
    """M/D/1 by hand: at half the load a second of service waits half a second."""
    prices = steps(0.0, 1.0, 1)
    assert at(prices, 0.5) == pytest.approx(1 + 0.5 / (2 * 0.5))
    assert at(prices, 1e-9) == pytest.approx(1)
    assert at(prices, 1.0) == np.inf


def test_the_most_that_is_answered_is_full_steps() -> None:
    """Eight prompts in 2 + 8 seconds; places for four of them, in 2 + 4."""
    prices = steps(2.0, 1.0, 8)
    assert reads_per_s(prices, ROOM) == pytest.approx(8 / 10)
    assert reads_per_s(prices, np.array([4.0])) == pytest.approx(4 / 6)


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize(
    ("constant_s", "each_s", "most"), [(0.0, 1.0, 1), (0.0, 1.0, 8), (0.5, 1.0, 8), (2.0, 1.0, 8), (10.0, 1.0, 64)]
)
def test_answers_at_a_rate_are_those_of_an_engine_played_out(
    constant_s: float, each_s: float, most: int, load: float
) -> None:
    prices = steps(constant_s, each_s, most)
    rate = load * float(reads_per_s(prices, ROOM)[0])
    engine = Engine(step_s=lambda _: constant_s, added_s=each_s, prompt_tokens=100, step_tokens=100 * most)
    sent = np.cumsum(np.random.default_rng(5).exponential(1 / rate, 20_000))
    played = play(engine, [1] * len(sent), list(sent)).ttft_s[1000:]
    points = reads_at_rate(prices, np.array([[rate]]), ROOM)
    assert float(points.first_token_s[0, 0]) == pytest.approx(float(played.mean()), rel=0.16)
    within = read_within(points, prices, ROOM, np.array([[0.5, 0.9, 0.99]]))[0]
    told = within / np.percentile(played, [50, 90, 99])
    assert (told > 0.75).all()
    assert (told[:2] < 1.27).all()
    assert told[2] < 1.5


def test_so_many_at_once_take_turns() -> None:
    """By hand: one waits for nobody, two for each other, and what steps do not take waits for several of them."""
    prices = steps(2.0, 1.0, 8)
    found = reads_at_concurrency(prices, np.array([[1.0, 2.0, 8.0, 16.0, 80.0]]), ROOM)
    assert found.first_token_s[0] == pytest.approx([3, 6, 2 * (2 + 4), 2 * 10, 80 * 10 / 8])
    assert found.rate_per_s[0] == pytest.approx([1 / 3, 1 / 3, 8 / 12, 0.8, 0.8])


def test_a_run_starts_with_full_steps_and_takes_them_to_its_end() -> None:
    """By hand: twenty at once are steps of 8, 8 and 4, in 10, 10 and 6 seconds."""
    prices = steps(2.0, 1.0, 8)
    run = reads_run(prices, np.array([20.0]), np.array([20.0]), ROOM)
    assert float(20 / run.rate_per_s[0, 0]) == pytest.approx(26)
    assert float(run.first_token_s[0, 0]) == pytest.approx((8 * 10 + 8 * 20 + 4 * 26) / 20)
    long = reads_run(prices, np.array([1e6]), np.array([16.0]), ROOM)
    assert float(long.rate_per_s[0, 0]) == pytest.approx(0.8, rel=1e-3)


def test_the_highest_rate_is_the_last_within_bounds() -> None:
    prices = steps(2.0, 1.0, 8)

    def within(bound_s: float) -> float:
        return float(
            highest_rates(prices, ROOM, lambda rates: reads_at_rate(prices, rates, ROOM).first_token_s <= bound_s)[0]
        )

    assert within(1e9) == pytest.approx(0.9 * 0.8)
    assert at(prices, within(6.0)) == pytest.approx(6.0, rel=1e-6)
    assert within(0.1) < 0.01


@given(st.floats(0.0, 20.0), st.floats(0.01, 5.0), st.integers(1, 200), st.floats(0.01, 0.97), st.floats(1.001, 3.0))
@settings(max_examples=60, deadline=None)
def test_more_requests_a_second_wait_longer(
    constant_s: float, each_s: float, most: int, load: float, more: float
) -> None:
    prices = steps(constant_s, each_s, most)
    rate = load * float(reads_per_s(prices, ROOM)[0])
    assert at(prices, rate) <= at(prices, rate * more) * (1 + 1e-6)
    few, many = reads_at_concurrency(prices, np.array([[10.0, 10 * more]]), ROOM).rate_per_s[0]
    assert few <= many * (1 + 1e-9)


@given(st.integers(16, 20_000), st.floats(1.05, 4.0))
@settings(max_examples=12, deadline=None)
def test_longer_prompts_are_fewer(prompt: int, longer: float) -> None:
    """But for kernels that take a whole number of tiles faster than one less: up to 1.3 % from 16 to 3,000 tokens."""
    short, long = real(prompt), real(int(prompt * longer) + 1)
    assert reads_per_s(short, ROOM)[0] >= reads_per_s(long, ROOM)[0] * (1 - 1e-9)
    assert short.alone_s[0] <= long.alone_s[0] * 1.015


@pytest.mark.parametrize("prompt", [256, 1024, 8192])
def test_the_most_is_the_tokens_of_a_step_over_its_price(prompt: int) -> None:
    """A device answers as many tokens of prompts a second as its full step has, over the seconds that takes."""
    prices, engine, count = real(prompt, pools=True), find_engine("vllm"), 8192 // prompt
    step_s = count * prices.added_s[0] + engine.step_overhead_s + count * engine.sequence_overhead_s
    assert reads_per_s(prices, ROOM)[0] * prompt == pytest.approx(8192 / step_s)


def test_a_token_takes_the_head_and_its_draw_besides() -> None:
    one, none = real(1024), real(1024, pools=True)
    cluster = resolve_cluster("8xH100-SXM-80GB", None)
    model, wanted = resolve_named_model("llama-3.1-8b", allow_files=False).spec, call(fixed_length(1), 1024)
    where = call_context(wanted, model, CallSetting(cluster=cluster, stack=find_stack("megatron-core")))
    step = engine_context(where, find_engine("vllm"), replace(prompt_job(wanted), sequence_length=1))
    plans = PlanBatch.from_columns(1, micro_batch_size=8)
    decode = decode_prices(plans, step, find_engine("vllm"), most_running=8, keys=[1024.0, 1025.0])
    assert one.reading is not None
    assert none.reading is not None
    added_s = (one.reading.held_s - none.reading.held_s)[0]
    assert added_s[[0, -1]] == pytest.approx([decode.head_s[0, 0], decode.head_s[0, -1]])
    assert (added_s > 0).all()


def test_what_is_found_in_the_cache_is_not_read() -> None:
    whole, rest, short = real(4096), real(4096, cached=3072), real(1024)
    assert reads_per_s(short, ROOM)[0] * 0.5 < reads_per_s(rest, ROOM)[0] < reads_per_s(short, ROOM)[0]
    assert reads_per_s(rest, ROOM)[0] > 2.5 * reads_per_s(whole, ROOM)[0]


def test_long_prompts_are_read_in_chunks_one_after_another() -> None:
    """Four times the tokens of a step: four times its host time at least, and no two prompts in a step."""
    prices = real(32_768)
    assert prices.reading is not None
    assert len(prices.reading.counts) == 1
    assert prices.reading.held_s[0, 0] >= 4 * find_engine("vllm").step_overhead_s + prices.added_s[0]


def test_stages_answer_later_than_the_next_step_starts() -> None:
    """Two stages work on two steps at a time: nearly twice as many prompts, each as late as before."""
    one, two = real(1024), real(1024, p=2)
    assert two.reading is not None
    assert (two.reading.whole_s > 1.5 * two.reading.held_s - 5e-3).all()
    assert 1.6 < reads_per_s(two, ROOM)[0] / reads_per_s(one, ROOM)[0] < 2
