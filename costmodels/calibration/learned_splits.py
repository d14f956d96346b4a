"""What a learned kernel model is worth: errors and intervals on rows, shapes, sources and devices held out.

Splits, each with a model fitted without what it judges:

* ``random``: a fifth of the distinct shapes;
* ``larger``: of the kernels over 20 us of every device, source and format the fifth with the most work;
* ``source``: a whole source whose device another source measured;
* ``own random``: our own timings of random shapes, by a fit that has seen our lattice; ``own kept``: those of them
  that no packaged model is fitted on, by the packaged model;
* ``device``: every row of one device, ``related`` when another device with its chip remains, else ``foreign``.
  The same with a hundred of its kernels spent on calibration.

An interval that judges a fold is taken from the other folds of its situation; a fold that is alone in its own, of
thousands of rows under three pairs of quantiles, from itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.kernel_ranges import RELEVANT_S
from costmodels.calibration.learned_fit import Trained, predicted_s, train
from costmodels.calibration.own_rows import DRAWN, kept_out
from costmodels.calibration.robust import significant
from costmodels.calibration.training_rows import SEED, TrainingRows, capped
from costmodels.kernels.additive import ADDITIVE
from costmodels.kernels.calibrated import CalibratedKernelModel, calibrate
from costmodels.kernels.calls import Basis, FloatArray, KernelCallBatch, KernelOp, Prediction, take
from costmodels.kernels.learned import format_classes
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

FEWEST_ROWS = 50  # of a device or source to be held out
FEWEST_ELSEWHERE = 500  # rows of a device and format that other sources must have for one to be held out
FEW_SHOT = 100
FEW_FOLDS = 3  # with fewer, a situation's errors count both ways
EDGES_S = (20e-6, 100e-6)  # classes of predicted time that have a spread of their own
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SEQUENCES = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD, KernelOp.ATTENTION_DECODE)
_QUANTILES = (0.05, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One split's judged rows with their predictions.

    Attributes:
        name: Split, and which device or source.
        situation: Spread it belongs to: ``measured``, ``beyond``, ``related`` or ``foreign``.
        rows: (K,) judged rows.
        learned_s, reference_s: (K,) seconds by the whole model and by its reference roofline.
        constant_s: (K,) seconds by a roofline with one efficiency per format, fitted on the same rows.
        few_shot: Mask of the rows left after calibration, and their corrected prices; None where not tried.
    """

    name: str
    situation: str
    rows: TrainingRows
    learned_s: FloatArray
    reference_s: FloatArray
    constant_s: FloatArray
    few_shot: tuple[NDArray[np.bool_], Prediction] | None = None

    def blended_s(self, share: float) -> FloatArray:
        """(K,) geometric mean of model and reference."""
        return np.asarray(self.learned_s**share * self.reference_s ** (1 - share))


def folds(whole: TrainingRows, thinned: TrainingRows, *, few_shot: bool = True) -> Iterator[Fold]:
    """Every split of the module's first lines.

    Args:
        whole: Rows for the splits of shapes.
        thinned: Rows for the splits of devices and sources.
        few_shot: Whether devices are calibrated too.
    """
    yield _fold("random", "measured", whole, shape_fold(whole) == 0)
    yield _fold("larger", "beyond", whole, largest(whole))
    if whole.calls.op[0] in _SEQUENCES:
        yield _fold("longer", "beyond", whole, whole.calls.n > np.quantile(whole.calls.n, 0.8))
    of_row = np.array([kind.partition("/")[0] for kind in thinned.kind])
    kinds, sizes = np.unique(of_row, return_counts=True)
    for kind, size in zip(kinds, sizes, strict=True):
        if len(kinds) > 1 and size >= FEWEST_ROWS:
            yield _fold(f"kind {kind}", "foreign", thinned, of_row == kind)
    publishers = np.array([source.partition(",")[0] for source in thinned.source])
    for source in np.unique(publishers):
        judged = measured_elsewhere(replace(thinned, source=publishers), str(source))
        fitted = publishers != source
        if FEWEST_ROWS <= judged.sum() <= fitted.sum():
            # Where the price depends on who runs the kernel, another source is another implementation.
            situation = "foreign" if thinned.op_class in ADDITIVE else "related"
            yield _fold(f"source {source}", situation, thinned, judged, fitted=fitted)
    families = default_fits().kernels.families
    devices, counts = np.unique(thinned.device, return_counts=True)
    for device, count in zip(devices, counts, strict=True):
        mine = thinned.device == device
        if count < FEWEST_ROWS or few_formats(thinned, mine, ~mine):
            continue
        kin = [d for d in devices if d != device and families.get(str(d), "") == families.get(str(device), "-")]
        situation = "related" if kin and not few_groups(thinned, mine) else "foreign"
        yield _fold(f"device {device}", situation, thinned, mine, few_shot=few_shot)


