"""Few-shot calibration: about a hundred measured kernels correct every price of one device.

A correction has two parts. Products get other parameters of their roofline (what share of the peaks is reached, from
what depth, what quantising costs): their time is multiplied by the formula with the new over the formula with the old
ones, so that what a few kernels say of the device holds in every regime of shapes. Calls of any operation may take
longer by a constant. What is left, and everything else, is a Gaussian process over calls: log(measured / predicted) has
a part that all calls with the same limit share, one per operation class and format, one per kernel library where that
counts, and one that varies smoothly with the shape of what one library runs. So few points move the level first and the
shape only where several agree; far from every point the correction fades to the level.
``costmodels.calibration.few_shot`` makes one (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006,
algorithm 2.1).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
from costmodels.kernels.implementations import REPLAYED, Library, library_of
from costmodels.kernels.left_out import Scores
from costmodels.kernels.refitted import PACKED, REFITTED, Refits
from costmodels.uncertainty import NORMAL_90
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

FEWEST_POINTS = 4
FORM = b"2"  # of the document of a calibration: one of another form is made again from the stored timings
MOST_POINTS = 400  # a Gaussian process costs their cube; more are thinned out evenly by time
_MEMORY = 1000  # group of the first family of bandwidth-bound work
_CHUNK = 500  # calls compared with all points at once
NOISE = 0.02  # of the logarithm: as far apart as two timings of one kernel are, so that no interval is narrower
_LARGEST_LOG_RATIO = 14.0  # a million times, more than an audit of measurements lets pass
_LARGEST_AMPLITUDE, _LARGEST_SCORE = 10.0, 1e4  # of a file; what is chosen below is a thousandth of it
_TIME = 0  # column of ``descriptors`` that holds a fourth of log2 of the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Amplitudes:
    """Standard deviations of the parts of the correction, in log time, and the length scale of the shape part."""

    shared: float
    own: float
    maker: float
    shape: float
    length: float
    rest: float


_AMPLITUDES = tuple(Amplitudes.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where C calls lie for the correction.

    Attributes:
        group: (C,) operation class and format, see ``groups``.
        maker: (C,) who runs them, see ``makers``.
        points: (C, D) shapes, see ``descriptors``.
    """

    group: IntArray
    maker: IntArray
    points: FloatArray

    @classmethod
    def of(cls, calls: KernelCallBatch, predicted_s: FloatArray) -> "Places":
        """Of calls with prices in seconds."""
        return cls(group=groups(calls), maker=makers(calls), points=descriptors(calls, predicted_s))

    def take(self, rows: IntArray | slice) -> "Places":
        """Some of them."""
        return Places(group=self.group[rows], maker=self.maker[rows], points=self.points[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What some measured kernels say about the prices of one device.

    Attributes:
        device: Catalogue name.
        places: Of the P points.
        log_ratio: (P,) log(measured / predicted), after the refits.
        refits: Roofline parameters of products that the points change.
        amplitudes: Of the correction, by what limits the calls (``limits``): between limits nothing is shared.
        scores: (P,) of each point when it was left out, see ``costmodels.kernels.left_out``.
        error: Mean |predicted / measured - 1| over points left out, corrected; and before the correction.
        kept: Groups whose prices stay, since the correction made errors on points left out no smaller.
    """

    device: str
    places: Places
    log_ratio: FloatArray
    amplitudes: Mapping[int, Amplitudes]
    scores: FloatArray
    error: tuple[float, float]
    refits: Refits
    kept: frozenset[int] = frozenset()

    def to_document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "device": self.device,
            "group": self.places.group.tolist(),
            "maker": self.places.maker.tolist(),
            "points": [[round(float(value), 5) for value in row] for row in self.places.points],
            "log_ratio": [round(float(value), 6) for value in self.log_ratio],
            "amplitudes": {
                str(limit): dict(zip(_AMPLITUDES, one, strict=True))
                for limit, one in zip(self.amplitudes, _numbers(self.amplitudes.values()).tolist(), strict=True)
            },
            "scores": [round(float(value), 4) for value in self.scores],
            "error": list(self.error),
            "refits": self.refits.to_document(),
            "kept": sorted(self.kept),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Calibration":
        """From what ``to_document`` gave.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: If it is something else.
        """
        group, maker = (np.array(document[name], dtype=np.int64) for name in ("group", "maker"))
        points = np.array(document["points"], dtype=np.float64)
        log_ratio = np.array(document["log_ratio"], dtype=np.float64)
        if not (points.ndim == 2 and len(group) == len(maker) == len(points) == len(log_ratio) <= MOST_POINTS):
            raise ValueError("group, maker, points and log_ratio must have the same length")
        if not (np.isfinite(points).all() and (np.abs(log_ratio) <= _LARGEST_LOG_RATIO).all()):
            raise ValueError("points must be finite, log_ratio too and no wild number")
        before, after = (float(value) for value in document["error"])
        amplitudes = {
            int(limit): Amplitudes(**{name: float(value) for name, value in one.items()})
            for limit, one in document["amplitudes"].items()
        }
        sizes = _numbers(amplitudes.values())
        if not ((sizes > 0) & (sizes <= _LARGEST_AMPLITUDE)).all() or not set(limits(group)) <= set(amplitudes):
            raise ValueError(f"amplitudes of every limit must be above 0 and at most {_LARGEST_AMPLITUDE:g}")
        scores = np.array(document["scores"], dtype=np.float64)
        if scores.shape != group.shape or not (np.abs(scores) <= _LARGEST_SCORE).all():
            raise ValueError(f"scores must be as many as points, and at most {_LARGEST_SCORE:g} either way")
        return cls(
            device=str(document["device"]),
            places=Places(group=group, maker=maker, points=points),
            log_ratio=log_ratio,
            amplitudes=amplitudes,
            scores=scores,
            error=(before, after),
            refits=Refits.from_document(document["refits"]),
            kept=frozenset(int(number) for number in document["kept"]),
        )


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
        return correction.apply(calls, priced, device)


class _Correction:
    """A calibration ready to be applied."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._known = calibration.places
        covariance = covariance_of(self._known, self._known, calibration.amplitudes)
        covariance[np.diag_indices_from(covariance)] += variances(self._known, calibration.amplitudes)[1]
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ calibration.log_ratio
        self._scores = Scores(
            kind=_kinds(self._known.group, self._known.maker),
            octaves=4.0 * self._known.points[:, _TIME],
            score=calibration.scores,
        )

    def apply(self, calls: KernelCallBatch, priced: Prediction, device: DeviceSpec) -> Prediction:
        """Corrected prices; calls without a price (zero), or of which nothing like them was measured, keep theirs."""
        group = groups(calls)
        refitted = self._calibration.refits.log_factor(calls, group, priced.time_s, device)
        refitted_s = priced.time_s * np.exp(refitted)
        mean, deviation = self._correction(calls, refitted_s)
        mean = np.where(np.isin(group, list(self._calibration.kept)), 0.0, mean + refitted)
        known = np.isin(group, self._known.group)
        # Nothing was measured of what limits the other calls: they keep price and interval.
        worked = (priced.time_s > 0) & np.isin(limits(group), limits(self._known.group))
        low, high = self._reach(Places.of(calls, refitted_s), deviation, priced)
        time_s = np.where(worked, priced.time_s * np.exp(mean), priced.time_s)
        return Prediction(
            time_s=time_s,
            low_s=np.where(worked, time_s * np.exp(-low), priced.low_s),
            high_s=np.where(worked, time_s * np.exp(high), priced.high_s),
            basis=np.where(known & worked, np.minimum(priced.basis, int(Basis.LEARNED)), priced.basis),
            extrapolated=priced.extrapolated,
        )

    def _reach(self, places: Places, deviation: FloatArray, priced: Prediction) -> tuple[FloatArray, FloatArray]:
        """(C,) logarithms from corrected prices down and up to the ends of their intervals."""

        def before(end: FloatArray, start: FloatArray) -> FloatArray:
            ratio = np.divide(end, start, out=np.ones(len(deviation)), where=start > 0)
            off = np.divide(np.log(ratio), deviation, out=np.zeros(len(deviation)), where=deviation > 0)
            return np.asarray(np.maximum(off, NORMAL_90))

        low, high = self._scores.reach(
            _kinds(places.group, places.maker),
            4.0 * places.points[:, _TIME],
            low=before(priced.time_s, priced.low_s),
            high=before(priced.high_s, priced.time_s),
        )
        return np.maximum(deviation * low, NOISE), np.maximum(deviation * high, NOISE)

    def _correction(self, calls: KernelCallBatch, predicted_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(C,) mean and standard deviation of log(measured / predicted)."""
        places, amplitudes = Places.of(calls, predicted_s), self._calibration.amplitudes
        mean, deviation = np.empty(len(calls)), np.empty(len(calls))
        for start in range(0, len(calls), _CHUNK):
            rows = slice(start, start + _CHUNK)
            towards = covariance_of(places.take(rows), self._known, amplitudes)
            mean[rows] = towards @ self._weights
            explained = np.einsum("ij,ij->i", towards @ self._inverse, towards)
            prior, rest = variances(places.take(rows), amplitudes)
            deviation[rows] = np.sqrt(np.maximum(prior - explained, 0.0) + rest)
        return mean, deviation


def groups(calls: KernelCallBatch) -> IntArray:
    """(C,) one number per operation class, format (block-scaled and packed apart), and kind of bandwidth-bound work."""
    memory = calls.op == KernelOp.MEMORY
    half = calls.gemm_format == GEMM_FORMATS.index("fp16")  # the same units and kernels as bf16
    # Model code that runs an operation as a chain of kernels says nothing of the kernel that does it at once.
    chain = library_of(calls.implementation) == Library.SPELLED_OUT
    work = np.where(chain, int(KernelFamily.OTHER), calls.family)
    single = np.where(half, GEMM_FORMATS.index("bf16"), calls.gemm_format)
    formats = single + len(GEMM_FORMATS) * (calls.scale_block > 0)
    packed = PACKED * (calls.packed_bytes > 0)
    return np.where(memory, _MEMORY + work, calls.op * 2 * len(GEMM_FORMATS) + formats + packed)


def makers(calls: KernelCallBatch) -> IntArray:
    """(C,) engine and library of what libraries tell apart; 0 for products, which all have their vendor's."""
    product = np.isin(calls.op, REFITTED)
    return np.where(product, 0, calls.implementation % REPLAYED)


def limits(group: IntArray) -> IntArray:
    """(C,) what limits the kernels of a group: the multipliers, those with attention's softmax, a cache read, memory.

    Only kernels with the same limit say something of each other: a device whose norms are slow multiplies no slower.
    """
    op = group % PACKED // (2 * len(GEMM_FORMATS))
    attention = np.isin(op, [KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD])
    decode = op == KernelOp.ATTENTION_DECODE
    return np.where(group >= _MEMORY, 3, np.where(decode, 2, attention.astype(np.int64)))


def _kinds(group: IntArray, maker: IntArray) -> IntArray:
    """(3, C) what tells calls apart whose errors differ, for ``Scores``."""
    return np.stack([group, limits(group), maker])


def descriptors(calls: KernelCallBatch, predicted_s: FloatArray) -> FloatArray:
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


def covariance_of(places: Places, others: Places, amplitudes: Mapping[int, Amplitudes]) -> FloatArray:
    """(A, B) covariance of the correction between calls.

    Args:
        places: Of A calls.
        others: Of B calls.
        amplitudes: By limit; calls with another limit have no correction.
    """
    # All but the distance is the same for calls of one group and maker, of which there are few.
    (group, maker), place = np.unique(np.stack([places.group, places.maker]), axis=1, return_inverse=True)
    kinds = Places(group=group, maker=maker, points=np.empty((len(group), 0)))
    alike = limits(group)[:, None] == limits(others.group)[None, :]
    same = group[:, None] == others.group[None, :]
    by_one = maker[:, None] == others.maker[None, :]
    shared, own, by_maker, shape, length, _ = (column[:, None] for column in _columns(kinds, amplitudes))
    level = alike * (shared**2 + by_one * by_maker**2) + same * own**2
    place, points, known = place.ravel(), places.points, others.points
    squared = (points**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None, :] - 2 * points @ known.T
    near = np.exp(np.maximum(squared, 0.0) * (-0.5 / length**2)[place])
    return np.asarray(level[place] + (same * by_one * shape**2)[place] * near)


def variances(places: Places, amplitudes: Mapping[int, Amplitudes]) -> tuple[FloatArray, FloatArray]:
    """(C,) variance of the correction where nothing is known, and of what is left of every measurement."""
    shared, own, maker, shape, _, rest = _columns(places, amplitudes)
    return shared**2 + own**2 + maker**2 + shape**2, rest**2


def _columns(places: Places, amplitudes: Mapping[int, Amplitudes]) -> FloatArray:
    """(6, C) amplitudes of each call; products have no maker's part, calls without points of their limit none."""
    found = np.zeros((len(places.group), len(_AMPLITUDES)))
    found[:, _AMPLITUDES.index("length")] = 1.0
    limit = limits(places.group)
    for number, one in zip(amplitudes, _numbers(amplitudes.values()), strict=True):
        found[limit == number] = one
    found[places.maker == 0, _AMPLITUDES.index("maker")] = 0.0
    return found.T


def _numbers(amplitudes: Iterable[Amplitudes]) -> FloatArray:
    """(L, 6) fields of amplitudes."""
    return np.array([[getattr(one, name) for name in _AMPLITUDES] for one in amplitudes]).reshape(-1, len(_AMPLITUDES))
