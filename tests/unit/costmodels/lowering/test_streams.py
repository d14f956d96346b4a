"""Experts as Megatron-Core runs them: products on streams, tokens sorted before they are sent and on arrival."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.lowering.calls import PartCosts, Phase
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.streams import on_streams
from costmodels.plan import ExecutionPlan
from profiles.hardware import ClusterSpec
from tests.fakes import GEMMS, UnitKernels, context, device, job, mixture, node, stack
from tests.lowered import shapes_of

S, H = 2048, 1024
MOVED = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")


def lowered(plan: ExecutionPlan, where: CostContext) -> PartCosts:
    shapes = shapes_of(plan, where)
    return price_parts([lower_expert_mlp(shapes, where)])[0]


def spent(plan: ExecutionPlan, where: CostContext, kernels: UnitKernels) -> dict[Phase, float]:
    """What one rank spends on one micro-batch, by phase."""
    seconds = lowered(plan, replace(where, kernels=kernels)).kernel_s[:, 0]
    return {phase: float(seconds[phase]) for phase in Phase}


def on(architecture: str, **changes: Any) -> CostContext:
    """The usual cluster, of devices of another generation."""
    peaks = {**device().peak_flops_per_s, "fp8": 624e12}
    other = node(device=device(architecture=architecture, peak_flops_per_s=peaks))
    return context(model=mixture(), cluster=ClusterSpec(name="fake", node=other, num_nodes=8), **changes)


def seen(plan: ExecutionPlan, where: CostContext) -> KernelCallBatch:
    kernels = UnitKernels()
    lowered(plan, replace(where, kernels=kernels))
    return kernels.seen[0]


@pytest.mark.parametrize(("streams", "together"), [(4, 2), (1, 1)])
def test_experts_on_streams_are_plain_products_of_as_many_rows_as_run_at_once(streams, together):
    """Two experts here: both at once, or one after the other; the same work and the same time per FLOP."""
    plan = ExecutionPlan(expert_parallel=4, data_parallel=4)
    grouped, apart = (context(model=mixture(), stack=stack(expert_streams=count)) for count in (0, streams))
    calls = seen(plan, apart)
    assert not (calls.op == KernelOp.GROUPED_GEMM).any()
    each = 4 * S * 2 / 8
    shapes = {tuple(float(getattr(calls, name)[row]) for name in ("batch", "m", "n", "k")) for row in range(len(calls))}
    assert (1, together * each, 2 * 1408, H) in shapes
    assert spent(plan, apart, UnitKernels(ops=GEMMS)) == pytest.approx(spent(plan, grouped, UnitKernels(ops=GEMMS)))


@pytest.mark.parametrize(("narrow", "wanted"), [("bf16", code_of(Engine.PYTORCH, Library.CUTLASS)), ("fp8", 0)])
def test_grouped_products_are_of_the_library_the_stack_runs(narrow, wanted):
    """Measured prices are those of its kernel in 16 bits; narrow formats quantise, which that one does not."""
    plan = ExecutionPlan(expert_parallel=4, data_parallel=4)
    calls = seen(plan, on("hopper", stack=stack(expert_library="cutlass"), job=job(precision=narrow)))
    grouped = calls.op == KernelOp.GROUPED_GEMM
    assert set(calls.implementation[grouped].tolist()) == {wanted}
    assert not calls.implementation[~grouped].any()


def test_experts_without_a_kernel_for_all_are_plain_products_one_after_the_other():
    plan = ExecutionPlan(expert_parallel=4, data_parallel=4)
    where = context(model=mixture(), stack=stack(grouped_experts=False, expert_library="cutlass"))
    calls = seen(plan, where)
    assert not (calls.op == KernelOp.GROUPED_GEMM).any()
    assert not calls.implementation.any()
    same = replace(where, stack=stack())
    assert spent(plan, where, UnitKernels(ops=GEMMS)) == pytest.approx(spent(plan, same, UnitKernels(ops=GEMMS)))


@pytest.mark.parametrize(
    ("architecture", "precision", "apart"),
    [("hopper", "bf16", 1), ("blackwell", "bf16", 1), ("cdna3", "bf16", 1), ("ampere", "bf16", 8), ("ada", "bf16", 8),
     ("blackwell-rtx", "bf16", 8), ("hopper", "fp16", 8), ("hopper", "fp8", 1)],
)  # fmt: skip
def test_torch_s_grouped_product_is_a_loop_over_experts_where_its_kernel_was_not_written_for(
    architecture, precision, apart
):
    """A launch per expert then, and products of one expert's rows; the work is the same."""
    plan = ExecutionPlan()
    pytorch, nobody = (
        on(architecture, stack=stack(expert_library=library), job=job(precision=precision))
        for library in ("cutlass", "")
    )
    calls = seen(plan, pytorch)
    assert bool((calls.op == KernelOp.GROUPED_GEMM).any()) == (apart == 1)
    launches = [float(lowered(plan, where).launches[:, 0].sum()) for where in (pytorch, nobody)]
    products = 6  # two, each way and for the weights
    assert launches[0] - launches[1] == products * (apart - 1)
    assert spent(plan, pytorch, UnitKernels(ops=GEMMS)) == pytest.approx(spent(plan, nobody, UnitKernels(ops=GEMMS)))


def test_tokens_are_sorted_again_on_arrival_where_a_rank_has_several_experts():
    def extra(ranks: int) -> float:
        plan = ExecutionPlan(expert_parallel=ranks, data_parallel=ranks)
        once, twice = (
            spent(plan, context(model=mixture(), stack=stack(sorts_arrivals=sorts)), MOVED) for sorts in (False, True)
        )
        assert twice[Phase.INPUT_GRADIENT] - once[Phase.INPUT_GRADIENT] == twice[Phase.FORWARD] - once[Phase.FORWARD]
        return twice[Phase.FORWARD] - once[Phase.FORWARD]

    assert extra(4) == pytest.approx(2 * 2 * 2 * S * 2 * H)  # two copies, read and written, of two rows per token
    assert extra(8) == extra(1) == 0  # one expert each; nobody to send to


def test_what_is_no_product_of_experts_runs_as_it_is():
    calls = seen(ExecutionPlan(), context(model=mixture()))
    same, once = on_streams(calls, 0)
    assert same is calls
    assert (once == 1).all()
    plain, rounds = on_streams(calls, 4)
    others = calls.op != KernelOp.GROUPED_GEMM
    for name in ("op", "m", "batch", "flops", "bytes"):
        assert (getattr(plain, name)[others] == getattr(calls, name)[others]).all()
    assert set(rounds[others].tolist()) <= {1.0}
    assert rounds[~others].tolist() == [8 / 4] * 6  # eight experts, four at a time
    assert np.allclose(plain.flops * rounds, calls.flops)
