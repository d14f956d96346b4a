"""Decisions under uncertainty as tables for a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.decisions.results import Grounds, PortfolioResult
from planner.phrases import dollars, percent, plan_label, seconds
from planner.render import heading, render_infeasible, render_notes

_MATERIAL = 0.001  # shares below this are not worth a line


def render_portfolio(result: PortfolioResult, console: Console, *, quiet: bool = False) -> None:
    """The plans worth trying; ``quiet`` leaves out what was assumed and how to read the table."""
    heading(result.request, console)
    if result.infeasible is not None:
        render_infeasible(result.infeasible, console)
    else:
        console.print("\nWorth trying on the cluster, in this order", style="bold", highlight=False)
        console.print(_trials_table(result))
        _summary(result, console)
        if not quiet:
            _say(_READING.format(steps=result.grounds.terms.steps), console)
            _say(grounds_sentence(result.grounds), console)
    if not quiet:
        render_notes("Assumed", result.request.assumptions, console)


_READING = (
    "regret: how much slower than the fastest candidate the fastest plan tried so far is, expected (exceeded in one "
    "case of ten); trial: {steps} steps, start-up not counted"
)


def grounds_sentence(grounds: Grounds) -> str:
    """What a decision rests on, in a sentence."""
    words = (
        f"{grounds.draws:,} scenarios of {grounds.candidates} candidates ({grounds.considered:,} legal plans), seed "
        f"{grounds.terms.seed}"
    )
    if grounds.effective_draws < 0.99 * grounds.draws:
        words += f", worth {grounds.effective_draws:,.0f} equally likely ones"
    return f"{words}; step times are interpolated, within {percent(grounds.table_error)} of the cost path"


def _trials_table(result: PortfolioResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("plan", overflow="fold")
    for title in ("step", "90 % interval", "OOM", "fastest", "regret", "trial"):
        table.add_column(title, justify="right", no_wrap=True)
    for trial in result.trials:
        cost = f"{trial.device_hours:.3g} GPU-h"
        table.add_row(
            str(trial.rank),
            plan_label(trial.plan),
            seconds(trial.step_time_s),
            f"{seconds(trial.step_time_low_s)} - {seconds(trial.step_time_high_s)}",
            percent(trial.oom_probability),
            percent(trial.best_probability),
            f"{percent(trial.regret)} ({percent(trial.regret_high)})",
            cost if trial.cost_usd is None else f"{cost}, {dollars(trial.cost_usd)}",
        )
    return table


def _summary(result: PortfolioResult, console: Console) -> None:
    """What all trials cost and gain."""
    trials = result.trials
    hours = sum(trial.device_hours for trial in trials)
    words = f"All {len(trials)}: {hours:.3g} GPU-hours" if len(trials) > 1 else f"One: {hours:.3g} GPU-hours"
    costs = [trial.cost_usd for trial in trials if trial.cost_usd is not None]
    if costs:
        words += f", {dollars(sum(costs))}"
    if result.ranked_regret is not None and len(trials) > 1:
        words += (
            f"; expected regret {percent(trials[-1].regret)}, with the first {len(trials)} of the ranking "
            f"{percent(result.ranked_regret)}"
        )
    saved = [trial.saved_device_hours for trial in trials if trial.saved_device_hours is not None]
    if saved:
        words += f"; the trials after the first save {sum(saved):,.0f} GPU-hours of the run"
    _say(words, console, style="")


def _say(words: str, console: Console, *, style: str = "dim") -> None:
    console.print(Text(words, style=style))
