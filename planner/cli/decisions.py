"""``planner plan --portfolio``, ``sensitivity`` and ``observe``: decisions under uncertainty on the command line."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.options import option
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress
from profiles.errors import SpecError

if TYPE_CHECKING:
    from planner.decisions.results import Terms

_PANEL = "Trials"
_OF_RANKING = ("top", "pareto")
_OF_TRIALS = ("trial_steps", "oom_penalty", "seed")


_option = partial(option, panel=_PANEL)

Portfolio = Annotated[
    int | None, _option("--portfolio", "Instead of the ranking: so many plans worth trying on the cluster.")
]
Rivals = Annotated[int, _option("--rivals", "How many rivals to set against the best plan (3).")]
Trials = Annotated[
    list[Path],
    typer.Option(
        "--trials", help="Tables of trials, as planner validate reads them, or folders.", rich_help_panel=_PANEL
    ),
]
Next = Annotated[int, _option("--next", "How many plans to try next (3).")]
TrialSteps = Annotated[int, _option("--trial-steps", "Steps of one trial (20).")]
OomPenalty = Annotated[
    float, _option("--oom-penalty", "Share of the step time that avoiding a trial out of memory is worth (0.05).")
]
Seed = Annotated[int, _option("--seed", "Of the scenarios, or of a workflow's search (0).")]


def terms_of(**given: Any) -> "Terms":
    """The terms the options name."""
    from planner.decisions.results import Terms

    return Terms(**given)


def check_portfolio_options(given: Mapping[str, Any]) -> None:
    """Refuse options of the ranking where trials are asked for, and the other way round.

    Args:
        given: Options of ``planner plan`` that are not as they are declared.

    Raises:
        SpecError: Naming the first one given.
    """
    portfolio = "portfolio" in given
    what, hint = (
        ("the trials of --portfolio", "leave --portfolio out") if portfolio else ("a ranking", "add --portfolio 3")
    )
    for name in _OF_RANKING if portfolio else _OF_TRIALS:
        if name in given:
            raise SpecError("--" + name.replace("_", "-"), f"has no effect on {what}; got {given[name]}", hint)


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

    with progress("weighing plans", quiet=values["quiet"]), _counted_by("--portfolio"):
        result = portfolio(**inputs, count=count, terms=terms)
    _show(result, portfolio_document, render_portfolio, values)


def show_sensitivity(inputs: Mapping[str, Any], values: Mapping[str, Any], *, rivals: int, terms: "Terms") -> None:
    """Print what to measure first, and exit with 3 if nothing may run.

    Args:
        inputs: Arguments of ``planner.sensitivity``, those of this function left out.
        values: The options of the command line.
        rivals: How many rivals to set against the best plan.
        terms: Penalty and seed.
    """
    from planner.decisions.api import sensitivity
    from planner.decisions.document import sensitivity_document
    from planner.decisions.render import render_sensitivity

    with progress("weighing parameters", quiet=values["quiet"]):
        result = sensitivity(**inputs, rivals=rivals, terms=terms)
    _show(result, sensitivity_document, render_sensitivity, values)


def show_observed(
    inputs: Mapping[str, Any], values: Mapping[str, Any], *, trials: list[Path], count: int, terms: "Terms"
) -> None:
    """Print what trials changed, and exit with 3 if there is no plan to choose.

    Args:
        inputs: Arguments of ``planner.observe``, those of this function left out.
        values: The options of the command line.
        trials: Tables of them.
        count: Most plans to try next.
        terms: Of further trials.
    """
    from planner.decisions.api import observe
    from planner.decisions.document import observe_document
    from planner.decisions.render import render_observed

    with progress("weighing trials", quiet=values["quiet"]), _counted_by("--next"):
        result = observe(**inputs, trials=trials, count=count, terms=terms)
    _show(result, observe_document, render_observed, values)


@contextmanager
def _counted_by(flag: str) -> Iterator[None]:
    """Says of an option of the command line what is wrong with ``count``, which it gives."""
    try:
        yield
    except SpecError as error:
        raise error.at(flag if error.field == "count" else error.field) from None


def _show(
    result: Any, document: Callable[[Any], dict[str, Any]], render: Callable[..., None], values: Mapping[str, Any]
) -> None:
    """Print an answer as its document or its tables, and exit with 3 if nothing fits."""
    shown = (document(result), lambda console: render(result, console, quiet=values["quiet"]))
    emit(shown, json_=values["json_"], output=values["output"], markup=True)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)
