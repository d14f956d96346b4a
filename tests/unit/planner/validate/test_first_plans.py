"""best@k, worst@k, std@k and SharpeRatio@k, on figures small enough to check by hand."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.first_plans import COUNTS, FirstPlans, first_plans
from planner.validate.predict import Predictions
from tests.rows import ROW

TIMES_S: list[float | None] = [1.0, 2.0, 4.0, 5.0, 10.0, None]  # the last ran out of memory


def judged(predicted_s: list[float], fits: list[bool] | None = None) -> dict[int, FirstPlans]:
    rows = [
        replace(ROW, line=line, step_time_s=time_s, out_of_memory=time_s is None)
        for line, time_s in enumerate(TIMES_S, start=2)
    ]
    times = np.array(predicted_s)
    predictions = Predictions(
        step_time_s=times, step_time_low_s=times, step_time_high_s=times, memory_bytes=times, memory_low_bytes=times,
        memory_high_bytes=times, peak_memory_bytes=times, fits=np.array(fits or [True] * 6),
        problems={},
    )  # fmt: skip
    return {item.count: item for item in first_plans(rows, predictions)}


def test_a_right_ranking_has_the_best_first() -> None:
    found = judged([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert tuple(found) == COUNTS
    assert [found[count].ranked.best for count in COUNTS] == [1.0] * 4
    assert [found[count].ranked.worst for count in COUNTS] == pytest.approx([1.0, 0.5, 0.25, 0.1])
    assert found[2].ranked.std == pytest.approx(0.25)  # dividing by k
    assert found[2].ranked.sharpe == pytest.approx((1.0 - 0.25) / 0.25)  # the median plan that ran reaches a quarter
    assert found[1].ranked.sharpe is None
    assert found[5].groups == 1


def test_a_wrong_ranking_finds_the_best_late_and_a_death_early() -> None:
    found = judged([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert [found[count].ranked.best for count in COUNTS] == pytest.approx([0.0, 0.1, 0.2, 0.5])
    assert [found[count].ranked.worst for count in COUNTS] == [0.0] * 4
    assert [found[count].ranked.died for count in COUNTS] == [1.0] * 4
    assert found[2].ranked.sharpe == pytest.approx((0.1 - 0.25) / 0.05)


def test_plans_predicted_not_to_fit_are_not_among_the_first() -> None:
    found = judged([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [True, True, False, False, False, False])
    assert [found[count].ranked.best for count in COUNTS] == [0.5, 1.0, 1.0, 1.0]
    assert found[5].ranked.died == 0.0
    nothing = judged([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [False] * 6)
    assert nothing[5].ranked.best == 0.0  # the first of the order stands for them


def test_chance_is_worse_than_a_right_ranking_and_repeats() -> None:
    found = judged([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    again = judged([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    mean = np.mean([1.0, 0.5, 0.25, 0.2, 0.1, 0.0])
    assert found[1].random.best == pytest.approx(mean, abs=0.08)
    assert found[5].random.died == pytest.approx(5 / 6, abs=0.1)
    assert found[3].random.best < found[3].ranked.best
    assert again == found


def test_small_groups_are_not_judged() -> None:
    rows = [replace(ROW, line=line, step_time_s=1.0) for line in range(2, 6)]
    times = np.ones(4)
    predictions = Predictions(
        step_time_s=times, step_time_low_s=times, step_time_high_s=times, memory_bytes=times, memory_low_bytes=times,
        memory_high_bytes=times, peak_memory_bytes=times, fits=times > 0, problems={},
    )  # fmt: skip
    assert first_plans(rows, predictions) == ()
