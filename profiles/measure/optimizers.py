"""AdamW in the forms that training stacks use, as steps to time and as the optimizer of a measured run."""

from collections.abc import Sequence
from typing import Any

from profiles.measure.backend import Backend, Tensor, optional_module
from profiles.measure.cases import Case
from profiles.measure.timing import Call, Workload

# Parameters come in tensors of about this size, as the matrices of a layer do.
_TENSOR_ELEMENTS = 1 << 24
LEARNING_RATE = 1e-4


class MasterAdamW:
    """Mixed-precision AdamW: 16-bit weights and gradients, fp32 master copy and states.

    What Megatron-Core, DeepSpeed and Hugging Face run in one form or another (arXiv:1710.03740 section 3.1 for the
    master copy). One pass converts the gradients, one steps the master copy, one writes the weights back.
    """

    def __init__(self, torch: Any, weights: Sequence[Tensor], *, capturable: bool, fused: bool) -> None:
        self._torch = torch
        self._weights = list(weights)
        self._masters = [weight.detach().float().clone() for weight in self._weights]
        for master in self._masters:
            master.grad = torch.zeros_like(master)
        kind = {"fused": True, "capturable": True} if fused and capturable else {"fused": True} if fused else {}
        self._adamw = torch.optim.AdamW(self._masters, lr=LEARNING_RATE, **kind)

    def step(self) -> None:
        """Take one step from the weights' gradients."""
        with self._torch.no_grad():
            self._torch._foreach_copy_([master.grad for master in self._masters], [w.grad for w in self._weights])
            self._adamw.step()
            self._torch._foreach_copy_(self._weights, self._masters)

    def zero_grad(self) -> None:
        """Drop the weights' gradients."""
        for weight in self._weights:
            weight.grad = None


def parameter_sizes(elements: int) -> tuple[int, ...]:
    """Sizes of the tensors that together hold ``elements`` parameters."""
    whole, rest = divmod(elements, _TENSOR_ELEMENTS)
    return (_TENSOR_ELEMENTS,) * whole + ((rest,) if rest else ())


def optimizer_workload(case: Case, backend: Backend, sets: int) -> Workload:
    """One step over the case's parameters; the states make more than one set needless."""
    del sets
    parameters = [backend.random((size,), case.dtype, gradient=True) for size in parameter_sizes(case["n"])]
    for parameter in parameters:
        parameter.grad = backend.torch.randn_like(parameter)
    return Workload(calls=(_step(case, backend, parameters),), graphable=case.kernel != "bitsandbytes_8bit")


def _step(case: Case, backend: Backend, parameters: list[Tensor]) -> Call:
    torch, gpu = backend.torch, backend.is_gpu
    if case.kernel == "torch_fused_master":
        return MasterAdamW(torch, parameters, capturable=gpu, fused=True).step
    if case.kernel == "bitsandbytes_8bit":
        library = optional_module("bitsandbytes") if gpu else None
        if library is None:
            raise NotImplementedError("bitsandbytes is not installed, or there is no GPU")
        return library.optim.AdamW8bit(parameters, lr=LEARNING_RATE).step  # type: ignore[no-any-return]
    form = "fused" if case.kernel == "torch_fused" else "foreach"
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, capturable=gpu, **{form: True}).step  # type: ignore[no-any-return]
