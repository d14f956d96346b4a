"""The one cost path end to end: what an estimate says, how sure it is, and when a plan fits."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.estimate import MEMORY_PARTS, TIME_PARTS
from costmodels.evaluate import evaluate
from costmodels.flops import model_flops_per_step
from costmodels.kernels.calls import Basis
from costmodels.memory.peaks import host_memory_bytes, memory_interval
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import layer_costs
from costmodels.step.step_time import step_time
from profiles.hardware import ClusterSpec
from tests.fakes import (
    RateKernels,
    RingCollectives,
    UnitKernels,
    context,
    device,
    gpt,
    job,
    mixture,
    node,
    stack,
    stage_memory,
)

PLANS = PlanBatch.from_columns(
    6,
    tensor_parallel=[1, 2, 4, 2, 1, 8],
    pipeline_parallel=[1, 2, 4, 4, 8, 1],
    data_parallel=[1, 4, 2, 4, 8, 2],
    num_microbatches=[4, 8, 16, 8, 16, 2],
    zero_stage=[0, 1, 2, 0, 1, 3],
    recompute=[0, 1, 2, 0, 2, 0],
    schedule=[0, 0, 1, 2, 3, 0],
)


# Matrix units that kernels of the fakes never get near.
FAST = ClusterSpec(name="fast", node=node(device=device(peak_flops_per_s={"bf16": 1e3 * 312e12})), num_nodes=8)


def real(**changes) -> CostContext:
    values = {
        "kernels": RateKernels(start_s=1e-6, relative_half_width=0.2),
        "collectives": RingCollectives(200e9, 20e9),
        "stack": stack(step_overhead_s=0.01, residual_log_std=0.08),
    }
    return context(**values | changes)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("model", [gpt(), mixture()], ids=lambda model: model.name)
def test_an_estimate_is_its_parts_put_together(model, full):
    """The estimate shows what the parts of the cost model say, nothing else."""
    where = real(model=model)
    found = evaluate(PLANS, where, full=full)
    stages = stage_table(PLANS, model, full=full)
    held = stage_parameters(PLANS, stages, model, where.job)
    step = step_time(PLANS, stages, layer_costs(PLANS, where), held, where)
    memory = stage_memory(PLANS, stages, where)
    assert len(found) == len(PLANS)
    assert found.step_time_s.tolist() == step.step_time_s.tolist()
    assert set(found.time_parts_s) == set(TIME_PARTS)
    assert found.stage_time_s.tolist() == step.stage_time_s.tolist()
    assert set(found.memory_parts_bytes) == set(MEMORY_PARTS)
    assert found.stage_memory_bytes == pytest.approx(sum(memory.values()))
    assert found.peak_memory_bytes == pytest.approx(sum(memory.values()).max(axis=1))
    assert found.host_memory_bytes == pytest.approx(host_memory_bytes(PLANS, stages, where))
    low, high = memory_interval(found.peak_memory_bytes, where)
    assert found.peak_memory_low_bytes == pytest.approx(low)
    assert found.peak_memory_high_bytes == pytest.approx(high)
    assert found.stages.layers.tolist() == stages.layers.tolist()
    assert found.stages.layers.shape[1] == (8 if full else 3)


def test_uncertainties_of_prices_and_stack_add_as_independent():
    """Kernels that are all of a step, its residual, and traffic between replicas that is part of another."""
    alone = PlanBatch.from_plans([ExecutionPlan(num_microbatches=64)])
    found = evaluate(alone, real(cluster=FAST, stack=stack(residual_log_std=0.08)))
    share = 1 - found.time_parts_s["optimizer"] / found.step_time_s
    half = np.sqrt((1.645 * 0.08) ** 2 + (share * np.log(1.2)) ** 2)
    assert found.step_time_high_s / found.step_time_s == pytest.approx(np.exp(half))
    assert found.step_time_s / found.step_time_low_s == pytest.approx(np.exp(half))
    wide = RingCollectives(200e9, 20e9, low_factor=0.5, high_factor=3.0)
    where = real(cluster=FAST, kernels=RateKernels(start_s=1e-6), collectives=wide)
    replicas = evaluate(PlanBatch.from_plans([ExecutionPlan(data_parallel=16)]), where)
    share = replicas.time_parts_s["data_parallel"] / replicas.step_time_s
    for factor, told in ((3.0, replicas.step_time_high_s), (0.5, replicas.step_time_low_s)):
        half = np.hypot(1.645 * 0.08, np.log1p(share * (factor - 1)))
        assert abs(np.log(told / replicas.step_time_s)) == pytest.approx(half)
    assert share > 0.2


def test_intervals_end_where_physics_does():
    """Prices that allow anything: no step beats its FLOPs at the peak rate, no device holds less than its states."""
    wide = stack(residual_log_std=20.0, memory_residual_log_std=20.0)
    found = evaluate(PLANS, real(stack=wide, cluster=FAST, kernels=RateKernels(start_s=1e-3)))
    peak = 1e3 * 312e12 * PLANS.num_devices
    assert found.step_time_low_s == pytest.approx(found.hardware_flops / peak)
    held = (found.memory_parts_bytes["weights"] + found.memory_parts_bytes["optimizer"]).max(axis=1)
    assert found.peak_memory_low_bytes == pytest.approx(held)
    short = real(stack=replace(wide, optimizer_temporaries=1), kernels=RateKernels(), job=job(sequence_length=16))
    more = evaluate(PLANS, short)
    assert (more.memory_parts_bytes["optimizer"] > found.memory_parts_bytes["optimizer"]).any()
    assert more.peak_memory_low_bytes == pytest.approx(held)  # temporaries are no states
    moved = evaluate(replace(PLANS, offload_optimizer=np.ones(len(PLANS), dtype=bool)), short)
    assert moved.peak_memory_low_bytes == pytest.approx(moved.memory_parts_bytes["weights"].max(axis=1))
    quick = evaluate(PLANS, real(stack=wide, kernels=UnitKernels(), collectives=RingCollectives(1e30, 1e30)))
    assert (quick.step_time_low_s <= quick.step_time_s).all()


def test_certain_prices_have_no_interval():
    found = evaluate(PLANS, context())
    assert found.step_time_low_s == pytest.approx(found.step_time_s)
    assert found.step_time_high_s == pytest.approx(found.step_time_s)


@pytest.mark.parametrize("basis", Basis)
def test_the_basis_is_that_of_the_weakest_price(basis):
    found = evaluate(PLANS, real(kernels=RateKernels(basis=basis, extrapolated=basis == Basis.LEARNED)))
    assert set(found.basis.tolist()) == {basis}


def test_the_shares_priced_by_extrapolation_are_of_a_layers_time():
    """All kernels or none; with them, the collectives beside them make up the rest of the layer."""
    none = evaluate(PLANS, real())
    some = evaluate(PLANS, real(kernels=RateKernels(extrapolated=True)))
    assert not none.extrapolated_share["kernels"].any()
    assert not some.extrapolated_share["collectives"].any()
    alone = evaluate(PlanBatch.from_plans([ExecutionPlan()]), real(kernels=RateKernels(extrapolated=True)))
    assert alone.extrapolated_share["kernels"] == pytest.approx(1.0)
    crossing = evaluate(
        PlanBatch.from_plans([ExecutionPlan(tensor_parallel=8)]), real(kernels=RateKernels(extrapolated=True))
    )
    assert 0.0 < crossing.extrapolated_share["kernels"][0] < 1.0


def test_the_shares_by_basis_make_up_a_layers_time():
    plans = PlanBatch.from_plans([ExecutionPlan(), ExecutionPlan(tensor_parallel=8)])
    found = evaluate(plans, real(kernels=RateKernels(basis=Basis.LEARNED)))
    np.testing.assert_allclose(np.sum(list(found.basis_share.values()), axis=0), 1.0)
    assert found.basis_share["learned"][0] == pytest.approx(1.0)  # no collectives
    assert 0.0 < found.basis_share["learned"][1] < 1.0
    assert not found.basis_share["assumed"].any()


def test_a_plan_fits_when_its_peak_and_its_host_memory_do():
    plan = PlanBatch.from_plans([ExecutionPlan(offload_optimizer=True)])
    found = evaluate(plan, real())
    peak, host = float(found.peak_memory_bytes[0]), float(found.host_memory_bytes[0])
    assert host > 0
    for usable, on_host, fits in ((peak, host, True), (peak * 0.999, host, False), (peak, host * 0.999, False)):
        machine = node(device=device(usable_memory_bytes=usable), host_memory_bytes=on_host)
        where = real()
        where = replace(where, cluster=replace(where.cluster, node=machine))
        assert evaluate(plan, where).fits.tolist() == [fits]


def test_utilisation_counts_recomputation_in_hardware_flops_only():
    plans = [
        ExecutionPlan(pipeline_parallel=4, recompute=how, recompute_layers=1, num_microbatches=8) for how in Recompute
    ]
    where = real()
    found = evaluate(PlanBatch.from_plans(plans), where)
    assert found.model_flops == pytest.approx(model_flops_per_step(where.model, where.job, causal=True))
    none, selective, full, block = found.hardware_flops
    assert none == pytest.approx(found.model_flops)
    assert none < selective < block < full
    assert block - none == pytest.approx((full - none) / 2)  # one of two layers per stage


def test_flops_of_a_step_are_those_the_kernels_run():
    """With one second per FLOP and attention's backward at twice its forward, time is model FLOPs over devices."""
    where = context()
    plan = ExecutionPlan(tensor_parallel=8, data_parallel=8, num_microbatches=8)  # 64 sequences
    found = evaluate(PlanBatch.from_plans([plan]), where)
    core = 8 * 4 * 2048 * 1024 * 0.5 * where.job.tokens_per_step
    assert (found.step_time_s[0]) * 64 == pytest.approx(found.model_flops + 0.5 * core, rel=1e-12)


