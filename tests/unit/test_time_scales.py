"""What training adds to the prices of kernels that were timed one by one."""

from dataclasses import replace

import pytest

from costmodels.layer_costs import layer_costs
from costmodels.lowering.time_scales import narrow_stretch, power_stretch
from costmodels.plan import ExecutionPlan, PlanBatch
from profiles.catalog import default_catalog
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, context, device, job, mixture, node, stack

DEVICES = default_catalog().devices


@pytest.mark.parametrize(
    ("name", "power", "narrow"),
    [
        ("B200-SXM-180GB", 1.0, 1.0),
        ("B300-SXM-288GB", 1000 / 1100, 2 / 3),  # as fast a board in 16 bits, with a tenth more power
        ("GB200-186GB", (1000 / 1200) * (2500 / 2250), 1.0),
        ("GB300-288GB", (1000 / 1400) * (2500 / 2250), 2 / 3),
    ],
)
def test_boards_of_one_chip_differ_by_their_power_and_their_rate_in_4_bits(name, power, narrow):
    assert power_stretch(DEVICES[name]) == pytest.approx(power)
    assert narrow_stretch(DEVICES[name]) == pytest.approx(narrow)


def linear_s(precision: str, **changes: object) -> float:
    """Seconds of a layer's weight gradients on a board of Blackwell's, in kernels of one second each."""
    peaks = {**dict.fromkeys(("fp16", "bf16", "tf32", "fp32", "fp8"), 2250e12), "fp4": 13500e12}
    fake = device(architecture="blackwell", peak_flops_per_s=peaks, power_w=2000.0)
    cluster = ClusterSpec(name="fake", node=node(device=fake), num_nodes=1)
    where = context(cluster=cluster, kernels=RateKernels(start_s=1.0), job=job(precision=precision), **changes)
    costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), where)
    return float(costs.dense_mlp.component("weight_gradient")[0])


def test_power_holds_back_16_bits_and_the_rate_4_bits_of_training_but_not_of_engines():
    whole = linear_s("fp8")
    assert linear_s("bf16") == pytest.approx(whole / 2, rel=1e-3)
    assert linear_s("nvfp4") == pytest.approx(whole * 2 / 3, rel=1e-3)
    assert linear_s("bf16", implementation=1) == pytest.approx(whole, rel=1e-3)


def test_no_host_waits_for_experts_of_fixed_capacity():
    def launches(**changes: object) -> float:
        where = context(model=mixture(), stack=stack(expert_layer_s=3.0, **changes))
        costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), where).expert_mlp
        assert costs is not None
        return float(costs.component("launch_forward")[0])

    assert launches() == pytest.approx(3.0)
    assert launches(fixed_capacity=True) == 0.0
    assert replace(stack(), fixed_capacity=True).expert_layer_s == 0.0
