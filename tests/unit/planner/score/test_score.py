"""Scores of measured tables: errors by device, operation and dtype, and reasons for what has none."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from costmodels.tables.mapping import kernel_rows
from costmodels.tables.read import SCHEMAS, read_table
from planner.cli.app import app
from planner.score.kernels import FewShot, price_rows, score_kernels
from planner.score.render import render_scores
from planner.score.results import GroupScore, TableScore
from planner.score.table import score_table, scores_document
from planner.validate.metrics import ErrorSummary
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from tests.fakes import RateKernels, device

HEADER = ",".join(SCHEMAS["gemm"])
# 2 * 1000^3 operations at 100 TFLOP/s: 20 us.
LINE = "here,{gpu},{dtype},1000,1000,1000,1,{time},{notes}"


def write(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "gemm.csv"
    defaults = {"gpu": "A100-SXM4-80GB", "dtype": "bf16", "time": 20.0, "notes": "x"}
    path.write_text("\n".join([HEADER, *(LINE.format(**defaults | row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def scored(path: Path, **rates):
    return score_kernels(kernel_rows(read_table(path)), RateKernels(**rates), default_catalog())


def test_errors_by_group_against_numbers_worked_out_by_hand(tmp_path):
    path = write(tmp_path, {"time": 20.0}, {"time": 40.0}, {"gpu": "H100-SXM5-80GB", "time": 10.0})
    (a100, h100), unpriced = scored(path, relative_half_width=0.1)
    assert (a100.device, a100.op, a100.dtype) == ("A100-SXM-80GB", "gemm", "bf16")
    assert a100.errors.rows == 2
    assert a100.errors.mape == pytest.approx(0.25)  # 0 and 50 %
    assert a100.errors.bias == pytest.approx(-0.25)
    assert a100.errors.covered == pytest.approx(0.5)
    assert a100.long_errors is not None
    assert a100.long_errors.mape == pytest.approx(0.5)  # 20 us is not longer than 20 us
    assert a100.basis == {"analytic": 1.0}
    assert h100.errors.bias == pytest.approx(1.0)
    assert h100.long_errors is None
    assert unpriced == []


def test_a_row_of_two_calls_costs_their_sum(tmp_path):
    path = write(tmp_path, {"dtype": "fp32", "notes": "bwd(dgrad+wgrad)"})
    time_s, low_s, high_s, _ = price_rows(kernel_rows(read_table(path)), RateKernels(relative_half_width=0.5), device())
    assert time_s == pytest.approx([40e-6])
    assert (low_s, high_s) == (pytest.approx([20e-6]), pytest.approx([60e-6]))


def test_launches_that_a_source_times_along_are_added(tmp_path):
    path = write(tmp_path, {})
    path.write_text(path.read_text().replace("here,", "deepbench,"), encoding="utf-8")
    time_s, low_s, high_s, _ = price_rows(kernel_rows(read_table(path)), RateKernels(), device())
    assert time_s == pytest.approx([27e-6])
    # A host not seen may take 0.4 to twice the 7 us; the kernel's own interval has no width here.
    assert (high_s - low_s) == pytest.approx([7e-6 * 1.6])


def test_rows_without_a_price_are_counted_with_the_reason(tmp_path):
    path = write(tmp_path, {"gpu": "TitanX"}, {"gpu": "TitanX"}, {"dtype": "fp8"}, {"dtype": "int4"}, {})
    groups, unpriced = scored(path)
    assert [group.errors.rows for group in groups] == [1]
    reasons = {(item.gpu, item.dtype): (item.rows, item.reason) for item in unpriced}
    assert reasons[("TitanX", "bf16")][0] == 2
    assert "add it as YAML" in reasons[("TitanX", "bf16")][1]
    assert reasons[("A100-SXM4-80GB", "fp8")] == (1, "A100-SXM-80GB has no fp8 arithmetic")
    assert reasons[("A100-SXM4-80GB", "int4")] == (1, "arithmetic that training does not use")


def test_scales_per_block_are_refused_where_nothing_multiplies_so(tmp_path):
    path = write(tmp_path, *({"gpu": gpu, "dtype": kind} for gpu in ("H100", "B200") for kind in ("fp8", "mxfp8")))
    groups, unpriced = scored(path)
    assert {(group.device, group.dtype) for group in groups} == {
        ("H100-SXM-80GB", "fp8"), ("B200-SXM-180GB", "fp8"), ("B200-SXM-180GB", "mxfp8"),
    }  # fmt: skip
    assert [(item.dtype, item.reason) for item in unpriced] == [("mxfp8", "H100-SXM-80GB has no mxfp8 arithmetic")]


def test_every_row_is_in_a_group_or_has_a_reason(tmp_path):
    rng = np.random.default_rng(0)
    gpus, dtypes = ("A100", "H100", "none"), ("bf16", "fp8", "int8")
    path = write(tmp_path, *({"gpu": gpus[a], "dtype": dtypes[b]} for a, b in rng.integers(0, 3, (60, 2))))
    score = score_table(path)
    assert sum(group.errors.rows for group in score.groups) + sum(item.rows for item in score.unpriced) == 60
    assert json.loads(json.dumps(scores_document([score])))["tables"][0]["rows"] == 60


def test_the_command_prints_tables_and_documents(tmp_path):
    path = write(tmp_path, {}, {"dtype": "int8"})
    shown = CliRunner().invoke(app, ["profiles", "score", str(path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "A100-SXM-80GB" in shown.output
    assert "not priced: 1 rows" in shown.output
    document = json.loads(CliRunner().invoke(app, ["profiles", "score", str(path), "--json"]).output)
    assert document["tables"][0]["groups"][0]["errors"]["rows"] == 1


def slow_by_half(tmp_path: Path) -> Path:
    """Sixty GEMMs that take 1.5 times what ``RateKernels`` says."""
    rng = np.random.default_rng(1)
    shapes = rng.integers(8, 64, (60, 3)) * 64
    lines = [
        f"here,A100,bf16,{m},{n},{k},1,{1.5e6 * max(2 * m * n * k / 100e12, 2 * (m * n + m * k + k * n) / 1e12)},x"
        for m, n, k in shapes
    ]
    path = tmp_path / "gemm.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_few_rows_calibrate_the_rest(tmp_path):
    rows, catalog = kernel_rows(read_table(slow_by_half(tmp_path))), default_catalog()
    (before,), _ = score_kernels(rows, RateKernels(), catalog)
    (after,), _ = score_kernels(rows, RateKernels(), catalog, few_shot=FewShot(rows=20, seed=3))
    assert before.errors.mape == pytest.approx(1 / 3)
    assert after.errors.mape < 0.03
    assert after.errors.rows == 40
    assert (before.calibrated_with, after.calibrated_with) == (0, 20)
    assert after.basis == {"learned": 1.0}


def test_rows_of_every_format_are_spent(tmp_path):
    sizes = 2.0 ** np.random.default_rng(0).uniform(8, 13, (210, 3))
    lines = [f"here,L40S,{'fp8' if row < 10 else 'bf16'},{m:.0f},{n:.0f},{k:.0f},1,99,x"
             for row, (m, n, k) in enumerate(sizes)]  # fmt: skip
    path = tmp_path / "gemm.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    groups, _ = score_kernels(
        kernel_rows(read_table(path)), RateKernels(), default_catalog(), few_shot=FewShot(rows=20, seed=1)
    )
    left = {group.dtype: group.errors.rows for group in groups}
    assert 5 <= left["fp8"] < 9
    assert left["fp8"] + left["bf16"] == 190


def test_a_gpu_with_few_rows_keeps_half_of_them_to_be_scored(tmp_path):
    (group,) = score_table(slow_by_half(tmp_path), few_shot=FewShot(rows=100)).groups
    assert (group.calibrated_with, group.errors.rows) == (30, 30)
    few, _ = score_kernels(
        kernel_rows(read_table(write(tmp_path, *[{}] * 7))),
        RateKernels(),
        default_catalog(),
        few_shot=FewShot(rows=100),
    )
    assert (few[0].calibrated_with, few[0].errors.rows) == (0, 7)


@pytest.mark.parametrize("width", [72, 80, 120])
def test_figures_are_never_cut(width):
    errors = ErrorSummary(rows=123_456, mape=1.234, median=0.5, p90=12.345, bias=-1.234, covered=0.9)
    group = GroupScore(
        gpu="g", device="RTX-PRO-6000-Blackwell-96GB", op="deepep_normal_dispatch", dtype="64 ranks on 8 nodes",
        errors=errors, long_errors=errors, basis={"learned": 0.5, "analytic": 0.5},
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=width)
    render_scores([TableScore(table="t.csv", schema="gemm", rows=1, groups=(group,), unpriced=())], console)
    text = console.file.getvalue()
    assert "…" not in text
    for figure in ("123,456", "123.4", "50.0", "1234.5", "-123.4", "90"):
        assert figure in text
    assert ("learned 50 %" in text) is (width >= 100)


def test_impossible_rows_are_counted_and_not_scored(tmp_path):
    """1000^3 takes 6.4 us at the peak of an A100."""
    score = score_table(write(tmp_path, *[{"time": 20.0}] * 4, {"time": 3.0}))
    assert [group.errors.rows for group in score.groups] == [4]
    assert [(item.rows, item.reason) for item in score.unpriced] == [
        (1, "beats the arithmetic peak of its device and dtype")
    ]
    with pytest.raises(SpecError, match=r"5 of 5 rows are faster than A100-SXM-80GB can be.*is the time column in ms"):
        score_table(write(tmp_path, *[{"time": 0.02}] * 5))


def test_a_table_of_which_no_row_has_a_price_is_bad_input(tmp_path):
    path = write(tmp_path, {"gpu": "nobody's"})
    shown = CliRunner().invoke(app, ["profiles", "score", str(path)])
    assert shown.exit_code == 2
    assert "not priced: 1 rows" in shown.output
