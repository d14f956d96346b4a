"""Reads a table of measured timings and recognises by its header what it holds.

Tables are CSV, compressed or not, one measurement a row: a source, a GPU, a shape and ``time_us`` in
microseconds. ``SCHEMAS`` lists the columns of each kind; further columns are ignored.
"""

from collections.abc import Callable, Mapping
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
    """

    schema: str
    words: Mapping[str, Words]
    numbers: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.numbers["time_us"])


def schema_of(header: list[str]) -> str | None:
    """Which kind of table has these columns, if any."""
    return next((name for name, columns in SCHEMAS.items() if set(columns) <= set(header)), None)


def read_table(path: Path) -> Table:
    """A table from a ``.csv`` or ``.csv.gz`` file.

    Raises:
        SpecError: If the file cannot be read, has another header, a word where a number belongs, or more than
            ``MAX_ROWS`` rows; the field is the file.
    """
    import pyarrow
    from pyarrow import csv

    label = str(path)
    if not path.is_file():
        raise SpecError(label, "no such file")
    types = {name: pyarrow.string() if name in _TEXT else pyarrow.float64() for c in SCHEMAS.values() for name in c}
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    batches, rows = [], 0
    try:
        with csv.open_csv(pyarrow.input_stream(label, compression="detect"), convert_options=convert) as reader:
            header = reader.schema.names
            schema = schema_of(header)
            if schema is None:
                raise SpecError(label, "has the header of no known table", _hint())
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise SpecError(f"{label}.{twice[0][:60]}", "column is named twice")
            for batch in reader:
                rows += batch.num_rows
                if rows > MAX_ROWS:
                    raise SpecError(label, f"has more than {MAX_ROWS:,} rows", "score a part of it")
                names = (*SCHEMAS[schema], *(name for name in OPTIONAL.get(schema, ()) if name in header))
                batches.append(batch.select(names))
    except (pyarrow.ArrowInvalid, OSError, EOFError) as error:
        words = "".join(letter for letter in str(error).splitlines()[0][:200] if letter.isprintable())
        raise SpecError(label, f"is not a readable CSV table: {words}") from None
    if not rows:
        raise SpecError(label, "holds no rows")
    whole = pyarrow.Table.from_batches(batches)
    names = tuple(whole.column_names)
    return Table(
        schema=schema,
        words={name: _words(whole[name]) for name in names if name in _TEXT},
        numbers={name: whole[name].to_numpy() for name in names if name not in _TEXT},
    )


def positive(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(K,) whether numbers are above zero, and not beyond what a device can hold."""
    return np.asarray((values > 0) & (values <= MAX_DIMENSION))


def _words(column: Any) -> Words:
    encoded = column.combine_chunks().dictionary_encode()
    return Words(
        values=tuple(encoded.dictionary.to_pylist()),
        codes=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
    )


def _hint() -> str:
    return "columns are " + "; or ".join(",".join(columns) for columns in SCHEMAS.values())
