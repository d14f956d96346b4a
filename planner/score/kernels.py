"""Scores tables of kernels: prices every row that has calls on a known device."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.arrays import alike
from costmodels.calibration.few_shot import calibrate
from costmodels.calibration.informative import informative
from costmodels.kernels.calibrated import FEWEST_POINTS, CalibratedKernelModel
from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, KernelCostModel, KernelOp, take
from costmodels.kernels.device_features import BLOCK_SCALING, GENERATIONS
from costmodels.tables.rows import LAUNCH_RANGE, KernelRows
from planner.score.results import GroupScore, Unpriced, basis_shares
from planner.validate.metrics import error_summary
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS, find_recipe

LONG_S = 20e-6  # kernels a training step is made of; shorter ones are timed no better than their launch
_MOST_LOOKED_AT = 20_000  # rows of a GPU from which those to spend are chosen
_MX_BLOCK = find_recipe("mxfp8").scale_block
_ADD_A_DEVICE = "add it as YAML in a directory of PLANNER_CATALOG (README, Add a GPU or a model)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShot:
    """How many rows of each GPU are spent on calibration before the others are scored, and the seed of their choice.

    They are the most informative ones, as ``planner profiles collect`` would measure them; of no operation and format
    more than half. Of a GPU with next to no rows, none are spent.
    """

    rows: int
    seed: int = 0


def score_kernels(
    rows: KernelRows, kernels: KernelCostModel, catalog: Catalog, *, few_shot: FewShot | None = None
) -> tuple[list[GroupScore], list[Unpriced]]:
    """Errors and unpriced rows of a table, by GPU, operation and dtype."""
    groups: list[GroupScore] = []
    unpriced: list[Unpriced] = []
    for (gpu, op, dtype, code), chosen in _grouped(rows, np.flatnonzero(rows.problem.codes > 0)):
        reason = rows.problem.values[code]
        unpriced.append(Unpriced(gpu=gpu, op=op, dtype=dtype, rows=len(chosen), reason=reason))
    devices: dict[str, DeviceSpec] = {}
    priceable: dict[str, list[tuple[str, str, NDArray[np.int64]]]] = {}
    for (gpu, op, dtype, _), chosen in _grouped(rows, np.flatnonzero(rows.problem.codes == 0)):
        try:
            devices[gpu] = catalog.device(gpu, field="gpu")
            _check_formats(rows.take(chosen).calls, devices[gpu])
        except SpecError as error:
            hint = f"; {_ADD_A_DEVICE}" if error.field == "gpu" else ""
            reason = f"{error.problem}{hint}"
            unpriced.append(Unpriced(gpu=gpu, op=op, dtype=dtype, rows=len(chosen), reason=reason))
            continue
        priceable.setdefault(gpu, []).append((op, dtype, chosen))
    for gpu, parts in priceable.items():
        every = np.concatenate([chosen for _, _, chosen in parts])
        drawn = _spent(rows, every, few_shot, kernels, devices[gpu])
        model = _calibrated(rows.take(drawn), kernels, devices[gpu]) if len(drawn) else kernels
        spent = np.zeros(len(rows), dtype=np.bool_)
        spent[drawn] = True
        for op, dtype, chosen in parts:
            left = chosen[~spent[chosen]]
            if len(left):
                group = _score(rows.take(left), model, devices[gpu], gpu=gpu, op=op, dtype=dtype)
                groups.append(replace(group, calibrated_with=len(drawn)))
    return groups, unpriced


def price_rows(
    rows: KernelRows, kernels: KernelCostModel, device: DeviceSpec
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
    """(K,) seconds, both ends of the interval, and weakest basis of rows of one device.

    The sums of their calls, and the host's launch where the source times it too.
    """
    priced = kernels.predict(rows.calls, device)
    sums = rows.launch_s * np.array([[1.0], [LAUNCH_RANGE[0]], [LAUNCH_RANGE[1]]])
    for total, part in zip(sums, (priced.time_s, priced.low_s, priced.high_s), strict=True):
        np.add.at(total, rows.row, part)
    basis = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(basis, rows.row, priced.basis)
    return sums[0], sums[1], sums[2], basis


def _spent(
    rows: KernelRows, chosen: IntArray, few_shot: FewShot | None, kernels: KernelCostModel, device: DeviceSpec
) -> IntArray:
    """Which of a GPU's rows are spent on calibration."""
    count = 0 if few_shot is None else min(few_shot.rows, len(chosen) // 2)
    if few_shot is None or count < FEWEST_POINTS:
        return np.zeros(0, dtype=np.int64)
    looked_at = np.sort(np.random.default_rng(few_shot.seed).permutation(chosen)[:_MOST_LOOKED_AT])
    part = rows.take(looked_at)
    priced_s = kernels.predict(part.calls, device).time_s
    longest = _longest(part, priced_s)
    whole_s = np.bincount(part.row, weights=priced_s, minlength=len(part)).astype(np.float64)
    wanted = informative(take(part.calls, longest), whole_s[part.row[longest]], count, few_shot.seed)
    return np.sort(looked_at[part.row[longest][wanted]])


def _longest(part: KernelRows, priced_s: FloatArray) -> IntArray:
    """The call of each row, in the order of rows, that takes longest."""
    order = np.lexsort((-priced_s, part.row))
    return np.asarray(order[np.unique(part.row[order], return_index=True)[1]], dtype=np.int64)


def _calibrated(part: KernelRows, kernels: KernelCostModel, device: DeviceSpec) -> KernelCostModel:
    """The prices corrected on some rows of one device.

    A row of several calls corrects the one that takes longest, by the ratio of the whole row.
    """
    priced_s = kernels.predict(part.calls, device).time_s
    whole_s = np.bincount(part.row, weights=priced_s, minlength=len(part))
    longest = _longest(part, priced_s)
    # A launch is never more than half of a row's time, however short that is.
    ratio = np.maximum(part.time_s - part.launch_s, part.time_s / 2) / whole_s
    calibration = calibrate(kernels, take(part.calls, longest), priced_s[longest] * ratio[part.row[longest]], device)
    return CalibratedKernelModel(kernels, {device.name: calibration})


def _score(
    rows: KernelRows, kernels: KernelCostModel, device: DeviceSpec, *, gpu: str, op: str, dtype: str
) -> GroupScore:
    time_s, low_s, high_s, basis = price_rows(rows, kernels, device)
    errors = error_summary(time_s, rows.time_s, low=low_s, high=high_s)
    if errors is None:
        raise ValueError("a group has at least one row")
    long = rows.time_s > LONG_S
    return GroupScore(
        gpu=gpu,
        device=device.name,
        op=op,
        dtype=dtype,
        errors=errors,
        long_errors=error_summary(time_s[long], rows.time_s[long], low=low_s[long], high=high_s[long]),
        basis=basis_shares(basis),
    )


def _check_formats(calls: KernelCallBatch, device: DeviceSpec) -> None:
    """Raise what the device says of a format it cannot multiply in."""
    multiplied = take(calls, calls.op != KernelOp.MEMORY)
    for code in np.unique(multiplied.gemm_format):
        device.peak(GEMM_FORMATS[code])
    without = device.architecture in GENERATIONS and device.architecture not in BLOCK_SCALING
    if without and (multiplied.scale_block == _MX_BLOCK).any():
        raise SpecError("job.precision", f"{device.name} has no mxfp8 arithmetic", "fp8, fp8_block or bf16")


def _grouped(rows: KernelRows, chosen: IntArray) -> Iterable[tuple[tuple[str, str, str, int], NDArray[np.int64]]]:
    """GPU, operation, dtype and problem code of every group of the chosen rows, and the group's rows."""
    words = (rows.gpu, rows.op, rows.dtype)
    columns = np.stack([*(column.codes for column in words), rows.problem.codes])[:, chosen]
    found = []
    for key, places in alike(columns):
        gpu, op, dtype = (column.values[code] for column, code in zip(words, key[:3].tolist(), strict=True))
        found.append(((gpu, op, dtype, int(key[3])), chosen[places]))
    return sorted(found, key=lambda item: item[0])
