"""The whole of ``planner validate`` on the packaged table, and its document."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from planner.validate.render import reason_kinds, render_report, summary_lines
from planner.validate.report import ValidationReport, published_table, report_document, validate
from planner.validate.tables.reader import read_rows
from profiles.errors import SpecError


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    return validate()


def test_every_packaged_row_is_scored(report: ValidationReport) -> None:
    assert report.unscorable == {}
    assert report.overall.rows >= 140
    assert len(report.by_source) >= 18


def test_every_packaged_row_is_cited() -> None:
    rows = read_rows(published_table())
    assert len(rows) <= 150
    for row in rows:
        assert row.text("source_url_or_path").startswith("https://"), row.line
        assert row.text("locator"), row.line


def test_overall_counts_are_those_of_the_sources(report: ValidationReport) -> None:
    assert sum(item.rows for item in report.by_source) == report.overall.rows
    assert report.overall.time is not None
    assert sum(item.time.rows for item in report.by_source if item.time) == report.overall.time.rows
    assert report.overall.rows == len(report.rows)


def test_means_leave_the_noisy_sweep_apart(report: ValidationReport) -> None:
    apart = [item for item in report.by_source if item.apart]
    assert [item.source for item in apart] == ["Ultra-Scale Playbook sweep, nanotron"]
    counted = [s.time.mape for s in report.by_source if s.time and s.time.rows >= 8 and not s.apart]
    assert report.means.time_mape == pytest.approx(sum(counted) / len(counted))
    assert report.means.time_sources == len(counted)


def test_predictions_are_of_the_right_size(report: ValidationReport) -> None:
    """Not an accuracy bar (see tests/accuracy): half or twice of every price would show."""
    assert report.overall.time is not None
    assert report.overall.time.median < 0.35
    assert report.overall.memory is not None
    assert report.overall.memory.median < 0.35


def test_picks_are_scored_where_a_file_holds_groups(report: ValidationReport) -> None:
    assert report.all_picks is not None
    assert report.all_picks.groups >= 2
    assert set(report.picks) == {"published.csv"}


def test_document_is_json_in_si_units(report: ValidationReport) -> None:
    document = json.loads(json.dumps(report_document(report, rows=True), allow_nan=False))
    assert document["schema_version"] == 1
    assert {"means_over_sources", "overall", "by_file", "by_source", "picks", "unscorable", "rows"} <= set(document)
    assert len(document["rows"]) == report.overall.rows
    assert {"measured_step_time_s", "predicted_memory_bytes"} <= set(document["rows"][0])
    assert "rows" not in report_document(report)


def test_renders_tables(report: ValidationReport) -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    render_report(report, console)
    text = console.export_text()
    assert "Step time, predicted against measured" in text
    assert "The plan the planner would pick" in text
    assert summary_lines(report)[0] in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 120])
def test_tables_hold_one_line_per_source(report: ValidationReport, width: int) -> None:
    console = Console(record=True, width=width, file=io.StringIO())
    render_report(report, console)
    lines = console.export_text().splitlines()
    rows = lines[lines.index(next(line for line in lines if line.startswith("source"))) + 1 :]
    rows = rows[: next(number for number, line in enumerate(rows) if not line.strip())]
    assert len(rows) == 1 + sum(item.time is not None for item in report.by_source)
    assert all(len(line) <= width for line in lines)
    assert sum("…" in line.split("  ")[-1] for line in rows) == 0, "a figure was cut"
    assert any("Reducing Activation Recomputation" in line for line in rows)


def test_reasons_that_differ_in_particulars_are_told_together() -> None:
    counts = {
        ("a.csv", "s", "not a GPU: TPU v4"): 2,
        ("b.csv", "s", "not a GPU: Gaudi2"): 3,
        ("b.csv", "s", "method 'peft:ia3' is not priced"): 1,
        ("b.csv", "t", "method 'peft:miss' is not priced"): 1,
        ("b.csv", "t", "sequence length not stated"): 1,
    }
    assert reason_kinds([counts]) == [
        ("not a GPU, e.g. Gaudi2", 5, 2),
        ("method '...' is not priced", 2, 1),
        ("sequence length not stated", 1, 1),
    ]


def test_unscorable_rows_are_listed_with_their_reason(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("source,model,gpu,num_gpus,framework\nMine,gpt,TPU v4,8,Megatron-LM\n", encoding="utf-8")
    report = validate([table])
    assert report.unscorable == {("mine.csv", "Mine", "not a GPU: TPU v4"): 1}
    assert report.overall.rows == 0
    assert report.means.time_mape is None
    assert summary_lines(report)[0].startswith("0 rows scored")


def test_malformed_tables_are_the_users_error(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("source,model\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"mine\.csv:1:gpu"):
        validate([table])
