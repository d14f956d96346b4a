"""Which importer reads a file: told by its content, never by its name alone."""

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

from profiles.errors import SpecError, did_you_mean
from profiles.importers.aiconfigurator import import_aiconfigurator, looks_like_aiconfigurator
from profiles.importers.base import Imported, ImportOptions
from profiles.importers.kineto import import_kineto, looks_like_kineto
from profiles.importers.nccl_tests import import_nccl_tests, looks_like_nccl_tests
from profiles.importers.neusight import import_neusight, looks_like_neusight
from profiles.importers.nsys import import_nsys, looks_like_nsys
from profiles.importers.vidur import import_vidur, looks_like_vidur
from profiles.timing_files import is_timing_file, parquet_names, read_timings

_HEAD_BYTES = 64 << 10


def import_own(path: Path, options: ImportOptions) -> Imported:
    """Rows of a file in this project's own layout; what the user says overrides what it says."""
    table = read_timings(path)
    said = {
        name: value
        for name in ("device", "stack", "source", "licence", "measured_on", "link")
        if (value := getattr(options, name))
    }
    return Imported(format="own", table=table.having(**said))


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
    text = head.decode("utf-8", "replace")
    if looks_like_kineto(text):
        return "kineto"
    if looks_like_nccl_tests(text):
        return "nccl-tests"
    header = [word.strip() for word in text.splitlines()[0].split(",")] if text.strip() else []
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
        hint = "name it with --format: " + ", ".join(IMPORTERS)
        raise SpecError(str(path)[:200], "is of no format that can be recognised", hint)
    if name not in IMPORTERS:
        raise SpecError("--format", f"unknown format {name[:40]!r}", did_you_mean(name, IMPORTERS))
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
        raise SpecError(label, f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if not head:
        raise SpecError(label, "is empty")
    return head
