"""How tokens spread over experts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.kernels.expert_load import TILE_ROWS, expert_load


def test_even_loads_wake_one_expert_per_row_until_all_are_awake():
    few, many = (expert_load(tokens, 256, 8, 8, "balanced") for tokens in (8.0, 4096.0))
    assert (few.rows, few.active, few.heaviest) == (8, 8, 1)
    assert few.padded == 8 * TILE_ROWS
    assert (many.rows, many.active, many.heaviest) == (4096, 32, 128)
    assert many.padded == 4096


def test_random_routing_misses_some_experts():
    load = expert_load(16.0, 16, 1, 1, "random")
    assert load.active == pytest.approx(16 * (1 - (15 / 16) ** 16))


def test_random_rows_end_anywhere_in_a_tile():
    """128 experts that see two tiles each on average: half of them take a third."""
    padded = [expert_load(tokens, 128, 8, 1, "random").padded / 128 / TILE_ROWS for tokens in (2040.0, 2048.0, 2056.0)]
    assert padded == pytest.approx([2.46, 2.48, 2.50], abs=0.01)
    draws = np.random.default_rng(0).poisson(128.0, (400, 128))
    assert padded[1] == pytest.approx(np.ceil(draws / TILE_ROWS).mean(), rel=0.01)
    assert expert_load(2048.0, 128, 8, 1, "balanced").padded == 128 * 128
    # Many tiles: half of one is added, and no step lies where it begins to be.
    many = [expert_load(tokens, 128, 8, 1, "random").padded / 128 / TILE_ROWS for tokens in (24_560.0, 24_600.0)]
    assert many == pytest.approx([24_560 / 16 / TILE_ROWS + 0.5, 24_600 / 16 / TILE_ROWS + 0.5], rel=2e-3)
    few = expert_load(16.0, 128, 8, 1, "random")
    assert few.padded == pytest.approx(few.active * TILE_ROWS)


def test_a_power_law_leaves_experts_idle_and_loads_one():
    even, skewed = (expert_load(256.0, 256, 8, 1, name) for name in ("balanced", "power_law_1.2"))
    assert skewed.active < even.active
    assert skewed.heaviest > 4 * even.heaviest
    assert skewed.rows == pytest.approx(even.rows, rel=0.2)


@given(
    tokens=st.integers(1, 100_000), experts=st.integers(1, 512), topk=st.integers(1, 8), parallel=st.integers(1, 64),
    name=st.sampled_from(["balanced", "power_law_1.2", "random"]),
)  # fmt: skip
def test_loads_are_consistent(tokens, experts, topk, parallel, name):
    load = expert_load(float(tokens), float(experts), float(min(topk, experts)), float(min(parallel, experts)), name)
    assert 1 <= load.active <= max(experts, 1) + 1e-9
    assert load.heaviest <= tokens * topk + 1e-9
    assert load.padded >= min(load.rows, TILE_ROWS) - 1e-9


@pytest.mark.parametrize(("parallel", "rows"), [(1, 8.0), (2, 8.0), (8, 8.0), (16, 4.0), (64, 1.0)])
def test_a_crowded_device_has_all_experts_of_every_token_that_comes(parallel, rows):
    """Tokens come to a device that has one of their eight experts: to 2 to 8 devices all, to 16 half."""
    load = expert_load(4096.0, 64, 8, parallel, "balanced", crowded=True)
    assert (load.rows, load.active) == (rows * 4096, 64 / parallel)
    assert load.heaviest == pytest.approx(load.rows / load.active)
    skewed = [expert_load(4096.0, 64, 8, parallel, "power_law_1.2", crowded=each) for each in (False, True)]
    assert skewed[1].rows == pytest.approx(min(skewed[0].rows, 4096) * 8)


@pytest.mark.parametrize("distribution", ["balanced", "power_law_1.2"])
def test_a_crowded_device_reads_no_more_experts_than_another(distribution):
    """Two tokens of eight experts each, of 256 over eight devices: the weights of two, not of sixteen."""
    alone, crowded = (expert_load(2.0, 256, 8, 8, distribution, crowded=each) for each in (False, True))
    assert crowded.active == alone.active
    assert alone.active <= 2.0
    assert crowded.rows == pytest.approx(8 * min(alone.rows, 2.0))
