"""Reads a table of measured timings and recognises by its header what it holds.

Tables are CSV, compressed or not, or Parquet, one measurement a row: a source, a GPU, a shape and ``time_us`` in
microseconds. ``SCHEMAS`` lists the columns of each kind, in any case and order; those of ``DEFAULTS`` may be left out,
further ones are ignored. Commas, semicolons or tabs part the cells.
"""

import csv as text_csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.errors import SpecError
from profiles.timings import MAX_DIMENSION

MAX_ROWS = 5_000_000

_TEXT = ("source", "gpu", "dtype", "phase", "impl", "op", "shape", "distribution", "notes", "link")
SCHEMAS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("source", "gpu", "dtype", "m", "n", "k", "batch", "time_us", "notes"),
    "attention": (
        "source", "gpu", "dtype", "phase", "batch", "seq_q", "seq_kv", "heads", "kv_heads", "head_dim", "causal",
        "impl", "time_us",
    ),
    "elementwise": ("source", "gpu", "dtype", "op", "shape", "bytes", "time_us"),
    "collectives": ("source", "gpu", "link", "op", "num_gpus", "num_nodes", "size_bytes", "time_us"),
    "moe": (
        "source", "gpu", "dtype", "op", "num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep",
        "distribution", "impl", "time_us",
    ),
}  # fmt: skip

