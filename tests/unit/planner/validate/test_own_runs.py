"""Our own measured training steps: what no fit saw must come out right."""

from dataclasses import replace

import pytest

from planner.validate.own_runs import own_rows, own_runs, own_section
from planner.validate.report import ValidationReport, validate
from profiles.stacks import load_stacks


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
    assert report.overall.time.covered > 0.85
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


def test_what_the_allocator_held_is_read_beside_live_tensors() -> None:
    rows = own_rows()
    assert len(rows) == 275
    assert all(row.reserved_bytes is not None and row.memory_bytes is not None for row in rows)
    shares = [(row.reserved_bytes or 0) / (row.memory_bytes or 1) for row in rows]
    assert min(shares) > 0.97  # what a case before left cached is taken off
    assert max(shares) < 1.3  # sequences of one length leave the allocator few gaps


def test_a_fit_without_a_kind_of_run_judges_it() -> None:
    """The share that the allocator caches decides what is held, and nothing else on the line."""
    much = {name: replace(load_stacks()[name], cache_fraction=1.0) for name in ("hf-trainer", "pytorch")}
    plain, other = (
        [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("| H")]
        for section in (own_section(), own_section(judges={"own measurement": much}))
    )
    for before, after in zip(plain, other, strict=True):
        tuned = "fine-tuning" in before[1]
        assert (before == after) is tuned
        assert before[:12] == after[:12]
        held = [float(cells[12].removesuffix("%")) for cells in (before, after)]
        assert held[0] < 10
        assert (held[1] > 15) is not tuned
