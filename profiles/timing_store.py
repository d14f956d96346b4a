"""The store of measured timings: one Parquet file per device in the catalogue directories.

``<directory>/timings/<device>.parquet``, packaged ones first, then those of ``PLANNER_CATALOG``; a later
directory adds rows and replaces poorer ones. Of rows that say the same of the same thing - operation, shape,
device, libraries, kernel and method - one is kept: the most robust statistic, then the newest, then the one of
most samples.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles import timing_ops as ops
from profiles.catalog import ENVIRONMENT_VARIABLE, Catalog, default_catalog
from profiles.errors import SpecError, reason_of
from profiles.timing_files import read_timings, write_timings
from profiles.timings import NORMAL_IQR, IntArray, TimingTable, joined, timing_table

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = "timings"
# Half the 90 % interval of a repeated measurement. Two measurements of one shape on one kind of GPU (Vidur, over
# 20 us) differ by 6.5 % at the 90th percentile for GEMMs (5,679 shapes), by 11.6 % for the rest (4,836).
REPEAT_GEMM, REPEAT_OTHER = 0.065, 0.116
REPEATS_AGREE = (1 + REPEAT_OTHER) / (1 - REPEAT_OTHER)
# What a row is about; the other columns say how well it is known.
SHAPE = (
    "kind", "op", "dtype", "layout", "m", "n", "k", "batch", "heads", "kv_heads", "value_width", "window", "causal",
    "bytes", "size_bytes", "group_size", "num_nodes", "link", "config",
)  # fmt: skip
IDENTITY = (*SHAPE, "device", "stack", "kernel", "method")


def _codes(values: NDArray[Any]) -> IntArray:
    """Equal values to equal small numbers."""
    if values.dtype == object:
        seen: dict[Any, int] = {}
        return np.fromiter((seen.setdefault(word, len(seen)) for word in values.tolist()), np.int64, len(values))
    return np.asarray(np.unique(values, return_inverse=True, equal_nan=True)[1], dtype=np.int64).reshape(-1)


def groups(table: TimingTable, columns: Sequence[str]) -> IntArray:
    """(R,) number of the group of rows that agree in every one of the columns."""
    found: IntArray = np.zeros(len(table), dtype=np.int64)
    for name in columns:
        codes = _codes(getattr(table, name))
        if len(codes):
            found = _codes(found * (int(codes.max()) + 1) + codes)
    return found


def _rank(words: NDArray[Any], order: Sequence[str]) -> IntArray:
    """Place of each word in an order, best first; unknown ones last."""
    places = {word: place for place, word in enumerate(order)}
    return np.array([places.get(word, len(order)) for word in words.tolist()], dtype=np.int64)


def _newness(table: TimingTable) -> IntArray:
    dates = {word: place for place, word in enumerate(sorted(set(table.measured_on.tolist())))}
    return np.array([dates[word] for word in table.measured_on.tolist()], dtype=np.int64)


def best_of_groups(table: TimingTable, columns: Sequence[str]) -> IntArray:
    """Rows, in order, that are the best of those that agree in the columns.

    Best: timed without the host's launches, most robust statistic, newest, most samples, last in the table.
    """
    group = groups(table, columns)
    quality = (
        np.arange(len(table)),
        table.samples,
        _newness(table),
        -_rank(table.statistic, ops.STATISTICS),
        -_rank(table.method, tuple(ops.METHODS)),
    )
    order = np.lexsort((*quality, group))
    last = np.append(group[order][1:] != group[order][:-1], True) if len(order) else np.zeros(0, dtype=np.bool_)
    return np.sort(order[last])


def deduplicated(table: TimingTable) -> TimingTable:
    """The table with one row per ``IDENTITY``."""
    return table.take(best_of_groups(table, IDENTITY))


def with_repeats(table: TimingTable) -> tuple[TimingTable, int]:
    """One row per ``IDENTITY``, with what repeats of the same measurement in the table tell of its spread.

    Rows that agree in statistic and day too are repeats: the interquartile range of a normal distribution that scatters
    as they do is that of the row kept, if it is the larger.

    Returns:
        The rows, and of how many the repeats lie more than ``REPEATS_AGREE`` times apart.
    """
    kept = best_of_groups(table, IDENTITY)
    if not len(table):
        return table, 0
    group = groups(table, (*IDENTITY, "statistic", "measured_on"))
    count, first = np.bincount(group), np.unique(group, return_index=True)[1]
    away_s = table.time_s - table.time_s[first][group]  # small numbers, whose squares lose no digits
    mean_s = np.bincount(group, weights=away_s) / count
    squares = np.bincount(group, weights=(away_s - mean_s[group]) ** 2)
    repeats_s = NORMAL_IQR * np.sqrt(squares / np.maximum(count - 1, 1))
    spread_s = np.where(repeats_s[group] > 0, np.fmax(table.spread_s, repeats_s[group]), table.spread_s)
    low_s, high_s = np.full(len(count), np.inf), np.zeros(len(count))
    np.minimum.at(low_s, group, table.time_s)
    np.maximum.at(high_s, group, table.time_s)
    apart = (high_s > REPEATS_AGREE * low_s)[group]
    return table.having(spread_s=spread_s).take(kept), int(np.sum(apart[kept]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What adding a table to the store did.

    Attributes:
        added: Rows of things not measured before.
        replaced: Rows that took the place of poorer ones.
        kept: Rows passed over because what is stored is as good or better.
        apart: Rows of which the same table holds repeats that contradict each other (``with_repeats``).
        files: Files written.
    """

    added: int
    replaced: int
    kept: int
    files: tuple[Path, ...]
    apart: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingStore:
    """Measured timings in catalogue directories.

    Attributes:
        directories: Where to look, packaged first; new rows are written to the last.
        writable: Whether the last is the user's own.
    """

    directories: tuple[Path, ...]
    writable: bool = True

    def files(self, device: str = "") -> list[Path]:
        """Files of one device, or of all."""
        pattern = f"{device_file_name(device)}.parquet" if device else "*.parquet"
        return [path for folder in self.directories for path in sorted((folder / FOLDER).glob(pattern))]

    def table(self, device: str = "") -> TimingTable:
        """Everything measured, or what was measured on one device; later directories win.

        Raises:
            SpecError: If a file is broken.
        """
        found = deduplicated(joined(read_timings(path) for path in self.files(device)))
        return found.take(np.asarray(found.device == device, dtype=np.bool_)) if device else found

    def own(self) -> "TimingStore":
        """The user's directory alone, without what came with the installation; empty if there is none."""
        return TimingStore(directories=self.directories[-1:] if self.writable else (), writable=self.writable)

    @property
    def own_directory(self) -> Path:
        """The user's directory, where all is written.

        Raises:
            SpecError: If there is none; what came with the installation is left as it is.
        """
        if not self.writable or not self.directories:
            raise SpecError(
                ENVIRONMENT_VARIABLE,
                "no catalogue directory of yours to store timings in",
                f"mkdir my-catalog && export {ENVIRONMENT_VARIABLE}=my-catalog",
            )
        return self.directories[-1]

    def add(self, table: TimingTable) -> Merged:
        """Merge a table into the user's directory, and say what that changed.

        Raises:
            SpecError: If there is no user directory, a row is unsound, or a file cannot be read or written.
        """
        directory = self.own_directory
        fresh, apart = with_repeats(table)
        added = replaced = 0
        files: list[Path] = []
        for device in sorted(set(fresh.device.tolist())):
            path = directory / FOLDER / f"{device_file_name(device)}.parquet"
            with _alone(path.parent):
                stored = read_timings(path) if path.is_file() else timing_table(0)
                both = joined([stored, fresh.take(np.asarray(fresh.device == device, dtype=np.bool_))])
                rows = best_of_groups(both, IDENTITY)
                write_timings(both.take(rows), path)
            grown = len(rows) - len(stored)
            added += grown
            replaced += int(np.sum(rows >= len(stored))) - grown
            files.append(path)
        kept = len(table) - added - replaced
        return Merged(added=added, replaced=replaced, kept=kept, files=tuple(files), apart=apart)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Reads and writes the folder's files while no other process does, so that none loses what another adds.

    The system frees the lock of a process that has ended. Windows has no such lock; there the last one wins.

    Raises:
        SpecError: If the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise SpecError(str(folder)[:200], f"cannot be written: {reason_of(error)}") from None


def device_file_name(device: str) -> str:
    """A device's name as a file name: letters, digits, dots, dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", device).strip(".")[:120] or "_"


def store_of(catalog: Catalog) -> TimingStore:
    """The store in a catalogue's directories."""
    directories = tuple(Path(str(directory)) for directory in catalog.directories)
    return TimingStore(directories=directories, writable=len(directories) > 1)


def default_store() -> TimingStore:
    """The packaged timings and those in the directories of ``PLANNER_CATALOG``."""
    return store_of(default_catalog())
