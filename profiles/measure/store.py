"""The file that a collection grows: timings in the common schema, and beside it what could not be measured.

A case counts as done if the file has a row of the same identity: operation, shape, device, libraries, and whether the
launch is included. Cases that failed are listed with the reason in a JSON file of the same name and are not tried
again either, until that file is deleted.
"""

import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profiles.errors import SpecError
from profiles.measure.cases import Case
from profiles.measure.timing import Timing
from profiles.timing_files import read_timings, write_timings
from profiles.timings import TimingTable, joined, table_of_rows, timing_table

SOURCE = "own measurement"
LICENCE = "Apache-2.0"  # this project's own: whoever collects may of course give the file another
_IDENTITY = (
    "kind", "op", "dtype", "layout", "m", "n", "k", "batch", "heads", "kv_heads", "causal", "size_bytes", "group_size",
    "num_nodes", "config", "kernel",
)  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {"causal": False, "config": "", "size_bytes": 0}
_FLUSH_EVERY_S = 20.0
MAX_SKIPPED_BYTES = 16 << 20
_MAX_REASON = 200


def skipped_path(out: Path) -> Path:
    """Where the cases that could not be measured are listed."""
    return out.with_name(out.stem + ".skipped.json")


def _identity(columns: Mapping[str, Any], device: str, stack: str, *, launch_included: bool) -> tuple[Any, ...]:
    values = []
    for name in _IDENTITY:
        value = columns.get(name, _DEFAULTS.get(name, 0))
        if name == "causal":
            value = bool(value)
        elif name == "size_bytes":
            value = 0 if value != value else int(value)  # a row without a message holds NaN
        values.append(value)
    return (*values, device, stack, launch_included)


class Store:
    """Rows measured so far on one device under one set of libraries.

    Raises:
        SpecError: If one of the files is there but not readable as what it should be.
    """

    def __init__(self, out: Path, *, device: str, stack: str) -> None:
        self.out, self._device, self._stack = out, device, stack
        self._before: TimingTable = read_timings(out) if out.exists() else timing_table(0)
        self._rows: list[dict[str, Any]] = []
        self._skipped = _read_skipped(skipped_path(out))
        self._done = {self._key_of_row(self._before.row(index)) for index in range(len(self._before))}
        self._done |= {tuple(entry["identity"]) for entry in self._skipped}
        self._flushed_at_s = time.monotonic()

    def _key_of_row(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        eager = row["method"] == "eager" and row["kind"] != "collective"
        return _identity(row, row["device"], row["stack"], launch_included=eager)

    def _key(self, case: Case, *, launch_included: bool) -> tuple[Any, ...]:
        return _identity(case.columns(), self._device, self._stack, launch_included=launch_included)

    def is_done(self, case: Case, *, launch_included: bool) -> bool:
        """Whether the case was measured, or failed, before."""
        return self._key(case, launch_included=launch_included) in self._done

    def add(self, case: Case, timing: Timing, *, note: str, peak_memory_bytes: float = float("nan")) -> None:
        """Keep a measured case; written with the next flush."""
        self._rows.append(
            case.columns()
            | {
                "device": self._device, "stack": self._stack, "method": timing.method, "statistic": "median",
                "time_s": timing.median_s, "spread_s": timing.spread_s, "samples": timing.samples,
                "measured_on": datetime.datetime.now(datetime.UTC).date().isoformat(), "source": SOURCE,
                "licence": LICENCE, "note": note, "peak_memory_bytes": peak_memory_bytes,
            }
        )  # fmt: skip
        self.flush(even_if_recent=False)

    def skip(self, case: Case, reason: str, *, launch_included: bool) -> None:
        """Keep why a case could not be measured."""
        identity = self._key(case, launch_included=launch_included)
        self._skipped.append(
            {"case": case.label, "reason": reason[:_MAX_REASON], "identity": list(identity),
             "columns": case.columns() | {"device": self._device}}
        )  # fmt: skip
        self.flush(even_if_recent=False)

    def table(self) -> TimingTable:
        """Everything: what the file held and what was added."""
        return joined([self._before, table_of_rows(self._rows)]) if self._rows else self._before

    @property
    def skipped(self) -> tuple[dict[str, Any], ...]:
        """Cases that could not be measured, with ``reason``."""
        return tuple(self._skipped)

    def flush(self, *, even_if_recent: bool = True) -> None:
        """Write both files.

        Raises:
            SpecError: If they cannot be written.
        """
        now_s = time.monotonic()
        if not even_if_recent and now_s - self._flushed_at_s < _FLUSH_EVERY_S:
            return
        self._flushed_at_s = now_s
        table = self.table()
        if len(table):
            write_timings(table, self.out)
        if self._skipped:
            path = skipped_path(self.out)
            try:
                path.write_text(json.dumps(self._skipped, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise SpecError(str(path)[-200:], f"cannot be written: {error.strerror}") from None


def _read_skipped(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    label = str(path)[-200:]
    try:
        if path.stat().st_size > MAX_SKIPPED_BYTES:
            raise SpecError(label, f"at most {MAX_SKIPPED_BYTES} bytes; got more", "delete it to try its cases again")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    sound = isinstance(found, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("identity"), list) and isinstance(entry.get("reason"), str)
        for entry in found
    )
    if not sound:
        raise SpecError(label, "is not a list of skipped cases", "delete it to try its cases again")
    return list(found)
