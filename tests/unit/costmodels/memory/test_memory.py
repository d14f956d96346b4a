"""The parts of a stage's peak, and the moment of a step each peak belongs to."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.estimate import MEMORY_PARTS
from costmodels.memory.activations import layer_activations
from costmodels.memory.logits import logits_bytes
from costmodels.memory.peaks import (
    ALLOCATED_PARTS,
    RESERVED_PARTS,
    host_memory_bytes,
    joined,
    memory_interval,
    tensor_memory,
    with_overheads,
)
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.hardware import ClusterSpec
from profiles.parameters import embedding_parameters, layer_parameters, total_parameters
from profiles.stacks import fitted_stacks
from tests.fakes import GPT3, context, device, gpt, job, mixture, node, stack, stage_memory

H, V, S = 1024, 32768, 2048
P = total_parameters(gpt())
GIB = 2**30


def parts(plan: ExecutionPlan, where: CostContext | None = None, *, stage: int = 0) -> dict[str, float]:
    where = where or context()
    batch = PlanBatch.from_plans([plan])
    memory = stage_memory(batch, stage_table(batch, where.model, full=True), where)
    return {name: float(part[0, stage]) for name, part in memory.items()}


def host(plan: ExecutionPlan, where: CostContext | None = None) -> float:
    where = where or context()
    batch = PlanBatch.from_plans([plan])
    return float(host_memory_bytes(batch, stage_table(batch, where.model, full=True), where)[0])


def test_parts_are_the_announced_ones_and_nest_by_what_tools_count():
    assert tuple(parts(ExecutionPlan())) == MEMORY_PARTS
    assert (*RESERVED_PARTS, "context") == MEMORY_PARTS
    assert set(ALLOCATED_PARTS) < set(RESERVED_PARTS)


def test_plain_plan_by_hand():
    found = parts(ExecutionPlan())
    layer = float(layer_activations(PlanBatch.from_columns(1), gpt(), job(), stack(), moe=False).whole[0])
    logits = S * V * (2 + 4)
    head = S * V * 2 + 6 * V * H  # 16-bit gradient of the logits, weight gradient of the head
    assert found["weights"] == 2 * P
    assert found["optimizer"] == 12 * P
    assert found["gradients"] == 4 * P
    assert found["logits"] == logits
    assert found["activations"] == pytest.approx(8 * layer + S * 4 * H + max(head - logits, 0))
    assert found["communication"] == found["reserve"] == found["context"] == 0


def test_logits_and_the_first_layers_gradients_do_not_add_up():
    few, many = (context(model=gpt(vocab_size=v)) for v in (512, 131072))
    backward = S * (2 * 2 * H + 2 * 2 * 4 * H)
    layers = 8 * S * (2 * 8 * H + 2 * 2 * 4 * H + 64) + S * 4 * H
    assert parts(ExecutionPlan(), few)["activations"] == pytest.approx(layers + backward - S * 512 * 6)
    assert parts(ExecutionPlan(), many)["activations"] == pytest.approx(
        layers + max(S * 131072 * 2 + 6 * 131072 * H - S * 131072 * 6, 0)
    )


def test_gpipe_keeps_the_logits_of_every_micro_batch():
    plan = ExecutionPlan(pipeline_parallel=2, num_microbatches=6)
    one = parts(plan, stage=1)["logits"]
    assert parts(replace(plan, schedule=Schedule.GPIPE), stage=1)["logits"] == 6 * one
    assert parts(plan, stage=0)["logits"] == 0


def test_end_of_backward_can_exceed_its_start():
    # A narrow batch and a wide vocabulary: the embedding's gradient outweighs the activations freed.
    where = context(model=gpt(vocab_size=1 << 20), job=job(sequence_length=32))
    plan = ExecutionPlan(pipeline_parallel=2, num_microbatches=8)
    assert parts(plan, where)["gradients"] > 4 * (V * H)
    start = parts(plan, where)["activations"]
    newest = start / 2  # of the two micro-batches in flight; their backward working set is small
    extra = parts(plan, where)["gradients"] - 4 * sum_of_parameters(where, plan)
    assert extra == pytest.approx(6 * (1 << 20) * H - newest, rel=0.02)


def sum_of_parameters(where: CostContext, plan: ExecutionPlan) -> float:
    layers = where.model.num_layers // plan.pipeline_parallel
    return layers * layer_parameters(where.model, moe=False).total + embedding_parameters(where.model)


def test_autograd_gradients_outlive_a_micro_batch_when_they_are_not_fused():
    where = context(job=job(sequence_length=16), stack=stack(autograd_gradients="freed"))
    fused = parts(ExecutionPlan(), context(job=job(sequence_length=16)))
    freed = parts(ExecutionPlan(), where)
    in_flight = fused["activations"] + fused["logits"]
    # The end of the embedding's and head's own gradients is counted in both.
    assert freed["gradients"] - 4 * P == pytest.approx(2 * P - in_flight, rel=0.05)
    kept = parts(ExecutionPlan(), context(job=job(sequence_length=16), stack=stack(autograd_gradients="kept")))
    assert kept["gradients"] >= 6 * P


def test_transient_gradients_are_not_beside_all_activations() -> None:
    lazy, held = (
        context(job=job(sequence_length=8192), stack=stack(transient_gradients=flag)) for flag in (True, False)
    )
    assert parts(ExecutionPlan(), held)["gradients"] == 4 * P
    assert parts(ExecutionPlan(), lazy)["gradients"] == 0  # the activations outweigh them
    twice = ExecutionPlan(num_microbatches=2)
    assert parts(twice, lazy) == parts(twice, held)  # the second micro-batch finds them there


def test_transient_gradients_come_whole_where_little_is_kept() -> None:
    short = job(sequence_length=16)
    lazy = context(job=short, stack=stack(transient_gradients=True))
    found = parts(ExecutionPlan(), lazy)
    live = found["activations"] + found["logits"] + found["gradients"]
    working = 16 * (2 * 2 * H + 2 * 2 * 4 * H)
    assert live == pytest.approx(4 * P + working, rel=1e-3)
    sharded = [parts(ExecutionPlan(data_parallel=8, zero_stage=zero), lazy)["gradients"] for zero in (1, 2, 3)]
    assert sharded[0] == found["gradients"]  # reduced after the backward pass
    assert max(sharded[1:]) < found["gradients"] / 2


def test_optimizer_temporaries_count_only_beyond_the_activations():
    narrow = job(sequence_length=16)
    with_temporaries = stack(optimizer_temporaries=1)
    small = parts(ExecutionPlan(), context(job=narrow, stack=with_temporaries))
    plain = parts(ExecutionPlan(), context(job=narrow))
    beyond = plain["activations"] + plain["logits"] + plain["gradients"] - 4 * P
    assert small["optimizer"] == pytest.approx(12 * P + 4 * P - beyond)
    wide = job(sequence_length=16384)
    assert parts(ExecutionPlan(), context(job=wide, stack=with_temporaries))["optimizer"] == 12 * P


def test_flat_temporaries_of_the_optimizer_find_no_block_that_activations_left():
    """One tensor of four bytes per parameter under more than that of activations: held beside these, given room."""
    wide = job(sequence_length=16384)
    flat = stack(optimizer_temporaries=1, flat_temporaries=True)
    assert parts(ExecutionPlan(), context(job=wide, stack=flat))["reserve"] == 4 * P
    assert parts(ExecutionPlan(), context(job=wide, stack=stack(optimizer_temporaries=1)))["reserve"] == 0
    assert parts(ExecutionPlan(), context(job=wide, stack=flat.without_cache()))["reserve"] == 0
    sharded = ExecutionPlan(data_parallel=8, zero_stage=1)
    assert parts(sharded, context(job=wide, stack=flat))["reserve"] == pytest.approx(4 * P / 8)
    narrow = context(job=job(sequence_length=16), stack=flat)  # what shows in the peak anyway is not counted twice
    found, plain = parts(ExecutionPlan(), narrow), parts(ExecutionPlan(), context(job=job(sequence_length=16)))
    assert found["optimizer"] + found["reserve"] == pytest.approx(plain["optimizer"] + 4 * P)
    needed = sum(parts(ExecutionPlan(), context(job=wide)).values())
    tight = ClusterSpec(name="x", node=node(device=device(usable_memory_bytes=needed + 4 * 2**20)), num_nodes=8)
    assert parts(ExecutionPlan(), context(job=wide, stack=flat, cluster=tight))["reserve"] == pytest.approx(2 * 2**20)


def test_an_offloaded_optimizer_leaves_neither_temporaries_nor_gradients_on_the_device():
    plan = ExecutionPlan(data_parallel=8, zero_stage=2, offload_optimizer=True)
    flat, bare = stack(optimizer_temporaries=1, flat_temporaries=True), stack()
    for sequence in (16, 16384):  # gradients would be more than activations, and less
        where = context(job=job(sequence_length=sequence), stack=flat)
        assert parts(plan, where) == parts(plan, replace(where, stack=bare))
        kept = parts(replace(plan, offload_optimizer=False), where)
        plain = parts(replace(plan, offload_optimizer=False), replace(where, stack=bare))
        assert sum(kept.values()) - sum(plain.values()) == pytest.approx(4 * P / 8)


def test_shards_of_gradients_leave_with_an_offloaded_optimizer_as_they_come():
    """FSDP copies them to the host after every reduction (CPUOffloadPolicy), so that they never add up."""
    fsdp = stack(framework="fsdp", transient_gradients=True)
    where = context(job=job(sequence_length=16), stack=fsdp)
    plan = ExecutionPlan(data_parallel=2, zero_stage=3)
    assert parts(plan, where)["gradients"] > 0
    assert parts(replace(plan, offload_optimizer=True), where)["gradients"] == 0


def test_gradients_born_in_the_backward_pass_are_no_flat_temporaries():
    """The step needs them beside its temporaries; the block that they leave free is not the optimizer's."""
    for sequence in (16, 16384):
        using = stack(optimizer_temporaries=1, flat_temporaries=True, transient_gradients=True)
        where = context(job=job(sequence_length=sequence), stack=using)
        assert parts(ExecutionPlan(), where)["reserve"] <= 4 * P
    assert parts(ExecutionPlan(), where)["reserve"] == 4 * P


