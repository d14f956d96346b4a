"""Profiles of Vidur: CSV files of ``mlp``, ``attention`` and ``all_reduce`` (``send_recv``) runs, times in ms.

The files name neither the GPU nor the element type: say the device; the type is fp16 unless said. Norms are RMS
norms where the MLP is gated. Times have a resolution of a microsecond.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from profiles.importers.base import Imported, ImportOptions, Rows, csv_rows, flag_in, number_in, whole_in
from profiles.timing_ops import pointwise_bytes
from profiles.timings import NORMAL_IQR

_MLP = ("n_embd", "n_expanded_embd", "n_head", "num_tokens", "num_tensor_parallel_workers")
_ATTENTION = ("n_embd", "n_q_head", "n_kv_head", "batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill")
_COLLECTIVE = ("num_workers", "size", "collective", "devices_per_node")
_MS = 1e-3
_RESOLUTION_MS = 1e-3


def looks_like_vidur(header: list[str]) -> bool:
    """Whether a CSV header is of one of these files."""
    return any(name.startswith("time_stats.") for name in header)


def import_vidur(path: Path, options: ImportOptions) -> Imported:
    """Rows of one file; repeated rows of one shape are kept.

    Raises:
        SpecError: Naming the line and column that cannot be read.
    """
    rows = Rows(path, options)
    dtype = options.dtype or "fp16"
    for line, row in csv_rows(path):
        where = f"{str(path)[:200]} line {line}"
        if "num_tokens" in row:
            shapes = _mlp_shapes(row, where)
        elif "is_prefill" in row:
            shapes = _attention_shapes(row, where)
        else:
            shapes = _collective_shapes(row, where, options)
        for name, columns in shapes:
            _add(rows, name, row, where, {"dtype": dtype} | columns)
    return rows.finish("vidur", method="profiler", source="microsoft/vidur", licence="MIT")


def _add(rows: Rows, name: str, row: Mapping[str, str], where: str, columns: dict[str, Any]) -> None:
    """The statistic of one timer of a row: the median, unless the timer could not resolve it."""
    stem = f"time_stats.{name}."
    if not row.get(stem + "median"):
        return
    median_ms = number_in(row, stem + "median", where=where)
    if median_ms < _RESOLUTION_MS:
        rows.skip("shorter than the timer resolves")
        return
    spread = {}
    if row.get(stem + "std"):
        spread = {"spread_s": number_in(row, stem + "std", where=where) * NORMAL_IQR * _MS}
    if columns.get("kind", "kernel") == "kernel" and "bytes" not in columns and columns["op"] not in _SHAPED:
        columns["bytes"] = pointwise_bytes(columns["op"], columns["m"] * columns["n"], columns["dtype"])
    rows.add(**{"kind": "kernel"} | columns, time_s=median_ms * _MS, statistic="median", **spread)


_SHAPED = ("gemm", "attention_forward", "attention_decode")


def _mlp_shapes(row: Mapping[str, str], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The timers of a transformer layer without its attention core."""
    hidden, wide, heads, tokens, split = (whole_in(row, name, where=where) for name in _MLP)
    kv_heads = whole_in(row, "n_kv_head", where=where) if row.get("n_kv_head") else heads
    gated = bool(row.get("use_gated_mlp")) and flag_in(row, "use_gated_mlp", where=where)
    width = hidden // max(heads, 1)
    kv_local = max(kv_heads // split, 1)

    def linear(outputs: int, inputs: int) -> dict[str, Any]:
        return {"op": "gemm", "layout": "NT", "m": tokens, "n": outputs, "k": inputs, "batch": 1}

    norm = {"op": "rms_norm" if gated else "layer_norm", "m": tokens, "n": hidden}
    activation = {"op": "silu_mul" if gated else "gelu", "m": tokens, "n": wide // split}
    rotated = (heads // split + kv_local) * width
    yield "emb", {"op": "embedding", "m": tokens, "n": hidden}
    yield "input_layernorm", norm
    yield "post_attention_layernorm", norm
    yield "attn_pre_proj", linear((heads // split + 2 * kv_local) * width, hidden)
    yield "attn_rope", {"op": "rotary", "m": tokens, "n": rotated}
    yield "attn_post_proj", linear(hidden, hidden // split)
    yield "mlp_up_proj", linear((2 if gated else 1) * wide // split, hidden)
    yield "mlp_act", activation
    yield "mlp_down_proj", linear(hidden, wide // split)
    if row.get("time_stats.post_attention_layernorm.median"):
        yield "add", {"op": "add", "m": tokens, "n": hidden}
    else:  # attention and MLP in parallel: two additions in a row
        passes = 2 * pointwise_bytes("add", tokens * hidden, "fp16")
        yield "add", {"op": "add", "m": tokens, "n": hidden, "bytes": passes, "note": "two additions"}


def _attention_shapes(row: Mapping[str, str], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Prefill of one chunk against a cache, or one token of every sequence."""
    hidden, heads, kv_heads, batch, chunk, cached = (whole_in(row, name, where=where) for name in _ATTENTION[:-1])
    split = whole_in(row, "num_tensor_parallel_workers", where=where) if "num_tensor_parallel_workers" in row else 1
    prefill = flag_in(row, "is_prefill", where=where)
    queries = chunk if prefill else 1
    shape = {
        "op": "attention_forward" if prefill else "attention_decode", "m": queries, "n": queries + cached,
        "k": hidden // max(heads, 1), "batch": batch, "heads": max(heads // split, 1),
        "kv_heads": max(kv_heads // split, 1), "causal": True, "kernel": row.get("attention_backend", ""),
    }  # fmt: skip
    yield "attn_prefill" if prefill else "attn_decode", shape


def _collective_shapes(
    row: Mapping[str, str], where: str, options: ImportOptions
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All-reduce or send/receive among ``num_workers``, ``devices_per_node`` of them on a host."""
    workers, size = (whole_in(row, name, where=where) for name in _COLLECTIVE[:2])
    local = max(whole_in(row, "devices_per_node", where=where), 1)
    name = row.get("collective", "")
    yield name, {
        "kind": "collective", "op": name, "size_bytes": size, "group_size": workers,
        "num_nodes": options.num_nodes or max(workers // local, 1),
    }  # fmt: skip
