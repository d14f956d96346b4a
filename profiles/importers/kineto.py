"""Traces of the PyTorch profiler (Kineto, Chrome-trace JSON) recorded with ``record_shapes=True``.

On a GPU, the kernels that one operator launched are added up: a kernel belongs to the operator it names by its
``External id``, or to the outermost listed operator round that one. Without kernels (a profile of the CPU) the
operators' own durations are taken. Calls of one shape become one row with their median and spread.

Collectives are read from the arguments that PyTorch writes on NCCL kernels; their duration includes waiting for
the slowest rank, so that the least of them is closest to the transfer itself, and is what is kept.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from profiles.errors import SpecError, reason_of, shown
from profiles.importers.base import Imported, ImportOptions, Rows, dtype_of
from profiles.importers.torch_ops import Call, known, recognise
from profiles.timing_ops import ELEMENT_BYTES
from profiles.units import MICROSECOND

MAX_TRACE_BYTES = 512 << 20
_COLLECTIVES = {
    "all_reduce": ("allreduce", "allreduce_coalesced"),
    "all_gather": ("allgather", "_allgather_base", "allgather_into_tensor_coalesced"),
    "reduce_scatter": ("reduce_scatter", "_reduce_scatter_base", "reduce_scatter_tensor_coalesced"),
    "all_to_all": ("alltoall", "all_to_all", "alltoall_base"),
    "send_recv": ("send", "recv"),
    "broadcast": ("broadcast",),
}
_OP_OF = {name: op for op, names in _COLLECTIVES.items() for name in names}
_GATHERED = ("all_gather",)  # whose size is the output's
_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
_COPIES = {"HtoD": "host_to_device", "DtoH": "device_to_host"}


def looks_like_kineto(head: str) -> bool:
    """Whether the beginning of a file is such a trace."""
    return head.lstrip().startswith("{") and ("traceEvents" in head or "schemaVersion" in head or "deviceProp" in head)


def import_kineto(path: Path, options: ImportOptions) -> Imported:
    """Rows of one trace.

    Raises:
        SpecError: If the file is too large, no trace, or an event of it is malformed.
    """
    trace = _load(path)
    events = trace.get("traceEvents")
    if not isinstance(events, list):
        raise SpecError(f"{str(path)[:200]}: traceEvents", "must be a list of events")
    complete = [event for event in events if isinstance(event, dict) and event.get("ph") == "X"]
    operators = [event for event in complete if event.get("cat") == "cpu_op"]
    kernels = [event for event in complete if event.get("cat") in _KERNELS]
    rows = Rows(path, options)
    for position, event in enumerate(complete):
        _check(event, f"{str(path)[:200]}: complete event {position + 1}")
    owners = _owners(operators)
    if kernels:
        _from_kernels(kernels, operators, owners, rows)
    else:
        _from_operators(operators, owners, rows)
    device = _device(trace) if kernels else "cpu"
    return rows.finish(
        "kineto", kind="kernel", device=device, method="profiler" if kernels else "wall",
        source="PyTorch profiler trace",
    )  # fmt: skip


def _load(path: Path) -> Mapping[str, Any]:
    label = str(path)[:200]
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(MAX_TRACE_BYTES + 1)
    except (OSError, EOFError) as error:
        raise SpecError(label, f"cannot be read: {reason_of(error)}") from None
    if len(content) > MAX_TRACE_BYTES:
        raise SpecError(label, f"has more than {MAX_TRACE_BYTES >> 20} MiB", "profile fewer steps")
    try:
        trace = json.loads(content)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise SpecError(f"{label} line {line}" if line else label, "is not valid JSON") from None
    if not isinstance(trace, dict):
        raise SpecError(label, "must be a trace: an object with traceEvents")
    return trace


def _check(event: Mapping[str, Any], where: str) -> None:
    for name in ("ts", "dur"):
        value = event.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
            raise SpecError(f"{where}: {name}", f"must be a number; got {shown(value)}")
    if not isinstance(event.get("args", {}), dict):
        raise SpecError(f"{where}: args", "must be an object")


def _owners(operators: list[dict[str, Any]]) -> list[int]:
    """For each operator the place of the outermost listed operator round it (or itself); -1 if none is."""
    owners = [-1] * len(operators)
    by_thread: dict[tuple[Any, Any], list[int]] = {}
    for place, event in enumerate(operators):
        by_thread.setdefault((event.get("pid"), event.get("tid")), []).append(place)
    for places in by_thread.values():
        places.sort(key=lambda place: (operators[place]["ts"], -operators[place]["dur"]))
        open_: list[int] = []
        for place in places:
            event = operators[place]
            while open_ and event["ts"] >= operators[open_[-1]]["ts"] + operators[open_[-1]]["dur"]:
                open_.pop()
            outer = owners[open_[-1]] if open_ else -1
            owners[place] = outer if outer >= 0 else place if known(str(event.get("name", ""))) else -1
            open_.append(place)
    return owners


def _call(event: Mapping[str, Any]) -> Call:
    arguments = event.get("args", {})

    def listed(name: str) -> list[Any]:
        value = arguments.get(name, [])
        return value if isinstance(value, list) else []

    def lists(name: str) -> list[list[Any]]:
        return [item if isinstance(item, list) else [] for item in listed(name)]

    return Call(
        name=str(event.get("name", "")),
        dims=lists("Input Dims"),
        strides=lists("Input Strides"),
        dtypes=[dtype_of(str(word)) for word in listed("Input type")],
        values=[str(word) for word in listed("Concrete Inputs")],
    )


def _from_operators(operators: list[dict[str, Any]], owners: list[int], rows: Rows) -> None:
    for place, event in enumerate(operators):
        if owners[place] == place and event["dur"] > 0:
            _sample(event["dur"] * MICROSECOND, _call(event), rows, "cpu")
        elif owners[place] < 0:
            rows.skip("operators that are not listed")


def _from_kernels(
    kernels: list[dict[str, Any]], operators: list[dict[str, Any]], owners: list[int], rows: Rows
) -> None:
    by_id: dict[int, int] = {}
    for position, event in enumerate(operators):
        if isinstance(number := event.get("args", {}).get("External id"), int):
            by_id[number] = position
    seconds: dict[int, float] = {}
    names: dict[int, str] = {}
    transfers: dict[tuple[tuple[str, Any], ...], list[float]] = {}
    for event in kernels:
        time_s = event["dur"] * MICROSECOND
        if (transfer := _transfer(event, rows)) is not None:
            transfers.setdefault(tuple(sorted(transfer.items())), []).append(time_s)
            continue
        number = event.get("args", {}).get("External id")
        place = by_id.get(number, -1) if isinstance(number, int) else -1
        owner = owners[place] if place >= 0 else -1
        if owner < 0:
            rows.skip("kernels of operators that are not listed")
            continue
        seconds[owner] = seconds.get(owner, 0.0) + time_s
        names.setdefault(owner, str(event.get("name", ""))[:80])
    for owner, time_s in seconds.items():
        if time_s > 0:
            _sample(time_s, _call(operators[owner]), rows, names[owner])
    for columns, times in transfers.items():
        rows.add(time_s=min(times), samples=len(times), statistic="minimum", **dict(columns))


def _sample(seconds: float, call: Call, rows: Rows, kernel: str) -> None:
    columns = recognise(call)
    if columns is None:
        rows.skip("operators without usable shapes (record_shapes=True?)")
    elif not columns.get("dtype"):
        rows.skip("operators of an element type that no plan uses")
    else:
        if columns["dtype"] == "fp32" and "tf32" in kernel.lower():
            columns["dtype"] = "tf32"  # a mode of multiplying 32-bit operands, which only the kernel's name tells
        rows.sample(seconds, kernel=kernel, **columns)


def _transfer(event: Mapping[str, Any], rows: Rows) -> dict[str, Any] | None:
    """Columns of a collective or host copy; None for what is neither."""
    arguments = event.get("args", {})
    if event.get("cat") == "gpu_memcpy":
        op = next((op for word, op in _COPIES.items() if word in str(event.get("name", ""))), None)
        size = arguments.get("bytes")
        if op is None or not isinstance(size, int) or size <= 0 or event["dur"] <= 0:
            return None
        return {"kind": "collective", "op": op, "size_bytes": size, "kernel": str(event["name"])[:80]}
    op = _OP_OF.get(str(arguments.get("Collective name", "")).lower())
    sizes = [arguments.get(name) for name in ("In msg nelems", "Out msg nelems", "Group size")]
    if op is None or not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    dtype = dtype_of(str(arguments.get("dtype", "")))
    if not dtype or event["dur"] <= 0 or sizes[2] < 2:
        return None
    elements = sizes[1] if op in _GATHERED else sizes[0]
    return {
        "kind": "collective", "op": op, "dtype": dtype, "size_bytes": elements * ELEMENT_BYTES[dtype],
        "group_size": sizes[2], "num_nodes": rows.options.num_nodes or 1, "kernel": str(event.get("name", ""))[:80],
        "note": "least duration: longer ones wait for other ranks",
    }  # fmt: skip


def _device(trace: Mapping[str, Any]) -> str:
    listed = trace.get("deviceProperties")
    found = [str(item.get("name", "")) for item in _dicts(listed)] if isinstance(listed, list) else []
    return found[0] if found else ""


def _dicts(items: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (item for item in items if isinstance(item, dict))
