"""``planner sizing``: how many devices, and of which kind."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from planner.cli.options import option
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress
from planner.cli.words import cluster_of
from profiles.errors import SpecError, shown

Days = Annotated[float | None, option("--days", "When the run of --tokens has to be done.", "Sizing")]


def show_sizing(inputs: Mapping[str, Any], values: Mapping[str, Any], *, days: float | None) -> None:
    """Look at growing parts of clusters, print what fits, and exit with 3 if nothing does, or nothing in time.

    Args:
        inputs: Arguments of ``planner.sizing``, clusters and days left out.
        values: The options of the command line; ``gpus`` may name several kinds, with commas between.
        days: When the run has to be done.

    Raises:
        SpecError: If a kind is none, or the question is wrong; what is about one of several kinds names it.
    """
    from planner.document_sizing import sizing_document
    from planner.render.sizing import render_sizing
    from planner.sizes import sizing

    kinds = [text.strip() for text in values["gpus"].split(",")]
    if not all(kinds):
        problem = f"names nothing before or after a comma; got {shown(values['gpus'])}"
        raise SpecError("--gpus", problem, "for example 8xH100,8xA100")
    clusters = [cluster_of(text) for text in kinds]
    with progress("pricing plans", quiet=values["quiet"]):
        try:
            result = sizing(**inputs, clusters=clusters, days=days)
        except SpecError as error:
            field = error.field
            for place, text in enumerate(kinds):
                whole = f"clusters[{place}]"
                field = field.replace(f"{whole}.", f"--gpus, {text[:200]}, ").replace(whole, f"--gpus, {text[:200]}")
            raise error.at(field) from None
    answer = (sizing_document(result), lambda console: render_sizing(result, console, quiet=values["quiet"]))
    emit(answer, json_=values["json_"], output=values["output"], markup=True)
    if not (result.fits and result.in_time):
        raise typer.Exit(EXIT_NOTHING_FITS)
