"""Weights in other formats than 16 bits: what brings them there, how often."""

from typing import Any

import numpy as np
import pytest

from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.lowering.widening import widening
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.workload import LoraSpec
from profiles.precision import GEMM_FORMATS, NF4_BYTES
from tests.fakes import GEMMS, UnitKernels, context, job, mixture, stack

LORA = LoraSpec(rank=8, targets=("q",))
QLORA = job(task="qlora", lora=LORA)


def test_weights_in_16_bits_stay_as_they_are() -> None:
    assert widening(context(), trained=True, packed=True).passes == 0
    assert widening(context(job=job(task="lora", lora=LORA)), trained=False, packed=True).passes == 0


def test_four_bits_are_restored_for_either_pass_by_three_kernels() -> None:
    found = widening(context(job=QLORA), trained=False, packed=True)
    assert (found.passes, found.kernels, found.family) == (2, 3, KernelFamily.QUANTISE)
    assert found.bytes_per_weight == pytest.approx(2 + NF4_BYTES)
    assert not widening(context(job=QLORA), trained=True, packed=True).passes  # an adapter
    assert not widening(context(job=QLORA), trained=False, packed=False).passes  # the head


def test_experts_that_nobody_quantises_multiply_as_they_are() -> None:
    """In fp32 where all that is not quantised is, for torch._grouped_mm is none of autocast's operations."""
    wide, plain = (
        stack(quantises_experts=False, autocast_weights=True, casts_unquantised=casts, expert_library="cutlass")
        for casts in (True, False)
    )
    found = [
        widening(context(job=QLORA, stack=each), trained=False, packed=True, grouped=True) for each in (wide, plain)
    ]
    assert [(each.passes, each.gemm_format) for each in found] == [(0, "fp32"), (0, "")]
    assert widening(context(job=QLORA, stack=wide), trained=False, packed=True).passes == 2  # of other layers


def test_pytorch_unpacks_once_by_nine_kernels() -> None:
    found = widening(context(job=QLORA, stack=stack(unpacks_weights=True)), trained=False, packed=True)
    assert (found.passes, found.kernels, found.bytes_per_weight) == (1, 9, 16.5)


def test_autocast_casts_a_trained_weight_and_its_gradient() -> None:
    using = stack(autocast_weights=True)
    found = widening(context(stack=using), trained=True, packed=True)
    assert (found.passes, found.kernels, found.bytes_per_weight, found.cast) == (2, 1, 6, True)
    frozen = job(task="lora", lora=LORA, frozen_dtype="fp32")
    assert widening(context(job=frozen, stack=using), trained=False, packed=True).passes == 1


def test_autocast_leaves_grouped_experts_in_fp32_and_casts_those_of_a_loop() -> None:
    """torch._grouped_mm is none of its operations: on fp32 weights it answers in fp32, torch.mm in bf16."""
    using = stack(autocast_weights=True, expert_library="cutlass")
    found = widening(context(stack=using), trained=True, packed=True, grouped=True)
    assert (found.passes, found.gemm_format, found.element_bytes) == (0, "fp32", 4)
    for where, grouped in (
        (context(stack=using), False),
        (context(stack=stack(autocast_weights=True)), True),  # a loop over torch.mm
        (context(job=job(master_dtype="none"), stack=using), True),  # 16-bit weights
        (context(stack=stack(expert_library="cutlass")), True),
    ):
        assert not widening(where, trained=True, packed=True, grouped=grouped).gemm_format


def test_products_of_fp32_experts_are_priced_as_such() -> None:
    """In their own format, and of twice the bytes; the router's are cast like any other layer's."""

    def products(**changes: Any) -> tuple[set[str], float]:
        """Formats, and bytes of all products of experts."""
        kernels = UnitKernels()
        model = mixture(moe={"shared_ffn_hidden_size": 0})
        where = context(model=model, stack=stack(expert_library="cutlass", **changes), kernels=kernels)
        shape = rank_shapes(PlanBatch.from_plans([ExecutionPlan()]), where, experts=True)[0]
        price_parts([lower_expert_mlp(shape, where)])
        calls = kernels.seen[-1]
        router = (calls.m == 8) | (calls.n == 8) | (calls.k == 8)
        formats = np.array(GEMM_FORMATS)[calls.gemm_format]
        own = np.isin(calls.op, GEMMS) & ~router
        assert set(formats[np.isin(calls.op, GEMMS) & router]) == {"bf16"}
        return set(formats[own]), float(calls.bytes[own].sum())

    narrow, wide = products(), products(autocast_weights=True)
    assert (narrow[0], wide[0]) == ({"bf16"}, {"fp32"})
    assert wide[1] == pytest.approx(2 * narrow[1])
