"""What pipeline stages hold of what they exchange, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.plan import ExecutionPlan, PlanBatch, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from tests.fakes import context, stack

SENT = 2048 * 1024 * 2  # hidden states of a micro-batch of one sequence
TORCH = context(stack=stack(framework="fsdp"))
PLAN = ExecutionPlan(pipeline_parallel=4, num_microbatches=16)


def buffers(plan: ExecutionPlan, where=TORCH) -> list[float]:
    found = evaluate(PlanBatch.from_plans([plan]), where, full=True).memory_parts_bytes["communication"][0]
    return [float(each) / SENT for each in found]


def test_torch_has_two_buffers_per_micro_batch_and_chunk() -> None:
    """One of what a chunk receives, one of the gradient of what it sends; the model's ends have one of them."""
    assert buffers(PLAN) == [16, 32, 32, 16]
    assert buffers(replace(PLAN, virtual_stages=2)) == [48, 64, 64, 48]
    assert buffers(replace(PLAN, schedule=Schedule.ZERO_BUBBLE_V)) == [32, 64, 64, 64]  # both ends on the first
    assert buffers(replace(PLAN, tensor_parallel=4, sequence_parallel=True)) == [4, 8, 8, 4]
    assert buffers(replace(PLAN, pipeline_parallel=1)) == [0]


def test_outputs_of_the_first_stage_stay_as_long_as_their_micro_batch() -> None:
    """Those of others take the place of their inputs, which are in the buffers."""
    torch, other = (
        evaluate(PlanBatch.from_plans([PLAN]), where, full=True).memory_parts_bytes["activations"][0]
        for where in (TORCH, context(stack=stack(framework="megatron")))
    )
    assert ((torch - other) / SENT).tolist() == [4, 0, 0, 0]


@pytest.mark.parametrize("framework", ["megatron", "nanotron"])
def test_others_have_one_of_each(framework: str) -> None:
    assert buffers(replace(PLAN, virtual_stages=2), context(stack=stack(framework=framework))) == [2, 2, 2, 2]


@pytest.mark.parametrize("chunks", [1, 2])
def test_stages_that_differ_have_as_many(chunks: int) -> None:
    plan = replace(PLAN, virtual_stages=chunks)
    configs = StageConfigs(plans=PlanBatch.from_plans([replace(plan, virtual_stages=1)]), group=np.zeros(1, np.int64))
    staged = StagePlanBatch.from_columns(
        [4], [[0] * 4], [[2] * 4], num_microbatches=plan.num_microbatches, virtual_stages=chunks
    )
    found = evaluate_stages(staged, StagePrices(configs=configs, contexts=(TORCH,)))
    assert (found.memory_parts_bytes["communication"][0] / SENT).tolist() == buffers(plan)