def test_reserve_is_a_share_of_what_moves_plus_a_constant():
    fragmented = stack(fragmentation_fraction=0.1, reserve_bytes=1e9)
    found = parts(ExecutionPlan(), context(stack=fragmented))
    assert found["reserve"] == pytest.approx(0.1 * (found["activations"] + found["logits"]) + 1e9)


def test_cache_fills_the_device_but_never_overflows_it():
    cached = stack(cache_fraction=0.5)
    found = parts(ExecutionPlan(), context(stack=cached))
    assert found["reserve"] == pytest.approx(0.5 * (found["activations"] + found["logits"]))
    needed = sum(parts(ExecutionPlan()).values())
    tight = node(device=device(usable_memory_bytes=needed + 4 * 2**20))
    squeezed = parts(ExecutionPlan(), context(stack=cached, cluster=ClusterSpec(name="x", node=tight, num_nodes=8)))
    assert squeezed["reserve"] == pytest.approx(4 * 2**20 - 2 * 2**20)  # whole segments, one of them free
    full = node(device=device(usable_memory_bytes=needed / 2))
    assert parts(ExecutionPlan(), context(stack=cached, cluster=ClusterSpec(name="x", node=full, num_nodes=8)))[
        "reserve"
    ] == pytest.approx(0)


@pytest.mark.parametrize(("varied", "share"), [(False, 0.2), (True, 0.5)])
def test_tensors_of_many_sizes_leave_a_cache_of_their_own(varied: bool, share: float):
    cached = stack(cache_fraction=0.2, varied_cache_fraction=0.5)
    found = parts(ExecutionPlan(), context(stack=cached, job=job(varied_lengths=varied)))
    assert found["reserve"] == pytest.approx(share * (found["activations"] + found["logits"]))
    assert parts(ExecutionPlan(), context(stack=cached.without_cache(), job=job(varied_lengths=varied)))["reserve"] == 0


