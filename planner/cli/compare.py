"""``planner compare``: plans of saved answers beside each other."""

from collections.abc import Sequence
from pathlib import Path

from planner.cli.export import read_saved
from planner.cli.output import emit, progress
from profiles.errors import SpecError


def show_compare(
    answers: Sequence[str], *, stack_fit: str | None, json_: bool, output: str | None, quiet: bool
) -> None:
    """Print the plans of the files, each perhaps with the rank of the plan that is meant.

    Args:
        answers: Paths of saved answers, as ``FILE`` or ``FILE#RANK``.
        stack_fit: Path of the fit of one's own runs that answers among them rest on.
        json_: Print the document.
        output: File to write it to as well.
        quiet: No progress.

    Raises:
        SpecError: If a file is no saved answer, or there is nothing to compare.
    """
    from planner.comparing import compare
    from planner.document_compare import compare_document
    from planner.render.compare import render_compare

    named = [_named(answer) for answer in answers]
    documents = [read_saved(path, "ANSWERS") for path, _ in named]
    ranked = len(named) > 1 or named[0][1] is not None
    ranks = [1 if rank is None else rank for _, rank in named] if ranked else None
    names = [path.stem if rank is None else f"{path.stem}#{rank}" for path, rank in named] if ranked else None
    with progress("pricing plans", quiet=quiet):
        try:
            result = compare(*documents, ranks=ranks, names=names, stack_fit=stack_fit)
        except SpecError as error:
            field = error.field
            for place, answer in enumerate(answers):
                field = field.replace(f"answers[{place}].", f"{answer[:200]}, ")
                field = answer[:200] if field in (f"answers[{place}]", f"ranks[{place}]") else field
            raise error.at(field) from None
    emit((compare_document(result), lambda console: render_compare(result, console)), json_=json_, output=output)


def _named(answer: str) -> tuple[Path, int | None]:
    """A path and the rank after it; a path that exists is taken as it is."""
    path, mark, rank = answer.rpartition("#")
    if not mark or Path(answer).exists():
        return Path(answer), None
    if not (rank.isascii() and rank.isdecimal() and len(rank) < 6):
        raise SpecError("ANSWERS", f"{rank[:20]!r} is no rank", f"for example {path[:100]}#2")
    return Path(path), int(rank)
