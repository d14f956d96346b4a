"""Ways for a running job to go on as a table for a terminal."""

from rich.console import Console
from rich.table import Table

from planner.phrases import RISK_MEANS, peak_cell, percent, plan_label, seconds, signed_percent
from planner.render.plans import heading, render_infeasible, render_notes
from planner.replanning import Continuation, ReplanResult
from planner.results import PlanEstimate

_WIDE = 100  # columns from which on there is room for the first beside plans


def render_replan(result: ReplanResult, console: Console, *, quiet: bool) -> None:
    """Print a whole answer; ``quiet`` leaves out assumptions."""
    heading(result.request, console)
    console.print(f"continued on [bold]{result.onto.num_devices} x {result.onto.device.name}[/]\n", highlight=False)
    batches = {option.request.job.global_batch_size for option in result.options}
    batch = result.request.job.global_batch_size
    changes = bool(batches - {batch})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold", no_wrap=console.width >= _WIDE)
    for title in ("gpus", *(["batch"] if changes else []), "step", "tokens/s", "GiB", "risk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold")
    table.add_row("runs", *_figures(result.running, batch if changes else None, None), style="dim")
    for option in result.options:
        shown = option.request.job.global_batch_size if changes else None
        table.add_row(_words(option, batch), *_figures(option.estimate, shown, result.running))
    console.print(table)
    if any(item.risky for item in (result.running, *(option.estimate for option in result.options))):
        console.print(RISK_MEANS, style="dim", highlight=False)
    console.print("risk: of running out of memory", style="dim", highlight=False)
    if any(not option.keeps_layout for option in result.options) and result.loads:
        console.print(f"another layout: {result.loads}", style="dim", highlight=False)
    if result.options and not any(option.keeps_layout for option in result.options):
        words = "same layout: fits on no number of whole replicas that takes half the GPUs or more"
        console.print(words, style="dim", highlight=False)
    if result.infeasible is not None:
        render_infeasible(result.infeasible, console)
    if not quiet:
        render_notes("Assumed", result.assumptions, console)


def _words(option: Continuation, batch: int) -> str:
    """What an option changes."""
    layout = "same layout" if option.keeps_layout else "another layout"
    return layout if option.request.job.global_batch_size == batch else f"{layout}, another batch"


def _figures(estimate: PlanEstimate, batch: int | None, running: PlanEstimate | None) -> list[str]:
    change = "" if running is None else f" ({signed_percent(estimate.tokens_per_s / running.tokens_per_s - 1)})"
    return [
        f"{estimate.num_devices:,}",
        *([] if batch is None else [f"{batch:,}"]),
        seconds(estimate.step_time_s),
        f"{estimate.tokens_per_s:,.0f}{change}",
        peak_cell(estimate, marked=False),
        percent(estimate.oom_probability),
        plan_label(estimate.plan),
    ]
