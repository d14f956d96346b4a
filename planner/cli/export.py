"""``planner export``: a plan as the files and the launch line of a training framework."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.flow import workflow_question, write_timelines
from planner.cli.options import given, option, question
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress, write_text
from profiles.bounded_files import read_bounded
from profiles.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from planner.exporters.exported import Exported, ExportResult

_PANEL = "Export"
_OUTPUT = ("json_", "output", "quiet", "debug")
_MAX_BYTES = 1 << 26  # of a saved answer


_option = partial(option, panel=_PANEL)

_FORMATS = (
    "megatron-lm, megatron-bridge, deepspeed, torchtitan, accelerate, nanotron, axolotl, llama-factory or trl; "
    "with --job verl, nemo-rl or openrlhf."
)
Format = Annotated[str, _option("--format", _FORMATS)]
Plan = Annotated[Path | None, _option("--plan", "Take the plan from an answer saved with --json instead.")]
Rank = Annotated[int | None, _option("--rank", "Which plan of that answer (1).")]
Out = Annotated[Path | None, _option("--out", "Write the files to this folder instead of printing them.")]
Partial = Annotated[bool, _option("--allow-partial", "Leave out what the target cannot express, and say so.")]


def show_export(
    inputs: Callable[[], dict[str, Any]], values: Mapping[str, Any], settings: Mapping[str, Any], *, out: Path | None
) -> None:
    """Export, print or write the files, and exit with 3 if the plan does not fit.

    Args:
        inputs: Arguments of ``planner.export`` that the options of a question give.
        values: Those options.
        settings: Values of ``--format``, ``--plan``, ``--rank`` and ``--allow-partial``.
        out: Folder for the files.
    """
    from planner.exporters.document import export_document
    from planner.exporting import export, export_saved

    chosen = {"format": settings["format"], "allow_partial": settings["allow_partial"]}
    if settings["plan"] is None:
        check_question(values, settings["rank"])
        with progress("pricing plans", quiet=values["quiet"]):
            result = export(**inputs(), **chosen)
    else:
        check_saved(values)
        rank = 1 if settings["rank"] is None else settings["rank"]
        with saved_options():
            result = export_saved(read_saved(settings["plan"]), rank=rank, **chosen)
    if out is not None:
        _write(result.exported, out)
    shown = (export_document(result), lambda console: _render(result, console, out))
    emit(shown, json_=values["json_"], output=values["output"])
    for words in () if values["quiet"] else result.differs:
        typer.echo(f"note: {words}", err=True)
    if result.risky and not values["quiet"]:
        _warn_of_risk(result.oom_probability or 0.0)
    if not result.fits:
        if result.exported is not None and not values["quiet"]:
            typer.echo("warning: the plan does not fit into memory; planner estimate says what would", err=True)
        raise typer.Exit(EXIT_NOTHING_FITS)


def _warn_of_risk(oom_probability: float) -> None:
    from planner.phrases import percent

    typer.echo(f"warning: {percent(oom_probability)} risk of running out of memory", err=True)


def show_flow_export(values: Mapping[str, Any], settings: Mapping[str, Any], *, out: Path | None) -> None:
    """Export the plan of a workflow, print or write the script, and exit with 3 if nothing fits.

    Args:
        values: Options, those of ``flow.workflow`` under that name.
        settings: As for ``show_export``.
        out: Folder for the files.
    """
    from planner.exporters.flow_api import export_dataflow
    from planner.exporters.flow_document import flow_export_document
    from planner.render.flow import render_flow

    own = {name: settings[name] for name in ("plan", "rank")}
    question, asked = workflow_question(values, own)
    target, partial_ = settings["format"], settings["allow_partial"]
    with progress("searching plans", quiet=values["quiet"]):
        result = export_dataflow(*question, format=target, allow_partial=partial_, **asked)
    write_timelines(result.flow, values["workflow"])
    if out is not None:
        _write(result.exported, out)

    def show(console: "Console") -> None:
        if result.exported is None:
            render_flow(result.flow, console, quiet=values["quiet"])
        else:
            _render_files(result.exported, console, out)

    emit((flow_export_document(result), show), json_=values["json_"], output=values["output"])
    if result.risky and result.flow.plan is not None and not values["quiet"]:
        _warn_of_risk(result.flow.plan.riskiest.oom_probability)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)


@contextmanager
def saved_options() -> Iterator[None]:
    """Errors about a saved answer name the options that give it."""
    names = {"document": "--plan", "rank": "--rank", "stack_fit": "--stack-fit"}
    inside = "document."
    try:
        yield
    except SpecError as error:
        field = names.get(error.field, error.field)
        raise error.at(f"--plan, {field.removeprefix(inside)}" if field.startswith(inside) else field) from None


def check_question(values: Mapping[str, Any], rank: int | None) -> None:
    """Refuse a question without devices, and what picks a plan of a saved answer where there is none.

    Raises:
        SpecError: Naming the option.
    """
    if rank is not None:
        raise SpecError("--rank", "names a plan of a saved answer, and none is given", "add --plan FILE")
    if not values["gpus"]:
        raise SpecError("--gpus", "is required", "for example --gpus 8xA100; or --plan FILE, a saved answer")


def check_saved(values: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> None:
    """Refuse what says something about a question where a saved answer holds one.

    Args:
        values: The options of a question.
        but: Those among them that it does not hold.

    Raises:
        SpecError: Naming the first such option.
    """
    for name in given(values, question):
        if name not in (*_OUTPUT, *but) and values[name] not in ([], ""):
            flag = "--" + name.rstrip("_").replace("_", "-")
            raise SpecError(flag, "has no effect on a saved answer", "leave it or --plan out")


def read_saved(path: Path, option: str = "--plan") -> Any:
    """An answer that was saved with ``--json``.

    Args:
        path: The file.
        option: Of the command line, that names it.

    Raises:
        SpecError: If the file cannot be read, is too large, or is no JSON.
    """
    from profiles import strict_json

    try:
        return strict_json.loads(read_bounded(path, _MAX_BYTES))
    except OSError as error:
        raise SpecError(option, f"cannot read {str(path)[:200]!r}: {error.strerror}") from None
    except ValueError:
        raise SpecError(option, f"{str(path)[:200]!r} is not JSON", "save an answer with --json") from None


def _write(exported: "Exported | None", out: Path) -> None:
    if exported is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError("--out", f"cannot make {str(out)[:200]!r}: {error.strerror}") from None
    for name, text in exported.files.items():
        write_text(str(out / name), text.removesuffix("\n"), option="--out")


def _render(result: "ExportResult", console: "Console", out: Path | None) -> None:
    """The files as they are, or what was written; a name before each where there are several."""
    exported = result.exported
    if exported is None:
        from planner.render.plans import render_infeasible

        if result.infeasible is not None:
            render_infeasible(result.infeasible, console)
        return
    _render_files(exported, console, out)


def _render_files(exported: "Exported", console: "Console", out: Path | None) -> None:
    if out is None:
        for name, text in sorted(exported.files.items()):
            heading = f"==> {name} <==\n" if len(exported.files) > 1 else ""
            console.out(heading + text, highlight=False)
        return
    lines = [f"wrote {out / name}" for name in sorted(exported.files)]
    lines += [f"not said, {exported.target.name} cannot: {gap.field}: {gap.problem}" for gap in exported.unsupported]
    lines += [f"left to you: {words}" for words in exported.left_to_you]
    console.out("\n".join(lines), highlight=False)
