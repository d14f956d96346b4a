"""What families are said not to go below, held against every plan they have: over slow networks too."""

import numpy as np
import pytest

from costmodels.plan import FloatArray
from costmodels.stage_plans.prices import StagePrices
from planner.question.request import setting_of
from planner.search.bounds.mixed import mixed_least_s
from planner.search.capacity import capacity
from planner.search.families import Family, alike_families, least_step_s
from planner.search.freedom import Freedom
from planner.search.mixed_families import mixed_families
from planner.search.partition.stage_table import option_table
from planner.search.question import Question
from planner.space.enumeration import plan_space
from tests.search.small import INSTANCES, Choices, best_of, freedom, stopped_after

BY_NAME = {instance.name: instance for instance in INSTANCES}


def least_of_all_s(question: Question, families: list[Family], prices: StagePrices) -> FloatArray:
    """(F,) shortest step of every layout of each family."""
    choices = Choices(modes=set(range(4)), sets=freedom(question).modules)
    return np.asarray([best_of(question, [each], prices, choices)[0] for each in families])


def alike(question: Question) -> tuple[list[Family], StagePrices]:
    request = question.requests[0]
    space = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins)
    families, configs = alike_families(space.plans)
    return families, StagePrices(configs=configs, contexts=question.contexts)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("dense, slow network", 0.75),
        ("dense, tight", 0.9),
        ("MoE, tight", 0.8),
        ("MoE, named modules", 0.8),
        ("dense, zero bubble", 0.7),
    ],
)
def test_no_layout_of_a_family_is_below_its_bound_and_most_come_close(name: str, close: float) -> None:
    question = BY_NAME[name].question()
    families, prices = alike(question)
    least_s = least_of_all_s(question, families, prices)
    for below_s in (np.inf, 2 * least_s.min(), 1.2 * least_s.min()):
        perfect_s = least_step_s(families, prices, below_s=below_s)
        bounds = capacity(families, prices, freedom(question), perfect_s=perfect_s, below_s=below_s)
        beating = least_s < below_s
        assert beating.sum() > 1
        share = bounds.least_s[beating & np.isfinite(least_s)] / least_s[beating & np.isfinite(least_s)]
        assert share.max() <= 1 + 1e-9
        assert np.median(share) > close


@pytest.mark.parametrize(
    "name", ["two types, loose", "two types, slow network", "two types, interleaved", "two types, zero bubble"]
)
def test_no_layout_across_groups_is_below_the_bound_of_its_family(name: str) -> None:
    question = BY_NAME[name].question()
    mixed = mixed_families(question, question.requests[0].pins)
    families = sorted(mixed.families(), key=lambda family: family.num_stages)[:60]
    least_s = least_of_all_s(question, families, mixed.prices)
    for below_s in (np.inf, 2 * least_s.min(), 1.2 * least_s.min()):
        bound_s = mixed_least_s(families, mixed.prices, Freedom(), below_s=below_s)
        beating = least_s < below_s
        assert beating.sum() > 1
        assert (bound_s[beating] <= least_s[beating] * (1 + 1e-9)).all()
        assert np.median(bound_s[beating & np.isfinite(least_s)] / least_s[beating & np.isfinite(least_s)]) > 0.5


def test_bounds_across_groups_that_there_was_no_time_for_say_nothing() -> None:
    question = BY_NAME["two types, loose"].question()
    mixed = mixed_families(question, question.requests[0].pins)
    whole_s = mixed_least_s(mixed.families(), mixed.prices, Freedom(), below_s=1.0)
    some_s = mixed_least_s(mixed.families(), mixed.prices, Freedom(), below_s=1.0, check_time=stopped_after(1))
    stages = np.asarray([family.num_stages for family in mixed.families()])
    assert (some_s == np.where(stages == stages.min(), whole_s, 0.0)).all()
    assert (whole_s > 0).all()


@pytest.mark.parametrize("name", ["dense, slow network", "dense, two stages"])
def test_stages_too_slow_for_a_better_plan_are_left_out_and_no_others(name: str) -> None:
    question = BY_NAME[name].question()
    families, prices = alike(question)
    least_s = least_of_all_s(question, families[:40], prices)
    for family, best_s in zip(families[:40], least_s, strict=True):
        if not np.isfinite(best_s):
            continue
        every = option_table(family, prices, Freedom(), below_s=np.inf)
        some = option_table(family, prices, Freedom(), below_s=best_s * 1.001)
        assert every is not None
        assert some is not None
        assert len(some.instance.options) <= len(every.instance.options)
        assert option_table(family, prices, Freedom(), below_s=best_s * 0.3) is None or family.num_stages == 1
