"""Rows of bandwidth-bound work as kernel calls."""

import numpy as np

from costmodels.kernels.calls import KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.implementations import REPLAYED
from costmodels.tables.read import Table
from costmodels.tables.rows import KernelRows, first_problem, rows_with

# The operation's name, without how it was run and which pass it is, to the work it does.
_FAMILIES = {
    "norm": KernelFamily.NORM, "layernorm": KernelFamily.NORM, "rmsnorm": KernelFamily.NORM,
    "gelu": KernelFamily.ACTIVATION, "relu": KernelFamily.ACTIVATION, "tanh": KernelFamily.ACTIVATION,
    "silu": KernelFamily.ACTIVATION, "sigmoid": KernelFamily.ACTIVATION, "silu_mul": KernelFamily.GATED_ACTIVATION,
    "softmax": KernelFamily.SOFTMAX, "log_softmax": KernelFamily.SOFTMAX, "rope": KernelFamily.ROTARY,
    "embedding": KernelFamily.EMBEDDING, "static_quant": KernelFamily.QUANTISE, "copy": KernelFamily.COPY,
}  # fmt: skip
_ONE_BY_ONE = ("rmsnorm_eager", "rope_eager", "gelu_eager")  # several kernels, each over the whole tensor
_HOW = ("_inductor", "_eager", "_bwd")
_ELEMENT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}


def family_of(op: str) -> KernelFamily:
    """The work an operation of the tables does; what is not named there is pointwise."""
    if op in _ONE_BY_ONE:
        return KernelFamily.OTHER
    name = op
    for suffix in _HOW:
        name = name.removesuffix(suffix)
    family = _FAMILIES.get(name, KernelFamily.POINTWISE)
    if family is KernelFamily.NORM and op.endswith("_bwd"):
        return KernelFamily.NORM_BACKWARD
    return family


def memory_rows(table: Table) -> KernelRows:
    """One kernel a row over a tensor of ``shape``; its last dimension is the row width."""
    moved, op = table.numbers["bytes"], table.words["op"]
    problem = first_problem(table, (~(moved > 0), "bytes must be positive"))
    rows = np.flatnonzero(problem.codes == 0)
    family = op.map(lambda name: int(family_of(name)))[rows]
    sides = table.words["shape"].map(_sides)[rows]
    element = table.words["dtype"].map(lambda name: _ELEMENT_BYTES.get(name.split("->")[0], 2.0))[rows]
    calls = kernel_calls(
        len(rows), op=KernelOp.MEMORY, family=family, m=sides[:, 0], n=sides[:, 1], batch=1, bytes=moved[rows],
        element_bytes=element, implementation=REPLAYED,
    )  # fmt: skip
    return rows_with(table, op=op, engine=op, problem=problem, parts=[(rows, calls)])


def _sides(shape: str) -> tuple[float, float]:
    """Rows and row width of a shape like ``16x512x1024``; zeros if it reads otherwise."""
    words = shape.split("x")
    if not all(word.isdigit() and len(word) < 16 for word in words):
        return 0.0, 0.0
    sizes = [float(word) for word in words]
    return float(np.prod(sizes[:-1])), sizes[-1]
