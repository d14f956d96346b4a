"""How many messages data-parallel traffic is sent in, and how large each is."""

from dataclasses import replace

import pytest

from costmodels.links.collectives import CollectiveOp
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
    ("zero_stage", "updated", "modules", "messages"),
    [(1, 0, 0, 1), (2, 0, 0, 1), (3, 0, 0, 8), (1, 1, 0, 8), (1, 3, 0, 24), (3, 3, 0, 8), (3, 0, 3, 24), (2, 0, 3, 1)],
)
def test_parameters_are_gathered_in_one_call_or_layer_by_layer(zero_stage, updated, modules, messages):
    """Modules are of ZeRO-3 alone: the other stages gather once what was updated, flat."""
    plan = ExecutionPlan(data_parallel=8, zero_stage=zero_stage)
    pieces = stack(gather_messages_per_layer=updated, gathered_modules_per_layer=modules)
    found = sizes(plan, stack=pieces)
    assert found[CollectiveOp.ALL_GATHER] == pytest.approx(2 * total_parameters(gpt()) / messages)


def expert_gatherings(zero_stage: int, *, grouped: bool, moe: dict | None = None) -> list[float]:
    """Bytes of what is gathered of a mixture of eight layers and eight experts, module by module."""
    modules = stack(gathered_modules_per_layer=7, grouped_experts=grouped)
    plan = ExecutionPlan(data_parallel=8, zero_stage=zero_stage)
    gathered = calls(plan, model=mixture(moe=moe), stack=modules)
    return [size for op, size, _, _ in gathered if op is CollectiveOp.ALL_GATHER]


@pytest.mark.parametrize(("grouped", "matrices"), [(True, 8 * 3), (False, 1)])
def test_experts_are_one_module_or_one_for_every_matrix(grouped, matrices):
    """Gathered module by module; where experts run in a loop, each of their matrices is a module."""
    found = expert_gatherings(3, grouped=grouped)
    assert 2 * 1024 * 1408 * matrices in [pytest.approx(size) for size in found]


def test_only_stage_3_gathers_experts_module_by_module():
    for zero_stage in (1, 2):
        found = expert_gatherings(zero_stage, grouped=False)
        assert 8 * 2 * 1024 * 1408 * 8 * 3 in [pytest.approx(size) for size in found]


def test_experts_come_in_messages_of_the_layers_that_have_them():
    """With two dense layers of eight, six modules of the same size, and not eight smaller ones."""
    found = expert_gatherings(3, grouped=True, moe={"first_dense_layers": 2})
    assert 2 * 1024 * 1408 * 8 * 3 in [pytest.approx(size) for size in found]


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


@pytest.mark.parametrize(("ranks", "messages"), [(4, 4), (64, 5 * 8)])
def test_owners_of_whole_matrices_broadcast_what_they_updated(ranks, messages):
    """Every rank its own, until there are more ranks than matrices: five in each of eight layers."""
    psi = total_parameters(gpt())
    owners = stack(broadcasts_from_owners=True, gather_messages_per_layer=5, sums_whole=1, gradient_dtype="bf16")
    plan = ExecutionPlan(data_parallel=ranks, zero_stage=1)
    near = min(ranks, 8)
    assert calls(plan, stack=owners) == [
        (CollectiveOp.ALL_REDUCE, pytest.approx(2 * psi), ranks, near),
        (CollectiveOp.BROADCAST, pytest.approx(2 * psi / messages), ranks, near),
    ]
    sharded = replace(plan, zero_stage=3)
    assert calls(sharded, stack=owners) == calls(sharded, stack=replace(owners, broadcasts_from_owners=False))
