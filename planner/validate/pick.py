"""The pick score: would the plan a planner picks have run, and how close to the best was it?

A group is what a user chooses from: rows of one source with the same model, GPU and GPU count, at least
``LEAST_MEASURED`` of them measured. The pick is the highest predicted tokens/s among the rows predicted to
fit, runs that died included; it is scored by its measured tokens/s. Where the rows of a group ran on clusters in
different states, the groups of one state are scored besides: there a pick can gain nothing from knowing the state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.validate.predict import Predictions
from planner.validate.tables.rows import ScorableRow

LEAST_MEASURED = 5
WITHIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPick:
    """What was picked in one group.

    Attributes:
        file: File of the group.
        source: Its source.
        model_name: Its model.
        device: Its GPU.
        num_devices: Its GPU count.
        measured: Rows with a measured time.
        died: Rows that ran out of memory.
        line: Table line of the pick; None when nothing was predicted to fit.
        pick_died: Whether the pick ran out of memory.
        regret: Share of the best measured tokens/s that the pick gives away; None when it died.
    """

    file: str
    source: str
    model_name: str
    device: str
    num_devices: int
    measured: int
    died: int
    line: int | None
    pick_died: bool
    regret: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PickSummary:
    """Picks of one file, or of all.

    Attributes:
        groups: Groups judged.
        died: Picks that ran out of memory.
        nothing_fits: Groups where nothing was predicted to fit.
        within: Picks within 5 % of the best measured.
        mean_regret: Mean over the picks that ran; None when none did.
        median_regret: Median over them.
    """

    groups: int
    died: int
    nothing_fits: int
    within: int
    mean_regret: float | None
    median_regret: float | None


def pick_groups(
    rows: Sequence[ScorableRow], predictions: Predictions, *, one_state: bool = False
) -> tuple[GroupPick, ...]:
    """The pick in every group of the rows, trends left out.

    Args:
        rows: Rows of published runs.
        predictions: What the planner says about them.
        one_state: Choose among rows of one cluster in one state only.
    """
    groups = choices(rows, one_state=one_state)
    return tuple(_pick([rows[n] for n in numbers], numbers, predictions) for numbers in groups)


def choices(rows: Sequence[ScorableRow], *, one_state: bool = False) -> list[list[int]]:
    """Numbers of the rows of every group that a plan is picked from.

    Args:
        rows: Rows of published runs; trends are left out.
        one_state: Keep rows of clusters in different states apart.
    """
    members: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        if not row.trend and (row.step_time_s is not None or row.out_of_memory):
            key = (*row.pick_group, *row.cluster_key) if one_state else row.pick_group
            members.setdefault(key, []).append(number)
    measured = {key: sum(bool(rows[n].tokens_per_s) for n in numbers) for key, numbers in members.items()}
    return [numbers for key, numbers in members.items() if measured[key] >= LEAST_MEASURED]


def _pick(group: list[ScorableRow], numbers: list[int], predictions: Predictions) -> GroupPick:
    measured = [row.tokens_per_s or 0.0 for row in group]
    predicted = [
        row.job.tokens_per_step / float(predictions.step_time_s[n]) for row, n in zip(group, numbers, strict=True)
    ]
    candidates = [i for i, n in enumerate(numbers) if predictions.fits[n] and np.isfinite(predicted[i])]
    chosen = max(candidates, key=lambda i: (predicted[i], -group[i].line), default=None)
    died = chosen is not None and bool(group[chosen].out_of_memory)
    return GroupPick(
        file=group[0].file,
        source=group[0].source,
        model_name=group[0].model_name,
        device=group[0].cluster.device.name,
        num_devices=group[0].cluster.num_devices,
        measured=sum(speed > 0 for speed in measured),
        died=sum(bool(row.out_of_memory) for row in group),
        line=None if chosen is None else group[chosen].line,
        pick_died=died,
        regret=None if chosen is None or died else 1 - measured[chosen] / max(measured),
    )


def pick_summary(picks: Sequence[GroupPick]) -> PickSummary | None:
    """Totals; None when there is no group."""
    if not picks:
        return None
    regrets = [pick.regret for pick in picks if pick.regret is not None]
    return PickSummary(
        groups=len(picks),
        died=sum(pick.pick_died for pick in picks),
        nothing_fits=sum(pick.line is None for pick in picks),
        within=sum(regret <= WITHIN for regret in regrets),
        mean_regret=float(np.mean(regrets)) if regrets else None,
        median_regret=float(np.median(regrets)) if regrets else None,
    )
