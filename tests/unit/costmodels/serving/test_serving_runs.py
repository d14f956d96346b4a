"""Runs of so many requests: beside an engine played out, a generation call, the steady state, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.lengths import fixed_length, log_normal_lengths
from costmodels.plan import FloatArray
from costmodels.serving.generation import generation
from costmodels.serving.runs import run_first_token_within, run_points
from costmodels.serving.steady import ServingPrices
from tests.serving_engine import drawn, engine_of, play
from tests.unit.planner.deployments.test_serving_states import N, P, clock, loop, real

SHARES = (0.5, 0.9, 0.99)


def run(prices: ServingPrices, requests: int, at_once: int, places: int = 1024) -> dict[str, float]:
    points = run_points(prices, *(np.array([float(count)]) for count in (requests, at_once, places)))
    names = ("first_token_s", "token_s", "latency_s", "rate_per_s", "at_once")
    found = {name: float(getattr(points, name)[0, 0]) for name in names}
    return found | {"duration_s": requests / found["rate_per_s"]}


def of_engine(prices: ServingPrices, *, reads_first: bool) -> ServingPrices:
    return replace(prices, decode=replace(prices.decode, engine=replace(prices.decode.engine, reads_first=reads_first)))


def seen(prices: ServingPrices, requests: int, at_once: int, places: int = 1024) -> dict[str, float]:
    """The same figures of the engine played out."""
    lengths = np.asarray(drawn(prices.output, requests))
    played = play(engine_of(prices, places), lengths.tolist(), at_once=at_once)
    each = (played.latency_s - played.ttft_s) / np.maximum(lengths - 1, 1)
    return {
        "first_token_s": played.ttft_s.mean(),
        "token_s": each[lengths > 1].mean(),
        "latency_s": played.latency_s.mean(),
        "duration_s": played.ended_s.max(),
    }


CASES = [  # prompt, generate, requests, at once, places
    (1000, 200, 8, 1, 1024),
    (1000, 200, 100, 4, 1024),
    (256, 100, 300, 48, 1024),
    (1000, 200, 500, 128, 1024),
    (3200, 400, 500, 128, 1024),
    (16_000, 200, 64, 16, 1024),
    (30_000, 400, 128, 64, 1024),
    (1000, 200, 300, 300, 1024),
    (1000, 200, 1000, 1000, 128),
    (1000, 200, 1000, 200, 64),
]


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize(("prompt", "generate", "requests", "at_once", "places"), CASES)
def test_equal_lengths_are_an_engine_played_out(
    prompt: int, generate: int, requests: int, at_once: int, places: int, reads_first: bool
) -> None:
    """Of all of them the steady state's first token, without the burst, is a quarter to all too short."""
    prices = of_engine(real(prompt, generate)[0], reads_first=reads_first)
    found, real_s = run(prices, requests, at_once, places), seen(prices, requests, at_once, places)
    for name, value in real_s.items():
        assert found[name] == pytest.approx(value, rel=0.05), name


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize(
    ("prompt", "requests", "at_once", "places"),
    [
        (1000, 1000, 48, 1024),
        (1000, 2000, 128, 1024),
        (3200, 500, 128, 1024),
        (1000, 300, 300, 1024),
        (1000, 1000, 1000, 128),
    ],
)
def test_lengths_that_vary_are_an_engine_played_out(
    prompt: int, requests: int, at_once: int, places: int, reads_first: bool
) -> None:
    output = log_normal_lengths(mean=200, sigma=0.7, most=800)
    prices = of_engine(real(prompt)[0], reads_first=reads_first)
    prices = replace(prices, output=output, keys=prompt + output.mean_context)
    found, real_s = run(prices, requests, at_once, places), seen(prices, requests, at_once, places)
    assert found["first_token_s"] == pytest.approx(real_s["first_token_s"], rel=0.2)
    for name in ("token_s", "latency_s", "duration_s"):
        assert found[name] == pytest.approx(real_s[name], rel=0.08), name


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize(("prompt", "requests", "at_once"), [(216, 1000, 1000), (1000, 300, 300), (1000, 2000, 128)])
def test_a_token_is_the_mean_of_what_each_request_takes(
    prompt: int, requests: int, at_once: int, reads_first: bool
) -> None:
    """Short answers, which end while the burst is read, count as much as long ones: up to 2.5 times all over all."""
    output = log_normal_lengths(mean=200, sigma=1.2, most=2048)
    prices = of_engine(real(prompt)[0], reads_first=reads_first)
    prices = replace(prices, output=output, keys=prompt + output.mean_context)
    found, real_s = run(prices, requests, at_once), seen(prices, requests, at_once)
    assert found["token_s"] == pytest.approx(real_s["token_s"], rel=0.15)
    together = (found["latency_s"] - found["first_token_s"]) / (output.mean - 1)
    assert found["token_s"] > (1.02 if requests > at_once else 1.5) * together


def test_waves_by_hand() -> None:
    """Steps of a second, two prompts in a step, four at once, ten in all; the engine mixes, so that half a wave leads.

    Two have their first token after 1 s and two after 2, and as many each of the next wave one step after the ends.
    The last two start with those that came first: 3 waves of 100 steps, of which the first token is one.
    """
    found = run(clock(step_tokens=2 * P), 10, 4)
    assert found["first_token_s"] == pytest.approx((2 * 1 + 2 * 2 + 6 * 1) / 10)
    assert found["token_s"] == pytest.approx(1, rel=0.02)
    assert found["duration_s"] == pytest.approx(3 * N, rel=0.01)


