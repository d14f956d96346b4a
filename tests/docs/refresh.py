"""Regenerate what the documentation quotes: command output and tables between markers.

``<!-- output: planner models -->`` up to ``<!-- end -->`` holds what that command prints;
``<!-- table: docs/accuracy.md Result -->`` up to ``<!-- end -->`` holds the table under that heading of a
generated page. Run as ``make docs``; the tests check that nothing would change.
"""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from planner.cli.app import main as main_of_planner

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "docs/cli.md",
    "docs/architecture.md",
    "docs/decisions.md",
    "docs/dataflows.md",
    "docs/serving.md",
    "CONTRIBUTING.md",
)
COLUMNS = 110
FIXED = {"COLUMNS": str(COLUMNS), "TERM": "dumb", "NO_COLOR": "1"}
FREE = ("FORCE_COLOR", "PLANNER_CATALOG")  # would change what is printed; a catalogue only where none is read yet
_BLOCK = re.compile(
    r"<!-- (?P<kind>output: (?P<command>[^\n]+)|table: (?P<page>\S+) (?P<heading>[^\n]+)) -->\n.*?<!-- end -->",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """A fixed terminal and the root of the repository, so that output is the same everywhere."""
    before = dict(os.environ)
    os.environ.update(FIXED)
    for name in FREE:
        os.environ.pop(name, None)
    try:
        with contextlib.chdir(ROOT):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(command: str) -> Done:
    """Run one documented command in this process: most of what a new one takes is its start."""
    program, *arguments = shlex.split(command)
    if program != "planner":
        raise SystemExit(f"$ {command}\nonly commands of planner are run")
    code, out, err = 0, io.StringIO(), io.StringIO()
    with environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main_of_planner(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Done(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@cache
def output_of(command: str) -> str:
    """What a documented command prints, without trailing blanks."""
    done = run(command)
    if done.returncode != 0:
        raise SystemExit(f"$ {command}\n{done.stdout}{done.stderr}exit {done.returncode}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def table_of(page: str, heading: str) -> str:
    """The first table under a heading of a generated page."""
    section = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    table = re.search(r"^\|.*?(?=\n[^|]|\n*\Z)", section.group(1), re.DOTALL | re.MULTILINE) if section else None
    if table is None:
        raise SystemExit(f"{page} has no table under '## {heading}'")
    return table.group(0).strip()


def refreshed(text: str) -> str:
    """The document with every marked block regenerated."""

    def block(match: re.Match[str]) -> str:
        command = match["command"]
        quoted = f"```console\n$ {command}\n{output_of(command)}\n```" if command else ""
        body = quoted or table_of(match["page"], match["heading"])
        return f"<!-- {match['kind']} -->\n{body}\n<!-- end -->"

    return _BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the documents in place."""
    for name in DOCUMENTS:
        path = ROOT / name
        if path.exists():
            path.write_text(refreshed(path.read_text()))


if __name__ == "__main__":
    main()
