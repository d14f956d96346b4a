"""Intervals of serving hold what publishers nobody has seen measure: the packaged width is what the table tells."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import planner
from costmodels.uncertainty import NORMAL_90
from planner.serving_states import interval
from planner.validate.serving_prices import serving_prices, settles, times_as_long
from planner.validate.serving_rows import Load
from planner.validate.serving_widths import KINDS, TOLD, errors_of, main, telling, widths_card
from profiles.serving_widths import BURST, DENSE, ONE_SIDED, serving_log_stds


def test_the_packaged_widths_are_what_the_table_tells(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "serving.json")])
    packaged = resources.files("profiles").joinpath("data", "fits", "serving.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "serving.json").read_text(encoding="utf-8")) == json.loads(packaged)
    assert widths_card()["publishers"]["tpot"]["dense"] >= 5


@pytest.mark.parametrize("figure", TOLD)
@pytest.mark.parametrize("kind", KINDS)
def test_publishers_are_held_by_what_the_others_tell(figure: str, kind: str) -> None:
    errors = errors_of(figure, kind)
    told = telling(figure, errors)
    held = told.covered_by_others() & ((told.error == errors.error) | errors.covered(0.0))
    shares = [float(held[told.of(name)].mean()) for name in told.names]
    assert 0.8 < np.mean(shares) < (0.97 if kind == BURST else 0.95)  # two publishers tell of bursts
    alone = [float(errors.covered(0.0)[told.of(name)].mean()) for name in told.names]
    # What prices of kernels leave open is enough for tokens of dense models that come one by one, and for nothing else.
    assert (np.mean(alone) > 0.85) == ((figure, kind) == ("tpot", DENSE))


def test_a_rate_tells_by_what_all_times_would_have_to_be() -> None:
    """A slower server is busier, so that its tokens take longer by more than it is slower."""
    at_rate = [p for p in serving_prices() if p.figure == "tpot" and p.row.load is Load.REQUEST_RATE]
    price = max(at_rate, key=lambda price: price.error)
    scale = times_as_long(price.row, price.measured)
    assert price.measured / price.predicted < scale < 1
    assert times_as_long(price.row, price.predicted) == pytest.approx(1, rel=2e-3)
    assert 0 < sum(not settles(price.row) for price in at_rate) < len(at_rate) / 2


def test_intervals_at_a_rate_widen_as_servers_fill() -> None:
    def width(rate: float) -> float:
        plan = planner.serving("qwen3-8b", "1xL40S", prompt=512, generate=120, rate_per_s=rate).plans[0]
        low, high = plan.tpot_interval_s
        assert low < plan.tpot_s < high
        return float(np.log(high / low))

    few, many = width(0.5), width(12.0)
    assert many > 1.5 * few


def test_independent_widths_add_in_quadrature_and_the_first_tokens_lower_end_stays() -> None:
    low, high = interval(2.0, np.array([0.3, 0.4]), (0.0, 0.3 / NORMAL_90))
    assert low == pytest.approx(2.0 * np.exp(-0.3))
    assert high == pytest.approx(2.0 * np.exp(0.5))
    dense, mixture = (planner.serving(name, "8xH100-SXM-80GB", prompt=500, generate=100, concurrency=8).model
                      for name in ("llama-3.1-8b", "qwen3-30b-a3b"))  # fmt: skip
    for model in (dense, mixture):
        assert serving_log_stds("ttft", model, burst=False)[0] == 0.0 < serving_log_stds("ttft", model, burst=False)[1]
        assert serving_log_stds("tpot", model, burst=False)[0] == serving_log_stds("tpot", model, burst=False)[1]
    assert serving_log_stds("tpot", dense, burst=False) < serving_log_stds("tpot", mixture, burst=False)
    assert ONE_SIDED == ("ttft",)


def test_plans_have_the_wider_interval() -> None:
    result = planner.serving("llama-3.1-8b", "1xH100-SXM-80GB", prompt=500, generate=100, concurrency=8)
    plan = result.plans[0]
    for figure, middle, (low, high) in (
        ("ttft", plan.ttft_s, plan.ttft_interval_s),
        ("tpot", plan.tpot_s, plan.tpot_interval_s),
    ):
        below, above = serving_log_stds(figure, result.model, burst=False)
        assert np.log(high / middle) > NORMAL_90 * above >= 0
        assert np.log(middle / low) > NORMAL_90 * below >= 0
        assert np.log(high / middle) < NORMAL_90 * above + 0.5