@pytest.mark.parametrize("name", sorted(fitted_stacks()))
def test_lengths_that_vary_never_need_less_memory(name: str):
    """A fit of few runs had the cache of varied lengths below that of equal ones on two stacks."""
    varied, equal = (
        sum(parts(ExecutionPlan(), context(stack=fitted_stacks()[name], job=job(varied_lengths=lengths))).values())
        for lengths in (True, False)
    )
    assert varied >= equal


def test_gathered_tensors_wait_for_the_stream_that_used_them_while_there_is_room() -> None:
    """Whole hidden states of the micro-batch, under sequence parallelism only; never where streams are not recorded."""
    waiting = stack(records_streams=True, waiting_tensors=10)
    plan = ExecutionPlan(tensor_parallel=4, sequence_parallel=True, micro_batch_size=2)
    assert parts(plan, context(stack=waiting))["reserve"] == pytest.approx(10 * 2 * 2 * S * H)
    assert parts(replace(plan, sequence_parallel=False), context(stack=waiting))["reserve"] == 0
    assert parts(ExecutionPlan(micro_batch_size=2), context(stack=waiting))["reserve"] == 0
    assert parts(plan, context(stack=stack(waiting_tensors=10)))["reserve"] == 0
    assert parts(plan, context(stack=waiting.without_cache()))["reserve"] == 0
    stalled = ClusterSpec(name="x", node=node(collective_rank_s=1e-4), num_nodes=8)
    assert parts(plan, context(stack=waiting, cluster=stalled))["reserve"] == 0
    needed = sum(parts(plan).values())
    tight = ClusterSpec(name="x", node=node(device=device(usable_memory_bytes=needed + 4 * 2**20)), num_nodes=8)
    assert parts(plan, context(stack=waiting, cluster=tight))["reserve"] == pytest.approx(2 * 2**20)


