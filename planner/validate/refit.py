"""Fits every framework stack on a folder of published runs and writes the result as data.

``python -m planner.validate.refit --data FOLDER --out profiles/data/fits/stacks.json``. Offline: nothing
in the product runs it. The protocol is that of ``stack_fit``: sources weigh alike, and each is judged by
a fit that never saw it; the residual that sets the interval is the one of that judgement.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.validate.predict import RowPredictor, price_half_widths
from planner.validate.scores import JUDGED_APART
from planner.validate.stack_fit import PRIOR_STD, StackFit, fit_stacks, free_parameters
from planner.validate.tables.mapping import scorable_rows
from planner.validate.tables.rows import ScorableRow, refuse_unseen
from planner.validate.widths import REPEATS_LOG_STD, log_std, residual_log_std
from profiles.stack import StackSpec
from profiles.stacks import load_priors

# Rows of one file that are fitted; a larger file is thinned evenly, its rows repeat one another.
MOST_ROWS_PER_FILE = 100
# Of what a board does to 16-bit products while it is kept busy. A stack whose runs take less than that share of the
# prior's variance away has none on the generation, or none in 16 bits.
_SCALES_OF_BOARDS = ("blackwell_16bit_time_scale", "hopper_16bit_time_scale")
_LEAST_TOLD = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """Rows that were fitted, and the fit.

    Attributes:
        rows: The n rows, in order.
        folds: (n,) what each row is left out with.
        measured_s: (n,) measured step time.
        price_half_width: (n,) half of the log interval that prices alone give, on the side of what was measured.
        fit: The fit; stacks that share times have those of the stack they share with.
    """

    rows: tuple[ScorableRow, ...]
    folds: tuple[str, ...]
    measured_s: FloatArray
    price_half_width: FloatArray
    fit: StackFit

    def residual_log_stds(self, without: str = "") -> dict[str, float]:
        """Stack that has times of its own to the width of its residual, told by all held-out errors.

        No stack is surer than runs of one plan repeat, however wide the intervals of its prices.

        Args:
            without: A fold whose errors are left out: what is judged by these widths.
        """
        errors, of_row = np.log(self.measured_s / self.fit.held_out_s), np.array(self.folds)
        names = np.array([time_stack(self.fit.stacks[row.stack]) for row in self.rows])
        return {
            name: max(
                residual_log_std(errors, of_row, of_row != without, names == name, self.price_half_width),
                REPEATS_LOG_STD,
            )
            for name in sorted({time_stack(stack) for stack in self.fit.stacks.values()})
        }


def refit(
    rows: Sequence[ScorableRow],
    priors: Mapping[str, StackSpec] | None = None,
    left_out_with: Mapping[tuple[str, str], str] | None = None,
    jobs: int = 1,
) -> Refit:
    """Fit and cross-validate the stacks on timed rows.

    Args:
        rows: Scorable rows; those without a time, and digitised ones, are left out.
        priors: Stacks to start from; the packaged ones when absent.
        left_out_with: (file, source) to the name of what is left out together; ``left_out_together`` when absent.
        jobs: Processes to use; all cores when negative.
    """
    refuse_unseen(rows)
    start = dict(priors or load_priors())
    together = left_out_together(rows) if left_out_with is None else left_out_with
    timed = [row for row in rows if row.step_time_s is not None and not row.trend]
    priced = np.isfinite(RowPredictor(timed).step_times_s(start))
    kept = _thinned([row for row, usable in zip(timed, priced.tolist(), strict=True) if usable])
    predictors: dict[bytes, RowPredictor] = {}

    def predict(stacks: Mapping[str, StackSpec], chosen: IntArray) -> FloatArray:
        key = chosen.tobytes()
        if key not in predictors:
            predictors[key] = RowPredictor([kept[row] for row in chosen.tolist()])
        return predictors[key].step_times_s(_with_shared_times(stacks))

    measured_s = np.array([row.step_time_s for row in kept], dtype=float)
    folds = tuple(fold_of(row, together) for row in kept)
    fit = fit_stacks(
        start,
        stack_of_row=[time_stack(start[row.stack]) for row in kept],
        source_of_row=folds,
        measured_s=measured_s,
        predict=predict,
        jobs=jobs,
    )
    held_out = {source: _with_shared_times(stacks) for source, stacks in fit.held_out.items()}
    fit = replace(fit, stacks=_with_shared_times(_with_power_limits(fit)), held_out=held_out)
    low, high = price_half_widths(RowPredictor(kept), fit.stacks)
    half_width = np.where(measured_s < fit.held_out_s, low, high)
    return Refit(rows=tuple(kept), folds=folds, measured_s=measured_s, price_half_width=half_width, fit=fit)


def time_stack(stack: StackSpec) -> str:
    """Name of the stack whose fitted times a stack has: its own unless it shares another's."""
    return stack.shares_time_with or stack.name


