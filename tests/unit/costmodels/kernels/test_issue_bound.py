"""Kernels bound by instructions gain nothing from a faster memory, and lose by a slower one."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelOp
from costmodels.kernels.issue_bound import arithmetic_s, issue_stretch
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_head
from costmodels.lowering.calls import Phase
from costmodels.lowering.mlp import lower_dense_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.optimizer import device_step_s
from costmodels.plan import ExecutionPlan, PlanBatch
from profiles.catalog import default_catalog
from profiles.hardware import ClusterSpec, DeviceSpec
from tests.fakes import UnitKernels, context, device, llama, node, stack

BYTES = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")
DEVICES = default_catalog().devices
H100_RATE = 3.35e12 / 132


def faster(times: float) -> DeviceSpec:
    """A device with so many times the bandwidth per processor of an H100."""
    return device(memory_bandwidth_bytes_per_s=times * 100 * H100_RATE, num_sms=100)


def on(which: DeviceSpec, **changes) -> CostContext:
    cluster = ClusterSpec(name="x", node=node(device=which), num_nodes=1)
    return replace(context(model=llama(), stack=stack(**changes)), kernels=BYTES, cluster=cluster)


def moved(lower, where: CostContext) -> dict[Phase, float]:
    shapes = rank_shapes(PlanBatch.from_plans([ExecutionPlan()]), where, experts=False)[0]
    seconds = price_parts([lower(shapes, where)])[0].kernel_s[:, 0]
    return {phase: float(seconds[phase]) for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT)}


def test_half_of_a_kernel_keeps_its_time_on_twice_the_bandwidth():
    """1.5 times the bytes at twice the rate: three quarters of the time."""
    assert issue_stretch(0.5, faster(2.0)) == pytest.approx(1.5)
    assert issue_stretch(1.0, faster(3.0)) == pytest.approx(3.0)
    assert issue_stretch(0.0, faster(3.0)) == 1.0


def test_the_memory_holds_everything_up_where_there_is_less_of_it_per_processor():
    assert issue_stretch(1.0, faster(0.5)) == 1.0
    assert issue_stretch(1.0, DEVICES["A100-SXM-80GB"]) == 1.0


def test_an_h200_is_an_h100_with_a_faster_memory():
    assert issue_stretch(1.0, DEVICES["H100-SXM-80GB"]) == pytest.approx(1.0)
    assert issue_stretch(1.0, DEVICES["H200-SXM-141GB"]) == pytest.approx(4.8 / 3.35)


@pytest.mark.parametrize(
    ("field", "code", "lower", "shares", "passes", "elements"),
    [
        ("rotary", "eager", lower_attention, (0.76, 0.76), (18.0, 18.0), 2 * 2048 * (1024 + 256)),
        ("activation", "compiled", lower_dense_mlp, (0.0, 0.38), (4.5, 5.5), 2 * 2048 * 2816),
        ("loss", "eager", lower_head, (0.33, 0.12), (6.5, 8.0), 4 * 2048 * 32768),
        ("norm", "compiled", lower_dense_mlp, (0.87, 0.98), (2.5, 10.5), 2 * 2048 * 1024),
    ],
)
def test_passes_that_instructions_bound_seem_to_move_more(field, code, lower, shares, passes, elements):
    usual, fast = (moved(lower, on(faster(times), **{field: code})) for times in (1.0, 2.0))
    for phase, share, count in zip(usual, shares, passes, strict=True):
        assert fast[phase] - usual[phase] == pytest.approx(share * count * elements, abs=1.0)


@pytest.mark.parametrize(("code", "share"), [("fused", 0.18), ("cast", 0.2), ("foreach", 0.27)])
def test_optimizer_steps_gain_less_than_the_bandwidth(code, share):
    updated, unsharded = np.array([1e9]), np.array([0])
    usual, fast = (device_step_s(updated, on(faster(times), update=code), unsharded)[0] for times in (1.0, 2.0))
    assert fast / usual == pytest.approx(1 + share)  # bytes are seconds here


def test_arithmetic_takes_what_the_units_of_the_data_sheet_take():
    h100, a100 = DEVICES["H100-SXM-80GB"], DEVICES["A100-SXM-80GB"]
    some, none = np.array([1e12]), np.zeros(1)
    assert arithmetic_s(some, none, h100) == pytest.approx([1 / 66.9])
    # 16 special functions a cycle against 128 multiply-adds, on an A100 against 64.
    assert arithmetic_s(some, some, h100) == pytest.approx([16 / 66.9])
    assert arithmetic_s(some, some, a100) == pytest.approx([8 / 19.5])
    assert arithmetic_s(17 * some, some, h100) == pytest.approx([17 / 66.9])  # at once, in units of their own
    assert arithmetic_s(some, some, DEVICES["MI300X"]) == pytest.approx([1 / 163.4])
    assert arithmetic_s(some, some, device(peak_flops_per_s={"bf16": 1e15})).tolist() == [0.0]
