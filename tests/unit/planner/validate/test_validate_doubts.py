"""Runs that cannot be, or look wrong: the column, the value and the likely mistake are told."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from planner.calibrate_runs import calibrate_runs
from planner.render.runs import show_run_calibration
from planner.validate.doubts import PER_GPU, REPEATS_AGREE, TOTAL, doubts
from planner.validate.predict import predict_rows
from planner.validate.render import summary_lines
from planner.validate.report import report_document, validate
from planner.validate.tables.mapping import map_files, scorable_rows
from profiles.errors import SpecError
from profiles.stacks import load_stacks
from tests.rows import ROW, runs_table

TOKENS = 128 * 2048  # of a step of those runs, on 8 GPUs
STEP = "measured_step_time_s"


def expected_s(path: Path, count: int) -> list[float]:
    return predict_rows(scorable_rows([runs_table(path, [1.0] * count)]), load_stacks()).step_time_s.tolist()


def as_column(path: Path, column: str, values: list[float]) -> Path:
    """The table of runs with their times in another column."""
    lines = path.read_text().splitlines()
    for number, value in enumerate(values):
        lines[number + 1] = lines[number + 1].rpartition(",")[0] + f",{value:.9g}"
    lines[0] = lines[0].replace(STEP, column)
    path.write_text("\n".join(lines) + "\n")
    return path


def tokens(path: Path, column: str, *, gpus: float, count: int = 4) -> Path:
    """Runs as fast as expected, with the tokens/s of so many of their 8 GPUs in a column."""
    return as_column(path, column, [TOKENS / seconds * gpus / 8 for seconds in expected_s(path, count)])


def test_tokens_of_all_gpus_under_those_of_one_are_refused(tmp_path: Path) -> None:
    path = tokens(tmp_path / "runs.csv", PER_GPU, gpus=8)
    for read in (calibrate_runs, partial(validate, users_own=True)):
        with pytest.raises(SpecError) as found:
            read([path])
        assert str(found.value).startswith(f"runs.csv:2:{PER_GPU}: ")
        assert "% of the bf16 peak of 8 A100-SXM-80GB. Hint: is it that of all GPUs" in str(found.value)
        assert str(found.value).endswith(f"which {TOTAL} holds?")


def test_a_run_at_the_peak_is_possible_and_one_above_is_not(tmp_path: Path) -> None:
    """6 FLOPs per weight and token, and attention of which half is masked: the peak of 312 TFLOP/s takes 1.85 s."""
    (row,) = scorable_rows([runs_table(tmp_path / "runs.csv", [4.0])])
    products = 6 * (32 * 12 * 2560**2 + 51200 * 2560) * TOKENS
    attention = 32 * 6 * 2048 * 2560 * TOKENS
    least_s = (products + attention) / (8 * 312e12)
    assert row.time_column == STEP
    for share, kept in ((1.01, 1), (0.99, 0)):
        mapped = map_files([runs_table(tmp_path / "runs.csv", [share * least_s])], users_own=True)
        assert len(mapped.scorable) == kept
    assert "is it that of a micro-batch" in mapped.unscorable[0].reason


def test_tokens_of_one_gpu_under_those_of_all_are_doubted(tmp_path: Path) -> None:
    path = tokens(tmp_path / "runs.csv", TOTAL, gpus=1)
    (told,) = calibrate_runs([path]).warnings
    assert told == (
        f"runs.csv: tokens/s of {TOTAL} are about the number of GPUs below what is expected in 4 runs; "
        f"are they those of {PER_GPU}?"
    )
    report = validate([path], users_own=True)
    assert report.warnings == (told,)
    assert report_document(report)["warnings"] == [told]
    assert summary_lines(report)[-1] == f"Warning: {told}"


@pytest.mark.parametrize(("column", "gpus"), [(TOTAL, 8), (TOTAL, 4), (PER_GPU, 1), (PER_GPU, 0.5)])
def test_runs_twice_as_slow_as_expected_are_slow(tmp_path: Path, column: str, gpus: float) -> None:
    assert calibrate_runs([tokens(tmp_path / "runs.csv", column, gpus=gpus)]).warnings == ()


def test_few_gpus_tell_no_column_from_the_other() -> None:
    node = replace(ROW.cluster.node, devices_per_node=2)
    row = replace(ROW, step_time_s=2.0, time_column=TOTAL, cluster=replace(ROW.cluster, node=node))
    assert doubts([row], np.array([1.0])) == ()
    assert len(doubts([replace(row, cluster=ROW.cluster, step_time_s=8.0)], np.array([1.0]))) == 1


def test_repeats_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    apart = replace(ROW, step_time_s=2.0, repeats=2, repeat_times_s=(1.0, 3.0))
    assert doubts([apart], np.array([1.0])) == (
        "t.csv:2: 2 runs of this plan took 1 to 3 s a step, 3 times apart; what differed between them?",
    )
    assert doubts([apart] * 5, np.ones(5))[-1] == "and 2 more plans whose runs differ by over 1.2 times"
    assert pytest.approx(1.204, abs=1e-3) == REPEATS_AGREE  # 1.645 times the root of two times 8 %
    assert doubts([replace(apart, repeat_times_s=(1.0, 1.19))], np.array([1.0])) == ()
    path = runs_table(tmp_path / "runs.csv", [3.0, 6.0])
    with path.open() as stream:
        lines = list(csv.reader(stream))
    path.write_text("\n".join(",".join(cells) for cells in (*lines, [*lines[1][:-1], "9.0"])) + "\n")
    document, _ = show_run_calibration(calibrate_runs([path]), None)
    assert [text.partition(" took")[0] for text in document["warnings"]] == ["runs.csv:2: 2 runs of this plan"]
