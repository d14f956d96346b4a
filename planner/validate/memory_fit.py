"""Fits what stacks add to the tensors in device memory, pooled over stacks and cross-validated by source.

A stack adds eight things: temporaries, fragmentation, a cache of freed blocks, another where micro-batches differ in
length, blocks that wait for a communication stream, a fixed allocator reserve, the context, and buffers per
communicator. Few sources tell much about a
stack, so stacks teach one another: the logarithm of a parameter is drawn around a value common to all stacks,
which itself has a prior (empirical Bayes). A stack without measurements gets the common values.

Measured peaks count by a Huber loss of log(measured / predicted); the kind of the figure (allocated, reserved,
nvidia-smi) decides which parameters it speaks of. Runs that died, or ran without printing their peak, count
by the probability of their verdict. Every source weighs alike, and is judged by a fit that never saw it.

``python -m planner.validate.memory_fit --data FOLDER --out profiles/data/fits/stack_memory.json``; offline.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from costmodels.arrays import total
from costmodels.memory.peaks import TensorMemory, with_overheads
from costmodels.plan import BoolArray, FloatArray
from planner.validate.own_runs import own_rows
from planner.validate.predict import RowPredictor, counted_parts
from planner.validate.refit import fold_of, left_out_together
from planner.validate.stack_fit import huber, source_weights
from planner.validate.tables.mapping import scorable_rows
from planner.validate.tables.rows import MemoryKind, ScorableRow, refuse_unseen
from planner.validate.widths import residual_log_std
from profiles.stack import StackSpec
from profiles.stacks import load_priors


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed of a parameter before any end-to-end run is seen, in log units around ``typical``.

    Attributes:
        typical: Value for a stack nothing is known of.
        common_std: How far the value common to all stacks may be from it.
        stack_std: How far one stack is from the common value.
    """

    typical: float
    common_std: float
    stack_std: float


PRIORS = {
    "temporary_fraction": Prior(typical=0.03, common_std=0.7, stack_std=0.7),
    # PyTorch rounds blocks of 1 to 10 MiB up to 2 MiB and splits only large ones; expandable segments, which
    # remove fragmentation, are off by default. GMLake (arXiv:2401.08156) measures 10 to 30 %.
    "fragmentation_fraction": Prior(typical=0.1, common_std=0.5, stack_std=0.5),
    "cache_fraction": Prior(typical=0.1, common_std=0.7, stack_std=1.0),
    "varied_cache_fraction": Prior(typical=0.1, common_std=0.7, stack_std=1.0),
    # A launch queue holds 1,024 kernels, which is how far the host may be ahead; a layer launches some fifty for its
    # forward pass and gathers two tensors in it (record_stream: pytorch/pytorch pull request 76861).
    "waiting_tensors": Prior(typical=40.0, common_std=0.5, stack_std=0.5),
    "reserve_bytes": Prior(typical=3e8, common_std=0.5, stack_std=0.3),
    # A PyTorch process with no tensors shows about 0.5 GB on Ampere and Hopper, cuBLAS and NCCL loaded 1 GB.
    "context_bytes": Prior(typical=1e9, common_std=0.5, stack_std=0.4),
    # NCCL: 4 MiB per channel, protocol and peer (NCCL_BUFFSIZE), some 16 to 32 channels.
    "communicator_bytes": Prior(typical=6e8, common_std=0.7, stack_std=0.7),
}
NAMES = tuple(PRIORS)
_COMMON_STD = np.array([prior.common_std for prior in PRIORS.values()])
_STACK_STD = np.array([prior.stack_std for prior in PRIORS.values()])
_TYPICAL = np.log([prior.typical for prior in PRIORS.values()])