def _with_power_limits(fit: StackFit) -> dict[str, StackSpec]:
    """The stacks, those whose runs say nothing of 16-bit training on a generation as slow there as the others.

    What holds it below its kernels' benchmarks is the same under every framework: the power of boards, the slowest of
    several, libraries older than those that were timed. Each stack has a say by how much more its runs tell than its
    prior does.
    """
    found = dict(fit.stacks)
    for scale in _SCALES_OF_BOARDS:
        told = {name: shares[scale] for name, shares in fit.told.items() if shares.get(scale, 0.0) >= _LEAST_TOLD}
        if not told:
            continue
        weights = [share / max(1 - share, 1e-9) for share in told.values()]
        logs = [np.log(getattr(fit.stacks[name], scale)) for name in told]
        mean = float(np.exp(np.average(logs, weights=weights)))
        found = {
            name: stack if name in told else replace(stack, **{scale: mean})  # type: ignore[arg-type]
            for name, stack in found.items()
        }
    return found


def _with_shared_times(stacks: Mapping[str, StackSpec]) -> dict[str, StackSpec]:
    """The stacks, those that share times with the times of the stack they share with."""
    shared = {}
    for name, stack in stacks.items():
        times = stacks[time_stack(stack)]
        shared[name] = replace(stack, **{field: getattr(times, field) for field in PRIOR_STD})
    return shared


def left_out_together(rows: Sequence[ScorableRow]) -> dict[tuple[str, str], str]:
    """(file, source) to what is left out with it: the whole file, and files of the same publisher.

    A lone file is left out publisher by publisher. The publisher is the source's text up to its first
    bracket, so that two tables of one README, or one simulator's two validations, are never apart.
    """
    keys = sorted({(row.file, row.source) for row in rows})
    lone = len({file for file, _ in keys}) == 1
    name = {key: publisher(key[1]) for key in keys}
    for _ in keys:  # spread the smallest name over files and publishers until nothing changes
        before = dict(name)
        for left in keys:
            for right in keys:
                if publisher(left[1]) == publisher(right[1]) or (left[0] == right[0] and not lone):
                    name[left] = name[right] = min(name[left], name[right])
        if name == before:
            break
    return name


def publisher(source: str) -> str:
    """A source's text up to its first bracket."""
    return source.split(" (")[0]


def fold_of(row: ScorableRow, left_out_with: Mapping[tuple[str, str], str]) -> str:
    """What is left out together: a file or publisher, or one model on one GPU count of a sweep judged apart."""
    name = left_out_with.get((row.file, row.source), row.file)
    if row.stack in JUDGED_APART:
        return f"{name}: {row.model_name} on {row.cluster.num_devices}"
    return name


def card(result: Refit) -> dict[str, Any]:
    """The fitted stacks as a JSON document, with what each rests on and its held-out residual."""
    error = np.log(result.measured_s / result.fit.held_out_s)
    fitted = result.fit.stacks
    names = [time_stack(fitted[row.stack]) for row in result.rows]
    widths = result.residual_log_stds()
    stacks = {}
    for name in sorted(set(names)):
        chosen = [number for number, own in enumerate(names) if own == name]
        files = [result.rows[number].file for number in chosen]
        means, counts = _of_file(error[chosen], files)
        about = error[chosen] - means
        values = {field: float(f"{getattr(fitted[name], field):.4g}") for field in free_parameters(fitted[name])}
        stacks[name] = {
            "values": values,
            "residual_log_std": round(widths[name], 4),
            "within_log_std": round(log_std(np.abs(about), 1 / counts), 4),
            "held_out_mape": round(float(np.mean(np.abs(np.expm1(-error[chosen])))), 4),
            "rows": len(chosen),
            "sources": sorted(set(files)),
        }
    return {"protocol": "planner.validate.stack_fit; each publisher left out in turn", "stacks": stacks}


def _of_file(error: FloatArray, files: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """(n,) mean error of the file each row is of, and how many rows it has."""
    names, of_row = np.unique(np.asarray(files), return_inverse=True)
    counts = np.bincount(of_row)
    means: FloatArray = np.bincount(of_row, weights=error, minlength=len(names)) / counts
    return means[of_row], counts[of_row].astype(float)


def _thinned(rows: Sequence[ScorableRow]) -> list[ScorableRow]:
    """At most ``MOST_ROWS_PER_FILE`` rows of each file, evenly spaced."""
    files = sorted({row.file for row in rows})
    kept: list[ScorableRow] = []
    for name in files:
        own = [row for row in rows if row.file == name]
        spaced = np.unique(np.linspace(0, len(own) - 1, min(len(own), MOST_ROWS_PER_FILE)).round().astype(int))
        kept += [own[number] for number in spaced.tolist()]
    return kept


def main() -> None:
    """Command line of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of published runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args()
    document = card(refit(scorable_rows(sorted(chosen.data.glob("*.csv"))), jobs=-1))
    chosen.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
