"""What looks wrong about measured runs, though it may be right: told, and left to who ran them."""

from collections.abc import Sequence

import numpy as np

from costmodels.plan import FloatArray
from costmodels.uncertainty import NORMAL_90
from planner.validate.stack_fit import MEASUREMENT_STD
from planner.validate.tables.reader import place_of
from planner.validate.tables.rows import ScorableRow

TOTAL, PER_GPU = "measured_tokens_per_s_total", "measured_tokens_per_s_per_gpu"
_FEWEST_GPUS = 4  # two GPUs are too near to a run that is simply slow
# Runs of one plan differ by a factor that nine pairs in ten stay below, were each to scatter as published ones do.
REPEATS_AGREE = float(np.exp(NORMAL_90 * np.sqrt(2) * MEASUREMENT_STD))
_SHOWN = 3


def doubts(rows: Sequence[ScorableRow], predicted_s: FloatArray) -> tuple[str, ...]:
    """One sentence each about columns that may be another one, and repeats that contradict each other.

    Args:
        rows: n rows, repeats averaged.
        predicted_s: (n,) seconds expected of a step; NaN where unknown.
    """
    return (*_columns(rows, predicted_s), *_conflicts(rows))


def _columns(rows: Sequence[ScorableRow], predicted_s: FloatArray) -> list[str]:
    """Columns whose times, in the median of a file, are nearer to the number of GPUs times too long or short."""
    found = []
    for file in dict.fromkeys(row.file for row in rows):
        for column, other, sign in ((TOTAL, PER_GPU, 1), (PER_GPU, TOTAL, -1)):
            shares = [
                sign * np.log(row.step_time_s / expected_s) / np.log(row.cluster.num_devices)
                for row, expected_s in zip(rows, predicted_s.tolist(), strict=True)
                if (row.file, row.time_column) == (file, column)
                and row.step_time_s
                and np.isfinite(expected_s)
                and row.cluster.num_devices >= _FEWEST_GPUS
            ]
            if shares and np.median(shares) > 0.5:
                found.append(
                    f"{file}: tokens/s of {column} are about the number of GPUs {'below' if sign > 0 else 'above'} what"
                    f" is expected in {len(shares)} runs; are they those of {other}?"
                )
    return found


def _conflicts(rows: Sequence[ScorableRow]) -> list[str]:
    """Plans that were run several times, with results that runs of one plan do not differ by."""
    apart = [row for row in rows if len(row.repeat_times_s) > 1 and _factor(row) > REPEATS_AGREE]
    worst = sorted(apart, key=_factor, reverse=True)
    told = [
        f"{place_of(row.file, row.line)}: {row.repeats} runs of this plan took {min(row.repeat_times_s):.3g} to"
        f" {max(row.repeat_times_s):.3g} s a step, {_factor(row):.2g} times apart; what differed between them?"
        for row in worst[:_SHOWN]
    ]
    if (more := len(worst) - _SHOWN) > 0:
        told.append(f"and {more} more plans whose runs differ by over {REPEATS_AGREE:.2g} times")
    return told


def _factor(row: ScorableRow) -> float:
    return max(row.repeat_times_s) / min(row.repeat_times_s)
