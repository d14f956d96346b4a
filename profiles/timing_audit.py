"""Could a device have done this? Measured rows against the peaks of the hardware they name.

A row that beats the arithmetic peak, the memory or the link is wrong whatever its source says: a unit was
mistaken, work was skipped or counted twice, or the clock was started late. So is one a thousand times slower
than the hardware needs. Rows of devices and links that the catalogue does not know are kept, and counted. Where
many rows of a file are impossible, or none comes near the hardware, its time column is in another unit: none of it
can be kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles import timing_ops as ops
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.timing_work import flops, traffic_bytes
from profiles.timings import BoolArray, FloatArray, TextArray, TimingTable, row_problems
from profiles.units import MICROSECOND

# The fastest row of the public GEMM tables reaches 1.08 of its data sheet: an RTX 3090 above its boost clock.
TOLERANCE = 1.1
SLOWEST = 1000.0  # times what the hardware needs; a mistaken unit is a factor of a thousand
SLOW_S = 0.01  # below, launch overhead and tails explain any ratio
_TIMER_S = 1e-6  # resolution of the coarsest published timers, which time 75 us and more where it decides
_TIMER_SHARE = 0.02  # of its time, the most that a row is given for it: else a row of some ns could beat any peak
# Rows of another unit, not slips: of public tables at most 17 % of a device's collectives and 4 % of its kernels are
# faster than their hardware, and where times are a thousand times too short at least 30 %.
MISTAKEN_SHARE = 0.2
# Of whole layers of experts: of public ones at most 23 % (tuned ones of an MI308X), and at least 81 %.
MISTAKEN_SHARE_OF_LAYERS = 0.5
_FEWEST_MISTAKEN = 5
# Of every device, operation and dtype of the public tables some kernel over 20 us reaches 2 % of the hardware; the
# longest collective inside a node that does not reach 1 % takes 0.96 ms.
_LEAST_SHARE, _LONG_KERNEL_S, _LONG_COLLECTIVE_S = 0.01, 20e-6, 1e-3
# Whose units multiply it, at most as fast.
_FORMAT = {"int8": "fp8", "int4": "fp4", "fp64": "fp32", "fp8_block": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}
_Bounds = tuple[FloatArray, FloatArray, FloatArray, FloatArray]  # seconds of arithmetic, memory, wire, all traffic
_IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What became of each row of a table.

    Attributes:
        reasons: (R,) why a row is impossible; empty where it is not.
        unaudited: (R,) rows that no peak bounds: kept. The device or link is unknown, or all fits in its cache.
        reached: (R,) share of what the hardware can do that the time amounts to, traffic in cache counted; NaN where
            unknown.
        too_fast: (R,) rows that beat a peak.
    """

    reasons: TextArray
    unaudited: BoolArray
    reached: FloatArray
    too_fast: BoolArray

    @property
    def accepted(self) -> BoolArray:
        """(R,) rows to keep."""
        return np.asarray(self.reasons == "", dtype=np.bool_)

    def counts(self) -> dict[str, int]:
        """Rejected rows by reason, most first."""
        found: dict[str, int] = {}
        for reason in self.reasons[~self.accepted].tolist():
            found[reason] = found.get(reason, 0) + 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def audit(table: TimingTable, catalog: Catalog) -> Audit:
    """Judge every row; also those that are unsound as data (``profiles.timings.row_problems``)."""

    def bounds_of(rows: _IntArray, device: DeviceSpec) -> _Bounds:
        part = table.take(rows)
        arithmetic_s = _arithmetic_s(flops(part), part.dtype, device)
        return arithmetic_s, _memory_s(part, device), _wire_s(part, device, catalog), _cached_s(part, device)

    return _judged_by_device(table, catalog, row_problems(table), bounds_of)


