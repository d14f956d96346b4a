"""Robust fits of positive parameters on relative error, and the error on rows kept out of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

FloatArray = NDArray[np.float64]
Parameters = dict[str, float]
Price = Callable[[Mapping[str, float], NDArray[np.int64]], FloatArray]

HELD_OUT_SHARE = 0.2
RANDOM_ROWS = f"random {100 * HELD_OUT_SHARE:.0f} % of the rows"  # what ``split`` holds out
TOLERANCE = 0.1  # log error beyond which a row counts as an outlier (soft L1)
PRIOR_ROWS = 10.0  # see fit_parameters
PRIOR_SCALE = 0.3  # of the logarithm, or of the range of a parameter
SEED = 20240601  # any fixed number: rows are shuffled once, so that every run gives the same file


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Start and bounds of one fitted parameter; positive ones are fitted by their logarithm."""

    start: float
    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        """Whether the parameter spans decades."""
        return self.low > 0 and self.high / self.low > 20

    def ends_at(self, value: float) -> bool:
        """Whether a fit stopped at an end of the range, within a thousandth of it."""
        near = 1e-3 * (1.0 if self.logarithmic else self.high - self.low)
        low, value, high = (float(np.log(x)) if self.logarithmic else x for x in (self.low, value, self.high))
        return value - low < near or high - value < near


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors on a set of rows, weighted alike."""

    rows: int
    mape: float
    median_ape: float
    log_std: float
    low_factor: float
    high_factor: float


def split(count: int, *, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers to fit on and to judge by, at most ``most`` of each; the same at every run."""
    order = np.random.default_rng(SEED).permutation(count)
    held = max(1, int(count * HELD_OUT_SHARE))
    return np.sort(order[held:][:most]), np.sort(order[:held][:most])


def fit_parameters(
    price: Price,
    measured_s: FloatArray,
    rows: NDArray[np.int64],
    ranges: Mapping[str, Range],
    *,
    fixed: Mapping[str, float] | None = None,
    prior: Mapping[str, float] | None = None,
    weights: FloatArray | None = None,
    prior_rows: float = PRIOR_ROWS,
) -> Parameters:
    """Parameters that minimise the soft-L1 loss of the log error of ``price`` on ``rows``.

    Args:
        price: Seconds of rows under parameters.
        measured_s: (K,) seconds measured.
        rows: Rows to fit on.
        ranges: Start and bounds of each free parameter.
        fixed: Parameters that stay.
        prior: Where the parameters lie for want of rows: one ``PRIOR_SCALE`` away weighs as much as
            ``prior_rows`` rows off by ``TOLERANCE``.
        weights: (K,) weight of each row.
        prior_rows: See ``prior``.
    """
    names = list(ranges)
    given = dict(fixed or {})
    target = np.log(measured_s[rows])
    root_weight = np.ones(len(rows)) if weights is None else np.sqrt(weights[rows])

    def unpack(vector: FloatArray) -> Parameters:
        values = {
            name: float(np.exp(value)) if ranges[name].logarithmic else float(value)
            for name, value in zip(names, vector, strict=True)
        }
        return values | given

    def residual(vector: FloatArray) -> FloatArray:
        predicted = np.maximum(price(unpack(vector), rows), 1e-12)
        off = np.asarray((np.log(predicted) - target) * root_weight, dtype=float)
        pull = (vector[anchored] - centre) / scale * (TOLERANCE * np.sqrt(prior_rows))
        return np.concatenate([off, pull])

    def pack(value: float, name: str) -> float:
        return float(np.log(value)) if ranges[name].logarithmic else value

    low = np.array([pack(ranges[name].low, name) for name in names])
    high = np.array([pack(ranges[name].high, name) for name in names])
    start = np.clip(np.array([pack(ranges[name].start, name) for name in names]), low + 1e-9, high - 1e-9)
    known = [i for i, name in enumerate(names) if prior is not None and name in prior]
    anchored = np.array(known, dtype=np.int64)
    centre = np.array([pack((prior or {})[names[i]], names[i]) for i in known])
    scale = np.array([PRIOR_SCALE * (1.0 if ranges[names[i]].logarithmic else high[i] - low[i]) for i in known])
    if known:
        start[anchored] = np.clip(centre, low[anchored] + 1e-9, high[anchored] - 1e-9)
    step: Any = 1e-3
    solution: Any = least_squares(
        residual, start, bounds=(low, high), loss="soft_l1", f_scale=TOLERANCE, diff_step=step, max_nfev=60
    )
    return unpack(np.asarray(solution.x, dtype=float))


def errors(price: Price, parameters: Mapping[str, float], measured_s: FloatArray, rows: NDArray[np.int64]) -> Errors:
    """Errors of a price on rows."""
    ratio = measured_s[rows] / price(parameters, rows)
    relative = np.abs(1 / ratio - 1)
    return Errors(
        rows=len(rows),
        mape=float(relative.mean()),
        median_ape=float(np.median(relative)),
        log_std=float(np.log(ratio).std()),
        low_factor=float(min(np.quantile(ratio, 0.05), 1.0)),
        high_factor=float(max(np.quantile(ratio, 0.95), 1.0)),
    )


def record_of(
    found: Errors,
    *,
    scope: str,
    name: str,
    op: str,
    parameters: Mapping[str, float],
    domain: Mapping[str, FloatArray],
    sources: Iterable[str],
    rows: int,
    held_out: str,
    format_name: str = "",
    note: str = "",
) -> dict[str, Any]:
    """A fit as the packaged files hold it.

    Args:
        found: Errors on what was held out.
        scope: What ``name`` is: a device, a link, a kind of links, or ``global``.
        name: Whose parameters these are.
        op: Operation they price.
        parameters: Name to value.
        domain: Quantity to its values in the rows; a call outside their range is extrapolated.
        sources: Where the rows were published, repeats allowed.
        rows: How many were fitted on.
        held_out: In words, what was.
        format_name: Number format, where fits differ by it.
        note: What else to know.
    """
    return {
        "scope": scope,
        "name": name,
        "op": op,
        "format": format_name,
        "parameters": {key: significant(value) for key, value in sorted(parameters.items())},
        "low_factor": significant(found.low_factor, 4),
        "high_factor": significant(found.high_factor, 4),
        "domain": {key: [float(values.min()), float(values.max())] for key, values in sorted(domain.items())},
        "card": {
            "sources": sorted({str(source) for source in sources}),
            "rows": rows,
            "held_out_rows": found.rows,
            "mape": significant(found.mape, 3),
            "median_ape": significant(found.median_ape, 3),
            "log_std": significant(found.log_std, 3),
            "held_out": held_out,
            "note": note,
        },
    }


def significant(value: float, digits: int = 5) -> float:
    """Rounded to significant digits, so that files stay short and stable."""
    return float(f"{value:.{digits}g}")
