"""How many measurements lie inside their intervals, and how many lines could, on errors made to order."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from costmodels.calibration.kernel_coverage import ceiling, coverage, scatter


def line(split: str, situation: str, **more: Any) -> dict[str, Any]:
    return {"split": split, "situation": situation, "rows": 100, "mape": 0.1, "bias": 0.0, "covered": 0.9} | more


def found(*lines: dict[str, Any]) -> dict[str, str]:
    """Rows of the table by what was kept out; of two alike the last."""
    rows = [row for row in coverage({"gemm": lines}) if row.startswith("| ")]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def test_splits_tell_the_mean_over_lines_and_over_rows() -> None:
    told = found(
        line("device A", "foreign", covered=0.8, few_shot_covered=0.9),
        line("device B", "foreign", rows=300, covered=1.0),
        line("device C", "related", covered=0.6),
        line("device D", "foreign", rows=49, covered=0.0),
    )
    assert told["unseen GPU, other chip"].startswith("| unseen GPU, other chip | 2 | 90.0 % | 95.0 % | 0 % |")
    assert told["unseen GPU, same chip"].startswith("| unseen GPU, same chip | 1 | 60.0 % |")
    assert told["the same after 100 kernels"] == "| the same after 100 kernels | 1 | 90.0 % | 90.0 % | 100 % |  |"
    assert "random shapes" not in told


@pytest.mark.parametrize(("bias", "std"), [(0.0, 0.1), (0.05, 0.1), (-0.2, 0.1), (0.3, 0.3)])
def test_the_scatter_is_what_the_bias_leaves_of_the_errors(bias: float, std: float) -> None:
    errors = bias + std * norm.ppf((np.arange(20000) + 0.5) / 20000)
    assert scatter(float(np.abs(errors).mean()), bias) == pytest.approx(std, rel=1e-3)
    assert scatter(abs(bias), bias) == 0.0


def test_lines_that_share_nothing_may_all_be_inside_and_those_that_share_all_none() -> None:
    alone = [line("random", "measured", op_class="gemm", bias=bias) for bias in (1e-4, -1e-4)]
    assert ceiling(alone) == 1.0
    together = [line("device", "foreign", op_class="gemm", bias=bias) for bias in (0.1, -0.1)]
    assert ceiling(together) == 0.0


def test_the_ceiling_is_that_of_drawn_lines() -> None:
    """Errors of lines drawn twice as far apart as each scatters, judged by the interval of both spreads."""
    shared, within = 0.2, 0.1
    lines = [line("device", "foreign", op_class="gemm", bias=sign * shared, mape=0.0) for sign in (1, -1)]
    size = abs(shared) * (1 - 2 * norm.cdf(-shared / within)) + within * np.sqrt(2 / np.pi) * np.exp(-2.0)
    lines = [one | {"mape": float(size)} for one in lines]
    draws = np.random.default_rng(0).normal(size=4000) * shared
    half = 1.645 * np.hypot(shared, within)
    inside = norm.cdf((half - draws) / within) - norm.cdf((-half - draws) / within)
    assert ceiling(lines) == pytest.approx(np.mean((inside >= 0.85) & (inside <= 0.95)), abs=0.015)
    assert 0.0 < ceiling(lines) < 0.2
