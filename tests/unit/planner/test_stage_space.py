"""Configurations of stages: which there are, and how to find one's way among them."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.plan import PlanBatch
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch, from_uniform
from planner.rules.base import FSDP, MEGATRON, Setting
from planner.search.stage_space import StageSpace, stage_sizes, stage_space
from planner.space.constraints import legal
from planner.space.enumeration import plan_space
from planner.space.stage_constraints import stage_excess
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from tests.fakes import RateKernels, RingCollectives, context, device, gpt, job, mixture, node, stack


def where(model: ModelSpec, *, nodes: int = 2, speed: float = 1.0, framework: str = MEGATRON) -> CostContext:
    return context(
        model=model,
        job=job(global_batch_size=32),
        cluster=ClusterSpec(name="fake", node=node(device=device()), num_nodes=nodes),
        kernels=RateKernels(flops_per_s=speed * 100e12, bytes_per_s=speed * 1e12),
        collectives=RingCollectives(inside_bytes_per_s=200e9, across_bytes_per_s=20e9),
        stack=stack(framework=framework),
    )


def space_of(contexts: list[CostContext], **options) -> StageSpace:
    settings = [
        Setting(model=each.model, job=each.job, num_devices=each.cluster.num_devices, framework=each.stack.framework)
        for each in contexts
    ]
    pairs = {(0, 1): contexts[0]} if len(contexts) > 1 else {}
    return stage_space(settings, contexts, joint=pairs, **options)


@pytest.fixture(scope="module")
def two_groups() -> StageSpace:
    return space_of([where(gpt()), where(gpt(), nodes=1, speed=3.0)])


def test_stage_sizes_are_shares_of_a_domain_and_whole_domains():
    assert stage_sizes(32, 8, max_stages=64) == [1, 2, 4, 8, 16, 24, 32]
    assert stage_sizes(32, 8, max_stages=8) == [4, 8, 16, 24, 32]
    assert stage_sizes(4, 4, max_stages=64) == [1, 2, 4]
    assert stage_sizes(12, 6, max_stages=64) == [1, 2, 3, 6, 12]
    assert len(stage_sizes(1 << 17, 8, max_stages=64)) < 20


def test_every_configuration_is_legal_and_on_its_group(two_groups):
    configs = two_groups.configs
    assert two_groups.devices == (16, 8)
    assert (configs.num_devices <= np.asarray([16, 8])[configs.group]).all()
    assert (configs.samples * configs.plans.num_microbatches == 32).all()
    setting = Setting(model=gpt(), job=job(global_batch_size=32), num_devices=0, framework=MEGATRON)
    for size in np.unique(configs.num_devices):
        rows = np.flatnonzero(configs.num_devices == size)
        assert legal(configs.plans.take(rows), replace(setting, num_devices=2 * int(size))).all()


def test_rows_for_a_number_of_micro_batches(two_groups):
    rows = two_groups.rows(8, group=1)
    assert len(rows)
    assert (two_groups.configs.plans.num_microbatches[rows] == 8).all()
    assert (two_groups.configs.group[rows] == 1).all()
    assert set(rows) < set(two_groups.rows(8))


def test_bound_on_stages(two_groups):
    assert two_groups.max_stages == 8  # layers; there is room for 24
    assert space_of([where(gpt(num_layers=64))], max_stages=4).max_stages == 4


@pytest.mark.parametrize("framework", [MEGATRON, FSDP])
@pytest.mark.parametrize("model", [gpt(), mixture()], ids=["dense", "mixture"])
def test_the_space_has_every_uniform_pipeline_at_its_price(model, framework):
    here = where(model, nodes=1, framework=framework)
    setting = Setting(model=model, job=here.job, num_devices=8, framework=framework)
    plans = plan_space(setting, domain_devices=8, pins={"virtual_stages": 1}).plans
    plans = plans.take(np.flatnonzero(plans.pipeline_parallel > 1))
    space = space_of([here])
    batch, configs = from_uniform(plans, model)
    found = space.index_of(configs)
    assert (found >= 0).all()
    same = evaluate_stages(batch.with_columns(config=found[batch.config]), space.prices)
    np.testing.assert_allclose(same.step_time_s, evaluate(plans, here).step_time_s, rtol=1e-9)


def test_plans_of_both_groups_are_priced_and_legal(two_groups):
    slow, fast = (two_groups.rows(4, group=group) for group in (0, 1))
    sizes = two_groups.configs.num_devices
    alone = two_groups.configs.plans.tensor_parallel == 1
    first, second = (rows[(sizes[rows] == 8) & alone[rows]][0] for rows in (slow, fast))
    layers = [[layers, 8 - layers] for layers in range(1, 8)]
    plans = StagePlanBatch.from_columns([2] * 7, [[first, second]] * 7, layers, num_microbatches=4)
    assert not any(excess.any() for excess in stage_excess(plans, two_groups.setting).values())
    priced = evaluate_stages(plans, two_groups.prices)
    assert int(np.argmin(priced.step_time_s)) < 3  # the slow group gets fewer layers


def test_unknown_configurations_are_not_found(two_groups):
    odd = replace(
        two_groups.configs, plans=replace(two_groups.configs.plans, micro_batch_size=np.full(len(two_groups), 7))
    )
    assert (two_groups.index_of(odd) == -1).all()
    assert two_groups.index_of(two_groups.configs).tolist() == list(range(len(two_groups)))


def test_pins_hold_for_stages():
    found = space_of([where(gpt())], pins={"tensor_parallel": 4, "pipeline_parallel": 8, "data_parallel": 2})
    assert set(found.configs.plans.tensor_parallel.tolist()) == {4}
    assert len(set(found.configs.plans.data_parallel.tolist())) > 1
    assert isinstance(found.configs.plans, PlanBatch)
