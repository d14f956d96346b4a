"""``planner replan``: a running job on other devices."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli.export import check_question, check_saved, read_saved, saved_options
from planner.cli.options import option
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress
from planner.cli.words import cluster_of

_PANEL = "Replanning"


_option = partial(option, panel=_PANEL)

Onto = Annotated[str, _option("--onto", "The devices to continue on, as --gpus names them.")]
Saved = Annotated[Path | None, _option("--plan", "Take the running plan from an answer saved with --json instead.")]
Rank = Annotated[int | None, _option("--rank", "Which plan of that answer (1).")]
Change = Annotated[float, _option("--batch-change", "Share by which the global batch may change (0.1).")]


def show_replan(
    inputs: Callable[[], dict[str, Any]], values: Mapping[str, Any], settings: Mapping[str, Any], *, onto: str
) -> None:
    """Print the ways to go on, and exit with 3 if there is none.

    Args:
        inputs: Arguments of ``planner.replan`` that the options of a question give.
        values: Those options.
        settings: Values of ``--plan``, ``--rank`` and ``--batch-change``.
        onto: The new devices.
    """
    from planner.document_replan import replan_document
    from planner.render.replan import render_replan
    from planner.replanning import replan, replan_saved

    chosen = {"onto": cluster_of(onto, "--onto"), "batch_change": settings["batch_change"]}
    with progress("pricing plans", quiet=values["quiet"]):
        if settings["plan"] is None:
            check_question(values, settings["rank"])
            result = replan(**inputs(), **chosen)
        else:
            check_saved(values, but=("stack_fit",))
            rank = 1 if settings["rank"] is None else settings["rank"]
            with saved_options():
                result = replan_saved(read_saved(settings["plan"]), rank=rank, stack_fit=values["stack_fit"], **chosen)
    shown = (replan_document(result), lambda console: render_replan(result, console, quiet=values["quiet"]))
    emit(shown, json_=values["json_"], output=values["output"], markup=True)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)
