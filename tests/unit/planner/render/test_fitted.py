"""Tables on lines of any width: columns that go are told, and no number is cut."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from planner.render.fitted import FittedTable
from tests.command import command_line

OBSERVE = ("observe", "--model", "llama-2-13b", "--gpus", "8xA100-SXM-80GB", "--trials", "docs/example-trials.csv")


def drawn(width: int) -> list[str]:
    table = FittedTable(leave_out=("rate", "much", "share"))
    table.add_column("plan", overflow="fold", min_width=4)
    for title in ("much", "share", "rate", "GiB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row("tp2 pp4", "123,456,789", "45", "678.9", "72.5")
    console = Console(file=io.StringIO(), width=width)
    console.print(table, crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (40, "plan much share rate GiB"),
        (37, "plan much share rate GiB"),
        (36, "plan much share GiB"),
        (29, "plan share rate GiB"),  # the wide one makes room for the one that went first
        (23, "plan share GiB"),
        (16, "plan GiB"),
        (8, "plan GiB"),  # longer than the line, rather than cut
    ],
)
def test_columns_go_in_their_order_and_are_told(width: int, titles: str) -> None:
    lines = drawn(width)
    assert lines[0].split() == titles.split()
    assert lines[1].split()[-1] == "72.5"
    assert "…" not in "".join(lines)
    told = " ".join(" ".join(lines).partition("no room")[2].split())
    assert {title for title in ("much", "share", "rate") if title in told} == {"much", "share", "rate"} - {
        *titles.split()
    }
    assert told.endswith("a wider terminal or --json shows them") == bool(told)


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (("gpus",), ["device", "16-bit", "memory"]),
        (("models",), ["model", "params"]),
        ((*OBSERVE, "--next", "2", "--quiet"), ["#", "was", "plan", "step", "fastest"]),
        (("plan", "--model", "13b", "--gpus", "16xH100", "--quiet"), ["#", "tp", "pp", "dp", "zero", "step", "GiB"]),
    ],
)
def test_tables_of_60_columns_cut_no_number(
    command: Sequence[str], kept: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    code, out, _ = command_line(capsys, monkeypatch, columns=60)(*command)
    assert code == 0
    assert "…" not in out
    assert any(set(kept) <= set(line.split()) for line in out.splitlines())
    assert "no room at 60 columns for" in out
    assert max(map(len, out.splitlines())) <= 60
