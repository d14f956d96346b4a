"""Fits the stack parameters on end-to-end measurements, and cross-validates them by source.

A stack's parameters are few, physically meaningful and pulled towards a prior (the values in the
packaged YAML before fitting), because a dozen sources cannot pin down more. Protocol: every source
weighs alike however many rows it has; a source is judged by a fit that never saw its measurements,
neither directly nor through where that fit starts, is linearised or stops.

Method: Gauss-Newton on log(measured / predicted) with Huber weights and a line search. Stacks share no
parameter, so each is a problem of its own; so is each source left out of it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from profiles.stack import StackSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Prior standard deviation of each fitted parameter, in log units for scales and times, in logit units
# for shares. Times and scales are positive, shares lie between 0 and 1.
PRIOR_STD = {
    "gemm_time_scale": 0.15,
    "fp8_time_scale": 0.2,
    "fp4_time_scale": 0.2,
    "blackwell_16bit_time_scale": 0.2,
    "hopper_16bit_time_scale": 0.15,
    "volta_gemm_time_scale": 0.2,
    "attention_time_scale": 0.2,
    "hopper_attention_time_scale": 0.2,
    "memory_time_scale": 0.3,
    "collective_time_scale": 0.3,
    "scale_out_time_scale": 0.4,
    "scale_out_group_bytes_per_s": 0.5,
    "kernel_launch_s": 0.5,
    "collective_launch_s": 0.5,
    "expert_layer_s": 1.0,
    "expert_issue_s": 0.5,
    "microbatch_overhead_s": 1.0,
    "step_overhead_s": 1.0,
    "straggler_fraction_per_doubling": 0.7,
    "tensor_parallel_overlap": 1.0,
    "data_parallel_overlap": 1.0,
}
SHARES = ("tensor_parallel_overlap", "data_parallel_overlap")
HUBER = 0.2  # log error beyond which a row counts linearly: beyond 20 % something else is wrong with it
MEASUREMENT_STD = 0.08  # run-to-run spread of published step times beside which the prior is weighed
MAX_EFFECTIVE_ROWS = 12.0  # rows one source counts as at most: its rows share their systematic error
ITERATIONS = 10
# Shares of a full step that are tried: launch floors and overlap have kinks, over which it can overshoot.
STEP_SHARES = (1.0, 0.5, 0.2)
REACH_STD = 2.0  # prior standard deviations one step moves a parameter at most
LEAST_GAIN = 1e-3  # share of the objective that a step must take off to be worth taking
LARGE_GAIN = 0.05  # after a step that takes off less than this, the last linearisation is tried once more
DELTA = 0.05  # of the finite differences, in the units of ``PRIOR_STD``

# Predicts the step time of the rows an index array selects, with the given stacks.
Predict = Callable[[Mapping[str, StackSpec], IntArray], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFit:
    """Fitted stacks, and predictions of every row by stacks that never saw its source.

    Attributes:
        stacks: Stacks fitted on all sources.
        told: Stack to parameter to the share of its prior's variance that the stack's runs take away: 0 where they
            tell nothing of it, close to 1 where they alone settle it.
        held_out: Source to the stacks fitted without it; those it has no rows of are as in ``stacks``.
        held_out_s: (n,) step time predicted for each row with its source left out.
    """

    stacks: dict[str, StackSpec]
    told: dict[str, dict[str, float]]
    held_out: dict[str, dict[str, StackSpec]]
    held_out_s: FloatArray


def huber(size: FloatArray, turn: float) -> FloatArray:
    """Half the squares of absolute errors up to ``turn``; beyond, they count linearly."""
    return np.where(size < turn, 0.5 * size**2, turn * (size - 0.5 * turn))


def source_weights(sources: NDArray[np.str_]) -> FloatArray:
    """(n,) weight of each row: its source's effective rows, shared out."""
    names = sources.tolist()
    counts = Counter(names)
    return np.array([min(counts[name], MAX_EFFECTIVE_ROWS) / counts[name] for name in names], dtype=np.float64)


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
    jobs: int = 1,
) -> StackFit:
    """Fit every stack that has measurements, and judge each source by the others.

    Args:
        stacks: Priors by name.
        stack_of_row: (n,) stack each measurement ran on.
        source_of_row: (n,) source it was published by.
        measured_s: (n,) measured step time.
        predict: Predicts the step times of selected rows with the given stacks.
        jobs: Processes to spread the fits over; the result does not depend on it.

    Returns:
        The fit and its cross-validation.
    """
    from joblib import Parallel, delayed

    stack_names, sources = np.asarray(stack_of_row), np.asarray(source_of_row)
    problems: dict[tuple[str, str], Problem] = {}  # by stack and what is left out; "" for nothing
    for name in sorted(set(stack_of_row)):
        own = np.flatnonzero(stack_names == name)
        problem = Problem.of(
            stacks[name],
            rows=own,
            sources=sources[own],
            measured_s=measured_s[own],
            predict=lambda stack, rows: predict({**stacks, stack.name: stack}, rows),
        )
        problems[name, ""] = problem
        problems |= {(name, source): problem.without(source) for source in sorted(set(problem.sources.tolist()))}
    solved = Parallel(n_jobs=jobs)(delayed(Problem.solve)(problem) for problem in problems.values())
    solutions = dict(zip(problems, solved, strict=True))
    whole = {name: stack for (name, source), stack in solutions.items() if not source}
    told = Parallel(n_jobs=jobs)(delayed(problems[name, ""].told_at)(stack) for name, stack in whole.items())
    fitted = dict(stacks) | whole
    left_out = {(source, name): stack for (name, source), stack in solutions.items() if source}
    folds = {source: dict(fitted) for source in sorted(set(source_of_row))}
    for (source, name), stack in left_out.items():
        folds[source][name] = stack
    held_out_s = np.empty(len(measured_s))
    for source, kept in folds.items():
        judged = np.flatnonzero(sources == source)
        held_out_s[judged] = predict(kept, judged)
    return StackFit(
        stacks=fitted,
        told=dict(zip(whole, told, strict=True)),
        held_out=folds,
        held_out_s=held_out_s,
    )


