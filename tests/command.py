"""The command line without a process."""

from collections.abc import Callable, Sequence

import pytest

from planner.cli import app as cli

Command = Callable[..., tuple[int, str, str]]


def instead(base: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
    """Words of a command whose options all have a value, but for those that are given anew, and these."""
    pairs = zip(base[::2], base[1::2], strict=True)
    return (*(word for pair in pairs if pair[0] not in options for word in pair), *options)


def exit_code(arguments: Sequence[str]) -> int:
    """Of ``planner`` with some arguments."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, columns: int = 100) -> Command:
    """Runs ``planner`` with some arguments: exit code, what it printed, and what it said of errors."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = exit_code(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