def audit_layers(table: TimingTable, flops_of: FloatArray, catalog: Catalog) -> Audit:
    """Judge rows of several kernels, e.g. whole layers of experts, of which only the arithmetic is bounded.

    Args:
        table: Their devices, dtypes and times.
        flops_of: (R,) arithmetic of each row; 0 where it is unknown.
        catalog: Of the devices.
    """

    def bounds_of(rows: _IntArray, device: DeviceSpec) -> _Bounds:
        unknown = np.full(len(rows), np.nan)
        return _arithmetic_s(flops_of[rows], table.dtype[rows], device), unknown, unknown, unknown

    return _judged_by_device(table, catalog, np.full(len(table), "", dtype=object), bounds_of)


def _judged_by_device(
    table: TimingTable, catalog: Catalog, reasons: TextArray, bounds_of: Callable[[_IntArray, DeviceSpec], _Bounds]
) -> Audit:
    """Rows of known devices judged by the bounds of theirs; reasons found before stand."""
    unaudited, too_fast = np.ones(len(table), dtype=np.bool_), np.zeros(len(table), dtype=np.bool_)
    reached = np.full(len(table), np.nan)
    for name in sorted(set(table.device.tolist())):
        device = _known(catalog, str(name))
        if device is None:
            continue
        rows = np.flatnonzero(table.device == name)
        found = _judged(table.time_s[rows], bounds_of(rows, device))
        unaudited[rows], reached[rows], too_fast[rows], verdicts = found
        reasons[rows] = np.where(reasons[rows] == "", verdicts, reasons[rows])
    return Audit(reasons=reasons, unaudited=unaudited, reached=reached, too_fast=too_fast)


def _judged(time_s: FloatArray, bounds: _Bounds) -> tuple[BoolArray, FloatArray, BoolArray, TextArray]:
    """Which rows no peak bounds, what share each reaches, which beat a peak, and why a row is impossible.

    Args:
        time_s: (R,) measured.
        bounds: (R,) least seconds of arithmetic, memory and wire, and those of all traffic, of which some may have
            stayed in a cache; NaN where unknown.
    """
    arithmetic_s, memory_s, wire_s, cached_s = bounds
    needed_s = np.fmax(np.fmax(arithmetic_s, memory_s), wire_s)
    measured_s = (time_s + np.clip(_TIMER_SHARE * time_s, 0.0, _TIMER_S)) * TOLERANCE
    whole_s = np.fmax(needed_s, cached_s)
    reached = np.divide(whole_s, time_s, out=np.full(len(time_s), np.nan), where=time_s > 0)
    slow = (time_s > SLOW_S) & (time_s > SLOWEST * whole_s)
    reasons: TextArray = np.full(len(time_s), "", dtype=object)
    verdicts: tuple[tuple[BoolArray, str], ...] = (
        (arithmetic_s > measured_s, "beats the arithmetic peak of its device and dtype"),
        (memory_s > measured_s, "beats the memory bandwidth of its device"),
        (wire_s > measured_s, "beats the bandwidth of its link"),
        (slow, f"takes over {SLOWEST:.0f} times what the hardware needs"),
    )
    for bad, reason in verdicts:
        reasons[bad & (reasons == "")] = reason
    return np.isnan(needed_s), reached, needed_s > measured_s, reasons


