"""Which importer reads a file: told by its content, never by its name alone."""

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from profiles.errors import SpecError, did_you_mean, reason_of
from profiles.importers.aiconfigurator import import_aiconfigurator, looks_like_aiconfigurator
from profiles.importers.base import Imported, ImportOptions, Rows, as_said, csv_rows, flag_in, number_in, whole_in
from profiles.importers.kineto import import_kineto, looks_like_kineto
from profiles.importers.nccl_tests import import_nccl_tests, looks_like_nccl_tests
from profiles.importers.neusight import import_neusight, looks_like_neusight
from profiles.importers.nsys import import_nsys, looks_like_nsys
from profiles.importers.vidur import import_vidur, looks_like_vidur
from profiles.timing_files import is_timing_file, parquet_names, read_timings
from profiles.timings import COLUMNS, REQUIRED

_HEAD_BYTES = 64 << 10
_REQUIRED = tuple(name for name in REQUIRED if name != "device")  # which the user may say instead


def import_own(path: Path, options: ImportOptions) -> Imported:
    """Rows of a Parquet or CSV file with this project's columns; what the user says overrides what it says.

    Raises:
        SpecError: If a column or value is not of the schema.
    """
    if _head(path).startswith(b"PAR1"):
        table = read_timings(path)
        if not len(table):
            raise SpecError(str(path)[:200], "holds no rows")
        table, skipped = as_said(table, options, str(path)[:200])
        return Imported(format="own", table=table, skipped=skipped)
    rows = Rows(path, options)
    for line, row in csv_rows(path, _REQUIRED):
        rows.add(**_typed(row, where=f"{str(path)[:200]} line {line}"))
    return rows.finish("own")


_READ: Mapping[str, Callable[[Mapping[str, str], str, str], Any]] = {
    "text": lambda row, name, where: row[name],
    "flag": lambda row, name, where: flag_in(row, name, where=where),
    "whole": lambda row, name, where: whole_in(row, name, where=where),
    "number": lambda row, name, where: number_in(row, name, where=where),
}


def _typed(row: Mapping[str, str], *, where: str) -> dict[str, Any]:
    """The values of a CSV row as the schema types them; empty ones are missing."""
    found: dict[str, Any] = {}
    for name, word in row.items():
        if name not in COLUMNS:
            raise SpecError(f"{where}: {name[:60]}", "unknown column", did_you_mean(name, COLUMNS))
        if word:
            found[name] = _READ[COLUMNS[name].kind](row, name, where)
    return found


IMPORTERS: Mapping[str, Callable[[Path, ImportOptions], Imported]] = {
    "own": import_own,
    "nccl-tests": import_nccl_tests,
    "kineto": import_kineto,
    "nsys": import_nsys,
    "vidur": import_vidur,
    "aiconfigurator": import_aiconfigurator,
    "neusight": import_neusight,
}


def detect(path: Path) -> str:
    """Name of the importer that reads a file; empty if none does.

    Raises:
        SpecError: If the file cannot be read.
    """
    head = _head(path)
    if head.startswith(b"PAR1"):
        if is_timing_file(path):
            return "own"
        names = parquet_names(path)
        return "aiconfigurator" if looks_like_aiconfigurator(names) else "own" if "time_s" in names else ""
    if looks_like_nsys(head):
        return "nsys"
    text = head.decode("utf-8-sig", "replace")
    if looks_like_kineto(text):
        return "kineto"
    if looks_like_nccl_tests(text):
        return "nccl-tests"
    header = [word.strip() for word in text.splitlines()[0].split(",")] if text.strip() else []
    if set(_REQUIRED) <= set(header):
        return "own"
    for name, looks in (
        ("vidur", looks_like_vidur),
        ("aiconfigurator", looks_like_aiconfigurator),
        ("neusight", looks_like_neusight),
    ):
        if looks(header):
            return name
    return ""


def import_file(path: Path, options: ImportOptions, *, file_format: str = "") -> Imported:
    """Rows of a file, read by the importer of that name or by the one its content asks for.

    Raises:
        SpecError: If the format is unknown, or the file is malformed.
    """
    name = file_format or detect(path)
    if not name:
        hint = "name it with --format: " + ", ".join((*IMPORTERS, "table"))
        raise SpecError(str(path)[:200], "is of no format that can be recognised", hint)
    if name not in IMPORTERS:
        raise SpecError("--format", f"unknown format {name[:40]!r}", did_you_mean(name, (*IMPORTERS, "table")))
    return IMPORTERS[name](path, options)


def _head(path: Path) -> bytes:
    label = str(path)[:200]
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as stream:
                head = stream.read(_HEAD_BYTES)
    except (OSError, EOFError) as error:
        raise SpecError(label, f"cannot be read: {reason_of(error)}") from None
    if not head:
        raise SpecError(label, "is empty")
    return head
