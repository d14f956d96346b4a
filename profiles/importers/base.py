"""What every importer shares: what the user adds to a file, rows that were passed over, bounded reading."""

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profiles.catalog import default_catalog
from profiles.errors import SpecError, reason_of, shown
from profiles.timings import MAX_ROWS, TimingTable, table_of_rows

MAX_TEXT_BYTES = 512 << 20
# Names that tools give to element types -> ours.
DTYPES = {
    "float": "fp32", "float32": "fp32", "fp32": "fp32", "double": "fp64", "float64": "fp64", "half": "fp16",
    "float16": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "tf32": "tf32", "fp8": "fp8",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "f8e4m3": "fp8",
    "f8e5m2": "fp8", "fp8_block": "fp8_block", "mxfp8": "mxfp8", "nvfp4": "nvfp4", "int8": "int8", "uint8": "int8",
    "int32": "int32", "uint32": "int32", "int": "int32", "long": "int64", "int64": "int64", "uint64": "int64",
    "long int": "int64", "byte": "int8", "char": "int8",
}  # fmt: skip

# Options that are columns of the schema and override what a file says.
SAID = ("device", "stack", "source", "licence", "measured_on", "link")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What a file does not say about itself.

    Attributes:
        device: Device the rows were measured on; overrides what the file says.
        only_device: Rows that the file says are of another device of the catalogue are passed over, not renamed.
        dtype: Element type, where the file names none.
        num_nodes: Hosts of a collective, where the file does not tell; 0 for one.
        link: Catalogue name of the slowest link a collective crosses.
        stack: Library versions, as the ``stack`` column writes them.
        source: Who measured.
        licence: SPDX identifier.
        measured_on: Date, YYYY-MM-DD.
        method: How it was timed (``timing_ops.METHODS``), where the file does not say.
    """

    device: str = ""
    only_device: bool = False
    dtype: str = ""
    num_nodes: int = 0
    link: str = ""
    stack: str = ""
    source: str = ""
    licence: str = ""
    measured_on: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Rows read from a file.

    Attributes:
        format: Which importer read it.
        table: The rows.
        skipped: Rows or events passed over, by reason.
        assumed: Columns that the file does not have and that were assumed.
    """

    format: str
    table: TimingTable
    skipped: Mapping[str, int]
    assumed: tuple[str, ...] = ()


class Rows:
    """Collects rows of a file and counts what is passed over."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self.path = path
        self.options = options
        self.skipped: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._samples: dict[tuple[tuple[str, Any], ...], list[float]] = {}

    def skip(self, reason: str) -> None:
        """Count one row that is passed over."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def add(self, **columns: Any) -> None:
        """One row of the schema.

        Raises:
            SpecError: If there are more than ``MAX_ROWS``.
        """
        if len(self._rows) >= MAX_ROWS:
            raise SpecError(str(self.path)[:200], f"has more than {MAX_ROWS} rows", "import a part of it")
        self._rows.append(columns)

    def sample(self, seconds: float, **columns: Any) -> None:
        """One timed call; those of equal columns become one row (``finish``)."""
        self._samples.setdefault(tuple(sorted(columns.items())), []).append(seconds)

    def finish(self, file_format: str, **common: Any) -> Imported:
        """The rows as a table: samples by their median, what the user said over what the file said.

        Args:
            file_format: Name of the importer.
            **common: Columns that are the same for every row, unless a row says otherwise.

        Raises:
            SpecError: If there is no row, or no device is known.
        """
        for columns, seconds in self._samples.items():
            low, middle, high = np.quantile(np.asarray(seconds), [0.25, 0.5, 0.75])
            spread = {"spread_s": float(high - low)} if len(seconds) > 2 else {}
            statistic = "median" if len(seconds) > 1 else "single"
            self.add(time_s=float(middle), samples=len(seconds), statistic=statistic, **spread, **dict(columns))
        label = str(self.path)[:200]
        if not self._rows:
            reasons = "; ".join(f"{count} times: {reason}" for reason, count in self.skipped.items())
            raise SpecError(label, f"no row can be read as {file_format}" + (f" ({reasons})" if reasons else ""))
        table, others = as_said(table_of_rows([common | row for row in self._rows]), self.options, label)
        self.skipped |= others
        if bool(np.any(table.device == "")):
            raise SpecError("--device", f"{label} does not say which device it was measured on", "name it")
        devices = {name: catalogue_name(name) for name in set(table.device.tolist())}
        table = table.having(device=[devices[name] for name in table.device.tolist()])
        return Imported(format=file_format, table=table, skipped=dict(self.skipped))