# Columns that are read where a table has them: what ran a collective, and how many nodes experts are on.
OPTIONAL: Mapping[str, tuple[str, ...]] = {"collectives": ("notes",), "moe": ("num_nodes",)}
# What a column means that a table does not have: who measured is not known, nor which library ran what.
DEFAULTS: Mapping[str, str | float] = {"source": "", "notes": "", "impl": "", "batch": 1.0}
_DEFAULTED: Mapping[str, tuple[str, ...]] = {
    "gemm": ("source", "batch", "notes"),
    "attention": ("source", "impl"),
    "elementwise": ("source",),
    "collectives": ("source", "notes"),
    "moe": ("source", "impl"),
}
_DELIMITERS = (",", ";", "\t")
_HEAD_BYTES = 64 << 10
_PARQUET = b"PAR1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A column of K words, each distinct one kept once.

    Attributes:
        values: (U,) distinct words.
        codes: (K,) index into them.
    """

    values: tuple[str, ...]
    codes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def map(self, function: Callable[[str], Any]) -> NDArray[Any]:
        """(K,) or (K, ...) what a function says of each row's word; it is asked once per distinct word."""
        return np.asarray([function(word) for word in self.values])[self.codes]

    def take(self, rows: NDArray[Any]) -> "Words":
        """The words of some rows."""
        return Words(values=self.values, codes=self.codes[rows])

    def renamed(self, function: Callable[[str], str]) -> "Words":
        """The column with every word replaced; equal words become one."""
        names = [function(word) for word in self.values]
        values = tuple(dict.fromkeys(names))
        place = np.array([values.index(name) for name in names], dtype=np.int64)
        return Words(values=values, codes=place[self.codes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table, columns of length K.

    Attributes:
        schema: Key into ``SCHEMAS``.
        words: Columns of text by name.
        numbers: Columns of numbers by name, NaN where one is missing.
        assumed: Columns that it does not have, which hold what ``DEFAULTS`` says.
    """

    schema: str
    words: Mapping[str, Words]
    numbers: Mapping[str, NDArray[np.float64]]
    assumed: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers["time_us"])


def schema_of(header: Sequence[str]) -> str | None:
    """Which kind of table has these columns, if any."""
    return next((name for name in SCHEMAS if not _missing(name, header)), None)


def _missing(schema: str, header: Sequence[str]) -> list[str]:
    return [name for name in SCHEMAS[schema] if name not in header and name not in _DEFAULTED[schema]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """Columns of a file, lower case, and what parts its cells; nothing does in Parquet."""

    names: tuple[str, ...]
    delimiter: str


def table_header(path: Path) -> tuple[str, ...]:
    """The columns of a file that may be a table, lower case; none if it cannot be read.

    Of a text the first line, by the delimiter that parts most of it.
    """
    try:
        return _header(path).names
    except SpecError:
        return ()


def _header(path: Path) -> _Header:
    import pyarrow
    from pyarrow import parquet

    try:
        with pyarrow.input_stream(str(path), compression="detect") as stream:
            head = stream.read(_HEAD_BYTES)
        if head.startswith(_PARQUET):
            return _Header(names=tuple(name.strip().lower() for name in parquet.read_schema(path).names), delimiter="")
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from None
    line = next(iter(head.decode("utf-8-sig", "replace").splitlines()), "")
    delimiter = max(_DELIMITERS, key=line.count)
    words = next(text_csv.reader([line], delimiter=delimiter), [])
    return _Header(names=tuple(word.strip().lower() for word in words), delimiter=delimiter)


def no_table(path: Path, header: Sequence[str]) -> SpecError:
    """What is wrong with a header of no known table: the kind it is nearest to, and what it lacks."""
    shared = {name: len(set(SCHEMAS[name]) & set(header)) / len(SCHEMAS[name]) for name in SCHEMAS}
    nearest = max(shared, key=lambda name: shared[name])
    if not shared[nearest]:
        return SpecError(
            str(path)[:200], "has the header of no known table", f"{nearest}: {','.join(SCHEMAS[nearest])}"
        )
    lacks = ", ".join(_missing(nearest, header))
    problem = f"has the header of no known table; nearest is {nearest}, which needs {lacks} too"
    return SpecError(str(path)[:200], problem, f"its columns are {','.join(SCHEMAS[nearest])}")


def _unreadable(path: Path, error: Exception) -> SpecError:
    words = "".join(letter for letter in (str(error).splitlines() or [""])[0][:200] if letter.isprintable())
    return SpecError(str(path), f"is not a readable table: {words}")


def read_table(path: Path) -> Table:
    """A table from a ``.csv``, ``.csv.gz`` or ``.parquet`` file.

    Raises:
        SpecError: If the file cannot be read, has another header, a word where a number belongs, or more than
            ``MAX_ROWS`` rows; the field is the file.
    """
    import pyarrow

    label = str(path)
    if not path.is_file():
        raise SpecError(label, "no such file")
    header = _header(path)
    schema = schema_of(header.names)
    if schema is None:
        raise no_table(path, header.names)
    if twice := sorted({name for name in header.names if header.names.count(name) > 1}):
        raise SpecError(f"{label}.{twice[0][:60]}", "column is named twice")
    names = [name for name in (*SCHEMAS[schema], *OPTIONAL.get(schema, ())) if name in header.names]
    batches, rows = [], 0
    try:
        for batch in _batches(path, header, names):
            rows += batch.num_rows
            if rows > MAX_ROWS:
                raise SpecError(label, f"has more than {MAX_ROWS:,} rows", "score a part of it")
            batches.append(batch)
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from None
    if not rows:
        raise SpecError(label, "holds no rows")
    whole = pyarrow.Table.from_batches(batches)
    assumed = tuple(name for name in _DEFAULTED[schema] if name not in names)
    return Table(
        schema=schema,
        words={name: _words(whole[name]) for name in names if name in _TEXT}
        | {name: _same(DEFAULTS[name], rows) for name in assumed if name in _TEXT},
        numbers={name: whole[name].to_numpy() for name in names if name not in _TEXT}
        | {name: np.full(rows, float(DEFAULTS[name])) for name in assumed if name not in _TEXT},
        assumed=assumed,
    )


def _batches(path: Path, header: _Header, names: Sequence[str]) -> Iterator[Any]:
    """Some rows at a time of the columns named, words and numbers."""
    import pyarrow
    from pyarrow import csv, parquet

    types = {name: pyarrow.string() if name in _TEXT else pyarrow.float64() for name in names}
    if not header.delimiter:
        with parquet.ParquetFile(path) as file:
            columns = [file.schema_arrow.names[header.names.index(name)] for name in names]
            for batch in file.iter_batches(columns=columns):
                whole = pyarrow.table(
                    [batch[column].cast(types[name]) for column, name in zip(columns, names, strict=True)],
                    names=list(names),
                )
                yield from whole.to_batches()
        return
    reading = csv.ReadOptions(column_names=list(header.names), skip_rows=1)
    parsing = csv.ParseOptions(delimiter=header.delimiter)
    convert = csv.ConvertOptions(column_types=types, include_columns=list(names), strings_can_be_null=False)
    with (
        pyarrow.input_stream(str(path), compression="detect") as stream,
        csv.open_csv(stream, read_options=reading, parse_options=parsing, convert_options=convert) as reader,
    ):
        yield from reader


def positive(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(K,) whether numbers are above zero, and not beyond what a device can hold."""
    return np.asarray((values > 0) & (values <= MAX_DIMENSION))


def _same(word: str | float, count: int) -> Words:
    return Words(values=(str(word),), codes=np.zeros(count, dtype=np.int64))


def _words(column: Any) -> Words:
    encoded = column.fill_null("").combine_chunks().dictionary_encode()
    return Words(
        values=tuple(encoded.dictionary.to_pylist()),
        codes=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
    )
