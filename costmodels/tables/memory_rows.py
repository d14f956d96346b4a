"""Rows of bandwidth-bound work as kernel calls."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.implementations import REPLAYED, Library
from costmodels.tables.read import Table, Words
from costmodels.tables.rows import KernelRows, first_problem, rows_with
from profiles.importers.base import dtype_of

# The operation's name, without how it was run and which pass it is, to the work it does.
_FAMILIES = {
    "norm": KernelFamily.NORM, "layernorm": KernelFamily.NORM, "rmsnorm": KernelFamily.NORM,
    "gelu": KernelFamily.ACTIVATION, "relu": KernelFamily.ACTIVATION, "tanh": KernelFamily.ACTIVATION,
    "silu": KernelFamily.ACTIVATION, "sigmoid": KernelFamily.ACTIVATION, "silu_mul": KernelFamily.GATED_ACTIVATION,
    "softmax": KernelFamily.SOFTMAX, "log_softmax": KernelFamily.SOFTMAX, "rope": KernelFamily.ROTARY,
    "embedding": KernelFamily.EMBEDDING, "static_quant": KernelFamily.QUANTISE, "copy": KernelFamily.COPY,
}  # fmt: skip
# Model code, several kernels each over the whole tensor.
SPELLED_OUT = {
    "rmsnorm_eager": KernelFamily.NORM, "rope_eager": KernelFamily.ROTARY, "gelu_eager": KernelFamily.OTHER,
}  # fmt: skip
# Their timer runs round the product with the other half too (profiler/v0/models/llama.py of LLMServingSim), whose
# traffic the table leaves out.
_GATED = ("silu", "llmservingsim-v0")
_GATED_TRAFFIC = 3 / 2
# Besides Llama and Mixtral they time Phi-mini-MoE, whose norm is PyTorch's own (llm_profile/models/phimoe.py): of
# one device and shape the two take times that differ by a factor of two and more, with none in between.
_SPELLED_NORM = ("rmsnorm_eager", "llmservingsim-v0")
_ONE_KERNEL = 0.6
_HOW = ("_inductor", "_eager", "_bwd")
# Serving engines have kernels of their own; other sources time what PyTorch runs, unless it has no such kernel.
_ENGINES = {
    "vidur": Library.NATIVE, "vidur-history": Library.NATIVE, "aiconfigurator": Library.UNKNOWN,
    "llmservingsim-v1": Library.NATIVE,
}  # fmt: skip
_PLAIN = ("add",)  # which they leave to PyTorch
_BY_NUMBER = ("embedding", "embedding_bwd")  # likewise; every source is older than the PyTorch that gathers wide
# Counts gradients and as many bytes again; the rows of the table that they are added to are read besides, and of the
# rest of the table, which is set to zero, the source does not say how large it is.
_SCATTERED = "embedding_bwd"
_SCATTERED_TRAFFIC = 3 / 2
# NeuSight's softmaxes are PyTorch 2.1.0's on NVIDIA's cards and 2.4.1's on AMD's (folders of its dataset);
# LLMCompass is of 2023.
_SOFTMAXES = ("softmax", "softmax_bwd")
_BEFORE_SHARED = ("neusight", "neusight-label", "llmcompass")
_NEWER_ON_AMD = ("neusight", "neusight-label")
_FUSED = ("norm", "rope", "silu_mul", "static_quant")
_ELEMENT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}


def family_of(op: str, source: str = "") -> KernelFamily:
    """The work an operation of the tables does; what is not named there is pointwise."""
    if op in SPELLED_OUT:
        return SPELLED_OUT[op]
    if (op, source) == _GATED:
        return KernelFamily.GATED_ACTIVATION
    name = op
    for suffix in _HOW:
        name = name.removesuffix(suffix)
    family = _FAMILIES.get(name, KernelFamily.POINTWISE)
    if family is KernelFamily.NORM and op.endswith("_bwd"):
        return KernelFamily.NORM_BACKWARD
    return family


def library_of(op: str, source: str) -> Library:
    """Who runs an operation of the tables, as its name and the source say."""
    if op in SPELLED_OUT:
        return Library.SPELLED_OUT
    if op.endswith("_inductor"):
        return Library.COMPILED
    if op in _BY_NUMBER:
        return Library.ELEMENT_GATHER
    if op in _SOFTMAXES and source in _BEFORE_SHARED:
        return Library.REREAD_ROWS
    if op in _PLAIN:
        return Library.EAGER
    return _ENGINES.get(source, Library.UNKNOWN if op in _FUSED else Library.EAGER)


def memory_rows(table: Table) -> KernelRows:
    """One kernel a row over a tensor of ``shape``; its last dimension is the row width."""
    moved, op, source = table.numbers["bytes"], table.words["op"], table.words["source"]
    problem = first_problem(table, (~(moved > 0), "bytes must be positive"))
    rows = np.flatnonzero(problem.codes == 0)
    family = _of_both(op, source, family_of)[rows]
    library = np.where(_one_kernel(table), int(Library.EAGER), _of_both(op, source, library_of))[rows]
    library = np.where((library == Library.REREAD_ROWS) & _newer(table)[rows], int(Library.SHARED_ROWS), library)
    halved = _of_both(op, source, lambda *names: int(names == _GATED))[rows] > 0
    scattered = op.map(lambda name: name == _SCATTERED)[rows]
    counted = moved[rows] * np.where(halved, _GATED_TRAFFIC, np.where(scattered, _SCATTERED_TRAFFIC, 1.0))
    sides = table.words["shape"].map(_sides)[rows]
    element = table.words["dtype"].map(lambda name: _ELEMENT_BYTES.get(dtype_of(name.split("->")[0]), 2.0))[rows]
    calls = kernel_calls(
        len(rows), op=KernelOp.MEMORY, family=family, m=sides[:, 0], n=sides[:, 1], batch=1,
        bytes=counted, element_bytes=element,
        implementation=REPLAYED + library,
    )  # fmt: skip
    return rows_with(table, op=op, engine=op, problem=problem, parts=[(rows, calls)])


def _newer(table: Table) -> NDArray[np.bool_]:
    """(K,) rows that a source timed on AMD's cards with a later PyTorch than on others, see ``_NEWER_ON_AMD``."""
    on_amd = table.words["gpu"].map(lambda name: name.startswith("MI"))
    return np.asarray(on_amd & table.words["source"].map(lambda name: name in _NEWER_ON_AMD), dtype=np.bool_)


