"""Between tables of normalised public timings, the timing schema, and rows to score.

Of a public table, rows that are one call each become rows of the schema. Such a table does not say how its rows
were timed: say the method, or they count as unknown and are stored but not used as exact prices.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from costmodels.kernels.calls import KernelOp, take
from costmodels.kernels.measured import calls_of, priceable, table_of
from costmodels.tables.mapping import MAPPINGS, kernel_rows
from costmodels.tables.read import Table, Words, no_table, positive, read_table, schema_of, table_header
from costmodels.tables.rows import KernelRows
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.importers.base import Imported, ImportOptions, as_said, catalogue_name
from profiles.precision import GEMM_FORMATS
from profiles.timing_audit import MISTAKEN_SHARE_OF_LAYERS, audit, audit_layers, check_unit
from profiles.timing_ops import COLLECTIVE, COLLECTIVES, KERNEL
from profiles.timings import FloatArray, IntArray, TextArray, TimingTable, timing_table
from profiles.units import MICROSECOND

PUBLIC_TABLE = "table"
_LONGEST_NAME = 200
_NO_KERNEL = "only kernels are scored"
_NOT_PRICEABLE = "a format that no plan computes in, traffic unknown, or the host's launch timed along"


def is_public_table(path: Path) -> bool:
    """Whether a file is a table, CSV or Parquet, of one of the known headers."""
    return schema_of(table_header(path)) is not None


def check_recognised(path: Path) -> None:
    """Refuse a file that no format recognises, but that shares columns with a table of timings.

    Raises:
        SpecError: Naming the columns it lacks.
    """
    header = table_header(path)
    if "time_us" in header:
        raise no_table(path, header)


def import_public_table(path: Path, options: ImportOptions) -> Imported:
    """The rows of one table.

    Raises:
        SpecError: If it is no such table, or none of its rows can be read.
    """
    table = read_table(path)
    if table.schema in MAPPINGS:
        named, _, skipped = kernel_timings(kernel_rows(table))
    else:
        named, _, skipped = collective_timings(table)
    if not len(named):
        reasons = "; ".join(f"{count} times: {reason}" for reason, count in skipped.items())
        raise SpecError(str(path)[:200], f"no row can be read ({reasons})")
    named, others = as_said(named, options, str(path)[:200])
    return Imported(format=PUBLIC_TABLE, table=named, skipped=skipped | others, assumed=table.assumed)


def verdicts(found: KernelRows, catalog: Catalog, *, where: str) -> TextArray:
    """(K,) why its device cannot have done each row (``profiles.timing_audit``); empty where it can.

    Args:
        found: Rows of one table.
        catalog: Of the devices.
        where: The table, for the error.

    Raises:
        SpecError: If so many are impossible that their times must be in another unit.
    """
    timings, row, _ = kernel_timings(found)
    layers, layer, flops = layer_timings(found)
    audits = audit(timings, catalog), audit_layers(layers, flops, catalog)
    check_unit(timings, audits[0], where=where)
    check_unit(layers, audits[1], where=where, share=MISTAKEN_SHARE_OF_LAYERS)
    reasons: TextArray = np.full(len(found), "", dtype=object)
    reasons[row], reasons[layer] = (verdict.reasons for verdict in audits)
    return reasons


def possible(found: KernelRows, catalog: Catalog, *, where: str) -> KernelRows:
    """Rows to score without those that their device cannot have done; arguments and errors of ``verdicts``."""
    reasons = verdicts(found, catalog, where=where)
    values = (*found.problem.values, *sorted(set(reasons.tolist()) - {"", *found.problem.values}))
    codes = found.problem.codes.copy()
    for reason in sorted(set(reasons.tolist()) - {""}):
        codes[reasons == reason] = values.index(reason)
    kept = codes[found.row] == 0
    return replace(found, problem=Words(values=values, codes=codes), calls=take(found.calls, kept), row=found.row[kept])


def rows_of_timings(table: TimingTable) -> KernelRows:
    """Kernels of the timing schema as rows to score: one call each, or the reason why there is none."""
    kernel = np.asarray(table.kind == KERNEL, dtype=np.bool_)
    usable = priceable(table)
    problem = np.where(usable, 0, np.where(kernel, 2, 1))
    rows = np.flatnonzero(usable)
    return KernelRows(
        gpu=_words(table.device),
        source=_words(table.source),
        dtype=_words(table.dtype),
        op=_words(table.op),
        engine=_words(table.kernel),
        time_s=table.time_s,
        launch_s=np.zeros(len(table)),
        problem=Words(values=("", _NO_KERNEL, _NOT_PRICEABLE), codes=problem.astype(np.int64)),
        calls=calls_of(table.take(rows)),
        row=rows,
    )


def _words(column: TextArray) -> Words:
    places = {word: place for place, word in enumerate(dict.fromkeys(column.tolist()))}
    codes = np.array([places[word] for word in column.tolist()], dtype=np.int64)
    return Words(values=tuple(places), codes=codes)


def kernel_timings(found: KernelRows) -> tuple[TimingTable, IntArray, dict[str, int]]:
    """Rows that are one kernel each, timed in a way that is not known.

    Returns:
        The T rows in the timing schema; (T,) which rows of the table they are; those passed over, by reason.
    """
    calls_per_row = np.bincount(found.row, minlength=len(found))
    calls = found.calls
    whole = np.logical_and.reduce([size == np.floor(size) for size in (calls.m, calls.n, calls.k, calls.batch)])
    alone, layer = calls_per_row[found.row] == 1, calls.op == KernelOp.FUSED_EXPERTS
    packed = ~layer & (calls.packed_bytes > 0)
    skipped = {
        word: int(np.sum(found.problem.codes == code)) for code, word in enumerate(found.problem.values) if word
    } | {
        "more than one kernel": int(np.sum(calls_per_row > 1)),
        "a whole expert layer": int(np.sum(layer)),
        "products that unpack weights, which the schema has no word for": int(np.sum(packed)),
        "sizes must be whole numbers": int(np.sum(alone & ~layer & ~packed & ~whole)),
    }
    single = np.flatnonzero(alone & ~layer & ~packed & whole)
    row = found.row[single]
    timings = table_of(take(found.calls, single), device="", time_s=found.time_s[row])
    named = timings.having(
        device=found.gpu.map(str)[row].astype(object),
        source=found.source.map(str)[row].astype(object),
        kernel=found.engine.map(lambda word: word[:_LONGEST_NAME])[row].astype(object),
    )
    return _named(named), row, {reason: count for reason, count in skipped.items() if count}


def layer_timings(found: KernelRows) -> tuple[TimingTable, IntArray, FloatArray]:
    """Rows of whole expert layers, which the schema has no word for, to be judged alone: not to be stored.

    Returns:
        Devices, dtypes and times of the L rows; (L,) which rows of the table they are; (L,) their FLOPs.
    """
    calls = np.flatnonzero(found.calls.op == KernelOp.FUSED_EXPERTS)
    row = found.row[calls]
    timings = timing_table(
        len(row),
        kind=KERNEL,
        op="gemm",  # what a layer mostly is
        dtype=np.array(GEMM_FORMATS, dtype=object)[found.calls.gemm_format[calls]],
        time_s=found.time_s[row],
        device=found.gpu.map(str)[row].astype(object),
    )
    return _named(timings), row, found.calls.flops[calls]


def collective_timings(table: Table) -> tuple[TimingTable, IntArray, dict[str, int]]:
    """The same of a table of collectives."""
    op, numbers = table.words["op"].map(str), table.numbers
    ranks, nodes = numbers["num_gpus"], np.maximum(np.nan_to_num(numbers["num_nodes"]), 1)
    sound = [positive(numbers[name]) for name in ("num_gpus", "size_bytes", "time_us")]
    whole = (ranks == np.floor(ranks)) & (nodes == np.floor(nodes))
    known = np.isin(op, COLLECTIVES) & (ranks > 1) & (nodes <= ranks) & whole & np.logical_and.reduce(sound)
    rows = np.flatnonzero(known)
    timings = timing_table(
        len(rows),
        kind=COLLECTIVE,
        op=op[rows].astype(object),
        size_bytes=numbers["size_bytes"][rows],
        group_size=ranks[rows],
        num_nodes=nodes[rows],
        time_s=numbers["time_us"][rows] * MICROSECOND,
        device=table.words["gpu"].map(str)[rows].astype(object),
        source=table.words["source"].map(str)[rows].astype(object),
    )
    left = len(table) - len(rows)
    return _named(timings), rows, {"no collective of a group, size and time": left} if left else {}


def _named(timings: TimingTable) -> TimingTable:
    """The rows with their devices as the catalogue names them."""
    devices = {name: catalogue_name(name) for name in set(timings.device.tolist())}
    names = [devices[name] for name in timings.device.tolist()]
    return timings.having(device=names, method="unknown", statistic="unknown")
