"""What an operator of PyTorch does, from its name and the shapes a profiler recorded: columns of the schema.

Only operators that run as one piece of work are listed: a decomposed one (unfused attention, an eager RMS norm) is
told by the operators it is made of. Shapes are those of the operator's arguments, in its own order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.timing_ops import ELEMENT_BYTES, pointwise_bytes

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an operator.

    Attributes:
        name: As the profiler spells it, e.g. ``aten::mm``.
        dims: Shape of each argument; empty for what is no tensor.
        dtypes: Our name of each argument's element type; empty for what is no tensor or unknown.
        strides: Of each argument, where recorded.
        values: Text of arguments that are no tensors, where recorded.
    """

    name: str
    dims: Sequence[Sequence[Any]]
    dtypes: Sequence[str]
    strides: Sequence[Sequence[Any]] = ()
    values: Sequence[str] = ()

    def shape(self, index: int, rank: int) -> tuple[int, ...]:
        """Shape of an argument of that many dimensions; empty if it is none."""
        if index >= len(self.dims) or len(self.dims[index]) != rank:
            return ()
        shape = tuple(self.dims[index])
        return shape if all(isinstance(size, int) and size > 0 for size in shape) else ()

    def dtype(self, index: int = 0) -> str:
        """Element type of an argument."""
        return self.dtypes[index] if index < len(self.dtypes) else ""

    def flag(self, index: int) -> bool:
        """Whether an argument is ``True``."""
        return index < len(self.values) and self.values[index] == "True"


def recognise(call: Call) -> Columns | None:
    """The columns that an operator's call says, or None if it is not listed or its shapes are missing."""
    reader = _READERS.get(call.name)
    return reader(call) if reader is not None else None


def known(name: str) -> bool:
    """Whether an operator is listed."""
    return name in _READERS


def _rows(call: Call) -> tuple[int, int] | None:
    """Rows and width of the first argument, of any rank."""
    shape = call.dims[0] if call.dims else ()
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        return None
    return math.prod(shape[:-1]), shape[-1]


def _matrix_product(first: int, *, batched: bool = False) -> Callable[[Call], Columns | None]:
    """Product of the arguments ``first`` and the next."""

    def read(call: Call) -> Columns | None:
        rank = 3 if batched else 2
        left, right = call.shape(first, rank), call.shape(first + 1, rank)
        if not left or not right or left[-1] != right[-2] or (batched and left[0] != right[0]):
            return None
        letters = _stored(call, first) + _stored(call, first + 1)
        return {
            "op": "gemm", "dtype": call.dtype(first), "layout": letters if letters in ("NT", "NN", "TN") else "",
            "m": left[-2], "n": right[-1], "k": left[-1], "batch": left[0] if batched else 1,
        }  # fmt: skip

    return read


def _stored(call: Call, index: int) -> str:
    """N for a row-major matrix, T for a transposed view of one, empty where strides do not tell."""
    strides = call.strides[index] if index < len(call.strides) else ()
    if len(strides) < 2:
        return ""
    return "N" if strides[-1] == 1 else "T" if strides[-2] == 1 else ""


def _attention(op: str, query: int, *, causal: int, heads_last: bool = False) -> Callable[[Call], Columns | None]:
    """Fused attention whose query, key and value are consecutive arguments.

    Args:
        op: Operation of the schema.
        query: Place of the query.
        causal: Place of the flag that says whether the mask is causal.
        heads_last: Whether tensors are (batch, tokens, heads, width) rather than (batch, heads, tokens, width).
    """

    def read(call: Call) -> Columns | None:
        q, k, v = (call.shape(query + i, 4) for i in range(3))
        if not q or not k or not v or causal >= len(call.values):
            return None
        tokens, heads = (1, 2) if heads_last else (2, 1)
        decode = op == "attention_forward" and q[tokens] == 1
        return {
            "op": "attention_decode" if decode else op, "dtype": call.dtype(query), "batch": q[0], "m": q[tokens],
            "n": k[tokens], "k": q[3], "heads": q[heads], "kv_heads": k[heads], "causal": call.flag(causal),
            "value_width": v[3] if v[3] != q[3] else 0,
        }  # fmt: skip

    return read


def _rowwise(op: str) -> Callable[[Call], Columns | None]:
    """A bandwidth-bound operator over the rows of its first argument."""

    def read(call: Call) -> Columns | None:
        rows, dtype = _rows(call), call.dtype(0)
        if rows is None or dtype not in ELEMENT_BYTES:
            return None
        moved = pointwise_bytes(op, rows[0] * rows[1], dtype)
        return {"op": op, "dtype": dtype, "m": rows[0], "n": rows[1], "bytes": moved}

    return read


