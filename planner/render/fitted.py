"""A table for lines of any width: columns are left out, and told, rather than numbers cut."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import PaddingDimensions
from rich.table import Column, Table
from rich.text import Text

_ENDLESS = 10_000  # columns that no cell has
LEAST_PLAN = len("tp8 pp8 dp8")  # columns that the words of a plan are folded into


class FittedTable(Table):
    """A plain table whose columns are never narrower than they have to be, be its lines longer than the terminal's.

    Columns that do not wrap are as wide as what they hold; others as their ``min_width`` or their longest word.
    """

    def __init__(self, *, leave_out: Sequence[str] = (), padding: PaddingDimensions = (0, 1)) -> None:
        """An empty table.

        Args:
            leave_out: Titles of columns that go where a line has no room for all, in this order.
            padding: Of cells.
        """
        super().__init__(box=None, pad_edge=False, padding=padding, header_style="bold")
        self.leave_out = leave_out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The columns there is room for, and a line that names the others."""
        _, right, _, left = self.padding
        titles = [column.header for column in self.columns]
        leasts = [_least(column, console, options) for column in self.columns]

        def width(without: Sequence[str]) -> int:
            kept = [least for title, least in zip(titles, leasts, strict=True) if title not in without]
            return sum(kept) + (left + right) * (len(kept) - 1)

        out: list[str] = []
        for title in self.leave_out:
            if title in titles and width(out) > options.max_width:
                out.append(title)
        for title in reversed(tuple(out)):  # a wide one that went later may have made room for it
            others = [other for other in out if other != title]
            out = others if width(others) <= options.max_width else out
        shown = copy(self)
        kept = [column for column in self.columns if column.header not in out]
        shown.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
        widened = options.update(max_width=max(options.max_width, width(out)))
        yield from Table.__rich_console__(shown, console, widened)
        if out:
            words = f"no room at {options.max_width} columns for {', '.join(out)}"
            yield Text(f"{words}: a wider terminal or --json shows them", style="dim")


def _least(column: Column, console: Console, options: ConsoleOptions) -> int:
    """Width below which a column would be cut, or folded within words."""
    if not column.no_wrap and column.min_width is not None:
        return column.min_width
    wide = options.update(max_width=_ENDLESS)
    sizes = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    return max(size.maximum if column.no_wrap else size.minimum for size in sizes)
