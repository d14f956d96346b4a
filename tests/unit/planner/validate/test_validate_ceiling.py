"""What the scatter of single runs leaves to a perfect model, where it can be worked out."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.ceiling import SCATTERS, RankCeiling, ceiling_section, rank_ceilings, repeat_scatter
from planner.validate.metrics import RankSummary
from planner.validate.report import validate
from planner.validate.tables.rows import ScorableRow
from tests.rows import ROW


def groups_of_three(count: int, apart: float, **changes: object) -> list[ScorableRow]:
    """Groups of two plans whose log times lie ``apart``, and a third that nothing could confuse with them."""
    rows = []
    for number in range(count):
        job = replace(ROW.job, global_batch_size=8 * (number + 1))
        rows += [
            replace(ROW, job=job, step_time_s=seconds, **changes)  # type: ignore[arg-type]
            for seconds in (1.0, float(np.exp(apart)), 100.0)
        ]
    return rows


@pytest.mark.parametrize(
    ("apart", "repeats", "expected"),
    [(0.1, 1, 1.0), (np.sqrt(2) * 0.025, 1, 0.921), (np.sqrt(2) * 0.0125, 1, 0.846), (np.sqrt(2) * 0.0125, 4, 0.921)],
)
def test_pairs_are_swapped_as_often_as_two_normal_errors_say(apart: float, repeats: int, expected: float) -> None:
    """Two runs lie apart by a normal error of root two times the scatter; a swap costs half of a group's 1."""
    (found,) = rank_ceilings(groups_of_three(100, apart, repeats=repeats))
    assert found.rows == 300
    assert found.ranks[SCATTERS.index(0.025)] == pytest.approx(expected, abs=0.01)
    assert found.ranks[0] >= found.ranks[1] >= found.ranks[2]


def test_only_sources_whose_ranks_count_have_a_ceiling() -> None:
    ranked = groups_of_three(3, 0.1)
    others = [
        *groups_of_three(2, 0.1, source="six rows"),
        *groups_of_three(3, 0.1, source="trend", trend=True),
        *(replace(row, source="alone", period=str(n)) for n, row in enumerate(groups_of_three(3, 0.1))),
        *(replace(row, source="memory only", step_time_s=None) for row in ranked),
    ]
    assert [(item.source, item.rows) for item in rank_ceilings([*others, *ranked])] == [("s", 9)]


def test_scatter_pools_runs_of_one_plan_about_their_mean() -> None:
    other = replace(ROW, plan=replace(ROW.plan, micro_batch_size=2))
    rows = [
        replace(ROW, step_time_s=1.0, repeat_times_s=(float(np.exp(0.01)), float(np.exp(-0.01)))),
        replace(other, step_time_s=float(np.exp(0.03))),
        replace(other, step_time_s=float(np.exp(-0.03)), model_name="the same, printed elsewhere"),
        replace(ROW, step_time_s=9.0, period="later"),
        replace(other, step_time_s=None),
    ]
    freedom, scatter = repeat_scatter(rows)
    assert freedom == 2
    assert scatter == pytest.approx(np.sqrt((2 * 0.01**2 + 2 * 0.03**2) / 2))
    assert repeat_scatter(rows[:0]) == (0, None)


def test_section_sets_ceilings_beside_what_was_scored() -> None:
    score = validate().by_source[0]
    rank = RankSummary(groups=3, rows=9, mean=0.5, lowest=0.5)
    item = RankCeiling(file="t.csv", source="s", rows=9, repeats=2, scatter=0.024, ranks=(0.9, 0.8, 0.7))
    text = ceiling_section([replace(score, file="t.csv", source="s", rank=rank)], [item])
    assert "| t | s | 9 | 0.50 | 2 | 2.4 % | 0.90 | 0.80 | 0.70 |" in text
    assert "| mean |  |  | 0.50 |  |  | 0.90 | 0.80 | 0.70 |" in text
    unknown = ceiling_section([], [replace(item, repeats=0, scatter=None)])
    assert "| t | s | 9 |  |  |  | 0.90 | 0.80 | 0.70 |" in unknown
    assert "| mean" not in ceiling_section([], [])
