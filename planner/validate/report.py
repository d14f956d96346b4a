"""``planner validate``: predicted against measured, as plain data.

Everything here is a fraction, a count or a name; ``planner.validate.render`` formats it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from planner.validate.doubts import doubts
from planner.validate.first_plans import FirstPlans, first_plans
from planner.validate.pick import GroupPick, PickSummary, pick_groups, pick_summary
from planner.validate.predict import Predictions, RowPredictor
from planner.validate.scores import Means, RowScore, ScoreTable, SourceScore, means_of
from planner.validate.tables.mapping import Mapped, map_files
from planner.validate.tables.rows import unreadable
from profiles.catalog import Catalog
from profiles.stack import StackSpec
from profiles.stacks import load_stacks


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """What ``planner validate`` found.

    Attributes:
        files: Files read.
        overall: Everything but trends.
        means: Means over sources.
        by_file: One score per file.
        by_source: One score per source of each file.
        picks: Picks per file that holds groups.
        state_picks: Of the files whose rows ran on a cluster in several states, the picks within one state.
        all_picks: Picks of all files.
        groups: Every pick.
        first: The first plans of the ranking in every group.
        unscorable: (file, source, reason) to rows left out.
        time_notes: (file, source, reason) to rows whose time, though measured, is not used.
        rows: Every row priced.
        warnings: What looks wrong about the rows, though it may be right.
    """

    files: tuple[str, ...]
    overall: SourceScore
    means: Means
    by_file: tuple[SourceScore, ...]
    by_source: tuple[SourceScore, ...]
    picks: Mapping[str, PickSummary]
    state_picks: Mapping[str, PickSummary]
    all_picks: PickSummary | None
    groups: tuple[GroupPick, ...]
    first: tuple[FirstPlans, ...]
    unscorable: Mapping[tuple[str, str, str], int]
    time_notes: Mapping[tuple[str, str, str], int]
    rows: tuple[RowScore, ...]
    warnings: tuple[str, ...] = ()


def published_table() -> Path:
    """The curated, cited table that ships with the package."""
    return Path(str(resources.files("planner.validate") / "data" / "published.csv"))


def validate(
    files: Sequence[Path] | None = None,
    *,
    stacks: Mapping[str, StackSpec] | None = None,
    catalog: Catalog | None = None,
    users_own: bool = False,
) -> ValidationReport:
    """Predict measured rows and compare.

    Args:
        files: CSV files or folders of them; the packaged table when None or empty.
        stacks: Framework stacks by name; the packaged ones when None.
        catalog: Hardware and models; the default one when None.
        users_own: The files are a user's own runs and no published tables (``map_files``).

    Raises:
        SpecError: If a file is malformed, or no row of a user's own can be read; names file, line and column.
    """
    mapped = map_files(list(files) if files else [published_table()], catalog, users_own=users_own)
    if users_own and not mapped.scorable and (wrong := unreadable(mapped.unscorable)) is not None:
        raise wrong
    predictions = RowPredictor(mapped.scorable).predict_by_task(load_stacks if stacks is None else lambda _task: stacks)
    return score(mapped, predictions)


def score(mapped: Mapped, predictions: Predictions) -> ValidationReport:
    """Scores of rows already priced."""
    rows = mapped.scorable
    table = ScoreTable(rows, predictions)
    keys = list(dict.fromkeys([(a.file, a.source) for a in rows] + [(b.file, b.source) for b in mapped.unscorable]))
    left_out = Counter((row.file, row.source) for row in mapped.unscorable)
    by_source = tuple(
        table.score(
            np.array([(row.file, row.source) == key for row in rows], dtype=np.bool_), *key, unscorable=left_out[key]
        )
        for key in keys
    )
    files = list(dict.fromkeys(file for file, _ in keys))
    by_file = tuple(
        table.score(
            np.array([row.file == file for row in rows], dtype=np.bool_),
            file,
            "",
            unscorable=sum(count for key, count in left_out.items() if key[0] == file),
        )
        for file in files
    )
    counted = np.array([not row.trend for row in rows], dtype=np.bool_)
    groups = pick_groups(rows, predictions)
    within_states = pick_groups(rows, predictions, one_state=True)
    states = {file: {row.cluster.node.collective_rank_s for row in rows if row.file == file} for file in files}
    return ValidationReport(
        files=tuple(files),
        overall=table.score(counted, "", "", unscorable=len(mapped.unscorable)),
        means=means_of(by_source),
        by_file=by_file,
        by_source=by_source,
        picks=_picks_by_file(groups, files),
        state_picks=_picks_by_file(within_states, [file for file in files if len(states[file]) > 1]),
        all_picks=pick_summary(groups),
        groups=groups,
        first=first_plans(rows, predictions),
        unscorable=Counter((row.file, row.source, row.reason) for row in mapped.unscorable),
        time_notes=Counter((row.file, row.source, row.time_note) for row in rows if row.time_note),
        rows=tuple(table.row(number) for number in range(len(rows))),
        warnings=doubts(rows, predictions.step_time_s),
    )


def _picks_by_file(groups: Sequence[GroupPick], files: Sequence[str]) -> dict[str, PickSummary]:
    """Picks of each file that holds groups."""
    picks = {file: pick_summary([group for group in groups if group.file == file]) for file in files}
    return {file: summary for file, summary in picks.items() if summary is not None}


def report_document(report: ValidationReport, *, rows: bool = False) -> dict[str, Any]:
    """The report as JSON-ready data, fractions and SI units.

    Args:
        report: What was found.
        rows: Also list every row.
    """
    return {
        "schema_version": 1,
        "files": list(report.files),
        "means_over_sources": asdict(report.means),
        "overall": _score_document(report.overall),
        "by_file": [_score_document(item) for item in report.by_file],
        "by_source": [_score_document(item) for item in report.by_source],
        "picks": {
            "all": asdict(report.all_picks) if report.all_picks else None,
            "by_file": {file: asdict(summary) for file, summary in report.picks.items()},
            "within_one_state": {file: asdict(summary) for file, summary in report.state_picks.items()},
            "groups": [asdict(group) for group in report.groups],
            "first": [asdict(item) for item in report.first],
        },
        "unscorable": _reasons(report.unscorable),
        "time_not_used": _reasons(report.time_notes),
        "warnings": list(report.warnings),
    } | ({"rows": [asdict(row) for row in report.rows]} if rows else {})


def _score_document(item: SourceScore) -> dict[str, Any]:
    document = asdict(item)
    verdicts = item.oom
    document["oom"] |= {
        "accuracy": verdicts.accuracy,
        "caught_share": verdicts.caught_share,
        "false_alarm_share": verdicts.false_alarm_share,
    }
    return document


def _reasons(counts: Mapping[tuple[str, str, str], int]) -> list[dict[str, Any]]:
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0]))
    return [{"file": f, "source": s, "reason": reason, "rows": n} for (f, s, reason), n in ordered]
