"""What rank correlation the scatter of single runs leaves to a model that knows every step time.

Plans closer to each other than two runs of one plan are in an order of chance. The ceiling of a source is the rank
correlation, within the groups it is judged by, between its step times and the same times with as much scatter again:
as if what was measured were the truth, and had been measured once more. What was measured holds scatter already, which
pulls plans apart, so a perfect model scores that at most.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.validate.metrics import LEAST_ROWS, rank_summary
from planner.validate.render import percent
from planner.validate.scores import SourceScore
from planner.validate.tables.rows import ScorableRow
from profiles.markdown import table_head, table_row

SCATTERS = (0.01, 0.025, 0.05)  # standard deviations of a run's log time that the page tells of
_DRAWS = 40
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCeiling:
    """What a perfect model would score on one source.

    Attributes:
        file, source: Which one.
        rows: Its rows in groups that are ranked.
        repeats: Runs of a plan that ran before, from which the scatter is known.
        scatter: Standard deviation of the log time of one run about its plan's mean; None without repeats.
        ranks: Rank correlation that such a model scores at each of ``SCATTERS``.
    """

    file: str
    source: str
    rows: int
    repeats: int
    scatter: float | None
    ranks: tuple[float, ...]


def rank_ceilings(rows: Iterable[ScorableRow]) -> tuple[RankCeiling, ...]:
    """Ceilings of the sources whose ranks enter the mean over sources, in their order."""
    members: dict[tuple[str, str], list[ScorableRow]] = {}
    for row in rows:
        if row.step_time_s is not None and not row.trend:
            members.setdefault((row.file, row.source), []).append(row)
    return tuple(found for key, own in members.items() if (found := _ceiling(*key, own)) is not None)


def repeat_scatter(rows: Sequence[ScorableRow]) -> tuple[int, float | None]:
    """Degrees of freedom and pooled standard deviation of the log times of runs of one plan on one job."""
    runs: dict[Hashable, list[float]] = {}
    for row in rows:
        if row.step_time_s is not None:
            runs.setdefault((row.plan_group, row.plan), []).extend(row.repeat_times_s or (row.step_time_s,))
    freedom = sum(len(times) - 1 for times in runs.values())
    squares = sum(len(times) * float(np.var(np.log(times))) for times in runs.values())
    return freedom, float(np.sqrt(squares / freedom)) if freedom else None


def _ceiling(file: str, source: str, rows: Sequence[ScorableRow]) -> RankCeiling | None:
    measured_s = np.array([row.step_time_s for row in rows], dtype=np.float64)
    groups = [row.plan_group for row in rows]
    ranked = rank_summary(measured_s, measured_s, groups)
    if ranked is None or ranked.rows < LEAST_ROWS:
        return None
    noise = np.random.default_rng(_SEED).standard_normal((_DRAWS, len(rows)))
    noise /= np.sqrt([row.repeats for row in rows])  # the mean of n runs scatters by a root of n less
    ranks = []
    for scatter in SCATTERS:
        again = [rank_summary(measured_s, measured_s * np.exp(scatter * draw), groups) for draw in noise]
        ranks.append(float(np.mean([each.mean for each in again if each is not None])))
    repeats, found = repeat_scatter(rows)
    return RankCeiling(
        file=file, source=source, rows=ranked.rows, repeats=repeats, scatter=found, ranks=tuple(ranks)
    )  # fmt: skip


def ceiling_section(scores: Sequence[SourceScore], ceilings: Sequence[RankCeiling]) -> str:
    """The ceilings beside what the planner scores, as Markdown."""
    head = ("file", "source", "rows", "rank", "repeats", "their scatter", *(f"at {100 * s:g} %" for s in SCATTERS))
    lines = [
        "## Rank that a perfect model would score",
        "",
        "Plans that differ by less than two runs of one plan are in an order of chance. The last columns are what a",
        "model that knew every step time would score at most, were single runs to scatter by so much about their mean",
        "(one standard deviation of the log time). *Repeats* are runs of a plan that had run before: they tell of it.",
        "",
        *table_head(head),
    ]
    own = {(score.file, score.source): score.rank.mean for score in scores if score.rank is not None}
    for item in ceilings:
        rank = own.get((item.file, item.source))
        lines.append(
            table_row(
                *(item.file.removesuffix(".csv"), item.source, str(item.rows), "" if rank is None else f"{rank:.2f}"),
                *(str(item.repeats) if item.repeats else "", percent(item.scatter)),
                *(f"{value:.2f}" for value in item.ranks),
            )
        )
    if ceilings:
        known = [own[item.file, item.source] for item in ceilings if (item.file, item.source) in own]
        means = np.mean([item.ranks for item in ceilings], axis=0).tolist()
        rank_text = f"{np.mean(known):.2f}" if known else ""
        lines.append(table_row("mean", "", "", rank_text, "", "", *(f"{value:.2f}" for value in means)))
    return "\n".join([*lines, ""])
