"""Rows of a table as kernel calls: one or several calls each, or the reason why a row has no price."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, concatenate, take
from costmodels.tables.read import Table, Words
from profiles.catalog import default_catalog
from profiles.errors import SpecError, did_you_mean
from profiles.importers.base import dtype_of
from profiles.precision import GEMM_FORMATS
from profiles.timings import LONGEST_S, MAX_DIMENSION
from profiles.units import MICROSECOND
from profiles.weights import WEIGHT_FORMATS

# Arithmetic of the tables -> (GEMM format, elements that share one scale; 0 is the whole tensor).
FORMATS: Mapping[str, tuple[str, int]] = {
    "fp32": ("fp32", 0),
    "tf32": ("tf32", 0),
    "fp16": ("fp16", 0),
    "bf16": ("bf16", 0),
    "fp8": ("fp8", 0),
    "fp8_block": ("fp8", 128),
    "mxfp8": ("fp8", 32),
    "nvfp4": ("fp4", 16),
    "bfloat16/bfloat16": ("bf16", 0),
    "float8_e4m3fnuz/float8_e4m3fnuz": ("fp8", 0),
    "float8_e4m3fn/float8_e4m3fn": ("fp8", 0),
}
# What begins so names arithmetic or storage that kernels have but no job trains in; anything else is a slip.
_UNUSED = ("int", "uint", "w4", "w8")
UNUSED_DTYPE = "arithmetic that training does not use"
_MOST_NAMED = 20  # unknown spellings of a table that are told by name
# Products of 16 bits that unpack weights as they go -> bytes per weight. No model is fitted on their rows.
PACKED_BYTES: Mapping[str, float] = {
    word: WEIGHT_FORMATS[name].element_bytes
    for word, name in (("w4a16", "int4"), ("int4_wo", "int4"), ("w8a16", "int8"), ("int8_wo", "int8"))
}
_SPELLINGS = (*(word for word in FORMATS if "/" not in word), *PACKED_BYTES)


# Seconds of host launch inside each time of sources that time one eager call, by kind of table and source: median
# over their devices of the shortest half per cent of times less 3 us of kernel. DeepBench queues its calls. Sources
# not listed time the device.
HOST_LAUNCH_S: Mapping[tuple[str, str], float] = {
    ("gemm", "neusight"): 30e-6,
    ("gemm", "neusight-label"): 52e-6,
    ("gemm", "llmcompass"): 29e-6,
    ("gemm", "deepbench"): 7e-6,
    ("elementwise", "neusight"): 23e-6,
    ("elementwise", "neusight-label"): 12e-6,
    ("elementwise", "llmcompass"): 16e-6,
}
# The same of whole TensorRT engines of one layer, which aiconfigurator times with events.
_TENSORRT, TENSORRT_LAUNCH_S = "trt_flow", 5.2e-6
# What the launch of a host not seen may be, over that median: the shortest and the longest of their devices lie
# 0.36 and 1.9 times from it (leaving out one, of which only long calls were timed).
LAUNCH_RANGE = (0.4, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRows:
    """K measured rows and the C calls they are made of.

    Attributes:
        gpu, source, dtype: (K,) as the table spells them.
        op: (K,) operation or phase, to report by.
        engine: (K,) who ran the kernel and which, as the table notes it.
        time_s: (K,) measured.
        launch_s: (K,) of that, host launch rather than kernel, see ``HOST_LAUNCH_S``.
        problem: (K,) why a row cannot be priced; code 0, empty, if it can.
        calls: (C,) kernel calls of the rows without a problem.
        row: (C,) which row each call belongs to.
    """

    gpu: Words
    source: Words
    dtype: Words
    op: Words
    engine: Words
    time_s: FloatArray
    launch_s: FloatArray
    problem: Words
    calls: KernelCallBatch
    row: IntArray

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: IntArray) -> "KernelRows":
        """Some rows, in the given order and each at most once, with their calls."""
        place = np.full(len(self), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        kept = np.flatnonzero(place[self.row] >= 0)
        return KernelRows(
            gpu=self.gpu.take(rows),
            source=self.source.take(rows),
            dtype=self.dtype.take(rows),
            op=self.op.take(rows),
            engine=self.engine.take(rows),
            time_s=self.time_s[rows],
            launch_s=self.launch_s[rows],
            problem=self.problem.take(rows),
            calls=take(self.calls, kept),
            row=place[self.row[kept]],
        )


Parts = list[tuple[IntArray, KernelCallBatch]]  # rows of a table, and one call for each of them


def formats_of(dtype: Words) -> tuple[IntArray, FloatArray, NDArray[np.bool_]]:
    """(K,) index into ``GEMM_FORMATS``, elements per scale, and whether the arithmetic is one that is known."""
    known = {**FORMATS, **dict.fromkeys(PACKED_BYTES, ("bf16", 0))}
    named = dtype.renamed(lambda word: word if word in known else dtype_of(word))
    return (
        named.map(lambda word: GEMM_FORMATS.index(known.get(word, ("fp32", 0))[0])),
        named.map(lambda word: float(known.get(word, ("", 0))[1])),
        named.map(lambda word: word in known),
    )


def dtype_problems(dtype: Words, refused: NDArray[np.bool_]) -> tuple[tuple[NDArray[np.bool_], str], ...]:
    """Checks for ``first_problem``: of refused rows, spellings that nothing is known by are told with the nearest."""
    unknown = [word for word in dtype.values if not (word.startswith(_UNUSED) or word in FORMATS or dtype_of(word))]
    words = sorted(set(unknown) - set(PACKED_BYTES))[:_MOST_NAMED]
    named = [
        (
            refused & dtype.map(wanted.__eq__),
            f"unknown dtype {wanted[:40]!r}; {did_you_mean(wanted, _SPELLINGS)}",
        )
        for wanted in words
    ]
    return (*named, (refused, UNUSED_DTYPE))


def packed_bytes_of(dtype: Words) -> FloatArray:
    """(K,) bytes per weight that products unpack; 0 where they do not."""
    return dtype.map(lambda word: PACKED_BYTES.get(word, 0.0))


def stored_bytes(index: IntArray) -> FloatArray:
    """Bytes per element of the operands of a GEMM format as training keeps them: narrow ones in 16 bits."""
    return np.array([4.0 if name in ("fp32", "tf32") else 2.0 for name in GEMM_FORMATS])[index]


def rows_with(table: Table, *, op: Words, engine: Words, problem: Words, parts: Parts) -> KernelRows:
    """The rows of a table with their calls; those of rows with a problem are dropped."""
    kept = [(rows[problem.codes[rows] == 0], take(calls, problem.codes[rows] == 0)) for rows, calls in parts]
    return KernelRows(
        gpu=table.words["gpu"],
        source=table.words["source"],
        dtype=table.words["dtype"],
        op=op,
        engine=engine,
        time_s=table.numbers["time_us"] * MICROSECOND,
        launch_s=np.maximum(
            table.words["source"].map(lambda source: HOST_LAUNCH_S.get((table.schema, source), 0.0)),
            engine.map(lambda label: TENSORRT_LAUNCH_S if _TENSORRT in label else 0.0),
        ),
        problem=problem,
        calls=concatenate([calls for _, calls in kept]),
        row=np.concatenate([rows for rows, _ in kept]),
    )


def first_problem(table: Table, *checks: tuple[NDArray[np.bool_], str]) -> Words:
    """(K,) the words of the first check that fails for a row; code 0, empty, where none does.

    Checked of every kind of table: that time is one, and that no number exceeds what a device can hold.
    """
    found = np.zeros(len(table), dtype=np.int64)
    time_us = table.numbers["time_us"]
    huge = np.logical_or.reduce([values > MAX_DIMENSION for values in table.numbers.values()])
    every = (
        *checks,
        (~((time_us > 0) & (time_us * MICROSECOND < LONGEST_S)), f"time_us must be positive and below {LONGEST_S:g} s"),
        (huge, f"a number exceeds {MAX_DIMENSION}"),
    )
    for number, (failed, _) in enumerate(every):
        found[(found == 0) & failed] = number + 1
    return Words(values=("", *(words for _, words in every)), codes=found)


def cache_bytes(gpu: str) -> float:
    """Last-level cache of a GPU of the tables; none if it is not in the catalogue."""
    try:
        return float(default_catalog().device(gpu).l2_bytes)
    except SpecError:
        return 0.0
