"""What a collector can measure: one operation on one shape, and the least work it has to do.

A ``Case`` says what is run, never how long it takes. Its shape is given in the columns of ``profiles.timings``, so a
measured case becomes a row without translation. FLOPs (two per multiply-add) and bytes (every operand read or written
once) order cases by size and let an implausible time be seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiles.timing_ops import (
    ATTENTION_BACKWARD_BYTES,
    ATTENTION_BACKWARD_FLOPS,
    COLLECTIVE,
    ELEMENT_BYTES,
    KERNEL,
    pointwise_bytes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurable operation.

    Attributes:
        family: Which collector runs it, and with what it shares the budget, e.g. ``gemm`` or ``norm``.
        kind: ``kernel``, ``collective`` or ``step``, as in the timing schema.
        op: Operation of the timing schema (``profiles.timing_ops``).
        dtype: Format of the main operand.
        shape: Columns of the timing schema that say the size, in a fixed order.
        layout: Operand layout of a GEMM.
        kernel: Implementation asked for, e.g. ``torch_flash``.
        config: What a step runs, as JSON.
        flops: Floating-point operations.
        bytes: Device memory read plus written; bytes on the link for collectives and host copies.
        footprint_bytes: Device memory that one set of inputs and outputs takes.
        setup_s: Seconds that the first case of a stratum takes to get ready: compilation.
    """

    family: str
    kind: str
    op: str
    dtype: str
    shape: tuple[tuple[str, int], ...]
    layout: str = ""
    kernel: str = "torch"
    config: str = ""
    flops: float
    bytes: float
    footprint_bytes: float
    setup_s: float = 0.0

    @property
    def stratum(self) -> str:
        """Cases of one stratum can stand in for each other when a budget forces a choice; others cannot."""
        return "|".join((self.family, self.op, self.dtype, self.layout, self.kernel))

    @property
    def label(self) -> str:
        """Name for people and for the tie-break: operation, format, implementation, shape."""
        shape = ",".join(f"{name}={size}" for name, size in self.shape)
        return " ".join(part for part in (self.op, self.layout, self.dtype, self.kernel, shape, self.config) if part)

    def __getitem__(self, name: str) -> int:
        return dict(self.shape)[name]

    def columns(self) -> dict[str, Any]:
        """The columns of the timing schema that name this case."""
        named: dict[str, Any] = {
            "kind": self.kind, "op": self.op, "dtype": self.dtype, "layout": self.layout, "kernel": self.kernel,
            "config": self.config, **dict(self.shape),
        }  # fmt: skip
        if self.kind == KERNEL:
            named["bytes"] = self.bytes
        return named


def gemm(layout: str, dtype: str, m: int, n: int, k: int, *, batch: int = 1) -> Case:
    """C[m,n] = A[m,k] B[k,n], ``batch`` of them; the result is bf16 for fp8 operands, else of their format.

    Args:
        layout: How the operands lie in memory (``profiles.timing_ops.LAYOUTS``).
        dtype: Operand format.
        m: Rows of the result of this product (not of the layer).
        n: Its columns.
        k: The contracted dimension.
        batch: Independent products in one launch.
    """
    size = ELEMENT_BYTES[dtype]
    moved = batch * (size * (m * k + k * n) + max(size, 2.0) * m * n)
    return Case(
        family="gemm", kind=KERNEL, op="gemm", dtype=dtype, layout=layout,
        shape=(("m", m), ("n", n), ("k", k), ("batch", batch)),
        flops=2.0 * batch * m * n * k, bytes=moved, footprint_bytes=moved,
    )  # fmt: skip


def linear(dtype: str, tokens: int, inputs: int, outputs: int) -> tuple[Case, Case, Case]:
    """The three products of a linear layer: output, input gradient, weight gradient."""
    return (
        gemm("NT", dtype, tokens, outputs, inputs),
        gemm("NN", dtype, tokens, inputs, outputs),
        gemm("TN", dtype, outputs, inputs, tokens),
    )


