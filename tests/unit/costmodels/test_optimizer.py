from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelOp
from costmodels.optimizer import (
    memory_seconds_per_byte,
    moment_bytes,
    optimizer_s,
    traffic_bytes_per_parameter,
)
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.parameters import total_parameters
from tests.fakes import RateKernels, UnitKernels, context, gpt, job, mixture, stack

BYTES = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")  # one second per byte


def seconds(plans: list[ExecutionPlan], where: CostContext) -> np.ndarray:
    batch = PlanBatch.from_plans(plans)
    table = stage_table(batch, where.model)
    return optimizer_s(batch, stage_parameters(batch, table, where.model, where.job), where)


FUSED = 7 / 6  # how much longer one kernel over many tensors takes than a plain pass over them
USUAL = 4 + FUSED * 28 + 2  # bytes per parameter: fp32 gradient, moments and master, a 16-bit weight


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Gradient read for its norm; for the update again, two moments and the master read and written; weight written.
        ({}, USUAL),
        ({"gradient_dtype": "bf16"}, 2 + FUSED * (2 + 2 * 2 * 4 + 2 * 4) + 2),
        ({"optimizer": "adamw8bit"}, 4 + FUSED * (4 + 2 * 2 * 1 + 2 * 4) + 2),
        ({"optimizer": "sgd"}, 4 + FUSED * (4 + 2 * 1 * 4 + 2 * 4) + 2),
        ({"optimizer": "adafactor"}, 4 + FUSED * (4 + 0 + 2 * 4) + 2),
        ({"state_dtype": "bf16"}, 4 + FUSED * (4 + 2 * 2 * 2 + 2 * 4) + 2),
        # Without a master copy the weight itself is read and written.
        ({"master_dtype": "none"}, 4 + FUSED * (4 + 2 * 2 * 4 + 2 * 2)),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else None,
)
def test_bytes_moved_per_updated_parameter(changes, expected):
    assert traffic_bytes_per_parameter(job(**changes), stack()) == pytest.approx(expected)


def test_casts_apart_and_a_kernel_per_operation_take_longer():
    """Cast: bf16 gradient read, fp32 one written, master read for the weight. Foreach: 25 passes for seven tensors."""
    on = job(gradient_dtype="bf16")
    found = {code: traffic_bytes_per_parameter(on, stack(update=code)) for code in ("fused", "cast", "foreach")}
    casts = 2 + 4 + 4
    assert found["cast"] == pytest.approx(2 + casts + FUSED * 28 + 2)
    assert found["foreach"] == pytest.approx(2 + casts + 25 * 4 + 2)
    assert found["fused"] < found["cast"] < found["foreach"]
    sixteen = job(master_dtype="none", state_dtype="bf16", gradient_dtype="bf16")
    without = traffic_bytes_per_parameter(sixteen, stack(update="foreach"))
    assert without == pytest.approx(2 + 25 * 2)


def test_clipping_apart_reads_and_writes_gradients_once_more():
    each, apart = (traffic_bytes_per_parameter(job(), stack(clips_gradients=how)) for how in (False, True))
    assert apart - each == 2 * 4


def test_8_bit_moments_take_a_byte():
    assert moment_bytes(job(optimizer="adamw8bit")) == 1
    assert moment_bytes(job(state_dtype="bf16")) == 2


def test_traffic_costs_what_the_kernel_model_says():
    where = context(kernels=RateKernels(bytes_per_s=1e12), stack=stack(memory_time_scale=1.5))
    assert memory_seconds_per_byte(where) == pytest.approx(1.5e-12)


def test_sharding_divides_the_step():
    where = context(kernels=BYTES)
    plans = [ExecutionPlan(data_parallel=8, context_parallel=2, zero_stage=zero) for zero in range(4)]
    plans.append(replace(plans[1], zero_shard_degree=4))
    whole = USUAL * total_parameters(gpt())
    assert seconds(plans, where) == pytest.approx([whole, whole / 16, whole / 16, whole / 16, whole / 4])


def test_experts_are_divided_by_their_own_replicas():
    where = context(kernels=BYTES, model=mixture())
    experts = 8 * 8 * 3 * 1024 * 1408
    dense = total_parameters(mixture()) - experts
    plans = [ExecutionPlan(data_parallel=16, expert_parallel=4, zero_stage=zero) for zero in (0, 1)]
    plans.append(replace(plans[1], zero_shard_degree=8))  # two replicas of everything remain
    expected = [dense + experts / 4, dense / 16 + experts / 4 / 4, dense / 8 + experts / 4 / 2]
    assert seconds(plans, where) == pytest.approx([USUAL * count for count in expected])


def test_the_fullest_stage_sets_the_time():
    layer = 12 * 1024**2 + 2 * 2 * 1024
    where = context(kernels=BYTES)
    found = seconds([ExecutionPlan(pipeline_parallel=4)], where)
    assert found == pytest.approx([USUAL * (2 * layer + 32768 * 1024 + 2 * 1024)])


def test_frozen_weights_are_not_updated():
    task = job(task="lora", lora=LoraSpec(rank=8, targets=("q",)))
    assert seconds([ExecutionPlan()], context(kernels=BYTES, job=task)) == pytest.approx([USUAL * 8 * 8 * 2048])


@pytest.mark.parametrize(
    ("update", "changes", "parameters_per_s"),
    [
        ("fused", {}, 4e9),  # ZeRO-Offload's table 4: CPU-Adam, and PyTorch's
        ("cast", {}, 4e9),
        ("foreach", {}, 0.7e9),
        # Weights, gradients and moments of two bytes: half of the traffic.
        ("fused", {"master_dtype": "none", "state_dtype": "bf16"}, 8e9),
        # Master, gradient, and moments of a byte each, read and written: 16 bytes of 28.
        ("fused", {"optimizer": "adamw8bit"}, 7e9),
    ],
)
def test_a_host_steps_for_all_its_devices_and_gradients_and_weights_cross_the_link(update, changes, parameters_per_s):
    plan = ExecutionPlan(data_parallel=8, zero_stage=2)
    plans = [replace(plan, offload_optimizer=True), plan]
    where = context(kernels=RateKernels(bytes_per_s=1e12), stack=stack(update=update), job=job(**changes))
    shard = total_parameters(gpt()) / 8
    on_host = 8 * shard / parameters_per_s + shard * (4 + 2) / 25e9
    on_device = shard * traffic_bytes_per_parameter(where.job, where.stack) / 1e12
    assert seconds(plans, where) == pytest.approx([on_host, on_device])


@pytest.mark.parametrize(("changes", "around"), [({}, 8 + 4 + 2), ({"master_dtype": "none", "state_dtype": "bf16"}, 4)])
def test_deepspeed_scales_gradients_on_the_host_and_casts_weights_there(changes, around):
    """Gradients cross as what they update is: in fp32, or where no master copy is kept in 16 bits."""
    plan = ExecutionPlan(data_parallel=8, zero_stage=2, offload_optimizer=True)
    deepspeed = stack(framework="deepspeed", gradient_dtype="bf16")
    where = context(kernels=BYTES, stack=deepspeed, job=job(**changes))
    shard = total_parameters(gpt()) / 8
    updated = 2 if changes else 4
    on_host = 8 * shard * (7 * updated + around) / (28 * 4e9) + shard * (updated + 2) / 25e9
    assert seconds([plan], where) == pytest.approx([on_host])