def own_folds(rows: TrainingRows, trained: Trained, most: int) -> Iterator[Fold]:
    """Our own random shapes: all of them by the lattice, and those kept out of every fit by the packaged model.

    Args:
        rows: All rows, those kept out among them.
        trained: The packaged model.
        most: Rows of one group that a model is fitted on.
    """
    drawn, kept = rows.source == DRAWN, kept_out(rows)
    if drawn.sum() >= FEWEST_ROWS:
        known = capped(rows.take(~drawn), most)
        # They reach beyond the lattice by up to five times.
        yield _judged("own random", "beyond", known, rows.take(drawn), train(known))
        yield _judged("own kept", "measured", rows.take(~kept), rows.take(kept), trained)


def measured_elsewhere(rows: TrainingRows, source: str) -> NDArray[np.bool_]:
    """(K,) rows of a source whose device and format other sources measured well."""
    keys = np.array(["/".join(words) for words in zip(rows.device, rows.format, strict=True)])
    others, counts = np.unique(keys[rows.source != source], return_counts=True)
    return np.asarray((rows.source == source) & np.isin(keys, others[counts >= FEWEST_ELSEWHERE]))


def few_groups(rows: TrainingRows, judged: NDArray[np.bool_]) -> bool:
    """Whether most judged rows have no row of the same kind on another device with the same chip left to fit on."""
    if rows.op_class not in ADDITIVE:
        return False
    families = default_fits().kernels.families
    keys = np.array([f"{families.get(d, d)}/{kind}" for d, kind in zip(rows.device, rows.kind, strict=True)])
    known, counts = np.unique(keys[~judged], return_counts=True)
    return bool(np.isin(keys[judged], known[counts >= FEWEST_ROWS]).mean() < 0.5)


def few_formats(rows: TrainingRows, judged: NDArray[np.bool_], fitted: NDArray[np.bool_]) -> bool:
    """Whether no format of the judged rows is left to fit on."""
    return not np.isin(np.unique(rows.format[judged]), np.unique(rows.format[fitted])).any()


def shape_fold(rows: TrainingRows, count: int = 5) -> NDArray[np.int64]:
    """(K,) which of ``count`` parts the shape of each row falls in: one shape, one part, on every device."""
    calls = rows.calls
    shape = np.stack([calls.m, calls.n, calls.k, calls.batch, calls.heads, calls.layout], axis=1)
    _, inverse = np.unique(shape, axis=0, return_inverse=True)
    part: NDArray[np.int64] = np.random.default_rng(SEED).integers(0, count, inverse.max() + 1)
    return np.take(part, inverse)


def largest(rows: TrainingRows, share: float = 0.2) -> NDArray[np.bool_]:
    """(K,) rows above the ``1 - share`` quantile of work among the long rows of their device, source and format."""
    work = np.where(rows.calls.flops > 0, rows.calls.flops, rows.calls.bytes)
    long = rows.time_s > RELEVANT_S
    found = np.zeros(len(rows), dtype=np.bool_)
    _, inverse = np.unique(rows.group, return_inverse=True)
    for number in range(inverse.max() + 1):
        mine = np.flatnonzero(inverse == number)
        judged = mine[long[mine]]
        if len(judged):
            found[mine] = work[mine] > np.quantile(work[judged], 1 - share)
    return found


def _fold(
    name: str, situation: str, rows: TrainingRows, judged: NDArray[np.bool_], *,
    fitted: NDArray[np.bool_] | None = None, few_shot: bool = False,
) -> Fold:  # fmt: skip
    known = rows.take(~judged if fitted is None else fitted)
    return _judged(name, situation, known, rows.take(judged), train(known), few_shot=few_shot)


