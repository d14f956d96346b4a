"""Choosing trials together: what the best of them is worth, hedges before runners-up, deaths and what follows."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.decisions.portfolio import World, choose, weighted_quantile


def world(times_s: list[list[float]], died: list[list[bool]] | None = None, weight: list[float] | None = None) -> World:
    log_time_s = np.log(np.array(times_s))
    deaths = np.zeros(log_time_s.shape, dtype=bool) if died is None else np.array(died)
    return World.of(log_time_s, deaths, np.array(weight or [1 / len(times_s)] * len(times_s)))


def test_a_hedge_comes_before_the_runner_up() -> None:
    # The second plan is always a little slower than the first; the third is much faster in one case of four.
    found = world([[1.0, 1.1, 2.0], [1.0, 1.1, 2.0], [1.0, 1.1, 2.0], [1.0, 1.1, 0.5]])
    choice = choose(found, 2, oom_penalty=0.0)
    assert choice.rows.tolist() == [0, 2]
    assert choice.regret == pytest.approx([0.25, 0.0])  # twice as slow as the best in one case of four
    assert choice.lost_s == pytest.approx([0.5 / 4, 0.0])
    assert choice.regret_high == pytest.approx([1.0, 0.0])
    assert found.expected_regret(np.array([0, 1])) == pytest.approx(0.25)


def test_weights_of_scenarios_count() -> None:
    times = [[1.0, 2.0], [2.0, 1.0]]
    assert choose(world(times, weight=[0.4, 0.6]), 1, oom_penalty=0.0).rows.tolist() == [1]
    assert choose(world(times, weight=[0.6, 0.4]), 1, oom_penalty=0.0).regret == pytest.approx([0.4])


def test_a_plan_that_dies_costs_the_fallback_and_a_trial() -> None:
    # The first plan is fast when it runs, which is in half of the cases; the second always runs, half as fast.
    found = world([[1.0, 2.0], [1.0, 2.0]], [[False, False], [True, False]])
    assert found.risk.tolist() == [0.5, 0.0]
    assert found.safest == 1
    assert found.best_s.tolist() == [1.0, 2.0]
    bold = choose(found, 2, oom_penalty=0.0)
    assert bold.rows.tolist() == [0, 1]
    assert bold.regret == pytest.approx([0.0, 0.0])  # where it dies, nothing is faster than the fallback
    cautious = choose(found, 2, oom_penalty=1.0)
    assert cautious.rows.tolist() == [0, 1]  # half a trial at stake, half of twice the time to win
    assert choose(world([[1.0, 1.3]] * 2, [[False, False], [True, False]]), 1, oom_penalty=1.0).rows.tolist() == [1]


def test_the_fallback_is_fast_among_those_that_all_but_surely_fit() -> None:
    times = [[1.0, 3.0, 2.0]] * 200
    died = [[False, False, False] for _ in times]
    died[0] = [True, False, True]  # half a per cent of the cases
    died[1][0] = died[2][0] = True
    assert world(times, died).safest == 2


def test_a_slow_trial_that_ran_is_not_replaced_by_the_fallback() -> None:
    # The second plan ran and is slow; that the first died gives nobody the third.
    found = world([[1.0, 4.0, 2.0]], [[True, False, False]])
    assert found.expected_regret(np.array([0])) == pytest.approx(0.0)
    assert found.expected_regret(np.array([0, 1])) == pytest.approx(1.0)


def test_nothing_that_runs_is_nobodys_victory() -> None:
    found = world([[1.0, 2.0], [1.0, 2.0]], [[True, True], [False, False]])
    assert found.best_share.tolist() == [0.5, 0.0]
    assert choose(found, 2, oom_penalty=0.1).regret[1] == pytest.approx(0.0)


TIMES = arrays(np.float64, (12, 5), elements=st.floats(0.5, 2.0))


@settings(max_examples=60, deadline=None)
@given(times_s=TIMES)
def test_greedy_reaches_its_share_of_the_best_set(times_s: np.ndarray) -> None:
    found = World.of(np.log(times_s), np.zeros(times_s.shape, dtype=bool), np.full(12, 1 / 12))
    choice = choose(found, 5, oom_penalty=0.0)
    assert sorted(choice.rows.tolist()) == [0, 1, 2, 3, 4]
    assert (np.diff(choice.regret) <= 1e-12).all()
    assert choice.regret[-1] == pytest.approx(0.0, abs=1e-12)
    assert choice.regret[0] == pytest.approx(min(found.expected_regret(np.array([n])) for n in range(5)))
    worst = float(found.regret.max())
    for count in (2, 3):
        best = min(found.expected_regret(np.array(rows)) for rows in combinations(range(5), count))
        assert worst - choice.regret[count - 1] >= (1 - 1 / np.e) * (worst - best) - 1e-12


@settings(max_examples=40, deadline=None)
@given(times_s=TIMES, died=arrays(np.bool_, (12, 5)), factor=st.floats(0.1, 10.0))
def test_a_level_all_plans_share_changes_no_choice(times_s: np.ndarray, died: np.ndarray, factor: float) -> None:
    weight = np.full(12, 1 / 12)
    assume(np.diff(np.sort(weight @ np.log(times_s))).min() > 1e-9)  # of plans equally fast, rounding chooses
    here = World.of(np.log(times_s), died, weight)
    there = World.of(np.log(times_s * factor), died, weight)
    assert there.regret == pytest.approx(here.regret)
    assert there.best_s == pytest.approx(factor * here.best_s)
    assert here.best_share.sum() == pytest.approx((~died).any(axis=1).mean())


def test_weighted_quantile() -> None:
    values, even = np.array([3.0, 1.0, 2.0, 4.0]), np.full(4, 0.25)
    assert weighted_quantile(values, even, 0.5) == 2.0
    assert weighted_quantile(values, even, 0.9) == 4.0
    assert weighted_quantile(values, np.array([0.7, 0.1, 0.1, 0.1]), 0.5) == 3.0
    assert weighted_quantile(values, np.array([0.0, 1.0, 0.0, 0.0]), 0.95) == 1.0
