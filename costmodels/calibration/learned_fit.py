"""Fits one learned kernel model on training rows: reference roofline, trees, and where the rows lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.calibration.additive_fit import fit_additive
from costmodels.calibration.clock_fit import fit_clock_law
from costmodels.calibration.kernel_fit import fit_on
from costmodels.calibration.kernel_ranges import NUISANCES
from costmodels.calibration.robust import PRIOR_ROWS, significant, split
from costmodels.calibration.training_rows import SEED, TrainingRows
from costmodels.kernels.additive import ADDITIVE, DEVICES, added_s
from costmodels.kernels.booster import Booster
from costmodels.kernels.calls import FloatArray, take
from costmodels.kernels.clocks import ClockLaw, sustained_share
from costmodels.kernels.device_features import BLOCK_SCALING
from costmodels.kernels.device_reference import POOLED, SCALING, arithmetics, device_reference
from costmodels.kernels.features import features_of
from costmodels.kernels.implementations import is_bare
from costmodels.kernels.learned import BLOCK_SCALED, formula_s
from costmodels.tables.gemm_rows import TUNED_SOURCE
from profiles.catalog import default_catalog
from profiles.fits import default_fits

POOLED_ROWS, DEVICE_ROWS = 3000, 1500  # more do not move a handful of parameters
FEWEST_OF_DEVICE = 20  # rows from which a device has parameters of its own, which lean on the pooled ones
# Rows that the pooled parameters count for in those of a device, which serve its relatives and their shapes too.
LEANING_ROWS = 100.0
FEWEST_FOR_CLOCKS = 10  # from which what its largest products reach says how much of its peak it holds
# Of products with a scale per block, even where they multiply as others do: what quantises the input along.
_OF_BLOCKS = ("floor_s", "quantise_floor_s", "quantise_rate", "quantise_bytes")
# What a parameter is near where rows leave it open: a slice of the last-level cache gives 64 bytes per clock (NVIDIA
# A100 whitepaper), and what H100, L40S and B200 show is as much into each multiprocessor, at 1.8 GHz.
_USUAL = {"stream_rate": 1.17e11}
_ARITHMETIC = (
    "max_efficiency", "k_half", "tile_exponent", "wave_quantisation",
    "quantise_floor_s", "quantise_rate", "quantise_bytes",
)  # fmt: skip

References = Mapping[str, Mapping[str, Mapping[str, float]]]

# Modest trees, one thread, fixed seeds: the same rows give the same file. Chosen on the random and the
# larger-shapes splits, where 63 leaves lose 0.5 points and twice the trees gain 0.2.
PARAMETERS: Mapping[str, Any] = {
    "objective": "regression",
    "num_leaves": 127,
    "learning_rate": 0.08,
    "min_data_in_leaf": 40,
    "lambda_l2": 5.0,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "max_bin": 255,
    "seed": SEED % 10_000,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A fitted model before its spread is known.

    Attributes:
        features: Names of the columns.
        reference: By arithmetic and device: parameters of the reference roofline; ``*`` pools all devices.
        ranges: By format class: (F, 2) lowest and highest value of each feature.
        text: The trees.
    """

    features: tuple[str, ...]
    reference: References
    ranges: Mapping[str, FloatArray]
    text: str


def train(rows: TrainingRows, *, rounds: int = ROUNDS) -> Trained:
    """A model of one operation class from its rows."""
    reference = fit_reference(rows)
    columns = feature_columns(rows)
    matrix = np.stack(list(columns.values()), axis=1)
    target = np.log(rows.time_s / reference_times_s(rows, reference))
    classes = rows.format
    return Trained(
        features=tuple(columns),
        reference=reference,
        ranges={
            str(f): np.stack([matrix[classes == f].min(axis=0), matrix[classes == f].max(axis=0)], axis=1)
            for f in np.unique(classes)
        },
        text=grown(matrix, target, rows.weights(), list(columns), rounds=rounds),
    )


def grown(
    matrix: FloatArray, target: FloatArray, weights: FloatArray, names: list[str], *, rounds: int = ROUNDS
) -> str:
    """The text of boosted trees that map (K, F) columns of those names to (K,) targets."""
    import lightgbm

    data = lightgbm.Dataset(matrix, target, weight=weights, feature_name=names, free_raw_data=False)
    return slimmed(lightgbm.train(dict(PARAMETERS), data, rounds).model_to_string())


