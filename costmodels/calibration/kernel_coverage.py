"""How many measurements lie inside the 90 % interval of their price, split by split, and how many lines could.

Kernels of one line (one device, library or operation kept out, in one format) share an error: a device is fast or slow
as a whole. Which way, nothing measured before says, so that a line lies inside its interval almost as a whole or
partly outside. The ceiling is what a model would reach that knew how far such lines of a class of operations are off,
and how far the kernels of this line scatter about that, but not the error that the line shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from costmodels.kernels.calls import FloatArray
from costmodels.kernels.device_reference import Situation
from costmodels.uncertainty import NORMAL_90
from profiles.markdown import table_head, table_row

Line = Mapping[str, Any]
LEAST_ROWS = 50  # below which a line says little of a share
LOWEST, HIGHEST = 0.85, 0.95  # of measurements inside an interval that is meant to hold 90 %
_CHANCES = norm.ppf((np.arange(1000) + 0.5) / 1000)  # standard deviations that lines are off, all equally likely


@dataclass(frozen=True, slots=True)
class _Split:
    """Lines of one row: what they are called, their kind of split, situation (any if empty), and share inside."""

    name: str
    split: str
    situation: str = ""
    covered: str = "covered"


_SPLITS = (
    _Split("random shapes", "random"),
    _Split("the most work", "larger"),
    _Split("the most work but for a fifth", "large"),
    _Split("longer sequences than seen", "longer"),
    _Split("unseen GPU, same chip", "device", "related"),
    _Split("the same after 100 kernels", "device", "related", "few_shot_covered"),
    _Split("unseen GPU, other chip", "device", "foreign"),
    _Split("the same after 100 kernels", "device", "foreign", "few_shot_covered"),
    _Split("unseen GPU, nobody timed such work", "device", "unmet"),
    _Split("the same after 100 kernels", "device", "unmet", "few_shot_covered"),
    _Split("unseen operation or library", "kind"),
    _Split("unseen source", "source"),
    _Split("our own timings of random shapes", "own"),
)

_WORDS = f"""How many measurements lie inside their 90 % interval, by what was kept out: the mean over lines of the
tables below with at least {LEAST_ROWS} rows, and the share of all their rows. *Lines inside* are those of which
{100 * LOWEST:.0f} to {100 * HIGHEST:.0f} % of the rows lie in their interval. Kernels of one line share an error, since
a device is fast or slow as a whole, so that not many lines can: *expected* are as many as of a model that knew how far
such lines of a class of operations are off and how far the kernels of each scatter about that, but not which error the
line shares."""


def coverage(lines: Mapping[str, Sequence[Line]]) -> list[str]:
    """The section, of the lines of every class of operations."""
    every = [
        {**line, "op_class": name} for name, found in lines.items() for line in found if line["rows"] >= LEAST_ROWS
    ]
    rows = [_row(split, every) for split in _SPLITS]
    head = ("kept out", "lines", "mean", "of all rows", "lines inside", "expected")
    return [_WORDS, "", *table_head(head), *(row for row in rows if row), "", *_by_situation(every)]


def _row(split: _Split, every: Sequence[Line]) -> str:
    found = [
        line
        for line in every
        if line["split"].partition(" ")[0] == split.split
        and split.situation in ("", line["situation"])
        and split.covered in line
    ]
    if not found:
        return ""
    shares = np.array([line[split.covered] for line in found])
    counts = np.array([line["rows"] for line in found])
    alike = int(((shares >= LOWEST) & (shares <= HIGHEST)).sum())
    # What is left of a line's error after calibration is not told by the lines.
    most = "" if split.covered != "covered" else f"{100 * ceiling(found):.0f} %"
    return table_row(
        split.name, len(found), f"{100 * shares.mean():.1f} %", f"{100 * np.average(shares, weights=counts):.1f} %",
        f"{100 * alike / len(found):.0f} %", most,
    )  # fmt: skip


def ceiling(lines: Sequence[Line]) -> float:
    """Share of lines that would have 85 to 95 % of their rows in the interval that suits them best unseen.

    Errors that lines share are normal, with the mean square that the lines of their class of operations show; so is
    the scatter of a line.
    """
    squares: dict[str, list[float]] = {}
    for line in lines:
        squares.setdefault(line["op_class"], []).append(line["bias"] ** 2)
    shared = {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}
    return float(np.mean([_chance(shared[line["op_class"]], scatter(line["mape"], line["bias"])) for line in lines]))


def _chance(shared: float, within: float) -> float:
    """Probability that a new line has a right share of its rows inside the interval of the two spreads."""
    if within <= 0:
        return 0.0
    half = NORMAL_90 * np.hypot(shared, within)
    off: FloatArray = shared * _CHANCES
    inside = norm.cdf((half - off) / within) - norm.cdf((-half - off) / within)
    return float(np.mean((inside >= LOWEST) & (inside <= HIGHEST)))


def scatter(mape: float, bias: float) -> float:
    """Standard deviation of normal errors whose mean is the bias and whose mean size is the MAPE."""
    if mape <= abs(bias):
        return 0.0

    def excess(std: float) -> float:
        size = std * np.sqrt(2 / np.pi) * np.exp(-(bias**2) / (2 * std**2)) + bias * (1 - 2 * norm.cdf(-bias / std))
        return float(size - mape)

    return float(brentq(excess, 1e-9, 2 * mape))


def _by_situation(every: Sequence[Line]) -> list[str]:
    """How many lines of each situation have a right share of their rows inside."""
    rows = []
    for situation in (name.lower() for name in Situation.__members__):
        shares = np.array([line["covered"] for line in every if line["situation"] == situation])
        if not len(shares):
            continue
        right = (shares >= LOWEST) & (shares <= HIGHEST)
        counts = ((shares < LOWEST).sum(), right.sum(), (shares > HIGHEST).sum())
        rows.append(table_row(situation, len(shares), *counts, f"{100 * float(shares.mean()):.1f}"))
    under, over = f"under {100 * LOWEST:.0f} %", f"over {100 * HIGHEST:.0f} %"
    head = ("situation", "lines", under, f"{100 * LOWEST:.0f} to {100 * HIGHEST:.0f} %", over, "mean")
    return ["The same lines by situation.", "", *table_head(head), *rows, ""]
