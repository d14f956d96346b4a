"""What a learned kernel model is worth: errors and intervals on rows, shapes, sources and devices held out.

Splits, each with a model fitted without what it judges:

* ``random``: a fifth of the distinct shapes;
* ``larger``: of the kernels over 20 us of every device, source and format the fifth with the most work; ``large``: the
  fifth below it, by what is smaller still;
* ``kind``: a whole kernel library, or family of bandwidth-bound work;
* ``source``: a whole source whose device another source measured;
* ``own random``: our own timings of random shapes, by a fit that has seen our lattice; ``own kept``: those of them
  that no packaged model is fitted on, by the packaged model;
* ``device``: every row of one device, ``related`` when another device with its chip remains, else ``foreign``. Kernels
  that libraries tell apart are as their prices say: ``related`` where who runs them was timed on the generation,
  ``unmet`` where nowhere; relatives of fewer than fifty rows judge nothing. The same with a hundred of its kernels
  spent on calibration.

``learned_spreads`` says where the interval comes from that judges a fold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.fold_calibration import FewShot, few_shot_prices, part_of
from costmodels.calibration.kernel_ranges import RELEVANT_S
from costmodels.calibration.learned_fit import FEWEST_OF_DEVICE, Trained, grown, predicted_s, train
from costmodels.calibration.learned_spreads import Residuals, inside_by_others
from costmodels.calibration.op_identity import families, named_columns
from costmodels.calibration.own_rows import DRAWN, LATTICE, kept_out
from costmodels.calibration.robust import significant
from costmodels.calibration.training_rows import SEED, TrainingRows, capped
from costmodels.kernels.additive import ADDITIVE, added_s, unmet
from costmodels.kernels.booster import Booster
from costmodels.kernels.calls import FloatArray, KernelOp, take
from costmodels.kernels.device_reference import arithmetics
from costmodels.kernels.learned import format_classes, spread_groups
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.precision import GEMM_FORMATS

FEWEST_ROWS = 50  # of a device or source to be held out
FEWEST_ELSEWHERE = 500  # rows of a device and format that other sources must have for one to be held out
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SEQUENCES = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD, KernelOp.ATTENTION_DECODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One split's judged rows with their predictions.

    Attributes:
        name: Split, and which device or source.
        situation: Spread it belongs to: ``measured``, ``beyond``, ``related``, ``foreign`` or ``unmet``.
        rows: (K,) judged rows.
        learned_s, reference_s: (K,) seconds by the whole model and by its reference roofline.
        constant_s: (K,) seconds by a roofline with one efficiency per format, fitted on the same rows.
        named_s: (K,) seconds by trees that know operations by name, where those are held out.
        few_shot: By draw of what is spent on calibration: mask of the rows left, and their corrected prices; empty
            where not tried.
    """

    name: str
    situation: str
    rows: TrainingRows
    learned_s: FloatArray
    reference_s: FloatArray
    constant_s: FloatArray
    named_s: FloatArray | None = None
    few_shot: tuple[FewShot, ...] = ()

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
    most = largest(whole)
    yield _fold("larger", "beyond", whole, most)
    below = whole.take(~most)
    yield _fold("large", "beyond", below, largest(below, 0.25))
    if whole.calls.op[0] in _SEQUENCES:
        yield _fold("longer", "beyond", whole, whole.calls.n > np.quantile(whole.calls.n, 0.8))
    of_row = families(thinned)
    kinds, sizes = np.unique(of_row, return_counts=True)
    for kind, size in zip(kinds, sizes, strict=True):
        if len(kinds) > 1 and size >= FEWEST_ROWS:
            yield _fold(f"kind {kind}", "unmet", thinned, of_row == kind)
    publishers = np.array([source.partition(",")[0] for source in thinned.source])
    for source in np.unique(publishers):
        judged = measured_elsewhere(replace(thinned, source=publishers), str(source))
        fitted = publishers != source
        if FEWEST_ROWS <= judged.sum() <= fitted.sum():
            # Where the price depends on who runs the kernel, another source is another implementation.
            situation = "unmet" if thinned.op_class in ADDITIVE else "related"
            yield _fold(f"source {source}", situation, thinned, judged, fitted=fitted)
    chips = default_fits().kernels.families
    devices, counts = np.unique(thinned.device, return_counts=True)
    for device, count in zip(devices, counts, strict=True):
        mine = thinned.device == device
        if count < FEWEST_ROWS or few_formats(thinned, mine, ~mine):
            continue
        kin = [d for d in devices if d != device and chips.get(str(d), "") == chips.get(str(device), "-")]
        yield from _by_situation(f"device {device}", thinned, mine, known_of(thinned, kin), few_shot=few_shot)


