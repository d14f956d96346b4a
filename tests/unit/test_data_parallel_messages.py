"""How many messages data-parallel traffic is sent in, and how large each is."""

import pytest

from costmodels.collectives import CollectiveOp
from costmodels.plan import ExecutionPlan
from profiles.parameters import total_parameters
from tests.fakes import gpt, mixture, stack
from tests.traffic import calls


def sizes(plan: ExecutionPlan, **changes) -> dict[CollectiveOp, float]:
    """Bytes of one message of each operation."""
    return {op: size for op, size, _, _ in calls(plan, **changes)}


def test_gradients_go_out_in_messages_of_about_the_size_the_stack_sends():
    whole = 4 * total_parameters(gpt())
    for message, sent in ((0, whole), (whole / 2.5, whole / 3), (whole, whole), (9 * whole, whole)):
        buckets = stack(gradient_message_bytes=message)
        replicas = sizes(ExecutionPlan(data_parallel=8), stack=buckets)
        assert replicas[CollectiveOp.ALL_REDUCE] == pytest.approx(sent)
        shards = sizes(ExecutionPlan(data_parallel=8, zero_stage=1), stack=buckets)
        assert shards[CollectiveOp.REDUCE_SCATTER] == pytest.approx(whole)


@pytest.mark.parametrize(
    ("zero_stage", "per_layer", "messages"),
    [(1, 0, 1), (2, 0, 1), (3, 0, 8), (1, 1, 8), (1, 3, 24), (3, 1, 8), (3, 3, 24)],
)
def test_parameters_are_gathered_in_one_call_or_layer_by_layer(zero_stage, per_layer, messages):
    plan = ExecutionPlan(data_parallel=8, zero_stage=zero_stage)
    found = sizes(plan, stack=stack(gather_messages_per_layer=per_layer))
    assert found[CollectiveOp.ALL_GATHER] == pytest.approx(2 * total_parameters(gpt()) / messages)


@pytest.mark.parametrize(("grouped", "matrices"), [(True, 8 * 3), (False, 1)])
def test_experts_are_one_module_or_one_for_every_matrix(grouped, matrices):
    """Gathered module by module; where experts run in a loop, each of their matrices is a module."""
    modules = stack(gather_messages_per_layer=7, grouped_experts=grouped)
    plan = ExecutionPlan(data_parallel=8, zero_stage=3)
    gathered = [size for op, size, _, _ in calls(plan, model=mixture(), stack=modules) if op is CollectiveOp.ALL_GATHER]
    assert 2 * 1024 * 1408 * matrices in [pytest.approx(size) for size in gathered]


def test_a_pipeline_stage_gathers_its_own_layers():
    found = sizes(
        ExecutionPlan(data_parallel=8, pipeline_parallel=4, zero_stage=1), stack=stack(gather_messages_per_layer=1)
    )
    layer = 12 * 1024**2 + 4 * 1024
    fullest = 2 * layer + 32768 * 1024 + 2 * 1024
    assert found[CollectiveOp.ALL_GATHER] == pytest.approx(2 * fullest / 2, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 9.0, 1 / 100.5], ids=["one call", "larger than all", "smaller than a layer"])
def test_stage_3_reduces_layer_by_layer(share):
    whole = 4 * total_parameters(gpt())
    found = sizes(ExecutionPlan(data_parallel=8, zero_stage=3), stack=stack(gradient_message_bytes=share * whole))
    assert found[CollectiveOp.REDUCE_SCATTER] == pytest.approx(whole / 8)
