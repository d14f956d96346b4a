"""Rows of matrix multiplications and of fused expert layers as kernel calls."""

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import (
    FloatArray,
    GemmLayout,
    IntArray,
    KernelCallBatch,
    KernelFamily,
    KernelOp,
    kernel_calls,
)
from costmodels.kernels.device_features import OPERAND_BYTES
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of
from costmodels.tables.read import Table
from costmodels.tables.rows import (
    KernelRows,
    Parts,
    cache_bytes,
    dtype_problems,
    first_problem,
    formats_of,
    packed_bytes_of,
    rows_with,
    stored_bytes,
)

# BLAS names the transposition of both operands, column-major: TN is y = x W^T of a linear layer, NN its input
# gradient, NT its weight gradient.
_LAYOUTS = {
    "=TN": GemmLayout.FORWARD,
    "=NN": GemmLayout.INPUT_GRADIENT,
    "=NT": GemmLayout.WEIGHT_GRADIENT,
    "stage=bwd_grad_act": GemmLayout.INPUT_GRADIENT,
    "stage=bwd_grad_w": GemmLayout.WEIGHT_GRADIENT,
}
# Rows of a skewed routing time the busiest of the expert-parallel ranks: its time over that of even routing, in the
# median of 24,000 pairs with 16 and more tokens per expert, is 1.05 on one rank, 1.25 on 8 and 1.48 on 256.
_SKEWED, _BUSIEST_RANK, _BUSIEST_PER_DOUBLING = "power_law", 1.05, 0.055
_TUNED = "best-tuned"
# What aiter lists as eight bits wide (a8w8) is int8 where products are batched: their tuner draws int8 and their
# kernels take nothing else (``csrc/ck_batched_gemm_a8w8`` of ROCm/aiter, ``ADataType = I8``). Of single ones a column
# of the list says which.
TUNED_SOURCE = "aiter-tuned"
# aiconfigurator runs some copies of the weights in turn, so that each comes from memory: six, or with a version of
# TensorRT-LLM as few as outgrow the last-level cache, at most five (``collector/*/collect_gemm.py``). Small ones stay
# in the cache all the same: on an L40S (96 MiB) such rows move up to twice the bytes per second of its memory.
_ROTATING, _COUNTING = "aiconfigurator", "trtllm-1.3"
_COPIES, _MOST_COUNTED = 6, 5
_BOTH_GRADIENTS = "bwd(dgrad+wgrad)"


def gemm_calls(
    m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, index: IntArray, *,
    op: KernelOp | IntArray = KernelOp.GEMM, layout: GemmLayout | IntArray = GemmLayout.FORWARD,
    scale_block: FloatArray | float = 0.0, implementation: IntArray | int = 0, packed_bytes: FloatArray | float = 0.0,
) -> KernelCallBatch:  # fmt: skip
    """GEMM calls with the operations and the traffic that the lowering counts.

    Args:
        m: (C,) rows of the output, as in ``KernelCallBatch``.
        n: (C,) columns of the output.
        k: (C,) depth.
        batch: (C,) multiplications in one call.
        index: (C,) into ``GEMM_FORMATS``.
        op: ``GEMM`` or ``GROUPED_GEMM``.
        layout: ``GemmLayout`` codes.
        scale_block: Elements that share one scale.
        implementation: Who ran them.
        packed_bytes: Per weight that they unpack; 0 where they do not.
    """
    element = stored_bytes(index)
    return kernel_calls(
        len(m), op=op, gemm_format=index, layout=layout, m=m, n=n, k=k, batch=batch, flops=2 * m * n * k * batch,
        bytes=(m * k + k * n + m * n) * batch * element, element_bytes=element, scale_block=scale_block,
        implementation=implementation, packed_bytes=packed_bytes,
    )  # fmt: skip


def gemm_rows(table: Table) -> KernelRows:
    """Single and grouped GEMMs: one call a row, or both gradients of a linear layer together."""
    m, n, k, batch = (table.numbers[name] for name in ("m", "n", "k", "batch"))
    notes = table.words["notes"]
    index, block, known = formats_of(table.words["dtype"])
    packed = packed_bytes_of(table.words["dtype"])
    tuner = table.words["source"].map(lambda name: name == TUNED_SOURCE)
    problem = first_problem(
        table,
        *dtype_problems(table.words["dtype"], ~known | (tuner & (batch > 1) & (OPERAND_BYTES[index] == 1))),
        (~((m >= 1) & (n >= 1) & (k >= 1) & (batch >= 1)), "m, n, k and batch must be at least 1"),
    )
    grouped = notes.map(lambda note: "grouped" in note)
    layout = notes.map(_layout_of)
    both = notes.map(lambda note: note.startswith(_BOTH_GRADIENTS))
    implementation = notes.map(_tuned) + REPLAYED * _copies(table, n * k * OPERAND_BYTES[index])
    # Grouped rows and pairs of gradients are listed by the shape of their forward pass.
    from_forward = both | grouped
    parts: Parts = []
    for rows, code in (
        (np.arange(len(table)), layout),
        (np.flatnonzero(both), np.full(int(both.sum()), int(GemmLayout.WEIGHT_GRADIENT), dtype=np.int64)),
    ):
        shape = _gradient_shape(m[rows], n[rows], k[rows], np.where(from_forward[rows], code, 0))
        calls = gemm_calls(
            *shape, batch[rows], index[rows], layout=code, scale_block=block[rows],
            op=np.where(grouped[rows], int(KernelOp.GROUPED_GEMM), int(KernelOp.GEMM)),
            implementation=implementation[rows], packed_bytes=packed[rows],
        )  # fmt: skip
        parts.append((rows, calls))
    op = notes.renamed(lambda note: "grouped_gemm" if "grouped" in note else "gemm")
    return rows_with(table, op=op, engine=notes, problem=problem, parts=parts)


