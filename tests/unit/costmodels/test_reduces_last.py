"""Gradients that FSDP scatters with the last micro-batch alone, and logits that tensor parallelism gathers."""

from dataclasses import replace

import pytest

from costmodels.context import CostContext
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.boundary import lower_head
from costmodels.lowering.calls import Axis
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.memory.logits import logits_bytes
from costmodels.optimizer import memory_seconds_per_byte
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import layer_costs
from costmodels.step.stage_seconds import stage_seconds
from profiles.parameters import total_parameters
from profiles.stack import StackSpec
from profiles.stacks import load_stacks
from tests.fakes import RateKernels, UnitCollectives, context, gpt, job, stack, stage_memory
from tests.traffic import calls, traffic

P = total_parameters(gpt())
H, V, S = 1024, 32768, 2048
EVERY, LAST = (
    stack(framework="fsdp", gradient_dtype="bf16", transient_gradients=True, reduces_last=flag, reduce_dtype=each)
    for flag, each in ((False, ""), (True, "fp32"))
)
PLAN = ExecutionPlan(data_parallel=8, zero_stage=3, num_microbatches=4)


def parts(plan: ExecutionPlan, using: StackSpec) -> dict[str, float]:
    where = context(stack=using, job=job(master_dtype="none"))
    batch = PlanBatch.from_plans([plan])
    memory = stage_memory(batch, stage_table(batch, where.model, full=True), where)
    return {name: float(part[0, 0]) for name, part in memory.items()}


def test_whole_fp32_sums_wait_in_place_of_the_shards_they_become() -> None:
    """4 bytes for every parameter of a rank, whatever it keeps of them; none where there is nothing to wait for."""
    usual, found = parts(PLAN, EVERY), parts(PLAN, LAST)
    unit = V * H
    assert found["communication"] - usual["communication"] == pytest.approx((4 - 2) * unit)  # of those on their way
    assert (usual["gradients"], found["gradients"]) == (pytest.approx(2 * P / 8), pytest.approx(4 * P))
    assert found["weights"] == usual["weights"]
    alone = replace(PLAN, data_parallel=1)  # fully_shard over one rank: sums in fp32 before they are its shard
    assert (parts(alone, EVERY)["gradients"], parts(alone, LAST)["gradients"]) == (2 * P, pytest.approx(4 * P))
    once = replace(PLAN, num_microbatches=1)
    assert parts(once, LAST)["communication"] == pytest.approx(parts(once, EVERY)["communication"] + 2 * unit)
    assert parts(replace(PLAN, zero_stage=0), LAST) == parts(replace(PLAN, zero_stage=0), EVERY)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_sums_are_scattered_once_per_step_and_weights_gathered_as_ever(zero_stage: int) -> None:
    plans = [replace(PLAN, zero_stage=zero_stage)]
    usual, found = (traffic(plans, stack=each) for each in (EVERY, LAST))
    assert (usual.reduces_per_microbatch.tolist(), found.reduces_per_microbatch.tolist()) == ([[1]], [[0]])
    assert usual.gathers_per_microbatch.tolist() == found.gathers_per_microbatch.tolist()
    sizes = [dict(call[:2] for call in calls(plans[0], stack=each)) for each in (EVERY, LAST)]
    scattered = [each[CollectiveOp.REDUCE_SCATTER] for each in sizes]
    assert scattered[1] == pytest.approx(2 * scattered[0])
    assert sizes[0][CollectiveOp.ALL_GATHER] == sizes[1][CollectiveOp.ALL_GATHER]


def accumulated_bytes(using: StackSpec, microbatches: int) -> float:
    """Bytes per parameter and micro-batch."""
    where = context(kernels=RateKernels(), stack=using, job=job(global_batch_size=8 * microbatches))
    plans = PlanBatch.from_plans([replace(PLAN, num_microbatches=microbatches)])
    stages = stage_table(plans, where.model)
    parameters = stage_parameters(plans, stages, where.model, where.job)
    work = stage_seconds(plans, stages, layer_costs(plans, where), parameters, where)
    return float(work.accumulate_s[0, 0]) / memory_seconds_per_byte(where) / P


def test_whole_sums_are_read_and_written_for_every_micro_batch() -> None:
    assert accumulated_bytes(LAST, 4) == pytest.approx(2 + 4 + 4)
    assert accumulated_bytes(LAST, 1) == accumulated_bytes(EVERY, 4) == 0.0


def head_traffic(where: CostContext, op: CollectiveOp) -> float:
    """Bytes that the head sends forwards by one operation."""
    where = replace(where, collectives=UnitCollectives(op=op))
    shapes = rank_shapes(PlanBatch.from_plans([ExecutionPlan(tensor_parallel=4)]), where, experts=False)[0]
    return float(price_parts([lower_head(shapes, where)])[0].collective_s[Axis.TENSOR_FORWARD, 0])


def test_gathered_logits_are_whole_on_every_rank() -> None:
    gathered, split = (stack(logits_fp32_copies=1, gathers_logits=flag) for flag in (True, False))
    batch = PlanBatch.from_columns(2, tensor_parallel=[1, 4])
    whole = S * V * (2 + 4)
    assert logits_bytes(batch, gpt(), job(), gathered) == pytest.approx([whole, whole])
    assert logits_bytes(batch, gpt(), job(), split) == pytest.approx([whole, whole / 4])
    sent = [head_traffic(context(stack=each), CollectiveOp.ALL_GATHER) for each in (gathered, split)]
    assert sent == [pytest.approx(2 * S * V), 0.0]
    summed = [head_traffic(context(stack=each), CollectiveOp.ALL_REDUCE) for each in (gathered, split)]
    assert summed == [0.0, pytest.approx(12 * S)]


def test_kempner_forge_does_both() -> None:
    stacks = load_stacks()
    for name in ("kempner-forge", "kempner-forge-eager"):
        found = stacks[name]
        assert found.reduces_last
        assert found.gathers_logits
        assert (found.reduce_dtype, found.framework) == ("fp32", "fsdp")
    assert not stacks["fsdp"].reduces_last


def test_automodel_defers_its_sums_too() -> None:
    """defer_fsdp_grad_sync is on unless told otherwise: Qwen3-8B with two micro-batches was priced at half its peak."""
    stacks = load_stacks()
    for name in ("nemo-automodel", "nemo-automodel-benchmark"):
        found = stacks[name]
        assert found.reduces_last
        assert (found.reduce_dtype, found.framework, found.gathers_logits) == ("fp32", "fsdp", False)
    usual, deferred = (parts(PLAN, each) for each in (replace(found, reduces_last=False), found))
    assert usual["gradients"] < deferred["gradients"] == pytest.approx(4 * P)
