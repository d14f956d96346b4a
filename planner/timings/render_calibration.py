"""Prints what calibrating a device did."""

from collections.abc import Sequence

from rich.console import Console

from planner.timings.admission import Checked
from planner.timings.calibration import Calibrated
from planner.timings.render import listing, render_check, say, say_apart
from planner.validate.metrics import ErrorSummary


def render_calibration(checked: Sequence[Checked], found: Calibrated, console: Console) -> None:
    """What calibrating a device did."""
    render_check(checked, console)
    titles = ["operation", "rows", "MAPE before", "after", "covered before", "after"]
    title = f"{found.device}: errors on {found.held_out} of {found.rows} kernels, left out to see"
    table = listing(titles, left=(0,), title=title)
    for group in found.groups:
        table.add_row(f"{group.op} {group.dtype}".strip(), *_change(group.before, group.after))
    table.add_row("all", *_change(found.before, found.after))
    console.print(table)
    say(console, "MAPE: mean |predicted / measured - 1| in %; covered: share inside the 90 % interval, in %")
    if found.merged is not None:
        say_apart(found.merged, console)
    for path in found.files:
        say(console, f"stored {path}")
    if found.corrected:
        say(console, "every answer about this device now rests on them, measured kernels first")
    else:
        say(console, "a correction helps no operation: prices stay, but measured kernels take the time measured")


def _change(before: ErrorSummary, after: ErrorSummary) -> list[str]:
    covered = ("" if item.covered is None else f"{100 * item.covered:.0f}" for item in (before, after))
    return [f"{before.rows:,}", f"{100 * before.mape:.1f}", f"{100 * after.mape:.1f}", *covered]