def known_of(rows: TrainingRows, kin: Sequence[str]) -> NDArray[np.bool_]:
    """(K,) rows whose arithmetic was timed on a relative: what the model says of them rests on the same chip.

    Args:
        rows: All rows.
        kin: Other devices with the chip of the one that is judged.
    """
    arithmetic = arithmetics(rows.format)
    names, counts = np.unique(arithmetic[np.isin(rows.device, kin)], return_counts=True)
    return np.isin(arithmetic, names[counts >= FEWEST_OF_DEVICE])


def _by_situation(
    name: str, rows: TrainingRows, judged: NDArray[np.bool_], related: NDArray[np.bool_], *, few_shot: bool
) -> Iterator[Fold]:
    """The rows of a device by a model without it, apart for what they have in common with what it knows."""
    known = rows.take(~judged)
    trained = train(known)
    part = rows.take(judged)
    kept = np.isin(part.format, np.unique(known.format))
    part = part.take(kept)
    if rows.op_class in ADDITIVE:
        situations = _situations(trained, known, part)
    else:
        situations = np.where(related[judged][kept], "related", "foreign")
    share = dict(zip(part.format.tolist(), np.where(situations == "related", 1.0, 0.5).tolist(), strict=True))
    calibrated = few_shot_prices(trained, part, share) if few_shot else ()
    for situation in np.unique(situations[situations != ""]):
        mine = situations == situation
        fold = _judged(name, str(situation), known, part.take(mine), trained)
        yield replace(fold, few_shot=tuple(part_of(draw, mine) for draw in calibrated))


def _situations(trained: Trained, known: TrainingRows, part: TrainingRows) -> NDArray[np.str_]:
    """(K,) what a price says of each row of one device, ``AdditiveModel``; a few rows of one kind join most others.

    Empty where a relative was timed, but too little to say how prices of relatives err.
    """
    spec = default_catalog().device(str(part.device[0]))
    _, steps = added_s(part.op_class, part.calls, spec, trained.reference)
    found = np.where(unmet(part.op_class, steps), "unmet", np.where(steps == 0, "related", "foreign"))
    names, counts = np.unique(found, return_counts=True)
    few = np.isin(found, names[counts < FEWEST_ROWS])
    found = np.where(few, names[counts.argmax()], found)
    devices, rows = np.unique(known.device, return_counts=True)
    alike = [default_catalog().device(str(name)).architecture == spec.architecture for name in devices]
    if rows[alike].sum() < FEWEST_ROWS:
        found = np.where(found == "related", "", found)
    return found


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
    fitted: NDArray[np.bool_] | None = None,
) -> Fold:  # fmt: skip
    known = rows.take(~judged if fitted is None else fitted)
    return _judged(name, situation, known, rows.take(judged), train(known))


def _judged(name: str, situation: str, known: TrainingRows, judged: TrainingRows, trained: Trained) -> Fold:
    """Rows judged by a model of others; those in a format it does not know are left out."""
    part = judged.take(np.isin(judged.format, np.unique(known.format)))
    learned_s, reference_s = predicted_s(trained, part)
    return Fold(
        name=name,
        situation=situation,
        rows=part,
        learned_s=learned_s,
        reference_s=reference_s,
        constant_s=_constant_s(known, part),
        named_s=_named_s(known, part) if name.startswith("kind ") and part.op_class == "memory" else None,
    )


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


def _named_s(known: TrainingRows, part: TrainingRows) -> FloatArray:
    """(K,) what a model says that knows operations by name (``op_identity``)."""
    names = np.unique(families(known))
    matrix = named_columns(known, names)
    text = grown(
        matrix,
        np.log(known.time_s / roofline_s(known)),
        known.weights(),
        [f"c{column}" for column in range(matrix.shape[1])],
    )
    return np.asarray(roofline_s(part) * np.exp(Booster(text).predict(named_columns(part, names))))


