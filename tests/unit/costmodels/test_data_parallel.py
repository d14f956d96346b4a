"""Data-parallel and ZeRO traffic: volumes of arXiv:1910.02054 section 7, groups and placements."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.data_parallel import DataParallelTraffic, exposed_traffic_s
from costmodels.kernels.calls import Prediction
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.plan import AxisOrder, ExecutionPlan, PlanBatch, Schedule
from costmodels.stages.parameters import expert_shard_degree, stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.hardware import ClusterSpec
from profiles.parameters import total_parameters
from profiles.precision import NF4_BYTES
from profiles.stacks import load_stacks
from tests.fakes import RingCollectives, UnitCollectives, exactly, gpt, job, llama, mixture, node, stack
from tests.traffic import calls, traffic


@pytest.mark.parametrize(
    ("zero_stage", "volume"),
    [(0, 2.0), (1, 2.0), (2, 2.0), (3, 3.0)],  # times the parameters, times (d - 1) / d
)
def test_volume_per_step_of_zero(zero_stage, volume):
    """2 Psi without and with stages 1 and 2, 3 Psi with stage 3 (16-bit everywhere, one micro-batch)."""
    found = traffic(
        [ExecutionPlan(data_parallel=16, zero_stage=zero_stage)], stack=stack(gradient_dtype="bf16", framework="fsdp")
    )
    gathers = np.maximum(found.gathers_per_microbatch, 1)
    sent = found.gradients_s + gathers * found.parameters_s
    assert sent == pytest.approx([volume * 2 * total_parameters(gpt()) * 15 / 16])


def test_a_gradient_reduced_to_its_owner_moves_whole():
    """Paddle's stage 2: d / (d - 1) of what a reduce-scatter sends over the slowest link; its other stages as ever."""
    owners = stack(reduces_to_owners=True, gradient_dtype="bf16")
    for zero_stage in (0, 1, 2, 3):
        plan = ExecutionPlan(data_parallel=4, zero_stage=zero_stage)
        found, usual = (calls(plan, stack=each) for each in (owners, stack(gradient_dtype="bf16")))
        if zero_stage == 2:
            assert found[0] == (CollectiveOp.BROADCAST, pytest.approx(2 * total_parameters(gpt())), 4, 4)
            assert usual[0] == (CollectiveOp.REDUCE_SCATTER, *found[0][1:])
        assert found[zero_stage == 2 :] == usual[zero_stage == 2 :]


@pytest.mark.parametrize("highest", [0, 1, 2])
def test_stages_1_and_2_may_sum_gradients_whole_before_they_shard_the_update(highest):
    """DeepSpeed's: 3 Psi, an all-reduce and a gathering, where a scatter of sums moves 2; others as ever."""
    psi = total_parameters(gpt())
    whole, usual = stack(sums_whole=highest, gradient_dtype="bf16"), stack(gradient_dtype="bf16")
    for zero_stage in range(4):
        plan = ExecutionPlan(data_parallel=4, zero_stage=zero_stage)
        if not 1 <= zero_stage <= highest:
            assert calls(plan, stack=whole) == calls(plan, stack=usual)
            continue
        assert calls(plan, stack=whole) == [
            (CollectiveOp.ALL_REDUCE, pytest.approx(2 * psi), 4, 4),
            (CollectiveOp.ALL_GATHER, pytest.approx(2 * psi), 4, 4),
        ]


def test_deepspeed_has_summed_whole_at_stage_2_since_the_end_of_2023():
    stacks = load_stacks()
    assert [stacks[name].sums_whole for name in ("deepspeed", "deepspeed-2024", "xtuner")] == [2, 2, 2]
    for name in ("megatron-deepspeed", "megatron-deepspeed-blocking", "deepspeed-megatron"):
        assert stacks[name].sums_whole == 1
        assert stacks[name].reduces_to_owners


