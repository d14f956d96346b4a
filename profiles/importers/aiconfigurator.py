"""Tables of NVIDIA's aiconfigurator: GEMM, attention and NCCL collectives, Parquet or CSV, latency in ms.

Times are means over replays of a captured graph, without launch overhead. ``message_size`` counts elements.
Tables of whole MoE layers, of latent attention and of formats that no plan computes in are passed over.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from profiles.errors import SpecError
from profiles.importers.base import Imported, ImportOptions, Rows, csv_rows, dtype_of, number_in, whole_in
from profiles.timing_files import read_parquet_columns
from profiles.timing_ops import COLLECTIVES, ELEMENT_BYTES

HEADER = ("framework", "version", "device", "op_name", "kernel_source", "latency")
_MS = 1e-3
_SAMPLES = 6  # "mean of at least six after three warm-ups", its collector's documentation
_COLLECTIVES = {"alltoall": "all_to_all"} | {name: name for name in COLLECTIVES}


def looks_like_aiconfigurator(header: Iterable[str]) -> bool:
    """Whether a table has these columns."""
    return set(HEADER) <= set(header)


def import_aiconfigurator(path: Path, options: ImportOptions) -> Imported:
    """Rows of one table.

    Raises:
        SpecError: Naming the row and column that cannot be read.
    """
    rows = Rows(path, options)
    for place, row in _records(path):
        where = f"{str(path)[:200]} {place}"
        columns = _shape(row, rows, where)
        if columns is not None:
            version = f"{str(row['framework']).lower()}={row['version']}"
            rows.add(
                device=str(row["device"]), stack=version, kernel=str(row["kernel_source"])[:200],
                time_s=number_in(row, "latency", where=where) * _MS, **columns,
            )  # fmt: skip
    return rows.finish(
        "aiconfigurator", method="graph", statistic="mean", samples=_SAMPLES, source="ai-dynamo/aiconfigurator",
        licence="Apache-2.0",
    )  # fmt: skip


def _records(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        columns, _ = read_parquet_columns(path)
        names = list(columns)
        lists = [columns[name].tolist() for name in names]
        return ((f"row {i + 1}", dict(zip(names, row, strict=True))) for i, row in enumerate(zip(*lists, strict=True)))
    return ((f"line {line}", row) for line, row in csv_rows(path, HEADER))


def _shape(row: Mapping[str, Any], rows: Rows, where: str) -> dict[str, Any] | None:
    """The columns of the schema that a row says, or None where it is passed over."""
    name = str(row["op_name"])
    if "gemm_dtype" in row:
        return _gemm(row, rows, where)
    if "attn_dtype" in row and name in ("context_attention", "generation_attention"):
        return _attention(row, rows, where, decode=name == "generation_attention")
    if "message_size" in row and "num_gpus" in row:
        return _collective(row, rows, where)
    rows.skip(f"{name[:40]} is not read")
    return None


def _gemm(row: Mapping[str, Any], rows: Rows, where: str) -> dict[str, Any] | None:
    dtype = dtype_of(str(row["gemm_dtype"]))
    if not dtype or dtype == "int8":
        rows.skip(f"arithmetic {str(row['gemm_dtype'])[:40]} that no plan uses")
        return None
    m, n, k = (whole_in(row, name, where=where) for name in ("m", "n", "k"))
    return {"kind": "kernel", "op": "gemm", "dtype": dtype, "layout": "NT", "m": m, "n": n, "k": k, "batch": 1}


def _attention(row: Mapping[str, Any], rows: Rows, where: str, *, decode: bool) -> dict[str, Any] | None:
    dtype = dtype_of(str(row["attn_dtype"]))
    if not dtype or dtype_of(str(row.get("kv_cache_dtype", dtype))) != dtype:
        rows.skip("attention of a format that no plan uses, or a cache of another")
        return None
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step")
    batch, length, heads, kv_heads, width, step = (whole_in(row, name, where=where) for name in names)
    return {
        "kind": "kernel", "op": "attention_decode" if decode else "attention_forward", "dtype": dtype,
        "m": 1 if decode else length, "n": length + step, "k": width, "batch": batch, "heads": heads,
        "kv_heads": kv_heads or heads, "causal": True,
        "window": whole_in(row, "window_size", where=where) if row.get("window_size") else 0,
    }  # fmt: skip


def _collective(row: Mapping[str, Any], rows: Rows, where: str) -> dict[str, Any] | None:
    name = _COLLECTIVES.get(str(row["op_name"]))
    said = row.get("nccl_dtype") or row.get("allreduce_dtype") or ""
    dtype = dtype_of(str(said))
    if name is None or not dtype:
        rows.skip(f"collective {str(row['op_name'])[:40]} of {str(said)[:20]} is not read")
        return None
    gpus = whole_in(row, "num_gpus", where=where)
    size_bytes = whole_in(row, "message_size", where=where) * ELEMENT_BYTES[dtype]
    if gpus < 2:
        raise SpecError(f"{where}: num_gpus", f"must be at least 2; got {gpus}")
    return {
        "kind": "collective", "op": name, "dtype": dtype, "group_size": gpus, "size_bytes": size_bytes,
        "num_nodes": rows.options.num_nodes or 1,
    }  # fmt: skip