def check_unit(table: TimingTable, verdict: Audit, *, where: str, share: float = MISTAKEN_SHARE) -> None:
    """Refuse rows whose times must be in another unit, device by device.

    Args:
        table: The rows of one file.
        verdict: Of ``audit`` on them.
        where: The file, for the error.
        share: Of the rows of a device that a peak bounds, from which those that beat it are no slips.

    Raises:
        SpecError: If more than that share beat it, or all long ones stay below a hundredth of it.
    """
    floor_s = np.where(table.kind == ops.COLLECTIVE, _LONG_COLLECTIVE_S, _LONG_KERNEL_S)
    long = np.isfinite(verdict.reached) & (table.time_s > floor_s)
    for name in sorted(set(table.device.tolist())):
        mine = table.device == name
        bounded, fast = int(np.sum(mine & ~verdict.unaudited)), np.flatnonzero(mine & verdict.too_fast)
        if len(fast) >= max(_FEWEST_MISTAKEN, share * bounded):
            first = int(fast[0])
            problem = (
                f"{len(fast):,} of {bounded:,} rows are faster than {name} can be, e.g. row {first + 1}, which takes"
                f" {table.time_s[first] / MICROSECOND:.3g} us and reaches {verdict.reached[first]:.3g} times its peak"
            )
            raise SpecError(where, problem, f"is the time column in ms? If not, are the peaks of {name} too low?")
        reached = verdict.reached[mine & long]
        if len(reached) >= _FEWEST_MISTAKEN and float(np.max(reached)) < _LEAST_SHARE:
            problem = (
                f"of {len(reached):,} rows that take long none reaches {100 * _LEAST_SHARE:.0f} % of what {name} can"
                f" do, the best {100 * float(np.max(reached)):.2g} %"
            )
            raise SpecError(where, problem, f"is the time column in ns? If not, are the peaks of {name} too high?")


def _known(catalog: Catalog, name: str) -> DeviceSpec | None:
    try:
        return catalog.device(name)
    except SpecError:
        return None


def _arithmetic_s(work: FloatArray, dtypes: TextArray, device: DeviceSpec) -> FloatArray:
    """Least seconds of so many multiply-adds x 2; NaN where there are none or the format's peak is unknown.

    A board that its maker clocks above its data sheet's clock multiplies that much faster.
    """
    peaks = {word: _peak(device, word) * device.clock_headroom for word in set(dtypes.tolist())}
    peak = np.array([peaks[word] for word in dtypes.tolist()], dtype=np.float64)
    return np.where(work > 0, work / peak, np.nan)


def _peak(device: DeviceSpec, dtype: str) -> float:
    form = _FORMAT.get(dtype, dtype)
    peaks: Mapping[str, float] = device.peak_flops_per_s
    if form == "fp16" or form == "bf16":
        return max(peaks.get("fp16", 0.0), peaks.get("bf16", 0.0)) or np.nan
    return peaks.get(form, np.nan)


def _memory_s(table: TimingTable, device: DeviceSpec) -> FloatArray:
    """Least seconds of the traffic that cannot have stayed in the last-level cache before and after."""
    beyond = traffic_bytes(table) - 2 * device.l2_bytes
    return np.where(beyond > 0, beyond / device.memory_bandwidth_bytes_per_s, np.nan)


def _cached_s(table: TimingTable, device: DeviceSpec) -> FloatArray:
    return traffic_bytes(table) / device.memory_bandwidth_bytes_per_s


def _wire_s(table: TimingTable, device: DeviceSpec, catalog: Catalog) -> FloatArray:
    """Least seconds of a collective within one node: what one rank must send, even with sums in the switch."""
    ranks = np.maximum(table.group_size, 1).astype(float)
    whole = np.isin(table.op, ("all_reduce", "send_recv", "broadcast", *ops.HOST_COPIES))
    sent = table.size_bytes * np.where(whole, 1.0, (ranks - 1) / ranks)
    links = {word: _link_bytes_per_s(device, word, catalog) for word in set(table.link.tolist())}
    bandwidth = np.array([links[word] for word in table.link.tolist()], dtype=np.float64)
    local = (table.kind == ops.COLLECTIVE) & (table.num_nodes <= 1)
    return np.where(local, sent / bandwidth, np.nan)


def _link_bytes_per_s(device: DeviceSpec, link: str, catalog: Catalog) -> float:
    """Of the link named, of the node the device usually comes in, or NaN."""
    name = link or (catalog.nodes[device.default_node].scale_up.name if device.default_node in catalog.nodes else "")
    return catalog.links[name].bandwidth_bytes_per_s if name in catalog.links else np.nan
