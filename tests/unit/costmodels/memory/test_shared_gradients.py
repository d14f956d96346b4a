"""A tied embedding on two stages: its gradients are summed over both, once per step."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.data_parallel import data_parallel_traffic
from costmodels.evaluate import evaluate
from costmodels.links.collectives import CollectiveOp
from costmodels.plan import AxisOrder, ExecutionPlan, PlanBatch, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch, from_uniform
from costmodels.stage_plans.prices import CONTENT_COLUMNS, StagePrices
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.hardware import ClusterSpec
from tests.fakes import RingCollectives, UnitCollectives, context, gpt, job, node, stack

TIED = gpt(tie_word_embeddings=True)
EMBEDDING = TIED.vocab_size * TIED.hidden_size


def summed(plan: ExecutionPlan, **changes) -> set[tuple[float, int]]:
    """(bytes, ranks per domain) of the all-reduces of a plan without replicas."""
    prices = UnitCollectives()
    where = context(**{"model": TIED, "collectives": prices} | changes)
    batch = PlanBatch.from_plans([plan])
    stages = stage_table(batch, where.model)
    data_parallel_traffic(batch, stages, stage_parameters(batch, stages, where.model, where.job), where)
    return {
        (float(size), int(near))
        for calls in prices.seen
        for op, size, ranks, near in zip(
            calls.op, calls.size_bytes, calls.group_size, calls.ranks_per_domain, strict=True
        )
        if op == CollectiveOp.ALL_REDUCE and ranks == 2 and size > 0
    }


@pytest.mark.parametrize(("dtype", "width"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("tensor_parallel", [1, 4])
def test_first_and_last_stage_sum_the_whole_embedding(dtype, width, tensor_parallel):
    """All of V h / t, in the format gradients are kept in, between two nodes."""
    plan = ExecutionPlan(tensor_parallel=tensor_parallel, pipeline_parallel=4)
    expected = {(width * EMBEDDING / tensor_parallel, 1)}
    assert summed(plan, stack=stack(gradient_dtype=dtype)) == expected


def test_nothing_is_shared_where_both_uses_are_on_one_stage_or_are_not_trained_or_not_tied():
    assert summed(ExecutionPlan(pipeline_parallel=2))
    assert not summed(ExecutionPlan())
    assert not summed(ExecutionPlan(pipeline_parallel=2, schedule=Schedule.ZERO_BUBBLE_V))
    assert not summed(ExecutionPlan(pipeline_parallel=2), model=gpt())
    assert not summed(ExecutionPlan(pipeline_parallel=2), job=job(task="lora", lora=LoraSpec(rank=8)))


def test_both_stages_may_share_a_node():
    alone = ClusterSpec(name="one", node=node(), num_nodes=1)
    assert summed(ExecutionPlan(tensor_parallel=4, pipeline_parallel=2), cluster=alone) == {(EMBEDDING, 2)}
    neighbours = {"tensor_parallel": 2, "pipeline_parallel": 3, "axis_order": AxisOrder.TP_CP_PP_DP}
    assert summed(ExecutionPlan(**neighbours)) == {(2 * EMBEDDING, 2)}
    assert summed(ExecutionPlan(**neighbours | {"pipeline_parallel": 5})) == {(2 * EMBEDDING, 1)}


def test_a_step_takes_as_much_longer():
    """Seconds are bytes here: the embedding's gradients come on top of everything else, once, whatever the batch."""
    for microbatches in (2, 16):
        plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=2, num_microbatches=microbatches)])
        tied = evaluate(plans, context(model=TIED, collectives=UnitCollectives(op=CollectiveOp.ALL_REDUCE)))
        free = evaluate(plans, context(model=TIED))
        assert tied.step_time_s - free.step_time_s == pytest.approx([4 * EMBEDDING])
        assert tied.time_parts_s["data_parallel"] == pytest.approx([4 * EMBEDDING])


def test_no_pass_hides_it():
    """A second per byte and per FLOP: passes hide all that replicas send, and not what comes after; on both paths."""
    plan = ExecutionPlan(
        data_parallel=2, pipeline_parallel=2, num_microbatches=4, overlap_grad_reduce=True, overlap_param_gather=True
    )
    plans, links = PlanBatch.from_plans([plan]), UnitCollectives(op=CollectiveOp.ALL_REDUCE)
    where = context(model=TIED, collectives=links, stack=stack(data_parallel_overlap=1.0))
    batch, configs = from_uniform(plans, TIED)
    staged = evaluate_stages(batch, StagePrices(configs=configs, contexts=(where,)))
    for found in (evaluate(plans, where), staged):
        assert found.time_parts_s["data_parallel"] == pytest.approx([4 * EMBEDDING])


@pytest.mark.parametrize("between", [0.1, 10.0])
def test_stages_on_two_groups_sum_over_the_link_between(between):
    """A byte per second inside a group, more or less between the two; searches count on the faster way."""
    where = context(model=TIED, collectives=RingCollectives(inside_bytes_per_s=1.0, across_bytes_per_s=1.0))
    joint = replace(where, collectives=RingCollectives(inside_bytes_per_s=1.0, across_bytes_per_s=between))
    plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=2)] * 2)
    configs = StageConfigs(plans=plans, group=np.array([0, 1]))
    prices = StagePrices(configs=configs, contexts=(where, where), joint={(0, 1): joint})
    ways = StagePlanBatch.from_columns([2] * 3, [[0, 1], [1, 0], [1, 1]], [[4, 4]] * 3)
    found = evaluate_stages(ways, prices).time_parts_s["data_parallel"]
    assert found == pytest.approx(4 * EMBEDDING * np.array([1 / between, 1 / between, 1]))
    least = prices.content[CONTENT_COLUMNS.index("shared_s")]
    assert least[least > 0] == pytest.approx(4 * EMBEDDING * min(1, 1 / between))