HUBER = 0.15  # log error beyond which a peak counts linearly
MEASUREMENT_STD = 0.1  # of a published peak: rounding to GB, variation over ranks, settings that are not printed
VERDICT_STD = 0.03  # log distance to the capacity at which five verdicts of six are right: what predicts peaks to 3 %
WRONG_VERDICTS = 0.02  # share of published verdicts that another cause than memory may explain
SWEEPS = 4  # alternations between stacks and what is common to them
DELTA = 0.1  # of the finite differences, in log units
REACH = 6.0  # log units a parameter may be from its typical value


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRows:
    """Runs of one stack whose peak or fate is known, n of them.

    Attributes:
        tensors: What their tensors take.
        counted: Part name to (n, 1), whether the source's figure counts it.
        first_stage: (n,) the figure is that of the first stage.
        log_measured: (n,) log of the measured bytes, NaN where none is printed.
        died, ran: (n,) what became of the run.
        sources: (n,) what each is left out with.
        numbers: (n,) where the row stands in the list that was given; -1 for a second figure of a row.
    """

    tensors: TensorMemory
    counted: Mapping[str, BoolArray]
    first_stage: BoolArray
    log_measured: FloatArray
    died: BoolArray
    ran: BoolArray
    sources: NDArray[np.str_]
    numbers: NDArray[np.int64]

    def log_peaks(self, stack: StackSpec) -> tuple[FloatArray, FloatArray]:
        """(n,) log of the bytes the source counts, and of those the fullest device needs."""
        parts = with_overheads(self.tensors, stack)
        per_stage = total(part * self.counted[name] for name, part in parts.items())
        peak = np.where(self.first_stage, per_stage[:, 0], per_stage.max(axis=1))
        return np.log(peak), np.log(total(parts.values()).max(axis=1))

    def weights(self, chosen: BoolArray) -> FloatArray:
        """(n,) weight of each chosen row among these, 0 for others: see ``stack_fit.source_weights``."""
        weights = np.zeros(len(self.sources))
        weights[chosen] = source_weights(self.sources[chosen])
        return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """Fitted memory parameters, and what is held against them.

    Attributes:
        common: Parameter to the value common to all stacks.
        stacks: Stack to its parameters, ``memory_residual_log_std`` among them.
        held_out: What is left out to the stacks fitted without it.
        errors: (rows,) log(measured / predicted) of every row by stacks that never saw its source; NaN where no
            peak is printed.
        rows: Stack to how many peaks and verdicts it was fitted on.
        sources: Stack to the sources of its peaks.
    """

    common: Mapping[str, float]
    stacks: Mapping[str, Mapping[str, float]]
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    errors: FloatArray
    rows: Mapping[str, tuple[int, int]]
    sources: Mapping[str, tuple[str, ...]]


def fit_memory(
    rows: Sequence[ScorableRow],
    priors: Mapping[str, StackSpec] | None = None,
    left_out_with: Mapping[tuple[str, str], str] | None = None,
) -> MemoryFit:
    """Fit every stack's memory parameters, and judge each source by the others.

    Args:
        rows: Scorable rows; trends are left out.
        priors: Stacks by name, whose other fields stay; the packaged ones when absent.
        left_out_with: (file, source) to the name of what is left out together; ``left_out_together`` when absent.
    """
    refuse_unseen(rows)
    stacks = dict(priors or load_priors())
    together = left_out_together(rows) if left_out_with is None else left_out_with
    problems = _problems(rows, stacks, together)
    pool = _pooled({name: _loss_of(problem, stacks[name]) for name, problem in problems.items()})
    folds: dict[str, _Pool] = {}
    errors: FloatArray = np.full(len(rows), np.nan)
    for fold in sorted({name for problem in problems.values() for name in problem.sources.tolist()}):
        touched = {name: problem for name, problem in problems.items() if fold in problem.sources}
        kept = {name: _loss_of(problem, stacks[name], without=fold) for name, problem in touched.items()}
        folds[fold] = _pooled(kept, pool)
        for name, problem in touched.items():
            judged = (problem.sources == fold) & (problem.numbers >= 0)
            predicted = problem.log_peaks(_with(stacks[name], folds[fold].of(name)))[0]
            errors[problem.numbers[judged]] = (problem.log_measured - predicted)[judged]
    of_row = np.array([fold_of(row, together) for row in rows])
    return MemoryFit(
        common=_named(pool.common),
        stacks=_carded(pool, problems, stacks, errors, of_row, without=""),
        held_out={
            fold: _carded(found, problems, stacks, errors, of_row, without=fold) for fold, found in folds.items()
        },
        errors=errors,
        rows={name: (int(np.isfinite(p.log_measured).sum()), len(p.numbers)) for name, p in problems.items()},
        sources={
            name: tuple(sorted({rows[n].file for n in p.numbers[np.isfinite(p.log_measured)].tolist() if n >= 0}))
            for name, p in problems.items()
        },
    )


