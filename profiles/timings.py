"""Measured timings: one schema for kernels, collectives and whole steps, as columns of NumPy arrays.

A row is one statistic of one operation of one shape on one device under one set of libraries. ``COLUMNS``
documents every column; files (``profiles.timing_files``) hold the same columns under the same names. Units are
SI and part of the names. Text columns are object arrays of ``str``, empty where nothing is known; whole
numbers are 0 and floats NaN where they do not apply or are unknown.

Shapes, by operation (``profiles.timing_ops``):

* ``gemm``: C[m,n] = A[m,k] B[k,n], ``batch`` of them; ``grouped_gemm``: ``batch`` groups of m rows each.
* ``attention_*``: m query and n key tokens per sequence, k wide heads, ``batch`` sequences, ``heads`` and
  ``kv_heads`` on the device.
* bandwidth-bound kernels: m rows of n elements; ``bytes`` read plus written.
* collectives: ``size_bytes`` as nccl-tests counts it (all_gather: total output per rank; reduce_scatter and
  all_to_all: total input per rank), ``group_size`` ranks on ``num_nodes`` nodes.
* steps: what ran is in ``config``, a JSON object; ``m`` tokens in a micro-batch, ``batch`` micro-batches.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles import timing_ops as ops
from profiles.errors import SpecError, did_you_mean

SCHEMA_VERSION = 1
MAX_ROWS = 4_000_000
MAX_TEXT = 400
MAX_DIMENSION = 1 << 40
LONGEST_S = 86_400.0
NORMAL_IQR = 1.349  # standard deviations between the quartiles of a normal law

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
TextArray = NDArray[np.object_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the schema: ``text``, ``whole``, ``number`` or ``flag``, and what it means."""

    kind: str
    meaning: str


def _text(meaning: str) -> Column:
    return Column(kind="text", meaning=meaning)


def _whole(meaning: str) -> Column:
    return Column(kind="whole", meaning=meaning)


def _number(meaning: str) -> Column:
    return Column(kind="number", meaning=meaning)


COLUMNS: Mapping[str, Column] = {
    "kind": _text("kernel, collective or step"),
    "op": _text("operation, see profiles.timing_ops; lower case with underscores"),
    "dtype": _text("element type of the main operand: bf16, fp16, fp32, tf32, fp8, ..."),
    "layout": _text(
        "GEMM operands, row-major: NT forward, NN input gradient, TN weight gradient; empty: NT or unknown"
    ),
    "m": _whole("rows, query tokens, or tokens of a step's micro-batch"),
    "n": _whole("columns of the output, key tokens, or elements of a row"),
    "k": _whole("contracted dimension, or width of a head"),
    "batch": _whole("GEMMs in the call, groups, sequences, or micro-batches of a step"),
    "heads": _whole("query heads on the device"),
    "kv_heads": _whole("key and value heads on the device"),
    "value_width": _whole("width of a value head where it differs from k (latent attention)"),
    "window": _whole("keys each query sees at most; 0 for all"),
    "causal": Column(kind="flag", meaning="whether a query sees only keys up to its own position (the last m of n)"),
    "bytes": _number("device memory read plus written, each operand once; NaN where the shape says it"),
    "size_bytes": _number("message size of a collective, as nccl-tests counts it; bytes of a host copy"),
    "group_size": _whole("ranks that take part in a collective, or devices of a step"),
    "num_nodes": _whole("hosts they are on"),
    "link": _text("catalogue name of the slowest link crossed, if known"),
    "config": _text("what a step ran: a JSON object (model, layers, recompute, ...)"),
    "peak_memory_bytes": _number("largest memory allocated during a step"),
    "device": _text("catalogue name; the name the driver reports where the catalogue has none"),
    "stack": _text("library versions, 'name=version' sorted and joined by ';', e.g. 'cuda=13.0;torch=2.13.0'"),
    "kernel": _text("implementation that ran, e.g. a kernel's name or 'flash_attn'"),
    "method": _text("how it was timed: " + ", ".join(ops.METHODS)),
    "statistic": _text("which statistic time_s is: " + ", ".join(ops.STATISTICS)),
    "time_s": _number("seconds of one call"),
    "spread_s": _number(
        f"interquartile range of the samples; {NORMAL_IQR} standard deviations where only those are known"
    ),
    "samples": _whole("timed calls behind the statistic"),
    "measured_on": _text("date, YYYY-MM-DD"),
    "source": _text("who measured: a repository at a revision, a paper, or 'own measurement'"),
    "licence": _text("SPDX identifier of the source's licence"),
    "note": _text("anything else a reader must know"),
    "key": _text("canonical kernel key, computed by the cost models; empty until then"),
}
_TYPES: Mapping[str, Any] = {"text": object, "whole": np.int64, "number": np.float64, "flag": np.bool_}
_NUMPY_KINDS: Mapping[str, str] = {"whole": "iu", "number": "iuf", "flag": "b"}
_LARGEST_WHOLE = 2.0**62
_OF_TYPE: Mapping[str, Any] = {"text": "", "whole": 0, "number": np.nan, "flag": False}
MISSING: Mapping[str, Any] = {name: _OF_TYPE[column.kind] for name, column in COLUMNS.items()} | {
    "method": "unknown",
    "statistic": "unknown",
}
REQUIRED = ("kind", "op", "device", "time_s")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimingTable:
    """R measured rows as columns of length R; see ``COLUMNS`` for what each holds."""

    kind: TextArray
    op: TextArray
    dtype: TextArray
    layout: TextArray
    m: IntArray
    n: IntArray
    k: IntArray
    batch: IntArray
    heads: IntArray
    kv_heads: IntArray
    value_width: IntArray
    window: IntArray
    causal: BoolArray
    bytes: FloatArray
    size_bytes: FloatArray
    group_size: IntArray
    num_nodes: IntArray
    link: TextArray
    config: TextArray
    peak_memory_bytes: FloatArray
    device: TextArray
    stack: TextArray
    kernel: TextArray
    method: TextArray
    statistic: TextArray
    time_s: FloatArray
    spread_s: FloatArray
    samples: IntArray
    measured_on: TextArray
    source: TextArray
    licence: TextArray
    note: TextArray
    key: TextArray

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: IntArray | BoolArray) -> "TimingTable":
        """The rows of an index or a mask."""
        return TimingTable(**{name: getattr(self, name)[rows] for name in COLUMNS})

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain Python values."""
        return {name: _plain(getattr(self, name)[index]) for name in COLUMNS}

    def having(self, **columns: Any) -> "TimingTable":
        """The table with some columns replaced; scalars are repeated."""
        return timing_table(len(self), **{name: getattr(self, name) for name in COLUMNS} | columns)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def timing_table(count: int, **columns: Any) -> TimingTable:
    """``count`` rows from columns by name: scalars are repeated, columns left out are missing.

    Raises:
        SpecError: If a column is unknown, or of the wrong type or length.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise SpecError(f"timings.{unknown[0]}", "unknown column", did_you_mean(unknown[0], COLUMNS))
    return TimingTable(**{name: _filled(name, columns.get(name), count) for name in COLUMNS})