def test_one_at_a_time_meets_nobody() -> None:
    prices, _ = real()
    found, alone = run(prices, 7, 1), loop(prices, 1)
    assert found["first_token_s"] == pytest.approx(float(prices.alone_s[0]))
    assert found["duration_s"] == pytest.approx(7 * alone["latency_s"], rel=0.01)


@pytest.mark.parametrize(("requests", "at_once"), [(64, 64), (2000, 128)])
def test_a_run_takes_as_long_as_a_call_that_generates_as_much(requests: int, at_once: int) -> None:
    prices, (plans, wanted, engine, where) = real()
    many = replace(wanted, num_sequences=requests)
    call = generation(plans, many, replace(engine, drops_put_off=False), where, np.array([at_once]), np.array([False]))
    for sent in {at_once, requests}:
        assert run(prices, requests, sent, at_once)["duration_s"] == pytest.approx(float(call.time_s[0]), rel=0.03)


def test_a_long_run_of_varied_lengths_is_the_steady_state() -> None:
    output = log_normal_lengths(mean=200, sigma=0.7, most=800)
    prices = replace(real()[0], output=output, keys=1000 + output.mean_context)
    found, steady = run(prices, 1_000_000, 64), loop(prices, 64)
    for name in ("first_token_s", "token_s", "latency_s", "rate_per_s"):
        assert found[name] == pytest.approx(steady[name], rel=0.04), name


@given(
    st.integers(1, 300) | st.just(100_000),
    st.integers(1, 400),
    st.sampled_from([(1000, 200), (8000, 8)]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_figures_agree_with_each_other(
    requests: int, at_once: int, tokens: tuple[int, int], varied: bool, reads_first: bool
) -> None:
    """Also where reading is nearly all that is done."""
    prompt, generate = tokens
    output = log_normal_lengths(mean=generate, sigma=0.7, most=4 * generate) if varied else fixed_length(generate)
    prices = replace(real(prompt)[0], output=output, keys=prompt + output.mean_context)
    prices = of_engine(prices, reads_first=reads_first)
    found = run(prices, requests, at_once)
    together = (found["latency_s"] - found["first_token_s"]) / (output.mean - 1)
    assert found["token_s"] >= together * (1 - 1e-9) if varied else found["token_s"] == pytest.approx(together)
    assert found["at_once"] == pytest.approx(found["rate_per_s"] * found["latency_s"])  # Little's law
    assert found["at_once"] <= min(requests, at_once) * (1 + 1e-9)
    assert found["duration_s"] >= found["latency_s"] * (1 - 1e-9)
    assert found["first_token_s"] >= prices.alone_s[0] * (1 - 1e-9)
    assert found["token_s"] > 0


@given(st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_more_that_come_together_wait_longer(at_once: int) -> None:
    prices, _ = real()
    assert run(prices, at_once + 8, at_once + 8)["first_token_s"] > run(prices, at_once, at_once)["first_token_s"]


def within(prices: ServingPrices, requests: int, at_once: int, places: int = 1024) -> FloatArray:
    """Seconds in which a half, nine tenths and 99 of 100 have their first token."""
    counts = (np.array([float(count)]) for count in (requests, at_once, places))
    return run_first_token_within(prices, *counts, np.array(SHARES))[0]


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize(
    ("prompt", "requests", "at_once", "sigma"),
    [(1000, 100, 4, 0.0), (3200, 500, 128, 0.0), (16_000, 64, 16, 0.0), (1000, 300, 300, 0.7), (1000, 1000, 48, 0.7),
     (256, 100, 4, 0.7), (3200, 500, 128, 0.7)],
)  # fmt: skip
def test_first_tokens_of_a_run_are_spread_as_of_an_engine_played_out(
    prompt: int, requests: int, at_once: int, sigma: float, reads_first: bool
) -> None:
    """Most are successors, who wait for a step or two; the means are those of the burst, up to 30 times as long."""
    output = log_normal_lengths(mean=200, sigma=sigma, most=800) if sigma else fixed_length(200)
    prices = of_engine(real(prompt)[0], reads_first=reads_first)
    prices = replace(prices, output=output, keys=prompt + output.mean_context)
    played = play(engine_of(prices, 1024), drawn(output, requests), at_once=at_once)
    assert within(prices, requests, at_once) == pytest.approx(np.quantile(played.ttft_s, SHARES), rel=0.16)


def test_nothing_is_said_of_first_tokens_that_wait_for_a_place() -> None:
    prices, _ = real()
    assert np.isinf(within(prices, 1000, 200, places=64)).all()
    assert np.isfinite(within(prices, 1000, 64, places=64)).all()


@given(requests=st.integers(1, 3000), at_once=st.integers(1, 400), sigma=st.sampled_from([0.0, 0.4, 1.2]))
@settings(max_examples=30)
def test_more_of_a_run_takes_longer_and_none_less_than_alone(requests: int, at_once: int, sigma: float) -> None:
    output = log_normal_lengths(mean=200, sigma=sigma, most=2048) if sigma else fixed_length(200)
    prices = replace(real()[0], output=output, keys=1000 + output.mean_context)
    half_s, most_s, nearly_all_s = within(prices, requests, at_once)
    assert 0.999 * float(prices.alone_s[0]) <= half_s <= most_s <= nearly_all_s < np.inf
