"""Fits the stack parameters on end-to-end measurements, and cross-validates them by source.

A stack's parameters are few, physically meaningful and pulled towards a prior (the values in the
packaged YAML before fitting, or those of a related stack), because a dozen sources cannot pin down
more. Protocol: every source weighs the same however many rows it has; a source is judged only by
parameters fitted on the other sources of its stack.

Method: Gauss-Newton on log(measured / predicted) with Huber weights. The Jacobian is taken by finite
differences once per iteration and shared by all folds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
    "collective_launch_s": 0.7,
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
ITERATIONS = 3

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
        for name in sorted(set(stack_of_row)):
            rows = stack_names == name
            parameters = free_parameters(stacks[name])
            prior = to_vector(stacks[name], parameters)
            here = to_vector(fitted[name], parameters)
            table = jacobian[:, : len(parameters)]
            solve = _Solver(prior=prior, here=here, names=parameters, table=table, error=log_measured - log_predicted)
            for source, kept in folds.items():
                if np.any(rows & (sources == source)):
                    vector = solve(rows & (sources != source), sources)
                    kept[name] = from_vector(stacks[name], parameters, vector)
            fitted[name] = from_vector(stacks[name], parameters, solve(rows, sources))
    held_out = np.empty(len(measured_s))
    for source, kept in folds.items():
        judged = np.flatnonzero(sources == source)
        held_out[judged] = predict(kept, judged)
    return StackFit(
        stacks=fitted, held_out=folds, held_out_s=held_out, fitted_s=predict(fitted, np.arange(len(measured_s)))
    )


def free_parameters(stack: StackSpec) -> tuple[str, ...]:
    """Which parameters of a stack are fitted: those its prior does not switch off with a zero."""
    return tuple(name for name in PRIOR_STD if float(getattr(stack, name)) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solver:
    """One linearised, regularised least-squares step for one stack."""

    prior: FloatArray
    here: FloatArray
    names: tuple[str, ...]
    table: FloatArray
    error: FloatArray

    def __call__(self, rows: NDArray[np.bool_], sources: NDArray[np.str_]) -> FloatArray:
        """Parameter vector that best explains ``rows``, each source weighing alike."""
        precision = np.array([PRIOR_STD[name] ** -2 for name in self.names])
        if not rows.any():
            return self.prior
        table, error, names = self.table[rows], self.error[rows], sources[rows]
        counts = {name: int((names == name).sum()) for name in set(names.tolist())}
        effective = np.array([min(counts[name], MAX_EFFECTIVE_ROWS) / counts[name] for name in names.tolist()])
        step = np.zeros(len(self.names))
        for _ in range(20):
            residual = error - table @ step
            weight = effective * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9)) / MEASUREMENT_STD**2
            normal: FloatArray = (table * weight[:, None]).T @ table + np.diag(precision)
            right = (table * weight[:, None]).T @ error + precision * (self.prior - self.here)
            step = np.linalg.solve(normal, right)
        reach = 2 * np.array([PRIOR_STD[name] for name in self.names])
        return self.here + np.clip(step, -reach, reach)


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