def as_said(table: TimingTable, options: ImportOptions, label: str) -> tuple[TimingTable, dict[str, int]]:
    """The table with what the user says about it, and how many rows were passed over because of it, by reason.

    Raises:
        SpecError: If only rows of one device are wanted, and the file says that all are of others.
    """
    others: dict[str, int] = {}
    if options.only_device:
        reported = table.device.tolist()
        names = {word: catalogue_name(word) for word in set(reported)}
        known = default_catalog().devices
        foreign = {word for word, name in names.items() if name in known and name != options.device}
        others = {f"measured on {names[word][:60]}": reported.count(word) for word in sorted(foreign)}
        table = table.take(np.array([word not in foreign for word in reported], dtype=np.bool_))
        if not len(table):
            found = ", ".join(sorted({names[word] for word in foreign})[:5])
            raise SpecError("--from", f"{label} holds nothing measured on {options.device}, only on {found}")
    said: dict[str, Any] = {name: value for name in SAID if (value := getattr(options, name))}
    if options.method:
        said["method"] = np.where(table.method == "unknown", options.method, table.method)
    return table.having(**said), others


def catalogue_name(reported: str) -> str:
    """The catalogue's name of a device, or the reported one if it knows none."""
    try:
        return default_catalog().device(reported).name
    except SpecError:
        return reported


def dtype_of(name: str) -> str:
    """Our name of an element type; empty if there is none."""
    plain = name.strip().lower().removeprefix("torch.").removeprefix("c10::")
    return DTYPES.get(plain, "")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, gzipped or not, bounded in size.

    Raises:
        SpecError: If it cannot be read, is too large, or is no text.
    """
    label, seen = str(path)[:200], 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(iter(lambda: stream.readline(1 << 20), b""), start=1):
                seen += len(raw)
                if seen > MAX_TEXT_BYTES:
                    raise SpecError(label, f"has more than {MAX_TEXT_BYTES} bytes", "import a part of it")
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise SpecError(label, "is not a text file") from None
    except (OSError, EOFError) as error:
        reason = reason_of(error)
        raise SpecError(label, f"cannot be read: {reason}") from None


def csv_rows(path: Path, required: Iterable[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered rows of a CSV file by column name.

    Raises:
        SpecError: If a required column or a value is missing, or a column is named twice, with the line.
    """
    reader = csv.reader(line for _, line in text_lines(path))
    header: Sequence[str] = ()
    try:
        for words in reader:
            if not header:
                header = [word.strip() for word in words]
                missing = [name for name in required if name not in header]
                if missing:
                    raise SpecError(f"{str(path)[:200]}.{missing[0]}", "is required")
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    raise SpecError(f"{str(path)[:200]}.{twice[0][:60]}", "column is named twice")
            elif words:
                if len(words) != len(header):
                    problem = f"has {len(words)} values; the header has {len(header)}"
                    raise SpecError(f"{str(path)[:200]} line {reader.line_num}", problem)
                yield reader.line_num, dict(zip(header, words, strict=True))
    except csv.Error as error:
        raise SpecError(f"{str(path)[:200]} line {reader.line_num}", f"is not CSV: {str(error)[:100]}") from None


def number_in(row: Mapping[str, Any], name: str, *, where: str) -> float:
    """A number of a row.

    Raises:
        SpecError: If it is missing, no number, or not finite.
    """
    try:
        value = float(row[name])
    except (KeyError, TypeError, ValueError):
        value = float("nan")
    if not -float("inf") < value < float("inf"):
        given = str(row.get(name, ""))[:40]
        raise SpecError(f"{where}: {name}", f"must be a number; got {given!r}")
    return value


_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def flag_in(row: Mapping[str, Any], name: str, *, where: str) -> bool:
    """Yes or no of a row.

    Raises:
        SpecError: If it is missing or neither.
    """
    word = str(row.get(name, "")).strip().lower()
    if word not in _FLAGS:
        raise SpecError(f"{where}: {name}", f"must be true or false; got {shown(row.get(name, ''))}")
    return _FLAGS[word]


def whole_in(row: Mapping[str, Any], name: str, *, where: str) -> int:
    """A whole number of a row.

    Raises:
        SpecError: If it is missing or not whole.
    """
    value = number_in(row, name, where=where)
    if value != int(value):
        raise SpecError(f"{where}: {name}", f"must be a whole number; got {value:g}")
    return int(value)
