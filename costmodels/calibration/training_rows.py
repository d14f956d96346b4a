"""Measured rows that learned kernel models are fitted on: one call each, its device, and where it was measured.

Left out, besides what has no price: rows that their device cannot have done, ``xla-perf-table`` (its compiler's GEMMs
are 30-60 % slower than the vendor library's), ``aiter-tuned`` on devices where the default dispatch was measured too,
and, of sources that time one eager call from the host, kernels that are not much longer than its launch. Of the others
the launch is taken off: the shortest times of a source on a device, less what an empty kernel takes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.kernel_ranges import GLUE_EFFICIENCY, RELEVANT_S
from costmodels.calibration.kernel_tables import Timings
from costmodels.kernels.calls import (
    COLUMNS,
    FloatArray,
    IntArray,
    KernelCallBatch,
    KernelFamily,
    KernelOp,
    concatenate,
    take,
)
from costmodels.kernels.device_reference import arithmetics
from costmodels.kernels.implementations import Library, implementation_of, library_of
from costmodels.kernels.learned import BLOCK_SCALED, FORMULA_OF, format_classes
from costmodels.tables.gemm_rows import moe_rows
from costmodels.tables.mapping import kernel_rows
from costmodels.tables.read import read_table
from costmodels.tables.rows import PACKED_BYTES, KernelRows
from costmodels.tables.timing_rows import possible, verdicts
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS

SEED = 20251125  # any fixed number: rows are drawn the same way at every run
EAGER_SOURCES = ("neusight", "neusight-label", "deepbench", "llmcompass", "kernelbench")
_LEFT_OUT = ("xla-perf-table",)
_LEAST_RELEVANCE = 0.1
_LAUNCHES = 5.0  # an eager row must be that many times longer than its launch
_EMPTY_KERNEL_S = 3e-6  # of the launch floor, what the kernel itself takes
_LONGEST_LAUNCH_S = 57e-6  # reported of NeuSight's host; a source with long rows only shows none
_SHORTEST = 0.005  # quantile of an eager source's times that is taken for a launch


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRows:
    """K measured calls of one operation class.

    Attributes:
        op_class: Operation class.
        calls: (K,) the calls.
        time_s: (K,) seconds on the device.
        device: (K,) catalogue names.
        source: (K,) tables the rows came from.
        kind: (K,) what tells rows of one source apart that should weigh alike, e.g. families of memory work.
    """

    op_class: str
    calls: KernelCallBatch
    time_s: FloatArray
    device: NDArray[np.str_]
    source: NDArray[np.str_]
    kind: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: IntArray | NDArray[np.bool_]) -> "TrainingRows":
        """Some of the rows."""
        return replace(
            self,
            calls=take(self.calls, rows),
            time_s=self.time_s[rows],
            device=self.device[rows],
            source=self.source[rows],
            kind=self.kind[rows],
        )

    def joined(self, other: "TrainingRows") -> "TrainingRows":
        """These rows and those of another set of the same operation class."""
        return TrainingRows(
            op_class=self.op_class,
            calls=concatenate([self.calls, other.calls]),
            time_s=np.concatenate([self.time_s, other.time_s]),
            device=np.concatenate([self.device, other.device]),
            source=np.concatenate([self.source, other.source]),
            kind=np.concatenate([self.kind, other.kind]),
        )

    @property
    def format(self) -> NDArray[np.str_]:
        """(K,) format class of each row."""
        return format_classes(self.calls)

    @property
    def group(self) -> NDArray[np.str_]:
        """(K,) device, source, format class and kind in one word: rows that share their systematic errors."""
        columns = (self.device, self.source, self.format, self.kind)
        return np.array(["/".join(words) for words in zip(*columns, strict=True)], dtype=np.str_)

    def weights(self) -> FloatArray:
        """(K,) rows of small groups weigh more, each group as the root of its size; short kernels less."""
        _, inverse, counts = np.unique(self.group, return_inverse=True, return_counts=True)
        weight = np.clip(self.time_s / RELEVANT_S, _LEAST_RELEVANCE, 1.0) / np.sqrt(counts[inverse])
        return np.asarray(weight / weight.mean(), dtype=np.float64)

    def timings(self) -> Timings:
        """Rows of one arithmetic as the roofline fit takes them."""
        (name,) = np.unique(arithmetics(self.format))
        return Timings(
            op=FORMULA_OF.get(self.op_class, self.op_class),
            format=str(name).removesuffix(BLOCK_SCALED),
            calls=self.calls,
            time_s=self.time_s,
            device=self.device,
            source=np.full(len(self), "", dtype="<U1"),  # launches are off already, whatever the source
            extra_bytes=np.zeros(len(self)),
            kind=self.kind,
        )


def launch_s(rows: KernelRows) -> FloatArray:
    """(K,) seconds of host launch inside each row's time; 0 for sources that time the device."""
    eager = rows.source.map(lambda source: source in EAGER_SOURCES)
    found = np.zeros(len(rows))
    for source in np.unique(rows.source.codes[eager]):
        for gpu in np.unique(rows.gpu.codes[rows.source.codes == source]):
            mine = (rows.source.codes == source) & (rows.gpu.codes == gpu)
            shortest = float(np.quantile(rows.time_s[mine], _SHORTEST))
            found[mine] = min(max(0.0, shortest - _EMPTY_KERNEL_S), _LONGEST_LAUNCH_S)
    return found


