"""Trials that a user ran, from a table of the columns ``planner validate`` reads, matched with a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.plan import ExecutionPlan, FloatArray, IntArray
from costmodels.workload import LoraSpec
from planner.calibrate_runs import check_units
from planner.results import Request
from planner.validate.predict import Predictions, RowPredictor
from planner.validate.tables.mapping import Mapped, map_files, map_rows
from planner.validate.tables.reader import GIVEN, REQUIRED, Row, known_columns, place_of
from planner.validate.tables.rows import CONTRADICTION, ScorableRow, UnscorableRow, reasons, unreadable
from profiles.catalog import default_catalog
from profiles.errors import SpecError, shown
from profiles.scalars import plain
from profiles.stack import StackSpec
from profiles.units import GIB

MAX_TRIALS = 500  # trials a decision is updated with; more runs calibrate a stack
FARTHEST_PEAK = 10.0  # from its prediction, beyond which a peak is in another unit, or of something else


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """What became of T trials.

    Attributes:
        rows: The trials.
        stack: What they ran on, as fitted.
        predictor: Prices them.
        predictions: What the planner says about them.
        worlds: (T,) 0 for trials of the question's model on as many devices in the same precision, another number for
            every other combination.
        same_job: (T,) numbers of the trials that ran the very job of the question.
        unused: Rows that say nothing of the question, with the reason.
    """

    rows: tuple[ScorableRow, ...]
    stack: StackSpec
    predictor: RowPredictor
    predictions: Predictions
    worlds: IntArray
    same_job: IntArray
    unused: tuple[UnscorableRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def plans(self) -> list[ExecutionPlan]:
        """(T,) what was tried."""
        return [row.plan for row in self.rows]

    @property
    def measured_s(self) -> FloatArray:
        """(T,) measured seconds per step; NaN where there are none."""
        return np.array([row.step_time_s or np.nan for row in self.rows])

    @property
    def memory_error(self) -> FloatArray:
        """(T,) log of the measured over the predicted peak; NaN where none is printed."""
        measured = np.array([row.memory_bytes or np.nan for row in self.rows])
        error: FloatArray = np.log(measured / self.predictions.memory_bytes)
        return error


TrialInput = str | Path | Mapping[str, Any]


def read_trials(given: TrialInput | Sequence[TrialInput], *, allow_files: bool) -> Mapped:
    """Trials from tables, or given row by row.

    Args:
        given: CSV files or folders of them, or mappings of column to value.
        allow_files: Whether a path may be given; False for what comes from a network.

    Raises:
        SpecError: If a table or a row is malformed.
    """
    if not isinstance(given, str | Path | Mapping | Sequence):
        raise SpecError("trials", f"must be tables or rows; got {shown(given)}", "name a table, or give rows")
    items = [given] if isinstance(given, str | Path | Mapping) else list(given)
    if not items:
        raise SpecError("trials", "none given", "name a table, or give rows")
    paths = [Path(item) for item in items if isinstance(item, str | Path)]
    if not paths:
        rows = [_row(item, number) for number, item in enumerate(items)]
        return map_rows(rows, default_catalog(), users_own=True)
    if len(paths) < len(items):
        raise SpecError("trials", "tables and rows cannot be mixed")
    if not allow_files:
        raise SpecError("trials", "names a file, which is not read here", "give the rows")
    return map_files(paths, users_own=True, field="trials")


def _row(item: Any, number: int) -> Row:
    """A row as a table would hold it; true and false are yes and no there."""
    where = place_of(GIVEN, number + 1)
    if not isinstance(item, Mapping):
        raise SpecError(where, f"must be a mapping of columns; got {shown(item)}")
    cells: dict[str, str] = {}
    names = [str(name) for name in item]
    columns = known_columns(names, lambda name: f"{where}.{name[:40]}")
    written = dict(zip(columns, names, strict=True))
    for column, name, given in zip(columns, names, item.values(), strict=True):
        value = plain(given)
        if value is not None and not isinstance(value, str | int | float):
            raise SpecError(f"{where}.{name}", f"must be a text or a number; got {shown(value)}")
        cells[column] = _cell(value)
    cells["source"] = cells.get("source") or "trial"
    missing = [column for column in REQUIRED if not cells.get(column)]
    if missing:
        raise SpecError(f"{where}.{missing[0]}", "is missing", f"every trial says {', '.join(REQUIRED)}")
    return Row(file=GIVEN, line=number + 1, cells=cells, written=written)


def _cell(value: str | float | bool | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.15g}"


def select_trials(request: Request, mapped: Mapped) -> Trials:
    """The rows of a table that say something of a question.

    Args:
        request: The question.
        mapped: The rows.

    Raises:
        SpecError: If none does, there are too many, or one is in another unit.
    """
    unused, rows = [*mapped.unscorable], []
    for row in mapped.scorable:
        reason = _reason(request, row)
        if reason:
            unused.append(_unused(row, reason))
        else:
            rows.append(row)
    if len(rows) > MAX_TRIALS:
        raise SpecError("trials", f"at most {MAX_TRIALS}; got {len(rows)}", "planner calibrate --runs takes more")
    predictor = RowPredictor(rows)
    predictions = predictor.predict({request.stack.name: request.stack})
    unused += [_unused(rows[number], problem) for number, problem in predictions.problems.items()]
    kept = [row for number, row in enumerate(rows) if number not in predictions.problems]
    if not kept and (wrong := unreadable(unused)) is not None:
        raise wrong
    if not kept:
        raise SpecError("trials", "no row says anything of this question", reasons(unused))
    if len(kept) < len(rows):
        predictor = RowPredictor(kept)
        predictions = predictor.predict({request.stack.name: request.stack})
    check_units([row for row in kept if row.step_time_s], predictions.step_time_s[_timed(kept)])
    check_peaks(kept, predictions.memory_bytes)
    keys = [_world(request), *(_world(row) for row in kept)]
    return Trials(
        rows=tuple(kept),
        stack=request.stack,
        predictor=predictor,
        predictions=predictions,
        worlds=np.array([keys.index(key) for key in keys[1:]], dtype=np.int64),
        same_job=np.flatnonzero([_is_same_job(request, row) for row in kept]),
        unused=tuple(unused),
    )


def check_peaks(rows: Sequence[ScorableRow], predicted_bytes: FloatArray) -> None:
    """Refuse (n,) rows whose peak memory cannot be, or is so far from the prediction that it must be something else.

    Raises:
        SpecError: Naming the first.
    """
    for row, expected in zip(rows, predicted_bytes.tolist(), strict=True):
        where, hint = place_of(row.file, row.line), "is measured_peak_mem_gb that of one device, in GiB?"
        if row.memory_note.startswith(CONTRADICTION):
            raise SpecError(where, row.memory_note.removeprefix(CONTRADICTION), hint)
        measured = row.memory_bytes or expected
        if not 1 / FARTHEST_PEAK <= expected / measured <= FARTHEST_PEAK and np.isfinite(expected):
            problem = f"peaks at {measured / GIB:.3g} GiB, where about {expected / GIB:.3g} GiB are expected"
            raise SpecError(where, problem, hint)


def _timed(rows: Sequence[ScorableRow]) -> IntArray:
    return np.flatnonzero([bool(row.step_time_s) for row in rows])


def _reason(request: Request, row: ScorableRow) -> str:
    """Why a row says nothing of the question; empty when it does."""
    if row.stack != request.stack.name:
        return f"ran on {row.stack}; planned for is {request.stack.name}"
    device = request.cluster.device.name
    if row.cluster.device.name != device:
        return f"ran on {row.cluster.device.name}; planned for is {device}"
    return ""


def _unused(row: ScorableRow, reason: str) -> UnscorableRow:
    return UnscorableRow(file=row.file, line=row.line, source=row.source, model_name=row.model_name, reason=reason)


def _world(of: Request | ScorableRow) -> tuple[object, ...]:
    """What trials must have in common to tell of one another: model, devices, precision and task."""
    shape = tuple(getattr(of.model, name) for name in _SHAPE)
    return (*shape, of.cluster.num_devices, of.job.precision, of.job.task)


_SHAPE = (
    *("num_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "ffn_hidden_size", "vocab_size"),
    "moe",
)


def _adapted(lora: LoraSpec | None) -> tuple[int, frozenset[str]] | None:
    """Rank and layers of adapters, whatever their order."""
    return None if lora is None else (lora.rank, frozenset(lora.targets))


def _is_same_job(request: Request, row: ScorableRow) -> bool:
    """Whether a trial is one of the plans the question is about."""
    ours, theirs = request.job, row.job
    same = _world(request) == _world(row) and _adapted(ours.lora) == _adapted(theirs.lora)
    return same and (ours.sequence_length, ours.global_batch_size) == (theirs.sequence_length, theirs.global_batch_size)
