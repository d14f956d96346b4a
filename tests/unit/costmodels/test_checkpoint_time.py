"""What a checkpoint takes on the host: of recomputed layers alone, and only where the device does not hide it."""

import pytest

from costmodels.estimate import TIME_PARTS
from costmodels.plan import ExecutionPlan, Recompute
from profiles.hardware import ClusterSpec
from profiles.stacks import load_stacks
from tests.fakes import RateKernels, UnitKernels, context, mixture, node, stack
from tests.unit.costmodels.step.test_layer_costs import blocks
from tests.unit.costmodels.step.test_step import L, seconds, timed

FREE = UnitKernels(ops=())
CHECKPOINT = {"checkpoint_s": 0.5, "checkpoint_kernel_s": 0.25}
KERNELS = 7 + 5  # of a forward pass through attention and MLP, norms and rotary embedding fused


def test_a_recomputed_layer_takes_it_once_per_micro_batch() -> None:
    where = context(kernels=FREE, stack=stack(**CHECKPOINT))
    layer_s = 0.5 + 0.25 * KERNELS
    for layers in (0, 2, L):
        how = Recompute.BLOCK if layers else Recompute.NONE
        plan = ExecutionPlan(recompute=how, recompute_layers=layers, num_microbatches=3)
        assert seconds(plan, where) == pytest.approx(3 * layers * layer_s)
        step = timed([plan], where)
        assert step.parts_s["overhead"][0] == pytest.approx(3 * layers * layer_s)
        assert sum(step.parts_s[name][0] for name in TIME_PARTS) == pytest.approx(step.step_time_s[0])


def test_it_comes_on_top_of_launching_the_layer_again() -> None:
    plan = ExecutionPlan(recompute=Recompute.FULL)
    launches = {"kernel_launch_s": 2.0}
    with_it, without = (
        seconds(plan, context(kernels=FREE, stack=stack(**launches, **more))) for more in (CHECKPOINT, {})
    )
    assert with_it - without == pytest.approx(L * (0.5 + 0.25 * KERNELS))


def test_a_busy_device_hides_it() -> None:
    plan = ExecutionPlan(recompute=Recompute.FULL)
    busy = context(kernels=RateKernels(start_s=3.0), stack=stack(**CHECKPOINT))
    assert blocks(plan, busy)["attention"]["launch_again"] == 0
    assert seconds(plan, busy) == pytest.approx(seconds(plan, context(kernels=RateKernels(start_s=3.0))))
    waits = context(kernels=RateKernels(start_s=3.0), stack=stack(**CHECKPOINT, blocking_launches=True))
    assert blocks(plan, waits)["attention"]["launch_again"] == pytest.approx(0.25 + 0.25 * 7)


def test_ends_of_a_model_are_not_repeated_and_experts_are() -> None:
    found = blocks(ExecutionPlan(), context(model=mixture(), kernels=FREE, stack=stack(**CHECKPOINT)))
    assert found["embedding"]["launch_again"] == found["head"]["launch_again"] == 0
    assert found["expert_mlp"]["launch_again"] > 0.25 * 2


def test_slow_hosts_take_longer() -> None:
    cluster = ClusterSpec(name="slow", node=node(host_time_scale=2.0), num_nodes=1)
    where = context(cluster=cluster, kernels=FREE, stack=stack(**CHECKPOINT))
    assert blocks(ExecutionPlan(), where)["attention"]["launch_again"] == pytest.approx(2 * (0.25 + 0.25 * 7))


def test_hooks_that_keep_tensors_take_longer_than_reentrant_autograd() -> None:
    """Milliseconds of a Llama layer, 38 kernels, on one core: 0.97 and 0.17."""
    stacks = load_stacks()

    def layer_s(name: str) -> float:
        return stacks[name].checkpoint_s + 38 * stacks[name].checkpoint_kernel_s

    for name in ("hf-trainer", "hf-fsdp", "pytorch", "fsdp-eager"):
        assert layer_s(name) == pytest.approx(0.97e-3, rel=0.05)
    for name in ("hf-trainer-2024", "hf-trainer-fsdp", "deepspeed", "unsloth"):
        assert layer_s(name) == pytest.approx(0.17e-3)
    for name in ("megatron-core", "fsdp", "nanotron", "nemo-automodel"):
        assert layer_s(name) == 0
