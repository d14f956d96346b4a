"""``planner plan --portfolio``: decisions under uncertainty on the command line."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli_output import emit, progress

if TYPE_CHECKING:
    from planner.decisions.results import Terms

EXIT_NOTHING_FITS = 3
_PANEL = "Trials"


def _option(name: str, words: str) -> Any:
    return typer.Option(name, help=words, rich_help_panel=_PANEL, show_default=False)


Portfolio = Annotated[
    int | None, _option("--portfolio", "Instead of the ranking: so many plans worth trying on the cluster.")
]
TrialSteps = Annotated[int, _option("--trial-steps", "Steps of one trial (20).")]
OomPenalty = Annotated[
    float, _option("--oom-penalty", "Share of the step time that avoiding a trial out of memory is worth (0.05).")
]
Seed = Annotated[int, _option("--seed", "Of the scenarios, or of a workflow's search (0).")]


def terms_of(trial_steps: int, oom_penalty: float, seed: int) -> "Terms":
    """The terms the options name."""
    from planner.decisions.results import Terms

    return Terms(steps=trial_steps, oom_penalty=oom_penalty, seed=seed)


def show_portfolio(inputs: Mapping[str, Any], values: Mapping[str, Any], *, count: int, terms: "Terms") -> None:
    """Print the plans worth trying, and exit with 3 if nothing may run.

    Args:
        inputs: Arguments of ``planner.portfolio``, those of this function left out.
        values: The options of the command line.
        count: Most plans.
        terms: Of the trials.
    """
    from planner.decisions.api import portfolio
    from planner.decisions.document import portfolio_document
    from planner.decisions.render import render_portfolio

    with progress("weighing plans", quiet=values["quiet"]):
        result = portfolio(**inputs, count=count, terms=terms)
    shown = (portfolio_document(result), lambda console: render_portfolio(result, console, quiet=values["quiet"]))
    emit(shown, json_=values["json_"], output=values["output"], markup=True)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)
