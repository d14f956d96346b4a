"""What is known of a table of measured timings: per device, and per operation of one device."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planner.schema_types import SCHEMA_VERSION
from profiles import timing_ops as ops
from profiles.catalog import Catalog
from profiles.errors import SpecError, did_you_mean
from profiles.timing_store import TimingStore, groups
from profiles.timing_work import flops, traffic_bytes
from profiles.timings import IntArray, TimingTable


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSummary:
    """What is measured of one device.

    Attributes:
        device: Its name.
        known: Whether the catalogue has its peaks.
        kernels, collectives, steps: Rows of each kind.
        ops: Operations measured.
        stacks: Sets of library versions.
        newest: Latest date of a row; empty if none says.
        sources: Who measured.
        licences: Of those sources.
    """

    device: str
    known: bool
    kernels: int
    collectives: int
    steps: int
    ops: tuple[str, ...]
    stacks: tuple[str, ...]
    newest: str
    sources: tuple[str, ...]
    licences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSummary:
    """Rows of one operation, dtype, layout and method on one device.

    Attributes:
        op, dtype, layout, method: What they share.
        rows: How many.
        shortest_s, longest_s: Range of the times.
        flops_per_s: Largest arithmetic rate reached; 0 where nothing is multiplied.
        peak_share: That rate over the device's peak; None where either is unknown.
        bytes_per_s: Largest traffic or message size per second; 0 where no row says any.
        spread: Median of the interquartile range over the time; None where no row says any.
    """

    op: str
    dtype: str
    layout: str
    method: str
    rows: int
    shortest_s: float
    longest_s: float
    flops_per_s: float
    peak_share: float | None
    bytes_per_s: float
    spread: float | None


def summaries(table: TimingTable, catalog: Catalog) -> list[DeviceSummary]:
    """One summary per device, by name."""
    found = []
    for name in sorted(set(table.device.tolist())):
        part = table.take(np.asarray(table.device == name, dtype=np.bool_))
        kinds = [int(np.sum(part.kind == kind)) for kind in ops.KINDS]
        found.append(
            DeviceSummary(
                device=name,
                known=name in catalog.devices,
                kernels=kinds[0],
                collectives=kinds[1],
                steps=kinds[2],
                ops=_words(part.op),
                stacks=_words(part.stack),
                newest=max(part.measured_on.tolist()),
                sources=_words(part.source),
                licences=_words(part.licence),
            )
        )
    return found


def _words(column: Any) -> tuple[str, ...]:
    return tuple(sorted(set(column.tolist()) - {""}))


def operations(table: TimingTable, catalog: Catalog) -> list[OperationSummary]:
    """One summary per operation, dtype, layout and method of a table of one device, in alphabetical order."""
    number = groups(table, ("op", "dtype", "layout", "method"))
    found = [_operation(table, np.flatnonzero(number == group), catalog) for group in np.unique(number)]
    return sorted(found, key=lambda item: (item.op, item.dtype, item.layout, item.method))


def _operation(table: TimingTable, rows: IntArray, catalog: Catalog) -> OperationSummary:
    part = table.take(rows)
    first = part.row(0)
    rate = float(np.max(flops(part) / part.time_s))
    moved = np.where(part.size_bytes > 0, part.size_bytes, np.nan_to_num(traffic_bytes(part)))
    spread = part.spread_s[np.isfinite(part.spread_s)] / part.time_s[np.isfinite(part.spread_s)]
    device = catalog.devices.get(first["device"])
    peak = 0.0 if device is None else device.peak_flops_per_s.get(first["dtype"], 0.0)
    return OperationSummary(
        op=first["op"],
        dtype=first["dtype"],
        layout=first["layout"],
        method=first["method"],
        rows=len(part),
        shortest_s=float(part.time_s.min()),
        longest_s=float(part.time_s.max()),
        flops_per_s=rate,
        peak_share=rate / peak if rate > 0 and peak > 0 else None,
        bytes_per_s=float(np.max(moved / part.time_s)),
        spread=float(np.median(spread)) if len(spread) else None,
    )


def stored(store: TimingStore, device: str, catalog: Catalog) -> TimingTable:
    """The rows of a device of the store; its name may be any the catalogue understands.

    Raises:
        SpecError: If nothing is stored of it.
    """
    try:
        name = catalog.device(device).name
    except SpecError:
        name = device
    table = store.table(name)
    if not len(table):
        names = sorted({path.stem for path in store.files()})
        hint = did_you_mean(device, names) or "planner profiles import FILE, or planner profiles collect"
        raise SpecError("device", f"no timings of {device[:60]!r} are stored", hint)
    return table


def list_document(found: list[DeviceSummary]) -> dict[str, Any]:
    """What ``planner profiles list --json`` prints."""
    return {"schema_version": SCHEMA_VERSION, "devices": [asdict(item) for item in found]}


def show_document(table: TimingTable, found: list[OperationSummary], listed: IntArray) -> dict[str, Any]:
    """What ``planner profiles show --json`` prints."""
    rows = [{name: None if value != value else value for name, value in table.row(int(row)).items()} for row in listed]
    return {
        "schema_version": SCHEMA_VERSION,
        "device": table.row(0)["device"],
        "operations": [asdict(item) for item in found],
        "rows": rows,
    }
