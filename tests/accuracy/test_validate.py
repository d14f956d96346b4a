"""Accuracy on the published tables must not get worse; the bars are those of the last release of them.

Run against a folder of tables (``PLANNER_DATA``/endtoend). ``docs/accuracy.md`` holds the cross-validated
figures; these are the in-sample ones, which take seconds.
"""

import pytest

from planner.validate.report import ValidationReport, validate
from tests.places import DATA

ENDTOEND = DATA / "endtoend"

pytestmark = [
    pytest.mark.accuracy,
    pytest.mark.skipif(not ENDTOEND.is_dir(), reason="the folder of published tables is not here"),
]

# Shares. Lower them when the planner gets better, never raise them.
TIME_MAPE = 0.13
WORST_TIME_MAPE = 0.25
MEMORY_MAPE = 0.12
VERDICTS_RIGHT = 0.95
LEAST_SCORED = 3600


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    return validate([ENDTOEND])


def test_most_rows_are_scored_and_the_rest_have_a_reason(report: ValidationReport) -> None:
    assert report.overall.rows >= LEAST_SCORED
    assert all(reason for _, _, reason in report.unscorable)
    assert not any("not a number" in reason for _, _, reason in report.unscorable)


def test_step_time(report: ValidationReport) -> None:
    assert report.means.time_sources >= 24
    assert report.means.time_mape is not None
    assert report.means.time_mape <= TIME_MAPE
    assert report.means.worst_time is not None
    assert report.means.worst_time[1] <= WORST_TIME_MAPE, report.means.worst_time


def test_peak_memory(report: ValidationReport) -> None:
    assert report.means.memory_mape is not None
    assert report.means.memory_mape <= MEMORY_MAPE


def test_out_of_memory_verdicts(report: ValidationReport) -> None:
    accuracy = report.overall.oom.accuracy
    assert accuracy is not None
    assert accuracy >= VERDICTS_RIGHT


def test_picks_are_scored(report: ValidationReport) -> None:
    assert "nanotron_sweep.csv" in report.picks
    assert report.picks["nanotron_sweep.csv"].groups >= 10