@pytest.mark.parametrize(("dtype", "width"), [("fp32", 4), ("bf16", 2)])
def test_gradients_move_in_the_format_they_are_kept_in(dtype, width):
    psi = total_parameters(gpt())
    plain = calls(ExecutionPlan(data_parallel=8), stack=stack(gradient_dtype=dtype))
    assert plain == [(CollectiveOp.ALL_REDUCE, pytest.approx(width * psi), 8, 8)]
    assert calls(ExecutionPlan(data_parallel=8), job=job(gradient_dtype=dtype)) == plain
    # Sharded: gradients scattered in that format, parameters gathered in the precision they compute in.
    assert calls(ExecutionPlan(data_parallel=8, zero_stage=1), stack=stack(gradient_dtype=dtype)) == [
        (CollectiveOp.REDUCE_SCATTER, pytest.approx(width * psi), 8, 8),
        (CollectiveOp.ALL_GATHER, pytest.approx(2 * psi), 8, 8),
    ]


def test_context_ranks_reduce_gradients_too():
    assert calls(ExecutionPlan(data_parallel=4, context_parallel=4))[0][2] == 16


def test_hybrid_sharding_reduces_a_shard_across_replicas():
    psi = total_parameters(gpt())
    assert calls(ExecutionPlan(data_parallel=64, zero_stage=2, zero_shard_degree=8)) == [
        (CollectiveOp.REDUCE_SCATTER, pytest.approx(4 * psi), 8, 8),
        (CollectiveOp.ALL_REDUCE, pytest.approx(4 * psi / 8), 8, 1),
        (CollectiveOp.ALL_GATHER, pytest.approx(2 * psi), 8, 8),
    ]
    # Replicas of a shard are the shard's ranks apart: two of every four in a node of eight.
    across = calls(ExecutionPlan(data_parallel=64, zero_stage=1, zero_shard_degree=4))[1]
    assert across == (CollectiveOp.ALL_REDUCE, pytest.approx(psi), 16, 2)


@pytest.mark.parametrize(
    ("plan", "near"),
    [
        (ExecutionPlan(data_parallel=64), 8),
        (ExecutionPlan(data_parallel=32, tensor_parallel=2), 4),
        (ExecutionPlan(data_parallel=8, tensor_parallel=8), 1),
        (ExecutionPlan(data_parallel=32, pipeline_parallel=2), 8),
        (ExecutionPlan(data_parallel=32, pipeline_parallel=2, axis_order=AxisOrder.TP_CP_PP_DP), 4),
        (ExecutionPlan(data_parallel=4, pipeline_parallel=16, axis_order=AxisOrder.TP_CP_PP_DP), 1),
    ],
)
def test_neighbours_in_the_group_depend_on_what_lies_inside(plan, near):
    assert {call[3] for call in calls(plan)} == {near}


def test_experts_are_reduced_over_the_ranks_that_hold_them():
    model = mixture()
    experts = 8 * 8 * 3 * 1024 * 1408
    dense = total_parameters(model) - experts
    plan = ExecutionPlan(data_parallel=16, tensor_parallel=2, expert_parallel=8)
    shared, routed = calls(plan, model=model)
    replicated = (8 * 2 + 1) * 1024 + 8 * 8 * 1024  # norms and routers
    assert shared == (CollectiveOp.ALL_REDUCE, pytest.approx(4 * ((dense - replicated) / 2 + replicated)), 16, 4)
    # 32 ranks hold 8 experts each in 8 places: 4 replicas, one per 8 ranks.
    assert routed == (CollectiveOp.ALL_REDUCE, pytest.approx(4 * experts / 8), 4, 1)


def test_hybrid_sharding_of_experts():
    plan = ExecutionPlan(data_parallel=32, expert_parallel=4, zero_stage=1, zero_shard_degree=8)
    found = [call[:3] for call in calls(plan, model=mixture())]
    size = 4 * 8 * 8 * 3 * 1024 * 1408 / 4
    assert found[3:5] == [
        (CollectiveOp.REDUCE_SCATTER, pytest.approx(size), 2),  # 8 replicas of an expert, 4 of every shard
        (CollectiveOp.ALL_REDUCE, pytest.approx(size / 2), 4),
    ]
    batch = PlanBatch.from_plans([plan])
    held = stage_parameters(batch, stage_table(batch, mixture()), mixture(), job())
    assert expert_shard_degree(batch, held).tolist() == [2]