def grouped_gemm(dtype: str, rows: int, n: int, k: int, groups: int, *, kernel: str) -> Case:
    """``groups`` forward products of ``rows`` rows each: one launch (``torch_grouped_mm``) or a ``torch_loop``."""
    moved = groups * ELEMENT_BYTES[dtype] * (rows * k + k * n + rows * n)
    return Case(
        family="grouped_gemm", kind=KERNEL, op="grouped_gemm", dtype=dtype, layout="NT", kernel=kernel,
        shape=(("m", rows), ("n", n), ("k", k), ("batch", groups)),
        flops=2.0 * groups * rows * n * k, bytes=moved, footprint_bytes=moved,
    )  # fmt: skip


def attention(
    op: str,
    dtype: str,
    *,
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    width: int,
    causal: bool,
    kernel: str = "torch_sdpa",
) -> Case:
    """Fused scaled-dot-product attention; a causal mask counts half of the score matrix.

    Args:
        op: ``attention_forward``, ``attention_backward`` or ``attention_decode`` (one query against a cache).
        dtype: Operand format.
        batch: Sequences.
        queries: Query tokens per sequence.
        keys: Key tokens per sequence.
        heads: Query heads.
        kv_heads: Key and value heads; must divide ``heads``.
        width: Width of one head.
        causal: Whether the mask is causal; needs ``queries == keys``.
        kernel: ``torch_flash``, ``torch_cudnn``, or ``torch_sdpa`` for what PyTorch picks.
    """
    backward = op == "attention_backward"
    share = 0.5 if causal else 1.0
    work, traffic = (ATTENTION_BACKWARD_FLOPS, ATTENTION_BACKWARD_BYTES) if backward else (1.0, 1.0)
    flops = 4.0 * batch * heads * queries * keys * width * share * work
    moved = 2.0 * ELEMENT_BYTES[dtype] * batch * width * (heads * queries + kv_heads * keys) * traffic
    return Case(
        family="attention", kind=KERNEL, op=op, dtype=dtype, kernel=kernel,
        shape=(("m", queries), ("n", keys), ("k", width), ("batch", batch), ("heads", heads), ("kv_heads", kv_heads),
               ("causal", int(causal))),
        flops=flops, bytes=moved, footprint_bytes=moved,
    )  # fmt: skip


_FAMILY_OF = {"layer_norm": "norm", "rms_norm": "norm", "add_rms_norm": "norm", "cross_entropy": "loss"}
COMPILED = "torch_compile"
_COMPILATION_S = 8.0  # of one small function, forward and backward; guides the choice only


def pointwise(op: str, dtype: str, rows: int, width: int, *, kernel: str = "torch") -> Case:
    """A norm, activation, softmax, loss or residual add over ``rows`` rows of ``width``; ``_backward`` for its pass.

    ``torch`` runs PyTorch's own kernels, several where it has no fused one; ``torch_compile`` what its compiler makes.
    The footprint leaves room for what PyTorch keeps beside the operands: a loss holds fp32 log-probabilities and
    their gradient.
    """
    moved = pointwise_bytes(op, float(rows) * width, dtype)
    family = _FAMILY_OF.get(op.removesuffix("_backward"), "activation")
    kept = moved + (12.0 * rows * width if family == "loss" else 0.0)
    return Case(
        family=family, kind=KERNEL, op=op, dtype=dtype, kernel=kernel, shape=(("m", rows), ("n", width)),
        flops=0.0, bytes=moved, footprint_bytes=kept, setup_s=_COMPILATION_S if kernel == COMPILED else 0.0,
    )  # fmt: skip


def rotary(op: str, dtype: str, tokens: int, heads: int, width: int, *, kernel: str = "torch") -> Case:
    """Rotary embedding of ``heads`` heads of ``width``: one read and one write of them."""
    moved = pointwise_bytes("rotary", float(tokens) * heads * width, dtype)
    return Case(
        family="rotary", kind=KERNEL, op=op, dtype=dtype, kernel=kernel,
        shape=(("m", tokens), ("n", heads * width), ("heads", heads)),
        flops=0.0, bytes=moved, footprint_bytes=3 * moved, setup_s=_COMPILATION_S if kernel == COMPILED else 0.0,
    )  # fmt: skip


