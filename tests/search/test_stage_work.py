"""How long stages work on a micro-batch, by what they hold."""

import numpy as np
import pytest

from costmodels.stage_plans.prices import CONTENT_COLUMNS, StagePrices
from planner.question.request import setting_of
from planner.search.families import alike_families
from planner.search.stage_work import stage_rows, stage_work_s
from planner.space.enumeration import plan_space
from tests.search.small import INSTANCES


@pytest.fixture(scope="module")
def prices() -> StagePrices:
    question = next(instance for instance in INSTANCES if instance.name == "MoE, dense layers first").question()
    request = question.requests[0]
    plans = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins).plans
    return StagePrices(configs=alike_families(plans)[1], contexts=question.contexts)


def test_work_is_a_forward_pass_and_both_halves_of_a_backward_pass(prices: StagePrices) -> None:
    rows = stage_rows(prices, np.arange(3), np.asarray([1, 2, 3]), moe=True)
    by_name = dict(zip(CONTENT_COLUMNS, prices.content, strict=True))
    passes = [by_name[name][rows] for name in ("forward_s", "input_gradient_s", "weight_gradient_s")]
    assert prices.work_s(rows) == pytest.approx(sum(passes), rel=1e-12)
    assert all((each > 0).all() for each in passes)


@pytest.mark.parametrize("moe", [False, True])
def test_work_adds_up_over_layers_and_ends(prices: StagePrices, moe: bool) -> None:
    config = np.arange(len(prices.configs))
    one_s = stage_work_s(prices, config, layers=1, moe=moe)
    ends_s = stage_work_s(prices, config, first=True) + stage_work_s(prices, config, last=True)
    assert (one_s > 0).all()
    assert (ends_s > 0).all()
    assert stage_work_s(prices, config, layers=2, moe=moe) == pytest.approx(2 * one_s, rel=1e-9)
    assert stage_work_s(prices, config, layers=2, moe=moe, first=True, last=True) == pytest.approx(
        2 * one_s + ends_s, rel=1e-9
    )
    assert stage_work_s(prices, config) == pytest.approx(0.0)


def test_layers_of_the_two_kinds_take_different_times(prices: StagePrices) -> None:
    config = np.arange(len(prices.configs))
    dense_s, moe_s = (stage_work_s(prices, config, layers=1, moe=moe) for moe in (False, True))
    assert (dense_s != moe_s).all()
