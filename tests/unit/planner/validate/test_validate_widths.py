"""How wide intervals must be, on errors that can be counted by hand."""

import numpy as np
import pytest

from costmodels.uncertainty import NORMAL_90
from planner.validate.widths import log_std, residual_log_std


def test_residual_weighs_sources_alike_and_other_stacks_as_one() -> None:
    errors = np.array([0.1] * 10 + [0.3] + [0.5] * 100)
    of_row = np.array(["A"] * 10 + ["B"] + ["C"] * 100)
    told, own = np.ones(111, np.bool_), np.array([True] * 11 + [False] * 100)
    assert residual_log_std(errors, of_row, told, own) == pytest.approx(0.5 * np.sqrt(1 + 1 / 3) / NORMAL_90)
    assert residual_log_std(errors, of_row, own, own) == pytest.approx(0.3 * np.sqrt(1 + 1 / 2) / NORMAL_90)
    assert residual_log_std(errors, of_row, ~told, own) == 0


def test_sources_count_as_many_as_tell_as_much() -> None:
    """Of a stack with no runs, four sources of others tell as four; beside one of its own, as two thirds of one."""
    errors, of_row, told = np.full(5, 0.2), np.array(list("ABCDE")), np.ones(5, np.bool_)
    own = of_row == "E"
    alone = residual_log_std(errors, of_row, told & ~own, own) * NORMAL_90
    assert alone == pytest.approx(0.2 * np.sqrt(1 + 1 / 4))
    beside = residual_log_std(errors, of_row, told, own) * NORMAL_90
    assert beside == pytest.approx(0.2 * np.sqrt(1 + (1 + 1 / 4) / 2**2))


def test_only_what_is_beyond_other_intervals_is_the_residuals() -> None:
    errors, of_row, every = np.array([0.5, -0.5]), np.array(["A", "B"]), np.ones(2, np.bool_)
    explained = np.array([0.3, 0.4])
    told = residual_log_std(errors, of_row, every, every, explained) * NORMAL_90 / np.sqrt(1 + 1 / 2)
    assert told == pytest.approx(0.4)  # 0.3 and 0.4 make 0.5; the other row needs 0.3 only
    assert residual_log_std(errors, of_row, every, every, 0.6) == 0


def test_ninety_per_cent_of_the_weight_lies_inside() -> None:
    size = np.random.default_rng(0).permutation(np.arange(1, 101) / 100.0)
    width = log_std(size, np.ones(100)) * NORMAL_90
    assert width == pytest.approx(0.90)
    assert np.mean(size <= width + 1e-12) == pytest.approx(0.9)
    assert log_std(np.array([10.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(10 / NORMAL_90)


def test_of_normal_errors_it_is_their_standard_deviation() -> None:
    size = np.abs(np.random.default_rng(0).normal(0, 0.2, 20000))
    assert log_std(size, np.ones(20000)) == pytest.approx(0.2, rel=0.02)


def test_a_heavy_row_counts_as_many() -> None:
    """A row that weighs as much as ninety-nine others: the tenth outside is theirs."""
    size = np.array([*[0.1] * 99, 0.5])
    assert log_std(size, np.ones(100)) * NORMAL_90 == pytest.approx(0.1)
    assert log_std(size, np.array([*[1 / 99] * 99, 1.0])) * NORMAL_90 == pytest.approx(0.5)
