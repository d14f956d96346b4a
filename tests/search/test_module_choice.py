"""Searches that choose which modules each stage recomputes."""

from dataclasses import replace
from typing import Any

from costmodels.plan import RecomputeModule
from costmodels.stage_plans.prices import StagePrices
from planner.question.request import setting_of
from planner.rules.modules import module_sets
from planner.search.call import search
from planner.search.families import alike_families
from planner.search.freedom import Freedom
from planner.search.module_choice import worthwhile
from planner.search.result import SearchResult
from planner.space.enumeration import plan_space
from tests.search.small import INSTANCES, Small

BY_NAME = {instance.name: instance for instance in INSTANCES}


def found(instance: Small, **limits: Any) -> SearchResult:
    return search(**instance.arguments(), **limits)


def test_named_modules_beat_whole_layers() -> None:
    instance = BY_NAME["MoE, named modules"]
    named, plain = found(instance), found(replace(instance, named_modules=False))
    assert named.best is not None
    assert plain.best is not None
    assert named.best.step_time_s < 0.97 * plain.best.step_time_s
    assert any(stage.recomputed_modules for stage in named.best.stages)
    assert plain.uniform_step_time_s > named.uniform_step_time_s
    told = found(replace(instance, runnable=True))
    assert told.best is not None
    assert named.best.step_time_s <= told.best.step_time_s <= plain.uniform_step_time_s


def test_sets_of_modules_that_another_beats_are_left_out() -> None:
    question = BY_NAME["MoE, named modules"].question()
    request = question.requests[0]
    plans = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins).plans
    families, configs = alike_families(plans)
    prices = StagePrices(configs=configs, contexts=question.contexts)
    sets = module_sets(setting_of(request), named=True)
    kept = worthwhile(families[0], prices, Freedom(modules=sets)).modules
    assert set(kept) < set(sets)
    assert int(RecomputeModule.CORE_ATTN) not in kept  # fused attention keeps nothing that it could drop
    assert int(RecomputeModule.MOE_ACT) in kept
    assert not worthwhile(families[0], prices, Freedom()).selective
