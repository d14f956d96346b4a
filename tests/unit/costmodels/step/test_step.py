"""Step times from blocks: hand-computed steps, and where every second of them is booked."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.estimate import TIME_PARTS
from costmodels.kernels.calls import KernelOp
from costmodels.links.collectives import CollectiveOp
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import layer_costs
from costmodels.step.step_time import StepTime, step_time
from costmodels.workload import LoraSpec
from profiles.hardware import ClusterSpec
from profiles.parameters import total_parameters
from tests.fakes import (
    GPT3,
    RateKernels,
    RingCollectives,
    UnitCollectives,
    UnitKernels,
    context,
    gpt,
    job,
    llama,
    mixture,
    node,
    stack,
)

S, H, L, V = 2048, 1024, 8, 32768
LAYER = 2 * 12 * H * H * S  # forward FLOPs of one gpt() layer and sequence, attention core apart
CORE = 4 * S * S * H / 2
HEAD = 2 * V * H * S
REAL = {
    "kernels": RateKernels(start_s=2e-6),
    "collectives": RingCollectives(inside_bytes_per_s=200e9, across_bytes_per_s=20e9),
    "stack": stack(
        kernel_launch_s=5e-6,
        microbatch_overhead_s=1e-4,
        step_overhead_s=1e-2,
        tensor_parallel_overlap=0.3,
        data_parallel_overlap=0.8,
        expert_parallel_overlap=0.2,
        straggler_fraction_per_doubling=0.01,
    ),
}


def timed(plans: list[ExecutionPlan], where: CostContext, *, full: bool = False) -> StepTime:
    batch = PlanBatch.from_plans(plans)
    stages = stage_table(batch, where.model, full=full)
    held = stage_parameters(batch, stages, where.model, where.job)
    return step_time(batch, stages, layer_costs(batch, where), held, where)


def seconds(plan: ExecutionPlan, where: CostContext) -> float:
    return float(timed([plan], where).step_time_s[0])


def part(name: str, plan: ExecutionPlan, where: CostContext) -> float:
    return float(timed([plan], where).parts_s[name][0])


VARIED = [
    ExecutionPlan(
        tensor_parallel=t,
        pipeline_parallel=p,
        virtual_stages=v,
        context_parallel=c,
        context_kind=kind,
        data_parallel=d,
        expert_parallel=2 if d > 1 else 1,
        zero_stage=zero,
        recompute=recompute,
        recompute_layers=1,
        schedule=schedule,
        num_microbatches=8,
        micro_batch_size=2,
        sequence_parallel=t > 1,
        tensor_parallel_overlap=zero == 1,
        offload_optimizer=zero == 2,
        offload_activations=zero == 1,
        offload_parameters=zero == 3,
        overlap_grad_reduce=zero != 2,
    )
    for (t, c, kind), (p, v, schedule), (d, zero), recompute in product(
        [(1, 1, ContextKind.RING), (4, 2, ContextKind.RING), (2, 2, ContextKind.ULYSSES)],
        [
            (1, 1, Schedule.ONE_F_ONE_B),
            (4, 1, Schedule.ONE_F_ONE_B),
            (4, 2, Schedule.ONE_F_ONE_B),
            (2, 1, Schedule.GPIPE),
            (4, 1, Schedule.ZERO_BUBBLE_1P),
            (4, 1, Schedule.ZERO_BUBBLE_V),
        ],
        [(1, 0), (8, 0), (8, 1), (4, 2), (8, 3)],
        Recompute,
    )
]


@pytest.mark.parametrize(
    "model", [gpt(), llama(), mixture(), mixture(moe={"first_dense_layers": 3})], ids=lambda m: m.name
)
def test_parts_add_up_and_none_is_negative(model):
    where = context(model=model, job=job(attention="unfused", dropout=True), **REAL)
    for full in (False, True):
        found = timed(VARIED, where, full=full)
        assert tuple(sorted(found.parts_s)) == tuple(sorted(TIME_PARTS))
        assert sum(found.parts_s.values()) == pytest.approx(found.step_time_s, rel=1e-12)
        assert all((values >= 0).all() for values in found.parts_s.values())


def test_classes_and_single_stages_take_the_same_time():
    where = context(model=mixture(moe={"first_dense_layers": 3}), **REAL)
    classes, full = timed(VARIED, where), timed(VARIED, where, full=True)
    assert classes.step_time_s == pytest.approx(full.step_time_s, rel=1e-12)
    for name in TIME_PARTS:
        assert classes.parts_s[name] == pytest.approx(full.parts_s[name], rel=1e-9, abs=1e-15), name


def test_exposed_traffic_is_at_most_all_traffic():
    found = timed(VARIED, context(model=mixture(), **REAL))
    assert set(found.communication_total_s) <= set(TIME_PARTS)
    for name, total in found.communication_total_s.items():
        assert (found.parts_s[name] <= total * (1 + 1e-12)).all(), name
    hidden = timed(VARIED, context(model=mixture(), **REAL | {"stack": stack()}))
    assert hidden.parts_s["tensor_parallel"] == pytest.approx(hidden.communication_total_s["tensor_parallel"])


@pytest.mark.parametrize(
    ("recompute", "layers", "again"),
    [
        (Recompute.NONE, 0, 0),
        (Recompute.SELECTIVE, 0, L * CORE),
        (Recompute.FULL, 0, L * (LAYER + CORE)),
        (Recompute.BLOCK, 3, 3 * (LAYER + CORE)),
        (Recompute.BLOCK, 99, L * (LAYER + CORE)),
    ],
)
def test_one_device_does_three_forwards_and_what_it_recomputes(recompute, layers, again):
    """Forward 1, backward 2 (2.5 for fused attention), head and loss apart; 5 micro-batches of 2 sequences."""
    plan = ExecutionPlan(micro_batch_size=2, num_microbatches=5, recompute=recompute, recompute_layers=layers)
    found = timed([plan], context())
    expected = {
        "forward": 10 * L * (LAYER + CORE),
        "backward": 10 * L * (2 * LAYER + 2.5 * CORE),
        "recompute": 10 * again,
        "embedding_and_loss": 10 * 3 * HEAD,
    }
    assert {name: pytest.approx(float(values[0])) for name, values in found.parts_s.items() if values[0]} == {
        name: value for name, value in expected.items() if value
    }
    assert found.step_time_s == pytest.approx([sum(expected.values())])


def test_experts_and_dense_layers_are_counted_apart():
    model = mixture(moe={"first_dense_layers": 3})
    attention = 2 * (2 * H * H + 2 * H * 256)
    dense, routed = 2 * 3 * H * 2816, 2 * (3 * H * (2 * 1408 + 2816) + 8 * H)
    expected = S * (8 * attention + 3 * dense + 5 * routed) + 8 * CORE
    assert part("forward", ExecutionPlan(), context(model=model)) == pytest.approx(expected)


@pytest.mark.parametrize("t", [2, 8])
def test_tensor_parallelism_divides_all_work(t):
    assert seconds(ExecutionPlan(tensor_parallel=t), context()) == pytest.approx(
        seconds(ExecutionPlan(), context()) / t
    )


def test_pipeline_of_equal_layers_and_a_head():
    """Last stage: 2 layers and the head, 16 times; the others' 2 layers once each."""
    layer = 3 * LAYER + 3.5 * CORE
    found = timed([ExecutionPlan(pipeline_parallel=4, num_microbatches=16)], context(), full=True)
    assert found.stage_time_s == pytest.approx(np.array([[2 * layer, 2 * layer, 2 * layer, 2 * layer + 3 * HEAD]]))
    assert found.parts_s["bubble"] == pytest.approx([3 * 2 * layer])
    assert found.step_time_s == pytest.approx([16 * (2 * layer + 3 * HEAD) + 6 * layer])