def fit_reference(rows: TrainingRows) -> dict[str, dict[str, dict[str, float]]]:
    """By arithmetic: parameters of the roofline formula of all devices pooled, and of each that leans on them.

    Products that quantise their input and those that do not share what multiplies them. Kernels tuned per shape
    (``aiter-tuned``) are a lower envelope without quantisation; they count for their own device only. Classes whose
    reference is added up have coefficients by group instead.
    """
    if rows.op_class in ADDITIVE:
        return fit_additive(rows)
    found: dict[str, dict[str, dict[str, float]]] = {}
    law = _clock_law(rows) if rows.op_class == "gemm" else None
    arithmetic = arithmetics(rows.format)
    for name in np.unique(arithmetic):
        mine = rows.take(arithmetic == name)
        found[str(name)] = _of_arithmetic(mine, str(name), law)
        found |= _bare_references(mine, found[str(name)])
    if law is not None:
        found |= law.as_reference()
        blocks = rows.device[(arithmetic == "fp8" + BLOCK_SCALED) & (rows.source != TUNED_SOURCE)]
        _lean_blocks(found, sum(not _scales(str(device)) for device in np.unique(blocks)))
    return found | {DEVICES: devices_by_format(rows)}


def _of_arithmetic(
    rows: TrainingRows,
    name: str,
    law: ClockLaw | None,
    *,
    fewest: int = FEWEST_OF_DEVICE,
    leaning: float = LEANING_ROWS,
) -> dict[str, dict[str, float]]:
    """Parameters of one arithmetic: pooled, and of each device with enough rows.

    Devices that apply the scales of blocks themselves are pooled apart.
    """
    known = _of_single_products(rows.op_class, name)
    timings = rows.timings()
    devices = [str(device) for device in np.unique(rows.device)]
    held = {d: 1.0 if law is None else sustained_share(default_catalog().device(d), law) for d in devices}
    scaling = np.isin(rows.device, [d for d in devices if _scales(d)]) & name.endswith(BLOCK_SCALED)
    found: dict[str, dict[str, float]] = {}
    pooled: dict[str, dict[str, float]] = {}
    for label, mine in ((POOLED, ~scaling), (SCALING, scaling)):
        tuned = mine & (rows.source == TUNED_SOURCE)
        common = timings.where(mine if (tuned == mine).all() else mine & ~tuned)
        if len(common):
            fitted, _ = split(len(common), most=POOLED_ROWS)
            pooled[label] = fit_on(common, fitted, _USUAL, known=known, held=held)
            found[label] = _kept(pooled[label])
    for device in devices:
        own = timings.where(timings.device == device)
        if len(own) >= fewest:
            prior = dict(pooled[SCALING if scaling[rows.device == device].any() else POOLED])
            prior["max_efficiency"] *= held[device]
            fitted, _ = split(len(own), most=DEVICE_ROWS)
            found[device] = _kept(prior | fit_on(own, fitted, prior, known=known, prior_rows=leaning))
    return found


def _clock_law(rows: TrainingRows) -> ClockLaw | None:
    """What share of their peaks devices hold, from what they reach in 16 bits or fp8."""
    reached: dict[str, float] = {}
    for name in ("16-bit", "fp8"):
        mine = rows.take(arithmetics(rows.format) == name)
        found = _of_arithmetic(mine, name, None, fewest=FEWEST_FOR_CLOCKS, leaning=PRIOR_ROWS) if len(mine) else {}
        for device, parameters in found.items():
            if not device.startswith(POOLED):
                reached[device] = max(reached.get(device, 0.0), parameters["max_efficiency"])
    return fit_clock_law(reached)


def _lean_blocks(found: dict[str, dict[str, dict[str, float]]], devices: int) -> None:
    """Products with a scale per block lean on those without, of the same multipliers.

    Of devices that rescale partial sums the few that were timed differ by twice in what they reach: products without
    blocks count as one device more. One that applies the scales itself multiplies as without, if none was timed.

    Args:
        found: By arithmetic; changed in place.
        devices: That rescale and were timed.
    """
    blocks, plain = found.get("fp8" + BLOCK_SCALED, {}), found.get("fp8", {})
    if POOLED not in blocks or POOLED not in plain:
        return
    if SCALING not in blocks:
        blocks[SCALING] = plain[POOLED] | {name: blocks[POOLED][name] for name in _OF_BLOCKS if name in blocks[POOLED]}
    reached, without = blocks[POOLED]["max_efficiency"], plain[POOLED]["max_efficiency"]
    joint = float(np.exp((devices * np.log(reached) + np.log(without)) / (devices + 1)))
    blocks[POOLED] = blocks[POOLED] | {"max_efficiency": significant(joint)}


def _scales(device: str) -> bool:
    return default_catalog().device(device).architecture in BLOCK_SCALING