def _filled(name: str, values: Any, count: int) -> NDArray[Any]:
    kind = COLUMNS[name].kind
    if values is None:
        return np.full(count, MISSING[name], dtype=_TYPES[kind])
    if isinstance(values, str) or np.ndim(values) == 0:
        return np.full(count, values, dtype=_TYPES[kind])
    try:
        given = np.asarray(values, dtype=object if kind == "text" else None)
        array = given.astype(_TYPES[kind]) if _fits(given, kind) else None
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None:
        raise SpecError(f"timings.{name}", f"must hold values of type {kind}")
    if array.shape != (count,):
        raise SpecError(f"timings.{name}", f"must have {count} rows; got {array.shape}")
    return array


def _fits(given: NDArray[Any], kind: str) -> bool:
    """Whether values are of a kind of column: no dates as numbers, no words as flags, no fractions as whole numbers."""
    if not given.size:
        return True
    if kind == "text":
        return all(issubclass(found, str) for found in set(map(type, given.tolist())))
    if kind == "whole" and given.dtype.kind == "f":
        return bool(np.all(np.abs(given) < _LARGEST_WHOLE) and np.all(given == np.floor(given)))
    if kind == "flag" and given.dtype.kind in "iu":
        return bool(np.all((given == 0) | (given == 1)))
    return given.dtype.kind in _NUMPY_KINDS[kind]


def table_of_rows(rows: Sequence[Mapping[str, Any]]) -> TimingTable:
    """A table from rows that name only the columns that apply.

    Raises:
        SpecError: If a row names an unknown column or holds a value of the wrong type.
    """
    named = {name for row in rows for name in row}
    columns = {name: [row.get(name, MISSING.get(name)) for row in rows] for name in named}
    return timing_table(len(rows), **columns)


