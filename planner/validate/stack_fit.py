"""Fits the stack parameters on end-to-end measurements, and cross-validates them by source.

A stack's parameters are few, physically meaningful and pulled towards a prior (the values in the
packaged YAML before fitting, or those of a related stack), because a dozen sources cannot pin down
more. Protocol: every source weighs the same however many rows it has; a source is judged only by
parameters fitted on the other sources of its stack.

Method: Gauss-Newton on log(measured / predicted) with Huber weights. The Jacobian is taken by finite
differences once per iteration and shared by all folds.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.stack import StackSpec

FloatArray = NDArray[np.float64]

# Prior standard deviation of each fitted parameter, in log units for scales and times, in logit units
# for shares. Times and scales are positive, shares lie between 0 and 1.
PRIOR_STD = {
    "gemm_time_scale": 0.15,
    "fp8_time_scale": 0.2,
    "fp4_time_scale": 0.2,
    "blackwell_16bit_time_scale": 0.2,
    "attention_time_scale": 0.2,
    "hopper_attention_time_scale": 0.2,
    "memory_time_scale": 0.3,
    "collective_time_scale": 0.3,
    "scale_out_time_scale": 0.4,
    "kernel_launch_s": 0.5,
    "collective_launch_s": 0.5,
    "pipelined_collective_step_s": 0.5,
    "microbatch_overhead_s": 1.0,
    "step_overhead_s": 1.0,
    "straggler_fraction_per_doubling": 0.7,
    "tensor_parallel_overlap": 1.0,
    "data_parallel_overlap": 1.0,
    "expert_parallel_overlap": 1.0,
}
SHARES = ("tensor_parallel_overlap", "data_parallel_overlap", "expert_parallel_overlap")
HUBER = 0.2  # log error beyond which a row counts linearly: beyond 20 % something else is wrong with it
MEASUREMENT_STD = 0.08  # run-to-run spread of published step times beside which the prior is weighed
MAX_EFFECTIVE_ROWS = 12.0  # rows one source counts as at most: its rows share their systematic error
ITERATIONS = 5

# Predicts the step time of the rows an index array selects, with the given stacks.
Predict = Callable[[Mapping[str, StackSpec], NDArray[np.int64]], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFit:
    """Fitted stacks, and predictions of every row by stacks that never saw its source.

    Attributes:
        stacks: Stacks fitted on all sources.
        held_out: Source to the stacks fitted without it.
        held_out_s: (n,) step time predicted for each row with its source left out.
        fitted_s: (n,) step time predicted with nothing left out.
    """

    stacks: dict[str, StackSpec]
    held_out: dict[str, dict[str, StackSpec]]
    held_out_s: FloatArray
    fitted_s: FloatArray


def to_vector(stack: StackSpec, names: Sequence[str]) -> FloatArray:
    """Parameters of a stack as unbounded numbers."""
    values = [float(getattr(stack, name)) for name in names]
    return np.array(
        [np.log(v / (1 - v)) if n in SHARES else np.log(v) for n, v in zip(names, values, strict=True)], dtype=float
    )


def from_vector(stack: StackSpec, names: Sequence[str], vector: FloatArray) -> StackSpec:
    """The stack with those parameters replaced."""
    values = {
        name: float(1 / (1 + np.exp(-value)) if name in SHARES else np.exp(value))
        for name, value in zip(names, vector, strict=True)
    }
    return replace(stack, **values)  # type: ignore[arg-type]


def fit_stacks(
    stacks: Mapping[str, StackSpec],
    *,
    stack_of_row: Sequence[str],
    source_of_row: Sequence[str],
    measured_s: FloatArray,
    predict: Predict,
) -> StackFit:
    """Fit every stack that has measurements, and judge each source by the others.

    Args:
        stacks: Priors by name.
        stack_of_row: (n,) stack each measurement ran on.
        source_of_row: (n,) source it was published by.
        measured_s: (n,) measured step time.
        predict: Predicts the step times of selected rows with the given stacks.

    Returns:
        The fit and its cross-validation.
    """
    stack_names = np.asarray(stack_of_row)
    sources = np.asarray(source_of_row)
    log_measured = np.log(measured_s)
    folds = {source: dict(stacks) for source in sorted(set(source_of_row))}
    fitted = dict(stacks)
    for _ in range(ITERATIONS):
        jacobian, log_predicted = _jacobian(fitted, stack_names, predict)
        solvers = {
            name: _Solver.of(stacks[name], fitted[name], rows=stack_names == name, sources=sources, table=jacobian)
            for name in sorted(set(stack_of_row))
        }
        error = log_measured - log_predicted
        damping = _damping(solvers, fitted, error, lambda moved: log_measured - np.log(predict(moved, _all(sources))))
        for name, solver in solvers.items():
            for source, kept in folds.items():
                if np.any(solver.rows & (sources == source)):
                    kept[name] = solver.moved(error, solver.rows & (sources != source), damping[name])
            fitted[name] = solver.moved(error, solver.rows, damping[name])
    held_out = np.empty(len(measured_s))
    for source, kept in folds.items():
        judged = np.flatnonzero(sources == source)
        held_out[judged] = predict(kept, judged)
    return StackFit(stacks=fitted, held_out=folds, held_out_s=held_out, fitted_s=predict(fitted, _all(sources)))


def _all(rows: NDArray[Any]) -> NDArray[np.int64]:
    return np.arange(len(rows))


def free_parameters(stack: StackSpec) -> tuple[str, ...]:
    """Which parameters of a stack are fitted: those its prior does not switch off with a zero."""
    return tuple(name for name in PRIOR_STD if float(getattr(stack, name)) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solver:
    """Linearised, regularised least squares for one stack.

    Attributes:
        origin: The stack before fitting, whose parameters are the prior.
        names: Its free parameters.
        prior, here: Their values there and where the model was linearised, unbounded.
        rows: (n,) which measurements ran on the stack.
        sources: (n,) who published each.
        table: (n, parameters) derivative of log time.
    """

    origin: StackSpec
    names: tuple[str, ...]
    prior: FloatArray
    here: FloatArray
    rows: NDArray[np.bool_]
    sources: NDArray[np.str_]
    table: FloatArray

    @classmethod
    def of(
        cls,
        origin: StackSpec,
        current: StackSpec,
        *,
        rows: NDArray[np.bool_],
        sources: NDArray[np.str_],
        table: FloatArray,
    ) -> "_Solver":
        """The solver of one stack, linearised at ``current``."""
        names = free_parameters(origin)
        return cls(
            origin=origin,
            names=names,
            prior=to_vector(origin, names),
            here=to_vector(current, names),
            rows=rows,
            sources=sources,
            table=table[:, : len(names)],
        )

    def moved(self, error: FloatArray, rows: NDArray[np.bool_], damping: float) -> StackSpec:
        """The stack after ``damping`` of the step that best explains ``rows``."""
        step = self.prior - self.here if not rows.any() else self._step(error[rows], rows)
        return from_vector(self.origin, self.names, self.here + (damping if rows.any() else 1.0) * step)

    def objective(self, stack: StackSpec, error: FloatArray) -> float:
        """Huber loss of the stack's own rows, each source weighing alike, plus the prior's."""
        own = np.abs(error[self.rows])
        loss = np.where(own < HUBER, 0.5 * own**2, HUBER * (own - 0.5 * HUBER)) / MEASUREMENT_STD**2
        strain = (to_vector(stack, self.names) - self.prior) / np.array([PRIOR_STD[name] for name in self.names])
        return float((self._weights(self.rows) * loss).sum() + 0.5 * (strain**2).sum())

    def _step(self, error: FloatArray, rows: NDArray[np.bool_]) -> FloatArray:
        precision = np.array([PRIOR_STD[name] ** -2 for name in self.names])
        table, effective = self.table[rows], self._weights(rows)
        step: FloatArray = np.zeros(len(self.names))
        for _ in range(20):
            residual = error - table @ step
            weight = effective * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9)) / MEASUREMENT_STD**2
            normal = (table * weight[:, None]).T @ table + np.diag(precision)
            right = (table * weight[:, None]).T @ error + precision * (self.prior - self.here)
            step = np.asarray(np.linalg.solve(normal, right), dtype=np.float64)
        reach = np.array([PRIOR_STD[name] for name in self.names])
        return np.clip(step, -reach, reach)

    def _weights(self, rows: NDArray[np.bool_]) -> FloatArray:
        """(rows,) weight of each row: its source's effective rows, shared out."""
        names = self.sources[rows].tolist()
        counts = Counter(names)
        return np.array([min(counts[name], MAX_EFFECTIVE_ROWS) / counts[name] for name in names])


