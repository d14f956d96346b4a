"""Decisions under uncertainty as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.decisions.results import (
    Grounds,
    ObserveResult,
    PortfolioResult,
    RivalSensitivity,
    SensitivityResult,
    Trial,
)
from planner.phrases import dollars, percent, plan_label, seconds, unused_row
from planner.render.fitted import LEAST_PLAN, FittedTable
from planner.render.plans import heading, render_infeasible, render_notes

_MATERIAL = 0.001  # shares below this are not worth a line
_JUST_RUN = 0.01  # regret below which nothing is worth measuring
_MOST_DECIDERS = 5
_LEARNT = 0.9  # share of its spread below which something was learnt of a parameter


def render_portfolio(result: PortfolioResult, console: Console, *, quiet: bool = False) -> None:
    """The plans worth trying; ``quiet`` leaves out what was assumed and how to read the table."""
    heading(result.request, console)
    if result.infeasible is not None:
        render_infeasible(result.infeasible, console)
    else:
        console.print("\nWorth trying on the cluster, in this order", style="bold", highlight=False)
        console.print(_trials_table(result.trials))
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
    return (
        f"{words}; step times are interpolated, {percent(grounds.table_error)} from the cost path (at most "
        f"{percent(grounds.table_error_largest)})"
    )


def _trials_table(trials: Sequence[Trial]) -> Table:
    table = FittedTable(leave_out=("90 % interval", "trial", "OOM", "fastest"))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold", min_width=LEAST_PLAN)
    for title in ("step", "90 % interval", "OOM", "fastest", "regret", "trial"):
        table.add_column(title, justify="right", no_wrap=True)
    for trial in trials:
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


def render_sensitivity(result: SensitivityResult, console: Console, *, quiet: bool = False) -> None:
    """What to measure first; ``quiet`` leaves out what was assumed and how to read the tables."""
    heading(result.request, console)
    if result.choice is None or result.step_time_s is None or result.infeasible is not None:
        if result.infeasible is not None:
            render_infeasible(result.infeasible, console)
    else:
        console.print(f"\n[bold]{plan_label(result.choice)}[/]: {seconds(result.step_time_s)} a step", highlight=False)
        _say(_verdict(result), console, style="")
        console.print()
        console.print(_worth_table(result))
        for rival in result.rivals:
            _rival(rival, console)
        if not quiet:
            console.print()
            _say(_SENSITIVITY_READING, console)
            _say(grounds_sentence(result.grounds), console)
    if not quiet:
        render_notes("Assumed", result.request.assumptions, console)


_SENSITIVITY_READING = (
    "saves: how much faster the plan chosen would be, expected, if that were known beforehand; shares of a difference: "
    "total Sobol' indices, own: what only trials of the two plans tell"
)


def _verdict(result: SensitivityResult) -> str:
    """What knowing is worth at all."""
    if result.perfect < _JUST_RUN:
        return f"Run it: knowing everything beforehand would save {percent(result.perfect)} of the step."
    known = f"all of the hardware {percent(max(result.hardware, 0.0))}, all of the stack"
    return (
        f"The best plan without a trial. Knowing everything beforehand would save {percent(result.perfect)} of the "
        f"step: {known} {percent(max(result.stack, 0.0))}, the rest only trials tell."
    )


def _worth_table(result: SensitivityResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter", no_wrap=True)
    hours = any(item.device_hours is not None for item in result.worth)
    for title in ("known to", "saves", *(["GPU-hours"] if hours else [])):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("measured by")
    told = [item for item in result.worth if item.regret >= _MATERIAL]
    for item in told:
        saved = [] if item.device_hours is None else [f"{item.device_hours:,.0f}"]
        table.add_row(item.name, f"{item.std:.2f}", percent(item.regret), *saved, item.measured_by)
    left = len(result.worth) - len(told)
    if left:
        blanks = [""] if hours else []
        table.add_row(f"{left} others", "", f"< {percent(_MATERIAL)}", *blanks, "")
    return table


def _rival(rival: RivalSensitivity, console: Console) -> None:
    """What decides between the choice and one rival."""
    deciders = ", ".join(f"{item.name} {percent(item.total)}" for item in rival.deciders[:_MOST_DECIDERS])
    words = (
        f"\nagainst {plan_label(rival.plan)} ({100 * (rival.step_time_ratio - 1):+.1f} %, faster in "
        f"{percent(rival.faster_probability)} of cases): {deciders or 'nothing'}"
    )
    _say(words, console, style="")


def render_observed(result: ObserveResult, console: Console, *, quiet: bool = False) -> None:
    """What trials changed; ``quiet`` leaves out warnings, what was assumed and how to read the tables."""
    heading(result.request, console)
    if result.infeasible is not None:
        render_infeasible(result.infeasible, console)
    else:
        console.print("\nTrials", style="bold", highlight=False)
        console.print(_observed_table(result))
        _say(_learned_words(result), console, style="")
        if result.plans:
            console.print("\nPlans before and after, best first", style="bold", highlight=False)
            console.print(_updated_table(result))
        if result.regret is not None:
            words = f"Stopping here: the fastest that ran is expected to be {percent(result.regret)} above the best."
            _say(words, console, style="")
        if result.next_trials:
            console.print("\nWorth trying next", style="bold", highlight=False)
            console.print(_trials_table(result.next_trials))
        if not quiet:
            _say(_OBSERVE_READING, console)
            _say(grounds_sentence(result.grounds), console)
    for row in result.unused:
        _say(unused_row(row.file, row.line, row.reason), console)
    if not quiet:
        render_notes("Warnings", result.warnings, console)
        render_notes("Assumed", result.request.assumptions, console)


_OBSERVE_READING = (
    "sd: how many standard deviations a trial is slower than expected; OOM and fastest: probabilities of running out "
    "of memory and of being the fastest that runs; * tried"
)


def _observed_table(result: ObserveResult) -> Table:
    table = FittedTable(leave_out=("90 % interval", "OOM", "sd"))
    table.add_column("row", no_wrap=True)
    table.add_column("plan", overflow="fold", min_width=LEAST_PLAN)
    for title in ("expected", "90 % interval", "OOM", "measured", "sd"):
        table.add_column(title, justify="right", no_wrap=True)
    for item in result.observed:
        measured = "" if item.measured_s is None else seconds(item.measured_s)
        table.add_row(
            f"{item.file}:{item.line}" + (f" x{item.repeats}" if item.repeats > 1 else ""),
            plan_label(item.plan) + ("" if item.same_job else " (other job)"),
            seconds(item.step_time_s),
            f"{seconds(item.step_time_low_s)} - {seconds(item.step_time_high_s)}",
            percent(item.oom_probability),
            "out of memory" if item.died else measured or "ran",
            "" if item.surprise is None else f"{item.surprise:+.1f}",
        )
    return table


def _learned_words(result: ObserveResult) -> str:
    """What most was learnt of, the level first."""
    told = [
        f"{item.name} x{item.factor:.2f} (known to {item.std_before:.2f}, now {item.std_after:.2f})"
        for item in result.learned
        if item.std_after < _LEARNT * item.std_before or item.name == "level"
    ]
    return "Learnt: " + ", ".join(told[:_MOST_DECIDERS])


def _updated_table(result: ObserveResult) -> Table:
    table = FittedTable(leave_out=("90 % before", "OOM", "fastest", "was"))
    for title in ("#", "was"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold", min_width=LEAST_PLAN)
    for title in ("step", "90 % before", "90 % now", "OOM", "fastest"):
        table.add_column(title, justify="right", no_wrap=True)
    for item in result.plans:
        before, after = item.before, item.after
        table.add_row(
            str(item.rank),
            str(item.rank_before),
            plan_label(item.plan) + (" *" if item.tried else ""),
            seconds(after.step_time_s),
            *(f"{seconds(view.step_time_low_s)} - {seconds(view.step_time_high_s)}" for view in (before, after)),
            f"{percent(before.oom_probability)} > {percent(after.oom_probability)}",
            f"{percent(before.best_probability)} > {percent(after.best_probability)}",
        )
    return table
