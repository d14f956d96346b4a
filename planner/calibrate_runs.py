"""A framework stack, calibrated on a handful of a user's own runs.

The packaged fit is the prior. A user's runs differ from those it rests on by a level of their own (host, clocks,
library versions, data loading), known to within ``between`` (the spread of sources in cross-validation, and what
publishers nobody has seen differ by beyond it) and what the prices of their calls leave open, and less by each
parameter of the stack. One regularised robust fit (``planner.validate.stack_fit``) weighs both: few runs move the level
and little else, more runs move what they tell apart.

What remains is the interval of the next run: the spread of the runs about the fit, and what the fit itself does not
know yet. With no run it is the packaged one; it narrows with every run that agrees with the fit, and widens where
they scatter. What prices left open in these runs is in their level: on their devices it is settled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.plan import FloatArray, IntArray
from costmodels.uncertainty import NORMAL_90
from planner.validate.doubts import doubts
from planner.validate.predict import RowPredictor, price_half_widths
from planner.validate.stack_fit import MEASUREMENT_STD, PRIOR_STD, Problem, free_parameters
from planner.validate.tables.mapping import Mapped, map_files
from planner.validate.tables.reader import place_of
from planner.validate.tables.rows import ScorableRow, reasons, unreadable
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.stack import StackSpec
from profiles.stacks import FIT_FILE, load_stacks, with_fit

LEVEL = "step_time_scale"
# The packaged fit rests on many runs already: its parameters move half as far as those of a prior.
FITTED_SHARE = 0.5
# Runs that the spread of other users' runs counts as, beside the user's own.
SPREAD_WEIGHT = 4.0
MAX_RUNS = 10_000
NO_WORSE = 1e-3  # by which the mean error may grow: what a fit of logarithms does to a mean that did not change
FARTHEST = 100.0  # from its prediction, beyond which a run says more about its table than about its stack


@dataclass(frozen=True, slots=True, kw_only=True)
class StackCalibration:
    """One stack before and after.

    Attributes:
        before: As packaged.
        after: Calibrated, with the spread its interval is made of.
        price_log_std: What prices left open in the runs, as the standard deviation of a log time.
        rows: The n runs it was calibrated on.
        measured_s: (n,) their step times.
        before_s, after_s: (n,) the step times predicted for them.
    """

    before: StackSpec
    after: StackSpec
    price_log_std: float
    rows: tuple[ScorableRow, ...]
    measured_s: FloatArray
    before_s: FloatArray
    after_s: FloatArray

    @property
    def error_before(self) -> float:
        """Mean relative error of the step times as packaged."""
        return float(np.mean(np.abs(self.before_s / self.measured_s - 1)))

    @property
    def error_after(self) -> float:
        """The same, calibrated."""
        return float(np.mean(np.abs(self.after_s / self.measured_s - 1)))

    @property
    def helps(self) -> bool:
        """Whether the fit is kept: not if it makes errors larger. One that changes nothing may narrow the interval."""
        return self.error_after <= self.error_before + NO_WORSE


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCalibration:
    """What was learnt from some tables of runs.

    Attributes:
        stacks: One calibration per stack that has timed runs, by name.
        mapped: All rows of the tables, with the reason for those that could not be used.
        warnings: What looks wrong about the rows, though it may be right.
    """

    stacks: tuple[StackCalibration, ...]
    mapped: Mapped
    warnings: tuple[str, ...] = ()


def calibrate_runs(paths: Sequence[Path], stacks: Mapping[str, StackSpec] | None = None) -> RunCalibration:
    """Calibrate every stack that the runs of some tables ran on.

    Args:
        paths: CSV files of the columns that ``planner validate`` reads, or folders of them.
        stacks: The stacks to start from; those of the tasks that were run when None.

    Raises:
        SpecError: If a table is malformed, holds no run that can be used, or one in another unit.
    """
    mapped = map_files(paths, users_own=True, field="runs")
    timed = [row for row in mapped.scorable if row.step_time_s is not None]
    start = dict(load_stacks()) if stacks is None else dict(stacks)
    if stacks is None:
        start |= {row.stack: load_stacks(row.job.task)[row.stack] for row in timed}
    if len(timed) > MAX_RUNS:
        raise SpecError("runs", f"at most {MAX_RUNS} runs with a step time; got {len(timed)}")
    predicted_s = RowPredictor(timed).step_times_s(start)
    check_units(timed, predicted_s)
    warnings = doubts(timed, predicted_s)
    timed = [row for row, usable in zip(timed, np.isfinite(predicted_s).tolist(), strict=True) if usable]
    if not timed and (wrong := unreadable(mapped.unscorable)) is not None:
        raise wrong
    if not timed:
        raise SpecError("runs", "no row has a step time that can be compared", reasons(mapped.unscorable))
    names = sorted({row.stack for row in timed})
    found = tuple(_calibrated(start[name], [row for row in timed if row.stack == name]) for name in names)
    return RunCalibration(stacks=found, mapped=mapped, warnings=warnings)


def check_units(rows: Sequence[ScorableRow], predicted_s: FloatArray) -> None:
    """Refuse (n,) timed rows whose step time is so far from the prediction that it must be something else.

    Raises:
        SpecError: Naming the first.
    """
    for row, expected_s in zip(rows, predicted_s.tolist(), strict=True):
        measured_s = row.step_time_s or expected_s
        if not 1 / FARTHEST <= expected_s / measured_s <= FARTHEST and np.isfinite(expected_s):
            problem = f"takes {measured_s:.3g} s a step, where about {expected_s:.3g} s are expected"
            raise SpecError(
                place_of(row.file, row.line), problem, "is the time in seconds, the batch that of a whole step?"
            )


def spreads(stack: StackSpec) -> tuple[float, float]:
    """Log standard deviation between users' levels, and among the runs of one user.

    Where a stack has too few sources to tell them apart, runs of one user scatter as published ones do.
    """
    within = min(stack.within_log_std or MEASUREMENT_STD, stack.residual_log_std or MEASUREMENT_STD)
    between = float(np.sqrt(max(stack.residual_log_std**2 - within**2, MEASUREMENT_STD**2)))
    return between, within


def _calibrated(stack: StackSpec, rows: Sequence[ScorableRow]) -> StackCalibration:
    predictor = RowPredictor(rows)
    everything = np.arange(len(rows))

    def predict(variant: StackSpec, chosen: IntArray) -> FloatArray:
        return predictor.step_times_s({variant.name: variant}, chosen)

    measured_s = np.array([row.step_time_s for row in rows], dtype=float)
    between, within = spreads(stack)
    left_open = price_half_widths(predictor, {stack.name: stack}) / NORMAL_90
    kernel = float(np.sqrt(np.mean(left_open**2)))
    level = float(np.hypot(between, kernel))
    problem = Problem.of(
        stack,
        names=(LEVEL, *free_parameters(stack)),
        prior_std={name: FITTED_SHARE * std for name, std in PRIOR_STD.items()} | {LEVEL: level},
        noise_std=within,
        rows=everything,
        sources=np.array([str(number) for number in everything]),  # every run counts in full
        measured_s=measured_s,
        predict=predict,
    )
    after = problem.solve()
    after_s = predict(after, everything)
    times_s = [_times_s(row) for row in rows]
    residual = np.log(np.concatenate(times_s) / np.repeat(after_s, [len(each) for each in times_s]))
    spread = np.sqrt((SPREAD_WEIGHT * within**2 + float(residual @ residual)) / (SPREAD_WEIGHT + len(residual)))
    remaining = float(np.mean(problem.variance_at(after)))
    return StackCalibration(
        before=stack,
        price_log_std=kernel,
        after=replace(
            after,
            # Runs that agree never make a stack less certain than it was; runs that scatter do.
            residual_log_std=float(
                min(np.hypot(spread, np.sqrt(remaining)), max(np.hypot(stack.residual_log_std, kernel), spread))
            ),
            publisher_log_std=0.0,
            within_log_std=float(spread),
            settled_log_std=float(np.hypot(stack.settled_log_std, kernel)),
            settled_on=tuple(sorted({*stack.settled_on, *(row.cluster.device.name for row in rows)})),
            fitted_on=f"{len(rows)} runs of {', '.join(sorted({row.file for row in rows}))}",
        ),
        rows=tuple(rows),
        measured_s=measured_s,
        before_s=predict(stack, everything),
        after_s=after_s,
    )


def _times_s(row: ScorableRow) -> tuple[float, ...]:
    """What each of the runs behind a row took: their mean hides how they scatter."""
    return row.repeat_times_s or (row.step_time_s or 0.0,)


def fit_document(found: RunCalibration) -> dict[str, Any]:
    """The calibrated stacks as a file that ``profiles.stacks.with_fit`` reads; without those that no fit helps."""
    stacks = {}
    for item in found.stacks:
        if not item.helps:
            continue
        names = (LEVEL, *free_parameters(item.after))
        stacks[item.after.name] = {
            "values": {name: float(f"{getattr(item.after, name):.6g}") for name in names},
            "residual_log_std": round(item.after.residual_log_std, 4),
            "within_log_std": round(item.after.within_log_std, 4),
            "settled_log_std": round(item.after.settled_log_std, 4),
            "settled_on": list(item.after.settled_on),
            "rows": len(item.rows),
            "sources": sorted({row.file for row in item.rows}),
        }
    return {"protocol": "planner.calibrate_runs on the packaged fit", "stacks": stacks}


def fit_file(out: Path | None) -> Path | None:
    """Where the fit goes: the file given, or that of a catalogue directory; nowhere when there is none.

    Args:
        out: A file, a catalogue directory, or None for the last directory of ``PLANNER_CATALOG``.
    """
    if out is None:
        own = [Path(str(directory)) for directory in default_catalog().directories[1:]]
        out = own[-1] if own else None
    return out.joinpath(*FIT_FILE) if out is not None and out.is_dir() else out


def write_fit(found: RunCalibration, path: Path) -> None:
    """Write the calibrated stacks; a fit of other stacks that the file holds stays, one of those not helped goes.

    Raises:
        SpecError: If the file cannot be written, or holds something else.
    """
    document = fit_document(found)
    if path.is_file():
        with_fit(path)  # is it one?
        kept = json.loads(path.read_text(encoding="utf-8"))["stacks"]
        fitted = {item.after.name for item in found.stacks}
        document["stacks"] = {name: card for name, card in kept.items() if name not in fitted} | document["stacks"]
    try:
        if not document["stacks"]:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError("--out", f"cannot write {str(path)[:200]!r}: {error.strerror}") from None
