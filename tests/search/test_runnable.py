"""Which frameworks can run the plan found, and searches among what one framework can run."""

import re
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stage_plans.plan import StageConfigs
from planner.document_search import search_document
from planner.question.request import setting_of
from planner.render.search import render_search
from planner.rules.base import FRAMEWORKS, MEGATRON
from planner.search.call import search
from planner.search.families import Family, alike_families
from planner.search.freedom import Freedom
from planner.search.result import FoundPlan, SearchResult
from planner.search.told import told_freedoms
from planner.space.enumeration import plan_space
from profiles.errors import SpecError
from tests.search.small import INSTANCES, Small, model

BY_NAME = {instance.name: instance for instance in INSTANCES}
_JOB = {"sequence_length": 2048, "global_batch_size": 16}
FOUR_AND_TWO = Small(
    name="", model=model(5), cluster="1x4xA100-80GB+1x2xH100", reserve_gib=30.0, pins={"tp": 1},
    job={"sequence_length": 2048, "global_batch_size": 48},
)  # fmt: skip
UNEVEN = Small(name="", model=model(5, vocab_size=256000), cluster="4xA100-80GB", job=_JOB, pins={"pp": 2})


def found(instance: Small, **more: Any) -> SearchResult:
    return search(**instance.arguments() | more)


def best(result: SearchResult) -> FoundPlan:
    assert result.best is not None
    return result.best


def runners(plan: FoundPlan) -> set[str]:
    return {verdict.framework for verdict in plan.frameworks if verdict.runs}


@pytest.mark.parametrize(
    "instance",
    [
        replace(UNEVEN, reserve_gib=54.0),
        replace(UNEVEN, framework="fsdp", reserve_gib=40.0, pins={"pp": 2, "tp": 1}),
        replace(BY_NAME["two types, tight"], model=model(4), pins={"mbs": 1, "tp": 1}),
        BY_NAME["MoE, named modules"],
    ],
)
def test_the_best_of_what_a_framework_can_run_is_found_and_proved(instance: Small) -> None:
    asked = replace(instance, runnable=True)
    optimum_s, plans = asked.optimum()
    result = found(asked)
    assert plans > 20
    assert best(result).step_time_s == pytest.approx(optimum_s, rel=1e-9)
    assert result.bound_s is not None
    assert result.bound_s <= optimum_s * (1 + 1e-9)
    assert asked.question().requests[0].stack.framework in runners(best(result))


@pytest.fixture(scope="module")
def free() -> SearchResult:
    """The best of everything, on two types of devices."""
    return found(FOUR_AND_TWO)


def test_a_framework_may_not_get_the_best_of_all(free: SearchResult) -> None:
    told = found(FOUR_AND_TWO, runnable=True)
    assert MEGATRON not in runners(best(free))
    assert MEGATRON in runners(best(told))
    assert best(free).step_time_s < best(told).step_time_s
    assert free.best_runnable == told.best == told.best_runnable
    assert free.runnable_gap is not None
    assert free.runnable_gap == pytest.approx(told.gap, abs=1e-6)
    assert free.bound_s is not None
    assert free.bound_s < best(told).step_time_s
    assert {stage.device for stage in best(told).stages} == {"A100-SXM-80GB", "H100-SXM-80GB"}
    assert (
        len({(stage.tensor_parallel, stage.data_parallel, stage.micro_batch_size) for stage in best(told).stages}) == 1
    )


def test_the_document_names_the_rules_in_the_way(free: SearchResult) -> None:
    document = search_document(free)
    assert not document["runnable"]
    assert document["best_runnable"]["step_time_s"] > document["best"]["step_time_s"]
    assert document["runnable_bound_s"] <= document["best_runnable"]["step_time_s"]
    assert document["runnable_gap"] == free.runnable_gap
    told = {entry["framework"]: entry for entry in document["best"]["frameworks"]}
    assert tuple(told) == FRAMEWORKS
    for entry in told.values():
        assert entry["runs"] == (not entry["broken"])
        assert all(broken["rule"] and broken["text"] for broken in entry["broken"])
    assert {"stages_share_a_mesh", "stages_recompute_alike"} & {broken["rule"] for broken in told["megatron"]["broken"]}


def test_the_answer_in_a_terminal_names_them_too(free: SearchResult) -> None:
    console = Console(record=True, width=200, file=StringIO())
    render_search(free, console)
    text = console.export_text()
    assert "Runs on no framework known here" in text
    assert "not on Megatron-LM, whose rule is: all stages" in text
    assert "The best that Megatron-LM can run" in text
    assert re.search(
        "slower than the plan above; at most .* from the fastest of the spaces searched that Megatron", text
    )
    nearly = Console(record=True, width=200, file=StringIO())
    bound_s = free.best_runnable.step_time_s * (1 - 1e-4)  # not proved, and not nothing either
    render_search(replace(free, runnable_bound_s=bound_s), nearly)
    assert "at most 0.1 % from the fastest of the spaces searched that Megatron-LM" in nearly.export_text()
    told = Console(record=True, width=200, file=StringIO())
    render_search(found(UNEVEN, runnable=True), told)
    assert "Runs on Megatron-LM" in (text := told.export_text())
    assert "The best that Megatron-LM can run" not in text


def test_on_a_narrow_terminal_only_names_of_devices_get_shorter(free: SearchResult) -> None:
    console = Console(record=True, width=70, file=StringIO())
    render_search(free, console)
    lines = console.export_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("stage"))
    assert lines[at].split()[-2:] == ["time", "GiB"]
    assert "layers" in lines[at]
    assert "…" not in lines[at]
    assert "…" in lines[at + 1].split()[1]


