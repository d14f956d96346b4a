"""Fused attention through PyTorch's scaled-dot-product attention: forward, backward, and decoding from a cache."""

import contextlib
from typing import Any

from profiles.measure.backend import Backend, Tensor
from profiles.measure.cases import Case
from profiles.measure.timing import Call, Workload

_KERNELS = {"torch_flash": "FLASH_ATTENTION", "torch_cudnn": "CUDNN_ATTENTION"}


def attention_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Queries (batch, heads, m, k) against keys and values (batch, kv_heads, n, k)."""
    build = _backward if case.op == "attention_backward" else _forward
    return Workload(calls=tuple(build(case, backend) for _ in range(sets)))


def _inputs(case: Case, backend: Backend, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, width = case["batch"], case["k"]
    queries, keys = (batch, case["heads"], case["m"], width), (batch, case["kv_heads"], case["n"], width)
    return (
        backend.random(queries, case.dtype, gradient=gradient),
        backend.random(keys, case.dtype, gradient=gradient),
        backend.random(keys, case.dtype, gradient=gradient),
    )


def _chosen(case: Case, backend: Backend) -> "contextlib.AbstractContextManager[Any]":
    """Allows only the implementation that the case names."""
    name = _KERNELS.get(case.kernel)
    if name is None:
        return contextlib.nullcontext()
    attention = backend.torch.nn.attention
    kernel = getattr(attention.SDPBackend, name, None)
    if kernel is None:
        raise NotImplementedError(f"this PyTorch has no {name.lower()}")
    return attention.sdpa_kernel(kernel)  # type: ignore[no-any-return]


def _attend(case: Case, backend: Backend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = backend.torch.nn.functional.scaled_dot_product_attention
    grouped = case["heads"] != case["kv_heads"]
    with _chosen(case, backend):
        return attend(query, key, value, is_causal=bool(case["causal"]), enable_gqa=grouped)


def _forward(case: Case, backend: Backend) -> Call:
    query, key, value = _inputs(case, backend, gradient=False)
    no_grad = backend.torch.no_grad

    def call() -> object:
        with no_grad():
            return _attend(case, backend, query, key, value)

    return call


def _backward(case: Case, backend: Backend) -> Call:
    inputs = _inputs(case, backend, gradient=True)
    output = _attend(case, backend, *inputs)
    gradient = backend.random(output.shape, case.dtype)
    grad = backend.torch.autograd.grad

    def call() -> object:
        return grad(output, inputs, gradient, retain_graph=True)

    return call
