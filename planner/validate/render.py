"""The validation report as tables for the terminal; the only place that formats its numbers."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from planner.validate.metrics import LEAST_ROWS, ErrorSummary, OomSummary, RankSummary
from planner.validate.pick import PickSummary
from planner.validate.report import ValidationReport
from planner.validate.scores import SourceScore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NARROW = 96  # columns below which tables are set tighter
_NAME_WIDTH = 60
_LEAST_NAME_WIDTH = 16
_REASON_WIDTH = 120
_QUOTED = re.compile(r"'[^']*'")

# Cells of a row, name first, and its style.
_Row = tuple[tuple[str, ...], str]


def render_report(report: ValidationReport, console: "Console | None" = None) -> None:
    """Print the report.

    Args:
        report: What was found.
        console: Where to; standard output when None.
    """
    from rich.console import Console

    out = console or Console()
    tables = [_time_table(report, out.width), _memory_table(report, out.width)]
    if report.picks:
        tables.append(_pick_table(report, out.width))
    if report.unscorable or report.time_notes:
        tables.append(_reason_table(report))
    for table in tables:
        out.print(table)
        out.print()
    for line in summary_lines(report):
        out.print(line, highlight=False)


def summary_lines(report: ValidationReport) -> tuple[str, ...]:
    """The result in a few sentences."""
    means, overall = report.means, report.overall
    lines = [
        f"{overall.rows} rows scored ({overall.assumed_rows} on a stated assumption), {overall.unscorable} left out "
        f"with a reason, from {len(report.files)} file(s)."
    ]
    if means.time_mape is not None and means.worst_time is not None:
        stated = "" if means.stated_time_mape is None else f"; {percent(means.stated_time_mape)} without assumed rows"
        lines.append(
            f"Step time: MAPE {percent(means.time_mape)} as the mean over {means.time_sources} sources with at least "
            f"{LEAST_ROWS} rows{stated}; worst {percent(means.worst_time[1])} ({means.worst_time[0]})."
        )
    if means.memory_mape is not None and means.worst_memory is not None:
        lines.append(
            f"Peak memory: MAPE {percent(means.memory_mape)} as the mean over {means.memory_sources} sources; "
            f"worst {percent(means.worst_memory[1])} ({means.worst_memory[0]})."
        )
    if overall.oom.rows:
        lines.append(f"Out-of-memory verdict right on {percent(overall.oom.accuracy)} of {overall.oom.rows} rows.")
    if report.all_picks is not None:
        lines.append("Picks: " + _pick_sentence(report.all_picks))
    return (*lines, *(f"Warning: {text}" for text in report.warnings))


def _pick_sentence(picks: PickSummary) -> str:
    regret = "" if picks.mean_regret is None else f", mean regret of the others {percent(picks.mean_regret)}"
    return f"{picks.died} of {picks.groups} died, {picks.within} within 5 % of the best measured{regret}."


def _table(title: str, names: Sequence[str], rows: Sequence[_Row], *, width: int) -> "Table":
    """A table without rules, one line per row: names in the first column are cut to what is left for them."""
    from rich.table import Table

    gap = 1 if width < _NARROW else 2
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0)
    )
    taken = sum(gap + max(map(len, (name, *column))) for name, *column in _columns(names, rows))
    room = max(_LEAST_NAME_WIDTH, min(_NAME_WIDTH, width - taken))
    table.add_column(names[0], no_wrap=True)
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for cells, style in rows:
        table.add_row(_cut(cells[0], room), *cells[1:], style=style)
    return table


def _columns(names: Sequence[str], rows: Sequence[_Row]) -> list[tuple[str, ...]]:
    """All columns but the first, heading and cells."""
    filled = [(*cells, *[""] * (len(names) - len(cells))) for cells, _ in rows]
    return list(zip(names, *filled, strict=True))[1:]


def _cut(words: str, width: int) -> str:
    return words if len(words) <= width else words[: width - 1].rstrip() + "…"


def _time_table(report: ValidationReport, width: int) -> "Table":
    wide = ("assumed", "left out") if width >= _NARROW else ()
    names = ("source", "rows", *wide, "MAPE %", "median", "p90", "bias", "in 90 %", "rank")
    scores = [item for item in report.by_source if item.time is not None]

    def cells(item: SourceScore) -> tuple[str, ...]:
        rows, *counts = _counts(item)
        return rows, *(counts if wide else ()), *_errors(item.time), _rank(item.rank)

    return _table("Step time, predicted against measured", names, _rows(report, scores, cells), width=width)


def _memory_table(report: ValidationReport, width: int) -> "Table":
    shown = range(5) if width >= _NARROW else (0, 1, 3)
    errors = [("MAPE %", "median", "p90", "bias", "in 90 %")[number] for number in shown]
    names = ("source", "rows", *errors, "died", "ran", "right %")
    scores = [item for item in report.by_source if item.memory is not None or item.oom.rows]

    def cells(item: SourceScore) -> tuple[str, ...]:
        rows = "" if item.memory is None else str(item.memory.rows)
        figures = _errors(item.memory)
        return rows, *(figures[number] for number in shown), *_verdicts(item.oom)

    title = "Peak memory; deaths foreseen, runs cleared"
    return _table(title, names, _rows(report, scores, cells), width=width)


def _rows(
    report: ValidationReport, scores: Sequence[SourceScore], cells: Callable[[SourceScore], tuple[str, ...]]
) -> list[_Row]:
    """The scores, a heading before those of each of several files, and last the overall one."""
    several = len(report.files) > 1
    rows: list[_Row] = []
    for file in report.files:
        members = [item for item in scores if item.file == file]
        if members and several:
            rows.append(((file.removesuffix(".csv"),), "dim"))
        rows += [(("  " * several + _name(item), *cells(item)), "") for item in members]
    return [*rows, (("all", *cells(report.overall)), "bold")]


def _pick_table(report: ValidationReport, width: int) -> "Table":
    names = ("file", "groups", "died", "no fit", "in 5 %", "mean regret", "median")
    named = [(file.removesuffix(".csv"), picks) for file, picks in report.picks.items()]
    named += [(f"{file.removesuffix('.csv')}, one state", picks) for file, picks in report.state_picks.items()]
    rows: list[_Row] = [
        (
            (
                name, str(picks.groups), str(picks.died), str(picks.nothing_fits),
                str(picks.within), percent(picks.mean_regret), percent(picks.median_regret),
            ),
            "",
        )
        for name, picks in named
    ]  # fmt: skip
    return _table("The plan the planner would pick", names, rows, width=width)


def _reason_table(report: ValidationReport) -> "Table":
    from rich.table import Table

    title = "Rows left out, and times not used (each one: --json)"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for name in ("rows", "files"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for reason, rows, files in reason_kinds((report.unscorable, report.time_notes)):
        table.add_row(str(rows), str(files), reason)
    return table


def reason_kinds(counts: Iterable[Mapping[tuple[str, str, str], int]]) -> list[tuple[str, int, int]]:
    """(reason, rows, files), reasons that differ in particulars taken together, the most frequent first.

    Where one kind has several wordings, the most frequent one is quoted as an example.
    """
    wordings: dict[str, Counter[str]] = {}
    files: dict[str, set[str]] = {}
    for mapping in counts:
        for (file, _, reason), number in mapping.items():
            kind = _QUOTED.sub("'...'", reason).partition(": ")[0]
            wordings.setdefault(kind, Counter())[reason] += number
            files.setdefault(kind, set()).add(file)
    ordered = sorted(wordings.items(), key=lambda item: (-item[1].total(), item[0]))
    return [(_told(kind, words), words.total(), len(files[kind])) for kind, words in ordered]


def _told(kind: str, wordings: Mapping[str, int]) -> str:
    example = min(wordings, key=lambda words: (-wordings[words], words))
    if len(wordings) == 1:
        return _cut(example, _REASON_WIDTH)
    particular = example.removeprefix(kind).lstrip(": ") if example.startswith(kind) else ""
    return _cut(f"{kind}, e.g. {particular}" if particular else kind, _REASON_WIDTH)


def reason_counts(counts: Iterable[Mapping[tuple[str, str, str], int]]) -> list[tuple[str, str, int]]:
    """(file, reason, rows), sources taken together, the most frequent first within a file."""
    totals: Counter[tuple[str, str]] = Counter()
    for mapping in counts:
        for (file, _, reason), number in mapping.items():
            totals[file, reason[:120]] += number
    ordered = sorted(totals.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return [(file, reason, count) for (file, reason), count in ordered]


def _name(item: SourceScore) -> str:
    mark = "(trend) " if item.trend else "(apart) " if item.apart else ""
    return mark + item.source


def _counts(item: SourceScore) -> tuple[str, str, str]:
    rows = 0 if item.time is None else item.time.rows
    assumed = rows - (0 if item.stated_time is None else item.stated_time.rows)
    return str(rows), str(assumed), str(item.unscorable)


def _errors(errors: ErrorSummary | None) -> tuple[str, str, str, str, str]:
    if errors is None:
        return "", "", "", "", ""
    return (
        bare(errors.mape), bare(errors.median), bare(errors.p90), f"{100 * errors.bias:+.1f}", bare(errors.covered),
    )  # fmt: skip


def _rank(rank: RankSummary | None) -> str:
    return "" if rank is None else f"{rank.mean:.2f}"


def _verdicts(oom: OomSummary) -> tuple[str, str, str]:
    died = f"{oom.caught}/{oom.caught + oom.missed}" if oom.caught + oom.missed else ""
    ran = f"{oom.cleared}/{oom.cleared + oom.false_alarms}" if oom.cleared + oom.false_alarms else ""
    return died, ran, bare(oom.accuracy)


def bare(share: float | None) -> str:
    """A fraction as percent with one decimal, where the column says that it is."""
    return "" if share is None else f"{100 * share:.1f}"


def percent(share: float | None) -> str:
    """A fraction as percent with one decimal; empty when there is none."""
    return "" if share is None else f"{100 * share:.1f} %"
