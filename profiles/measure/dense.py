"""Matrix products: the three passes of a linear layer, batched and grouped, in 32 to 8 bits."""

from profiles.measure.backend import Backend, Tensor
from profiles.measure.cases import Case
from profiles.measure.timing import Call, Workload


def gemm_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """C[m,n] = A[m,k] B[k,n] with both operands stored as the layout says."""
    if case.dtype == "fp8":
        return Workload(calls=tuple(_scaled_product(case, backend) for _ in range(sets)))
    return Workload(calls=tuple(_product(case, backend) for _ in range(sets)))


def _operands(case: Case, backend: Backend) -> tuple[Tensor, Tensor]:
    """Views of A (m, k) and B (k, n), with a leading batch where there is one, over row-major storage."""
    m, n, k, batch = case["m"], case["n"], case["k"], case["batch"]
    lead = (batch,) if batch > 1 else ()
    first = backend.random((*lead, k, m), case.dtype).mT if case.layout[0] == "T" else backend.random(
        (*lead, m, k), case.dtype
    )  # fmt: skip
    second = backend.random((*lead, n, k), case.dtype).mT if case.layout[1] == "T" else backend.random(
        (*lead, k, n), case.dtype
    )  # fmt: skip
    return first, second


def _product(case: Case, backend: Backend) -> Call:
    first, second = _operands(case, backend)
    matmul = backend.torch.matmul

    def call() -> object:
        return matmul(first, second)

    return call


def _scaled_product(case: Case, backend: Backend) -> Call:
    """fp8 operands with one fp32 scale each and a bf16 result; the library wants A row- and B column-major."""
    torch = backend.torch
    if not hasattr(torch, "_scaled_mm") or case.layout != "NT" or case["batch"] > 1:
        raise NotImplementedError("this PyTorch multiplies fp8 matrices only as A row-major times B column-major")
    first, second = _operands(case, backend)
    scale = torch.ones((), device=backend.device, dtype=torch.float32)

    def call() -> object:
        return torch._scaled_mm(first, second, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

    return call


def grouped_gemm_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """Experts' products: rows sorted by expert, one weight each, in one launch or in a loop."""
    build = _grouped if case.kernel == "torch_grouped_mm" else _looped
    return Workload(calls=tuple(build(case, backend) for _ in range(sets)))


def _grouped(case: Case, backend: Backend) -> Call:
    torch = backend.torch
    if not hasattr(torch, "_grouped_mm"):
        raise NotImplementedError("this PyTorch has no grouped matrix product")
    rows, n, k, groups = case["m"], case["n"], case["k"], case["batch"]
    tokens = backend.random((groups * rows, k), case.dtype)
    weights = backend.random((groups, n, k), case.dtype).mT
    ends = torch.arange(1, groups + 1, device=backend.device, dtype=torch.int32) * rows

    def call() -> object:
        return torch._grouped_mm(tokens, weights, offs=ends)

    return call


def _looped(case: Case, backend: Backend) -> Call:
    rows, n, k, groups = case["m"], case["n"], case["k"], case["batch"]
    tokens = backend.random((groups, rows, k), case.dtype).unbind()
    weights = backend.random((groups, n, k), case.dtype).mT.unbind()
    matmul = backend.torch.matmul

    def call() -> object:
        return [matmul(some, weight) for some, weight in zip(tokens, weights, strict=True)]

    return call
