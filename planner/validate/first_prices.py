"""Prices a round of tables that nobody has priced, once, and writes every first error into the notes of its line.

Run as ``python -m planner.validate.first_prices --round 3``, from a commit whose stacks are the packaged ones, before
any of the round's errors is known and after all of its tables are committed. What it writes is never written again:
it refuses a round that ``planner.validate.unseen.priced.BLIND_COMMITS`` holds, or one of whose lines has a first error.
The commit, and the widths that it prints, are then to be added to ``BLIND_COMMITS`` and to ``PACKAGED_THEN`` of
``planner.validate.unseen.page``. Intervals are those of the fits alone, as in ``docs/unseen.md``.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from planner.validate.tables.reader import read_rows
from planner.validate.tables.rows import UNSEEN_ROUNDS
from planner.validate.unseen.priced import BLIND_COMMITS, Unseen, price_tables, unseen_tables
from profiles.errors import SpecError
from profiles.stacks import fitted_stacks, for_strangers

Line = tuple[str, int]
_REPEAT = "a repeat of another row"


def first_notes(unseen: Unseen) -> Mapping[Line, str]:
    """What is to be noted of every row of a round: its first errors, and the verdict on what became of it.

    Args:
        unseen: The tables of the round, priced by ``fitted_stacks()``.

    Raises:
        SpecError: If a row cannot be priced.
    """
    parts: dict[int, list[str]] = {}
    for kind, judged in unseen.judged.items():
        what = "blind memory" if kind.of_memory else "blind"
        columns = (judged.numbers.tolist(), judged.error.tolist(), judged.inside.tolist())
        for number, error, inside in zip(*columns, strict=True):
            if not np.isfinite(error):
                raise SpecError(f"{unseen.rows[number].file}:{unseen.rows[number].line}", "cannot be priced")
            parts.setdefault(number, []).append(f"{what} {100 * error:+.1f} %, {'inside' if inside else 'outside'}")
    for number, right in zip(unseen.verdicts.numbers.tolist(), unseen.verdicts.right.tolist(), strict=True):
        parts.setdefault(number, []).append(f"blind verdict {'right' if right else 'wrong'}")
    return {(unseen.rows[number].file, unseen.rows[number].line): "; ".join(said) for number, said in parts.items()}


def write_notes(path: Path, notes: Mapping[Line, str]) -> None:
    """Append to the notes of every line of a table what is to be said of it; lines of no row of their own repeat one.

    Raises:
        SpecError: If a line has a first error already.
    """
    rows = read_rows(path)
    for row in rows:
        if "blind " in row.text("notes"):
            raise SpecError(row.where("notes"), "has a first error already")
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0].cells), lineterminator="\n")
        table.writeheader()
        for row in rows:
            said = notes.get((row.file, row.line), _REPEAT)
            table.writerow({**row.cells, "notes": "; ".join(part for part in (row.text("notes"), said) if part)})


def _widths() -> str:
    """The widths for publishers nobody has seen, as packaged, by framework."""
    trained, tuned = (for_strangers(fitted_stacks(), task) for task in ("pretrain", "full"))
    of = {stack.framework: name for name, stack in trained.items()}
    return "; ".join(
        f"{framework}: pretrain {trained[name].publisher_log_std}, tuning {tuned[name].publisher_log_std}, "
        f"memory {trained[name].memory_publisher_log_std}"
        for framework, name in sorted(of.items())
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Price a round and write its first errors.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(prog="planner.validate.first_prices", description=main.__doc__)
    waiting = sorted(set(UNSEEN_ROUNDS.values()) - set(BLIND_COMMITS))
    parser.add_argument("--round", type=int, required=True, choices=waiting, help="which; a priced one never again")
    number = parser.parse_args(arguments).round
    tables = unseen_tables(number)
    for table in tables:
        if any("blind " in row.text("notes") for row in read_rows(table)):
            raise SpecError(table.name, "has first errors already")
    notes = first_notes(price_tables(tables, fitted_stacks()))
    for table in tables:
        write_notes(table, notes)
    sys.stdout.write(f"round {number}: {len(notes)} rows, widths packaged: {_widths()}\n")


if __name__ == "__main__":
    main()
