"""Exchanges of tokens with experts under another micro-batch: what Megatron-Core asks of a plan, layouts included."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.plan import PlanBatch, Recompute, RecomputeModule
from planner.rules.base import MEGATRON, Setting
from planner.space.constraints import legal
from planner.space.enumeration import plan_space
from tests.fakes import context, gpt, job, mixture, stack
from tests.legal import broken, split, violations

OVERLAPS = Setting(
    model=mixture(num_layers=8), job=job(), num_devices=8, framework=MEGATRON, free_layout=True, overlaps_experts=True
)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(split(p=2, d=4, expert_parallel=4), {"expert_overlap_needs_interleaving"}, id="whole stages"),
        pytest.param(split(p=2, d=4, expert_parallel=4, virtual_stages=2), set(), id="chunks"),
        pytest.param(split(p=2, d=4), set(), id="nothing is exchanged"),
        pytest.param(split(d=8, expert_parallel=8), set(), id="no pipeline"),
        pytest.param(
            split(d=8, expert_parallel=8, recompute=Recompute.FULL), {"expert_overlap_excludes_whole_layers"}, id="full"
        ),
        pytest.param(
            split(d=8, expert_parallel=8, recompute=Recompute.BLOCK, recompute_layers=1),
            {"expert_overlap_excludes_whole_layers"},
            id="block",
        ),
        pytest.param(
            split(d=8, expert_parallel=8, recompute=Recompute.SELECTIVE, recompute_modules=int(RecomputeModule.MOE)),
            {"expert_overlap_excludes_whole_layers"},
            id="experts",
        ),
        pytest.param(
            split(
                d=8, expert_parallel=8, recompute=Recompute.SELECTIVE, recompute_modules=int(RecomputeModule.MOE_ACT)
            ),
            set(),
            id="activation",
        ),
    ],
)
def test_what_overlap_asks_of_a_plan(plan, expected):
    assert broken(plan, OVERLAPS) == expected
    without = Setting(model=OVERLAPS.model, job=OVERLAPS.job, num_devices=8, framework=MEGATRON)
    assert broken(plan, without) == set()
    assert all(error.hint for error in violations(plan, OVERLAPS))


def test_exchanges_under_another_micro_batch_keep_a_layer_of_both():
    """A layer of the micro-batch that goes forward is added for every one that is released of the other."""
    plan, layers = split(d=8, expert_parallel=8), mixture().num_layers
    parts = {
        share: evaluate(
            PlanBatch.from_plans([plan]), context(model=mixture(), stack=stack(expert_parallel_overlap=share))
        )
        for share in (0.0, 0.8)
    }
    kept = {share: estimate.memory_parts_bytes["activations"].max() for share, estimate in parts.items()}
    assert parts[0.0].stages.in_flight.max() == 1
    assert parts[0.8].stages.in_flight.max() == pytest.approx(1 + 1 / layers)
    assert 1 < kept[0.8] / kept[0.0] <= 1 + 1 / layers
    alone = replace(plan, expert_parallel=1)
    peaks = [
        evaluate(PlanBatch.from_plans([alone]), context(model=mixture(), stack=stack(expert_parallel_overlap=share)))
        for share in (0.0, 0.8)
    ]
    assert peaks[0].peak_memory_bytes == peaks[1].peak_memory_bytes


def where(layers, *, free_layout):
    return Setting(model=gpt(num_layers=layers), job=job(), num_devices=8, framework=MEGATRON, free_layout=free_layout)


@pytest.mark.parametrize(
    ("layers", "plan", "strict", "free"),
    [
        (7, split(p=2, d=4), {"pipeline_divides_layers"}, set()),
        (7, split(p=2, d=4, virtual_stages=2), {"pipeline_divides_layers", "interleaving_divides_layers"}, set()),
        (6, split(p=2, d=4, virtual_stages=2), {"interleaving_divides_layers"}, set()),
        (7, split(p=4, d=2, virtual_stages=2), {"pipeline_divides_layers", "interleaving_divides_layers",
                                               "stages_have_layers"}, {"interleaving_divides_layers",
                                                                       "stages_have_layers"}),
        (8, split(p=2, d=4, first_stage_layers=3, last_stage_layers=3), {"pipeline_divides_layers"},
         {"pipeline_divides_layers"}),
    ],
)  # fmt: skip
def test_a_free_layout_needs_layers_for_every_chunk_and_no_more(layers, plan, strict, free):
    assert broken(plan, where(layers, free_layout=False)) == strict
    assert broken(plan, where(layers, free_layout=True)) == free


def test_where_layers_do_not_divide_a_free_layout_adds_chunks():
    plans = plan_space(where(7, free_layout=True), domain_devices=8).plans
    assert set(plans.virtual_stages[plans.pipeline_parallel == 2].tolist()) == {1, 2, 3}  # 4 chunks each want 8
    # Without chunks what is left over goes to the last stage, as without a free layout.
    ends = (plans.first_stage_layers + plans.last_stage_layers)[(plans.pipeline_parallel == 2)]
    assert (ends[plans.virtual_stages[plans.pipeline_parallel == 2] == 1] > 0).all()
    fewer = plan_space(where(7, free_layout=False), domain_devices=8).plans
    assert (fewer.virtual_stages[fewer.pipeline_parallel == 2] == 1).all()


def test_where_layers_divide_a_free_layout_adds_nothing():
    spaces = [plan_space(where(8, free_layout=free), domain_devices=8).plans for free in (False, True)]
    assert len(spaces[0]) == len(spaces[1])
    assert legal(spaces[1], where(8, free_layout=False)).all()
    assert np.array_equal(spaces[0].virtual_stages, spaces[1].virtual_stages)