def _bare_references(
    rows: TrainingRows, joint: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Likewise by format class, of devices whose rows of one arithmetic are of both kinds: of those without quantising.

    They lean on the device's rows together, most of which are of few rows of input and quantise it.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    bare = is_bare(rows.calls)
    for device in np.unique(rows.device[bare]):
        mine = rows.device == device
        if str(device) in joint and (mine & ~bare).any() and (mine & bare).sum() >= FEWEST_OF_DEVICE:
            part = rows.take(mine & bare)
            fitted, _ = split(len(part), most=DEVICE_ROWS)
            prior = joint[str(device)]
            kept = _kept(dict(prior) | fit_on(part.timings(), fitted, prior))
            found.setdefault(str(part.format[0]), {})[str(device)] = kept
    return found


def devices_by_format(rows: TrainingRows) -> dict[str, dict[str, float]]:
    """By format class: devices with rows in it, and how many."""
    names, counts = np.unique(np.stack([rows.format, rows.device], axis=1), axis=0, return_counts=True)
    found: dict[str, dict[str, float]] = {}
    for (form, device), count in zip(names.tolist(), counts.tolist(), strict=True):
        if count >= FEWEST_OF_DEVICE:
            found.setdefault(form, {})[device] = float(count)
    return found


def _of_single_products(op_class: str, format_class: str) -> Mapping[str, float]:
    """What the products in fused expert layers have from single ones: the rate of their arithmetic.

    An expert sees so few rows in most of the timings that memory and launches hide it: a free fit says a third of what
    large groups reach.
    """
    kernels = default_fits().kernels
    if op_class != "grouped_gemm" or not kernels.knows("gemm", format_class):
        return {}
    single = kernels.resolve("gemm", format_class, device="", architecture="").parameters
    return {name: single[name] for name in _ARITHMETIC if name in single}


def _kept(parameters: Mapping[str, float]) -> dict[str, float]:
    return {name: significant(value) for name, value in sorted(parameters.items()) if name not in NUISANCES}


def feature_columns(rows: TrainingRows) -> dict[str, FloatArray]:
    """Named features of rows on several devices."""
    columns: dict[str, FloatArray] = {}
    for device in np.unique(rows.device):
        mine = np.flatnonzero(rows.device == device)
        spec = default_catalog().device(str(device))
        for name, values in features_of(rows.op_class, take(rows.calls, mine), spec).items():
            columns.setdefault(name, np.empty(len(rows)))[mine] = values
    return columns


def reference_times_s(rows: TrainingRows, reference: References) -> FloatArray:
    """(K,) seconds of the reference roofline for rows on several devices."""
    seconds, classes, families = np.empty(len(rows)), rows.format, default_fits().kernels.families
    for device in np.unique(rows.device):
        spec = default_catalog().device(str(device))
        if rows.op_class in ADDITIVE:
            mine = np.flatnonzero(rows.device == device)
            seconds[mine], _ = added_s(rows.op_class, take(rows.calls, mine), spec, reference)
            continue
        for name in np.unique(classes[rows.device == device]):
            mine = np.flatnonzero((rows.device == device) & (classes == name))
            parameters, _ = device_reference(reference, str(name), spec, families)
            seconds[mine] = formula_s(rows.op_class, take(rows.calls, mine), spec, parameters)
    return seconds


def predicted_s(trained: Trained, rows: TrainingRows) -> tuple[FloatArray, FloatArray]:
    """(K,) seconds by the model, and by its reference alone."""
    base = reference_times_s(rows, trained.reference)
    columns = feature_columns(rows)
    correction = Booster(trained.text).predict(np.stack([columns[name] for name in trained.features], axis=1))
    return np.asarray(base * np.exp(correction), dtype=np.float64), base


# Lines of a tree that evaluation does not read, and which LightGBM fills with zeros when they are absent.
_STATISTICS = ("split_gain=", "leaf_weight=", "leaf_count=", "internal_value=", "internal_weight=", "internal_count=")


# Digits kept: a leaf is a correction of some per cent, a threshold lies between two values of a feature.
_DIGITS = {"leaf_value": 5, "threshold": 9}


def _rounded(line: str) -> str:
    name, _, values = line.partition("=")
    digits = _DIGITS.get(name)
    return line if digits is None else f"{name}=" + " ".join(f"{float(v):.{digits}g}" for v in values.split())


def slimmed(text: str) -> str:
    """A LightGBM model without what evaluation does not need: statistics of the fit, its settings, and digits.

    The header counts the bytes of each tree, so they are counted again.
    """
    head, *trees = text.partition("end of trees")[0].split("Tree=")
    kept = [
        "Tree="
        + "\n".join(_rounded(line) for line in tree.rstrip("\n").split("\n") if not line.startswith(_STATISTICS))
        + "\n\n\n"
        for tree in trees
    ]
    sizes = "tree_sizes=" + " ".join(str(len(tree)) for tree in kept)
    lines = [sizes if line.startswith("tree_sizes=") else line for line in head.split("\n")]
    return "\n".join(lines) + "".join(kept) + "end of trees\n"