def with_memory(stacks: Mapping[str, StackSpec], values: Mapping[str, Mapping[str, float]]) -> dict[str, StackSpec]:
    """The stacks with fitted memory parameters."""
    return {name: stack.with_memory(values[name]) if name in values else stack for name, stack in stacks.items()}


def _problems(
    rows: Sequence[ScorableRow], stacks: Mapping[str, StackSpec], together: Mapping[tuple[str, str], str]
) -> dict[str, MemoryRows]:
    """Rows with a peak or a fate, by stack; tensors are worked out once."""
    known = [n for n, row in enumerate(rows) if not row.trend and (row.memory_bytes or row.out_of_memory is not None)]
    chosen = [rows[number] for number in known]
    second = [replace(row, memory_kind=MemoryKind.RESERVED, memory_bytes=row.reserved_bytes) for row in chosen]
    second = [replace(row, out_of_memory=None) for row in second if row.memory_bytes]
    chosen, known = chosen + second, known + [-1] * len(second)
    typical = {name: _with(stack, _TYPICAL) for name, stack in stacks.items()}
    tables = RowPredictor(chosen).tensors(typical)
    problems = {}
    for name, (members, tensors) in tables.items():
        own = [chosen[member] for member in members.tolist()]
        counted = [counted_parts(row.memory_kind) for row in own]
        problems[name] = MemoryRows(
            tensors=tensors,
            counted={part: np.array([[part in each] for each in counted]) for part in counted_parts(MemoryKind.SMI)},
            first_stage=np.array([row.first_stage_memory for row in own]),
            log_measured=np.log([row.memory_bytes or np.nan for row in own]),
            died=np.array([row.out_of_memory is True for row in own]),
            ran=np.array([row.out_of_memory is False for row in own]),
            sources=np.array([fold_of(row, together) for row in own]),
            numbers=np.array(known)[members],
        )
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """Stacks fitted together.

    Attributes:
        common: (P,) parameters common to all stacks.
        found: Stack to its (P,) parameters; stacks without rows have the common ones.
        pulls: Stack to how surely its rows alone tell each parameter, and that times what they tell.
    """

    common: FloatArray
    found: Mapping[str, FloatArray]
    pulls: Mapping[str, tuple[FloatArray, FloatArray]]

    def of(self, stack: str) -> FloatArray:
        """(P,) parameters of a stack."""
        return self.found.get(stack, self.common)


def _pooled(losses: Mapping[str, Callable[[FloatArray], float]], start: _Pool | None = None) -> _Pool:
    """Fit the stacks that have a loss, and what is common to all.

    Args:
        losses: Stack to minus the log likelihood of its rows.
        start: Where to start from; its other stacks stay as they are.
    """
    pool = start or _Pool(common=_TYPICAL, found={}, pulls={})
    common, found, pulls = pool.common, dict(pool.found), dict(pool.pulls)
    for _ in range(SWEEPS):
        for name, loss in losses.items():
            vector = _solved(loss, common, found.get(name, common))
            curvature = _curvature(loss, vector)
            # What the stack's rows alone would say, and how surely; nothing where they say nothing.
            share = curvature * _STACK_STD**2 + 1
            told = (curvature * vector + (vector - common) / _STACK_STD**2) / share
            found[name], pulls[name] = vector, (curvature / share, told)
        pull = 1 / _COMMON_STD**2 + sum(each for each, _ in pulls.values())
        common = (_TYPICAL / _COMMON_STD**2 + sum(told for _, told in pulls.values())) / pull
    return _Pool(common=common, found=found, pulls=pulls)


