"""``planner search``: plans whose stages may differ, with a proof or a gap."""

from typing import Annotated, Any

import typer

from planner.cli.output import EXIT_NOTHING_FITS, emit, progress

_SEARCH = "Search"

Strategy = Annotated[
    str, typer.Option("--strategy", help="auto, enumerate, cpsat, mcmc or all.", rich_help_panel=_SEARCH)
]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds",
        help="Longest time to search; what is found in it depends on the machine and its load.",
        rich_help_panel=_SEARCH,
    ),
]
Evaluations = Annotated[
    int | None,
    typer.Option(
        "--evaluations",
        help="Plans and stages priced after which to stop; uniform plans all are.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        help="Of everything random; with --evaluations, and time enough, a search repeats itself.",
        rich_help_panel=_SEARCH,
    ),
]
Runnable = Annotated[
    bool,
    typer.Option("--runnable", help="Only plans that --framework can run.", rich_help_panel=_SEARCH),
]


def show_search(arguments: dict[str, Any], values: dict[str, Any]) -> None:
    """Search, print the answer, and exit with 3 if nothing fits.

    Args:
        arguments: Of ``planner.search.call.search``.
        values: Values of the shared options.
    """
    from planner.document_search import search_document
    from planner.render.search import render_search
    from planner.search.call import search

    with progress("searching", quiet=values["quiet"]):
        result = search(**arguments)
    shown = (search_document(result), lambda console: render_search(result, console, quiet=values["quiet"]))
    emit(shown, json_=values["json_"], output=values["output"])
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)
