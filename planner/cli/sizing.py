"""``planner sizing``: how many devices, and of which kind."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from planner.cli.options import option
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress
from planner.cli.words import cluster_of

Days = Annotated[float | None, option("--days", "When the run of --tokens has to be done.", "Sizing")]


def show_sizing(inputs: Mapping[str, Any], values: Mapping[str, Any], *, days: float | None) -> None:
    """Look at growing parts of clusters, print what fits, and exit with 3 if nothing does, or nothing in time.

    Args:
        inputs: Arguments of ``planner.sizing``, clusters and days left out.
        values: The options of the command line; ``gpus`` may name several kinds, with commas between.
        days: When the run has to be done.
    """
    from planner.document_sizing import sizing_document
    from planner.render.sizing import render_sizing
    from planner.sizes import sizing

    clusters = [cluster_of(text.strip()) for text in values["gpus"].split(",")]
    with progress("pricing plans", quiet=values["quiet"]):
        result = sizing(**inputs, clusters=clusters, days=days)
    shown = (sizing_document(result), lambda console: render_sizing(result, console, quiet=values["quiet"]))
    emit(shown, json_=values["json_"], output=values["output"], markup=True)
    if not (result.fits and result.in_time):
        raise typer.Exit(EXIT_NOTHING_FITS)
