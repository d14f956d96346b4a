"""Blocks on their shapes: what is hidden, and what the host needs to issue it all."""

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.layer_costs import COMPONENTS, BlockCosts, layer_costs
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from tests.fakes import RateKernels, RingCollectives, UnitKernels, context, mixture, stack

S, H = 2048, 1024
ROWS = 2 * S * H
FREE = UnitKernels(ops=())


def blocks(plan: ExecutionPlan, where: CostContext) -> dict[str, dict[str, float]]:
    """Seconds of every component of every block of one plan."""
    costs = layer_costs(PlanBatch.from_plans([plan]), where)
    found: dict[str, BlockCosts | None] = {
        "attention": costs.attention,
        "dense_mlp": costs.dense_mlp,
        "expert_mlp": costs.expert_mlp,
        "embedding": costs.embedding,
        "head": costs.head,
    }
    return {
        name: {part: float(block.component(part)[0]) for part in COMPONENTS}
        for name, block in found.items()
        if block is not None
    }


def test_collectives_are_issued_one_by_one():
    """With sequence parallelism: gather and scatter forward; two gathers and a scatter backward."""
    where = context(kernels=FREE, stack=stack(collective_launch_s=1.0))
    found = blocks(ExecutionPlan(tensor_parallel=4, sequence_parallel=True), where)
    for block in ("attention", "dense_mlp"):
        assert (found[block]["launch_forward"], found[block]["launch_backward"]) == (2, 3)
    assert (found["head"]["launch_forward"], found["head"]["launch_backward"]) == (2, 2)
    assert (found["embedding"]["launch_forward"], found["embedding"]["launch_backward"]) == (1, 1)
    alone = blocks(ExecutionPlan(), where)
    assert not any(parts["launch_forward"] + parts["launch_backward"] for parts in alone.values())


def test_the_host_is_ahead_of_a_busy_device():
    where = context(kernels=RateKernels(start_s=3.0), stack=stack(kernel_launch_s=0.9))
    assert blocks(ExecutionPlan(), where)["attention"]["launch_forward"] == 0
    late = blocks(ExecutionPlan(), context(kernels=RateKernels(start_s=0.0), stack=stack(kernel_launch_s=0.9)))
    # Norm, residual, two products, the core and two rotations ahead: seven launches, less the work itself.
    assert late["attention"]["launch_forward"] == pytest.approx(7 * 0.9, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "hidden"), [(ContextKind.RING, True), (ContextKind.ALL_GATHER, False), (ContextKind.ULYSSES, False)]
)
def test_only_a_ring_runs_under_attention(kind, hidden):
    plan = ExecutionPlan(context_parallel=4, context_kind=kind)
    fast = context(kernels=UnitKernels(), collectives=RingCollectives())
    found = blocks(plan, fast)["attention"]
    for way in ("forward", "backward"):
        assert found[f"context_{way}_total"] > 0
        assert found[f"context_{way}"] == (0 if hidden else found[f"context_{way}_total"])
    slow = blocks(plan, context(kernels=FREE, collectives=RingCollectives()))["attention"]
    assert slow["context_forward"] == slow["context_forward_total"]


def test_a_ring_shows_what_attention_is_too_short_for():
    plan = ExecutionPlan(context_parallel=2)
    moved = 2 * (S / 2) * 2 * H  # one block of keys and values
    core = 4 * S * S * H / 2 / 2
    where = context(kernels=UnitKernels(), collectives=RingCollectives(inside_bytes_per_s=moved / (3 * core)))
    assert blocks(plan, where)["attention"]["context_forward"] == pytest.approx(2 * core)


def test_expert_traffic_hides_as_far_as_the_stack_manages():
    where = context(
        model=mixture(), kernels=UnitKernels(), collectives=RingCollectives(), stack=stack(expert_parallel_overlap=0.6)
    )
    found = blocks(ExecutionPlan(expert_parallel=8, data_parallel=8), where)["expert_mlp"]
    assert found["expert_forward_total"] == pytest.approx(2 * 2 * ROWS * 7 / 8)
    for way in ("forward", "backward"):
        assert found[f"expert_{way}"] == pytest.approx(0.4 * found[f"expert_{way}_total"])


def test_plans_of_one_shape_share_its_prices():
    plans = PlanBatch.from_columns(4, tensor_parallel=[1, 2, 1, 2], data_parallel=[1, 2, 3, 4])
    costs = layer_costs(plans, context())
    assert costs.attention.seconds.shape == (len(COMPONENTS), 2)
    rows = np.array([3, 0])
    assert costs.take(rows).head.component("forward").tolist() == costs.head.component("forward")[rows].tolist()
    assert costs.expert_mlp is None


def test_sums_of_a_pass_hold_its_work_and_what_shows_of_its_traffic():
    where = context(collectives=RingCollectives(), stack=stack(kernel_launch_s=1e-9))
    costs = layer_costs(PlanBatch.from_columns(1, tensor_parallel=2), where).attention
    ahead = ("forward", "core", "tensor_forward", "context_forward", "expert_forward", "launch_forward")
    back = ("input_gradient", "tensor_backward", "context_backward", "expert_backward", "launch_backward")
    assert costs.forward_s() == pytest.approx(sum(costs.component(name) for name in ahead))
    assert costs.input_gradient_s() == pytest.approx(sum(costs.component(name) for name in back))
    assert costs.weight_gradient_s() == pytest.approx(costs.component("weight_gradient"))
    assert set(costs.present()) <= set(COMPONENTS)
    assert "context_forward" not in costs.present()