def joined(tables: Iterable[TimingTable]) -> TimingTable:
    """The rows of several tables, one after the other."""
    parts = list(tables)
    if not parts:
        return timing_table(0)
    return TimingTable(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


def stack_text(versions: Mapping[str, str]) -> str:
    """Library versions as the ``stack`` column writes them: sorted, ``name=version`` joined by ``;``."""
    return ";".join(f"{name}={versions[name]}" for name in sorted(versions) if versions[name])


_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


def _positive(*names: str) -> Callable[[TimingTable], BoolArray]:
    def check(table: TimingTable) -> BoolArray:
        good = np.ones(len(table), dtype=np.bool_)
        for name in names:
            good &= np.asarray(getattr(table, name) > 0)
        return good

    return check


def _of_kind(table: TimingTable, kind: str, names: Sequence[str]) -> BoolArray:
    return np.asarray((table.kind == kind) & np.isin(table.op, list(names)), dtype=np.bool_)


def _listed(table: TimingTable) -> BoolArray:
    """(R,) whether the shape says the traffic: a listed bandwidth-bound operation of known rows and dtype."""
    sized = _positive("m", "n")(table) & np.asarray(table.dtype != "", dtype=np.bool_)
    return sized & np.isin(table.op, list(ops.POINTWISE_PASSES))


def _shape_problems(table: TimingTable) -> list[tuple[BoolArray, str]]:
    kernel = np.asarray(table.kind == ops.KERNEL, dtype=np.bool_)
    gemm = _of_kind(table, ops.KERNEL, ops.GEMMS)
    attention = _of_kind(table, ops.KERNEL, ops.ATTENTIONS)
    collective = _of_kind(table, ops.COLLECTIVE, ops.COLLECTIVES)
    copy = _of_kind(table, ops.COLLECTIVE, ops.HOST_COPIES)
    other = kernel & ~gemm & ~attention
    dims = _positive("m", "n", "k", "batch")(table)
    heads = _positive("heads", "kv_heads")(table)
    grouped = np.asarray(table.heads % np.maximum(table.kv_heads, 1) == 0)
    return [
        ((gemm | attention) & ~dims, "m, n, k and batch must be positive"),
        (attention & ~(heads & grouped), "kv_heads must be positive and divide heads"),
        (other & ~((table.bytes > 0) | _listed(table)), "bytes must be given, or m and n of an operation listed"),
        ((table.kind == ops.COLLECTIVE) & ~(collective | copy), "unknown collective"),
        ((table.kind == ops.STEP) & ~np.isin(table.op, ops.STEPS), "unknown kind of step"),
        ((collective | copy) & ~(table.size_bytes > 0), "size_bytes must be positive"),
        (collective & ~(table.group_size > 1), "group_size must be at least 2"),
        (
            collective & ~((table.num_nodes > 0) & (table.num_nodes <= table.group_size)),
            "num_nodes must be 1 to group_size",
        ),
        ((table.kind == ops.STEP) & (table.config == ""), "config must say what ran"),
    ]


def row_problems(table: TimingTable) -> TextArray:
    """(R,) what is wrong with each row as data, whatever the device; empty where nothing is.

    Whether a time is possible at all is a question to the device's peaks: ``profiles.timing_audit``.
    """
    found = np.full(len(table), "", dtype=object)
    checks: list[tuple[Any, str]] = [
        (~np.isin(table.kind, ops.KINDS), "kind must be one of " + ", ".join(ops.KINDS)),
        (_mismatch(table.op, lambda word: _NAME.fullmatch(word) is not None), "op must be a lower-case name"),
        (~np.isin(table.dtype, ["", *ops.DTYPES]), "unknown dtype"),
        (~np.isin(table.layout, ["", *ops.LAYOUTS]), "layout must be one of " + ", ".join(ops.LAYOUTS)),
        (~np.isin(table.method, list(ops.METHODS)), "method must be one of " + ", ".join(ops.METHODS)),
        (~np.isin(table.statistic, ops.STATISTICS), "statistic must be one of " + ", ".join(ops.STATISTICS)),
        (table.device == "", "device must be given"),
        (~((table.time_s > 0) & (table.time_s < LONGEST_S)), f"time_s must be positive and below {LONGEST_S:g}"),
        (table.spread_s < 0, "spread_s must not be negative"),
        *_shape_problems(table),
    ]
    for name, column in COLUMNS.items():
        values = getattr(table, name)
        if column.kind == "whole":
            checks.append(((values < 0) | (values > MAX_DIMENSION), f"{name} must be between 0 and {MAX_DIMENSION}"))
        elif column.kind == "number":
            checks.append((np.isinf(values), f"{name} must be finite"))
        elif column.kind == "text":
            checks.append(
                (_mismatch(values, lambda word: len(word) <= MAX_TEXT), f"{name} exceeds {MAX_TEXT} characters")
            )
    for bad, problem in checks:
        found[np.asarray(bad, dtype=np.bool_) & (found == "")] = problem
    return found


def _mismatch(words: TextArray, good: Callable[[str], bool]) -> BoolArray:
    """(R,) where a text is none or not good; each distinct text is looked at once."""
    verdicts = {word: isinstance(word, str) and good(word) for word in set(words.tolist())}
    return np.fromiter((not verdicts[word] for word in words.tolist()), dtype=np.bool_, count=len(words))


def check_table(table: TimingTable, *, where: str = "timings") -> TimingTable:
    """The table itself, if every row is sound.

    Raises:
        SpecError: Naming the first row that is not, counted from 1, and how many there are.
    """
    problems = row_problems(table)
    bad = np.flatnonzero(problems != "")
    if len(bad):
        more = f" ({len(bad)} rows of {len(table)} are unsound)" if len(bad) > 1 else ""
        raise SpecError(f"{where} row {bad[0] + 1}", f"{problems[bad[0]]}{more}")
    if len(table) > MAX_ROWS:
        raise SpecError(where, f"at most {MAX_ROWS} rows; got {len(table)}")
    return table
