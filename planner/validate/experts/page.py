"""Writes ``docs/expert-plans.md``: what the planner says of the plans that NVIDIA tuned for its own GPUs.

Run as ``python -m planner.validate.experts.page --out docs/expert-plans.md``. With ``--first`` and the path of
``data/expert_plans_first.csv`` it says what has not been said yet and adds it, with the commit that is checked out;
what is there stays.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from planner.validate.experts.prices import Verdict, cells, first_verdicts, verdicts
from planner.validate.experts.revisions import SAME, Revision, first_revisions, pairs, revisions
from planner.validate.experts.rows import ExpertPlan, expert_plans
from planner.validate.experts.words import FOUND, INTRODUCTION, REVISED
from planner.validate.tables.published import write_page
from profiles.markdown import table_head, table_row

_GPUS = ("H100", "B200", "GB200", "B300", "GB300")
_WITHIN = 0.05
_DIMENSIONS = ("tp", "pp", "vpp", "cp", "ep")


def expert_page() -> str:
    """The page as Markdown."""
    rows, now, first = expert_plans(), verdicts(), first_verdicts()
    introduction = INTRODUCTION.format(rows=len(rows), said=sum(_said_whole(row) for row in rows), pairs=len(pairs()))
    return "\n".join([introduction, _summary(rows, first, now), FOUND, _revised(), _every(rows, first, now)])


def _said_whole(row: ExpertPlan) -> bool:
    """Whether the planner can say all of a plan: not where activations of some layers go to the host, which is none."""
    return row.offloaded_layers is None


def _summary(rows: Sequence[ExpertPlan], first: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> str:
    """Plans by GPU and by family, first and now."""
    names = ["plans", "", "accepted", "fit", "and live", "step over best: median", "worst", f"within {_WITHIN:.0%}"]
    lines = ["## Result\n", *table_head([*names, "rank, median"])]
    groups: list[tuple[str, Callable[[ExpertPlan], bool]]] = [("all", lambda _row: True)]
    groups += [(gpu, lambda row, gpu=gpu: row.gpu == gpu) for gpu in _GPUS]  # type: ignore[misc]
    families = dict.fromkeys(row.family for row in rows)
    groups += [(name, lambda row, name=name: row.family == name) for name in families]  # type: ignore[misc]
    for name, belongs in groups:
        members = [row for row in rows if belongs(row)]
        lines.append(_summary_row(f"{name}, {len(members)}", "first", [(row, first[row.recipe]) for row in members]))
        lines.append(_summary_row("", "now", [(row, now[row.recipe]) for row in members]))
    return "\n".join(lines) + "\n"


def _summary_row(name: str, when: str, told: Sequence[tuple[ExpertPlan, Verdict]]) -> str:
    whole = [verdict for row, verdict in told if _said_whole(row) and verdict.accepted]
    ratios = [verdict.ratio for verdict in whole]
    return table_row(
        name,
        when,
        sum(verdict.accepted for _, verdict in told),
        f"{sum(verdict.fits for verdict in whole)} of {len(whole)}",
        sum(verdict.lives for verdict in whole),
        f"{median(ratios):.2f}",
        f"{max(ratios):.2f}",
        f"{sum(ratio <= 1 + _WITHIN for ratio in ratios)}",
        f"{median(verdict.rank / verdict.ranked for verdict in whole):.2%}",
    )


def _revised() -> str:
    """What NVIDIA changed, and what is said of it."""
    now, first = revisions(), first_revisions()
    lines = [REVISED, *table_head(["", "changes", "later is faster", "as fast", "slower", "refused"])]
    for name, told in (("first", first), ("now", now)):
        lines.append(table_row(name, len(told), *_directions(list(told.values()))))
    lines += ["", *table_head(["preset", "changed", "first", "now", "risk before", "risk after"])]
    for earlier, later in pairs():
        found = now[later.recipe]
        risks = (f"{risk:.0%}" if np.isfinite(risk) else "" for risk in (found.earlier_oom, found.later_oom))
        gains = (_gain(told[later.recipe]) for told in (first, now))
        lines.append(table_row(_short(later.recipe), _changes(earlier, later), *gains, *risks))
    return "\n".join(lines) + "\n"


def _directions(told: Sequence[Revision]) -> tuple[int, int, int, int]:
    gains = np.array([each.gain for each in told])
    known = gains[np.isfinite(gains)]
    faster, slower = int((known > 1 + SAME).sum()), int((known < 1 - SAME).sum())
    return faster, len(known) - faster - slower, slower, len(gains) - len(known)


def _gain(told: Revision) -> str:
    return f"{told.gain:.2f}" if np.isfinite(told.gain) else "refused"


def _changes(earlier: ExpertPlan, later: ExpertPlan) -> str:
    """What differs, each from the earlier value to the later."""
    names = dict.fromkeys([*earlier.pins, *later.pins])
    changed = [
        f"{name} {earlier.pins.get(name, 0)} to {later.pins.get(name, 0)}"
        for name in names
        if earlier.pins.get(name, 0) != later.pins.get(name, 0) and not name.endswith("_stage_layers")
    ]
    stack = [f"{earlier.framework} to {later.framework}"] if earlier.framework != later.framework else []
    return "; ".join([*changed, *stack])


def _every(rows: Sequence[ExpertPlan], first: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> str:
    """Every plan in a line, under the address of its table."""
    lines = [
        "## Every plan\n",
        "GiB of the fullest device, and its risk of running out of memory; ratios are the expert's",
    ]
    lines += ["step over that of the planner's best, which stands beside them.\n"]
    for address in dict.fromkeys(row.address for row in rows):
        names = ["preset", "plan", "GiB: first", "now", "of", "risk", "step, s", "best, s", "ratio: first", "now"]
        lines += [f"{address}\n", *table_head([*names, "rank", "best"])]
        members = [row for row in rows if row.address == address]
        lines += [_line(row, first[row.recipe], now[row.recipe]) for row in members]
        lines.append("")
    return "\n".join(lines)


def _line(row: ExpertPlan, before: Verdict, told: Verdict) -> str:
    start = (_short(row.recipe), _pinned(row), f"{before.peak_gib:.0f}" if before.accepted else "refused")
    if not told.accepted:
        return table_row(*start, told.refused, *[""] * 8)
    ratio = f"{before.ratio:.2f}" if before.accepted else ""
    figures = (f"{told.peak_gib:.0f}", f"{told.usable_gib:.0f}", f"{told.oom:.0%}")
    steps = (f"{told.step_s:.2f}", f"{told.best_s:.2f}", ratio, f"{told.ratio:.2f}")
    return table_row(*start, *figures, *steps, f"{told.rank:,} of {told.ranked:,}", told.best)


def _pinned(row: ExpertPlan) -> str:
    """The expert's plan in the words of ``planner.phrases.plan_label``."""
    words = [f"{name}{row.pins[name]}" for name in _DIMENSIONS if row.pins[name] > 1]
    words += [f"zero{row.pins['zero']}", f"mbs{row.pins['micro_batch']}"]
    recompute = [row.pins["recompute"]] if row.pins["recompute"] != "none" else []
    moved = [f"activations of {row.offloaded_layers} layers on the host"] if row.offloaded_layers else []
    return ", ".join([" ".join(words), *recompute, *moved])


def _short(recipe: str) -> str:
    return recipe.replace("PRETRAIN_CONFIG_", "").replace("CONFIG_", "")


def _said_since() -> list[tuple[str, ...]]:
    """What has not been said yet, as cells of the table of what was said first."""
    known = set(first_verdicts())
    return [cells(recipe, told) for recipe, told in verdicts().items() if recipe not in known]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or what is said first."""
    write_page(__doc__, expert_page, _said_since, arguments)


if __name__ == "__main__":
    main()
