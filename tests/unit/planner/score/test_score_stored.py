"""Scores of what a calibration stored of a device makes of its prices, and the line that says that there is one."""

from pathlib import Path
from typing import Any

import pytest

from planner.borrowed import borrowed
from profiles.timing_files import write_timings
from profiles.timing_store import TimingStore
from tests.unit.planner.test_device_calibration import pretended
from tests.unit.planner.test_device_calibration import run as calibrated


@pytest.fixture
def fresh(tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]) -> Path:
    """Kernels of an A40 that sixty others were calibrated with."""
    del store
    write_timings(pretended(), tmp_path / "seen.parquet")
    assert calibrated("calibrate", "--device", "A40", "--from", str(tmp_path / "seen.parquet"), "--quiet") == 0
    capsys.readouterr()
    path = tmp_path / "fresh.parquet"
    others = pretended(seed=9)
    write_timings(others.having(n=others.n + 512), path)
    return path


def test_stored_calibrations_are_scored_when_asked_for(fresh: Path, run: Any) -> None:
    code, out, _ = run("profiles", "score", str(fresh))
    assert code == 0
    assert "without the calibration stored of A40: add --stored" in " ".join(out.split())
    code, out, _ = run("profiles", "score", str(fresh), "--stored")
    assert code == 0
    assert "without the calibration" not in out


def test_without_one_that_is_an_error(tmp_path: Path, run: Any) -> None:
    write_timings(pretended(), tmp_path / "seen.parquet")
    code, _, err = run("profiles", "score", str(tmp_path / "seen.parquet"), "--stored")
    assert code == 2
    assert "no calibration of A40 is stored" in " ".join(err.split())
    code, _, err = run("profiles", "score", str(tmp_path / "seen.parquet"), "--stored", "--calibrate-with", "9")
    assert code == 2
    assert "give one of them" in " ".join(err.split())


def test_the_warning_of_borrowed_prices_knows_what_was_measured(
    fresh: Path, store: TimingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    del fresh
    monkeypatch.setattr("profiles.timing_store.default_store", lambda: store)
    note = borrowed("step_time_s", ["A40", "L40S", "A40"])
    assert note.code == "uncalibrated"
    assert note.message == "what you did not measure of A40 has efficiencies borrowed from other hardware"
    assert "no timings of this one" in borrowed("step_time_s", ["L40S"]).message