@pytest.mark.parametrize(
    ("plan", "reduces", "gathers"),
    [
        (ExecutionPlan(data_parallel=8), 0, 0),
        (ExecutionPlan(data_parallel=8, zero_stage=1), 0, 0),
        (ExecutionPlan(data_parallel=8, zero_stage=2), 1, 0),
        (ExecutionPlan(data_parallel=8, zero_stage=3), 1, 2),
        (ExecutionPlan(data_parallel=8, zero_stage=3, pipeline_parallel=2), 0, 0),
    ],
)
def test_what_happens_for_every_microbatch(plan, reduces, gathers):
    found = traffic([plan])
    assert found.reduces_per_microbatch.tolist() == [[reduces]]
    assert found.gathers_per_microbatch.tolist() == [[gathers]]


def test_fsdp_reduces_once_per_step_under_a_pipeline_whatever_it_reshards():
    plans = [ExecutionPlan(data_parallel=8, zero_stage=stage, pipeline_parallel=2) for stage in (2, 3)]
    assert traffic(plans, stack=stack(framework="fsdp")).reduces_per_microbatch.tolist() == [[0], [0]]
    assert traffic(plans, stack=stack(framework="deepspeed")).reduces_per_microbatch.tolist() == [[1], [0]]
    alone = [replace(plan, pipeline_parallel=1) for plan in plans]
    assert traffic(alone, stack=stack(framework="fsdp")).reduces_per_microbatch.tolist() == [[1], [1]]


def test_fsdp_at_stage_2_gathers_every_micro_batch_once_layer_by_layer():
    """It shards parameters after the backward pass, where others at stage 2 keep them whole."""
    plan = ExecutionPlan(data_parallel=8, zero_stage=2, num_microbatches=4)
    fsdp = stack(framework="fsdp")
    assert traffic([plan], stack=fsdp).gathers_per_microbatch.tolist() == [[1]]
    assert traffic([replace(plan, pipeline_parallel=2)], stack=fsdp).gathers_per_microbatch.tolist() == [[0]]
    assert traffic([plan], stack=stack(framework="deepspeed")).gathers_per_microbatch.tolist() == [[0]]
    assert calls(plan, stack=fsdp) == calls(replace(plan, zero_stage=3), stack=fsdp)
    found, one, nothing = traffic([plan], stack=fsdp), np.array([1]), np.zeros(1)
    _, total_s = exposed_traffic_s(
        found, num_microbatches=4 * one, num_stages=one, virtual_stages=one, forward_s=nothing, backward_s=nothing
    )
    assert total_s == pytest.approx((4 * (found.gradients_s + found.parameters_s))[0])


def test_adapters_reduce_their_gradients_only_and_stage_3_gathers_the_base():
    model, task = llama(), job(task="lora", lora=LoraSpec(rank=8, targets=("q",)))
    adapters, base = 8 * 8 * 2048, total_parameters(model)
    plans = [ExecutionPlan(data_parallel=8, zero_stage=zero) for zero in (0, 2, 3)]
    found = traffic(plans, model=model, job=task)
    ring = 7 / 8
    assert found.gradients_s[:, 0] == pytest.approx([ring * size * adapters for size in (2 * 4, 4, 4)])
    assert found.parameters_s[:, 0] == pytest.approx([0, ring * 2 * adapters, ring * 2 * base])