@pytest.mark.parametrize("framework", ["deepspeed", "nanotron", "huggingface"])
def test_frameworks_that_lay_layers_out_themselves_get_an_enumerated_plan(framework: str) -> None:
    result = found(Small(name="", model=model(4), cluster="4xA100-80GB", job=_JOB, framework=framework, runnable=True))
    assert framework in runners(best(result))
    assert result.engines[1].status == "not run"
    assert result.engines[1].space.endswith("lays layers out itself")
    assert result.optimal


@pytest.mark.parametrize("strategy", ["enumerate", "mcmc", "cpsat"])
def test_whatever_is_searched_the_best_that_the_framework_can_run_is_told(strategy: str) -> None:
    result = found(UNEVEN, strategy=strategy, evaluations=20_000, seconds=2.0)
    assert result.best_runnable is not None
    assert MEGATRON in runners(result.best_runnable)
    assert result.best_runnable.step_time_s <= result.uniform_step_time_s
    assert (result.runnable_gap is None) == (strategy != "cpsat")


def test_annealing_leaves_runnable_plans_to_the_exact_engines() -> None:
    result = found(UNEVEN, runnable=True, strategy="all")
    assert result.engines[-1].status == "not run"
    assert result.optimal


def test_runnable_is_yes_or_no() -> None:
    with pytest.raises(SpecError, match="runnable: must be true or false; got 'megatron'"):
        found(UNEVEN, runnable="megatron")


def told(instance: Small, freedom: Freedom) -> set[tuple[str, int, int, int, bool]]:
    """What the first two-stage family of a question may be told."""
    request = instance.question().requests[0]
    pins = {"pipeline_parallel": 2} | dict(request.pins)
    plans = plan_space(setting_of(request), domain_devices=8, pins=pins, lone_shards=freedom.offload).plans
    families, configs = alike_families(plans)
    found = told_freedoms(families[0], configs, setting_of(request), freedom)
    treatments = [each.told for each in found if each.told is not None]
    assert len(treatments) == len(found)
    return {
        (t.recompute.name.lower(), t.block, t.optimizer_offload, t.parameter_offload, t.offload_activations)
        for t in treatments
    }


def test_stages_are_told_what_the_rules_allow() -> None:
    small = Small(name="", model=model(4), cluster="4xA100-80GB", job=_JOB)
    plain = {("none", 0), ("selective", 0), ("block", 1), ("block", 2), ("full", 0)}
    assert told(small, Freedom()) == {(*mode, 0, 0, False) for mode in plain}
    assert told(small, Freedom(full=False)) == {("none", 0, 0, 0, False), ("selective", 0, 0, 0, False)}
    # Megatron-LM offloads a share of the distributed optimizer under a pipeline, and neither weights nor activations.
    sharding = replace(small, pins={"zero": 1, "tp": 2})
    assert told(sharding, Freedom(offload=True)) == {(*mode, share, 0, False) for mode in plain for share in range(9)}
    assert told(replace(small, pins={"zero": 0}), Freedom(offload=True)) == {(*mode, 0, 0, False) for mode in plain}
    # Every chunk recomputes as many layers.
    chunked = {("none", 0), ("selective", 0), ("block", 2), ("full", 0)}
    assert told(replace(small, pins={"vpp": 2}), Freedom()) == {(*mode, 0, 0, False) for mode in chunked}
    assert told(replace(small, framework="nanotron"), Freedom(selective=False)) == {
        ("none", 0, 0, 0, False),
        ("full", 0, 0, 0, False),
    }
    # FSDP moves the weights along with the optimizer, and activations that are recomputed.
    sharded = replace(small, framework="fsdp", pins={"zero": 3, "tp": 1})
    moved = {(states, weights) for _, _, states, weights, _ in told(sharded, Freedom(offload=True))}
    assert moved == {(0, 0), (8, 8)}


def test_what_is_told_counts_layers_of_both_kinds() -> None:
    """Two dense and four MoE layers: a block of three recomputes one dense and two MoE layers."""
    from planner.search.freedom import Treatment
    from planner.search.partition.stage_table import _told

    ways = _told(
        np.asarray([2, 0]), np.asarray([4, 2]), Treatment(recompute=Recompute.BLOCK, block=3, offload_activations=True)
    )
    assert ways["full_dense"].tolist() == [1, 0]
    assert ways["full_moe"].tolist() == [2, 2]
    assert ways["offloaded"].tolist() == [3, 2]
    ways = _told(np.asarray([2]), np.asarray([4]), Treatment(recompute=Recompute.SELECTIVE, optimizer_offload=4))
    assert (ways["selective_dense"][0], ways["selective_moe"][0], ways["optimizer_offload"][0]) == (2, 4, 4)
    assert ways["full_dense"].sum() + ways["full_moe"].sum() + ways["offloaded"].sum() == 0


def test_a_family_no_rule_allows_is_told_nothing() -> None:
    """Zero stage 2 under a pipeline is nothing Megatron-LM runs, whatever is recomputed."""
    plans = PlanBatch.from_plans(
        [ExecutionPlan(pipeline_parallel=2, data_parallel=2, zero_stage=2, num_microbatches=8)]
    )
    configs = StageConfigs(plans=plans, group=np.zeros(1, dtype=np.int64))
    families, _ = alike_families(plans)
    family: Family = families[0]
    setting = setting_of(Small(name="", model=model(4), cluster="4xA100-80GB", job=_JOB).question().requests[0])
    assert told_freedoms(family, configs, setting, Freedom()) == ()
