"""What several files of unit tests start from: a store of one's own, and the command line without a process."""

from pathlib import Path
from typing import Any

import pytest

from profiles import timing_store
from profiles.timing_store import TimingStore
from tests.command import Command, command_line


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TimingStore:
    """An empty store of timings, in place of the user's."""
    mine = tmp_path / "mine"
    mine.mkdir()
    found = TimingStore(directories=(tmp_path / "packaged", mine))
    monkeypatch.setattr(timing_store, "default_store", lambda: found)
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: TimingStore) -> Any:
    """Runs a command on that store: exit code, what it printed, and what it said of errors."""
    del store
    return command_line(capsys, monkeypatch)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command on the user's store: exit code, what it printed, and what it said of errors."""
    return command_line(capsys, monkeypatch)
