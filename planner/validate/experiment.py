"""Experiment: one comparison with published facts, its criterion and its outcome."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What was compared and how it came out.

    Attributes:
        name: Short name, such as ``E3``.
        title: What is compared with what.
        criterion: What has to hold.
        passed: Whether it does.
        findings: Sentences with the figures, worst cases and caveats included.
        header: Columns of the table.
        rows: Its rows, as text.
    """

    name: str
    title: str
    criterion: str
    passed: bool
    findings: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def mean_and_worst(errors: Sequence[float]) -> tuple[float, float]:
    """Of relative errors, signs left out."""
    return float(np.mean(np.abs(errors))), float(np.max(np.abs(errors)))
