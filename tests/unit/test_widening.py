"""Weights in other formats than 16 bits: what brings them there, how often."""

import pytest

from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.widening import widening
from costmodels.workload import LoraSpec
from profiles.precision import NF4_BYTES
from tests.fakes import context, job, stack

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


def test_pytorch_unpacks_once_by_nine_kernels() -> None:
    found = widening(context(job=QLORA, stack=stack(unpacks_weights=True)), trained=False, packed=True)
    assert (found.passes, found.kernels, found.bytes_per_weight) == (1, 9, 16.5)


def test_autocast_casts_a_trained_weight_and_its_gradient() -> None:
    using = stack(autocast_weights=True)
    found = widening(context(stack=using), trained=True, packed=True)
    assert (found.passes, found.kernels, found.bytes_per_weight, found.cast) == (2, 1, 6, True)
    frozen = job(task="lora", lora=LORA, frozen_dtype="fp32")
    assert widening(context(job=frozen, stack=using), trained=False, packed=True).passes == 1
