"""Files named on the command line that have no end, or more than anybody would save."""

import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from planner.cli import export
from planner.dataflow.solving import inputs
from tests.command import Command

ENDLESS = "/dev/zero"
READING = [
    ("compare", "{}"),
    ("export", "--format", "megatron-lm", "--plan", "{}"),
    ("replan", "--plan", "{}", "--onto", "8xA100"),
    ("dataflow", "solve", "{}"),
]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What the process has and 1.5 GB more, twice the largest file that is read."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + 1_500_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory are Linux's")
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("command", READING)
def test_a_device_without_end_is_too_large(run: Command, command: Sequence[str]) -> None:
    code, out, told = run(*(word.format(ENDLESS) for word in command))
    field = {"compare": "ANSWERS", "dataflow": "FILE"}.get(command[0], "--plan")
    assert (code, out) == (2, "")
    assert told.startswith(f"error: {field}: cannot read '/dev/zero': it is larger than ")


@pytest.mark.parametrize("command", READING)
def test_a_file_beyond_the_bound_is_too_large_rather_than_no_json(
    run: Command, command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_MAX_BYTES", 1 << 10)
    monkeypatch.setattr(inputs, "MOST_BYTES", 1 << 10)
    path = tmp_path / "answer.json"
    for size, words in ((1 << 10, "JSON"), ((1 << 10) + 1, f"cannot read {str(path)!r}: it is larger than 1 KiB")):
        path.write_text(" " * size)
        code, _, told = run(*(word.format(path) for word in command))
        assert code == 2
        assert words in told