def test_buffers_assigned_before_the_run_are_neither_fragmented_nor_cached():
    values = {"fragmentation_fraction": 0.1, "reserve_bytes": 1e9, "cache_fraction": 0.5}
    dynamic, static = (
        parts(ExecutionPlan(), context(stack=stack(static_memory=fixed, **values))) for fixed in (False, True)
    )
    assert dynamic.pop("reserve") > 1e9
    assert static.pop("reserve") == 0
    assert static == dynamic


def test_context_counts_communicators_of_every_axis_in_use():
    where = context(stack=stack(context_bytes=5e8, communicator_bytes=1e8), model=mixture())
    assert parts(ExecutionPlan(), where)["context"] == 5e8
    plan = ExecutionPlan(tensor_parallel=2, pipeline_parallel=2, data_parallel=2, context_parallel=2, expert_parallel=2)
    assert parts(plan, where)["context"] == 5e8 + 5 * 1e8


def test_fixed_buckets_belong_to_a_sharded_optimizer():
    where = context(stack=stack(bucket_bytes=1e9))
    assert parts(ExecutionPlan(data_parallel=8), where)["communication"] == 0
    assert parts(ExecutionPlan(data_parallel=8, zero_stage=1), where)["communication"] == 1e9
    assert parts(ExecutionPlan(zero_stage=1), where)["communication"] == 0


def test_bucket_copies_are_kept_in_storage_precision():
    where = context(stack=stack(gradient_bucket_copies=1))
    assert parts(ExecutionPlan(), where)["communication"] == 2 * P


