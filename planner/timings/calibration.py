"""Calibrates the kernel prices of a device with measurements of it, and says what that changed on rows left out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.calibration.few_shot import calibrate
from costmodels.kernels.calibrated import FEWEST_POINTS, CalibratedKernelModel, Calibration
from costmodels.kernels.calls import KernelCallBatch, KernelCostModel, take
from costmodels.kernels.measured import calls_of, measured_rows
from planner.prices.price_lists import default_kernel_model, prices_version
from planner.schema_types import SCHEMA_VERSION
from planner.timings.admission import Checked, admit
from planner.validate.metrics import ErrorSummary, error_summary
from profiles.calibrations import calibration_path, write_calibration
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.timing_ops import KERNEL
from profiles.timing_store import Merged, TimingStore, groups
from profiles.timings import FloatArray, IntArray, TextArray, TimingTable, joined

HELD_OUT = 0.2  # of the measured kernels, to show what calibration does to kernels it has not seen
_FEWEST = 2 * FEWEST_POINTS
_SEED = 0
_WITHOUT_HOST = ("events", "graph", "profiler")  # methods of kernels timed without the host's launches
FARTHEST = 100.0  # times its price: no correction, but a mistaken unit, which is a factor of a thousand
_FORMATS = {"fp8_block": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}  # dtypes whose peak has another name
MOST_ROWS = 300  # more kernels correct little more and the correction costs their cube

# The smallest entry of ``devices/*.yaml`` that will do.
_ENTRY = """{name}:
  vendor: nvidia
  architecture: hopper            # or ada, ampere, blackwell, cdna3, ...: whose fitted prices are corrected
  peak_tflops: {{fp32: 60, bf16: 800}}   # dense, from the data sheet; every format you train in
  memory_gib: 96
  usable_memory_gib: 94           # what the driver reports as total
  memory_bandwidth_gb_per_s: 3900
  num_sms: 120
  l2_mib: 50
  power_w: 600
  sources: {{default: "vendor's data sheet"}}"""
# The machine it comes in, without which no cluster of it can be named: an entry of ``nodes.yaml``.
_NODE = """{name}-node:
  device: {name}
  devices_per_node: 8
  scale_up: nvlink4               # or pcie5, pcie5-no-p2p, ...: profiles/data/links.yaml
  nic: ib-ndr-400
  nics_per_node: 8
  host_link: pcie5
  host_memory_gib: 2048
  source: vendor's data sheet"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """Errors on left-out rows of one operation and dtype, before and after."""

    op: str
    dtype: str
    before: ErrorSummary
    after: ErrorSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What calibrating a device did.

    Attributes:
        device: Its catalogue name.
        rows: Measured kernels it rests on.
        held_out: How many of them were left out to show its effect.
        before, after: Errors on those.
        corrected: Whether prices of any operation and format are corrected: not of those whose errors on kernels left
            out that makes larger.
        groups: The same by operation and dtype.
        files: What was written.
        merged: What became of the rows in the store; None when they were there already.
    """

    device: str
    rows: int
    held_out: int
    before: ErrorSummary
    after: ErrorSummary
    corrected: bool
    groups: tuple[GroupChange, ...]
    files: tuple[Path, ...]
    merged: Merged | None


def device_to_calibrate(catalog: Catalog, name: str) -> DeviceSpec:
    """The device of that name.

    Raises:
        SpecError: If the catalogue has none; the hint is the data sheet to write.
    """
    try:
        return catalog.device(name, field="--device")
    except SpecError as error:
        entry, node = _ENTRY.format(name=name[:60]), _NODE.format(name=name[:60])
        hint = (
            f"{error.hint} If it is new, put its data sheet into DIRECTORY/devices/{name[:60]}.yaml and set"
            f" PLANNER_CATALOG=DIRECTORY:\n\n{entry}\n\n"
            f"and its machine into DIRECTORY/nodes.yaml, for --gpus 8x{name[:60]}:\n\n{node}\n"
        )
        raise SpecError("--device", error.problem, hint) from None


def calibrate_device(device: DeviceSpec, checked: Sequence[Checked], store: TimingStore) -> Calibrated:
    """Store measurements of a device and a calibration of its prices made with everything of the user's own.

    Rows that come with the package are in the prices already: beside them a user's own would hardly count.

    Args:
        device: In the catalogue.
        checked: Files of measurements; none to calibrate again with what is stored.
        store: Where to.

    Raises:
        SpecError: If there are too few kernels of the device, nowhere to store them, or times are in another unit.
    """
    directory = store.own_directory
    for item in checked:
        check_level(_of_device(item.accepted, device), device, where=str(item.path)[:200])
    own = store.own().table(device.name)
    _check_enough(joined([own, *(item.accepted for item in checked)]), device)  # before anything is stored
    merged = admit(checked, store) if checked else None
    rows = measured_rows(store.own().table(device.name))
    check_level(rows, device, where=f"timings stored of {device.name}")
    base, calls = default_kernel_model(), calls_of(rows)
    held_out = _left_out(len(rows))
    changes, before, after = _effect(base, calls, rows, device, held_out)
    files = () if merged is None else merged.files
    chosen = spread_out(rows)
    calibration = calibrate(base, take(calls, chosen), rows.time_s[chosen], device)
    corrected = not calibration.kept.issuperset(calibration.places.group.tolist())
    if corrected:
        files = (*files, write_calibration(directory, device.name, _document(calibration, len(rows))))
    else:
        calibration_path(directory, device.name).unlink(missing_ok=True)
    return Calibrated(
        device=device.name,
        rows=len(rows),
        held_out=len(held_out),
        before=before,
        after=after,
        corrected=corrected,
        groups=changes,
        files=files,
        merged=merged,
    )


def _document(calibration: Calibration, rows: int) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "device": calibration.device,
        "prices": prices_version(),
        "rows": rows,
        "calibration": calibration.to_document(),
    }


def _check_formats(rows: TimingTable, device: DeviceSpec) -> None:
    """Refuse arithmetic that the data sheet does not list, before a price is asked for."""
    for dtype in sorted(set(rows.dtype[rows.k > 0].tolist())):
        if not _has_peak(dtype, device):
            form = _FORMATS.get(dtype, dtype)
            raise SpecError(
                "--from",
                f"holds {dtype} kernels, but {device.name} has no {form} peak",
                f"add {form} to its peak_tflops",
            )


def _check_enough(table: TimingTable, device: DeviceSpec) -> None:
    """Refuse measurements of which too few are of the device, in formats it has, and timed as plans need them.

    Raises:
        SpecError: With how many there are, or what they do not say.
    """
    rows = _of_device(table, device)
    _check_formats(rows, device)
    if len(rows) >= _FEWEST:
        return
    problem = f"needs at least {_FEWEST} kernels of {device.name} that you measured; {len(rows)} are usable"
    untold = int(np.sum((table.device == device.name) & (table.kind == KERNEL) & (table.method == "unknown")))
    hint = (
        f"{untold:,} more do not say how they were timed: add --method {' or '.join(_WITHOUT_HOST)}, which it was"
        if untold
        else "kernels in a format plans use, timed without the host; 'planner profiles collect' measures a hundred"
    )
    raise SpecError("--from", problem, hint)


def _of_device(rows: TimingTable, device: DeviceSpec) -> TimingTable:
    return measured_rows(rows.take(np.asarray(rows.device == device.name, dtype=np.bool_)))


def check_level(rows: TimingTable, device: DeviceSpec, *, where: str) -> None:
    """Refuse kernels that take so many times their price, or so small a part, that it must be the unit.

    Where the hardware bounds them ``profiles.timing_audit.check_unit`` says so first; this holds of what stays in a
    cache, too.

    Raises:
        SpecError: If the median of an operation and dtype lies a factor of ``FARTHEST`` from its price.
    """
    rows = rows.take(
        np.array([_has_peak(word, device) for word in rows.dtype.tolist()], dtype=np.bool_) | (rows.k == 0)
    )
    if not len(rows):
        return
    ratio = rows.time_s / default_kernel_model().predict(calls_of(rows), device).time_s
    group = groups(rows, ("op", "dtype"))
    for number in np.unique(group):
        mine = np.flatnonzero(group == number)
        middle = float(np.median(ratio[mine]))
        if len(mine) >= FEWEST_POINTS and not 1 / FARTHEST < middle < FARTHEST:
            name = f"{rows.op[mine[0]]} {rows.dtype[mine[0]]}".strip()
            problem = f"{len(mine):,} rows of {name} take {middle:.3g} times what {device.name} should, in the median"
            unit = "ms" if middle < 1 else "ns"
            raise SpecError(
                where, problem, f"is the time column in {unit}? If not, is the data sheet of {device.name} right?"
            )


def _has_peak(dtype: str, device: DeviceSpec) -> bool:
    form = _FORMATS.get(dtype, dtype)
    return form in device.peak_flops_per_s or (form == "tf32" and "fp32" in device.peak_flops_per_s)


def _left_out(count: int) -> IntArray:
    """Rows to leave out: the same for the same number of rows."""
    shuffled = np.random.default_rng(_SEED).permutation(count)
    return np.sort(shuffled[: max(round(count * HELD_OUT), FEWEST_POINTS)])


def spread_out(rows: TimingTable) -> IntArray:
    """At most ``MOST_ROWS`` rows, in order: each operation, dtype and layout its share, evenly over its times.

    Kinds of few rows keep all of them; the others share what is left alike.
    """
    if len(rows) <= MOST_ROWS:
        return np.arange(len(rows))
    group = groups(rows, ("op", "dtype", "layout"))
    members = [np.flatnonzero(group == number) for number in np.unique(group)]
    chosen: list[IntArray] = []
    left = MOST_ROWS
    for place, mine in enumerate(sorted(members, key=len)):
        share = max(left // (len(members) - place), 1)
        by_time = mine[np.argsort(rows.time_s[mine], kind="stable")]
        picked = by_time if len(mine) <= share else by_time[np.linspace(0, len(mine) - 1, share).astype(np.int64)]
        chosen.append(picked)
        left = max(left - len(picked), 0)
    return np.sort(np.concatenate(chosen))


def _effect(
    base: KernelCostModel, calls: KernelCallBatch, rows: TimingTable, device: DeviceSpec, held_out: IntArray
) -> tuple[tuple[GroupChange, ...], ErrorSummary, ErrorSummary]:
    """Errors on left-out rows before and after a calibration on the others, by group and in all."""
    kept = np.setdiff1d(np.arange(len(rows)), held_out)
    kept = kept[spread_out(rows.take(kept))]
    trial = calibrate(base, take(calls, kept), rows.time_s[kept], device)
    corrected = CalibratedKernelModel(base, {device.name: trial})
    part, time_s = take(calls, held_out), rows.time_s[held_out]
    names: TextArray = rows.op[held_out] + np.full(len(held_out), "/", dtype=object) + rows.dtype[held_out]
    priced = [model.predict(part, device) for model in (base, corrected)]

    def errors(where: Any) -> list[ErrorSummary]:
        found = []
        for price in priced:
            summary = _summary(price.time_s[where], time_s[where], price.low_s[where], price.high_s[where])
            found.append(summary)
        return found

    changes = []
    for name in sorted(set(names.tolist())):
        op, _, dtype = name.partition("/")
        before, after = errors(np.flatnonzero(names == name))
        changes.append(GroupChange(op=op, dtype=dtype, before=before, after=after))
    whole = errors(np.arange(len(held_out)))
    return tuple(changes), whole[0], whole[1]


def _summary(predicted_s: FloatArray, measured_s: FloatArray, low_s: FloatArray, high_s: FloatArray) -> ErrorSummary:
    summary = error_summary(predicted_s, measured_s, low=low_s, high=high_s)
    if summary is None:
        raise ValueError("a group has at least one row")
    return summary


def calibration_document(found: Calibrated) -> dict[str, Any]:
    """What ``planner calibrate --json`` prints; errors are fractions."""
    merged = found.merged
    stored = None
    if merged is not None:
        stored = {"added": merged.added, "replaced": merged.replaced, "kept": merged.kept, "apart": merged.apart}
    return {
        "schema_version": SCHEMA_VERSION,
        "device": found.device,
        "rows": found.rows,
        "held_out": found.held_out,
        "before": asdict(found.before),
        "after": asdict(found.after),
        "corrected": found.corrected,
        "groups": [asdict(group) for group in found.groups],
        "store": stored,
        "files": [str(path) for path in found.files],
    }
