"""Percentiles of first tokens and latencies: beside an engine played out, their means, and where nothing is said."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from costmodels.lengths import fixed_length, log_normal_lengths
from costmodels.plan import FloatArray
from costmodels.serving.percentiles import first_token_within, latency_within
from costmodels.serving.steady import ServingPoints, ServingPrices, at_rate
from tests.serving_engine import Played, drawn, engine_of, play
from tests.unit.planner.deployments.test_serving_states import clock, real

SHARES = np.array([[0.5, 0.9, 0.99]])
REQUESTS, STARTING = 10_000, 1_000


def points_of(prices: ServingPrices, rate: float, places: float = 1024) -> ServingPoints:
    return at_rate(prices, np.array([[rate]]), np.array([places]))


def first_tokens(prices: ServingPrices, rate: float, places: float = 1024, shares: FloatArray = SHARES) -> FloatArray:
    return first_token_within(points_of(prices, rate, places), prices, np.array([places]), shares)[0]


def latencies(prices: ServingPrices, rate: float, places: float = 1024) -> FloatArray:
    return latency_within(points_of(prices, rate, places), prices, np.array([places]), SHARES)[0]


def played(prices: ServingPrices, rate: float) -> Played:
    """The engine that the prices are of, with requests that arrive at random."""
    sent_s = np.cumsum(np.random.default_rng(7).exponential(1 / rate, REQUESTS))
    return play(engine_of(prices, 1024), drawn(prices.output, REQUESTS), sent_s.tolist())


@pytest.mark.parametrize(
    ("prompt", "generate", "rate"),
    [(200, 200, 8), (200, 200, 32), (1000, 200, 2), (1000, 200, 8), (1000, 200, 16), (1000, 200, 22), (4000, 100, 3),
     (4000, 100, 6), (8000, 100, 2.5), (16_000, 200, 0.8)],
)  # fmt: skip
def test_first_tokens_are_those_of_an_engine_played_out(prompt: int, generate: int, rate: float) -> None:
    """From a nearly idle replica to one whose prompts fill six tenths of its time."""
    prices, _ = real(prompt, generate)
    seen_s = played(prices, rate).ttft_s[STARTING:]
    assert float(points_of(prices, rate).first_token_s[0, 0]) == pytest.approx(seen_s.mean(), rel=0.07)
    assert first_tokens(prices, rate) == pytest.approx(np.quantile(seen_s, SHARES[0]), rel=0.2)


@pytest.mark.parametrize("rate", [4, 12, 18])
def test_an_engine_that_reads_first_makes_no_tokens_in_the_step_of_a_prompt(rate: float) -> None:
    mixing, _ = real()
    prices = replace(mixing, decode=replace(mixing.decode, engine=replace(mixing.decode.engine, reads_first=True)))
    seen_s = played(prices, rate).ttft_s[STARTING:]
    assert float(points_of(prices, rate).first_token_s[0, 0]) == pytest.approx(seen_s.mean(), rel=0.1)
    assert first_tokens(prices, rate) == pytest.approx(np.quantile(seen_s, SHARES[0]), rel=0.25)
    assert seen_s.mean() < 0.95 * played(mixing, rate).ttft_s[STARTING:].mean()


@pytest.mark.parametrize(
    ("prompt", "rate", "most"), [(200, 32, 0.06), (1000, 8, 0.08), (1000, 16, 0.1), (4000, 3, 0.15)]
)
def test_latencies_of_lengths_that_vary_are_those_of_an_engine_played_out(
    prompt: int, rate: float, most: float
) -> None:
    output = log_normal_lengths(mean=200, sigma=1.0, most=800)
    prices, _ = real(prompt)
    prices = replace(prices, output=output, keys=prompt + output.mean_context)
    seen_s = played(prices, rate).latency_s[STARTING:]
    assert latencies(prices, rate) == pytest.approx(np.quantile(seen_s, SHARES[0]), rel=most)


@given(st.sampled_from([(200, 60.0), (1000, 22.0), (16_000, 1.2)]), st.floats(0.01, 1.0))
@example((200, 60.0), 0.015625)
@settings(max_examples=25, deadline=None)
def test_percentiles_rise_with_the_share_and_the_rate(asked: tuple[int, float], part: float) -> None:
    most, (prices, _) = asked[1], real(asked[0])
    slow, fast = first_tokens(prices, part * most), first_tokens(prices, 1.05 * part * most)
    assert (np.diff(slow) > 0).all()
    # Two moments are not the distribution: of a nearly idle replica the 90th percentile falls by up to 2 in 10,000.
    assert (fast[1:] > (1 - 2e-4) * slow[1:]).all()
    assert slow[0] >= prices.added_s[0]


@pytest.mark.parametrize("rate", [0.01, 2, 12, 20])
def test_the_mean_is_that_of_the_distribution(rate: float) -> None:
    prices, _ = real()
    shares = (np.arange(4000) + 0.5)[None, :] / 4000
    mean_s = float(points_of(prices, rate).first_token_s[0, 0])
    assert first_tokens(prices, rate, shares=shares).mean() == pytest.approx(mean_s, rel=5e-3)


def test_a_step_that_reads_nothing_is_waited_for_evenly() -> None:
    """Steps of a second, prompts that take no time: the wait is between 0 and 1 s, 1/2 on average, variance 1/12."""
    prices = clock(step_tokens=1 << 40)
    shares = (np.arange(4000) + 0.5)[None, :] / 4000
    waits_s = first_tokens(prices, 0.02, shares=shares) - 1
    assert waits_s.mean() == pytest.approx(0.5, rel=0.01)
    assert waits_s.var() == pytest.approx(1 / 12, rel=0.02)


def test_steps_that_lengthen_each_other_have_the_moments_of_their_chain() -> None:
    """A step with half a second per prompt of the step before, in which 0.8 a second arrive; by drawing the chain."""
    prices = clock(step_tokens=1 << 40, added_s=np.array([0.5]), alone_s=np.array([1.5]))
    rate, draw, length = 0.8, np.random.default_rng(3), 1.0
    waits = []
    for _ in range(200_000):
        prompts = draw.poisson(rate * length)
        waits += [(1 - at) * length + 0.5 * (prompts - 1) for at in draw.random(prompts)]
        length = 1 + 0.5 * prompts
    shares = (np.arange(4000) + 0.5)[None, :] / 4000
    found = first_tokens(prices, rate, shares=shares) - 1.5
    assert found.mean() == pytest.approx(np.mean(waits), rel=0.06)
    assert found.std() / found.mean() == pytest.approx(np.std(waits) / np.mean(waits), rel=0.02)


def test_nothing_is_said_where_places_are_few() -> None:
    """Six or so at once: 6 + 3 * 2.5 places have to be there."""
    prices, _ = real()
    at_once = float(points_of(prices, 3.5).at_once[0, 0])
    enough = np.ceil(at_once + 3 * np.sqrt(at_once))
    assert np.isfinite(first_tokens(prices, 3.5, enough)).all()
    assert (first_tokens(prices, 3.5, enough - 1) == np.inf).all()
    assert (first_tokens(prices, 1000.0) == np.inf).all()  # more than ever ends


def test_nothing_is_said_of_latencies_that_lengths_do_not_tell() -> None:
    prices, _ = real()
    for sigma, told in ((0.0, False), (0.3, False), (0.6, True)):
        output = log_normal_lengths(mean=200, sigma=sigma, most=800) if sigma else fixed_length(200)
        assert np.isfinite(latencies(replace(prices, output=output), 8.0)).all() == told
