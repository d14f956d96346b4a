"""Makes a few-shot calibration of one device from about a hundred measured kernels.

First the roofline parameters of products are fitted again, per operation and format, leaning on those that prices rest
on; then amplitudes of the Gaussian process over what is left are chosen by marginal likelihood from a small grid.
Intervals are scaled to what leaving points out of both shows (Rasmussen & Williams, Gaussian Processes for Machine
Learning, 2006, section 5.4).
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.kernel_ranges import GEMM, QUANTISE, RELEVANT_S, REPLAY, STREAM
from costmodels.calibration.robust import Range, fit_parameters
from costmodels.kernels.calibrated import (
    ANY_GROUP,
    FEWEST_POINTS,
    MOST_POINTS,
    NORMAL_QUANTILE,
    Amplitudes,
    Calibration,
    Places,
    covariance_of,
    groups,
    limits,
    variances,
)
from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, KernelCostModel, KernelOp, take
from costmodels.kernels.features import op_classes
from costmodels.kernels.learned import arithmetics, device_reference, format_classes
from costmodels.kernels.refitted import REFITTED, Refits, product_s
from costmodels.kernels.roofline import FORMAT_CLASS, OP_NAMES, Parameters
from profiles.fits import default_fits
from profiles.hardware import DeviceSpec
from profiles.learned import packaged_learned
from profiles.precision import GEMM_FORMATS

_TRIED_ON = 150  # points that choose the amplitudes; more do not change the choice
_FOLDS = 10
_FEWEST_OF_GROUP = 12  # points of an operation class and format from which its interval is its own
_FEWEST_REFITTED = 8  # of one from which its roofline is fitted again
_OUTLIER = 4.0  # median absolute deviations beyond which a point is pulled in
_INSIDE = 0.95  # of the points, on either side
_NARROWEST = 1.0  # of the normal interval: leaving points out may widen it, not narrow it
_LEAST_RELEVANCE = 0.1  # weight of the shortest kernels in a refit
_RANGES = GEMM | QUANTISE | REPLAY | STREAM

# Standard deviations of log(measured / predicted) that are tried: what all calls with one limit share, what one
# operation class and format does, what varies with the shape, and what is left; and the length over which the
# shape part varies, in units of ``descriptors``. Where libraries are told apart, what one of them does besides, and
# more of everything: what nobody timed of a library is further from its price than a device.
_SHARED, _OWN, _SHAPE, _LENGTH, _REST = (
    (0.05, 0.2),
    (0.05, 0.2),
    (0.04, 0.1, 0.2),
    (0.7, 1.5, 3.0),
    (0.02, 0.03, 0.05, 0.08, 0.15),
)
_LIBRARY, _FAR_SHAPE, _FAR_REST = (0.05, 0.2, 0.5), (*_SHAPE, 0.4), (*_REST, 0.3)

# Parameters of the roofline that prices of some products on a device rest on; None where there are none.
RooflineOf = Callable[[KernelCallBatch, DeviceSpec], Parameters | None]


def packaged_roofline(calls: KernelCallBatch, device: DeviceSpec) -> Parameters | None:
    """Parameters of the packaged prices of products of one operation and format: what the trees correct, if any do."""
    one, fits = take(calls, np.arange(1)), default_fits().kernels
    op_class, name = str(op_classes(one)[0]), str(format_classes(one)[0])
    file = packaged_learned().get(op_class)
    if file is not None and str(arithmetics(np.array([name]))[0]) in file.card.reference:
        return device_reference(file.card.reference, name, device, fits.families)[0]
    name, op = FORMAT_CLASS[GEMM_FORMATS[calls.gemm_format[0]]], OP_NAMES[KernelOp(calls.op[0])]
    if not fits.knows(op, name):
        return None
    return fits.resolve(op, name, device=device.name, architecture=device.architecture).parameters


def calibrate(
    base: KernelCostModel, calls: KernelCallBatch, time_s: FloatArray, device: DeviceSpec, *,
    roofline_of: RooflineOf = packaged_roofline,
) -> Calibration:  # fmt: skip
    """A correction of ``base`` on one device from kernels measured there.

    Args:
        base: The prices to correct.
        calls: (P,) measured calls; a hundred are enough.
        time_s: (P,) seconds measured.
        device: Where.
        roofline_of: What the prices of products rest on.

    Raises:
        ValueError: If there are fewer than ``FEWEST_POINTS`` points, or a time is not positive and finite.
    """
    if len(calls) < FEWEST_POINTS:
        raise ValueError(f"at least {FEWEST_POINTS} measured kernels are needed; got {len(calls)}")
    if not (np.isfinite(time_s).all() and (time_s > 0).all()):
        raise ValueError("measured times must be positive and finite")
    rows = np.arange(len(calls))
    if len(rows) > MOST_POINTS:
        rows = np.argsort(time_s, kind="stable")[np.linspace(0, len(rows) - 1, MOST_POINTS).astype(np.int64)]
    calls, time_s = take(calls, rows), time_s[rows]
    group, predicted_s = groups(calls), base.predict(calls, device).time_s
    raw = np.log(time_s / predicted_s)
    points = _Points(calls, group, time_s, predicted_s, device, roofline_of)
    refits = points.refits(np.ones(len(rows), dtype=np.bool_))
    factor = refits.log_factor(calls, group, device)
    limit = limits(group)
    log_ratio, places = _without_outliers(raw - factor, limit), Places.of(calls, predicted_s * np.exp(factor))
    amplitudes = {
        int(number): _likeliest(int(number), places.take(mine), log_ratio[mine])
        for number in np.unique(limit)
        for mine in [np.flatnonzero(limit == number)]
    }
    mean, deviation = _left_out(points, raw, amplitudes)
    return Calibration(
        device=device.name,
        places=places,
        log_ratio=log_ratio,
        amplitudes=amplitudes,
        scales=_scales((raw - mean) / deviation, group),
        error=(float(np.mean(np.abs(np.exp(mean - raw) - 1))), float(np.mean(np.abs(np.exp(-raw) - 1)))),
        refits=refits,
    )


@dataclass(frozen=True, slots=True)
class _Points:
    """Measured calls: P of them, their groups, seconds measured and predicted, where, and what prices rest on."""

    calls: KernelCallBatch
    group: IntArray
    time_s: FloatArray
    predicted_s: FloatArray
    device: DeviceSpec
    roofline_of: RooflineOf

    def refits(self, kept: NDArray[np.bool_]) -> Refits:
        """Parameters of the products among some of the points, group by group."""
        before: dict[int, Parameters] = {}
        after: dict[int, Parameters] = {}
        for number in np.unique(self.group[np.isin(self.calls.op, REFITTED)]):
            rows = np.flatnonzero(kept & (self.group == number))
            start = self.roofline_of(take(self.calls, rows), self.device) if len(rows) >= _FEWEST_REFITTED else None
            if start is not None:
                before[int(number)] = dict(start)
                after[int(number)] = self._refitted(rows, start)
        found = Refits(before=before, after=after)
        rows = np.flatnonzero(kept & np.isin(self.group, list(after)))
        if not len(rows):
            return found
        level = found.log_factor(take(self.calls, rows), self.group[rows], self.device).mean()
        return Refits(before=before, after=after, level=float(level))

    def _refitted(self, rows: IntArray, start: Parameters) -> Parameters:
        """Parameters under which the prices of some products of one group come nearest."""
        calls, predicted_s, time_s = take(self.calls, rows), self.predicted_s[rows], self.time_s[rows]
        old_s = product_s(calls, start, self.device)

        def price(parameters: Parameters, chosen: NDArray[np.int64]) -> FloatArray:
            return predicted_s[chosen] * (product_s(calls, parameters, self.device) / old_s)[chosen]

        ranges: dict[str, Range] = {name: span for name, span in _RANGES.items() if name in start}
        weights = np.clip(time_s / RELEVANT_S, _LEAST_RELEVANCE, 1.0)
        found = fit_parameters(price, time_s, np.arange(len(rows)), ranges, prior=start, weights=weights)
        return dict(start) | found


def _scales(scores: FloatArray, group: IntArray) -> dict[int, tuple[float, float]]:
    """Widths of both halves of the interval that hold the left-out points of a group, or of all if it has few.

    One more point lies inside as often as wanted if the share of those at hand is larger by one over their number (Lei
    et al., Distribution-Free Predictive Inference for Regression, JASA 2018, section 2).
    """

    def pair(values: FloatArray) -> tuple[float, float]:
        share = min(1.0, _INSIDE * (1.0 + 1.0 / len(values)))
        ends = (float(np.quantile(sign * values, share)) / NORMAL_QUANTILE for sign in (-1.0, 1.0))
        low, high = (max(_NARROWEST, end) for end in ends)
        return low, high

    found = {ANY_GROUP: pair(scores)}
    for number in np.unique(group):
        mine = scores[group == number]
        if len(mine) >= _FEWEST_OF_GROUP:
            found[int(number)] = pair(mine)
    return found


def _without_outliers(values: FloatArray, limit: IntArray) -> FloatArray:
    """Values more than ``_OUTLIER`` median absolute deviations from the median are pulled in to that distance.

    Those of kernels with one limit are compared with each other: products may be off and norms not.
    """
    found = np.empty_like(values)
    for number in np.unique(limit):
        mine = limit == number
        middle = float(np.median(values[mine]))
        reach = _OUTLIER * max(float(np.median(np.abs(values[mine] - middle))), 0.02)
        found[mine] = np.clip(values[mine], middle - reach, middle + reach)
    return found


def _likeliest(limit: int, places: Places, log_ratio: FloatArray) -> Amplitudes:
    """The amplitudes of the grid under which points of one limit, or an even choice of them, are likeliest."""
    rows = np.linspace(0, len(log_ratio) - 1, min(len(log_ratio), _TRIED_ON)).astype(np.int64)
    places, log_ratio = places.take(rows), log_ratio[rows]
    grid = (_LIBRARY, _FAR_SHAPE, _FAR_REST) if places.maker.any() else (_LIBRARY[:1], _SHAPE, _REST)
    makers, shapes, rests = grid
    found: dict[Amplitudes, float] = {}
    for shared, own, maker, shape, length in itertools.product(_SHARED, _OWN, makers, shapes, _LENGTH):
        smooth = Amplitudes(shared=shared, own=own, maker=maker, shape=shape, length=length, rest=0.0)
        # With its eigenvalues at hand, what is left adds to the diagonal at no cost.
        values, vectors = np.linalg.eigh(covariance_of(places, places, {limit: smooth}))
        along = (vectors.T @ log_ratio) ** 2
        for rest in rests:
            variance = np.maximum(values, 0.0) + rest**2
            found[replace(smooth, rest=rest)] = -0.5 * float((along / variance + np.log(variance)).sum())
    return max(found, key=lambda amplitudes: found[amplitudes])


def _left_out(points: _Points, raw: FloatArray, amplitudes: Mapping[int, Amplitudes]) -> tuple[FloatArray, FloatArray]:
    """(P,) mean and standard deviation of log(measured / predicted) for each point from the points of other folds."""
    mean, deviation = np.empty(len(raw)), np.empty(len(raw))
    fold: NDArray[np.int64] = np.arange(len(raw)) % min(_FOLDS, len(raw))
    limit = limits(points.group)
    for number in range(fold.max() + 1):
        out, kept = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        factor = points.refits(fold != number).log_factor(points.calls, points.group, points.device)
        places = Places.of(points.calls, points.predicted_s * np.exp(factor))
        covariance = covariance_of(places, places, amplitudes)
        prior, rest = variances(places, amplitudes)
        inner = covariance[np.ix_(kept, kept)] + np.diag(rest[kept])
        towards = covariance[np.ix_(out, kept)]
        solved = np.linalg.solve(inner, towards.T)
        mean[out] = factor[out] + solved.T @ _without_outliers(raw - factor, limit)[kept]
        explained = np.einsum("ij,ji->i", towards, solved)
        deviation[out] = np.sqrt(np.maximum(prior[out] - explained, 0.0) + rest[out])
    return mean, deviation