def embedding(op: str, dtype: str, tokens: int, vocabulary: int, width: int) -> Case:
    """Row gather (forward), or scatter-add of its gradient into a zeroed table (backward).

    ``k`` is the vocabulary, the dimension that the equivalent product with one-hot rows contracts.
    """
    rows, table = (float(count) * width * ELEMENT_BYTES[dtype] for count in (tokens, vocabulary))
    moved = 2 * rows if op == "embedding" else 2 * rows + table
    return Case(
        family="embedding", kind=KERNEL, op=op, dtype=dtype, shape=(("m", tokens), ("n", width), ("k", vocabulary)),
        flops=0.0, bytes=moved, footprint_bytes=2 * rows + 2 * table,
    )  # fmt: skip


# Bytes per parameter that an AdamW step reads and writes: gradient in; parameter and two states in and out.
ADAMW_BYTES: Mapping[str, int] = {
    "torch_fused": 4 + 2 * 12,
    "torch_foreach": 4 + 2 * 12,
    "torch_fused_master": 2 + 2 * 12 + 2,  # 16-bit gradient in and weight out, fp32 master copy and states
    "bitsandbytes_8bit": 2 + 2 * 2 + 2 * 2,  # 16-bit gradient and weight, two 8-bit states
}


def adamw(kernel: str, elements: int) -> Case:
    """One AdamW step over ``elements`` parameters with one of the implementations of ``ADAMW_BYTES``."""
    fp32 = kernel in ("torch_fused", "torch_foreach")
    return Case(
        family="optimizer", kind=KERNEL, op="adamw", dtype="fp32" if fp32 else "bf16", kernel=kernel,
        shape=(("m", 1), ("n", elements)), flops=0.0, bytes=float(ADAMW_BYTES[kernel] * elements),
        footprint_bytes=22.0 * elements,  # master copy, states and fp32 gradient beside 16-bit weight and gradient
    )  # fmt: skip


def cast(source: str, target: str, elements: int) -> Case:
    """Conversion of a tensor; to fp8 it finds the largest magnitude first and scales by it (a second read)."""
    reads = 2 if target == "fp8" else 1
    moved = elements * (reads * ELEMENT_BYTES[source] + ELEMENT_BYTES[target])
    return Case(
        family="cast", kind=KERNEL, op=f"cast_to_{target}", dtype=source, shape=(("m", 1), ("n", elements)),
        flops=0.0, bytes=moved, footprint_bytes=2 * moved,
    )  # fmt: skip


def device_copy(size_bytes: int) -> Case:
    """A copy within device memory; read and write both count."""
    moved = 2.0 * size_bytes
    return Case(
        family="copy", kind=KERNEL, op="copy", dtype="bf16", shape=(("m", 1), ("n", size_bytes // 2)),
        flops=0.0, bytes=moved, footprint_bytes=moved,
    )  # fmt: skip


def host_copy(op: str, size_bytes: int) -> Case:
    """``host_to_device`` or ``device_to_host`` over the host link, from or to pinned memory."""
    return Case(
        family="copy", kind=COLLECTIVE, op=op, dtype="bf16", kernel="torch_pinned", shape=(("size_bytes", size_bytes),),
        flops=0.0, bytes=float(size_bytes), footprint_bytes=float(size_bytes),
    )  # fmt: skip


def collective(op: str, dtype: str, size_bytes: int, ranks: int, nodes: int, *, kernel: str) -> Case:
    """A collective of ``ranks`` ranks on ``nodes`` hosts; ``size_bytes`` as nccl-tests counts it."""
    return Case(
        family="collective", kind=COLLECTIVE, op=op, dtype=dtype, kernel=kernel,
        shape=(("size_bytes", size_bytes), ("group_size", ranks), ("num_nodes", nodes)),
        flops=0.0, bytes=float(size_bytes), footprint_bytes=2.0 * size_bytes,
    )  # fmt: skip
