"""Packaged tables of published figures, and the commands of pages that tell what planner said of them first.

What is said first is written once, with the commit that said it; what is there stays.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path


def packaged_rows(name: str) -> tuple[Mapping[str, str], ...]:
    """Cells by column of every row of a table in ``planner/validate/data``, in its order."""
    table = resources.files("planner.validate") / "data" / name
    return tuple(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The same of a table in a folder of published runs."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def optional_float(text: str) -> float | None:
    """A cell's number; None where it is empty."""
    return float(text) if text else None


def optional_int(text: str) -> int | None:
    """A cell's whole number; None where it is empty."""
    return int(text) if text else None


def write_page(
    description: str | None,
    page: Callable[[], str],
    said: Callable[[], Collection[Sequence[str]]],
    arguments: Sequence[str] | None,
) -> None:
    """The command of a page: ``--out`` writes it, ``--first`` adds rows to the table of what was said first.

    The folder of the page need not be there.

    Args:
        description: Of the command.
        page: Gives the page as Markdown.
        said: Gives what has not been said yet, as the cells after the commit.
        arguments: Words of the command line; the process's own unless given.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=None, help="page to write")
    parser.add_argument("--first", type=Path, default=None, help="table to add what has not been said yet to")
    asked = parser.parse_args(arguments)
    if asked.first is not None:
        sys.stdout.write(f"{_add(asked.first, said())} said first\n")
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(page(), encoding="utf-8")


def _add(path: Path, rows: Collection[Sequence[str]]) -> int:
    """Add rows, each with the commit that is checked out; how many they are."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    with path.open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([commit.stdout.strip(), *cells] for cells in rows)
    return len(rows)
