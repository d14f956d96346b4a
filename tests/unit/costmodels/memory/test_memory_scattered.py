"""Gradients that ZeRO-2 scatters as they come, and shards that FSDP keeps beside what it gathered."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.memory.model_state import model_state
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.parameters import total_parameters
from profiles.stacks import load_stacks
from tests.fakes import context, gpt, job, stack

P = total_parameters(gpt())
ONCE = ExecutionPlan(data_parallel=8, zero_stage=2, recompute=Recompute.FULL)


def peak(plan: ExecutionPlan, where: CostContext) -> float:
    return float(evaluate(PlanBatch.from_plans([plan]), where).peak_memory_bytes[0])


@pytest.mark.parametrize("name", ["hf-trainer", "unsloth", "pytorch", "pytorch-autocast", "fsdp"])
def test_one_micro_batch_holds_no_more_than_two(name: str) -> None:
    """Shards of the first are there while the second runs; a step of one has them at its end alone."""
    where = context(job=job(sequence_length=16), stack=load_stacks()[name])
    assert peak(ONCE, where) <= peak(replace(ONCE, num_microbatches=2), where)


def test_xla_holds_all_gradients_before_it_scatters_them() -> None:
    """Its buffers are laid out before the run: Alpa's published peaks of ZeRO-2 are those of ZeRO-1 in gradients."""
    short = job(sequence_length=16)
    late, early = (
        context(job=short, stack=stack(transient_gradients=True, static_memory=static)) for static in (True, False)
    )
    assert peak(ONCE, late) - peak(ONCE, early) > 2 * P


@pytest.mark.parametrize("degree", [2, 8])
def test_frozen_weights_gathered_for_a_step_lie_beside_their_shards(degree: int) -> None:
    """fully_shard(reshard_after_forward=False), as of trained weights; where nothing is shared out nothing is."""
    adapters = job(task="lora", lora=LoraSpec(rank=8, targets=("q",)))
    where = context(job=adapters, stack=stack(framework="fsdp"))

    def weights(zero_stage: int, shard_degree: int = 0) -> float:
        plan = ExecutionPlan(data_parallel=degree, zero_stage=zero_stage, zero_shard_degree=shard_degree)
        batch = PlanBatch.from_plans([plan])
        stages = stage_table(batch, where.model, full=True)
        found = model_state(batch, stages, stage_parameters(batch, stages, where.model, where.job), where).weights
        return float(np.asarray(found)[0, 0])

    kept, resharded = weights(2), weights(3)
    assert kept - resharded == pytest.approx(2 * P, rel=0.01)
    assert weights(2, shard_degree=1) == pytest.approx(2 * P, rel=0.01)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_has_its_buckets_on_one_device_too(zero_stage: int) -> None:
    where = context(stack=stack(framework="deepspeed", bucket_bytes=1e9))
    found = evaluate(PlanBatch.from_plans([ExecutionPlan(zero_stage=zero_stage)]), where)
    assert float(found.memory_parts_bytes["communication"][0, 0]) == (1e9 if zero_stage else 0)