def test_an_empty_batch_has_an_empty_estimate():
    found = evaluate(PlanBatch.from_columns(0), real())
    assert len(found) == 0
    assert found.peak_memory_bytes.shape == (0,)
    assert found.time_parts_s["forward"].shape == (0,)


def test_prices_are_reproducible_and_leave_the_plans_alone():
    before = PLANS.take(slice(None))
    copies = {name: np.array(getattr(PLANS, name)) for name in ("tensor_parallel", "recompute", "zero_stage")}
    first, second = evaluate(PLANS, real()), evaluate(before, real())
    assert first.step_time_s.tobytes() == second.step_time_s.tobytes()
    assert first.peak_memory_bytes.tobytes() == second.peak_memory_bytes.tobytes()
    assert all((getattr(PLANS, name) == values).all() for name, values in copies.items())


def test_schedules_rank_as_published():
    """Same memory, smaller bubble from 1F1B to ZB-1p to ZB-2p (arXiv:2401.10241 figure 5)."""
    plan = ExecutionPlan(pipeline_parallel=4, num_microbatches=16)
    order = [Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P]
    found = evaluate(PlanBatch.from_plans([replace(plan, schedule=schedule) for schedule in order]), real())
    assert (np.diff(found.step_time_s) < 0).all()
    assert found.peak_memory_bytes[1] <= found.peak_memory_bytes[2]