def test_4_bit_weights_travel_as_they_are_stored():
    """Embedding, head and norms in 16 bits, all else in four and its constants."""
    model, task = llama(), job(task="qlora", lora=LoraSpec(rank=8, targets=("q",)))
    plain = 2 * model.vocab_size * model.hidden_size + 8 * 2 * model.hidden_size
    packed = total_parameters(model) - plain - model.hidden_size  # the final norm is counted with the layers'
    plans = [ExecutionPlan(data_parallel=8, zero_stage=zero) for zero in (2, 3)]
    found = traffic(plans, model=model, job=task, stack=stack(framework="huggingface"))
    expected = 7 / 8 * (2 * plain + NF4_BYTES * packed)
    assert found.parameters_s[:, 0] == pytest.approx([7 / 8 * 2 * 8 * 8 * 2048, expected], rel=1e-4)
    double = traffic(plans, model=model, job=task, stack=stack(four_bit_weight_bytes=2 * NF4_BYTES))
    assert double.parameters_s[1, 0] - found.parameters_s[1, 0] == pytest.approx(7 / 8 * NF4_BYTES * packed, rel=1e-4)


def test_the_stage_with_most_traffic_sets_the_time():
    """Four stages of two layers; the ends hold an embedding or a head, the head also a norm."""
    plan = ExecutionPlan(data_parallel=8, pipeline_parallel=4)
    sizes = [call[1] for call in calls(plan, model=gpt(rms_norm=True))]
    layer, matrix = 12 * 1024**2 + 2 * 1024, 32768 * 1024
    ends = [matrix, 0, matrix + 1024]  # the middle stages are alike and priced once
    assert sizes == pytest.approx([4 * (2 * layer + end) for end in ends])
    found = traffic([plan], model=gpt(rms_norm=True), collectives=UnitCollectives())
    assert found.gradients_s == pytest.approx(np.array([[max(sizes)]]))


class SmallIsSlow:
    """A link on which messages of up to 120 MB take a second, and larger ones none."""

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        return exactly(np.where((calls.group_size > 1) & (calls.size_bytes < 120e6) & (calls.size_bytes > 0), 1.0, 0.0))


def test_a_stage_that_holds_less_may_take_longer():
    plan = ExecutionPlan(data_parallel=8, pipeline_parallel=4, zero_stage=1)
    found = traffic([plan], collectives=SmallIsSlow())
    # Scattered in fp32, only the middle stages stay below; gathered in 16 bits, all do. The middle stands for all.
    assert found.gradients_s.tolist() == [[1.0]]
    assert found.parameters_s.tolist() == [[1.0]]
    one = np.array([1])
    exposed, total_s = exposed_traffic_s(
        found, num_microbatches=one, num_stages=4 * one, virtual_stages=one, forward_s=0.0 * one, backward_s=0.0 * one
    )
    assert exposed.tolist() == total_s.tolist() == [2.0]


def shown(*, gathers: bool, m: int, p: int, v: int, hidden: float = 1.0, each_time: bool = False) -> float:
    """Seconds that show of eight of one kind of traffic, beside passes of two seconds forward, three backward."""
    column = np.ones((1, 1))
    traffic_of = DataParallelTraffic(
        gradients_s=8.0 * column * (not gathers),
        parameters_s=8.0 * column * gathers,
        reduces_per_microbatch=column * each_time,
        gathers_per_microbatch=0.0 * column,
        hidden_gathers=hidden * column,
        hidden_reductions=hidden * column,
    )
    one = np.ones(1)
    exposed, _ = exposed_traffic_s(
        traffic_of, num_microbatches=np.array([m]), num_stages=np.array([p]), virtual_stages=np.array([v]),
        forward_s=2 * one, backward_s=3 * one,
    )  # fmt: skip
    return float(exposed[0])


