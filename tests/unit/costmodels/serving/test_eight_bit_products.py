"""Engines' products in 8 bits: who makes their input, and what that costs beside the product."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, concatenate, kernel_calls, take
from costmodels.kernels.implementations import is_bare, is_narrow, torch_code
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.serving.generation import engine_context
from costmodels.tables.gemm_rows import gemm_calls
from planner.prices.price_lists import kernel_model_of
from profiles.catalog import default_catalog
from profiles.engines import EngineSpec, find_engine
from profiles.precision import GEMM_FORMATS
from tests.fakes import UnitKernels, context, device, job, latent, llama, mixture, node

FP8, BF16 = GEMM_FORMATS.index("fp8"), GEMM_FORMATS.index("bf16")
ENGINE = EngineSpec(name="fake", description="", captures_graphs=True, kernels="vllm-0.14")
NARROW = device(peak_flops_per_s={"fp16": 1e15, "bf16": 1e15, "fp8": 2e15, "tf32": 5e14, "fp32": 5e13})


def lowered(engine: EngineSpec, **changes: Any) -> KernelCallBatch:
    """The distinct kernel calls of a step of one sequence, at one cache length."""
    kernels = UnitKernels(ops=())
    values: dict[str, Any] = {"model": llama(), "job": job(precision="fp8", sequence_length=1)} | changes
    where: CostContext = context(**values, kernels=kernels)
    cluster = replace(where.cluster, node=node(device=NARROW))
    where = engine_context(replace(where, cluster=cluster), engine, where.job)
    decode_prices(PlanBatch.from_plans([ExecutionPlan()]), where, engine, most_running=1, keys=(100.0, 200.0))
    calls = concatenate(kernels.seen)
    return take(calls, (calls.m == 1) & (calls.bytes > 0))


def widths(calls: KernelCallBatch) -> list[float]:
    """Of the inputs that kernels of their own quantise; attention is lowered once for each of two cache lengths."""
    return sorted(calls.n[(calls.op == KernelOp.MEMORY) & (calls.family == KernelFamily.QUANTISE)].tolist())


@pytest.mark.parametrize(
    ("norms", "activations", "expected"),
    [
        (False, False, [1024.0] * 5 + [2816.0]),  # twice queries and outputs of attention; gate and up, down
        (True, False, [1024.0] * 2 + [2816.0]),
        (False, True, [1024.0] * 5),
        (True, True, [1024.0] * 2),  # what attention puts out
    ],
)
def test_an_engine_quantises_what_no_kernel_before_wrote_in_8_bits(norms, activations, expected) -> None:
    calls = lowered(replace(ENGINE, norms_quantise=norms, activations_quantise=activations))
    assert widths(calls) == expected
    quantised = take(calls, calls.family == KernelFamily.QUANTISE)
    np.testing.assert_array_equal(quantised.bytes, 3 * quantised.m * quantised.n)  # two bytes in, one out
    narrow = is_narrow(calls)
    assert narrow.sum() == 2 * 2 + 2
    assert is_bare(calls)[narrow].all()


def test_a_latent_input_that_two_products_read_is_quantised_once() -> None:
    model = latent()
    twice = [1024.0, 1024.0, 384.0, 256.0]  # the norm's, attention's (16 heads of 64), both compressed ones
    assert widths(lowered(ENGINE, model=model)) == sorted(2 * twice + [1024.0, 4096.0])
    both = replace(ENGINE, norms_quantise=True, activations_quantise=True)
    assert widths(lowered(both, model=model)) == [1024.0, 1024.0]
    plain = replace(model, latent_attention=replace(model.latent_attention, q_lora_rank=0))
    assert widths(lowered(ENGINE, model=plain)) == sorted(2 * [1024.0, 1024.0, 256.0] + [1024.0, 4096.0])


def test_a_shared_expert_reads_what_the_router_reads_in_16_bits() -> None:
    both = replace(ENGINE, norms_quantise=True, activations_quantise=True)
    assert widths(lowered(both, model=mixture())) == [1024.0] * 3


@pytest.mark.parametrize(
    ("engine", "precision"),
    [(ENGINE, "bf16"), (ENGINE, "mxfp8"), (replace(ENGINE, kernels=""), "fp8")],
)
def test_other_products_stay_as_they_are(engine: EngineSpec, precision: str) -> None:
    """In 16 bits, with a scale per block, or by the training stack."""
    calls = lowered(engine, job=job(precision=precision, sequence_length=1))
    assert widths(calls) == []
    assert not calls.implementation[calls.op == KernelOp.GEMM].any()


def test_packaged_engines_say_what_quantises_along() -> None:
    found = {name: find_engine(name) for name in ("vllm", "sglang", "tensorrt-llm", "vllm-2024")}
    assert [name for name, engine in found.items() if engine.norms_quantise] == ["vllm"]
    assert [name for name, engine in found.items() if engine.activations_quantise] == ["vllm", "tensorrt-llm"]


@pytest.mark.parametrize("name", ["H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM-180GB"])
def test_few_rows_by_large_weights_take_little_more_than_half_the_time(name: str) -> None:
    """Tables with the conversion of the whole input taken off say 1.5 to 1.9 times as fast from 32 M weights on."""
    gpu = default_catalog().device(name)
    prices = kernel_model_of(gpu)
    rows, outputs, inputs = (np.ravel(grid) for grid in np.meshgrid([1.0, 8.0, 64.0], [7168.0, 28672.0], [8192.0]))
    one = np.ones(len(rows))
    narrow, wide = (
        prices.predict(gemm_calls(rows, outputs, inputs, one, np.full(len(rows), index), implementation=code), gpu)
        for index, code in ((FP8, torch_code("eager")), (BF16, 0))
    )
    gain = wide.time_s / narrow.time_s
    assert (gain > 1.45).all()
    assert (gain < 2.05).all()


@pytest.mark.parametrize(("name", "most_s"), [("H100-SXM-80GB", 2e-6), ("B200-SXM-180GB", 3e-6), ("L40S", 4e-6)])
def test_quantising_a_few_tokens_is_one_short_kernel(name: str, most_s: float) -> None:
    gpu = default_catalog().device(name)
    rows = np.array([1.0, 8.0])
    calls = kernel_calls(
        2, op=int(KernelOp.MEMORY), family=int(KernelFamily.QUANTISE), m=rows, n=8192.0, batch=1.0,
        bytes=3 * 8192.0 * rows, element_bytes=2.0,
    )  # fmt: skip
    assert (kernel_model_of(gpu).predict(calls, gpu).time_s < most_s).all()
