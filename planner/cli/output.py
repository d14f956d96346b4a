"""How commands answer: the document or its tables on stdout, signs of life on stderr."""

import codecs
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from planner.cli.hints import worded
from profiles.errors import PlannerError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_BAD_INPUT, EXIT_NOTHING_FITS = 2, 3
STDOUT = "stdout"  # as a field of errors
_PLAINLY = "planner.plainly"  # of Python's handlers of errors of encodings
_PLAIN = {"█": "#", "▏": "|", "…": "~"}
_PIPED_WIDTH = 120  # columns where no terminal says how many it has: names are not cut that a filter looks for


def emit(
    shown: tuple[Mapping[str, Any], Callable[["Console"], None]],
    *,
    json_: bool,
    output: str | None,
    markup: bool = False,
) -> None:
    """Write the document to the file asked for, and the document or its tables to stdout.

    Args:
        shown: The document, and what prints its tables.
        json_: Print the document.
        output: File to write it to as well.
        markup: Whether the tables hold rich's markup; without, names from files may hold any bracket.
    """
    document, tables = shown
    if json_ or output is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        if output is not None:
            write_text(output, text, option="--output")
        if json_:
            with _writing():
                typer.echo(text if _writable(text) else json.dumps(document, indent=2, allow_nan=False))
            return
    from rich.console import Console

    class Tables(Console):
        """Rich would exit with 1, a bug's code, where the reader has gone, and cut lines."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*objects, **{"crop": False} | how)  # a line that is too long is not cut

    with _writing():
        watched = sys.stdout.isatty() or "COLUMNS" in os.environ
        tables(Tables(markup=markup, emoji=False, width=None if watched else _PIPED_WIDTH))


def told_error(error: PlannerError, arguments: Sequence[str]) -> str:
    """The line that tells people what is wrong, in the words of the command line.

    Args:
        error: What is wrong.
        arguments: Those of the command. With ``--json`` it goes to stdout too, for programs: ``errors`` as the service
            has them; where stdout is what failed, nothing is written.
    """
    workflow = any(word == "--job" or word.startswith("--job=") for word in arguments)
    told = worded(error, workflow=workflow) if isinstance(error, SpecError) else SpecError("", str(error))
    if "--json" in arguments and told.field != STDOUT:
        errors = [{"field": told.field, "problem": told.problem, "hint": told.hint}]
        with contextlib.suppress(SpecError):
            emit(({"errors": errors}, lambda console: None), json_=True, output=None)
    return f"error: {told if isinstance(error, SpecError) else error}"


def steady_streams() -> None:
    """Makes what is printed survive a standard stream that is closed, or whose encoding lacks a character."""
    codecs.register_error(_PLAINLY, _plainly)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_PLAINLY)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What is written instead of characters that an encoding lacks: of those of tables, others as wide."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


def _writable(text: str) -> bool:
    """Whether stdout can encode every character."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def leave_stdout() -> None:
    """What is still written to stdout goes nowhere: the interpreter would complain at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """What is written to stdout in this block.

    A reader who has gone, as in `planner models | head`, changes nothing of what the command does or exits with.

    Raises:
        SpecError: If it cannot be, as on a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        leave_stdout()
    except OSError as error:
        raise SpecError(STDOUT, f"cannot write the answer: {error.strerror}") from None


def write_text(path: str, text: str, *, option: str) -> None:
    """Write a file the user asked for.

    Raises:
        SpecError: If that cannot be done; the field is the option that named it.
    """
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError(option, f"cannot write {path[:200]!r}: {error.strerror}") from None


@contextlib.contextmanager
def progress(words: str, *, quiet: bool) -> Iterator[None]:
    """A spinner on stderr while something takes time, if someone is watching."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield
