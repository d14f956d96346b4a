"""Bandwidth-bound kernels: norms, activations, rotary embedding, loss, embedding, casts and copies.

``torch`` cases are PyTorch's own operations as a model would call them, so that rotary, the gated activation and the
loss are several kernels; ``torch_compile`` cases are what its compiler fuses them into.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from profiles.measure.backend import Backend, Tensor
from profiles.measure.cases import COMPILED, Case
from profiles.measure.timing import Call, Workload

# The loss over this many tokens at a time keeps the fp32 copy of the logits small (kernel torch_chunked).
_CHUNK_TOKENS = 1024
_FP8_LARGEST = 448.0  # largest finite e4m3 value (OCP 8-bit Floating Point Specification, table 1)

Function = Callable[..., Tensor]


def _workload(sets: int, build: Callable[[], Call], *, graphable: bool = True) -> Workload:
    return Workload(calls=tuple(build() for _ in range(sets)), graphable=graphable)


def differentiable(backend: Backend, function: Function, inputs: Sequence[Tensor], *, backward: bool) -> Call:
    """A call of the function, or of its gradient with respect to every input that requires one."""
    torch = backend.torch
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    output = function(*inputs)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradient = torch.randn_like(output)

    def call() -> object:
        return torch.autograd.grad(output, wanted, gradient, retain_graph=True)

    return call


@functools.cache
def _functions(torch: Any) -> dict[str, tuple[Function, int, int]]:
    """Operation to its function, the tensors of full size and the weight vectors it takes; made once per module.

    The functions refer to nothing that changes with the shape, so that one compilation serves all.
    """
    functional = torch.nn.functional

    def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + branch
        return total, functional.rms_norm(total, total.shape[-1:], weight)

    return {
        "layer_norm": (lambda x, w, b: functional.layer_norm(x, x.shape[-1:], w, b), 1, 2),
        "rms_norm": (lambda x, w: functional.rms_norm(x, x.shape[-1:], w), 1, 1),
        "add_rms_norm": (add_rms_norm, 2, 1),
        "gelu": (lambda x: functional.gelu(x, approximate="tanh"), 1, 0),
        "silu": (functional.silu, 1, 0),
        "silu_mul": (lambda gate, up: functional.silu(gate) * up, 2, 0),
        "softmax": (lambda x: torch.softmax(x, dim=-1), 1, 0),
        "add": (torch.add, 2, 0),
        "rotary": (lambda x, cosine, sine: rotate(torch, x, cosine, sine), 1, 0),
        "cross_entropy": (
            lambda logits, targets: functional.cross_entropy(logits.float(), targets, reduction="sum"), 1, 0,
        ),
    }  # fmt: skip


_compiled: dict[tuple[int, str], Function] = {}


def _function(op: str, case: Case, backend: Backend) -> Function:
    """The function of an operation, compiled if the case says so; compiled ones are kept for the next shape."""
    function = _functions(backend.torch)[op][0]
    if case.kernel != COMPILED:
        return function
    key = id(backend.torch), op
    if key not in _compiled:
        _compiled[key] = backend.compiled(function)
    return _compiled[key]


def rowwise_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Norms, activations, softmax and residual adds on (m, n) tensors."""
    rows, width = case["m"], case["n"]
    op, backward = case.op.removesuffix("_backward"), case.op.endswith("_backward")
    function = _function(op, case, backend)
    _, tensors, weights = _functions(backend.torch)[op]

    def build() -> Call:
        inputs = [backend.random((rows, width), case.dtype, gradient=backward) for _ in range(tensors)]
        inputs += [backend.random((width,), case.dtype, gradient=backward) for _ in range(weights)]
        return differentiable(backend, function, inputs, backward=backward)

    return _workload(sets, build)


def rotate(torch: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding in its half-split form: x cos + rotate_half(x) sin, over the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def rotary_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Rotation of (m, heads, width) queries or keys."""
    tokens, heads = case["m"], case["heads"]
    width, backward = case["n"] // heads, case.op.endswith("_backward")
    cosine, sine = (backend.random((tokens, 1, width), case.dtype) for _ in range(2))
    function = _function("rotary", case, backend)

    def build() -> Call:
        x = backend.random((tokens, heads, width), case.dtype, gradient=backward)
        return differentiable(backend, function, [x, cosine, sine], backward=backward)

    return _workload(sets, build)


def loss_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Softmax cross-entropy of (m, n) logits in fp32, whole or in chunks of tokens."""
    tokens, vocabulary, backward = case["m"], case["n"], case.op.endswith("_backward")
    cross_entropy = _function("cross_entropy", case, backend)
    chunk = _CHUNK_TOKENS if case.kernel == "torch_chunked" else tokens

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        pieces = zip(logits.split(chunk), targets.split(chunk), strict=True)
        return functools.reduce(operator.add, (cross_entropy(piece, target) for piece, target in pieces))

    def build() -> Call:
        logits = backend.random((tokens, vocabulary), case.dtype, gradient=backward)
        targets = backend.integers(tokens, vocabulary)
        return differentiable(backend, loss, [logits, targets], backward=backward)

    return _workload(sets, build)


def embedding_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Gather of m rows from a (k, n) table; the backward pass sorts the tokens, which synchronises with the host."""
    tokens, width, vocabulary = case["m"], case["n"], case["k"]
    backward = case.op.endswith("_backward")
    functional = backend.torch.nn.functional

    def build() -> Call:
        table = backend.random((vocabulary, width), case.dtype, gradient=backward)
        ids = backend.integers(tokens, vocabulary)
        return differentiable(backend, lambda it: functional.embedding(ids, it), [table], backward=backward)

    return _workload(sets, build, graphable=not backward)


def cast_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Conversion of n elements; to fp8 with the scale that fits the largest of them."""
    target = backend.dtype(case.op.removeprefix("cast_to_"))

    def build() -> Call:
        values = backend.random((case["n"],), case.dtype)
        if case.op != "cast_to_fp8":
            return lambda: values.to(target)

        def quantise() -> object:
            scale = _FP8_LARGEST / values.abs().amax().float()
            return (values * scale).to(target), scale

        return quantise

    return _workload(sets, build)


def copy_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """A copy within device memory, or between it and pinned host memory."""
    torch = backend.torch
    on_device = case.op == "copy"
    count = case["n"] if on_device else max(case["size_bytes"] // 2, 1)

    def build() -> Call:
        here = backend.random((count,), case.dtype)
        if on_device:
            other = torch.empty_like(here)
            return lambda: other.copy_(here)
        there = torch.empty(count, dtype=here.dtype, pin_memory=backend.is_gpu).copy_(here)
        source, target = (there, here) if case.op == "host_to_device" else (here, there)
        return lambda: target.copy_(source, non_blocking=True)

    return _workload(sets, build, graphable=on_device)
