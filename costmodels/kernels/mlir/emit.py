"""Canonical StableHLO text of a kernel, and the kernels that lowered calls stand for.

The text is what JAX lowers for the same operation and shapes, written without JAX (an optional test
compares). Where one launch does more than StableHLO can say (fused attention, experts in one launch), or
one call stands for several unfused kernels, it is a ``stablehlo.composite`` whose private function says
what is computed.
"""

import math
from dataclasses import replace

import numpy as np

from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, take
from costmodels.kernels.implementations import is_bare
from costmodels.kernels.mlir import bandwidth, contractions
from costmodels.kernels.mlir.kernel import ATTENTION, ELEMENT_BYTES, FORMAT_ELEMENT, MEMORY, Kernel
from costmodels.kernels.mlir.text import Body, Value
from costmodels.kernels.sparse_attention import is_sparse
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS

PREFIX = "planner."
_INDEXED = ("embedding", "embedding_backward", "permute", "unpermute")
_COMPOSITES = ("grouped_gemm", *ATTENTION, "copy", "permute", "unpermute")
_WRITERS = contractions.WRITERS | bandwidth.WRITERS
_FIRST_OF_FAMILY = {family: op for op, family in reversed(MEMORY.items())}


def emit(kernel: Kernel) -> str:
    """The canonical text of a kernel: equal kernels give equal text, different ones different text."""
    body = Body()
    results = _WRITERS[kernel.op](kernel, body)
    attributes = _attributes(kernel)
    if not attributes and kernel.op not in _COMPOSITES:
        return f"module {{\n{body.function('main', results, public=True)}\n}}\n"
    outer, name = Body(), PREFIX + kernel.op
    for value in body.arguments:
        outer.argument(value.dims, value.element)
    called = outer.composite(name, attributes, results)
    return f"module {{\n{outer.function('main', called, public=True)}\n{body.function(name, results)}\n}}\n"


def _attributes(kernel: Kernel) -> str:
    stated: list[str] = []
    if kernel.op in ATTENTION:
        stated.append(f"causal = {_number(kernel.causal, always_float=True)}")
    if kernel.kernels != 1:
        stated.append(f"kernels = {_number(kernel.kernels)}")
    if kernel.traffic_bytes is not None:
        stated.append(f"traffic_bytes = {_number(kernel.traffic_bytes)}")
    return ", ".join(stated)


def _number(value: float, *, always_float: bool = False) -> str:
    """An attribute: a 64-bit integer where it is whole, else a float that reads back as the same number."""
    if float(value).is_integer() and not always_float:
        return f"{int(value)} : i64"
    short = f"{value:e}"
    return f"{short if float(short) == value else repr(float(value))} : f64"


def kernel_of(calls: KernelCallBatch, row: int) -> Kernel:
    """The kernel that one lowered call stands for.

    Extents are rounded to whole numbers. A bandwidth-bound call is written as the first operation of its
    family, with its launches and its traffic stated where those differ from that operation's own.

    Raises:
        SpecError: If the call does nothing, is a whole expert layer, linear or sparse attention, or is of the family
            ``OTHER``, which is read from texts only.
    """
    op, element_bytes = KernelOp(int(calls.op[row])), float(calls.element_bytes[row])
    format_name = GEMM_FORMATS[int(calls.gemm_format[row])]
    if op is KernelOp.MEMORY:
        return _memory_kernel(calls, row, element_bytes)
    if op is KernelOp.FUSED_EXPERTS:
        raise SpecError("kernel.op", "a fused expert layer has no text", "write its grouped GEMMs")
    if op is KernelOp.LINEAR_ATTENTION:
        raise SpecError("kernel.op", "linear attention has no text", "write its products")
    if is_sparse(op):
        raise SpecError("kernel.op", "sparse attention has no text", "write its products")
    kernel = Kernel(
        op={KernelOp.GEMM: "gemm", KernelOp.GROUPED_GEMM: "grouped_gemm"}.get(op) or _attention_name(op),
        format=format_name,
        storage=_storage(format_name, element_bytes),
        m=round(calls.m[row]), n=round(calls.n[row]), k=round(calls.k[row]), batch=round(calls.batch[row]),
        heads=round(calls.heads[row]), kv_heads=round(calls.kv_heads[row]),
        value_width=_value_width(calls, row, op, element_bytes),
        causal=float(calls.causal[row]) or 1.0,
        layout=int(calls.layout[row]),
    )  # fmt: skip
    kernel = _with_traffic(kernel, 1.0, float(calls.bytes[row]))
    if is_bare(take(calls, np.array([row])))[0]:  # counted as 16-bit tensors, which its operands are not
        return replace(kernel, storage="", result_storage="bf16")
    return kernel


def _attention_name(op: KernelOp) -> str:
    return next(name for name, code in ATTENTION.items() if code is op)


def _storage(format_name: str, element_bytes: float) -> str:
    """Element type of that many bytes; the format's own where it has them, or none are given."""
    own = FORMAT_ELEMENT[format_name]
    if element_bytes in (0.0, ELEMENT_BYTES[own]):
        return ""
    found = {4.0: "f32", 2.0: "bf16", 1.0: "f8E4M3FN", 0.5: "f4E2M1FN"}.get(element_bytes)
    if found is None:
        raise SpecError("kernel.element_bytes", f"no element type has {element_bytes:g} bytes")
    return found


def _value_width(calls: KernelCallBatch, row: int, op: KernelOp, element_bytes: float) -> int:
    """Head width of the values, from the traffic; 0 (as the keys') where it does not tell."""
    if op not in ATTENTION.values():
        return 0
    rows = calls.batch[row] * (calls.heads[row] * calls.m[row] + calls.kv_heads[row] * calls.n[row])
    passes = 2.0 if op is KernelOp.ATTENTION_BACKWARD else 1.0
    width = float(calls.bytes[row]) / max(passes * rows * (element_bytes or 2.0), 1.0) - float(calls.k[row])
    whole = round(width)
    return whole if whole > 0 and whole != round(calls.k[row]) and abs(width - whole) < 1e-6 * width else 0


def _memory_kernel(calls: KernelCallBatch, row: int, element_bytes: float) -> Kernel:
    family = KernelFamily(int(calls.family[row]))
    if family is KernelFamily.OTHER:
        raise SpecError("kernel.family", "OTHER has no text of its own", "use the text it was read from")
    kernel = Kernel(
        op=_FIRST_OF_FAMILY[family],
        storage=_storage("bf16", element_bytes),
        m=round(calls.m[row]), n=round(calls.n[row]),
    )  # fmt: skip
    return _with_traffic(kernel, float(calls.batch[row]), float(calls.bytes[row]))


def _with_traffic(kernel: Kernel, kernels: float, traffic_bytes: float) -> Kernel:
    """The kernel with launches and bytes stated, unless they are those of its operands."""
    if kernels == 1 and traffic_bytes == operand_bytes(kernel):
        return kernel
    return replace(kernel, kernels=kernels, traffic_bytes=traffic_bytes)


def operand_bytes(kernel: Kernel) -> float:
    """Bytes of every argument and result once; of a table that is indexed, the rows that are touched."""
    body = Body()
    results = _WRITERS[kernel.op](kernel, body)
    values = [*body.arguments, *results]
    touched = kernel.m * kernel.n * ELEMENT_BYTES[kernel.element]
    if kernel.op in _INDEXED:
        return touched + sum(_size_bytes(value) for value in body.arguments[1:]) + touched
    return sum(_size_bytes(value) for value in values)


def _size_bytes(value: Value) -> float:
    return math.prod(value.dims) * ELEMENT_BYTES[value.element]
