"""How much work a measured row did: floating-point operations, and bytes read plus written."""

import numpy as np

from profiles import timing_ops as ops
from profiles.timings import FloatArray, TimingTable


def element_bytes(table: TimingTable) -> FloatArray:
    """(R,) bytes per element of the dtype; NaN where it is not given."""
    sizes = {word: ops.ELEMENT_BYTES.get(word, np.nan) for word in set(table.dtype.tolist())}
    return np.array([sizes[word] for word in table.dtype.tolist()], dtype=np.float64)


def score_share(table: TimingTable) -> FloatArray:
    """(R,) share of the m x n score matrix that attention computes: the causal part of the last m of n, or a window.

    Query i of m sees ``n - m + i`` keys (i from 1) when causal, at most ``window`` of them.
    """
    m, n = table.m.astype(float), np.maximum(table.n, 1).astype(float)
    window = np.where(table.window > 0, np.minimum(table.window, n), n)
    first = np.clip(n - m + 1, 1, None)  # keys the first query sees
    growing = np.clip(window - first + 1, 0, m)  # queries that still see fewer keys than the window, or just as many
    seen = growing * (first + (growing - 1) / 2) + (m - growing) * window
    causal = seen / np.maximum(m * n, 1)
    return np.asarray(np.where(table.causal, causal, window / n), dtype=np.float64)


def flops(table: TimingTable) -> FloatArray:
    """(R,) floating-point operations of a row, 2 per multiply-add; 0 for what does none worth counting."""
    m, n, k, batch = (getattr(table, name).astype(float) for name in ("m", "n", "k", "batch"))
    gemm = 2.0 * m * n * k * batch
    value = np.where(table.value_width > 0, table.value_width, k)
    attention = 2.0 * batch * table.heads * m * n * (k + value) * score_share(table)
    attention *= np.where(table.op == "attention_backward", ops.ATTENTION_BACKWARD_FLOPS, 1.0)
    kernel = table.kind == ops.KERNEL
    found = np.where(kernel & np.isin(table.op, ops.GEMMS), gemm, 0.0)
    return np.where(kernel & np.isin(table.op, ops.ATTENTIONS), attention, found)


def traffic_bytes(table: TimingTable) -> FloatArray:
    """(R,) bytes read plus written, each operand once: as stated, or as the shape says; NaN where neither does."""
    m, n, k, batch = (getattr(table, name).astype(float) for name in ("m", "n", "k", "batch"))
    size = element_bytes(table)
    value = np.where(table.value_width > 0, table.value_width, k)
    # Narrow formats are multiplied narrow and written in 16 bits.
    gemm = batch * ((m * k + k * n) * size + m * n * np.maximum(size, 2.0))
    attention = size * batch * (m * table.heads + n * table.kv_heads) * (k + value)
    attention *= np.where(table.op == "attention_backward", ops.ATTENTION_BACKWARD_BYTES, 1.0)
    passes = {word: ops.POINTWISE_PASSES.get(word) for word in set(table.op.tolist())}
    tensors = np.array([np.nan if (p := passes[word]) is None else p.reads + p.writes for word in table.op.tolist()])
    shaped = np.where((m > 0) & (n > 0), tensors * m * n * size, np.nan)
    kernel = table.kind == ops.KERNEL
    shaped = np.where(kernel & np.isin(table.op, ops.GEMMS), gemm, shaped)
    shaped = np.where(kernel & np.isin(table.op, ops.ATTENTIONS), attention, shaped)
    return np.where(table.bytes > 0, table.bytes, np.where(kernel, shaped, np.nan))
