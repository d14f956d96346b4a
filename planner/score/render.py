"""Prints scores as tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from planner.phrases import assumed_columns
from planner.score.results import GroupScore, TableScore

_FIGURES = ("rows", "MAPE", "median", "p90", "bias", "covered", "> 20 us")
_WIDE = 100  # columns below which the basis is left out: figures are never cut


def render_scores(scores: Sequence[TableScore], console: Console, unused: Sequence[str] = ()) -> None:
    """One table of errors per file, and below it what has no price and why.

    Args:
        scores: Of the tables.
        console: Where to.
        unused: Devices whose stored calibration the prices do without.
    """
    for score in scores:
        table = Table(
            title=f"{score.table} ({score.schema}, {score.rows:,} rows)",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
        )
        table.add_column("operation, dtype", overflow="fold")
        for title in _FIGURES:
            table.add_column(title, justify="right", no_wrap=True)
        if console.width >= _WIDE:
            table.add_column("basis")
        for before, group in zip((None, *score.groups), score.groups, strict=False):
            if before is None or before.device != group.device:
                table.add_row(group.device, style="dim")
            table.add_row(*_cells(group)[: len(table.columns)])
        console.print(table)
        spent = {group.device: group.calibrated_with for group in score.groups if group.calibrated_with}
        if spent:
            words = ", ".join(f"{rows} of {device}" for device, rows in spent.items())
            console.print(f"rows spent on calibration first: {words}", highlight=False, markup=False)
        if score.assumed:
            console.print(assumed_columns(score.assumed), highlight=False, markup=False)
        for item in score.unpriced:
            console.print(
                f"not priced: {item.rows:,} rows of {item.gpu}, {item.op}, {item.dtype}: {item.reason}",
                highlight=False,
                markup=False,
            )
    if unused:
        words = f"packaged prices, without the calibration stored of {', '.join(unused)}: add --stored to score with it"
        console.print(words, highlight=False, markup=False)
    console.print(
        "MAPE, median, p90: |predicted / measured - 1| in %; bias: its signed mean; covered: rows inside the 90 % "
        "interval; > 20 us: MAPE of longer kernels, of collectives that of messages of 1 MiB and more",
        style="dim",
        highlight=False,
    )


def _cells(group: GroupScore) -> list[str]:
    errors, long = group.errors, group.long_errors
    covered = "" if errors.covered is None else f"{100 * errors.covered:.0f}"
    return [
        f"  {group.op} {group.dtype}",
        f"{errors.rows:,}",
        *(f"{100 * value:.1f}" for value in (errors.mape, errors.median, errors.p90)),
        f"{100 * errors.bias:+.1f}",
        covered,
        "" if long is None else f"{100 * long.mape:.1f}",
        ", ".join(f"{name} {100 * share:.0f} %" for name, share in group.basis.items()),
    ]
