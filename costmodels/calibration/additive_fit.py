"""Fits the coefficients of additive reference times, from coarse groups to fine.

Each group's coefficients are the non-negative ones that err least in log time, drawn towards those of the coarser
group it belongs to, term by term as strongly as a small share of the group's own rows would draw. A few rows thus
move little, and a term that a group's rows do not determine keeps the value of its relatives.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.robust import significant
from costmodels.calibration.training_rows import SEED, TrainingRows
from costmodels.kernels.additive import ADDITIVE, COEFFICIENTS, DEVICES
from costmodels.kernels.calls import FloatArray, IntArray, take
from costmodels.kernels.clocks import ClockLaw, law_of
from costmodels.kernels.device_features import device_format
from profiles.catalog import default_catalog
from profiles.learned import packaged_learned

DRAW = 0.02  # weight of the coarser group, as a share of the group's own rows
# By class and place in the path, where another weight was chosen: of bandwidth-bound work what families have in common
# is wanted, each family held out in turn. For every family the other ones choose this weight or the next to it.
_DRAWS: Mapping[str, Mapping[int, float]] = {"memory": {1: 0.1, 2: 1.0}}
FEWEST_ROWS = 8  # of a group with coefficients of its own
_MOST_ROWS = 8_000  # of a group; more do not move a dozen coefficients
_UNSEEN = 0.003  # share of each row's time that a term the rows do not show is taken to have, in the draw
_PRODUCTS = "gemm"  # class whose model holds the law of clocks
_ROUNDS = 6  # of reweighting; the errors settle after four
_ROBUST = 0.25  # log error beyond which a row weighs less


def fit_additive(rows: TrainingRows) -> dict[str, dict[str, dict[str, float]]]:
    """Coefficients of the terms by group, of which "" holds for all rows; and rows by format class and device.

    Terms that need the law of clocks rest on that of the packaged products' model, which the card repeats.
    """
    devices = {str(name): _counted(rows.device[rows.format == name]) for name in np.unique(rows.format)}
    law = law_of(packaged_learned()[_PRODUCTS].card.reference) if ADDITIVE[rows.op_class].clocked else None
    clocks = {} if law is None else law.as_reference()
    return {COEFFICIENTS: _fit_groups(rows, law), DEVICES: devices} | clocks


def _counted(names: NDArray[np.str_]) -> dict[str, float]:
    found, counts = np.unique(names, return_counts=True)
    return {str(name): float(count) for name, count in zip(found, counts, strict=True)}


def _fit_groups(rows: TrainingRows, law: ClockLaw | None) -> dict[str, dict[str, float]]:
    names, terms, levels = _taken_apart(rows, law)
    weights = rows.weights()
    every, draws = np.arange(len(rows)), _DRAWS.get(rows.op_class, {})
    found = {"": _solve(terms, rows.time_s, weights, every, None)}
    parents = np.full(len(rows), "", dtype="<U64")
    for level, keys in enumerate(levels):
        for key in np.unique(keys):
            mine = np.flatnonzero(keys == key)
            if len(mine) >= FEWEST_ROWS and key not in found:
                found[str(key)] = _solve(
                    terms, rows.time_s, weights, mine, _above(parents[mine], found), draws.get(level, DRAW)
                )
        parents = np.where(np.isin(keys, list(found)), keys, parents)
    return {
        key: {name: significant(float(value)) for name, value in zip(names, values, strict=True)}
        for key, values in sorted(found.items())
    }


def _above(parents: NDArray[np.str_], found: Mapping[str, FloatArray]) -> FloatArray:
    """(T,) coefficients of the coarser groups that a group's rows belong to, as many times as rows do."""
    names, counts = np.unique(parents, return_counts=True)
    if len(names) == 1:
        return found[str(names[0])]
    return np.asarray(np.average([found[str(name)] for name in names], axis=0, weights=counts))


def _taken_apart(rows: TrainingRows, law: ClockLaw | None) -> tuple[list[str], FloatArray, list[NDArray[np.str_]]]:
    """Names of the terms, the (K, T) terms, and the groups of every row from coarse to fine."""
    kind = ADDITIVE[rows.op_class]
    names: list[str] = []
    table, levels = np.empty((0, 0)), []
    for device in np.unique(rows.device):
        mine = np.flatnonzero(rows.device == device)
        calls = take(rows.calls, mine)
        described = device_format(calls, default_catalog().device(str(device)), law)
        terms, paths = kind.terms(calls, described), kind.paths(calls, described)
        if not names:
            names = list(terms)
            table = np.empty((len(rows), len(names)))
            levels = [np.empty(len(rows), dtype="<U64") for _ in paths]
        table[mine] = np.stack([terms[name] for name in names], axis=1)
        for level, keys in zip(levels, paths, strict=True):
            level[mine] = keys
    return names, table, levels


def _solve(
    terms: FloatArray,
    time_s: FloatArray,
    weights: FloatArray,
    rows: IntArray,
    parent: FloatArray | None,
    draw: float = DRAW,
) -> FloatArray:
    """(T,) coefficients of one group: least squares in relative time, reweighted towards log time without outliers."""
    from scipy.optimize import nnls

    if len(rows) > _MOST_ROWS:
        rows = np.random.default_rng(SEED).permutation(rows)[:_MOST_ROWS]
    part, measured = terms[rows], time_s[rows]
    scale, weight = 1 / measured, np.sqrt(weights[rows])
    values = np.zeros(terms.shape[1])
    for _ in range(_ROUNDS):
        matrix, target = part * (weight * scale)[:, None], measured * weight * scale
        if parent is not None:
            determined = (matrix**2).sum(axis=0)
            strength = np.sqrt(draw * (determined + _UNSEEN * (weight**2).sum()))
            matrix, target = np.vstack([matrix, np.diag(strength)]), np.concatenate([target, strength * parent])
        values = nnls(matrix, target, maxiter=1000)[0]
        priced = np.maximum(part @ values, 1e-9)
        error = np.abs(np.log(priced / measured))
        scale = 1 / np.sqrt(priced * measured)
        weight = np.sqrt(weights[rows] * np.minimum(1.0, _ROBUST / np.maximum(error, 1e-9)))
    if parent is None:
        values[~part.any(axis=0)] = 1.0
    return np.asarray(values, dtype=np.float64)