def best_shares(found: Sequence[Fold]) -> dict[str, float]:
    """By situation: share of the model in the blend that errs least, devices and formats counting alike.

    Inside the fitted domain the model stands alone.
    """
    shares = {"measured": 1.0}
    for situation in ("beyond", "related", "foreign", "unmet"):
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


def residuals(fold: Fold, shares: Mapping[str, float]) -> Residuals:
    """What a fold shows of the errors of blended prices."""
    predicted_s = fold.blended_s(shares[fold.situation])
    _, inverse, counts = np.unique(fold.rows.group, return_inverse=True, return_counts=True)
    return Residuals(
        situation=fold.situation,
        ratio=fold.rows.time_s / predicted_s,
        predicted_s=predicted_s,
        group=spread_groups(fold.rows.op_class, fold.rows.calls),
        weight=1 / np.sqrt(counts[inverse]),
    )


def report(found: Sequence[Fold], shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """One line per fold and format over kernels longer than 20 us: errors as fractions.

    Of operations held out whole, our own timings have a line of their own too.
    """
    lines: list[dict[str, Any]] = []
    for fold in found:
        alike = [other for other in found if other.situation == fold.situation]
        held = inside_by_others(
            [residuals(other, shares) for other in alike], [shape_fold(o.rows, 2) for o in alike], alike.index(fold)
        )
        formats, long = format_classes(fold.rows.calls), fold.rows.time_s > RELEVANT_S
        ours = np.char.startswith(fold.rows.source, LATTICE)
        for name in np.unique(formats[long]):
            mine = long & (formats == name)
            lines.append(_line(fold, fold.name, shares, mine, held))
            if fold.named_s is not None and 0 < (mine & ours).sum() < mine.sum():
                lines.append(_line(fold, f"{fold.name}, ours", shares, mine & ours, held))
    return [{k: significant(v, 3) if isinstance(v, float) else v for k, v in line.items()} for line in lines]


def _line(
    fold: Fold, name: str, shares: Mapping[str, float], mine: NDArray[np.bool_], held: NDArray[np.bool_]
) -> dict[str, Any]:
    """Errors of some rows of a fold, all of one format.

    Args:
        fold: The fold.
        name: What the line is called.
        shares: Of the trees, by situation.
        mine: (K,) the rows.
        held: (K,) which rows lie inside their interval.
    """
    measured_s = fold.rows.time_s
    line = {
        "split": name, "situation": fold.situation, "format": str(format_classes(fold.rows.calls)[mine][0]),
        "rows": int(mine.sum()), **_errors(fold.blended_s(shares[fold.situation])[mine], measured_s[mine]),
        "covered": float(held[mine].mean()),
        "constant_roofline_mape": _errors(fold.constant_s[mine], measured_s[mine])["mape"],
    }  # fmt: skip
    if fold.named_s is not None:
        line["named_mape"] = _errors(fold.named_s[mine], measured_s[mine])["mape"]
    draws = [_after(draw, mine, measured_s) for draw in fold.few_shot]
    return line | {key: float(np.mean([draw[key] for draw in draws])) for key in (draws[0] if draws else ())}


def _after(calibrated: FewShot, mine: NDArray[np.bool_], measured_s: FloatArray) -> dict[str, float]:
    """Error and coverage of those rows of a fold that one draw has left."""
    left, priced = calibrated
    kept, measured_s = mine[left], measured_s[left][mine[left]]
    within = (priced.low_s[kept] <= measured_s) & (measured_s <= priced.high_s[kept])
    return {
        "few_shot_mape": _errors(priced.time_s[kept], measured_s)["mape"],
        "few_shot_covered": float(within.mean()),
    }


def _errors(predicted: FloatArray, measured: FloatArray) -> dict[str, float]:
    relative = predicted / measured - 1
    size = np.abs(relative)
    return {
        "mape": float(size.mean()),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
        "bias": float(relative.mean()),
    }
