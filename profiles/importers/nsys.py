"""Exports of Nsight Systems (``nsys export --type sqlite``).

Which operator launched a kernel, and on what shapes, is told by the NVTX ranges that
``torch.autograd.profiler.emit_nvtx(record_shapes=True)`` pushes; kernels outside such ranges are passed over. Ranges
name no element type: it is taken from the kernel's name, or from what the user says. Host copies need no ranges.
"""

import json
import re
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from profiles.errors import SpecError, reason_of
from profiles.importers.base import Imported, ImportOptions, Rows
from profiles.importers.torch_ops import Call, known, recognise

MAGIC = b"SQLite format 3\x00"
MAX_EXPORT_BYTES = 4 << 30
MAX_EVENTS = 20_000_000
_NANOSECOND = 1e-9
_COPIES = {1: "host_to_device", 2: "device_to_host"}  # CUpti_ActivityMemcpyKind
_SIZES = re.compile(r"sizes = (\[.*?\](?=, input_op_ids|$))")
# Parts of kernel names, the first that fits.
_DTYPES = (
    (re.compile(r"bf16|bfloat16", re.I), "bf16"),
    (re.compile(r"e4m3|e5m2|fp8", re.I), "fp8"),
    (re.compile(r"f16|half|h\d+gemm|fp16", re.I), "fp16"),
    (re.compile(r"tf32", re.I), "tf32"),
    (re.compile(r"sgemm|f32f32|float", re.I), "fp32"),
)


def looks_like_nsys(head: bytes) -> bool:
    """Whether the beginning of a file is of an SQLite database."""
    return head.startswith(MAGIC)


def import_nsys(path: Path, options: ImportOptions) -> Imported:
    """Rows of one export.

    Raises:
        SpecError: If it is too large, no database, or lacks the tables of GPU kernels.
    """
    label = str(path)[:200]
    try:
        if path.stat().st_size > MAX_EXPORT_BYTES:
            raise SpecError(label, f"has more than {MAX_EXPORT_BYTES >> 30} GiB", "profile fewer steps")
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _read(database, Rows(path, options), label)
    except sqlite3.Error as error:
        raise SpecError(label, f"cannot be read as an Nsight Systems export: {str(error)[:100]}") from None
    except OSError as error:
        raise SpecError(label, f"cannot be read: {reason_of(error)}") from None


def _read(database: sqlite3.Connection, rows: Rows, label: str) -> Imported:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables and "CUPTI_ACTIVITY_KIND_MEMCPY" not in tables:
        raise SpecError(label, "holds neither GPU kernels nor copies", "profile with --trace=cuda,nvtx")
    ranges = _ranges(database, tables)
    seconds: dict[tuple[Any, int], float] = {}
    names: dict[tuple[Any, int], str] = {}
    for thread, launched, duration, name in _kernels(database, tables):
        place = _enclosing(ranges.get(thread, []), launched)
        if place < 0:
            rows.skip("kernels outside the ranges of listed operators")
            continue
        seconds[thread, place] = seconds.get((thread, place), 0.0) + duration * _NANOSECOND
        names.setdefault((thread, place), name)
    for (thread, place), time_s in seconds.items():
        _sample(ranges[thread][place][2], names[thread, place], time_s, rows)
    for kind, size, duration in _copies(database, tables):
        if kind in _COPIES and size > 0 and duration > 0:
            rows.sample(duration * _NANOSECOND, kind="collective", op=_COPIES[kind], size_bytes=size, kernel="memcpy")
    return rows.finish(
        "nsys", kind="kernel", method="profiler", device=_device(database, tables), source="Nsight Systems export"
    )


Range = tuple[int, int, str]


def _bounded(cursor: sqlite3.Cursor, *whole: int) -> Iterator[Any]:
    """The rows of a query, in whose ``whole`` columns are whole numbers.

    Raises:
        SpecError: If there are too many, or one holds something else.
    """
    for count, row in enumerate(cursor):
        if not all(isinstance(row[place], int) for place in whole):
            raise SpecError("events", f"times and sizes must be whole numbers; got {str(row)[:100]}")
        if count >= MAX_EVENTS:
            raise SpecError("events", f"more than {MAX_EVENTS}", "profile fewer steps")
        yield row