def training_rows(rows: KernelRows, op_class: str, keep: NDArray[np.bool_], kind: NDArray[np.str_]) -> TrainingRows:
    """The rows of a mask that are one priceable call on a device of the catalogue, without the host's launch.

    Args:
        rows: A table's rows.
        op_class: Operation class of the kept ones.
        keep: (K,) which rows are wanted.
        kind: (K,) see ``TrainingRows``.
    """
    device = rows.gpu.map(_catalogue_name).astype(np.str_)
    source = rows.source.map(str).astype(np.str_)
    launch = launch_s(rows)
    calls_per_row = np.bincount(rows.row, minlength=len(rows))
    wanted = keep & (calls_per_row == 1) & (device != "") & ~np.isin(source, _LEFT_OUT)
    wanted &= rows.time_s > _LAUNCHES * launch
    chosen = rows.take(np.flatnonzero(wanted))
    order = np.argsort(chosen.row)
    part = TrainingRows(
        op_class=op_class,
        calls=take(chosen.calls, order),
        time_s=(rows.time_s - launch)[wanted],
        device=device[wanted],
        source=source[wanted],
        kind=kind[wanted],
    )
    return _consensus(part.take(_priceable(part)))


def _table_rows(data: Path, name: str) -> KernelRows:
    """The rows of a table of kernels that their devices can have done."""
    path = data / "timings" / f"{name}.csv.gz"
    return possible(kernel_rows(read_table(path)), default_catalog(), where=path.name)


def gemm_training_rows(data: Path) -> TrainingRows:
    """Single GEMMs of every layout in 16 bits and less."""
    return _single_gemms(data, fp32=False)


def fp32_training_rows(data: Path) -> TrainingRows:
    """Single GEMMs of every layout in fp32, most of them of cards that training has left behind."""
    return _single_gemms(data, fp32=True)


def _single_gemms(data: Path, *, fp32: bool) -> TrainingRows:
    rows = _table_rows(data, "gemm")
    wanted = rows.op.map(lambda op: op == "gemm") & _unpacked(rows)
    wanted &= rows.dtype.map(lambda dtype: (dtype == "fp32") == fp32)
    return training_rows(rows, "gemm_fp32" if fp32 else "gemm", wanted, np.full(len(rows), "", dtype="<U1"))


# Grouped GEMMs as training runs them are CUTLASS's; other engines of the table are Triton or tuned for few tokens.
_GROUPED_ENGINES = ("moe_torch_flow", "cutlass", "best-tuned")
_FEWEST_PER_EXPERT = 1.0  # routed rows; with fewer, a fused layer is memory traffic and launches
_GLUE_LAUNCH_S = 3e-6  # of each of the three kernels of the permutation and the activation, which are timed along


def grouped_training_rows(data: Path) -> TrainingRows:
    """Grouped GEMMs of fused expert layers: what the glue leaves of a row's time, over both GEMMs alike."""
    table = read_table(data / "timings" / "moe.csv.gz")
    rows, reasons = moe_rows(table), verdicts(kernel_rows(table), default_catalog(), where="moe.csv.gz")
    engine = rows.engine.map(lambda name: any(word in name for word in _GROUPED_ENGINES) and "latency" not in name)
    even = table.words["distribution"].map(lambda name: name in ("balanced", "random"))
    chosen = rows.take(np.flatnonzero(engine & even & (reasons == "") & (rows.problem.codes == 0) & (rows.time_s > 0)))
    catalog, device = default_catalog(), chosen.gpu.map(_catalogue_name).astype(np.str_)
    grouped = chosen.calls.op == KernelOp.GROUPED_GEMM
    bytes_per_s = np.array(
        [catalog.device(str(name)).memory_bandwidth_bytes_per_s if name else 1.0 for name in device]
    )[chosen.row]
    glue_s = chosen.calls.bytes / bytes_per_s / GLUE_EFFICIENCY + _GLUE_LAUNCH_S * chosen.calls.batch
    glue_s = np.bincount(chosen.row, weights=np.where(grouped, 0.0, glue_s), minlength=len(chosen))
    left_s = chosen.time_s - glue_s
    wanted = grouped & (device != "")[chosen.row] & (left_s > 0.4 * chosen.time_s)[chosen.row]
    wanted &= chosen.calls.m >= _FEWEST_PER_EXPERT
    part = take(chosen.calls, wanted)
    row = chosen.row[wanted]
    share = part.flops / np.bincount(row, weights=part.flops, minlength=len(chosen))[row]
    found = TrainingRows(
        op_class="grouped_gemm",
        calls=part,
        time_s=(left_s[row] * share),
        device=device[row],
        source=chosen.source.map(str).astype(np.str_)[row],
        kind=np.full(len(row), "", dtype="<U1"),
    )
    return _consensus(found.take(_priceable(found)))


