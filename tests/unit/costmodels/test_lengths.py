"""Output lengths: means, tails and the longest of many, against closed forms."""

from math import exp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.lengths import OutputLengths, any_of, fixed_length, lengths_from_quantiles, log_normal_lengths
from profiles.errors import SpecError

UNIFORM = OutputLengths(tokens=(0.0, 1000.0), longer=(1.0, 0.0))


def test_fixed_lengths_are_all_alike() -> None:
    lengths = fixed_length(896)
    assert (lengths.mean, lengths.most, lengths.is_fixed) == (896, 896, True)
    assert lengths.longest_of(1) == lengths.longest_of(10_000) == pytest.approx(896)
    assert lengths.mean_context == pytest.approx(448)


def test_the_longest_of_uniform_lengths() -> None:
    # E[max of n uniforms on 0..1] = n / (n + 1).
    assert UNIFORM.mean == 500
    assert UNIFORM.longest_of(1) == pytest.approx(500)
    assert UNIFORM.longest_of(3) == pytest.approx(750, rel=1e-3)
    # E[n^2] / 2 E[n] = (1/3) / (2 * 1/2) = 1/3.
    assert UNIFORM.mean_context == pytest.approx(1000 / 3)


def test_log_normal_lengths_keep_their_mean_and_have_a_tail() -> None:
    lengths = log_normal_lengths(mean=500, sigma=0.8, most=8192)
    assert lengths.mean == pytest.approx(500, rel=1e-6)
    assert lengths.longest_of(512) > 6 * lengths.mean
    assert lengths.longest_of(512) < lengths.longest_of(2048) <= 8192
    assert not lengths.is_fixed
    # Without a cut in reach, half the sequences exceed exp(mu) = mean / exp(sigma^2 / 2).
    assert lengths.longer_than(np.array([500 / exp(0.32)]))[0] == pytest.approx(0.5, abs=0.01)


def test_a_cap_keeps_a_share_at_the_longest() -> None:
    lengths = log_normal_lengths(mean=3154, sigma=1.0, most=4096)
    assert lengths.mean == pytest.approx(3154, rel=1e-3)
    assert lengths.longer[-1] > 0.4
    assert lengths.longest_of(512) == pytest.approx(4096, rel=1e-3)


def test_no_spread_means_fixed_lengths() -> None:
    assert log_normal_lengths(mean=512, sigma=0, most=1024) == fixed_length(512)


def test_quantiles_give_lengths() -> None:
    lengths = lengths_from_quantiles([(0.5, 100), (1.0, 300)])
    assert lengths.mean == pytest.approx(0.5 * 50 + 0.5 * 200)
    assert lengths.longer_than(np.array([50.0, 100.0, 200.0])).tolist() == pytest.approx([0.75, 0.5, 0.25])


def test_any_of_many_is_certain_for_fixed_lengths() -> None:
    assert any_of(np.array([1.0, 0.0, 0.5]), 2).tolist() == pytest.approx([1.0, 0.0, 0.75])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed_length(0), "workload.output: must be between 1 and 16777216 tokens; got 0"),
        (
            lambda: log_normal_lengths(mean=5000, sigma=1, most=4096),
            "workload.output: mean must be between 1 and the longest of 4096 tokens; got 5000",
        ),
        (
            lambda: log_normal_lengths(mean=500, sigma=9, most=4096),
            "workload.output: sigma must be between 0 and 4; got 9",
        ),
        (
            lambda: lengths_from_quantiles([(0.5, 100)]),
            "workload.output: quantiles run from at least 0 to 1. Hint: end with the pair 1, longest",
        ),
        (
            lambda: OutputLengths(tokens=(0.0, 10.0, 5.0), longer=(1.0, 0.5, 0.0)),
            "workload.output: needs ascending tokens from 0; got (0.0, 10.0, 5.0)",
        ),
        (
            lambda: OutputLengths(tokens=(0.0, 10.0), longer=(0.5, 0.0)),
            "workload.output: needs shares falling from 1; got (0.5, 0.0)",
        ),
    ],
    ids=["none", "mean beyond cap", "wide", "open end", "unsorted", "not all"],
)
def test_impossible_lengths_are_refused(make, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value) == message


@given(st.floats(0.1, 2.0), st.integers(2, 4096), st.floats(0.05, 0.8))
def test_more_sequences_have_no_shorter_longest(sigma: float, count: int, share: float) -> None:
    lengths = log_normal_lengths(mean=4096 * share, sigma=sigma, most=4096)
    longest = lengths.longest_of(count)
    assert lengths.mean * (1 - 1e-6) <= longest <= lengths.longest_of(2 * count) * (1 + 1e-9) <= 4096 * (1 + 1e-9)