def _elementwise(op: str) -> Callable[[Call], Columns | None]:
    """A sum or product of two tensors of one shape; a broadcast one is something else."""

    def read(call: Call) -> Columns | None:
        if len(call.dims) < 2 or list(call.dims[0]) != list(call.dims[1]) or call.dtype(0) != call.dtype(1):
            return None
        return _rowwise(op)(call)

    return read


def _copy(call: Call) -> Columns | None:
    """``copy_(target, source)``: a cast where the types differ."""
    rows, target, source = _rows(call), call.dtype(0), call.dtype(1)
    if rows is None or list(call.dims[0]) != list(call.dims[1]) or not {target, source} <= set(ELEMENT_BYTES):
        return None
    op = "copy" if target == source else f"cast_to_{target}"
    moved = rows[0] * rows[1] * (ELEMENT_BYTES[source] + ELEMENT_BYTES[target])
    return {"op": op, "dtype": source, "m": rows[0], "n": rows[1], "bytes": moved}


def _embedding(call: Call) -> Columns | None:
    """``embedding(table, indices)``: one row of the table per index."""
    table, dtype = call.shape(0, 2), call.dtype(0)
    if not table or len(call.dims) < 2 or not call.dims[1] or dtype not in ELEMENT_BYTES:
        return None
    tokens = math.prod(call.dims[1])
    moved = pointwise_bytes("embedding", tokens * table[1], dtype)
    return {"op": "embedding", "dtype": dtype, "m": tokens, "n": table[1], "bytes": moved}


def _adamw(call: Call) -> Columns | None:
    """Fused AdamW over lists of tensors: parameters, gradients and both moments read; all but gradients written."""
    lists = [argument for argument in call.dims[:4] if argument and all(isinstance(t, list) and t for t in argument)]
    if len(lists) < 4:
        return None
    elements = sum(math.prod(tensor) for tensor in lists[0])
    dtype = call.dtype(0) or "fp32"
    return {"op": "adamw", "dtype": dtype, "m": 1, "n": elements, "bytes": 7 * elements * ELEMENT_BYTES[dtype]}


_READERS: Mapping[str, Callable[[Call], Columns | None]] = {
    "aten::mm": _matrix_product(0),
    "aten::addmm": _matrix_product(1),
    "aten::bmm": _matrix_product(0, batched=True),
    "aten::baddbmm": _matrix_product(1, batched=True),
    "aten::_scaled_mm": _matrix_product(0),
    "aten::_scaled_dot_product_flash_attention": _attention("attention_forward", 0, causal=4),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention("attention_forward", 0, causal=4),
    "aten::_scaled_dot_product_efficient_attention": _attention("attention_forward", 0, causal=6),
    "aten::_scaled_dot_product_cudnn_attention": _attention("attention_forward", 0, causal=6),
    "aten::_scaled_dot_product_flash_attention_backward": _attention("attention_backward", 1, causal=11),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention("attention_backward", 1, causal=7),
    "aten::_scaled_dot_product_efficient_attention_backward": _attention("attention_backward", 1, causal=11),
    "aten::_scaled_dot_product_cudnn_attention_backward": _attention("attention_backward", 1, causal=14),
    "flash_attn::_flash_attn_forward": _attention("attention_forward", 0, causal=5, heads_last=True),
    "flash_attn::_flash_attn_backward": _attention("attention_backward", 1, causal=11, heads_last=True),
    "aten::native_layer_norm": _rowwise("layer_norm"),
    "aten::native_layer_norm_backward": _rowwise("layer_norm_backward"),
    "aten::_fused_rms_norm": _rowwise("rms_norm"),
    "aten::_fused_rms_norm_backward": _rowwise("rms_norm_backward"),
    "aten::gelu": _rowwise("gelu"),
    "aten::gelu_backward": _rowwise("gelu_backward"),
    "aten::silu": _rowwise("silu"),
    "aten::silu_backward": _rowwise("silu_backward"),
    "aten::relu": _rowwise("relu"),
    "aten::native_dropout": _rowwise("dropout"),
    "aten::_softmax": _rowwise("softmax"),
    "aten::_softmax_backward_data": _rowwise("softmax_backward"),
    "aten::cross_entropy_loss": _rowwise("cross_entropy"),
    "aten::add": _elementwise("add"),
    "aten::add_": _elementwise("add"),
    "aten::mul": _elementwise("multiply"),
    "aten::mul_": _elementwise("multiply"),
    "aten::copy_": _copy,
    "aten::embedding": _embedding,
    "aten::embedding_dense_backward": _rowwise("embedding_backward"),
    "aten::_fused_adamw_": _adamw,
    "aten::_fused_adam_": _adamw,
}
