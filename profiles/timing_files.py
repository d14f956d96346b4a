"""Timing tables on disk: Parquet with a schema version, the columns of ``profiles.timings.COLUMNS``.

The layout: one row group after another, zstd, text columns dictionary-encoded, the version under the key
``planner.timings.version`` of the file's metadata. Columns a file lacks are missing values; columns it has
beyond the schema are refused, so that a misspelt one is not silently dropped.
"""

import contextlib
import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.errors import SpecError, did_you_mean, reason_of
from profiles.timings import (
    COLUMNS,
    MAX_ROWS,
    MISSING,
    REQUIRED,
    SCHEMA_VERSION,
    TimingTable,
    check_table,
    timing_table,
)

MAX_FILE_BYTES = 2 << 30
_VERSION_KEY = b"planner.timings.version"


def write_timings(table: TimingTable, path: Path) -> None:
    """Write a table; the same table gives the same bytes.

    Raises:
        SpecError: If a row is unsound or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_table(table)
    types = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "flag": pa.bool_()}
    fields = [pa.field(name, types[column.kind]) for name, column in COLUMNS.items()]
    schema = pa.schema(fields, metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})
    arrays = [pa.array(getattr(table, field.name), type=field.type) for field in fields]
    texts = [name for name, column in COLUMNS.items() if column.kind == "text"]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary, compression="zstd", use_dictionary=texts)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SpecError(str(path)[:200], f"cannot be written: {reason_of(error)}") from None


def write_timings_csv(table: TimingTable, path: Path) -> None:
    """Write a table for spreadsheets: the same columns; what is missing is empty.

    Raises:
        SpecError: If the file cannot be written.
    """
    columns = [getattr(table, name).tolist() for name in COLUMNS]
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            for row in zip(*columns, strict=True):
                writer.writerow(["" if value != value else value for value in row])
    except OSError as error:
        raise SpecError(str(path)[:200], f"cannot be written: {reason_of(error)}") from None


def read_parquet_columns(path: Path) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    """The columns of any Parquet file as NumPy arrays by name, and the file's metadata.

    Raises:
        SpecError: If the file is too large, unreadable or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = str(path)[:200]
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError(label, f"at most {MAX_FILE_BYTES} bytes; got more")
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise SpecError(label, f"at most {MAX_ROWS} rows; got {file.metadata.num_rows}")
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise SpecError(f"{label}.{twice[0][:60]}", "column is named twice")
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or "it is not a Parquet file, or a broken one"
        raise SpecError(label, f"cannot be read: {reason}") from None
    return {name: _as_numpy(table.column(name)) for name in table.column_names}, dict(table.schema.metadata or {})


def _as_numpy(column: Any) -> NDArray[Any]:
    """What ``column.to_numpy()`` gives, without importing pandas, as that does where it is installed: 0.1 s."""
    import pyarrow.types as kinds

    number = kinds.is_integer(column.type) or kinds.is_floating(column.type)
    if number and column.null_count == 0 and len(column):
        return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])
    if kinds.is_boolean(column.type) and column.null_count == 0:
        return np.array(column.to_pylist(), dtype=np.bool_)
    if kinds.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    found: NDArray[Any] = column.to_numpy()
    return found


def is_timing_file(path: Path) -> bool:
    """Whether a file is Parquet that carries this schema's version."""
    schema = _schema(path)
    return schema is not None and _VERSION_KEY in (schema.metadata or {})


def parquet_names(path: Path) -> list[str]:
    """The columns of a Parquet file; none if it is no such file."""
    schema = _schema(path)
    return [] if schema is None else list(schema.names)


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return None


def read_timings(path: Path) -> TimingTable:
    """A table that ``write_timings`` wrote, or any Parquet file with those columns.

    Raises:
        SpecError: If the file is unreadable, of a later version, lacks a required column, has an unknown one, or
            a row is unsound.
    """
    label = str(path)[:200]
    columns, metadata = read_parquet_columns(path)
    version = metadata.get(_VERSION_KEY, b"1").decode("ascii", "replace")
    if not version.isdigit() or int(version) > SCHEMA_VERSION:
        raise SpecError(label, f"has timing schema version {version[:20]!r}; this program reads up to {SCHEMA_VERSION}")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise SpecError(
            f"{label}.{missing[0]}", "is required", "see 'planner profiles import' for files of other tools"
        )
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise SpecError(f"{label}.{unknown[0][:60]}", "unknown column", did_you_mean(unknown[0], COLUMNS))
    count = len(columns["time_s"])
    filled = {name: _without_nulls(name, values) for name, values in columns.items()}
    return check_table(timing_table(count, **filled), where=label)


def _without_nulls(name: str, values: Any) -> Any:
    if COLUMNS[name].kind == "text":
        return np.array([MISSING[name] if value is None else value for value in values.tolist()], dtype=object)
    if COLUMNS[name].kind == "whole" and values.dtype.kind == "f":
        return np.where(np.isnan(values), 0.0, values)
    if values.dtype == object:
        return [MISSING[name] if value is None else value for value in values.tolist()]
    return values