def test_replicas_of_ddp_hold_their_gradients_twice():
    where, replicas = context(stack=stack(replica_bucket_copies=1)), ExecutionPlan(data_parallel=8)
    assert parts(replicas, where)["communication"] == parts(replicas, where)["gradients"] > 0
    for plan in (ExecutionPlan(), replace(replicas, zero_stage=1)):
        assert parts(plan, where)["communication"] == 0


def test_pipeline_ranks_hold_two_boundary_tensors():
    plan = ExecutionPlan(pipeline_parallel=2, tensor_parallel=4, num_microbatches=4, micro_batch_size=2)
    assert parts(plan)["communication"] == 2 * 2 * 2 * S * H
    assert parts(replace(plan, sequence_parallel=True))["communication"] == 2 * 2 * 2 * S * H / 4


def test_zero_3_gathers_units_and_never_more_than_the_stage_has():
    plan = ExecutionPlan(data_parallel=8, zero_stage=3)
    unit = embedding_parameters(gpt())
    assert parts(plan)["communication"] == 2 * unit * 2 + unit * 4
    everything = context(stack=stack(unsharded_units=1e6))
    assert parts(plan, everything)["communication"] == 2 * P + unit * 4
    frozen = context(job=job(task="lora", lora=LoraSpec()))
    assert parts(plan, frozen)["communication"] == 2 * unit * 2
    assert parts(ExecutionPlan(zero_stage=3))["communication"] == 0


def test_deepspeed_gathers_modules_and_keeps_a_fixed_number_of_parameters() -> None:
    plan = ExecutionPlan(data_parallel=8, zero_stage=3)
    small = context(stack=stack(framework="deepspeed"))
    matrix = max(embedding_parameters(gpt()), 4 * H * H)
    assert parts(plan, small)["communication"] == pytest.approx(2 * P + 2 * matrix)  # all of it stays gathered
    large = gpt(num_layers=64, hidden_size=8192, num_attention_heads=64, num_key_value_heads=64, ffn_hidden_size=32768)
    wide = context(model=large, stack=stack(framework="deepspeed"))
    assert parts(plan, wide)["communication"] == pytest.approx(2e9 + 2 * 4 * 8192**2)


def test_joined_tables_are_those_of_their_plans() -> None:
    where = context(stack=stack(fragmentation_fraction=0.1, cache_fraction=0.2, context_bytes=1e9))
    batches = [
        PlanBatch.from_columns(2, pipeline_parallel=[1, 4], num_microbatches=8),
        PlanBatch.from_columns(1, tensor_parallel=2),
    ]
    tables = [tensor_memory(batch, stage_table(batch, where.model, full=True), where) for batch in batches]
    together = with_overheads(joined(tables), where.stack)
    for name, part in together.items():
        apart = [with_overheads(table, where.stack)[name].max(axis=1) for table in tables]
        np.testing.assert_allclose(part.max(axis=1), np.concatenate(apart))


def test_temporaries_and_fragmentation_are_shares_of_what_moves() -> None:
    plain = parts(ExecutionPlan())
    found = parts(ExecutionPlan(), context(stack=stack(temporary_fraction=0.1, fragmentation_fraction=0.2)))
    moving = plain["activations"] + plain["logits"]
    assert found["activations"] == pytest.approx(plain["activations"] + 0.1 * moving)
    assert found["reserve"] == pytest.approx(0.2 * moving)


def test_fsdp_under_a_pipeline_keeps_its_stage_gathered():
    plan = ExecutionPlan(data_parallel=8, zero_stage=3, pipeline_parallel=2, num_microbatches=8)
    fsdp = context(stack=stack(framework="fsdp"))
    stage = 4 * layer_parameters(gpt(), moe=False).total + embedding_parameters(gpt())
    boundary, gradients = 2 * 2 * S * H, 8 * 2 * S * H  # the first stage receives gradients alone, of 8 micro-batches
    assert parts(plan, fsdp)["communication"] == pytest.approx((2 + 4) * stage + gradients)
    assert parts(replace(plan, num_microbatches=1), fsdp)["communication"] < 6 * stage
    # Stage 2 keeps its weights whole anyway, and its gradients until the last micro-batch.
    second = replace(plan, zero_stage=2)
    assert parts(second, fsdp)["communication"] == pytest.approx(4 * stage + gradients)
    assert parts(replace(second, num_microbatches=1), fsdp)["communication"] == pytest.approx(gradients / 8)
    assert parts(second)["communication"] == pytest.approx(boundary)


