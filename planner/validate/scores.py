"""Scores of sources: errors, ranks and verdicts of rows, predicted against measured, and their means.

Everything here is a fraction, a count or a name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray
from planner.validate.metrics import (
    LEAST_ROWS,
    ErrorSummary,
    OomSummary,
    RankSummary,
    error_summary,
    mean_over_sources,
    oom_summary,
    rank_summary,
    worst_source,
)
from planner.validate.predict import Predictions
from planner.validate.tables.rows import MemoryKind, ScorableRow

# Run by run too noisy for a mean (twins differ by a quarter): judged by its median and its picks.
JUDGED_APART = ("nanotron",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScore:
    """Scores of one source of one file, of one file, or of everything.

    Attributes:
        file: File, or "" for all.
        source: Source, or "" for all of the file.
        rows: Rows priced.
        assumed_rows: Of those, rows that rest on a stated assumption.
        unscorable: Rows left out.
        time: Step-time errors.
        stated_time: The same over rows without assumptions.
        rank: Rank correlation within groups that differ only by plan.
        memory: Peak-memory errors.
        memory_by_kind: The same by what the figure counts.
        oom: Verdicts.
        trend: Digitised figures and logs that declare themselves inexact, left out of every mean.
        apart: Judged by median and picks, left out of the mean over sources.
    """

    file: str
    source: str
    rows: int
    assumed_rows: int
    unscorable: int
    time: ErrorSummary | None
    stated_time: ErrorSummary | None
    rank: RankSummary | None
    memory: ErrorSummary | None
    memory_by_kind: Mapping[str, ErrorSummary]
    oom: OomSummary
    trend: bool
    apart: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Means over sources with enough rows, each source weighing the same.

    Attributes:
        time_mape: Step time.
        time_p90: Step time, mean of the 90th percentiles of the sources' errors.
        rank: Rank correlation within groups that differ only by plan; sources with enough rows in such groups,
            those judged apart included.
        stated_time_mape: Step time, rows without assumptions.
        memory_mape: Peak memory.
        worst_time: Source with the largest step-time error, and it.
        worst_memory: The same for memory.
        oom_accuracy: Share of right verdicts.
        time_covered: Share of step times inside their interval.
        memory_covered: Share of peaks inside their interval.
        time_sources: Sources in the first mean.
        memory_sources: Sources in the memory mean.
    """

    time_mape: float | None
    time_p90: float | None
    rank: float | None
    stated_time_mape: float | None
    memory_mape: float | None
    worst_time: tuple[str, float] | None
    worst_memory: tuple[str, float] | None
    oom_accuracy: float | None
    time_covered: float | None
    memory_covered: float | None
    time_sources: int
    memory_sources: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScore:
    """One row, predicted against measured; absent figures are None."""

    file: str
    line: int
    source: str
    model: str
    cluster: str
    stack: str
    measured_step_time_s: float | None
    predicted_step_time_s: float | None
    measured_memory_bytes: float | None
    predicted_memory_bytes: float | None
    memory_kind: str
    out_of_memory: bool | None
    predicted_to_fit: bool
    assumptions: tuple[str, ...]
    repeats: int


