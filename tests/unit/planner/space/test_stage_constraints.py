"""Rules on plans whose stages differ, one broken at a time, and which framework could run what."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.plan import ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch, from_uniform
from costmodels.stages.balance import balanced_stage_layers
from planner.rules.base import DEEPSPEED, FRAMEWORKS, FSDP, HUGGINGFACE, MEGATRON, NANOTRON, Setting
from planner.space.constraints import rules_for
from planner.space.enumeration import plan_space
from planner.space.stage_constraints import (
    STAGE_RULES,
    StageSetting,
    as_uniform,
    broken_by,
    condition,
    stage_excess,
    verdicts,
)
from tests.fakes import gpt, job, mixture
from tests.stage_batches import concatenate

# Two groups of sixteen devices; 64 sequences: 8 micro-batches of 8.
CONFIGS = StageConfigs(
    plans=PlanBatch.from_plans(
        [
            ExecutionPlan(data_parallel=8, micro_batch_size=1, num_microbatches=8, pipeline_parallel=2),
            ExecutionPlan(
                tensor_parallel=4, data_parallel=2, micro_batch_size=4, num_microbatches=8, pipeline_parallel=2
            ),
            ExecutionPlan(data_parallel=8, micro_batch_size=2, num_microbatches=4, pipeline_parallel=2),
            ExecutionPlan(data_parallel=8, micro_batch_size=1, num_microbatches=8, pipeline_parallel=2),
        ]
    ),
    group=np.asarray([0, 0, 0, 1]),
)
MODEL = gpt()
SETTING = StageSetting(model=MODEL, configs=CONFIGS, devices=(16, 16))


def plan(config: tuple[int, ...] = (0, 3), layers: tuple[int, ...] = (5, 3), **columns) -> StagePlanBatch:
    one = {name: [value] for name, value in columns.items()}
    settled = {"num_microbatches": [8], **one}
    return StagePlanBatch.from_columns([len(config)], [list(config)], [list(layers)], **settled)


def test_a_legal_plan_breaks_nothing():
    for legal in (plan(), plan((0, 1)), plan((0,), (8,)), plan((0, 3, 3), (4, 2, 2), full_dense=[4, 0, 2])):
        assert not any(values.any() for values in stage_excess(legal, SETTING).values())


@pytest.mark.parametrize(
    ("broken", "rule", "excess"),
    [
        (plan(layers=(5, 2)), "stages_hold_all_layers", 1 / 8),
        (plan(layers=(8, 0)), "stages_have_layers", 1),
        (plan(virtual_stages=4, layers=(5, 3)), "stages_have_layers", 1),
        (plan((0, 2)), "stages_agree_in_samples", 1),
        (plan(num_microbatches=4), "stages_agree_in_samples", 2),
        (plan((0, 0, 1), (3, 3, 2)), "group_has_devices", 8 / 16),
        (plan(full_dense=[4, 2], selective_dense=[2, 2]), "layers_are_there", 2),
        (plan(full_dense=[2, 0], offloaded=[3, 0]), "layers_are_there", 1),
        (plan(optimizer_offload=[9, 8]), "layers_are_there", 1),
        (plan(parameter_offload=[10, 8]), "layers_are_there", 2),
        (plan(parameter_offload=[-1, 0]), "layers_are_there", 1),
        (plan(full_dense=[-1, 0]), "layers_are_there", 1),
        (plan((0,), (8,), schedule=Schedule.GPIPE), "schedule_fits_stages", 1),
        (plan(schedule=Schedule.GPIPE, virtual_stages=2), "schedule_fits_stages", 1),
        (plan((0, 3, 3), (4, 2, 2), virtual_stages=2), "schedule_fits_stages", 1),
        (plan().with_columns(num_stages=[3]), "stages_exist", 1),
        (plan().with_columns(num_stages=[0]), "stages_exist", 1),
    ],
)
def test_each_rule_sees_its_violation(broken, rule, excess):
    found = stage_excess(broken, SETTING)
    assert found[rule] == pytest.approx([excess])


def test_moe_layers_count_by_position():
    model = mixture(moe={"first_dense_layers": 3})
    setting = replace(SETTING, model=model)
    assert not any(excess[0] for excess in stage_excess(plan(full_dense=[3, 0], full_moe=[2, 3]), setting).values())
    assert stage_excess(plan(full_dense=[4, 0]), setting)["layers_are_there"] == [1.0]


def test_rules_have_names_and_words():
    assert len({rule.name for rule in STAGE_RULES}) == len(STAGE_RULES)
    assert all(rule.text for rule in STAGE_RULES)


def framework(name: str) -> Setting:
    return Setting(model=MODEL, job=job(global_batch_size=64), num_devices=32, framework=name)


def runners(batch: StagePlanBatch, setting: StageSetting = SETTING, row: int = 0) -> set[str]:
    found = verdicts(batch, setting, framework(MEGATRON))
    assert tuple(found) == FRAMEWORKS
    return {name for name, broken in found.items() if not any(rows[row] for rows in broken.values())}


def test_uneven_layers_need_a_framework_that_takes_any_layout():
    """Stages alike in all but layers, though on different devices: a hand-laid layout."""
    assert runners(plan()) == {MEGATRON}
    sharded = StageConfigs(
        plans=replace(CONFIGS.plans, zero_stage=np.full(4, 2)), group=CONFIGS.group
    )  # torchtitan pipelines FSDP only
    assert runners(plan(), replace(SETTING, configs=sharded)) == {FSDP}
    assert runners(plan(layers=(4, 4))) >= {MEGATRON, DEEPSPEED}
    assert HUGGINGFACE not in runners(plan())


def test_nanotron_lays_out_by_cost():
    wanted = balanced_stage_layers(MODEL, 2)
    assert wanted == (6, 2)
    assert NANOTRON in runners(plan(layers=wanted))
    assert list(broken_by(plan(), SETTING, framework(NANOTRON))) == ["layers_laid_out_by_itself"]


def test_stages_with_degrees_of_their_own_run_on_none():
    assert runners(plan((1, 3))) == set()
    assert list(broken_by(plan((1, 3)), SETTING, framework(MEGATRON))) == ["stages_share_a_mesh"]
    assert "same degrees" in condition("stages_share_a_mesh")
    assert "1F1B" in condition("interleaving_is_1f1b")


def test_a_layout_by_hand_need_not_divide_into_chunks():
    """Megatron-LM reads virtual stages from the layout; without one it wants the same layers in every chunk."""
    uneven = plan(layers=(5, 3), virtual_stages=2)
    assert MEGATRON in runners(uneven)
    uniform, _ = as_uniform(uneven, SETTING)
    unasked = replace(uniform, stage_layers=None, virtual_stages=np.full(1, 3))
    assert "interleaving_divides_layers" in {
        rule.name for rule in rules_for(MEGATRON) if not rule.holds(unasked, framework(MEGATRON))[0]
    }


@pytest.mark.parametrize(
    ("columns", "mode", "layers"),
    [
        ({}, Recompute.NONE, 0),
        ({"selective_dense": [5, 3]}, Recompute.SELECTIVE, 0),
        ({"full_dense": [5, 3]}, Recompute.FULL, 0),
        ({"full_dense": [4, 3]}, Recompute.BLOCK, 4),
        ({"full_dense": [2, 2]}, Recompute.BLOCK, 2),
    ],
)
def test_recomputation_that_a_framework_can_be_told(columns, mode, layers):
    uniform, differ = as_uniform(plan(**columns), SETTING)
    assert not any(rows[0] for rows in differ.values())
    found = uniform.plan(0)
    assert (found.recompute, found.recompute_layers, found.stage_layers) == (mode, layers, (5, 3))
    assert MEGATRON in runners(plan(**columns))


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"selective_dense": [5, 0]}, "stages_recompute_alike"),
        ({"full_dense": [2, 3]}, "stages_recompute_alike"),
        ({"full_dense": [5, 0]}, "stages_recompute_alike"),
        ({"full_dense": [1, 1], "selective_dense": [4, 2]}, "stages_recompute_alike"),
        ({"full_dense": [5, 3], "offloaded": [5, 0]}, "stages_offload_alike"),
        ({"optimizer_offload": [8, 4]}, "stages_offload_alike"),
        ({"parameter_offload": [8, 0]}, "stages_offload_alike"),
    ],
)
def test_stages_that_recompute_or_offload_on_their_own(columns, rule):
    assert [name for name, rows in as_uniform(plan(**columns), SETTING)[1].items() if rows[0]] == [rule]
    assert runners(plan(**columns)) == set()


def test_part_of_a_sharded_optimizer_is_offloaded_by_megatron():
    part = plan((0, 0), (4, 4), optimizer_offload=[4, 4])
    assert runners(part) == set()
    sharded = replace(CONFIGS, plans=replace(CONFIGS.plans, zero_stage=np.ones_like(CONFIGS.plans.zero_stage)))
    found = broken_by(part, replace(SETTING, configs=sharded), framework(MEGATRON))
    assert not found


def test_no_framework_offloads_part_of_the_weights():
    assert runners(plan(layers=(4, 4), parameter_offload=[4, 4])) == set()
    whole = plan(layers=(4, 4), parameter_offload=[8, 8])
    assert as_uniform(whole, SETTING)[0].offload_parameters.all()
    assert "parameters_offloaded_whole" not in broken_by(whole, SETTING, framework(MEGATRON))
    part = broken_by(plan(layers=(4, 4), parameter_offload=[4, 4]), SETTING, framework(MEGATRON))
    assert set(part) == {"parameters_offloaded_whole", "offload_parameters_exists"}


def test_uniform_plans_come_back_as_they_were():
    plans = PlanBatch.from_plans(
        [
            ExecutionPlan(pipeline_parallel=4, data_parallel=8, num_microbatches=8, recompute=recompute,
                          recompute_layers=2 if recompute == Recompute.BLOCK else 0, virtual_stages=v,
                          schedule=schedule)
            for recompute in Recompute
            for v, schedule in [(1, Schedule.ONE_F_ONE_B), (2, Schedule.ONE_F_ONE_B), (1, Schedule.GPIPE)]
        ]
    )  # fmt: skip
    batch, configs = from_uniform(plans, MODEL)
    uniform, differ = as_uniform(batch, StageSetting(model=MODEL, configs=configs, devices=(32,)))
    assert not any(rows.any() for rows in differ.values())
    for name in ("pipeline_parallel", "virtual_stages", "schedule", "data_parallel", "num_microbatches"):
        assert (getattr(uniform, name) == getattr(plans, name)).all(), name
    # Two layers a stage: recomputing both is recomputing all.
    assert [Recompute(code) for code in uniform.recompute[:6]] == [Recompute.NONE] * 3 + [Recompute.SELECTIVE] * 3
    assert set(uniform.recompute[6:].tolist()) == {int(Recompute.FULL)}


def test_frameworks_are_all_asked():
    both = concatenate([plan(), plan((0,), (8,))])
    assert HUGGINGFACE not in runners(both, row=0)
    assert HUGGINGFACE in runners(both, row=1)


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("model", [gpt(num_layers=7), mixture(moe={"first_dense_layers": 3})])
def test_a_framework_can_run_what_is_planned_for_it(name, model):
    """Every uniform plan, with layers that divide and that do not, comes back as one that breaks no rule."""
    setting = Setting(model=model, job=job(global_batch_size=32), num_devices=16, framework=name)
    plans = plan_space(setting, domain_devices=8, offload=True).plans
    batch, configs = from_uniform(plans, model)
    assert len(plans) > 10
    assert broken_by(batch, StageSetting(model=model, configs=configs, devices=(16,)), setting) == {}