def test_an_interleaved_stage_sends_a_chunk_under_the_passes_of_the_next():
    """Two seconds a chunk of four; a pass of a chunk takes half a second forward, and p of them lie between."""
    assert shown(gathers=True, m=8, p=4, v=1) == pytest.approx(8 - 2)
    assert shown(gathers=True, m=8, p=4, v=4) == pytest.approx(2 - 0.5)  # of the first chunk; 2 s hide the others
    assert shown(gathers=True, m=8, p=2, v=4) == pytest.approx((2 - 0.5) + 3 * (2 - 1.0))
    assert shown(gathers=True, m=2, p=4, v=4) == pytest.approx((2 - 0.5) + 3 * (2 - 1.0))  # no more than there are
    assert shown(gathers=True, m=8, p=4, v=4, hidden=0.5) == pytest.approx((2 - 0.5) + 3 * (2 - 1.0))
    assert shown(gathers=True, m=8, p=4, v=4, hidden=0.0) == pytest.approx(8)
    assert shown(gathers=False, m=8, p=2, v=4) == pytest.approx((2 - 0.75) + 3 * (2 - 1.5))


def test_what_is_sent_for_every_micro_batch_hides_under_its_own_passes():
    assert shown(gathers=False, m=8, p=2, v=4, each_time=True) == pytest.approx(8 * (8 - 3))


def test_messages_of_a_stage_follow_from_its_own_layers():
    """ZeRO-3 gathers layer by layer: with 5 + 3 layers, five messages and three."""
    plan = ExecutionPlan(data_parallel=8, pipeline_parallel=2, zero_stage=3, stage_layers=(5, 3))
    slow = traffic([plan], collectives=SmallIsSlow(), stack=stack(framework="fsdp"))
    assert slow.parameters_s.tolist() == [[5.0]]


def test_plans_that_differ_in_layout_only_are_priced_apart():
    """A V-shaped placement puts embedding and head on one stage; chunks move the MoE layers."""
    model = mixture(moe={"first_dense_layers": 4})
    plans = [
        ExecutionPlan(pipeline_parallel=2, data_parallel=8, schedule=schedule, virtual_stages=chunks)
        for schedule, chunks in [
            (Schedule.ONE_F_ONE_B, 1),
            (Schedule.ONE_F_ONE_B, 4),
            (Schedule.ZERO_BUBBLE_V, 1),
        ]
    ]
    together = traffic(plans, model=model).gradients_s
    alone = [traffic([plan], model=model).gradients_s.max() for plan in plans]
    assert together.max(axis=1).tolist() == alone
    assert len(set(alone)) == 3


def test_one_rank_moves_nothing():
    found = traffic([ExecutionPlan(zero_stage=stage) for stage in range(4)])
    assert not np.any(found.gradients_s)
    assert not np.any(found.parameters_s)


@pytest.mark.parametrize(("nodes", "least_s"), [(1, 0.0), (8, 16 * 5.0)])
def test_stalled_collectives_take_a_time_for_every_rank(nodes, least_s):
    """So long at least, and no longer where the bytes take longer anyway."""
    where = ClusterSpec(name="stalling", node=node(devices_per_node=16, domain_devices=16, collective_rank_s=5.0),
                        num_nodes=nodes)  # fmt: skip
    plans = [ExecutionPlan(data_parallel=16, zero_stage=1), ExecutionPlan(tensor_parallel=16)]
    quick = traffic(plans, cluster=where, collectives=RingCollectives(np.inf, np.inf))
    assert quick.gradients_s == pytest.approx([least_s, 0.0])
    assert quick.parameters_s == pytest.approx([least_s, 0.0])
    slow = RingCollectives(1.0, 1.0)
    alone = traffic(plans, cluster=replace(where, num_nodes=1), collectives=slow)
    assert traffic(plans, cluster=where, collectives=slow).gradients_s == pytest.approx(alone.gradients_s)


def test_messages_share_the_bandwidth_and_each_pays_the_start():
    """Splitting moves the same bytes; what is priced per message is paid as often as there are messages."""

    class Starts(RingCollectives):
        def predict(self, calls, cluster):
            priced = super().predict(calls, cluster)
            start_s = np.where((calls.group_size > 1) & (calls.size_bytes > 0), 7.0, 0.0)
            return replace(priced, time_s=priced.time_s + start_s)

    psi, ring = total_parameters(gpt()), 7 / 8
    plans = [ExecutionPlan(data_parallel=8), ExecutionPlan(data_parallel=8, zero_stage=1)]
    split = stack(gradient_message_bytes=4 * psi / 10, gather_messages_per_layer=2)
    found = traffic(plans, stack=split, collectives=Starts(inside_bytes_per_s=1e6))
    assert found.gradients_s == pytest.approx([10 * 7 + 2 * ring * 4 * psi / 1e6, 7 + ring * 4 * psi / 1e6])
    assert found.parameters_s == pytest.approx([0, 16 * 7 + ring * 2 * psi / 1e6])