def _one_kernel(table: Table) -> NDArray[np.bool_]:
    """(K,) norms named after a chain of kernels that take too little time for one, see ``_SPELLED_NORM``."""
    chain = _of_both(table.words["op"], table.words["source"], lambda *names: int(names == _SPELLED_NORM)) > 0
    alike = np.stack([table.words["gpu"].codes, table.words["shape"].codes], axis=1)[chain]
    _, group = np.unique(alike, axis=0, return_inverse=True)
    longest = np.zeros(group.max(initial=-1) + 1)
    np.maximum.at(longest, group, table.numbers["time_us"][chain])
    found = np.zeros(len(chain), dtype=np.bool_)
    found[chain] = table.numbers["time_us"][chain] < _ONE_KERNEL * longest[group]
    return found


def _of_both(op: Words, source: Words, function: Callable[[str, str], int]) -> NDArray[np.int64]:
    """(K,) what a function says of each row's operation and source."""
    table = np.array([[int(function(name, origin)) for origin in source.values] for name in op.values])
    return np.asarray(table.reshape(len(op.values), -1)[op.codes, source.codes], dtype=np.int64)


def _sides(shape: str) -> tuple[float, float]:
    """Rows and row width of a shape like ``16x512x1024``; zeros if it reads otherwise."""
    words = shape.split("x")
    if not all(word.isdigit() and len(word) < 16 for word in words):
        return 0.0, 0.0
    sizes = [float(word) for word in words]
    return float(np.prod(sizes[:-1])), sizes[-1]
