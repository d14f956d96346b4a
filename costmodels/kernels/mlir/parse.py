"""MLIR text -> kernels with features, and the calls that the kernel cost models price.

Reads our own canonical texts, what JAX lowers (``lowered.as_text()``), the ``torch`` dialect of torch-mlir,
linalg on tensors, and the dispatches of IREE's flow dialect.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.mlir.features import KernelFeatures, features_of
from costmodels.kernels.mlir.flatten import flatten
from costmodels.kernels.mlir.narrow import as_kept
from costmodels.kernels.mlir.partition import size_bytes
from costmodels.kernels.mlir.reader import Function, Program, fault, read
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS

_SAME = ("op", "family", "layout", "m", "n", "k", "heads", "kv_heads", "causal", "bytes", "element_bytes")


def parse(text: str) -> tuple[KernelFeatures, ...]:
    """The kernels of an MLIR text, in order.

    Raises:
        SpecError: If the text is no MLIR that can be read, or does something that has no price here.
    """
    program = read(text)
    dispatched = _dispatches(program)
    return dispatched or tuple(features_of(flatten(program, _entry(program))))


def calls_of(kernels: Sequence[KernelFeatures]) -> KernelCallBatch:
    """Calls for a kernel cost model, one per kernel (``count`` is not in them).

    Raises:
        SpecError: If a size is not known, or a product is in a format that no device has a rate for.
    """
    for kernel in kernels:
        if kernel.format and kernel.format not in GEMM_FORMATS:
            raise SpecError("mlir", f"{kernel.name[:60]} multiplies in {kernel.format}, for which no peak rate is kept")
        if not math.isfinite(kernel.bytes):
            raise SpecError("mlir", f"{kernel.name[:60]} moves a tensor of unknown size", "lower it with fixed shapes")
    memory = [kernel.op is KernelOp.MEMORY for kernel in kernels]
    columns = {name: [getattr(kernel, name) for kernel in kernels] for name in _SAME}
    found = kernel_calls(
        len(kernels),
        gemm_format=[GEMM_FORMATS.index(kernel.format) if kernel.format else 0 for kernel in kernels],
        batch=[kernel.kernels if alone else kernel.batch for kernel, alone in zip(kernels, memory, strict=True)],
        flops=[0.0 if alone else kernel.matrix_flops for kernel, alone in zip(kernels, memory, strict=True)],
        **columns,
    )
    written_bytes = np.array([kernel.written_bytes for kernel in kernels], dtype=np.float64)
    return as_kept(found, written_bytes, np.array([kernel.bare for kernel in kernels], dtype=np.bool_))


def _entry(program: Program) -> Function:
    named = program.functions.get("main")
    if named is not None:
        return named
    functions = list(program.functions.values())
    return next((function for function in functions if function.public), functions[0])


def _dispatches(program: Program) -> tuple[KernelFeatures, ...]:
    """One kernel for each ``flow.dispatch``; empty if the program has none."""
    found: list[KernelFeatures] = []
    known: dict[str, KernelFeatures] = {}
    for function in program.functions.values():
        for operation in function.operations:
            if operation.name != "flow.dispatch":
                continue
            name = operation.text.partition("(")[0].rpartition("@")[2].strip()
            body = program.functions.get(name)
            if body is None:
                raise fault(operation.line, "dispatches a function that the text does not hold")
            if name not in known:
                known[name] = _dispatch(program, body)
            found.append(known[name])
    return tuple(found)


def _dispatch(program: Program, function: Function) -> KernelFeatures:
    """A dispatch is one launch: its largest part, with the bytes of all that is bound to it."""
    parts = features_of(flatten(program, function))
    bound = sum(size_bytes(kind, function.line) for _, kind in function.arguments)
    if not parts:
        parts = [KernelFeatures(name="", op=KernelOp.MEMORY, family=KernelFamily.COPY, n=bound, histogram={})]
    largest = max(parts, key=lambda part: (part.matrix_flops, part.bytes))
    return replace(largest, name=function.name, bytes=bound)
