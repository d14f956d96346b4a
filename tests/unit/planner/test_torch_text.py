"""A torch module as MLIR text; what is missing is named where the extra is not installed."""

import importlib.util

import pytest

from planner.prices.kernel_prices import price_mlir
from planner.torch_text import module_text
from profiles.errors import SpecError

INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "torch_mlir"))


@pytest.mark.skipif(INSTALLED, reason="the extra mlir-torch is installed")
def test_without_the_extra_the_package_is_named():
    with pytest.raises(SpecError, match="needs the package torch"):
        module_text(object())


@pytest.mark.skipif(not INSTALLED, reason="the extra mlir-torch is not installed")
def test_a_module_s_kernels_are_priced():
    import torch

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(256, 512, bias=False)
            self.down = torch.nn.Linear(512, 256, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.nn.functional.silu(self.up(x)))

    module = Block().to(torch.bfloat16)
    priced = price_mlir(module_text(module, torch.empty(4, 128, 256, dtype=torch.bfloat16)), device="H100")
    shapes = [(kernel.features.m, kernel.features.n, kernel.features.k) for kernel in priced.kernels]
    assert shapes == [(512, 512, 256), (512, 512, 0), (512, 256, 512)]
    assert module.up.weight.device.type == "cpu"
