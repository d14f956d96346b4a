"""Reads tables of published measurements: one schema, checked, bounded, tolerant of blanks.

A row keeps its cells as text and parses them on demand, so that a bad number in a column nobody needs
costs nothing, and every complaint names file, line and column.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner.question import pins
from profiles.errors import SpecError, did_you_mean, reason_of

COLUMNS = (
    "source", "source_url_or_path", "locator", "model", "params_b", "layers", "hidden", "heads", "kv_heads",
    "ffn_hidden", "vocab", "seq_len", "gated_mlp", "attention_impl", "gpu", "gpu_mem_gb", "num_gpus",
    "gpus_per_node", "intra_node", "inter_node", "framework", "precision", "optimizer", "tp", "sp", "pp", "vpp",
    "dp", "cp", "ep", "zero_stage", "offload", "micro_batch", "global_batch_seqs", "recompute",
    "flash_attention", "task", "lora_rank", "lora_targets", "measured_step_time_s", "measured_tokens_per_s_total",
    "measured_tokens_per_s_per_gpu", "measured_tflops_per_gpu", "measured_mfu", "measured_peak_mem_gb", "oom",
    "notes",
)  # fmt: skip
REQUIRED = ("model", "gpu", "num_gpus")
# Names that plans, jobs and the command line have for the same.
ALIASES = {name: short for short, name in pins.ALIASES.items() if short in COLUMNS} | {
    "zero": "zero_stage", "mbs": "micro_batch", "gbs": "global_batch_seqs", "global_batch": "global_batch_seqs",
    "global_batch_size": "global_batch_seqs", "seq": "seq_len", "sequence_length": "seq_len", "device": "gpu",
    "num_devices": "num_gpus",
    "step_time_s": "measured_step_time_s", "tokens_per_s": "measured_tokens_per_s_total",
    "tokens_per_s_per_gpu": "measured_tokens_per_s_per_gpu", "tokens_per_s_per_device": "measured_tokens_per_s_per_gpu",
    "peak_memory_bytes": "measured_peak_mem_gb",  # in another unit: ``tables.measured.memory_of``
}  # fmt: skip
_DELIMITERS = (",", ";", "\t")  # that which parts most of the header
MAX_FILE_BYTES = 64 << 20
MAX_ROWS = 200_000
MAX_FILES = 1000

GIVEN = "trials"  # stands for the file of rows that a caller gave one by one

# A number, perhaps followed by a remark: "2.5 (nominal)".
_NUMBER = re.compile(r"([0-9][0-9,]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*(?:\(.*\))?")
_RANGE = re.compile(r"[0-9.]+\s*-\s*[0-9.]+")
_YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "none": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        file: Name of the file, without its folder.
        line: Line the row ends on.
        cells: Column to text; absent columns read as blank.
        written: Column to its name in the file, where that is another.
    """

    file: str
    line: int
    cells: Mapping[str, str]
    written: Mapping[str, str] = field(default_factory=dict)

    def text(self, column: str) -> str:
        """The cell without surrounding blanks; ``""`` when there is none."""
        return self.cells.get(column, "").strip()

    def where(self, column: str) -> str:
        """Place of a cell, for messages: ``file:line:column``, of rows given one by one ``trials.0.column``."""
        name = self.written.get(column, column)
        return f"{place_of(self.file, self.line)}{'.' if self.file == GIVEN else ':'}{name}"

    def number(self, column: str) -> float | None:
        """The cell as a positive number or zero; None when blank or a range.

        Raises:
            SpecError: If it holds something else.
        """
        text = self.text(column)
        if not text or _RANGE.fullmatch(text):
            return None
        match = _NUMBER.fullmatch(text)
        value = float(match.group(1).replace(",", "")) if match else math.nan
        if not math.isfinite(value):
            below = _NUMBER.fullmatch(text.removeprefix("-")) is not None
            raise SpecError(self.where(column), f"{'below zero' if below else 'not a number'}: {text[:40]!r}")
        return value

    def positive(self, column: str) -> float | None:
        """The cell as a number above zero; None when blank or zero, as zero stands for "not measured"."""
        return self.number(column) or None

    def integer(self, column: str) -> int | None:
        """The cell as a whole number; None when blank.

        Raises:
            SpecError: If it holds a fraction or no number.
        """
        value = self.number(column)
        if value is None:
            return None
        if value != int(value) or value > 1 << 40:
            raise SpecError(self.where(column), f"not a whole number: {self.text(column)[:40]!r}")
        return int(value)

    def flag(self, column: str) -> bool | None:
        """Whether the cell starts with yes or no; None when it says neither."""
        words = self.text(column).lower().split(maxsplit=1)
        return _YES_NO.get(words[0].strip(",;:(")) if words else None


