"""Regenerate what the documentation quotes: command output and tables between markers.

``<!-- output: planner models -->`` up to ``<!-- end -->`` holds what that command prints;
``<!-- table: docs/accuracy.md Result -->`` up to ``<!-- end -->`` holds the table under that heading of a
generated page. Run as ``make docs``; the tests check that nothing would change.
"""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

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
_BLOCK = re.compile(
    r"<!-- (?P<kind>output: (?P<command>[^\n]+)|table: (?P<page>\S+) (?P<heading>[^\n]+)) -->\n.*?<!-- end -->",
    re.DOTALL,
)


def environment() -> dict[str, str]:
    """The process environment with a fixed terminal, so that output is the same everywhere."""
    fixed = {"COLUMNS": str(COLUMNS), "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "LC_ALL": "C.UTF-8"}
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PLANNER_CATALOG")}
    return kept | fixed


def run(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one documented command with this interpreter's installation, and some more environment variables."""
    program, *arguments = shlex.split(command)
    path = Path(sys.executable).with_name(program)
    return subprocess.run(
        [str(path), *arguments],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


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