def test_interleaving_divides_the_bubble():
    plan = ExecutionPlan(pipeline_parallel=4, num_microbatches=16)
    bubbles = [part("bubble", replace(plan, virtual_stages=v), context()) for v in (1, 2)]
    assert bubbles[1] == pytest.approx(bubbles[0] / 2)


def test_gpt3_compute_of_the_megatron_paper():
    """Equation 3 of arXiv:2104.04473 over 1024 devices: t 8, p 16, d 8, full recomputation, unfused attention.

    Work of a middle stage of six layers: the equation's share of one of 16 stages without its head.
    """
    plan = ExecutionPlan(
        tensor_parallel=8, pipeline_parallel=16, data_parallel=8, num_microbatches=192, recompute=Recompute.FULL
    )
    task = job(global_batch_size=1536, attention="unfused")
    where = context(model=GPT3, job=task, cluster=ClusterSpec(name="fake", node=node(), num_nodes=128))
    layers = 96 * 1536 * 2048 * 96 * 12288**2 * (1 + 2048 / (6 * 12288))
    found = timed([plan], where, full=True)
    assert found.stage_time_s[0, 1] * 192 == pytest.approx(layers / 1024, rel=1e-12)
    head = 6 * 1536 * 2048 * 12288 * 51200
    assert found.stage_time_s[0, -1] * 192 == pytest.approx(layers / 1024 + head / (8 * 8), rel=1e-12)


FREE = UnitKernels(ops=())


