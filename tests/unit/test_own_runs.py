"""Our own measured training steps: what no fit saw must come out right."""

import pytest

from planner.validate.own_runs import own_runs, own_section
from planner.validate.report import ValidationReport, validate


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    return validate([path for path in own_runs() if "fine-tuning" not in path.name])


def test_both_cards_are_packaged_and_every_run_is_scored(report: ValidationReport) -> None:
    assert report.files == ("H100-SXM-80GB.runs.csv", "H200-SXM-141GB.runs.csv")
    assert report.overall.rows == 160
    assert not report.unscorable
    assert {row.stack for row in report.rows} == {"pytorch"}
    assert all(not row.assumptions for row in report.rows)


def test_peaks_of_live_tensors_are_right_to_a_few_percent(report: ValidationReport) -> None:
    assert report.overall.memory is not None
    assert report.overall.memory.mape < 0.03
    worst = max(
        abs(row.predicted_memory_bytes / row.measured_memory_bytes - 1)
        for row in report.rows
        if row.predicted_memory_bytes and row.measured_memory_bytes
    )
    assert worst < 0.12


def test_times_rank_as_measured_and_lie_within_their_intervals(report: ValidationReport) -> None:
    assert report.overall.time is not None
    assert report.overall.rank is not None
    assert report.overall.time.mape < 0.15
    assert report.overall.time.covered is not None
    assert report.overall.time.covered > 0.9
    assert report.overall.rank.mean > 0.9
    assert report.all_picks is not None
    assert report.all_picks.mean_regret is not None
    assert report.all_picks.mean_regret < 0.03


def test_the_section_has_one_line_per_card() -> None:
    section = own_section()
    lines = [line for line in section.splitlines() if line.startswith("| H")]
    assert len(lines) == 4
    columns = {line.count("|") for line in section.splitlines() if line.startswith("|")}
    assert len(columns) == 1
