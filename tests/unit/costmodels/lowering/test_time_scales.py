"""What training adds to the prices of kernels that were timed one by one."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import Kernel
from costmodels.kernels.mlir.parse import calls_of, parse
from costmodels.lowering.time_scales import narrow_stretch
from costmodels.plan import ExecutionPlan, FloatArray, PlanBatch
from costmodels.step.layer_costs import layer_costs
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, UnitKernels, context, device, job, mixture, node, stack

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


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_a_board_that_its_power_holds_back_less_trains_faster(precision):
    """Products and attention of a training stack; memory-bound kernels and an engine's are as their timings say."""

    def seconds(scale: float, **changes: object) -> tuple[float, float, float]:
        peaks = {**dict.fromkeys(("fp16", "bf16", "tf32", "fp32", "fp8"), 2250e12), "fp4": 9000e12}
        fake = replace(device(architecture="blackwell", peak_flops_per_s=peaks), training_time_scale=scale)
        cluster = ClusterSpec(name="fake", node=node(device=fake), num_nodes=1)
        where = context(cluster=cluster, kernels=RateKernels(start_s=1.0), job=job(precision=precision), **changes)
        costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), where)
        return tuple(
            float(block.component(name)[0])
            for block, name in (
                (costs.dense_mlp, "weight_gradient"),
                (costs.attention, "core"),
                (costs.embedding, "forward"),
            )
        )

    product_s, core_s, looked_up_s = seconds(1.0)
    assert looked_up_s > 0
    assert seconds(0.8) == pytest.approx((0.8 * product_s, 0.8 * core_s, looked_up_s))
    assert seconds(0.8, implementation=1) == seconds(1.0, implementation=1)


def test_the_ultra_boards_gain_what_their_power_does():
    """In training, over boards of the same peaks (data/devices/nvidia_blackwell.yaml cites measured steps).

    A part of it short kernels have too, as the law of boards and clocks has it; the scale of training is the rest.
    """
    product = calls_of(parse(emit(Kernel(op="gemm", m=16384, n=16384, k=16384, format="bf16"))))
    for ultra, elder in (("B300-SXM-288GB", "B200-SXM-180GB"), ("GB300-288GB", "GB200-186GB")):
        assert DEVICES[ultra].peak("bf16") == DEVICES[elder].peak("bf16")
        short, other = (default_kernel_model().predict(product, DEVICES[name]).time_s[0] for name in (ultra, elder))
        assert 0.93 < short / other < 0.98
        gained = short / other * DEVICES[ultra].training_time_scale
        assert gained == pytest.approx(DEVICES[elder].power_w / DEVICES[ultra].power_w, rel=0.01)
        assert DEVICES[elder].training_time_scale == 1


def test_a_t4_holds_what_its_power_limit_lets_it():
    """24 TFLOP/s where 4096 x 4096 x 4096 are multiplied again and again (its node in data/nodes.yaml cites it)."""
    t4 = default_catalog().nodes["g4dn.metal"]
    text = emit(Kernel(op="gemm", m=4096, n=4096, k=4096, format="fp16"))
    short_s = default_kernel_model().predict(calls_of(parse(text)), t4.device).time_s[0]
    assert 2 * 4096**3 / (short_s * t4.sustained_16bit_time_scale) == pytest.approx(24e12, rel=0.05)


def test_no_host_waits_for_experts_of_fixed_capacity():
    def launches(**changes: object) -> float:
        where = context(model=mixture(), kernels=UnitKernels(ops=()), stack=stack(expert_layer_s=3.0, **changes))
        costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), where).expert_mlp
        assert costs is not None
        return float(costs.component("launch_forward")[0])

    assert launches() == pytest.approx(3.0)
    assert launches(expert_issue_s=4.0) == pytest.approx(7.0)
    assert launches(expert_issue_s=4.0, fixed_capacity=True) == 0.0
    assert launches(expert_issue_s=4.0, captures_routing=True) == pytest.approx(3.0)
    assert replace(stack(), fixed_capacity=True).expert_layer_s == 0.0


@pytest.mark.parametrize("host", [1.0, 2.0])
def test_issuing_experts_shows_where_their_device_has_less_to_do(host: float) -> None:
    """In either pass the longer of both, of one host or of another half as fast; what nothing hides comes on top."""
    where = ClusterSpec(name="fake", node=node(host_time_scale=host), num_nodes=1)

    def passes(issue_s: float) -> FloatArray:
        setting = context(
            model=mixture(),
            cluster=where,
            kernels=RateKernels(start_s=1.0),
            stack=stack(expert_issue_s=issue_s, expert_layer_s=0.5),
        )
        costs = layer_costs(PlanBatch.from_plans([ExecutionPlan()]), setting).expert_mlp
        assert costs is not None
        kernels = [("forward", "core", "launch_forward"), ("input_gradient", "weight_gradient", "launch_backward")]
        return np.array([sum(costs.component(name)[0] for name in names) for names in kernels])

    busy = passes(0.0) - 0.5 * host
    assert passes(busy.min() / host / 2) == pytest.approx(busy + 0.5 * host)
    long = 2 * busy.max()
    assert passes(long) == pytest.approx(np.full(2, long * host + 0.5 * host))
