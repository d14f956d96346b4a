"""Rows of fused attention as kernel calls."""

import numpy as np

from costmodels.kernels.calls import KernelOp, kernel_calls
from costmodels.kernels.implementations import REPLAYED, implementation_of
from costmodels.tables.read import Table
from costmodels.tables.rows import KernelRows, dtype_problems, first_problem, formats_of, rows_with
from profiles.precision import GEMM_FORMATS
from profiles.timing_ops import ATTENTION_BACKWARD_BYTES, ATTENTION_BACKWARD_FLOPS

_PHASES = {
    "prefill": KernelOp.ATTENTION_FORWARD,
    "train_fwd": KernelOp.ATTENTION_FORWARD,
    "train_bwd": KernelOp.ATTENTION_BACKWARD,
    "decode": KernelOp.ATTENTION_DECODE,
}
_NARROW_CACHE = "/kvfp8"  # 16-bit queries, keys and values kept in 8 bits


def attention_rows(table: Table) -> KernelRows:
    """Prefill, decode, forward and backward: one call a row."""
    sequences, queries, keys, heads, kv_heads, width, masked = (
        table.numbers[name] for name in ("batch", "seq_q", "seq_kv", "heads", "kv_heads", "head_dim", "causal")
    )
    phase, impl = table.words["phase"], table.words["impl"]
    narrow_cache = table.words["dtype"].map(lambda dtype: dtype.endswith(_NARROW_CACHE))
    arithmetic = table.words["dtype"].renamed(lambda dtype: dtype.removesuffix(_NARROW_CACHE))
    index, _, known = formats_of(arithmetic)
    sizes = np.stack([sequences, queries, keys, heads, kv_heads, width])
    positive = np.asarray((sizes >= 1).all(axis=0), dtype=np.bool_)
    problem = first_problem(
        table,
        (phase.map(lambda name: name not in _PHASES), "phase must be one of " + ", ".join(_PHASES)),
        *dtype_problems(arithmetic, ~known),
        (
            ~positive,
            "batch, lengths, heads and head_dim must be at least 1",
        ),
    )
    rows = np.flatnonzero(problem.codes == 0)
    sequences, queries, keys, heads, kv_heads, width = sizes[:, rows]
    op = phase.map(lambda name: int(_PHASES.get(name, KernelOp.ATTENTION_FORWARD)))[rows]
    # Query i of q sees keys - q + i + 1 of the keys.
    causal = 1 - np.where(masked[rows] > 0, (np.minimum(queries, keys) - 1) / (2 * keys), 0.0)
    value = np.where(impl.map(lambda name: "v_head_dim=128" in name)[rows], 128.0, width)
    backward = op == KernelOp.ATTENTION_BACKWARD
    flops = 2 * sequences * heads * queries * keys * (width + value) * causal
    cached = np.where(narrow_cache[rows] | (index[rows] == GEMM_FORMATS.index("fp8")), 1.0, 2.0)
    traffic = sequences * (2 * queries * heads + cached * keys * kv_heads) * (width + value)
    calls = kernel_calls(
        len(rows), op=op, gemm_format=index[rows], m=queries, n=keys, k=width, batch=sequences, heads=heads,
        kv_heads=kv_heads, causal=causal, flops=flops * np.where(backward, ATTENTION_BACKWARD_FLOPS, 1.0),
        bytes=traffic * np.where(backward, ATTENTION_BACKWARD_BYTES, 1.0), element_bytes=2.0,
        implementation=impl.map(implementation_of)[rows] + REPLAYED,
    )  # fmt: skip
    return rows_with(table, op=phase, engine=impl, problem=problem, parts=[(rows, calls)])