def _ranges(database: sqlite3.Connection, tables: set[str]) -> dict[Any, list[Range]]:
    """Outermost ranges of listed operators per thread: (start, end, text), in order and disjoint."""
    if "NVTX_EVENTS" not in tables:
        return {}
    query = (
        "SELECT globalTid, start, end, COALESCE(text, (SELECT value FROM StringIds WHERE id = textId)) AS words"
        " FROM NVTX_EVENTS WHERE end IS NOT NULL ORDER BY start, end DESC"
        if "StringIds" in tables
        else "SELECT globalTid, start, end, text FROM NVTX_EVENTS WHERE end IS NOT NULL ORDER BY start, end DESC"
    )
    found: dict[Any, list[Range]] = {}
    for thread, start, end, text in _bounded(database.execute(query), 1, 2):
        mine = found.setdefault(thread, [])
        if isinstance(text, str) and known(text.split(",")[0].strip()) and (not mine or start >= mine[-1][1]):
            mine.append((start, end, text[:4000]))
    return found


def _enclosing(ranges: list[Range], moment: int) -> int:
    """Place of the range that holds a moment, or -1."""
    place = bisect_right(ranges, moment, key=lambda item: item[0]) - 1
    return place if place >= 0 and moment <= ranges[place][1] else -1


def _kernels(database: sqlite3.Connection, tables: set[str]) -> Iterator[tuple[Any, int, int, str]]:
    """Thread and moment of each launch, duration in ns, and name of the kernel."""
    if not {"CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "StringIds"} <= tables:
        return
    query = (
        "SELECT launch.globalTid, launch.start, kernel.end - kernel.start,"
        " (SELECT value FROM StringIds WHERE id = kernel.demangledName)"
        " FROM CUPTI_ACTIVITY_KIND_KERNEL AS kernel"
        " JOIN CUPTI_ACTIVITY_KIND_RUNTIME AS launch ON launch.correlationId = kernel.correlationId"
    )
    for thread, launched, duration, name in _bounded(database.execute(query), 1, 2):
        yield thread, launched, duration, str(name or "")[:80]


def _copies(database: sqlite3.Connection, tables: set[str]) -> Iterator[tuple[int, int, int]]:
    if "CUPTI_ACTIVITY_KIND_MEMCPY" in tables:
        query = "SELECT copyKind, bytes, end - start FROM CUPTI_ACTIVITY_KIND_MEMCPY"
        yield from _bounded(database.execute(query), 0, 1, 2)


def _device(database: sqlite3.Connection, tables: set[str]) -> str:
    if "TARGET_INFO_GPU" not in tables:
        return ""
    row = database.execute("SELECT name FROM TARGET_INFO_GPU LIMIT 1").fetchone()
    return str(row[0]) if row and row[0] else ""


def _sample(text: str, kernel: str, time_s: float, rows: Rows) -> None:
    """One call from the text of its range: ``aten::mm, op_id = 7, sizes = [[128, 64], [64, 32]]``."""
    sizes = _SIZES.search(text)
    try:
        dims = json.loads(sizes[1]) if sizes else []
    except ValueError:
        dims = []
    dtype = rows.options.dtype or next((name for pattern, name in _DTYPES if pattern.search(kernel)), "")
    if not dims or not dtype:
        rows.skip("ranges without shapes (emit_nvtx(record_shapes=True)?) or kernels that tell no element type")
        return
    shapes = [item if isinstance(item, list) else [] for item in dims]
    columns = recognise(Call(name=text.split(",")[0].strip(), dims=shapes, dtypes=[dtype] * len(shapes)))
    if columns is None:
        rows.skip("ranges whose shapes say too little")
    else:
        rows.sample(time_s, kernel=kernel, **columns)