class ScoreTable:
    """Rows and predictions side by side, as arrays."""

    def __init__(self, rows: Sequence[ScorableRow], predictions: Predictions) -> None:
        self._rows = rows
        self._predicted = predictions
        self._time = _column([row.step_time_s for row in rows])
        self._memory = _column([row.memory_bytes for row in rows])
        self._died = np.array([row.out_of_memory is True for row in rows], dtype=np.bool_)
        self._ran = np.array([row.out_of_memory is False for row in rows], dtype=np.bool_)
        self._assumed = np.array([bool(row.assumptions) for row in rows], dtype=np.bool_)
        self._kinds = np.array([row.memory_kind.value for row in rows], dtype=object)
        self._priced = np.isfinite(predictions.step_time_s)

    def score(self, chosen: BoolArray, file: str, source: str, *, unscorable: int) -> SourceScore:
        """Scores of the chosen rows."""
        chosen = chosen & self._priced
        members = [row for row, here in zip(self._rows, chosen.tolist(), strict=True) if here]
        timed = chosen & np.isfinite(self._time)
        remembered = chosen & np.isfinite(self._memory)
        predicted = self._predicted
        times = self._time, predicted.step_time_s, predicted.step_time_low_s, predicted.step_time_high_s
        peaks = self._memory, predicted.memory_bytes, predicted.memory_low_bytes, predicted.memory_high_bytes
        by_kind = {kind.value: _errors(remembered & (self._kinds == kind.value), *peaks) for kind in MemoryKind}
        return SourceScore(
            file=file,
            source=source,
            rows=len(members),
            assumed_rows=int((chosen & self._assumed).sum()),
            unscorable=unscorable,
            time=_errors(timed, *times),
            stated_time=_errors(timed & ~self._assumed, *times),
            rank=rank_summary(
                predicted.step_time_s[timed],
                self._time[timed],
                [row.plan_group for row, here in zip(self._rows, timed.tolist(), strict=True) if here],
            ),
            memory=_errors(remembered, *peaks),
            memory_by_kind={kind: errors for kind, errors in by_kind.items() if errors is not None},
            oom=oom_summary(predicted.fits[chosen], self._died[chosen], self._ran[chosen]),
            trend=bool(members) and all(row.trend for row in members),
            apart=bool(members) and all(row.stack in JUDGED_APART for row in members),
        )

    def row(self, number: int) -> RowScore:
        """One row for the document."""
        row = self._rows[number]
        predicted = self._predicted
        return RowScore(
            file=row.file,
            line=row.line,
            source=row.source,
            model=row.model_name,
            cluster=row.cluster.name,
            stack=row.stack,
            measured_step_time_s=row.step_time_s,
            predicted_step_time_s=_finite(predicted.step_time_s[number]),
            measured_memory_bytes=row.memory_bytes,
            predicted_memory_bytes=_finite(predicted.memory_bytes[number]),
            memory_kind=row.memory_kind.value,
            out_of_memory=row.out_of_memory,
            predicted_to_fit=bool(predicted.fits[number]),
            assumptions=row.assumptions,
            repeats=row.repeats,
        )


def _errors(
    rows: BoolArray, measured: FloatArray, predicted: FloatArray, low: FloatArray, high: FloatArray
) -> ErrorSummary | None:
    """Errors of the chosen rows."""
    return error_summary(predicted[rows], measured[rows], low=low[rows], high=high[rows])


def _column(values: Sequence[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def means_of(by_source: Sequence[SourceScore]) -> Means:
    """What is averaged over sources: all but trends, and of times those not judged apart."""
    exact = [item for item in by_source if not item.trend]
    timed = {f"{s.file}: {s.source}": s.time for s in exact if not s.apart}
    memory = {f"{s.file}: {s.source}": s.memory for s in exact}
    return Means(
        time_mape=mean_over_sources(timed.values()),
        time_p90=mean_over_sources(timed.values(), "p90"),
        rank=mean_over_sources((s.rank for s in exact), "mean"),
        stated_time_mape=mean_over_sources(s.stated_time for s in exact if not s.apart),
        memory_mape=mean_over_sources(memory.values()),
        worst_time=worst_source(timed),
        worst_memory=worst_source(memory),
        oom_accuracy=mean_over_sources((s.oom for s in exact), "accuracy"),
        time_covered=mean_over_sources(timed.values(), "covered"),
        memory_covered=mean_over_sources(memory.values(), "covered"),
        time_sources=_enough(timed.values()),
        memory_sources=_enough(memory.values()),
    )


def _enough(errors: Iterable[ErrorSummary | None]) -> int:
    return sum(error is not None and error.rows >= LEAST_ROWS for error in errors)
