"""Prints stored and imported timings as tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from planner.phrases import assumed_columns
from planner.render.fitted import FittedTable
from planner.timings.admission import Checked
from planner.timings.summary import DeviceSummary, OperationSummary
from profiles.timing_store import REPEATS_AGREE, Merged
from profiles.timings import IntArray, TimingTable
from profiles.units import GIGA, MICROSECOND, TERA

_FEW_SHOWN = 3


def render_list(found: Sequence[DeviceSummary], console: Console) -> None:
    """One line per device."""
    if not found:
        say(console, "no timings are stored; see planner profiles collect and planner profiles import")
        return
    table = listing(["device", "kernels", "collectives", "steps", "newest", "measured by"], left=(0, 4, 5))
    for item in found:
        counts = (f"{count:,}" for count in (item.kernels, item.collectives, item.steps))
        table.add_row(item.device, *counts, item.newest, ", ".join(item.sources))
    console.print(table)
    unknown = [item.device for item in found if not item.known]
    if unknown:
        say(console, f"not in the catalogue: {', '.join(unknown)}; planner calibrate says what YAML is needed")


def render_show(table: TimingTable, found: Sequence[OperationSummary], listed: IntArray, console: Console) -> None:
    """Operations of one device, and some of its rows."""
    titles = ["operation", "rows", "us", "TFLOP/s", "% of peak", "GB/s", "+- %"]
    shown = listing(titles, left=(0,), title=str(table.device[0]))
    for item in found:
        words = " ".join(part for part in (item.op, item.dtype, item.layout) if part)
        shown.add_row(
            f"{words} ({item.method})",
            f"{item.rows:,}",
            f"{item.shortest_s / MICROSECOND:,.1f} to {item.longest_s / MICROSECOND:,.1f}",
            f"{item.flops_per_s / TERA:,.1f}" if item.flops_per_s else "",
            "" if item.peak_share is None else f"{100 * item.peak_share:.0f}",
            f"{item.bytes_per_s / GIGA:,.0f}" if item.bytes_per_s else "",
            "" if item.spread is None else f"{50 * item.spread:.1f}",
        )
    console.print(shown)
    say(console, "TFLOP/s and GB/s: the most any row reaches; +-: half the median interquartile range")
    if len(listed):
        _rows(table, listed, console)


def _rows(table: TimingTable, listed: IntArray, console: Console) -> None:
    shown = listing(["operation", "us", "+-", "shape"], left=(0, 3))
    for index in listed.tolist():
        row = table.row(index)
        spread = f"{row['spread_s'] / 2 / MICROSECOND:,.1f}" if np.isfinite(row["spread_s"]) else ""
        words = " ".join(part for part in (row["op"], row["dtype"], row["layout"]) if part)
        shown.add_row(words, f"{row['time_s'] / MICROSECOND:,.1f}", spread, _shape(row))
    console.print(shown)


def _shape(row: dict[str, object]) -> str:
    named = ("m", "n", "k", "batch", "heads", "kv_heads", "group_size", "num_nodes")
    words = [f"{name} {row[name]}" for name in named if row[name]]
    size = row["size_bytes"]
    if isinstance(size, float) and np.isfinite(size):
        words.append(f"{size:,.0f} B")
    return ", ".join(words) + (", causal" if row["causal"] else "")


def render_check(checked: Sequence[Checked], console: Console) -> None:
    """What every file holds, and what of it cannot be."""
    for item in checked:
        table, verdict = item.imported.table, item.audit
        accepted = int(verdict.accepted.sum())
        devices = ", ".join(sorted(set(table.device.tolist()))[:_FEW_SHOWN])
        say(console, f"{item.path}: {item.imported.format}, {len(table):,} rows of {devices}; {accepted:,} possible")
        unaudited = int((verdict.accepted & verdict.unaudited).sum())
        if unaudited:
            say(console, f"  {unaudited:,} of them bounded by no known peak (device or link unknown, or all in cache)")
        for reason, count in verdict.counts().items():
            first = int(np.flatnonzero(verdict.reasons == reason)[0])
            say(console, f"  rejected {count:,}: {reason}, e.g. row {first + 1}")
        if item.imported.assumed:
            say(console, f"  {assumed_columns(item.imported.assumed)}")
        for reason, count in item.imported.skipped.items():
            say(console, f"  passed over {count:,}: {reason}")


def render_import(
    checked: Sequence[Checked], merged: Merged | None, out: Path | None, written: int, console: Console
) -> None:
    """What an import did."""
    render_check(checked, console)
    if merged is not None:
        for path in merged.files:
            say(console, f"stored in {path}")
        say(console, f"{merged.added:,} rows added, {merged.replaced:,} replaced, {merged.kept:,} known already")
        say_apart(merged, console)
    elif out is not None:
        say(console, f"{written:,} rows written to {out}")


def say_apart(merged: Merged, console: Console) -> None:
    """Rows whose repeats contradict each other."""
    if merged.apart:
        problem = f"{merged.apart:,} of them were measured several times, over {REPEATS_AGREE:.2f} times apart"
        say(console, f"Warning: {problem}: one time is kept, with their spread")


def listing(titles: Sequence[str], *, left: Sequence[int], title: str | None = None) -> Table:
    """A plain table with some columns aligned to the left."""
    table = FittedTable()
    table.title, table.title_justify = title, "left"
    for index, word in enumerate(titles):
        last = index == len(titles) - 1
        table.add_column(word, justify="left" if index in left else "right", no_wrap=not last)
    return table


def say(console: Console, words: str) -> None:
    """One line of plain words."""
    console.print(words, highlight=False, markup=False, soft_wrap=True)
