"""Makes a few-shot calibration of one device from about a hundred measured kernels.

First the roofline parameters of products are fitted again, per operation and format, leaning on those that prices rest
on, and constant starts are added where points left out say that they are there; then amplitudes of the Gaussian process
over what is left are chosen by marginal likelihood from a small grid. Leaving points out of all of it shows how far
calls lie from their prices (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, section 5.4).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.kernel_ranges import GEMM, QUANTISE, RELEVANT_S, REPLAY, STREAM
from costmodels.calibration.robust import Range, fit_parameters
from costmodels.kernels.calibrated import (
    FEWEST_POINTS,
    MOST_POINTS,
    Amplitudes,
    Calibration,
    Places,
    covariance_of,
    groups,
    limits,
    variances,
)
from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, KernelCostModel, KernelOp, take
from costmodels.kernels.device_reference import arithmetics, device_reference
from costmodels.kernels.features import op_classes
from costmodels.kernels.learned import format_classes
from costmodels.kernels.refitted import REFITTED, Refits, product_s
from costmodels.kernels.roofline import FORMAT_CLASS, OP_NAMES, Parameters
from profiles.fits import default_fits
from profiles.hardware import DeviceSpec
from profiles.learned import packaged_learned
from profiles.precision import GEMM_FORMATS

_TRIED_ON = 150  # points that choose the amplitudes; more do not change the choice
_FOLDS = 10
_FEWEST_REFITTED = 8  # of one from which its roofline is fitted again
_OUTLIER = 4.0  # median absolute deviations beyond which a point is pulled in
_LEAST_RELEVANCE = 0.1  # weight of the shortest kernels in a refit
_STARTS_S = (0.0, *(1e-6 * 2 ** (step / 2) for step in range(19)))  # tried: up to half a millisecond
_EVEN = 0.01  # of the logarithm: a mean deviation as small as timings scatter
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
    found = _best_trial(points, raw)
    kept = _smaller(np.zeros(len(raw)), found.mean, points, raw)
    mean = np.where(np.isin(group, list(kept)), 0.0, found.mean)
    return Calibration(
        device=device.name,
        places=found.places,
        log_ratio=found.log_ratio,
        amplitudes=found.amplitudes,
        scores=(raw - mean) / found.deviation,
        error=(float(np.mean(np.abs(np.exp(mean - raw) - 1))), float(np.mean(np.abs(np.exp(-raw) - 1)))),
        refits=found.refits,
        kept=kept,
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """A correction by certain refits: P points, what is left of them, and what they are thought to be when left out."""

    refits: Refits
    places: Places
    log_ratio: FloatArray
    amplitudes: Mapping[int, Amplitudes]
    mean: FloatArray
    deviation: FloatArray

    @classmethod
    def of(cls, points: "_Points", raw: FloatArray, refits: Refits, of_fold: Sequence[Refits]) -> "_Trial":
        """By refits on all points, and by those on the points out of each fold."""
        limit, factor = limits(points.group), points.log_factor(refits)
        log_ratio = _without_outliers(raw - factor, limit)
        places = Places.of(points.calls, points.predicted_s * np.exp(factor))
        amplitudes = {
            int(number): _likeliest(int(number), places.take(mine), log_ratio[mine])
            for number in np.unique(limit)
            for mine in [np.flatnonzero(limit == number)]
        }
        mean, deviation = _left_out(points, raw, amplitudes, of_fold)
        return cls(refits, places, log_ratio, amplitudes, mean, deviation)


def _best_trial(points: "_Points", raw: FloatArray) -> _Trial:
    """With the starts of those groups of which that makes errors on points left out smaller."""
    masks = [np.ones(len(raw), dtype=np.bool_), *(points.fold != number for number in range(points.fold.max() + 1))]
    refits = [points.refits(mask) for mask in masks]
    plain = _Trial.of(points, raw, refits[0], refits[1:])
    starts = [points.starts(one, mask) for one, mask in zip(refits, masks, strict=True)]
    wanted = frozenset(starts[0])
    while wanted:
        some = [
            replace(one, starts={number: value for number, value in every.items() if number in wanted})
            for one, every in zip(refits, starts, strict=True)
        ]
        started = _Trial.of(points, raw, some[0], some[1:])
        better = _smaller(started.mean, plain.mean, points, raw) & wanted
        if better == wanted:
            return started
        wanted = better
    return plain


def _smaller(mean: FloatArray, other: FloatArray, points: "_Points", raw: FloatArray) -> frozenset[int]:
    """Groups of whose points the one logarithm of a factor leaves smaller errors than the other, beyond chance.

    By more than a standard error of what is between them, as a choice needs (Breiman et al., Classification and
    Regression Trees, 1984, section 3.4.3); points weigh as in a refit.
    """
    gain = np.abs(np.exp(other - raw) - 1) - np.abs(np.exp(mean - raw) - 1)
    weights, found = _relevance(points.time_s), []
    for number in np.unique(points.group):
        mine = points.group == number
        part, weight = gain[mine], weights[mine] / weights[mine].sum()
        middle = float((weight * part).sum())
        if len(part) > 1 and middle >= np.sqrt((weight**2 * (part - middle) ** 2).sum()):
            found.append(int(number))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Points:
    """Measured calls: P of them, their groups, seconds measured and predicted, where, and what prices rest on."""

    calls: KernelCallBatch
    group: IntArray
    time_s: FloatArray
    predicted_s: FloatArray
    device: DeviceSpec
    roofline_of: RooflineOf

    @property
    def fold(self) -> IntArray:
        """(P,) with which others each is left out."""
        return np.arange(len(self.time_s)) % min(_FOLDS, len(self.time_s))

    def refits(self, kept: NDArray[np.bool_]) -> Refits:
        """Parameters of the products among some of the points, group by group."""
        before: dict[int, Parameters] = {}
        after: dict[int, Parameters] = {}
        for number in np.unique(self.group[np.isin(self.calls.op, REFITTED) & (self.calls.packed_bytes == 0)]):
            rows = np.flatnonzero(kept & (self.group == number))
            start = self.roofline_of(take(self.calls, rows), self.device) if len(rows) >= _FEWEST_REFITTED else None
            if start is not None:
                before[int(number)] = dict(start)
                after[int(number)] = self._refitted(rows, start)
        found = Refits(before=before, after=after)
        rows = np.flatnonzero(kept & np.isin(self.group, list(after)))
        if len(rows):
            part = take(self.calls, rows), self.group[rows], self.predicted_s[rows], self.device
            found = replace(found, level=float(found.log_factor(*part).mean()))
        return found

    def log_factor(self, refits: Refits) -> FloatArray:
        """(P,) log of what refits multiply the price of each point by."""
        return refits.log_factor(self.calls, self.group, self.predicted_s, self.device)

    def starts(self, refits: Refits, kept: NDArray[np.bool_]) -> dict[int, float]:
        """Seconds that calls take longer whatever their size, of groups among some of whose points say so."""
        price_s, found = self.predicted_s * np.exp(self.log_factor(refits)), {}
        for number in np.unique(self.group[kept]):
            rows = np.flatnonzero(kept & (self.group == number))
            if len(rows) >= _FEWEST_REFITTED:
                start_s = start_of(price_s[rows], self.time_s[rows])
                if start_s:
                    found[int(number)] = start_s
        return found

    def _refitted(self, rows: IntArray, start: Parameters) -> Parameters:
        """Parameters under which the prices of some products of one group come nearest."""
        calls, predicted_s, time_s = take(self.calls, rows), self.predicted_s[rows], self.time_s[rows]
        old_s = product_s(calls, start, self.device)

        def price(parameters: Parameters, chosen: NDArray[np.int64]) -> FloatArray:
            return predicted_s[chosen] * (product_s(calls, parameters, self.device) / old_s)[chosen]

        ranges: dict[str, Range] = {name: span for name, span in _RANGES.items() if name in start}
        found = fit_parameters(price, time_s, np.arange(len(rows)), ranges, prior=start, weights=_relevance(time_s))
        return dict(start) | found


def start_of(predicted_s: FloatArray, time_s: FloatArray) -> float:
    """Seconds to add to prices before they are multiplied, so that they are off alike.

    Rows weigh as in a refit. Of the starts tried it is the least that loses no more likelihood of errors with a Laplace
    distribution than a parameter must gain by Schwarz's criterion (Estimating the Dimension of a Model, Annals of
    Statistics 1978).
    """
    weights = _relevance(time_s)

    def scatter(start_s: float) -> float:
        off = np.log(time_s / (predicted_s + start_s))
        order = np.argsort(off)
        half = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        return max(float(np.average(np.abs(off - off[order[half]]), weights=weights)), _EVEN)

    rows = float(weights.sum())
    unlikely = [rows * np.log(scatter(start_s)) for start_s in _STARTS_S]
    least = min(unlikely) + 0.5 * np.log(max(rows, 2.0))
    return next(start_s for start_s, one in zip(_STARTS_S, unlikely, strict=True) if one <= least)


def _relevance(time_s: FloatArray) -> FloatArray:
    """(C,) weight of each kernel: those that take as long as training's count in full."""
    return np.clip(time_s / RELEVANT_S, _LEAST_RELEVANCE, 1.0)


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


def _left_out(
    points: _Points, raw: FloatArray, amplitudes: Mapping[int, Amplitudes], of_fold: Sequence[Refits]
) -> tuple[FloatArray, FloatArray]:
    """(P,) mean and standard deviation of log(measured / predicted) for each point from the points of other folds."""
    mean, deviation = np.empty(len(raw)), np.empty(len(raw))
    limit = limits(points.group)
    for number, refits in enumerate(of_fold):
        out, kept = np.flatnonzero(points.fold == number), np.flatnonzero(points.fold != number)
        factor = points.log_factor(refits)
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