def place_of(file: str, line: int) -> str:
    """Place of a row, for messages; rows given one by one are counted from 0, as lists in errors are."""
    return f"{GIVEN}.{line - 1}" if file == GIVEN else f"{file}:{line}"


def read_rows(path: Path) -> tuple[Row, ...]:
    """Every row of one file.

    Args:
        path: A CSV file with a header line of ``COLUMNS`` (order free, absent ones blank), parted by commas, semicolons
            or tabs.

    Raises:
        SpecError: If the file is missing, too large, not text, or not a table of this schema.
    """
    name = path.name
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise SpecError(name, f"is {size} bytes; at most {MAX_FILE_BYTES}")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            return tuple(_rows(name, csv.reader(stream, delimiter=max(_DELIMITERS, key=header.count))))
    except UnicodeDecodeError:
        raise SpecError(name, "is not UTF-8 text") from None
    except OSError as error:
        raise SpecError(name, f"cannot be read: {reason_of(error)}") from None


def csv_files(paths: Sequence[Path], *, field: str = "files") -> tuple[Path, ...]:
    """The files themselves, and the ``*.csv`` of each folder (not of its subfolders), in name order.

    Args:
        paths: Files and folders.
        field: What errors name.

    Raises:
        SpecError: If a path does not exist, a folder holds no table, or there are too many.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.csv"))
            if not inside:
                raise SpecError(field, f"folder {path.name!r} holds no .csv file")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise SpecError(field, f"no file or folder {str(path)[-80:]!r}")
    if len(found) > MAX_FILES:
        raise SpecError(field, f"at most {MAX_FILES} files; got {len(found)}")
    return tuple(found)


def _rows(name: str, table: "Iterator[list[str]]") -> Iterator[Row]:
    try:
        header = [cell.strip() for cell in next(table, [])]
        if not any(header):
            raise SpecError(f"{name}:1", "is empty", "the first line must name the columns")
        columns = known_columns(header, lambda column: f"{name}:1:{column[:40]}")
        _check_columns(name, columns)
        written = {column: given for column, given in zip(columns, header, strict=True) if column != given}
        label = {} if "source" in columns else {"source": name.removesuffix(".csv")}
        for count, cells in enumerate(table):
            line = getattr(table, "line_num", count + 2)
            if count >= MAX_ROWS:
                raise SpecError(f"{name}:{line}", f"more than {MAX_ROWS} rows")
            if not any(cells):
                continue
            if len(cells) != len(header):
                column = header[len(cells)] if len(cells) < len(header) else header[-1]
                raise SpecError(
                    f"{name}:{line}:{column}", f"the header has {len(header)} columns, this row {len(cells)} cells"
                )
            yield Row(file=name, line=line, cells=label | dict(zip(columns, cells, strict=True)), written=written)
    except csv.Error as error:
        raise SpecError(f"{name}:{getattr(table, 'line_num', 1)}", f"is not valid CSV: {error}") from None


def known_columns(names: Sequence[str], where: Callable[[str], str]) -> list[str]:
    """Columns of the schema that the names of a table mean.

    Args:
        names: As the table has them.
        where: The place of a name, for messages.

    Raises:
        SpecError: If a name is none of a column, or two mean the same.
    """
    found: list[str] = []
    for name in names:
        column = ALIASES.get(name, name)
        if column not in COLUMNS:
            raise SpecError(where(name), "unknown column", did_you_mean(name, [*COLUMNS, *ALIASES]))
        if column in found:
            raise SpecError(where(name), "column is named twice" if name == column else f"is {column}, named twice")
        found.append(column)
    return found


def _check_columns(name: str, columns: Sequence[str]) -> None:
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise SpecError(f"{name}:1:{missing[0]}", "column is missing", "needed: " + ", ".join(REQUIRED))
