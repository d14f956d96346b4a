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


@pytest.mark.parametrize(("architecture", "of_stack"), [("blackwell", 1.3), ("hopper", 1.2), ("ampere", 1.0)])
@pytest.mark.parametrize(("precision", "moved"), [("bf16", True), ("fp8", False)])
def test_what_a_machine_sustains_stands_in_for_what_its_generation_does(architecture, of_stack, precision, moved):
    """Products in 16 bits alone, and not both scales one on the other."""

    def seconds(own: float) -> tuple[float, float]:
        peaks = dict.fromkeys(("fp16", "bf16", "tf32", "fp32", "fp8"), 1000e12)
        where = node(device=device(architecture=architecture, peak_flops_per_s=peaks), sustained_16bit_time_scale=own)
        costs = layer_costs(
            PlanBatch.from_plans([ExecutionPlan()]),
            context(
                cluster=ClusterSpec(name="fake", node=where, num_nodes=1),
                kernels=RateKernels(start_s=1.0),
                job=job(precision=precision),
                stack=stack(blackwell_16bit_time_scale=1.3, hopper_16bit_time_scale=1.2),
            ),
        )
        return float(costs.dense_mlp.component("weight_gradient")[0]), float(costs.attention.component("core")[0])

    (product, core), (slower, same) = seconds(0.0), seconds(1.6)
    assert slower == pytest.approx(product * (1.6 / of_stack if moved else 1.0))
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
