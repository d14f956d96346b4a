"""What training adds to the prices of kernels that were timed one by one."""

from dataclasses import replace

import pytest

from costmodels.layer_costs import layer_costs
from costmodels.lowering.time_scales import narrow_stretch
from costmodels.plan import ExecutionPlan, PlanBatch
from profiles.catalog import default_catalog
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, context, device, job, mixture, node, stack

DEVICES = default_catalog().devices


@pytest.mark.parametrize(
    ("name", "stretch"),
    [
        ("B200-SXM-180GB", 1.0),
        ("GB200-186GB", 1.0),
        ("B300-SXM-288GB", 2 / 3),
        ("GB300-288GB", 2 / 3),
        ("H100-SXM-80GB", 1),
    ],
)
def test_the_ultra_chip_multiplies_in_4_bits_by_half_as_fast_again(name, stretch):
    assert narrow_stretch(DEVICES[name]) == pytest.approx(stretch)


def linear_s(precision: str, **changes: object) -> float:
    """Seconds of a layer's weight gradients on a board of Blackwell's, in kernels of one second each."""
    peaks = {**dict.fromkeys(("fp16", "bf16", "tf32", "fp32", "fp8"), 2250e12), "fp4": 13500e12}
    fake = device(architecture="blackwell", peak_flops_per_s=peaks)
    cluster = ClusterSpec(name="fake", node=node(device=fake), num_nodes=1)
    where = context(cluster=cluster, kernels=RateKernels(start_s=1.0), job=job(precision=precision), **changes)
    costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), where)
    return float(costs.dense_mlp.component("weight_gradient")[0])


def test_matrix_units_set_the_pace_of_4_bits_in_training_but_not_in_engines():
    whole = linear_s("bf16")
    assert linear_s("nvfp4") == pytest.approx(whole * 2 / 3, rel=1e-3)
    assert linear_s("nvfp4", implementation=1) == pytest.approx(whole, rel=1e-3)


def test_a_machine_held_to_less_power_multiplies_as_much_slower_and_nothing_else_does():
    def seconds(scale: float) -> tuple[float, float]:
        cluster = ClusterSpec(name="fake", node=node(product_time_scale=scale), num_nodes=1)
        costs = layer_costs(
            PlanBatch.from_plans([ExecutionPlan()]), context(cluster=cluster, kernels=RateKernels(start_s=1.0))
        )
        return float(costs.dense_mlp.component("weight_gradient")[0]), float(costs.attention.component("core")[0])

    (product, core), (slower, same) = seconds(1.0), seconds(1.6)
    assert slower == pytest.approx(1.6 * product)
    assert same == core


def test_no_host_waits_for_experts_of_fixed_capacity():
    def launches(**changes: object) -> float:
        where = context(model=mixture(), stack=stack(expert_layer_s=3.0, **changes))
        costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), where).expert_mlp
        assert costs is not None
        return float(costs.component("launch_forward")[0])

    assert launches() == pytest.approx(3.0)
    assert launches(fixed_capacity=True) == 0.0
    assert replace(stack(), fixed_capacity=True).expert_layer_s == 0.0
