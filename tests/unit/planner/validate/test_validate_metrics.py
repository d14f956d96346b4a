"""Error measures and the pick score, on figures small enough to check by hand."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.metrics import (
    OomSummary,
    RankSummary,
    error_summary,
    mean_over_sources,
    oom_summary,
    rank_summary,
    spearman,
    worst_source,
)
from planner.validate.pick import pick_groups, pick_summary
from planner.validate.predict import Predictions
from planner.validate.tables.rows import ScorableRow
from tests.rows import CLUSTER, ROW


def predictions(step_time_s: list[float], fits: list[bool]) -> Predictions:
    times = np.array(step_time_s)
    return Predictions(
        step_time_s=times, step_time_low_s=times, step_time_high_s=times, memory_bytes=times, memory_low_bytes=times,
        memory_high_bytes=times, peak_memory_bytes=times, fits=np.array(fits), problems={},
    )  # fmt: skip


def test_errors() -> None:
    summary = error_summary(
        np.array([1.1, 0.8, 3.0]), np.array([1.0, 1.0, 2.0]), low=np.array([0.9] * 3), high=np.array([1.1] * 3)
    )
    assert summary is not None
    assert summary.rows == 3
    assert summary.mape == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert summary.median == pytest.approx(0.2)
    assert summary.p90 == pytest.approx(0.44)
    assert summary.bias == pytest.approx((0.1 - 0.2 + 0.5) / 3)
    assert summary.covered == pytest.approx(2 / 3)


def test_no_rows_no_errors() -> None:
    assert error_summary(np.array([]), np.array([])) is None


def test_spearman_knows_order_ties_and_constants() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 21.0])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(3**0.5 / 2)
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None


def test_ranks_are_taken_within_groups_of_three_or_more() -> None:
    predicted = np.array([1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0, 1.0])
    measured = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    groups = [("a",)] * 3 + [("b",)] * 4 + [("c",)]
    summary = rank_summary(predicted, measured, groups)
    assert summary is not None
    assert (summary.groups, summary.rows, summary.lowest) == (2, 7, pytest.approx(-1))
    assert summary.mean == pytest.approx((3 * 1 + 4 * -1) / 7)


def test_verdicts() -> None:
    fits = np.array([False, True, False, True, True])
    died = np.array([True, True, False, False, False])
    ran = np.array([False, False, True, True, False])
    summary = oom_summary(fits, died, ran)
    assert (summary.caught, summary.missed, summary.false_alarms, summary.cleared) == (1, 1, 1, 1)
    assert (summary.accuracy, summary.caught_share, summary.false_alarm_share) == (0.5, 0.5, 0.5)


def test_sources_weigh_alike_and_small_ones_do_not_count() -> None:
    def errors(size: float, rows: int):  # type: ignore[no-untyped-def]
        return error_summary(np.full(rows, 1 + size), np.ones(rows))

    by_source = {"big": errors(0.1, 1000), "small": errors(0.3, 8), "tiny": errors(9, 7), "none": None}
    assert mean_over_sources(by_source.values()) == pytest.approx(0.2)
    assert mean_over_sources(by_source.values(), "p90") == pytest.approx(0.2)
    assert mean_over_sources(by_source.values(), "covered") is None  # nobody told an interval
    assert worst_source(by_source) == ("small", pytest.approx(0.3))
    assert mean_over_sources([None]) is None
    assert worst_source({}) is None


def test_means_of_ranks_and_verdicts() -> None:
    ranks = [RankSummary(groups=1, rows=rows, mean=mean, lowest=mean) for rows, mean in ((8, 1.0), (80, 0.5), (7, 0.0))]
    assert mean_over_sources(ranks, "mean") == pytest.approx(0.75)
    verdicts = [OomSummary(caught=8, missed=0, false_alarms=0, cleared=0),
                OomSummary(caught=5, missed=0, false_alarms=15, cleared=0)]  # fmt: skip
    assert mean_over_sources(verdicts, "accuracy") == pytest.approx((1 + 0.25) / 2)


def group(times: list[float | None], died: list[bool]) -> list[ScorableRow]:
    return [
        replace(ROW, line=2 + n, step_time_s=time, out_of_memory=dead)
        for n, (time, dead) in enumerate(zip(times, died, strict=True))
    ]


def test_the_pick_is_the_fastest_predicted_to_fit() -> None:
    rows = group([1.0, 2.0, 4.0, 5.0, 6.0, None], [False] * 5 + [True])
    picks = pick_groups(rows, predictions([3.0, 1.0, 2.0, 4.0, 5.0, 0.5], [True, True, True, True, True, False]))
    assert len(picks) == 1
    assert (picks[0].line, picks[0].measured, picks[0].died) == (3, 5, 1)
    assert picks[0].regret == pytest.approx(0.5)  # half of the best tokens/s


def test_a_pick_that_died_has_no_regret() -> None:
    rows = group([1.0, 2.0, 4.0, 5.0, 6.0, None], [False] * 5 + [True])
    picks = pick_groups(rows, predictions([3.0, 1.0, 2.0, 4.0, 5.0, 0.5], [True] * 6))
    assert picks[0].pick_died
    assert picks[0].regret is None
    summary = pick_summary(picks)
    assert summary is not None
    assert (summary.groups, summary.died, summary.within, summary.mean_regret) == (1, 1, 0, None)


def test_nothing_fits_is_counted() -> None:
    picks = pick_groups(group([1.0] * 5, [False] * 5), predictions([1.0] * 5, [False] * 5))
    summary = pick_summary(picks)
    assert summary is not None
    assert (summary.nothing_fits, picks[0].line) == (1, None)


def test_fewer_than_five_measured_are_no_choice() -> None:
    assert pick_groups(group([1.0] * 4 + [None], [False] * 4 + [True]), predictions([1.0] * 5, [True] * 5)) == ()
    assert pick_summary([]) is None


def test_picks_within_five_percent() -> None:
    rows = group([1.0, 1.04, 1.5, 1.6, 1.7], [False] * 5)
    summary = pick_summary(pick_groups(rows, predictions([2.0, 1.0, 3.0, 3.0, 3.0], [True] * 5)))
    assert summary is not None
    assert (summary.within, summary.mean_regret) == (1, pytest.approx(1 - 1 / 1.04))


def test_picks_within_one_state_gain_nothing_from_knowing_it() -> None:
    stalled = replace(CLUSTER, node=replace(CLUSTER.node, collective_rank_s=1e-4))
    rows = group([1.0, 1.1, 1.2, 1.3, 1.4, 4.0, 5.0, 6.0, 7.0, 8.0], [False] * 10)
    rows = [*rows[:5], *(replace(row, cluster=stalled) for row in rows[5:])]
    predicted = predictions([1.0, 2.0, 2.0, 2.0, 2.0, 6.0, 3.0, 6.0, 6.0, 6.0], [True] * 10)
    assert [pick.regret for pick in pick_groups(rows, predicted)] == [pytest.approx(0.0)]
    healthy, slow = pick_groups(rows, predicted, one_state=True)
    assert healthy.regret == pytest.approx(0.0)
    assert slow.regret == pytest.approx(1 - 4.0 / 5.0)
