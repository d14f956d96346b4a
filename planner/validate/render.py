"""The validation report as tables for the terminal; the only place that formats its numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from planner.validate.metrics import LEAST_ROWS, ErrorSummary, OomSummary, RankSummary
from planner.validate.pick import PickSummary
from planner.validate.report import SourceScore, ValidationReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SHOWN_REASONS = 40


def render_report(report: ValidationReport, console: "Console | None" = None) -> None:
    """Print the report.

    Args:
        report: What was found.
        console: Where to; standard output when None.
    """
    from rich.console import Console

    out = console or Console()
    out.print(_time_table(report))
    out.print(_memory_table(report))
    if report.picks:
        out.print(_pick_table(report))
    if report.unscorable or report.time_notes:
        out.print(_reason_table(report))
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
    return tuple(lines)


def _pick_sentence(picks: PickSummary) -> str:
    regret = "" if picks.mean_regret is None else f", mean regret of the others {percent(picks.mean_regret)}"
    return f"{picks.died} of {picks.groups} died, {picks.within} within 5 % of the best measured{regret}."


def _time_table(report: ValidationReport) -> "Table":
    from rich.table import Table

    table = Table(title="Step time, predicted against measured", title_justify="left")
    for name in ("file", "source"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "assumed", "left out", "MAPE", "median", "p90", "bias", "in 90 %", "rank"):
        table.add_column(name, justify="right")
    for item in (*report.by_source, report.overall):
        if item.time is None and item is not report.overall:
            continue
        table.add_row(*_names(item), *_counts(item), *_errors(item.time), _rank(item.rank))
    return table


def _memory_table(report: ValidationReport) -> "Table":
    from rich.table import Table

    table = Table(title="Peak memory and out-of-memory verdicts", title_justify="left")
    for name in ("file", "source", "counts"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "MAPE", "median", "p90", "bias", "in 90 %", "died: caught", "ran: cleared", "right"):
        table.add_column(name, justify="right")
    for item in (*report.by_source, report.overall):
        if item.memory is None and not item.oom.rows:
            continue
        kinds = "+".join(item.memory_by_kind)
        rows = "" if item.memory is None else str(item.memory.rows)
        table.add_row(*_names(item), kinds, rows, *_errors(item.memory), *_verdicts(item.oom))
    return table


def _pick_table(report: ValidationReport) -> "Table":
    from rich.table import Table

    table = Table(title="The plan the planner would pick", title_justify="left")
    table.add_column("file", overflow="fold")
    for name in ("groups", "died", "nothing fits", "within 5 %", "mean regret", "median regret"):
        table.add_column(name, justify="right")
    for file, picks in report.picks.items():
        table.add_row(
            file, str(picks.groups), str(picks.died), str(picks.nothing_fits), str(picks.within),
            percent(picks.mean_regret), percent(picks.median_regret),
        )  # fmt: skip
    return table


def _reason_table(report: ValidationReport) -> "Table":
    from rich.table import Table

    table = Table(title="Rows left out, and times not used", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("reason", overflow="fold")
    shown = list(reason_counts((report.unscorable, report.time_notes)))
    for file, reason, count in shown[:_SHOWN_REASONS]:
        table.add_row(file, str(count), reason)
    if len(shown) > _SHOWN_REASONS:
        rest = shown[_SHOWN_REASONS:]
        table.add_row("...", str(sum(count for *_, count in rest)), f"{len(rest)} more reasons (see --json)")
    return table


def reason_counts(counts: Iterable[Mapping[tuple[str, str, str], int]]) -> list[tuple[str, str, int]]:
    """(file, reason, rows), sources taken together, the most frequent first within a file."""
    totals: Counter[tuple[str, str]] = Counter()
    for mapping in counts:
        for (file, _, reason), number in mapping.items():
            totals[file, reason[:120]] += number
    ordered = sorted(totals.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return [(file, reason, count) for (file, reason), count in ordered]


def _names(item: SourceScore) -> tuple[str, str]:
    if not item.file:
        return "all", ""
    mark = " (trend)" if item.trend else " (apart)" if item.apart else ""
    return item.file.removesuffix(".csv"), item.source[:48] + mark


def _counts(item: SourceScore) -> tuple[str, str, str]:
    rows = 0 if item.time is None else item.time.rows
    assumed = rows - (0 if item.stated_time is None else item.stated_time.rows)
    return str(rows), str(assumed), str(item.unscorable)


def _errors(errors: ErrorSummary | None) -> tuple[str, str, str, str, str]:
    if errors is None:
        return "", "", "", "", ""
    return (
        percent(errors.mape), percent(errors.median), percent(errors.p90), f"{100 * errors.bias:+.1f} %",
        percent(errors.covered),
    )  # fmt: skip


def _rank(rank: RankSummary | None) -> str:
    return "" if rank is None else f"{rank.mean:.2f}"


def _verdicts(oom: OomSummary) -> tuple[str, str, str]:
    died = f"{oom.caught}/{oom.caught + oom.missed}" if oom.caught + oom.missed else ""
    ran = f"{oom.cleared}/{oom.cleared + oom.false_alarms}" if oom.cleared + oom.false_alarms else ""
    return died, ran, percent(oom.accuracy)


def percent(share: float | None) -> str:
    """A fraction as percent with one decimal; empty when there is none."""
    return "" if share is None else f"{100 * share:.1f} %"
