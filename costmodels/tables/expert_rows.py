"""Rows of fused expert layers as kernel calls."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.expert_load import expert_load
from costmodels.kernels.expert_terms import carried_bytes, carries_all, expert_weight_bytes
from costmodels.kernels.implementations import REPLAYED, implementation_of
from costmodels.tables.read import Table, Words
from costmodels.tables.rows import (
    KernelRows,
    cache_bytes,
    dtype_problems,
    first_problem,
    formats_of,
    packed_bytes_of,
    rows_with,
)

_MOST_EXPERTS = 65_536  # of a layer: the load of each is worked out
# Timings, on an A100, in which every token that comes to a device has all of its experts there: over no more devices
# than experts per token they take as long as over one, and beyond as much less as devices are more. No others do.
_CROWDED = "sglang-0.5.10;sglang_fused_moe_triton"
# Timings, by source and GPU, of experts that the cache kept from one run to the next: those smaller than one and a half
# caches were read up to four times as fast as memory can send them. On no other GPU are any.
_KEPT_BY = ("aiconfigurator", "L40S")
_KEPT_CACHES = 1.5
_FEW_ROWS = 128  # of an expert: reading it takes longer than multiplying
_LOAD = ("rows", "active", "heaviest", "padded")


def expert_rows(table: Table) -> KernelRows:
    """One call a row: both grouped GEMMs with the permutation round them and the activation between."""
    sizes = np.stack(
        [table.numbers[name] for name in ("num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep")]
    )
    tokens, hidden, inter, topk, experts, tp, ep = sizes
    index, block, known = formats_of(table.words["dtype"])
    valid: NDArray[np.bool_] = (sizes >= 1).all(axis=0) & (topk <= experts) & (experts <= _MOST_EXPERTS)
    problem = first_problem(
        table,
        (table.words["op"].map(lambda op: op != "fused_moe"), "dispatch and combine are communication"),
        *dtype_problems(table.words["dtype"], ~known),
        (~valid, f"sizes must be at least 1, topk at most num_experts, and that at most {_MOST_EXPERTS}"),
    )
    rows = np.flatnonzero(problem.codes == 0)
    hidden, width = hidden[rows], np.maximum(inter[rows] / tp[rows], 1.0)
    crowded = table.words["impl"].map(lambda impl: impl.startswith(_CROWDED))[rows]
    shapes = np.vstack([np.stack([tokens, experts, topk, ep])[:, rows], crowded])
    load = _loads(shapes, table.words["distribution"].take(rows))
    matrices = table.words["impl"].map(lambda impl: 1.0 if "nongated" in impl else 1.5)[rows]
    implementation = table.words["impl"].map(implementation_of)[rows]
    carried = np.where(carries_all(implementation) & ~crowded, tokens[rows] * topk[rows], 0.0)
    calls = kernel_calls(
        len(rows), op=KernelOp.FUSED_EXPERTS, gemm_format=index[rows], scale_block=block[rows], m=load["rows"],
        n=width, k=hidden, batch=load["active"], heads=load["heaviest"], kv_heads=load["padded"], causal=matrices,
        flops=4.0 * matrices * load["rows"] * width * hidden, element_bytes=2.0,
        bytes=carried_bytes(np.maximum(load["rows"], carried), width, hidden),
        implementation=implementation + REPLAYED,
        packed_bytes=packed_bytes_of(table.words["dtype"])[rows],
    )  # fmt: skip
    calls = replace(calls, bytes=calls.bytes + expert_weight_bytes(calls))
    kept = np.zeros(len(table), dtype=np.bool_)
    kept[rows] = _kept(table, rows, calls)
    problem = Words(
        values=(*problem.values, "the cache kept the experts from run to run"),
        codes=np.where(kept, len(problem.values), problem.codes),
    )
    return rows_with(table, op=table.words["op"], engine=table.words["impl"], problem=problem, parts=[(rows, calls)])


def _kept(table: Table, rows: NDArray[np.int64], calls: KernelCallBatch) -> NDArray[np.bool_]:
    """(K,) whether the calls of some rows took their weights from a cache, as no layer of a model can."""
    source, gpu = (table.words[name].take(rows) for name in ("source", "gpu"))
    listed = source.map(lambda name: name == _KEPT_BY[0]) & gpu.map(lambda name: name == _KEPT_BY[1])
    small: NDArray[np.bool_] = expert_weight_bytes(calls) < _KEPT_CACHES * gpu.map(cache_bytes)
    return np.asarray(listed & small & (calls.m < _FEW_ROWS * calls.batch))


def _loads(shapes: FloatArray, distribution: Words) -> dict[str, FloatArray]:
    """(K,) load of the fullest device, worked out once per distinct shape."""
    table = np.vstack([shapes, distribution.codes])
    distinct, inverse = np.unique(table, axis=1, return_inverse=True)
    loads = [
        expert_load(tokens, experts, topk, parallel, distribution.values[int(code)], crowded=bool(crowded))
        for tokens, experts, topk, parallel, crowded, code in distinct.T
    ]
    return {name: np.array([getattr(load, name) for load in loads])[inverse] for name in _LOAD}