def test_traffic_across_domains_has_the_scale_of_the_network():
    scaled = stack(collective_time_scale=3.0, scale_out_time_scale=5.0)
    plans = [ExecutionPlan(data_parallel=degree, zero_stage=1) for degree in (8, 16)]
    before, after = traffic(plans), traffic(plans, stack=scaled)
    assert after.gradients_s / before.gradients_s == pytest.approx([3, 5])
    assert after.parameters_s / before.parameters_s == pytest.approx([3, 5])


def test_no_group_across_domains_is_faster_than_its_limit_whatever_the_adapters():
    """ZeRO-3 over 16 ranks: 15/16 of all bytes at the limit, and nothing changes within a node or above the limit.

    The links of these tests carry one byte per second.
    """
    plans = [ExecutionPlan(data_parallel=degree, zero_stage=3) for degree in (8, 16)]
    before, slow = traffic(plans), traffic(plans, stack=stack(scale_out_group_bytes_per_s=0.25))
    gathered_bytes = 2 * total_parameters(gpt())
    assert slow.parameters_s[0] == before.parameters_s[0]
    assert slow.parameters_s[1] == pytest.approx(gathered_bytes * 15 / 16 / 0.25)
    assert slow.parameters_s[1] > before.parameters_s[1]
    fast = traffic(plans, stack=stack(scale_out_group_bytes_per_s=1e15))
    assert (fast.parameters_s == before.parameters_s).all()
    # A limit is one: a slower network is not slowed further, as by a scale.
    scaled = traffic(plans, stack=stack(scale_out_time_scale=100.0, scale_out_group_bytes_per_s=1e15))
    assert scaled.parameters_s[1] == pytest.approx(100 * before.parameters_s[1])


def test_hybrid_sharding_crosses_the_network_for_the_replicas_only():
    scaled = stack(collective_time_scale=3.0, scale_out_time_scale=5.0)
    plan = [ExecutionPlan(data_parallel=64, zero_stage=3, zero_shard_degree=8)]
    psi = total_parameters(gpt())
    found = traffic(plan, stack=scaled)
    ring = 7 / 8  # eight shards in a node, eight nodes
    assert found.gradients_s == pytest.approx([4 * psi * ring * 3])
    assert found.replicas_s == pytest.approx([2 * 4 * psi / 8 * ring * 5])
    assert found.parameters_s == pytest.approx([2 * psi * ring * 3])


@pytest.mark.parametrize(
    ("gathers", "reductions", "shown"), [(True, True, 0.0), (False, True, 2 * 3.0), (True, False, 5.0)]
)
def test_what_waits_shows_in_both_passes(gathers, reductions, shown):
    """ZeRO-3 gathers for either pass: without overlap both gatherings show, whatever hides the reduction."""
    traffic = DataParallelTraffic(
        gradients_s=np.array([[5.0]]),
        parameters_s=np.array([[3.0]]),
        reduces_per_microbatch=np.ones((1, 1)),
        gathers_per_microbatch=np.full((1, 1), 2.0),
        hidden_gathers=np.array([[1.0 * gathers]]),
        hidden_reductions=np.array([[1.0 * reductions]]),
    )
    one, long_s = np.array([1]), np.array([100.0])
    exposed, total_s = exposed_traffic_s(
        traffic, num_microbatches=4 * one, num_stages=one, virtual_stages=one, forward_s=long_s, backward_s=long_s
    )
    assert exposed == pytest.approx([4 * shown])
    assert total_s == pytest.approx([4 * (5.0 + 2 * 3.0)])
