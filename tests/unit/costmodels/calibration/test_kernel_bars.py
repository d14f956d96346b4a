"""The first table of docs/kernels.md."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.kernel_bars import bars


def line(split: str, situation: str, mape: float, kind: str = "16-bit", **more: Any) -> dict[str, Any]:
    return {
        "split": split, "situation": situation, "format": kind, "rows": 100, "mape": mape, "covered": 0.9,
        "constant_roofline_mape": 0.5, "bias": 0.0,
    } | more  # fmt: skip


def section(op_class: str, *lines: dict[str, Any]) -> str:
    card: Any = SimpleNamespace(op_class=op_class, errors={"splits": list(lines)})
    return bars([card])


def test_each_bar_is_the_mean_over_devices_with_the_worst_behind_it():
    text = section(
        "gemm", line("random", "measured", 0.04), line("device A", "foreign", 0.1, few_shot_mape=0.05),
        line("device B", "foreign", 0.3, few_shot_mape=0.07), line("device C", "related", 0.9),
        line("source S", "foreign", 0.9),
    )  # fmt: skip
    assert "| GEMM 16-bit, random shapes | random | 5 | 4.0 | 50.0 |" in text
    assert "| GEMM 16-bit, unseen GPU, other chip | device | 20 | 20.0 (30) | 50.0 (50) |" in text
    assert "| the same after 100 kernels | device | 10 | 6.0 (7) |" in text
    assert "GEMM fp8, random shapes | random | 5 |  |  |" in text
    assert "attention" not in text


def test_a_missed_bar_is_laid_at_the_lines_above_it():
    """By how far each is above the bar, and whether its rows are off together."""
    text = section(
        "gemm", line("device A", "foreign", 0.5, bias=-0.5, few_shot_mape=0.05),
        line("device B", "foreign", 0.3, bias=0.1, few_shot_mape=0.13), line("device C", "foreign", 0.1),
        line("random", "measured", 0.06, bias=0.03), line("device D", "related", 0.09),
    )  # fmt: skip
    assert "| GEMM 16-bit, other chip | device A, 16-bit | 100 | 50.0 | 75 | 100 |" in text
    assert "| GEMM 16-bit, other chip | device B, 16-bit | 100 | 30.0 | 25 | 33 |" in text
    assert "device C" not in text
    assert "device D" not in text
    assert "| GEMM 16-bit, random | random, 16-bit | 100 | 6.0 | 100 | 50 |" in text
    assert "other chip, after 100" not in text  # 9 % on the mean, under its bar
    assert "Where a bar is missed" not in section("gemm", line("random", "measured", 0.04))


def test_unnamed_operations_stand_beside_a_model_that_knows_names():
    text = section("memory", line("kind norm", "unmet", 0.2, "", named_mape=0.35), line("random", "measured", 0.1, ""))
    assert "| norm | 100 | 20.0 | 50.0 | 35.0 |" in text


def test_coverage_counts_lines_by_situation():
    few = line("random", "measured", 0.1, covered=0.2) | {"rows": 10}
    text = section(
        "gemm", line("random", "measured", 0.1, covered=0.9), line("larger", "beyond", 0.1, covered=0.99),
        line("own", "beyond", 0.1, covered=0.7), few,
    )  # fmt: skip
    assert "| measured | 1 | 0 | 1 | 0 | 90.0 |" in text
    assert "| beyond | 2 | 1 | 0 | 1 | 84.5 |" in text