def free_parameters(stack: StackSpec) -> tuple[str, ...]:
    """Which parameters of a stack are fitted: those its prior does not switch off with a zero."""
    return tuple(name for name in PRIOR_STD if float(getattr(stack, name)) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Regularised robust least squares for the P parameters of one stack on n measurements.

    Attributes:
        origin: The stack before fitting, whose parameters are the prior.
        names: (P,) its free parameters that any of the measurements depends on.
        prior: (P,) their values, unbounded.
        prior_std: (P,) their standard deviations.
        noise_std: Standard deviation of a measurement's log about the truth of its stack.
        rows: (n,) numbers of the measurements.
        sources: (n,) who published each.
        log_measured: (n,) log of the measured seconds.
        start: (n,) log of the seconds predicted by the prior.
        slope: (n, P) its derivative by the parameters.
        predict: Seconds predicted for some rows by a variant of the stack.
    """

    origin: StackSpec
    names: tuple[str, ...]
    prior: FloatArray
    prior_std: FloatArray
    noise_std: float
    rows: IntArray
    sources: NDArray[np.str_]
    log_measured: FloatArray
    start: FloatArray
    slope: FloatArray
    predict: Callable[[StackSpec, IntArray], FloatArray]

    @classmethod
    def of(
        cls,
        origin: StackSpec,
        *,
        rows: IntArray,
        sources: NDArray[np.str_],
        measured_s: FloatArray,
        predict: Callable[[StackSpec, IntArray], FloatArray],
        names: Sequence[str] | None = None,
        prior_std: Mapping[str, float] | None = None,
        noise_std: float = MEASUREMENT_STD,
    ) -> "Problem":
        """The problem, linearised at the prior. Parameters no row depends on there stay where they are.

        Args:
            origin: The stack before fitting.
            rows: (n,) numbers of the measurements.
            sources: (n,) who published each.
            measured_s: (n,) seconds.
            predict: Seconds predicted for some rows by a variant of the stack.
            names: What to fit; ``free_parameters`` when None.
            prior_std: Their standard deviations; ``PRIOR_STD`` when None.
            noise_std: As the attribute.
        """
        names = tuple(names or free_parameters(origin))
        stds = prior_std or PRIOR_STD
        everything = cls(
            origin=origin,
            names=names,
            prior=to_vector(origin, names),
            prior_std=np.array([stds[name] for name in names]),
            noise_std=noise_std,
            rows=rows,
            sources=sources,
            log_measured=np.log(measured_s),
            start=np.zeros(len(rows)),
            slope=np.zeros((len(rows), len(names))),
            predict=predict,
        )
        start = everything._log_time(everything.prior)
        slope = everything._slope_at(everything.prior, start)
        felt = np.flatnonzero(slope.any(axis=0))
        return replace(
            everything,
            names=tuple(names[column] for column in felt.tolist()),
            prior=everything.prior[felt],
            prior_std=everything.prior_std[felt],
            start=start,
            slope=slope[:, felt],
        )

    def without(self, source: str) -> "Problem":
        """The problem less the measurements of one source."""
        kept = self.sources != source
        return replace(
            self,
            rows=self.rows[kept],
            sources=self.sources[kept],
            log_measured=self.log_measured[kept],
            start=self.start[kept],
            slope=self.slope[kept],
        )

    def solve(self) -> StackSpec:
        """The stack that explains the measurements best; the prior where there are none."""
        here, predicted, slope = self.prior, self.start, self.slope
        if not self.rows.size or not self.names:
            return self.origin
        loss, fresh = self.objective(here, predicted), True
        for _ in range(ITERATIONS):
            found = self._line_search(here, self._step(here, predicted, slope), least=(1 - LEAST_GAIN) * loss)
            if found is None and fresh:
                break
            fresh = found is None or found[2] < (1 - LARGE_GAIN) * loss
            if found is not None:
                here, predicted, loss = found
            if fresh:
                slope = self._slope_at(here, predicted)
        return from_vector(self.origin, self.names, here)

    def variance_at(self, solution: StackSpec) -> FloatArray:
        """(n,) variance of each row's log time that the parameters' remaining uncertainty leaves, there."""
        slope, covariance = self._uncertainty_at(solution)
        variance: FloatArray = np.einsum("np,pq,nq->n", slope, covariance, slope)
        return variance

    def told_at(self, solution: StackSpec) -> dict[str, float]:
        """Parameter to the share of its prior's variance that the measurements take away, there; others at none."""
        if not self.rows.size or not self.names:
            return {}
        _, covariance = self._uncertainty_at(solution)
        shares = 1 - np.diag(covariance) / self.prior_std**2
        return dict(zip(self.names, np.clip(shares, 0.0, 1.0).tolist(), strict=True))

    def _uncertainty_at(self, solution: StackSpec) -> tuple[FloatArray, FloatArray]:
        """(n, P) derivative of the log time there, and the (P, P) covariance that measurements and prior leave."""
        here = to_vector(solution, self.names)
        slope = self._slope_at(here, self._log_time(here))
        weight = source_weights(self.sources) / self.noise_std**2
        normal = (slope * weight[:, None]).T @ slope + np.diag(self.prior_std**-2)
        return slope, np.asarray(np.linalg.inv(normal), dtype=np.float64)

    def objective(self, here: FloatArray, predicted: FloatArray) -> float:
        """Huber loss of the rows, each source weighing alike, plus the prior's."""
        loss = huber(np.abs(self.log_measured - predicted), HUBER) / self.noise_std**2
        strain = (here - self.prior) / self.prior_std
        return float((source_weights(self.sources) * loss).sum() + 0.5 * (strain**2).sum())

    def _line_search(
        self, here: FloatArray, step: FloatArray, *, least: float
    ) -> tuple[FloatArray, FloatArray, float] | None:
        """Parameters, log time and objective after the largest share of a step that gets below ``least``."""
        for share in STEP_SHARES:
            there = here + share * step
            predicted = self._log_time(there)
            loss = self.objective(there, predicted)
            if loss < least:
                return there, predicted, loss
        return None

    def _log_time(self, here: FloatArray) -> FloatArray:
        """(n,) log of the seconds predicted with these parameters."""
        return np.log(self.predict(from_vector(self.origin, self.names, here), self.rows))

    def _slope_at(self, here: FloatArray, predicted: FloatArray) -> FloatArray:
        """(n, P) derivative of the log time, by finite differences."""
        slope: FloatArray = np.empty((len(predicted), len(here)))
        for column, shift in enumerate(DELTA * np.eye(len(here))):
            slope[:, column] = (self._log_time(here + shift) - predicted) / DELTA
        return slope

    def _step(self, here: FloatArray, predicted: FloatArray, slope: FloatArray) -> FloatArray:
        """(P,) step to the minimum of the linearised objective, the Huber weights iterated."""
        error, effective, precision = self.log_measured - predicted, source_weights(self.sources), self.prior_std**-2
        step: FloatArray = np.zeros(len(here))
        for _ in range(20):
            residual = error - slope @ step
            weight = effective * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9)) / self.noise_std**2
            normal = (slope * weight[:, None]).T @ slope + np.diag(precision)
            right = (slope * weight[:, None]).T @ error + precision * (self.prior - here)
            step = np.asarray(np.linalg.solve(normal, right), dtype=np.float64)
        return np.clip(step, -REACH_STD * self.prior_std, REACH_STD * self.prior_std)