def _damping(
    solvers: Mapping[str, _Solver],
    fitted: Mapping[str, StackSpec],
    error: FloatArray,
    error_of: Callable[[Mapping[str, StackSpec]], FloatArray],
) -> dict[str, float]:
    """For each stack the share of its full step that lowers the objective most; 0 when none does.

    Launch floors and overlap have kinks, over which a full linearised step can overshoot.
    """
    best = {name: (solver.objective(fitted[name], error), 0.0) for name, solver in solvers.items()}
    for share in (1.0, 0.5, 0.2):
        moved = dict(fitted) | {name: solver.moved(error, solver.rows, share) for name, solver in solvers.items()}
        after = error_of(moved)
        for name, solver in solvers.items():
            best[name] = min(best[name], (solver.objective(moved[name], after), share))
    return {name: share for name, (_, share) in best.items()}


def _jacobian(
    stacks: Mapping[str, StackSpec], stack_names: NDArray[np.str_], predict: Predict
) -> tuple[FloatArray, FloatArray]:
    """(n, parameters) derivative of log step time by each row's own stack's free parameters, and log time."""
    everything = np.arange(len(stack_names))
    base = np.log(predict(stacks, everything))
    used = sorted(set(stack_names.tolist()))
    width = max(len(free_parameters(stacks[name])) for name in used)
    jacobian = np.zeros((len(base), width))
    delta = 0.05
    for column in range(width):
        moved = dict(stacks)
        for name in used:
            parameters = free_parameters(stacks[name])
            if column < len(parameters):
                vector = to_vector(stacks[name], parameters)
                vector[column] += delta
                moved[name] = from_vector(stacks[name], parameters, vector)
        moved_rows = np.flatnonzero([column < len(free_parameters(stacks[name])) for name in stack_names.tolist()])
        jacobian[moved_rows, column] = (np.log(predict(moved, moved_rows)) - base[moved_rows]) / delta
    return jacobian, base
