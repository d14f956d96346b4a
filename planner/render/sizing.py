"""Sizes of a cluster as tables for a terminal."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from rich.console import Console
from rich.table import Table

from costmodels.energy_cost import cost_usd
from planner.phrases import RISK_MEANS, amount, count, dollars, gib, peak_cell, plan_label, seconds
from planner.render.plans import NARROW, render_infeasible, render_notes
from planner.results import Note, PlanEstimate
from planner.sizes import KindSizes, Size, SizingResult
from profiles.parameters import total_parameters
from profiles.units import SECONDS_PER_DAY

_PADDING = (0, 1)
_LEFT_OUT = ("MFU %", "(90 %)")  # of a narrow table


def render_sizing(result: SizingResult, console: Console, *, quiet: bool) -> None:
    """Print a whole answer; ``quiet`` leaves out assumptions."""
    request = result.kinds[0].request
    model, job = request.model, request.job
    console.print(f"[bold]{model.name}[/] ({count(total_parameters(model))} parameters)", highlight=False)
    words = f"{job.task}, {job.precision}, sequences of {job.sequence_length} tokens, {request.stack.name}"
    if job.train_tokens is not None:
        words += f", {count(job.train_tokens)} tokens in all"
    console.print(words, highlight=False)
    for kind in result.kinds:
        console.print()
        _render_kind(kind, console)
    if any(size.best is not None and size.best.risky for kind in result.kinds for size in kind.sizes):
        console.print(RISK_MEANS, style="dim", highlight=False)
    _cheapest(result, console)
    if result.infeasible is not None:
        render_infeasible(result.infeasible, console)
    elif not quiet:
        words = "of every size the plan that planner plan ranks first"
        words += "; with --gpus of it that lists others"
        console.print(f"\n{words}", style="dim", highlight=False)
    if not quiet:
        _warnings(result, console)
        render_notes("Assumed", result.assumptions, console)


def _cheapest(result: SizingResult, console: Console) -> None:
    """Which of several kinds costs least, in all and of what is done in time."""
    chosen = {"cheapest of all": result.cheapest}
    if result.kinds[0].days is not None:
        chosen[f"cheapest in {_in_days(result.kinds[0].days)}"] = result.cheapest_in_time
    lines = []
    for words, found in chosen.items():
        if found is not None and found[1].best is not None:
            kind, size = found
            run = found[1].best.run
            cost = dollars(1e9 * kind.usd_per_token(size)) + " per 1B tokens"
            cost = dollars(run.cost_usd) if run is not None and run.cost_usd is not None else cost
            lines.append(f"{words}: {size.num_devices:,} x {kind.request.cluster.device.name}, {cost}")
    if lines:
        console.print("\n" + "\n".join(lines), style="bold", highlight=False)


def _warnings(result: SizingResult, console: Console) -> None:
    """What to know of the sizes that stand out, each named."""
    found: dict[Note, None] = {}
    for kind in result.kinds:
        device = kind.request.cluster.device.name
        for size in kind.standing_out.values():
            where = f"{size.num_devices:,} x {device}"
            found |= dict.fromkeys(replace(note, message=f"{where}: {note.message}") for note in size.warnings)
    render_notes("Warnings", list(found), console)


def _render_kind(kind: KindSizes, console: Console) -> None:
    """One kind of machine: the sizes that fit, and one line about those that do not."""
    price = kind.request.price
    device = kind.request.cluster.device
    at = "" if price is None else f" at {dollars(price.usd_per_device_hour)} per GPU-hour"
    console.print(f"[bold]{device.name}[/]{at}", highlight=False)
    fitting = [size for size in kind.sizes if size.best is not None and _shown(kind, size)]
    if fitting:
        console.print(_table(kind, fitting, narrow=console.width < NARROW))
    if words := _too_small(kind):
        console.print(words, style="dim", highlight=False)


def _table(kind: KindSizes, fitting: list[Size], *, narrow: bool) -> Table:
    run, price = kind.request.job.train_tokens is not None, kind.request.price is not None
    batches = len({size.batch for size in fitting}) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0) if narrow else _PADDING, header_style="bold")
    for title in ("gpus", *(["batch"] if batches else [])):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("best plan", overflow="fold")
    titles = ["step", "tok/s/gpu", "MFU %", "GiB"]
    titles += ["days", "(90 %)"] if run else []
    titles += [("cost" if run else "$/1B tokens")] if price else (["GPU-hours"] if run else [])
    told = [not (narrow and title in _LEFT_OUT) for title in titles]
    for title in compress(titles, told):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold", no_wrap=not narrow, min_width=len("cheapest"))
    for size in fitting:
        if size.best is not None:
            cells = [f"{size.num_devices:,}", *([f"{size.batch:,}"] if batches else []), plan_label(size.best.plan)]
            words = ", ".join(words for words, one in kind.standing_out.items() if one is size)
            table.add_row(*cells, *compress(_figures(kind, size.best), told), words, style="bold" if words else "")
    return table


def _figures(kind: KindSizes, best: PlanEstimate) -> list[str]:
    cells = [
        seconds(best.step_time_s),
        f"{best.tokens_per_s_per_device:,.0f}",
        f"{best.mfu * 100:.1f}",
        peak_cell(best, marked=False),
    ]
    price = kind.request.price
    if best.run is None:
        if price is not None:
            cells.append(dollars(1e9 * cost_usd(best.device_seconds_per_token, 1, price)))
        return cells
    ends = (best.run.steps * each / SECONDS_PER_DAY for each in (best.step_time_low_s, best.step_time_high_s))
    cells += [_days(best.run.duration_s / SECONDS_PER_DAY), " to ".join(_days(end) for end in ends)]
    cost = best.run.cost_usd
    return [*cells, amount(best.run.device_hours) if cost is None else dollars(cost)]


def _in_days(days: float) -> str:
    return f"{days:g} day{'' if days == 1 else 's'}"


def _days(days: float) -> str:
    """Days with a tenth, or short ones with two digits: a run of minutes takes not 0.0."""
    return f"{days:,.1f}" if days >= 1 else f"{days:.2g}"


def _shown(kind: KindSizes, size: Size) -> bool:
    """Whether a size has a row: those that double, the last, and those that stand out; not the others between."""
    times = size.num_devices // kind.sizes[0].num_devices
    doubled = size.num_nodes & (size.num_nodes - 1) == 0 or times & (times - 1) == 0
    return doubled or size is kind.sizes[-1] or any(size is one for one in kind.standing_out.values())


def _numbers(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{size.num_devices:,}" for size in sizes)


def _too_small(kind: KindSizes) -> str:
    """The sizes on which nothing fits, how near the largest comes, and those that no plan is legal on."""
    device = kind.request.cluster.device
    failed = [size for size in kind.sizes if size.best is None and size.nearest_bytes is not None]
    illegal = [size for size in kind.sizes if size.best is None and size.nearest_bytes is None]
    words = ""
    if failed:
        last = failed[-1]
        needed, usable = last.nearest_bytes or 0.0, device.usable_memory_bytes
        words = f"nothing fits on {_numbers(failed)}"
        words += f"; on {last.num_devices:,} the nearest plan needs {gib(needed)} of {gib(usable)}"
    if illegal:
        words += ("; " if words else "") + f"no plan is legal on {_numbers(illegal)}"
        if all(size.batch < size.num_devices for size in illegal):
            words += f": more than there are sequences in a step, {illegal[0].batch:,}"
    if kind.days is not None and kind.in_time is None:
        words += ("; " if words else "") + f"no size is done in {_in_days(kind.days)}"
        last = kind.sizes[-1]
        words += f" up to {last.num_devices:,} GPUs; more: --gpus NODESx{last.num_devices // last.num_nodes}xGPU"
    return words