def _judged(
    name: str, situation: str, known: TrainingRows, judged: TrainingRows, trained: Trained, *, few_shot: bool = False
) -> Fold:
    """Rows judged by a model of others; those in a format it does not know are left out."""
    part = judged.take(np.isin(judged.format, np.unique(known.format)))
    learned_s, reference_s = predicted_s(trained, part)
    calibrated = _few_shot(trained, part, 1.0 if situation == "related" else 0.5) if few_shot else None
    return Fold(
        name=name,
        situation=situation,
        rows=part,
        learned_s=learned_s,
        reference_s=reference_s,
        constant_s=_constant_s(known, part),
        few_shot=calibrated,
    )


@dataclass(frozen=True, slots=True)
class _FoldModel:
    """The prices of a fold's model, as calibration asks for them."""

    trained: Trained
    like: TrainingRows
    share: float

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        count = len(calls)
        empty = np.full(count, "", dtype="<U1")
        rows = TrainingRows(
            op_class=self.like.op_class, calls=calls, time_s=np.ones(count), device=np.full(count, device.name),
            source=empty, kind=empty,
        )  # fmt: skip
        learned_s, reference_s = predicted_s(self.trained, rows)
        time_s = learned_s**self.share * reference_s ** (1 - self.share)
        basis = np.full(count, int(Basis.LEARNED))
        outside = np.zeros(count, dtype=np.bool_)
        return Prediction(time_s=time_s, low_s=0.7 * time_s, high_s=1.4 * time_s, basis=basis, extrapolated=outside)