def _catalogue_name(gpu: str) -> str:
    """Catalogue name of a GPU of the tables; empty if there is none."""
    try:
        return default_catalog().device(gpu).name
    except SpecError:
        return ""


_PHASES = {
    "attention_forward": ("prefill", "train_fwd"),
    "attention_backward": ("train_bwd",),
    "attention_decode": ("decode",),
}


def attention_training_rows(data: Path, op_class: str) -> TrainingRows:
    """Fused attention forward, backward, or decoding: libraries as the engines run them."""
    rows = _table_rows(data, "attention")
    return training_rows(rows, op_class, rows.op.map(lambda op: op in _PHASES[op_class]), _libraries(rows))


def expert_training_rows(data: Path) -> TrainingRows:
    """Fused expert layers, forward."""
    rows = _table_rows(data, "moe")
    return training_rows(rows, "fused_experts", _unpacked(rows), _libraries(rows))


def _unpacked(rows: KernelRows) -> NDArray[np.bool_]:
    """(K,) rows of products that unpack no weights as they go."""
    return rows.dtype.map(lambda dtype: dtype not in PACKED_BYTES)


def _libraries(rows: KernelRows) -> NDArray[np.str_]:
    """(K,) name of the kernel library of each row."""
    return rows.engine.map(lambda label: Library(library_of(implementation_of(label))).name.lower()).astype(np.str_)


def memory_training_rows(data: Path) -> TrainingRows:
    """Bandwidth-bound work of every family."""
    rows = _table_rows(data, "elementwise")
    names = np.array([family.name.lower() for family in KernelFamily])[rows.calls.family]
    apart = np.where(library_of(rows.calls.implementation) == Library.SPELLED_OUT, "/op by op", "")
    kind = np.full(len(rows), "", dtype="<U48")
    kind[rows.row] = np.char.add(names, apart)
    return training_rows(rows, "memory", np.ones(len(rows), dtype=np.bool_), kind)


def _priceable(rows: TrainingRows) -> NDArray[np.bool_]:
    """(K,) whether the device of each row has the arithmetic of its call."""
    catalog = default_catalog()
    found = np.zeros(len(rows), dtype=np.bool_)
    for name in np.unique(rows.device):
        mine = rows.device == name
        for code in np.unique(rows.calls.gemm_format[mine]):
            here = mine & (rows.calls.gemm_format == code)
            try:
                catalog.device(str(name)).peak(GEMM_FORMATS[code])
            except SpecError:
                continue
            found |= here
    return found


def _consensus(rows: TrainingRows) -> TrainingRows:
    """Rows of one device, source and call become one, at their geometric mean: library versions differ by 4 %."""
    table = np.stack([getattr(rows.calls, name).astype(np.float64) for name in COLUMNS], axis=1)
    table = np.column_stack([table, *(np.unique(w, return_inverse=True)[1] for w in (rows.device, rows.source))])
    packed = np.ascontiguousarray(table).view(np.dtype((np.void, table.itemsize * table.shape[1]))).ravel()
    _, first, inverse, counts = np.unique(packed, return_index=True, return_inverse=True, return_counts=True)
    mean = np.exp(np.bincount(inverse, weights=np.log(rows.time_s)) / counts)
    order = np.argsort(first)
    return replace(rows.take(first[order]), time_s=mean[order])


def capped(rows: TrainingRows, most: int) -> TrainingRows:
    """At most ``most`` rows of each group, drawn at random with a fixed seed."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    _, inverse = np.unique(rows.group[order], return_inverse=True)
    place = np.empty(len(rows), dtype=np.int64)
    by_group = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[by_group], np.arange(inverse.max(initial=-1) + 1))
    place[by_group] = np.arange(len(rows)) - starts[inverse[by_group]]
    return rows.take(np.sort(order[place < most]))
