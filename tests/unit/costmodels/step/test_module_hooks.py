"""What modules of mixtures of experts take on the host: hooks of ZeRO-3, DTensors, loops that look for tokens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.kernels.calls import KernelFamily, KernelOp
from costmodels.lowering.calls import Phase
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.step.module_hooks import expert_hooks_s
from profiles.hardware import ClusterSpec
from profiles.stacks import load_priors, load_stacks
from tests.fakes import RateKernels, UnitKernels, context, device, job, mixture, node, stack
from tests.lowered import shapes_of
from tests.unit.costmodels.step.test_layer_costs import blocks

FREE = UnitKernels(ops=())
SHARDED = ExecutionPlan(zero_stage=3)
HOOKS = {"gathered_modules_per_layer": 7.0, "module_hooks_s": 0.5}
EXPERTS = 8
# Router, and the three matrices of a shared expert, which the mixture has.
BESIDE = 1 + 3


def waits(plan: ExecutionPlan = SHARDED, *, moe: dict[str, Any] | None = None, **changes: Any) -> tuple[float, float]:
    """Seconds forward and backward that the host takes for a mixture of experts, nothing hiding them."""
    found = blocks(plan, context(model=mixture(moe=moe), kernels=FREE, stack=stack(**changes)))["expert_mlp"]
    return found["launch_forward"], found["launch_backward"]


def test_experts_in_one_tensor_are_one_module_and_those_of_a_loop_three_each():
    one = 0.5 * (BESIDE + 1)
    assert waits(**HOOKS) == pytest.approx((one, one))
    each = 0.5 * (BESIDE + 0.81 * 3 * EXPERTS)
    assert waits(**HOOKS, grouped_experts=False) == pytest.approx((each, each))
    alone = 0.5 * (1 + 0.81 * 3 * 16)
    moe = {"num_experts": 16, "shared_ffn_hidden_size": 0}
    assert waits(moe=moe, **HOOKS, grouped_experts=False) == pytest.approx((alone, alone))
    assert waits(ExecutionPlan(zero_stage=2), **HOOKS, grouped_experts=False) == (0, 0)


def test_a_leaf_is_fetched_at_once_but_parameter_by_parameter():
    forward, backward = waits(**HOOKS, grouped_experts=False, leaf_experts=True)
    inside = BESIDE + 3 * EXPERTS
    assert (forward, backward) == pytest.approx((0.5 * (1 + 0.10 * inside), 0.5 * (1 + 0.36 * inside)))
    apart = waits(**HOOKS, grouped_experts=False)
    assert forward + backward < 0.4 * sum(apart)


def test_what_was_timed_of_a_leaf_and_of_modules_apart():
    """Milliseconds of both passes for a matrix of an expert, on a machine 1.6 times as slow as the one meant."""
    priced = load_stacks()["deepspeed-2024"].module_hooks_s

    def each_s(*, leaf: bool) -> float:
        small, large = (
            sum(waits(moe={"num_experts": experts}, **HOOKS, grouped_experts=False, leaf_experts=leaf))
            for experts in (8, 16)
        )
        return (large - small) / (3 * 8) / 0.5 * priced

    assert each_s(leaf=False) == pytest.approx((0.33e-3 + 0.36e-3) / 1.64, rel=0.05)
    assert each_s(leaf=True) == pytest.approx((0.041e-3 + 0.159e-3) / 1.64, rel=0.05)


def test_hooks_hide_under_a_busy_device_and_slow_hosts_take_longer():
    changes = {**HOOKS, "grouped_experts": False}
    busy = context(model=mixture(), kernels=RateKernels(start_s=3.0), stack=stack(**changes))
    assert blocks(SHARDED, busy)["expert_mlp"]["launch_forward"] == 0
    slow = ClusterSpec(name="slow", node=node(host_time_scale=2.0), num_nodes=1)
    where = context(model=mixture(), kernels=FREE, stack=stack(**changes), cluster=slow)
    assert blocks(SHARDED, where)["expert_mlp"]["launch_forward"] == pytest.approx(2 * waits(**changes)[0])


def test_a_layer_that_fsdp_gathers_has_no_hooks_of_experts():
    assert waits(module_hooks_s=0.5, framework="fsdp") == (0, 0)


@pytest.mark.parametrize(
    ("tensor", "expert", "expert_tensor", "modules"),
    [(1, 1, 1, (0, 0)), (1, 8, 1, (0, 0)), (2, 1, 2, (3, 3)), (2, 2, 1, (3, 3)), (2, 2, 2, (9, 2))],
)
def test_dtensors_of_tensor_parallelism(tensor: int, expert: int, expert_tensor: int, modules: tuple[int, int]):
    """Experts that are spread and split take their mesh apart in every forward pass."""
    plan = ExecutionPlan(
        tensor_parallel=tensor, expert_parallel=expert, expert_tensor_parallel=expert_tensor, data_parallel=8
    )
    where = context(model=mixture(), stack=stack(dtensor_module_s=0.5))
    shape = shapes_of(plan, where)
    assert expert_hooks_s(shape, where)[:, 0] == pytest.approx(0.5 * np.array(modules))


def test_a_loop_leaves_a_busy_device_idle_once_per_expert_and_forward_pass():
    """A launch of 0.5 s each; backward nobody looks for tokens."""

    def found(routing: str, ranks: int) -> dict[str, float]:
        how = stack(routing=routing, grouped_experts=False, kernel_launch_s=0.5)
        plan = ExecutionPlan(expert_parallel=ranks, data_parallel=ranks)
        return blocks(plan, context(model=mixture(), kernels=RateKernels(start_s=3.0), stack=how))["expert_mlp"]

    for ranks in (1, 4):
        looped = found("looped", ranks)
        assert (looped["launch_forward"], looped["launch_backward"]) == (0.5 * EXPERTS / ranks, 0)
        assert looped["launch_again"] == 0.5 * EXPERTS / ranks
        assert found("fused", ranks)["launch_forward"] == 0


def launches(name: str, experts: int, **changes: Any) -> tuple[float, float]:
    """Kernels of a mixture of experts without a shared one, forward and backward."""
    model = mixture(moe={"num_experts": experts, "shared_ffn_hidden_size": 0})
    bf16 = job(task="full", master_dtype="none")
    where = context(model=model, job=bf16, stack=load_priors()[name], kernels=UnitKernels(), **changes)
    shape = rank_shapes(PlanBatch.from_plans([ExecutionPlan()]), where, experts=True)[0]
    counts = price_parts([lower_expert_mlp(shape, where)])[0].launches[:, 0]
    return counts[Phase.FORWARD], counts[Phase.INPUT_GRADIENT] + counts[Phase.WEIGHT_GRADIENT]


@pytest.mark.parametrize("name", ["deepspeed-2024", "hf-trainer-2024", "hf-fsdp"])
def test_every_expert_of_a_loop_launches_what_pytorch_dispatches(name: str):
    """Of the Mixtral of transformers 4.46, 10 and 20 operations an expert without views.

    The search for its tokens is four kernels (counted, copied to the host, selected, written), not one; backward both
    additions by index fill a tensor of zeros, which is counted, and sort, which is not.
    """
    small, large = launches(name, 8), launches(name, 16)
    forward, backward = ((b - a) / 8 for a, b in zip(small, large, strict=True))
    assert forward == 10 + 3
    assert backward == pytest.approx(20, rel=0.16)


def test_experts_of_transformers_5_launch_as_many_kernels_as_there_are_operations():
    """On Hopper, where torch._grouped_mm is one kernel: 21 and 26 operations, a norm of 8 and 16, and a residual."""
    hopper = ClusterSpec(name="hopper", node=node(device=device(architecture="hopper")), num_nodes=1)
    forward, backward = launches("hf-trainer", 8, cluster=hopper)
    assert (forward, backward) == launches("hf-trainer", 128, cluster=hopper)
    assert forward == 21 + 8 + 1
    assert backward == pytest.approx(26 + 16 + 1, rel=0.3)


class Copies(UnitKernels):
    """Bytes of copies, nothing for the rest."""

    def predict(self, calls: Any, device: Any) -> Any:
        mine = (calls.op == KernelOp.MEMORY) & (calls.family == KernelFamily.COPY)
        return super().predict(replace(calls, bytes=calls.bytes * mine), device)


def test_weights_of_a_leaf_are_copied_out_of_what_was_gathered_for_either_pass():
    def moved(plan: ExecutionPlan, **changes: Any) -> float:
        where = context(
            model=mixture(),
            stack=stack(**HOOKS, grouped_experts=False, **changes),
            kernels=Copies(ops=(KernelOp.MEMORY,), quantity="bytes"),
        )
        shape = shapes_of(plan, where)
        return float(price_parts([lower_expert_mlp(shape, where)])[0].kernel_s[Phase.INPUT_GRADIENT, 0])

    weights = EXPERTS * 3 * 1024 * 1408
    with_it, without = moved(SHARDED, leaf_experts=True), moved(SHARDED)
    assert with_it - without == pytest.approx(2 * (2 + 2) * weights)
    assert moved(ExecutionPlan(zero_stage=2), leaf_experts=True) == pytest.approx(without)