def _tuned(note: str) -> int:
    """Code of a tuner's choice of kernel, which multiplies what is quantised already; 0 for all others."""
    return code_of(Engine.UNKNOWN, Library.TUNED) if note.startswith(_TUNED) else 0


def _copies(table: Table, weight_bytes: FloatArray) -> IntArray:
    """(K,) copies of the weights that a row's source ran in turn; 0 where it is not known to."""
    cached_bytes = table.words["gpu"].map(cache_bytes)
    counted = table.words["notes"].map(lambda note: note.startswith(_COUNTING))
    outgrow = np.clip(np.ceil(cached_bytes / np.maximum(weight_bytes, 1.0)), 1, _MOST_COUNTED).astype(np.int64)
    rotates = table.words["source"].map(lambda name: name == _ROTATING)
    return np.where(rotates, np.where(counted, outgrow, _COPIES), 0)


def _layout_of(note: str) -> int:
    if note.startswith(_BOTH_GRADIENTS):
        return int(GemmLayout.INPUT_GRADIENT)
    return int(next((layout for word, layout in _LAYOUTS.items() if word in note), GemmLayout.FORWARD))


def _gradient_shape(
    m: FloatArray, n: FloatArray, k: FloatArray, layout: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The GEMM of one pass from the shape (m, n, k) of the forward pass."""
    ahead, inputs = layout == GemmLayout.FORWARD, layout == GemmLayout.INPUT_GRADIENT
    return (
        np.where(ahead | inputs, m, n),
        np.where(ahead, n, k),
        np.where(ahead, k, np.where(inputs, n, m)),
    )


def moe_rows(table: Table) -> KernelRows:
    """Fused expert layers: two grouped GEMMs, the permutation round them and the activation between.

    Tokens spread evenly unless the row says otherwise; of few tokens some experts see none and are not run:
    E (1 - (1 - topk/E)^tokens) do.
    """
    tokens, hidden, inter, topk, experts, tp, ep = (
        table.numbers[name] for name in ("num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep")
    )
    index, block, known = formats_of(table.words["dtype"])
    sizes = (tokens, hidden, inter, topk, experts, tp, ep)
    valid: NDArray[np.bool_] = np.logical_and.reduce([size >= 1 for size in sizes]) & (topk <= experts)
    problem = first_problem(
        table,
        (table.words["op"].map(lambda op: op != "fused_moe"), "only fused_moe is priced"),
        *dtype_problems(table.words["dtype"], ~known | (packed_bytes_of(table.words["dtype"]) > 0)),
        (~valid, "sizes must be at least 1, and topk at most num_experts"),
    )
    rows = np.flatnonzero(problem.codes == 0)
    tokens, hidden, inter, topk, experts, tp, ep = (size[rows] for size in sizes)
    local = np.maximum(experts / ep, 1.0)
    active = np.maximum(local * (1 - (1 - topk / experts) ** tokens), 1.0)
    skewed = table.words["distribution"].map(lambda name: name.startswith(_SKEWED))[rows]
    busiest = np.where(skewed, _BUSIEST_RANK + _BUSIEST_PER_DOUBLING * np.log2(ep), 1.0)
    routed = np.maximum(busiest * tokens * topk / ep, 1.0)
    width = inter / tp
    halves = table.words["impl"].map(lambda impl: 1.0 if "nongated" in impl else 2.0)[rows]
    element = stored_bytes(index[rows])
    up, down = (
        gemm_calls(
            routed / active, outputs, inputs, active, index[rows], op=KernelOp.GROUPED_GEMM, scale_block=block[rows]
        )
        for outputs, inputs in ((halves * width, hidden), (hidden, width))
    )
    permuted = kernel_calls(
        len(rows), op=KernelOp.MEMORY, family=KernelFamily.PERMUTE, m=routed, n=hidden, batch=2,
        bytes=4 * routed * hidden * element, element_bytes=element,
    )  # fmt: skip
    activation = np.where(halves > 1, int(KernelFamily.GATED_ACTIVATION), int(KernelFamily.ACTIVATION))
    activated = kernel_calls(
        len(rows), op=KernelOp.MEMORY, family=activation, m=routed, n=width, batch=1,
        bytes=(halves + 1) * routed * width * element, element_bytes=element,
    )  # fmt: skip
    return rows_with(
        table, op=table.words["op"], engine=table.words["impl"], problem=problem,
        parts=[(rows, calls) for calls in (up, down, permuted, activated)],
    )  # fmt: skip
