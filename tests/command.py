"""The command line without a process."""

from collections.abc import Callable

import pytest

from planner.cli import app as cli

Command = Callable[..., tuple[int, str, str]]


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, columns: int = 100) -> Command:
    """Runs ``planner`` with some arguments: exit code, what it printed, and what it said of errors."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