def _curvature(loss: Callable[[FloatArray], float], at: FloatArray) -> FloatArray:
    """(P,) second derivatives of a loss, by finite differences; 0 where it is not convex."""
    here = loss(at)
    steps = DELTA * np.eye(len(at))
    second = np.array([loss(at + step) - 2 * here + loss(at - step) for step in steps]) / DELTA**2
    return np.maximum(second, 0.0)


def _solved(loss: Callable[[FloatArray], float], common: FloatArray, start: FloatArray) -> FloatArray:
    """Parameters of one stack that explain its rows best, given what is common to all."""

    def objective(vector: FloatArray) -> float:
        return loss(vector) + 0.5 * float((((vector - common) / _STACK_STD) ** 2).sum())

    from scipy.optimize import minimize  # takes a third of what starting takes, and decisions read constants alone

    bounds = list(zip(_TYPICAL - REACH, _TYPICAL + REACH, strict=True))
    result = minimize(objective, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-7, "eps": 1e-4})
    return np.asarray(result.x, dtype=np.float64)


def _loss_of(problem: MemoryRows, stack: StackSpec, *, without: str = "") -> Callable[[FloatArray], float]:
    """Minus the log likelihood of the rows but those of one source, as a function of the parameters."""
    kept = problem.sources != without
    measured = np.isfinite(problem.log_measured) & kept
    # A peak that nvidia-smi printed says all there is to know; any other leaves the verdict to be learned from.
    whole = measured & problem.counted["context"][:, 0] & ~problem.first_stage
    judged = (problem.died | problem.ran) & kept & ~whole
    peak_weights, verdict_weights = problem.weights(measured), problem.weights(judged)
    capacity = np.log(problem.tensors.usable_bytes[:, 0])
    sign = np.where(problem.ran, 1.0, -1.0)

    def loss(vector: FloatArray) -> float:
        predicted, everything = problem.log_peaks(_with(stack, vector))
        size = np.abs(np.where(measured, problem.log_measured - predicted, 0.0))
        peaks = huber(size, HUBER) / MEASUREMENT_STD**2
        right = ndtr(sign * (capacity - everything) / VERDICT_STD)
        verdicts = -np.log(WRONG_VERDICTS + (1 - WRONG_VERDICTS) * right)
        return float((peak_weights * peaks).sum() + (verdict_weights * verdicts).sum())

    return loss


def _with(stack: StackSpec, vector: FloatArray) -> StackSpec:
    return replace(stack, **_named(vector))  # type: ignore[arg-type]


def _named(vector: FloatArray) -> dict[str, float]:
    return dict(zip(NAMES, np.exp(vector).tolist(), strict=True))


def _carded(
    pool: _Pool,
    problems: Mapping[str, MemoryRows],
    stacks: Mapping[str, StackSpec],
    errors: FloatArray,
    of_row: NDArray[np.str_],
    *,
    without: str,
) -> dict[str, dict[str, float]]:
    """Stack to parameters and residual, the held-out errors of one fold left out of the latter."""
    told = np.isfinite(errors) & (of_row != without)
    widths = {}
    for name in stacks:
        own = np.zeros_like(told)
        if name in problems:
            own[problems[name].numbers[problems[name].numbers >= 0]] = True
        widths[name] = residual_log_std(errors, of_row, told, own)
    return {name: _named(pool.of(name)) | {"memory_residual_log_std": widths[name]} for name in stacks}


def memory_card(fit: MemoryFit) -> dict[str, Any]:
    """The fit as a JSON document, with what each stack rests on and its held-out residual."""
    return {
        "protocol": "planner.validate.memory_fit; each publisher left out in turn",
        "common": {name: _rounded(value) for name, value in fit.common.items()},
        "stacks": {
            name: {
                "values": {key: _rounded(value) for key, value in values.items()},
                "peaks": fit.rows.get(name, (0, 0))[0],
                "verdicts": fit.rows.get(name, (0, 0))[1],
                "sources": list(fit.sources.get(name, ())),
            }
            for name, values in sorted(fit.stacks.items())
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    """Command line of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of published runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args()
    published = scorable_rows(sorted(chosen.data.glob("*.csv")))
    document = memory_card(fit_memory([*published, *own_rows()]))
    chosen.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