def _few_shot(trained: Trained, rows: TrainingRows, share: float) -> tuple[NDArray[np.bool_], Prediction]:
    device = default_catalog().device(str(rows.device[0]))
    spent = np.random.default_rng(SEED).permutation(len(rows))[: min(FEW_SHOT, len(rows) // 2)]
    model = _FoldModel(trained, rows, share)
    calibration = calibrate(model, take(rows.calls, spent), rows.time_s[spent], device)
    left = np.ones(len(rows), dtype=np.bool_)
    left[spent] = False
    corrected = CalibratedKernelModel(model, {device.name: calibration})
    return left, corrected.predict(take(rows.calls, left), device)


def roofline_s(rows: TrainingRows) -> FloatArray:
    """(K,) larger of arithmetic and memory time at the data sheet's peaks."""
    found = np.empty(len(rows))
    for device in np.unique(rows.device):
        spec = default_catalog().device(str(device))
        mine = np.flatnonzero(rows.device == device)
        calls = take(rows.calls, mine)
        peaks = np.array([spec.peak_flops_per_s.get(name, np.inf) for name in GEMM_FORMATS])[calls.gemm_format]
        arithmetic_s = np.where(calls.op == KernelOp.MEMORY, 0.0, calls.flops / peaks)
        found[mine] = np.maximum(arithmetic_s, calls.bytes / spec.memory_bandwidth_bytes_per_s)
    return found


def _constant_s(known: TrainingRows, part: TrainingRows) -> FloatArray:
    """(K,) the data sheet's roofline over one efficiency per format, the median of the known rows."""
    base, ratio = roofline_s(part), known.time_s / roofline_s(known)
    scale = np.ones(len(part))
    for name in np.unique(part.format):
        mine = (known.format == name) & (known.time_s > RELEVANT_S)
        if mine.any():
            scale[part.format == name] = float(np.median(ratio[mine]))
    return np.asarray(base * scale)


def best_shares(found: Sequence[Fold]) -> dict[str, float]:
    """By situation: share of the model in the blend that errs least, devices and formats counting alike.

    Inside the fitted domain the model stands alone.
    """
    shares = {"measured": 1.0}
    for situation in ("beyond", "related", "foreign"):
        mine = [fold for fold in found if fold.situation == situation]
        shares[situation] = _best_share(mine) if mine else min(shares.values())
    return shares


def _best_share(found: Sequence[Fold]) -> float:
    def error(share: float) -> float:
        per_group = []
        for fold in found:
            relative = np.abs(fold.blended_s(share) / fold.rows.time_s - 1)
            groups, long = fold.rows.group, fold.rows.time_s > RELEVANT_S
            per_group += [relative[long & (groups == name)].mean() for name in np.unique(groups[long])]
        return float(np.mean(np.minimum(per_group, 1.0)))  # one hopeless device does not decide

    return min(SHARES, key=error)


def spread_of(found: Sequence[Fold], shares: Mapping[str, float]) -> dict[str, Any]:
    """Quantiles of measured over predicted time by class of predicted time, groups counting alike."""
    ratio, place, weight = [], [], []
    for fold in found:
        predicted = fold.blended_s(shares[fold.situation])
        ratio.append(fold.rows.time_s / predicted)
        place.append(np.searchsorted(EDGES_S, predicted))
        _, inverse, counts = np.unique(fold.rows.group, return_inverse=True, return_counts=True)
        weight.append(1 / np.sqrt(counts[inverse]))
    if len(found) < FEW_FOLDS:
        # Of two cards or libraries that judge each other one looks slow and the other fast: the sign is chance.
        ratio, place, weight = [*ratio, *(1 / part for part in ratio)], 2 * place, 2 * weight
    values, places, weights = np.concatenate(ratio), np.concatenate(place), np.concatenate(weight)
    low, high = [], []
    for number in range(len(EDGES_S) + 1):
        mine = places == number
        if mine.sum() < FEWEST_ROWS:
            mine = np.ones(len(values), dtype=np.bool_)
        ends = weighted_quantiles(values[mine], weights[mine], _QUANTILES)
        low.append(significant(min(float(ends[0]), 1.0), 4))
        high.append(significant(max(float(ends[1]), 1.0), 4))
    return {"up_to_s": list(EDGES_S), "low_factor": low, "high_factor": high}


def weighted_quantiles(values: FloatArray, weights: FloatArray, shares: Sequence[float]) -> FloatArray:
    """The values below which those shares of the weight lie."""
    order = np.argsort(values)
    below = (np.cumsum(weights[order]) - 0.5 * weights[order]) / weights.sum()
    return np.asarray(np.interp(shares, below, values[order]))


def covered(time_s: FloatArray, predicted: FloatArray, spread: Mapping[str, Any]) -> float:
    """Share of measured times inside the interval of a spread."""
    place = np.searchsorted(EDGES_S, predicted)
    low, high = (np.array(spread[name])[place] for name in ("low_factor", "high_factor"))
    return float(np.mean((time_s >= predicted * low) & (time_s <= predicted * high)))


def report(found: Sequence[Fold], shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """One line per fold and format over kernels longer than 20 us: errors as fractions."""
    lines: list[dict[str, Any]] = []
    for fold in found:
        others = [other for other in found if other.situation == fold.situation and other is not fold]
        spread = spread_of(others or [fold], shares)
        predicted = fold.blended_s(shares[fold.situation])
        formats, long = format_classes(fold.rows.calls), fold.rows.time_s > RELEVANT_S
        for name in np.unique(formats[long]):
            mine = long & (formats == name)
            line = {
                "split": fold.name, "situation": fold.situation, "format": str(name), "rows": int(mine.sum()),
                **_errors(predicted[mine], fold.rows.time_s[mine]),
                "covered": covered(fold.rows.time_s[mine], predicted[mine], spread),
                "constant_roofline_mape": _errors(fold.constant_s[mine], fold.rows.time_s[mine])["mape"],
            }  # fmt: skip
            if fold.few_shot is not None:
                left, priced = fold.few_shot
                kept = mine[left]
                measured = fold.rows.time_s[left][kept]
                inside = (priced.low_s[kept] <= measured) & (measured <= priced.high_s[kept])
                line |= {
                    "few_shot_mape": _errors(priced.time_s[kept], measured)["mape"],
                    "few_shot_covered": float(inside.mean()),
                }
            lines.append({k: significant(v, 3) if isinstance(v, float) else v for k, v in line.items()})
    return lines


def _errors(predicted: FloatArray, measured: FloatArray) -> dict[str, float]:
    relative = predicted / measured - 1
    size = np.abs(relative)
    return {
        "mape": float(size.mean()),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
        "bias": float(relative.mean()),
    }