def test_offloaded_optimizer_moves_to_the_host():
    plan = ExecutionPlan(data_parallel=8, zero_stage=2, offload_optimizer=True)
    found = parts(plan)
    assert found["optimizer"] == 0
    assert found["gradients"] == 0
    assert host(plan) == pytest.approx((12 + 4) * P)  # all eight shards of one node
    assert host(replace(plan, offload_optimizer=False)) == 0
    assert parts(replace(plan, zero_stage=1))["gradients"] == 4 * P


def test_offloaded_activations_move_to_the_host():
    plan = ExecutionPlan(recompute=Recompute.FULL, data_parallel=8, micro_batch_size=4)
    moved = replace(plan, offload_activations=True)
    gone = parts(plan)["activations"] - parts(moved)["activations"]
    assert gone > 0
    assert host(moved) == pytest.approx(8 * gone)
    alone = replace(moved, data_parallel=2)
    assert host(alone) == pytest.approx(2 * gone)


def test_unused_columns_are_empty():
    plans = PlanBatch.from_columns(2, pipeline_parallel=[1, 4], num_microbatches=8)
    where = context(stack=stack(context_bytes=1e9, reserve_bytes=1e9))
    stages = stage_table(plans, where.model, full=True)
    for part in stage_memory(plans, stages, where).values():
        assert (part[0, 1:] == 0).all()


def test_interval_holds_the_peak_in_the_middle():
    where = context(stack=stack(memory_residual_log_std=0.1))
    plans = PlanBatch.from_columns(1, pipeline_parallel=2, num_microbatches=8)
    memory = stage_memory(plans, stage_table(plans, where.model), where)
    peak = np.sum(list(memory.values()), axis=0).max(axis=1)
    low, high = memory_interval(peak, where)
    assert np.sqrt(low * high) == pytest.approx(peak)
    assert high / peak == pytest.approx(np.exp(0.1645))
    np.testing.assert_array_equal(*memory_interval(peak, context()))


def test_ends_of_a_pipeline_differ():
    plan = ExecutionPlan(pipeline_parallel=4, num_microbatches=8, stage_layers=(1, 3, 3, 1))
    first, second, last = (parts(plan, stage=index) for index in (0, 1, 3))
    layer = layer_parameters(gpt(), moe=False).total
    assert second["weights"] == 2 * 3 * layer
    assert first["weights"] == 2 * (layer + V * H)
    assert last["weights"] == 2 * (layer + V * H + 2 * H)
    assert second["activations"] > first["activations"] > last["activations"]
    assert (first["logits"], second["logits"]) == (0, 0)
    assert last["logits"] == logits_bytes(PlanBatch.from_columns(1), gpt(), job(), stack())[0]


def test_gpt3_on_64_a100_fits_only_with_recomputation():
    # arXiv:2205.05198 figure 1: 175B on 64 A100-80GB (t 8, p 8, v 3) needs more than 80 GB without.
    where = context(model=GPT3, job=job(attention="unfused", dropout=True, precision="fp16"))
    plan = ExecutionPlan(
        tensor_parallel=8, pipeline_parallel=8, virtual_stages=3, num_microbatches=64, sequence_parallel=True
    )
    assert sum(parts(plan, where).values()) > 80e9
    assert sum(parts(replace(plan, recompute=Recompute.SELECTIVE), where).values()) < 80e9
    assert sum(parts(replace(plan, sequence_parallel=False), where).values()) / GIB > 100
