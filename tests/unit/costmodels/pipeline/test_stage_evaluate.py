"""Plans whose stages differ, worked out by hand, and scored again by playing their schedules."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.context import CostContext
from costmodels.plan import ExecutionPlan, PlanBatch, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages, in_flight
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stage_plans.replay import replay
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec, LinkSpec
from tests.fakes import GPT3, RateKernels, RingCollectives, UnitCollectives, context, job, mixture, node, stack
from tests.stage_batches import concatenate

S, H, V = 2048, 1024, 32768
CORE = 4 * S * S * H / 2  # causal attention, two products
LAYER = 2 * 12 * H * H * S + CORE  # forward FLOPs of one gpt() layer and sequence
BACK = 2 * LAYER + CORE / 2  # flash attention does five products backwards
HEAD = 2 * V * H * S


def configs(*plans: ExecutionPlan, groups: tuple[int, ...] = ()) -> StageConfigs:
    batch = PlanBatch.from_plans([replace(plan, pipeline_parallel=2) for plan in plans])
    return StageConfigs(plans=batch, group=np.asarray(groups or (0,) * len(plans)))


def staged(config: list[int], layers: list[int], **columns) -> StagePlanBatch:
    return StagePlanBatch.from_columns([len(config)], [config], [layers], **columns)


def test_two_unequal_stages_by_hand():
    """A second per FLOP, free traffic; full recomputation of two layers repeats their forward passes."""
    prices = StagePrices(configs=configs(ExecutionPlan(num_microbatches=4)), contexts=(context(),))
    plan = staged([0, 0], [6, 2], full_dense=[[2, 0]], num_microbatches=4)
    found = evaluate_stages(plan, prices)
    forward, backward = np.array([6 * LAYER, 2 * LAYER + HEAD]), np.array([6 * BACK + 2 * LAYER, 2 * BACK + 2 * HEAD])
    assert found.stages.forward_s[0] == pytest.approx(forward)
    assert found.stages.backward_s[0] == pytest.approx(backward)
    # The first stage works four times; the second's way there and back shows once, less what hides behind forwards.
    waits = max(forward[1] + backward[1] - forward[0], 0.0) + max(forward[1] + backward[1] - backward[0], 0.0)
    assert found.step_time_s == pytest.approx([4 * (forward[0] + backward[0]) + waits])
    assert found.step_time_s == pytest.approx(replay(plan, prices).estimate.step_time_s, rel=1e-12)


def two_groups(**changes) -> tuple[CostContext, CostContext]:
    slow = context(**changes)
    link = LinkSpec(name="thin", kind="ethernet", bandwidth_bytes_per_s=1e9, latency_s=1e-5)
    fast = replace(
        slow,
        cluster=ClusterSpec(name="other", node=node(devices_per_node=4, domain_devices=4, nic=link), num_nodes=2),
        kernels=RateKernels(flops_per_s=4.0, bytes_per_s=np.inf),
    )
    return slow, fast


def test_each_stage_is_priced_on_its_own_devices():
    slow, fast = two_groups()
    both = configs(ExecutionPlan(data_parallel=4), ExecutionPlan(data_parallel=4), groups=(0, 1))
    prices = StagePrices(configs=both, contexts=(slow, fast), joint={(0, 1): slow})
    found = evaluate_stages(staged([0, 1], [4, 4]), prices)
    assert found.stages.forward_s[0] == pytest.approx([4 * LAYER, (4 * LAYER + HEAD) / 4])
    swapped = evaluate_stages(staged([1, 0], [4, 4]), prices)
    assert swapped.stages.forward_s[0] == pytest.approx([LAYER, 4 * LAYER + HEAD])
    assert found.usable_bytes.tolist() == [[79e9, 79e9]]


def test_stages_with_other_degrees_pass_on_the_same_samples():
    """Eight sequences of a micro-batch: one per rank on the first stage, four per rank on the second."""
    both = configs(
        ExecutionPlan(data_parallel=8, micro_batch_size=1), ExecutionPlan(data_parallel=2, micro_batch_size=4)
    )
    assert both.samples.tolist() == [8, 8]
    prices = StagePrices(configs=both, contexts=(context(),))
    found = evaluate_stages(staged([0, 1], [4, 4]), prices)
    assert found.stages.forward_s[0] == pytest.approx([4 * LAYER, 4 * (4 * LAYER + HEAD)])


def test_a_boundary_costs_the_slower_side_over_the_link_between():
    where = context(collectives=UnitCollectives())
    both = configs(
        ExecutionPlan(data_parallel=8, micro_batch_size=1),
        ExecutionPlan(data_parallel=2, micro_batch_size=4),
        groups=(0, 1),
    )
    between = replace(where, collectives=RingCollectives(inside_bytes_per_s=1.0, across_bytes_per_s=0.1))
    prices = StagePrices(configs=both, contexts=(where, where), joint={(0, 1): between})
    sequence = S * H * 2
    assert prices.transfer_s.reshape(2, 2) == pytest.approx(sequence * np.array([[1, 10], [40, 4]]))
    apart = evaluate_stages(staged([0, 1], [4, 4]), prices)
    free = evaluate_stages(staged([0, 1], [4, 4]), StagePrices(configs=both, contexts=(context(), context())))
    extra = apart.stages.forward_s - free.stages.forward_s
    assert extra[0] == pytest.approx([40 * sequence] * 2)
    assert (apart.stages.input_gradient_s - free.stages.input_gradient_s)[0] == pytest.approx([40 * sequence] * 2)


def test_memory_of_unequal_stages():
    """The middle stage holds two micro-batches; layers recomputed keep their input only, one is there again."""
    prices = StagePrices(configs=configs(ExecutionPlan(num_microbatches=4)), contexts=(context(),))
    found = evaluate_stages(staged([0, 0, 0], [1, 6, 1], num_microbatches=4), prices)
    spared = evaluate_stages(staged([0, 0, 0], [1, 6, 1], num_microbatches=4, full_dense=[[0, 4, 0]]), prices)
    again = prices.unit["dense_whole_bytes"][0] - 2 * S * H
    difference = (found.stage_memory_bytes - spared.stage_memory_bytes)[0]
    assert difference == pytest.approx([0.0, 2 * 4 * again - again, 0.0])


def test_optimizer_is_offloaded_in_eighths():
    where = context(stack=stack(framework="deepspeed"))
    prices = StagePrices(configs=configs(ExecutionPlan(data_parallel=8, zero_stage=1)), contexts=(where,))
    plans = concatenate([staged([0, 0], [4, 4], optimizer_offload=[[parts, parts]]) for parts in (0, 2, 8)])
    found = evaluate_stages(plans, prices)
    on_device = found.memory_parts_bytes["optimizer"][:, 0]
    assert on_device == pytest.approx(on_device[0] * np.array([1.0, 0.75, 0.0]))
    assert found.host_memory_bytes[:, 0] == pytest.approx(found.host_memory_bytes[2, 0] * np.array([0, 0.25, 1.0]))
    steps = found.time_parts_s["optimizer"]
    assert steps[1] == pytest.approx(0.75 * steps[0] + 0.25 * steps[2])


def test_overshoot_grades_what_does_not_fit():
    small = context(cluster=ClusterSpec(name="small", node=node(), num_nodes=1))
    prices = StagePrices(configs=configs(ExecutionPlan()), contexts=(small,))
    found = evaluate_stages(concatenate([staged([0, 0], [4, 4]), staged([0, 0], [7, 1])]), prices)
    assert found.fits.all()
    assert found.overshoot.tolist() == [0.0, 0.0]
    tight = replace(found, usable_bytes=found.stage_memory_bytes / 1.5)
    assert tight.overshoot == pytest.approx([1.0, 1.0])
    assert not tight.fits.any()


def test_groups_have_to_exist():
    with pytest.raises(SpecError, match=r"^plan\.device_group: must be between 0 and 0"):
        StagePrices(configs=configs(ExecutionPlan(), groups=(1,)), contexts=(context(),))


def test_prices_do_not_depend_on_what_was_asked_before():
    where = context(model=mixture(moe={"first_dense_layers": 3}))
    fresh = StagePrices(configs=configs(ExecutionPlan(data_parallel=4)), contexts=(where,))
    used = StagePrices(configs=configs(ExecutionPlan(data_parallel=4)), contexts=(where,))
    for first in range(1, 8):
        evaluate_stages(staged([0, 0], [first, 8 - first]), used)
    plan = staged([0, 0, 0], [3, 3, 2])
    assert evaluate_stages(plan, fresh).step_time_s.tolist() == evaluate_stages(plan, used).step_time_s.tolist()


REAL = context(
    model=replace(GPT3, num_layers=24),
    job=job(global_batch_size=64),
    kernels=RateKernels(start_s=2e-6),
    collectives=RingCollectives(inside_bytes_per_s=200e9, across_bytes_per_s=20e9),
    stack=stack(microbatch_overhead_s=1e-4, step_overhead_s=1e-2, straggler_fraction_per_doubling=0.01),
)


@st.composite
def random_plans(draw: st.DrawFn, *, chunks: int = 1) -> tuple[StagePlanBatch, StagePrices]:
    count = draw(st.integers(2, 6))
    layers = draw(st.lists(st.integers(chunks, 5), min_size=count, max_size=count))
    microbatches = draw(st.sampled_from([1, 2, 4, 8, 16])) * (count if chunks > 1 else 1)
    samples = 8
    ways = [
        ExecutionPlan(
            tensor_parallel=t, data_parallel=d, micro_batch_size=samples // d, num_microbatches=microbatches,
            sequence_parallel=t > 1,
        )
        for t, d in [(1, 8), (8, 1), (4, 2), (2, 8)]
    ]  # fmt: skip
    model = replace(GPT3, num_layers=sum(layers))
    where = (replace(REAL, model=model), replace(REAL, model=model, kernels=RateKernels(flops_per_s=300e12)))
    chosen = draw(st.lists(st.integers(0, 7), min_size=count, max_size=count))
    full = [draw(st.integers(0, held)) for held in layers]
    offloaded = [draw(st.integers(0, held)) for held in full]
    schedule = draw(st.sampled_from([Schedule.ONE_F_ONE_B, Schedule.GPIPE])) if chunks == 1 else Schedule.ONE_F_ONE_B
    prices = StagePrices(
        configs=configs(*ways, *ways, groups=(0,) * 4 + (1,) * 4), contexts=where, joint={(0, 1): where[0]}
    )
    plan = staged(
        chosen, layers, full_dense=[full], offloaded=[offloaded], num_microbatches=microbatches,
        virtual_stages=chunks, schedule=schedule,
    )  # fmt: skip
    return plan, prices


@settings(max_examples=60)
@given(random_plans())
def test_every_price_is_what_its_schedule_takes_played_out(case):
    """Stages that differ in devices, degrees, layers, recomputation and offloading; middle stages included."""
    plan, prices = case
    found = replay(plan, prices)
    assert np.abs(found.difference) == pytest.approx([0.0], abs=1e-9)
    assert found.estimate.step_time_s == pytest.approx(evaluate_stages(plan, prices).step_time_s, rel=1e-9)
    assert found.in_flight == pytest.approx(in_flight(plan))
    assert sum(found.estimate.time_parts_s.values()) == pytest.approx(found.estimate.step_time_s, rel=1e-12)


@settings(max_examples=30)
@given(random_plans(chunks=2))
def test_interleaving_is_listed_as_played(case):
    """Between unequal stages the formula is an approximation; how far off it is is said."""
    plan, prices = case
    found = replay(plan, prices)
    assert abs(found.difference[0]) < 0.25
    bubble = found.estimate.time_parts_s["bubble"]
    assert sum(found.estimate.time_parts_s.values()) == pytest.approx(found.estimate.step_time_s, rel=1e-12)
    assert (bubble > -1e-9).all()