@pytest.mark.parametrize(
    ("plan", "per_crossing"),
    [
        (ExecutionPlan(pipeline_parallel=4), 2 * S * H),
        (ExecutionPlan(pipeline_parallel=4, micro_batch_size=3), 3 * 2 * S * H),
        (ExecutionPlan(pipeline_parallel=4, context_parallel=2), 2 * S * H / 2),
        (ExecutionPlan(pipeline_parallel=4, tensor_parallel=2), 2 * S * H),
        (ExecutionPlan(pipeline_parallel=4, tensor_parallel=2, sequence_parallel=True), 2 * S * H / 2),
        (ExecutionPlan(), 0),
    ],
)
def test_a_micro_batch_crosses_stages_there_and_back(plan, per_crossing):
    where = context(kernels=FREE, collectives=UnitCollectives(op=CollectiveOp.SEND_RECV), stack=stack(framework="fsdp"))
    found = timed([replace(plan, num_microbatches=6, context_kind=ContextKind.ULYSSES)], where)
    assert found.parts_s["pipeline_transfer"] == pytest.approx([2 * 6 * per_crossing])
    assert found.communication_total_s["pipeline_transfer"] == pytest.approx([2 * 6 * per_crossing])


@pytest.mark.parametrize(
    ("zero", "sent"),
    [
        (0, 2 * 4),  # an all-reduce of fp32 gradients
        (1, 4 + 2),  # their reduce-scatter and an all-gather of 16-bit parameters
        (2, 6 * 4 + 2),  # gradients of every micro-batch (DeepSpeed)
        (3, 6 * (4 + 2 + 2)),  # and parameters, for every forward and every backward pass
    ],
)
def test_data_parallel_traffic_without_overlap(zero, sent):
    where = context(kernels=FREE, collectives=RingCollectives())
    plan = ExecutionPlan(data_parallel=8, num_microbatches=6, zero_stage=zero)
    found = timed([plan], where)
    expected = pytest.approx([sent * total_parameters(gpt()) * 7 / 8])
    assert found.parts_s["data_parallel"] == expected
    assert found.communication_total_s["data_parallel"] == expected


def test_overlap_hides_up_to_one_micro_batch_of_work():
    """Fully efficient overlap: gradients hide under a backward pass, parameters under a forward pass."""
    slow = RingCollectives(1.0, 1.0)
    where = context(collectives=slow, stack=stack(data_parallel_overlap=1.0))
    moved = total_parameters(gpt()) * 7 / 8
    forward = L * (LAYER + CORE) + HEAD
    backward = L * (2 * LAYER + 2.5 * CORE) + 2 * HEAD
    assert forward > 8 * moved
    tenth = replace(where, collectives=RingCollectives(1e-3, 1e-3))
    plan = ExecutionPlan(data_parallel=8, zero_stage=1)
    for case in (where, tenth):
        rate = case.collectives.inside_bytes_per_s
        gather, scatter = 2 * moved / rate, 4 * moved / rate
        both = max(gather - forward, 0) + max(scatter - backward, 0)
        assert part("data_parallel", plan, case) == pytest.approx(both)
        assert part("data_parallel", replace(plan, overlap_param_gather=False), case) == pytest.approx(
            gather + max(scatter - backward, 0)
        )
        assert part("data_parallel", replace(plan, overlap_grad_reduce=False), case) == pytest.approx(
            max(gather - forward, 0) + scatter
        )


def test_tensor_parallel_traffic_hides_only_where_plan_and_stack_do():
    """Four all-reduces per layer, one after the embedding (which has nothing to hide it) and one before the head."""
    where = context(collectives=RingCollectives(), stack=stack(tensor_parallel_overlap=0.75))
    plan = ExecutionPlan(tensor_parallel=8, num_microbatches=3)
    once = 2 * (2 * S * H) * 7 / 8
    loss = 2 * (12 * S) * 7 / 8
    assert part("tensor_parallel", plan, where) == pytest.approx(3 * (4 * L * once + 2 * once + loss))
    overlapped = 3 * ((4 * L * once + once + loss) / 4 + once)
    assert part("tensor_parallel", replace(plan, tensor_parallel_overlap=True), where) == pytest.approx(overlapped)


def test_full_recomputation_repeats_forward_traffic_and_block_its_share():
    where = context(kernels=FREE, collectives=RingCollectives())
    plan = ExecutionPlan(tensor_parallel=8)
    none, block, full = (
        part("tensor_parallel", replace(plan, recompute=how, recompute_layers=2), where)
        for how in (Recompute.NONE, Recompute.BLOCK, Recompute.FULL)
    )
    once = 2 * 2 * S * H * 2 * 7 / 8  # two all-reduces of one layer
    assert full - none == pytest.approx(L * once)
    assert block - none == pytest.approx(2 * once)


