"""Expert layers that one kernel runs: what reads prompts and what generates multiply alike."""

from collections.abc import Callable

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp
from costmodels.kernels.implementations import Library, library_of
from costmodels.lowering.calls import CallList
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.serving import lower_served_experts
from costmodels.lowering.shapes import RankShape, rank_shapes
from costmodels.plan import PlanBatch
from costmodels.serving.generation import engine_context
from profiles.engines import find_engine
from tests.fakes import UnitKernels, context, job, mixture

Lowering = Callable[[RankShape, CostContext], CallList]

TOKENS, SEQUENCES = 300, 7
LOWERINGS: tuple[Lowering, ...] = (lower_expert_mlp, lower_served_experts)


def engine_calls(lower: Lowering, engine: str = "vllm", **layout: int) -> KernelCallBatch:
    """Those of a layer that sees ``SEQUENCES * TOKENS`` tokens in each attention group."""
    kernels = UnitKernels()
    trained = context(model=mixture(), kernels=kernels)
    where: CostContext = engine_context(trained, find_engine(engine), job(sequence_length=TOKENS))
    plans = PlanBatch.from_columns(1, micro_batch_size=SEQUENCES, **layout)
    price_parts([lower(rank_shapes(plans, where, experts=True)[0], where)])
    return kernels.seen[-1]


def fused(calls: KernelCallBatch) -> dict[str, float]:
    (at,) = np.flatnonzero(calls.op == KernelOp.FUSED_EXPERTS)
    names = ("m", "n", "k", "batch", "heads", "kv_heads", "causal", "flops", "bytes", "implementation")
    return {name: float(getattr(calls, name)[at]) for name in names}


@pytest.mark.parametrize("lower", LOWERINGS)
def test_one_kernel_multiplies_what_arrives(lower: Lowering) -> None:
    rows = TOKENS * SEQUENCES * 2
    found = engine_calls(lower)
    assert not (found.op == KernelOp.GROUPED_GEMM).any()
    call = fused(found)
    assert (call["m"], call["n"], call["k"]) == (rows, 1408, 1024)
    assert call["flops"] == pytest.approx(2 * 3 * rows * 1408 * 1024)
    assert call["bytes"] == pytest.approx(2 * (8 * 3 * 1408 * 1024 + rows * (4 * 1024 + 3 * 1408)))


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tensor_parallel": 2, "expert_tensor_parallel": 2},
        {"tensor_parallel": 2, "expert_parallel": 2},
        {"data_parallel": 4, "expert_parallel": 4},
        {"tensor_parallel": 2, "data_parallel": 4, "expert_parallel": 4},
    ],
)
def test_reading_prompts_calls_the_kernel_that_generates(layout: dict[str, int]) -> None:
    reading, generating = (fused(engine_calls(lower, **layout)) for lower in LOWERINGS)
    assert reading == pytest.approx(generating)


@pytest.mark.parametrize(
    ("engine", "groups", "library"),
    [
        ("vllm", 1, Library.TRITON),
        ("sglang", 4, Library.TRITON),
        ("tensorrt-llm", 1, Library.CUTLASS),
        ("tensorrt-llm", 4, Library.CUTLASS),
    ],
)
def test_engines_run_kernels_that_were_timed_in_them(engine: str, groups: int, library: Library) -> None:
    layout = {"data_parallel": groups, "expert_parallel": groups}
    found = fused(engine_calls(lower_expert_mlp, engine, **layout))
    assert library_of(int(found["implementation"])) == library
