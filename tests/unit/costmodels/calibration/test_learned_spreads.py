"""Intervals of learned prices: which rows a spread is taken from, and which rows it may judge."""

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.learned_spreads import (
    FEWEST_OF_GROUP,
    Residuals,
    inside,
    inside_by_others,
    spread_of,
    weighted_quantiles,
)

MANY = 4 * FEWEST_OF_GROUP


def residuals(scale: float, *, situation: str = "measured", centre: float = 1.0, group: str = "16-bit",
              count: int = MANY, time_s: float = 1e-3, seed: int = 0) -> Residuals:  # fmt: skip
    """Measured over predicted times spread evenly by up to ``scale`` in log time round a centre."""
    random = np.random.default_rng(seed)
    return Residuals(
        situation=situation, ratio=centre * np.exp(random.uniform(-scale, scale, count)),
        predicted_s=np.full(count, time_s), group=np.full(count, group), weight=np.ones(count),
    )  # fmt: skip


def halves(part: Residuals) -> np.ndarray:
    return np.arange(len(part.ratio)) % 2


def test_quantiles_follow_the_weights():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert weighted_quantiles(values, np.ones(4), (0.5,)) == pytest.approx([2.5])
    assert weighted_quantiles(values, np.array([1.0, 1.0, 1.0, 97.0]), (0.5,))[0] > 3.4


def test_each_format_has_its_own_width_and_rare_ones_that_of_all():
    found = spread_of([residuals(0.1), residuals(0.5, group="fp8"), residuals(2.0, group="fp4", count=20)])
    assert set(found) == {"*", "16-bit", "fp8"}
    assert found["16-bit"]["high_factor"][-1] == pytest.approx(np.exp(0.09), rel=0.02)
    assert found["fp8"]["low_factor"][-1] == pytest.approx(np.exp(-0.45), rel=0.05)
    rare = residuals(0.3, group="fp4", seed=2)
    assert inside(rare, found).mean() == pytest.approx(inside(residuals(0.3, group="tf32", seed=2), found).mean())


def test_short_kernels_have_a_width_of_their_own():
    found = spread_of([residuals(0.1), residuals(0.6, time_s=1e-5)])["16-bit"]
    assert found["high_factor"][0] > 1.5 > 1.2 > found["high_factor"][-1]


def test_whole_devices_weigh_alike_and_are_cut_further_out():
    """A device of a fifth of the rows that is slower by half sets the upper end."""
    devices = [residuals(0.1, situation="related", centre=centre, count=count, seed=count)
               for centre, count in ((1.0, 2000), (1.02, 1900), (1.5, 400))]  # fmt: skip
    assert spread_of(devices)["16-bit"]["high_factor"][-1] > 1.5
    one = residuals(1.0, situation="related")
    few, many = (spread_of([part] * 3)["16-bit"] for part in (residuals(1.0), one))
    assert few["high_factor"][-1] < many["high_factor"][-1]


def test_two_devices_that_judge_each_other_count_both_ways():
    slow = residuals(0.01, situation="related", centre=1.25)
    assert spread_of([slow])["16-bit"]["low_factor"] == pytest.approx([1 / 1.25] * 3, rel=0.02)
    assert spread_of([slow] * 3)["16-bit"]["low_factor"] == pytest.approx([1.0] * 3)


def test_measured_kernels_are_judged_by_the_other_half_of_the_shapes():
    part = residuals(0.2)
    half = halves(part)
    assert inside_by_others([part], [half], 0).mean() == pytest.approx(0.9, abs=0.03)
    # One half ten times wider: the other's interval does not know that.
    wild = Residuals(
        situation="measured", ratio=np.where(half == 1, part.ratio**10, part.ratio), predicted_s=part.predicted_s,
        group=part.group, weight=part.weight,
    )  # fmt: skip
    held = inside_by_others([wild], [half], 0)
    assert held[half == 0].all()
    assert held[half == 1].mean() < 0.2


def test_elsewhere_a_fold_is_judged_by_the_others_alone():
    near, far = (residuals(0.05, situation="foreign", centre=centre, seed=3) for centre in (1.0, 2.0))
    found = [near, near, near, far]
    kept = [halves(part) for part in found]
    assert inside_by_others(found, kept, 3).mean() == 0.0
    assert inside_by_others(found, kept, 0).mean() > 0.9