def test_a_layer_never_runs_faster_than_its_launches():
    fast = context(kernels=UnitKernels(ops=()), stack=stack(kernel_launch_s=1.0))
    slow = context(kernels=UnitKernels(), stack=stack(kernel_launch_s=1.0))
    assert part("overhead", ExecutionPlan(), fast) > 8 * 10
    assert part("overhead", ExecutionPlan(), slow) == 6  # the embedding's kernels, which are free here


def test_overheads_per_step_and_micro_batch():
    where = context(kernels=FREE, stack=stack(microbatch_overhead_s=0.5, step_overhead_s=7.0))
    assert seconds(ExecutionPlan(num_microbatches=6), where) == pytest.approx(7 + 6 * 0.5)
    # Three more stages to fill, and every chunk of a stage is a micro-batch to the host.
    assert seconds(ExecutionPlan(num_microbatches=6, pipeline_parallel=4), where) == pytest.approx(7 + 9 * 0.5)
    plan = ExecutionPlan(num_microbatches=8, pipeline_parallel=4, virtual_stages=2)
    assert seconds(plan, where) == pytest.approx(7 + 8 * 2 * 0.5 + 3 * 0.5)


def test_stragglers_cost_a_share_per_doubling_beyond_a_node():
    plain, dragged = context(), context(stack=stack(straggler_fraction_per_doubling=0.02))
    for devices, doublings in ((8, 0), (16, 1), (64, 3)):
        plan = ExecutionPlan(data_parallel=devices)
        assert seconds(plan, dragged) == pytest.approx(seconds(plan, plain) * (1 + 0.02 * doublings))


def test_the_optimizer_step_is_booked():
    where = context(kernels=UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"))
    plan = ExecutionPlan(zero_stage=3, data_parallel=8)
    per_parameter = 4 + 7 / 6 * 28 + 2
    assert part("optimizer", plan, where) == pytest.approx(per_parameter * total_parameters(gpt()) / 8)


def test_frozen_weights_save_a_third():
    full = timed([ExecutionPlan()], context())
    lora = timed([ExecutionPlan()], context(job=job(task="lora", lora=LoraSpec(rank=1, targets=("q",)))))
    saved = full.parts_s["backward"] - lora.parts_s["backward"]
    assert saved == pytest.approx([L * LAYER], rel=1e-3)


def test_recomputation_is_ordered():
    where = context(**REAL)
    plan = ExecutionPlan(tensor_parallel=2, pipeline_parallel=2, num_microbatches=8)
    order = [
        replace(plan, recompute=Recompute.NONE),
        *(replace(plan, recompute=Recompute.BLOCK, recompute_layers=n) for n in (1, 2, 3, 4)),
    ]
    times = timed(order, where).step_time_s
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(seconds(replace(plan, recompute=Recompute.FULL), where))
    assert times[0] < seconds(replace(plan, recompute=Recompute.SELECTIVE), where) < times[-1]


@pytest.mark.parametrize(
    ("framework", "gradient", "zero", "bytes_each"),
    [
        ("megatron", "fp32", 0, 2 * 4 - 2),  # added inside the GEMM: the 16-bit gradient is never stored
        ("fsdp", "fp32", 1, 2 * 4 + 2),
        ("fsdp", "bf16", 0, (2 * 2 + 2) * 3 / 4),  # the first of four micro-batches needs no addition
        ("fsdp", "fp32", 3, 0),
    ],
)
def test_gradients_are_added_up_over_micro_batches(framework, gradient, zero, bytes_each):
    where = context(
        kernels=UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"),
        stack=stack(framework=framework, gradient_dtype=gradient),
    )
    plan = ExecutionPlan(num_microbatches=4, zero_stage=zero, data_parallel=8)
    without = part("backward", replace(plan, zero_stage=3), where)
    extra = part("backward", plan, where) - without
    assert extra == pytest.approx(4 * bytes_each * total_parameters(gpt()))
    routed = replace(where, model=mixture())
    extra = part("backward", plan, routed) - part("backward", replace(plan, zero_stage=3), routed)
    assert extra == pytest.approx(4 * bytes_each * total_parameters(mixture()))


def test_gradients_of_fp32_weights_are_added_in_fp32():
    """Autograd hands them over as they are kept: the first of four is no sum, others read two and write one."""
    where = context(
        kernels=UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"),
        stack=stack(framework="huggingface", gradient_dtype="bf16", autocast_weights=True),
    )
    one, four = (part("backward", ExecutionPlan(num_microbatches=count), where) for count in (1, 4))
    assert four - 4 * one == pytest.approx(3 * 12 * total_parameters(gpt()))
