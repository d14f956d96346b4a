"""Files of measurements on their way into the store: read, audited, keyed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.kernels.kernel_keys import with_kernel_keys
from costmodels.tables.timing_rows import PUBLIC_TABLE, check_recognised, import_public_table, is_public_table
from planner.schema_types import SCHEMA_VERSION
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.importers.base import Imported, ImportOptions
from profiles.importers.detect import detect, import_file
from profiles.timing_audit import Audit, audit, check_unit
from profiles.timing_files import write_timings
from profiles.timing_store import Merged, TimingStore
from profiles.timings import TimingTable, joined

_EXAMPLES = 3  # rows shown per file of what was rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One file read and audited.

    Attributes:
        path: The file.
        imported: What the importer read and passed over.
        audit: The verdict on each row.
    """

    path: Path
    imported: Imported
    audit: Audit

    @property
    def accepted(self) -> TimingTable:
        """The rows that are possible."""
        return self.imported.table.take(self.audit.accepted)


def check_files(
    paths: Sequence[Path], options: ImportOptions, catalog: Catalog, *, file_format: str = ""
) -> list[Checked]:
    """Every file read and audited.

    Raises:
        SpecError: If a file cannot be read, or its times are in another unit.
    """
    found = []
    for path in paths:
        named = file_format or detect(path)
        if named == PUBLIC_TABLE or (not named and is_public_table(path)):
            imported = import_public_table(path, options)
        else:
            if not named:
                check_recognised(path)
            imported = import_file(path, options, file_format=named)
        verdict = audit(imported.table, catalog)
        check_unit(imported.table, verdict, where=str(path)[:200])
        found.append(Checked(path=path, imported=imported, audit=verdict))
    return found


def admit(checked: Sequence[Checked], store: TimingStore) -> Merged:
    """Put the possible rows of every file into the store.

    Raises:
        SpecError: If there is nothing to store, or nowhere to.
    """
    return store.add(with_kernel_keys(_accepted(checked)))


def admit_to_file(checked: Sequence[Checked], path: Path) -> int:
    """Write the possible rows of every file to one file of our own layout; how many those are.

    Raises:
        SpecError: If there are none, or the file cannot be written.
    """
    table = with_kernel_keys(_accepted(checked))
    write_timings(table, path)
    return len(table)


def _accepted(checked: Sequence[Checked]) -> TimingTable:
    table = joined(item.accepted for item in checked)
    if not len(table):
        raise SpecError("files", "no row of them is possible", "planner profiles check FILE says why")
    return table


def check_document(checked: Sequence[Checked]) -> dict[str, Any]:
    """What ``planner profiles check --json`` prints."""
    return {"schema_version": SCHEMA_VERSION, "files": [_file(item) for item in checked]}


def import_document(
    checked: Sequence[Checked], *, merged: Merged | None, out: Path | None, written: int
) -> dict[str, Any]:
    """What ``planner profiles import --json`` prints."""
    stored = None
    if merged is not None:
        stored = {
            "added": merged.added,
            "replaced": merged.replaced,
            "kept": merged.kept,
            "apart": merged.apart,
            "files": [str(path) for path in merged.files],
        }
    return check_document(checked) | {"store": stored, "out": None if out is None else str(out), "rows": written}


def _file(item: Checked) -> dict[str, Any]:
    table, verdict = item.imported.table, item.audit
    rejected = np.flatnonzero(~verdict.accepted)
    return {
        "file": str(item.path),
        "format": item.imported.format,
        "rows": len(table),
        "accepted": int(verdict.accepted.sum()),
        "unaudited": int((verdict.accepted & verdict.unaudited).sum()),
        "rejected": verdict.counts(),
        "rejected_rows": [_example(table, verdict, int(row)) for row in rejected[:_EXAMPLES]],
        "skipped": dict(item.imported.skipped),
        "assumed_columns": list(item.imported.assumed),
        "devices": sorted(set(table.device.tolist())),
    }


def _example(table: TimingTable, verdict: Audit, index: int) -> dict[str, Any]:
    shown = ("op", "dtype", "m", "n", "k", "batch", "size_bytes", "device", "time_s")
    row = {name: value for name in shown if (value := table.row(index)[name]) not in ("", 0) and value == value}
    return {"row": index + 1, "reason": verdict.reasons[index], **row}
