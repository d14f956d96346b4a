"""Few-shot calibration: about a hundred measured kernels correct every price of one device.

Model: log(measured / predicted) is a Gaussian process over calls, with a part that all calls with the same limit
share, one per operation class and format, and one that varies smoothly with the shape. So few points move the
level first and the shape only where several agree; far from every point the correction fades to the level. The
amplitudes are chosen by marginal likelihood from a small grid, the interval is scaled to what leaving points out
shows (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1 and section 5.4).
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import (
    Basis,
    FloatArray,
    IntArray,
    KernelCallBatch,
    KernelCostModel,
    KernelFamily,
    KernelOp,
    Prediction,
)
from costmodels.kernels.implementations import Library, library_of
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

FEWEST_POINTS = 4
MOST_POINTS = 400  # a Gaussian process costs their cube; more are thinned out evenly by time
_TRIED_ON = 150  # points that choose the amplitudes; more do not change the choice
_MEMORY = 1000  # group of the first family of bandwidth-bound work
_FOLDS = 10
_CHUNK = 20_000  # calls compared with all points at once
_FEWEST_OF_GROUP = 12  # points of an operation class and format from which its interval is its own
_ANY_GROUP = -1
_OUTLIER = 4.0  # median absolute deviations beyond which a point is pulled in
_NORMAL_QUANTILE = 1.645  # of the 90 % interval
_LARGEST_LOG_RATIO = 14.0  # a million times, more than an audit of measurements lets pass
_LARGEST_AMPLITUDE, _LARGEST_SCALE = 10.0, 1e4  # of a file; what is chosen below is a thousandth of it
_NARROWEST = 1.0  # of the normal interval: leaving points out may widen it, not narrow it

# Standard deviations of log(measured / predicted) that are tried: what all calls with one limit share, what one
# operation class and format does, what varies with the shape, and what is left; and the length over which the
# shape part varies, in units of ``_descriptors``.
_SHARED, _OWN, _SHAPE, _LENGTH, _REST = (
    (0.05, 0.2),
    (0.05, 0.2),
    (0.04, 0.1, 0.2),
    (0.7, 1.5, 3.0),
    (0.02, 0.03, 0.05, 0.08, 0.15),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amplitudes:
    """Standard deviations of the parts of the correction, in log time, and the length scale of the shape part."""

    shared: float
    own: float
    shape: float
    length: float
    rest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What some measured kernels say about the prices of one device.

    Attributes:
        device: Catalogue name.
        group: (P,) operation class and format of each point, see ``_groups``.
        points: (P, D) shapes, see ``_descriptors``.
        log_ratio: (P,) log(measured / predicted).
        amplitudes: Of the correction.
        scales: By group, what the lower and the upper half of the normal 90 % interval are multiplied by; under -1
            for groups without points of their own.
        error: Mean |predicted / measured - 1| over points left out, corrected; and before the correction.
    """

    device: str
    group: IntArray
    points: FloatArray
    log_ratio: FloatArray
    amplitudes: Amplitudes
    scales: Mapping[int, tuple[float, float]]
    error: tuple[float, float]

    def to_document(self) -> dict[str, Any]:
        """As JSON holds it."""
        names = Amplitudes.__dataclass_fields__
        return {
            "device": self.device,
            "group": self.group.tolist(),
            "points": [[round(float(value), 5) for value in row] for row in self.points],
            "log_ratio": [round(float(value), 6) for value in self.log_ratio],
            "amplitudes": {name: getattr(self.amplitudes, name) for name in names},
            "scales": {str(group): list(pair) for group, pair in self.scales.items()},
            "error": list(self.error),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Calibration":
        """From what ``to_document`` gave.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: If it is something else.
        """
        group = np.array(document["group"], dtype=np.int64)
        points = np.array(document["points"], dtype=np.float64)
        log_ratio = np.array(document["log_ratio"], dtype=np.float64)
        if not (points.ndim == 2 and len(group) == len(points) == len(log_ratio) <= MOST_POINTS):
            raise ValueError("group, points and log_ratio must have the same length")
        if not (np.isfinite(points).all() and (np.abs(log_ratio) <= _LARGEST_LOG_RATIO).all()):
            raise ValueError("points must be finite, log_ratio too and no wild number")
        before, after = (float(value) for value in document["error"])
        amplitudes = {name: float(value) for name, value in document["amplitudes"].items()}
        if not all(0 < value <= _LARGEST_AMPLITUDE for value in amplitudes.values()):
            raise ValueError(f"amplitudes must be above 0 and at most {_LARGEST_AMPLITUDE:g}")
        scales = {int(group): (float(low), float(high)) for group, (low, high) in document["scales"].items()}
        if _ANY_GROUP not in scales or not all(0 < end <= _LARGEST_SCALE for pair in scales.values() for end in pair):
            raise ValueError(f"scales must hold group {_ANY_GROUP} and be above 0 and at most {_LARGEST_SCALE:g}")
        return cls(
            device=str(document["device"]),
            group=group,
            points=points,
            log_ratio=log_ratio,
            amplitudes=Amplitudes(**amplitudes),
            scales=scales,
            error=(before, after),
        )


def calibrate(base: KernelCostModel, calls: KernelCallBatch, time_s: FloatArray, device: DeviceSpec) -> Calibration:
    """A correction of ``base`` on one device from kernels measured there.

    Args:
        base: The prices to correct.
        calls: (P,) measured calls; a hundred are enough.
        time_s: (P,) seconds measured.
        device: Where.

    Raises:
        ValueError: If there are fewer than ``FEWEST_POINTS`` points, or a time is not positive and finite.
    """
    if len(calls) < FEWEST_POINTS:
        raise ValueError(f"at least {FEWEST_POINTS} measured kernels are needed; got {len(calls)}")
    if not (np.isfinite(time_s).all() and (time_s > 0).all()):
        raise ValueError("measured times must be positive and finite")
    predicted_s = base.predict(calls, device).time_s
    rows = np.arange(len(calls))
    if len(rows) > MOST_POINTS:
        rows = np.argsort(time_s, kind="stable")[np.linspace(0, len(rows) - 1, MOST_POINTS).astype(np.int64)]
    group, points = _groups(calls)[rows], _descriptors(calls, predicted_s)[rows]
    raw = np.log(time_s / predicted_s)[rows]
    log_ratio = _without_outliers(raw)
    amplitudes = _likeliest(group, points, log_ratio)
    mean, deviation = _left_out(group, points, log_ratio, amplitudes)
    scores = (raw - mean) / deviation
    return Calibration(
        device=device.name,
        group=group,
        points=points,
        log_ratio=log_ratio,
        amplitudes=amplitudes,
        scales=_scales(scores, group),
        error=(float(np.mean(np.abs(np.exp(mean - raw) - 1))), float(np.mean(np.abs(np.exp(-raw) - 1)))),
    )


def _scales(scores: FloatArray, group: IntArray) -> dict[int, tuple[float, float]]:
    """Widths of both halves of the interval that hold the left-out points of a group, or of all if it has few."""

    def pair(values: FloatArray) -> tuple[float, float]:
        low, high = (sign * float(np.quantile(values, q)) / _NORMAL_QUANTILE for sign, q in ((-1, 0.05), (1, 0.95)))
        return max(_NARROWEST, low), max(_NARROWEST, high)

    found = {_ANY_GROUP: pair(scores)}
    for number in np.unique(group):
        mine = scores[group == number]
        if len(mine) >= _FEWEST_OF_GROUP:
            found[int(number)] = pair(mine)
    return found


class CalibratedKernelModel:
    """Prices of a base model, corrected on the devices that were calibrated."""

    def __init__(self, base: KernelCostModel, calibrations: Mapping[str, Calibration]) -> None:
        """Prepare the corrections.

        Args:
            base: Prices every call; the same model the calibrations were made with.
            calibrations: By catalogue name of the device.
        """
        self._base = base
        self._corrections = {name: _Correction(calibration) for name, calibration in calibrations.items()}

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device.

        Raises:
            SpecError: If the device cannot multiply in a format that a call asks for.
        """
        priced = self._base.predict(calls, device)
        correction = self._corrections.get(device.name)
        if correction is None:
            return priced
        return correction.apply(calls, priced)


class _Correction:
    """A calibration ready to be applied."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        amplitudes = calibration.amplitudes
        covariance = _covariance(
            calibration.group, calibration.points, calibration.group, calibration.points, amplitudes
        )
        covariance[np.diag_indices_from(covariance)] += amplitudes.rest**2
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ calibration.log_ratio

    def apply(self, calls: KernelCallBatch, priced: Prediction) -> Prediction:
        """Corrected prices; calls without a price (zero), or of which nothing like them was measured, keep theirs."""
        mean, deviation = self._correction(calls, priced.time_s)
        group, scales = _groups(calls), self._calibration.scales
        known = np.isin(group, self._calibration.group)
        numbers, place = np.unique(group, return_inverse=True)
        low_scale, high_scale = (
            np.array([scales.get(int(n), scales[_ANY_GROUP]) for n in numbers]).reshape(-1, 2)[place].T
        )
        # Nothing was measured of what limits the other calls: they keep price and interval.
        worked = (priced.time_s > 0) & np.isin(_limits(group), _limits(self._calibration.group))
        before = np.log(np.divide(priced.high_s, priced.low_s, out=np.ones(len(calls)), where=priced.low_s > 0))
        deviation = np.where(known, deviation, np.maximum(deviation, before / (2 * _NORMAL_QUANTILE)))
        reach = _NORMAL_QUANTILE * deviation
        time_s = np.where(worked, priced.time_s * np.exp(mean), priced.time_s)
        return Prediction(
            time_s=time_s,
            low_s=np.where(worked, time_s * np.exp(-reach * low_scale), priced.low_s),
            high_s=np.where(worked, time_s * np.exp(reach * high_scale), priced.high_s),
            basis=np.where(known & worked, np.minimum(priced.basis, int(Basis.LEARNED)), priced.basis),
            extrapolated=priced.extrapolated,
        )

    def _correction(self, calls: KernelCallBatch, predicted_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(C,) mean and standard deviation of log(measured / predicted)."""
        group, points = _groups(calls), _descriptors(calls, predicted_s)
        amplitudes = self._calibration.amplitudes
        prior = amplitudes.shared**2 + amplitudes.own**2 + amplitudes.shape**2
        mean, deviation = np.empty(len(calls)), np.empty(len(calls))
        for start in range(0, len(calls), _CHUNK):
            rows = slice(start, start + _CHUNK)
            towards = _covariance(
                group[rows], points[rows], self._calibration.group, self._calibration.points, amplitudes
            )
            mean[rows] = towards @ self._weights
            explained = np.einsum("ij,ij->i", towards @ self._inverse, towards)
            deviation[rows] = np.sqrt(np.maximum(prior - explained, 0.0) + amplitudes.rest**2)
        return mean, deviation


def _groups(calls: KernelCallBatch) -> IntArray:
    """(C,) one number per operation class, format (block-scaled apart), and kind of bandwidth-bound work."""
    memory = calls.op == KernelOp.MEMORY
    half = calls.gemm_format == GEMM_FORMATS.index("fp16")  # the same units and kernels as bf16
    # Model code that runs an operation as a chain of kernels says nothing of the kernel that does it at once.
    chain = library_of(calls.implementation) == Library.SPELLED_OUT
    work = np.where(chain, int(KernelFamily.OTHER), calls.family)
    single = np.where(half, GEMM_FORMATS.index("bf16"), calls.gemm_format)
    formats = single + len(GEMM_FORMATS) * (calls.scale_block > 0)
    return np.where(memory, _MEMORY + work, calls.op * 2 * len(GEMM_FORMATS) + formats)


def _limits(group: IntArray) -> IntArray:
    """(C,) what limits the kernels of a group: the multipliers, those with attention's softmax, a cache read, memory.

    Only kernels with the same limit say something of each other: a device whose norms are slow multiplies no slower.
    """
    op = group // (2 * len(GEMM_FORMATS))
    attention = np.isin(op, [KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD])
    decode = op == KernelOp.ATTENTION_DECODE
    return np.where(group >= _MEMORY, 3, np.where(decode, 2, attention.astype(np.int64)))


def _descriptors(calls: KernelCallBatch, predicted_s: FloatArray) -> FloatArray:
    """(C, 6) coordinates in which the correction is smooth: log2 of time, intensity, m, n, k and batch, over 4."""
    columns = (
        predicted_s * 1e6,
        np.divide(calls.flops, calls.bytes, out=np.ones(len(calls)), where=(calls.bytes > 0) & (calls.flops > 0)),
        calls.m,
        calls.n,
        calls.k,
        calls.batch * np.maximum(calls.heads, 1.0),
    )
    return np.stack([np.log2(np.maximum(column, 1e-3)) for column in columns], axis=1) / 4.0


def _covariance(
    group: IntArray, points: FloatArray, other_group: IntArray, others: FloatArray, amplitudes: Amplitudes
) -> FloatArray:
    """(A, B) covariance of the correction between calls."""
    same = group[:, None] == other_group[None, :]
    squared = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None, :] - 2 * points @ others.T
    near = np.exp(-np.maximum(squared, 0.0) / (2 * amplitudes.length**2))
    alike = _limits(group)[:, None] == _limits(other_group)[None, :]
    return np.asarray(alike * amplitudes.shared**2 + same * (amplitudes.own**2 + amplitudes.shape**2 * near))


def _without_outliers(values: FloatArray) -> FloatArray:
    """Values more than ``_OUTLIER`` median absolute deviations from the median are pulled in to that distance."""
    middle = float(np.median(values))
    reach = _OUTLIER * max(float(np.median(np.abs(values - middle))), 0.02)
    return np.clip(values, middle - reach, middle + reach)


def _likeliest(group: IntArray, points: FloatArray, log_ratio: FloatArray) -> Amplitudes:
    """The amplitudes of the grid under which the points, or an even choice of them, are likeliest."""
    rows = np.linspace(0, len(points) - 1, min(len(points), _TRIED_ON)).astype(np.int64)
    group, points, log_ratio = group[rows], points[rows], log_ratio[rows]
    found: dict[Amplitudes, float] = {}
    for shared, own, shape, length in itertools.product(_SHARED, _OWN, _SHAPE, _LENGTH):
        smooth = Amplitudes(shared=shared, own=own, shape=shape, length=length, rest=0.0)
        # With its eigenvalues at hand, what is left adds to the diagonal at no cost.
        values, vectors = np.linalg.eigh(_covariance(group, points, group, points, smooth))
        along = (vectors.T @ log_ratio) ** 2
        for rest in _REST:
            variance = np.maximum(values, 0.0) + rest**2
            found[replace(smooth, rest=rest)] = -0.5 * float((along / variance + np.log(variance)).sum())
    return max(found, key=lambda amplitudes: found[amplitudes])


def _left_out(
    group: IntArray, points: FloatArray, log_ratio: FloatArray, amplitudes: Amplitudes
) -> tuple[FloatArray, FloatArray]:
    """(P,) mean and standard deviation for each point from the points of other folds."""
    mean, deviation = np.empty(len(points)), np.empty(len(points))
    fold: NDArray[np.int64] = np.arange(len(points)) % min(_FOLDS, len(points))
    covariance = _covariance(group, points, group, points, amplitudes)
    prior = amplitudes.shared**2 + amplitudes.own**2 + amplitudes.shape**2
    for number in range(fold.max() + 1):
        out, kept = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        inner = covariance[np.ix_(kept, kept)] + amplitudes.rest**2 * np.eye(len(kept))
        towards = covariance[np.ix_(out, kept)]
        solved = np.linalg.solve(inner, towards.T)
        mean[out] = solved.T @ log_ratio[kept]
        explained = np.einsum("ij,ji->i", towards, solved)
        deviation[out] = np.sqrt(np.maximum(prior - explained, 0.0) + amplitudes.rest**2)
    return mean, deviation
