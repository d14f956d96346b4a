"""Intervals of serving hold what publishers nobody has seen measure: the packaged width is what the table tells."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planner
from costmodels.uncertainty import NORMAL_90
from planner.deployments.deployed import interval
from planner.validate.serving.prices import serving_prices, settles, times_as_long
from planner.validate.serving.rows import Load
from planner.validate.serving.widths import KINDS, TOLD, errors_of, main, telling, widths_card
from profiles.serving_widths import BURST, DENSE, MIXTURE, ONE_SIDED, serving_log_stds


@pytest.mark.long
def test_the_packaged_widths_are_what_the_table_tells(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "serving.json")])
    packaged = resources.files("profiles").joinpath("data", "fits", "serving.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "serving.json").read_text(encoding="utf-8")) == json.loads(packaged)
    assert widths_card()["publishers"]["tpot"]["dense"] >= 5


@pytest.mark.long
@pytest.mark.parametrize("figure", TOLD)
@pytest.mark.parametrize("kind", KINDS)
def test_publishers_are_held_by_what_the_others_tell(figure: str, kind: str) -> None:
    errors = errors_of(figure, kind)
    told = telling(figure, errors)
    held = told.covered_by_others() & ((told.error == errors.error) | errors.covered(0.0))
    shares = [float(held[told.of(name)].mean()) for name in told.names]
    few = kind == BURST or (figure, kind) == ("tokens", MIXTURE)  # two publishers tell of bursts, four of these
    assert (0.75 if few else 0.8) < np.mean(shares) < (0.97 if kind == BURST else 0.95)
    alone = [float(errors.covered(0.0)[told.of(name)].mean()) for name in told.names]
    # What prices of kernels leave open is enough for tokens of dense models that come one by one, and for nothing else.
    assert (np.mean(alone) > 0.85) == (figure != "ttft" and kind == DENSE)


@pytest.mark.long
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
        ("tokens", plan.output_tokens_per_s, plan.tokens_interval_per_s or (0.0, 0.0)),
    ):
        below, above = serving_log_stds(figure, result.model, burst=False)
        assert np.log(high / middle) > NORMAL_90 * above >= 0
        assert np.log(middle / low) > NORMAL_90 * below >= 0
        assert np.log(high / middle) < NORMAL_90 * above + 0.5


def test_a_run_s_tokens_have_an_interval_of_their_own_and_those_of_a_rate_none() -> None:
    """Throughputs of runs are closer to their prices than what single tokens take, and as wide as they are."""
    asked: dict[str, Any] = {"prompt": 1024, "generate": 256}
    result = planner.serving("llama-3.1-8b", "1xH100-SXM-80GB", requests=1000, **asked)
    plan, (entry, *_) = result.plans[0], planner.to_document(result)["plans"]
    low, high = plan.tokens_interval_per_s or (0.0, 0.0)
    assert (entry["output_tokens_low_per_s"], entry["output_tokens_high_per_s"]) == (low, high)
    tokens = plan.output_tokens_per_s
    assert 0.4 * tokens < low < 0.75 * tokens < 1.35 * tokens < high < 2.5 * tokens
    assert high / low < 0.5 * plan.tpot_interval_s[1] / plan.tpot_interval_s[0]
    slow, fast = plan.priced_tpot_s  # slower tokens are fewer
    alone_low, alone_high = np.log(fast / plan.tpot_s), np.log(plan.tpot_s / slow)
    beside = NORMAL_90 * np.asarray(serving_log_stds("tokens", result.model, burst=True))
    assert np.log([tokens / low, high / tokens]) == pytest.approx(np.hypot([alone_low, alone_high], beside))
    rated = planner.serving("llama-3.1-8b", "1xH100-SXM-80GB", rate_per_s=2.0, **asked)
    assert rated.plans[0].tokens_interval_per_s is None
    assert planner.to_document(rated)["plans"][0]["output_tokens_low_per_s"] is None
