"""Plans of workflows on a few GPUs: complete, consistent, and what the modes and constraints ask for."""

import json
from functools import cache
from itertools import pairwise
from typing import Any

import jsonschema_rs
import pytest

from costmodels.flops import matmul_parameters
from planner.dataflow.flow import solve as flow_solve
from planner.dataflow.flow.costs import call_flops
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.results import CallPlan, FlowPlan, FlowResult
from planner.dataflow.graphs.presets import PRESETS
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.results import Exploration
from planner.dataflow.solving.search import explore
from planner.document_flow import flow_document, flow_document_schema
from planner.workflows import plan_dataflow

SMALL = "llama-3.2-1b"
NEEDED = {
    "coe": {"router": SMALL, "expert": SMALL},
    "distill": {"teacher": SMALL, "student": SMALL},
    "distill-chain": {"teacher": SMALL, "student": SMALL, "small": SMALL},
    "distill-on-policy": {"teacher": SMALL, "student": SMALL},
}
QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.01, "iterations": 2}


@cache
def solved(job: str, cluster: str = "2xH100", **settings: Any) -> FlowResult:
    return plan_dataflow(job, NEEDED.get(job, SMALL), cluster, **QUICK | settings)


def plan_of(result: FlowResult) -> FlowPlan:
    assert result.plan is not None
    return result.plan


@pytest.mark.parametrize("job", PRESETS)
def test_every_preset_is_planned(job: str) -> None:
    result = solved(job, iterations=1)
    plan = plan_of(result)
    assert [call.name for call in plan.calls] == list(result.request.graph.order)
    jsonschema_rs.validate(flow_document_schema(), json.loads(json.dumps(flow_document(result))))
    assert all(group.peak_bytes <= group.usable_bytes for group in plan.memory)
    assert sum(group.num_gpus for group in plan.memory) == 2
    assert plan.steady_low_s <= plan.steady_s <= plan.steady_high_s


@pytest.mark.parametrize("mode", ["hybrid", "async"])
def test_one_more_gpu_is_no_worse(mode: str) -> None:
    """A batch of 64 is trained on 4 of 5 GPUs, or 6 of 7, not on all of them."""
    pace_s = [plan_of(solved("grpo", f"{gpus}xH100", mode=mode, effort=0.1)).steady_s for gpus in range(3, 9)]
    assert all(more <= fewer * 1.001 for fewer, more in pairwise(pace_s))
    assert pace_s[-1] < 0.6 * pace_s[0]


@pytest.mark.long
def test_one_more_node_than_are_divided_in_every_way_is_no_worse() -> None:
    """A batch of 4,096 responses is trained on 20 of 21 nodes, not on the next power of two."""
    asked = {"batch": 512, "prompt": 1024, "generate": 1024, "effort": 0.02}
    plans = [plan_of(plan_dataflow("grpo", "qwen2.5-32b", f"{nodes}x8xH100", **asked)) for nodes in (20, 21)]
    assert plans[1].steady_s <= plans[0].steady_s


def test_the_smallest_part_of_a_small_node_may_be_any() -> None:
    """8B in full take 128 GB and more: two of seven GPUs."""
    result = plan_dataflow("sft", "llama-3-8b", "7xH100", **QUICK, objective="fewest_gpus", framework="fsdp")
    assert plan_of(result).num_gpus == 2


def test_the_plan_of_ppo_is_consistent() -> None:
    result = solved("ppo")
    plan = plan_of(result)
    calls = {call.name: call for call in plan.calls}
    assert {move.source for move in plan.reallocations} == {"actor_train", "critic_train"}
    assert {move.target for move in plan.reallocations} == {"actor_gen", "critic_inf"}
    for task in plan.tasks:
        if task.name in calls:
            assert task.end_s - task.start_s == pytest.approx(calls[task.name].time_s)
    starts = {(task.name, task.iteration): task.start_s for task in plan.tasks}
    ends = {(task.name, task.iteration): task.end_s for task in plan.tasks}
    for iteration in range(2):
        for name in calls:
            for parent in result.request.graph.parents(name):
                assert starts[name, iteration] >= ends[parent, iteration] - 1e-9
    assert starts["actor_gen", 1] >= ends["actor_train", 0] - 1e-9
    assert plan.total_s == pytest.approx(max(ends.values()))
    busiest = max(group.busy_share for group in plan.memory)
    assert busiest <= 1 + 1e-9
    assert plan.model_flops > 0
    assert 0 < plan.mfu < 1


def test_prompts_of_a_group_are_read_once() -> None:
    """8 responses of 32 tokens to each of 16 prompts of 1,024: 20,480 tokens pass the actor, not 135,168."""
    asked = {"batch": 16, "prompt": 1024, "generate": 32, "iterations": 1}
    request = solved("grpo", **asked).request
    weights = matmul_parameters(request.models["actor"])
    needed = 2 * weights * (16 * 1024 + 128 * 32)
    assert call_flops(request, "actor_gen") == pytest.approx(needed, rel=0.1)
    assert call_flops(request, "ref_inf") == pytest.approx(2 * weights * 128 * (1024 + 32), rel=0.1)
    alone = solved("reinforce++", **asked).request  # one response per prompt
    assert call_flops(alone, "actor_gen") == pytest.approx(2 * weights * 16 * (1024 + 32), rel=0.1)


@pytest.mark.parametrize(("job", "settings"), [("grpo", {"mode": "async", "staleness": 2}), ("ppo", {}), ("dapo", {})])
def test_no_call_is_slower_than_it_need_be_on_its_gpus(job: str, settings: dict[str, Any]) -> None:
    """What others would wait for no longer is no reason to run a call slowly."""
    plan = plan_of(solved(job, "4xH100", generate=512, **settings))
    calls = {call.name: call for call in plan.calls}
    for reason in plan.reasons:
        other = reason.alternative
        if other is not None and other.fits:
            call = calls[reason.call]
            elsewhere = (other.first_gpu, other.num_gpus) != (call.first_gpu, call.num_gpus)
            assert elsewhere or other.steady_s > plan.steady_s * (1 + 1e-9)


@pytest.mark.parametrize("iterations", [1, 2])
def test_no_gpu_is_busier_than_there_is_time(iterations: int) -> None:
    plan = plan_of(solved("grpo", iterations=iterations))
    assert any(move.time_s > 0 for move in plan.reallocations)
    assert plan.busy_share <= 1 + 1e-9
    assert all(group.busy_share <= 1 + 1e-9 for group in plan.memory)


def test_no_gpu_does_two_things_at_once() -> None:
    plan = plan_of(solved("ppo"))
    for gpu in range(plan.num_gpus):
        spans = sorted(
            (task.start_s, task.end_s)
            for task in plan.tasks
            if any(first <= gpu < first + count for first, count in task.meshes) and task.end_s > task.start_s
        )
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(spans))


def test_colocated_calls_take_all_gpus_and_hybrid_is_no_worse() -> None:
    together, free = plan_of(solved("grpo", mode="colocated")), plan_of(solved("grpo"))
    assert all((call.first_gpu, call.num_gpus) == (0, 2) for call in together.calls)
    assert free.total_s <= together.total_s * 1.02


def test_disaggregated_pools_do_not_overlap_and_async_overlaps_them() -> None:
    apart, ahead = solved("grpo", mode="disaggregated"), solved("grpo", mode="async", staleness=1)
    for result in (apart, ahead):
        calls = {call.name: call for call in plan_of(result).calls}
        assert calls["actor_gen"].first_gpu + calls["actor_gen"].num_gpus <= min(
            call.first_gpu for name, call in calls.items() if name != "actor_gen"
        )
    assert plan_of(ahead).steady_s < plan_of(apart).steady_s
    assert ahead.request.staleness == 1


def test_divisions_of_the_gpus_are_searched_for_what_beats_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, Exploration]] = []
    budgets: list[tuple[int, int]] = []

    def recorded(problem: DataflowProblem, options: SearchOptions, *, faster_than_s: float) -> Exploration:
        found = explore(problem, options, faster_than_s=faster_than_s)
        asked.append((faster_than_s, found))
        budgets.append((options.most_children, options.anneal.steps))
        return found

    monkeypatch.setattr(flow_solve, "explore", recorded)
    plan = plan_of(plan_dataflow("ppo", "llama-3.2-1b", "4xH100", batch=32, mode="async"))
    assert len(asked) > 1
    whole, *shares = budgets
    left = whole[0]
    for share, (_, found) in zip(shares, asked[1:], strict=True):
        assert share == (int(left / 2), int(whole[1] * left / whole[0] / 2))  # of the tree search and of annealing
        left -= found.children
    assert asked[0][0] == float("inf")
    best_s = float("inf")
    for faster_than_s, found in asked:
        assert faster_than_s == best_s
        best_s = found.solution.makespan_s if found.solution else best_s
    assert plan.search.divisions == 3  # of four GPUs
    assert plan.search.found_s == best_s
    assert plan.search.bound_s == min(found.bound_s for _, found in asked)  # of all divisions, not of one
    assert plan.search.evaluations == sum(found.evaluated for _, found in asked)


def test_all_divisions_together_anneal_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each division used to spend half of a whole annealing, however many there were."""
    steps: list[int] = []

    def nothing_found(problem: DataflowProblem, options: SearchOptions, *, faster_than_s: float) -> Exploration:
        steps.append(options.anneal.steps)
        spent = options.most_children + options.anneal.steps * 100_000  # about what plans of ten tasks take
        return Exploration(solution=None, bound_s=1.0, evaluated=1, children=spent)

    monkeypatch.setattr(flow_solve, "explore", nothing_found)
    asked = FlowOptions(batch=64, mode="async", staleness=1, max_oom_risk=1.0)
    request = resolve_flow("grpo", {"": "llama-3.2-1b"}, "24x1xH100", asked)
    assert flow_solve.solve_flow(request) is None
    whole, *others = steps
    assert len(others) == 22
    assert sum(others) < 1.5 * whole + 50 * len(others)  # half a whole one each: 11 times


@pytest.mark.long
def test_pools_may_end_inside_the_nodes_of_a_small_cluster() -> None:
    """Generation on half a node leaves a node and a half to the others, which no cut between nodes does."""
    asked: dict[str, Any] = {"batch": 128, "prompt": 512, "generate": 512, "mode": "async"}
    plan = plan_of(plan_dataflow("ppo", "llama-3-8b", "2x8xH100", **asked))
    (generation,) = [call for call in plan.calls if call.kind == "generate"]
    assert (generation.first_gpu, generation.num_gpus) == (0, 4)
    assert plan.search.divisions == 7
    pins = {"actor_gen": {"gpus": "0-7"}}
    between = plan_of(plan_dataflow("ppo", "llama-3-8b", "2x8xH100", pins=pins, **asked))
    assert plan.steady_s < 0.98 * between.steady_s


def test_a_barrier_is_never_faster_than_versions() -> None:
    barrier, version = solved("ppo", dependency="barrier", effort=0.03), solved("ppo", effort=0.03)
    assert barrier.request.dependency == "barrier"
    assert plan_of(version).steady_s <= plan_of(barrier).steady_s * (1 + 1e-9)
    ends = [task.end_s for task in plan_of(barrier).tasks if task.iteration == 0 and task.kind == "call"]
    starts = [task.start_s for task in plan_of(barrier).tasks if task.iteration == 1 and task.kind == "call"]
    assert min(starts) >= max(ends) - 1e-9


def test_what_is_pinned_stays() -> None:
    pins = {"actor_gen": {"gpus": "1-1", "engine": "vllm"}, "actor_train": {"gpus": 2, "tp": 2}}
    calls = {call.name: call for call in plan_of(plan_dataflow("grpo", SMALL, "2xH100", pins=pins, **QUICK)).calls}
    gen, train = calls["actor_gen"], calls["actor_train"]
    assert (gen.first_gpu, gen.num_gpus, gen.engine) == (1, 1, "vllm")
    assert train.num_gpus == 2
    assert train.plan is not None
    assert train.plan.tensor_parallel == 2


def test_a_number_of_gpus_is_found_wherever_so_many_are() -> None:
    def planned(cluster: str, **settings: Any) -> tuple[CallPlan, ...]:
        pins = {"actor_gen": {"gpus": 3}, "actor_train": {"gpus": 4}}
        return plan_of(plan_dataflow("grpo", SMALL, cluster, pins=pins, **QUICK | settings)).calls

    calls = {call.name: call for call in planned("3x8xH100", iterations=1)}
    assert (calls["actor_gen"].num_gpus, calls["actor_train"].num_gpus) == (3, 4)
    apart = {call.name: call for call in planned("8xH100", mode="disaggregated")}
    gen, train = apart["actor_gen"], apart["actor_train"]
    assert (gen.num_gpus, train.num_gpus) == (3, 4)
    assert gen.first_gpu + gen.num_gpus <= train.first_gpu


def test_nothing_lies_on_the_host_when_that_is_forbidden() -> None:
    kept = plan_of(solved("ppo", offload=False))
    assert {call.holding for call in kept.calls} <= {"resident", "delivered"}
    assert kept.host_bytes == 0


def test_nothing_lies_on_the_host_without_need() -> None:
    """Two small models leave room for everything: only what saves time may go."""
    plan = plan_of(solved("distill-on-policy"))
    assert plan.peak.peak_bytes < 0.9 * plan.peak.usable_bytes
    assert plan.host_bytes == 0


def test_the_engine_asked_for_generates() -> None:
    gen = plan_of(solved("grpo", engine="sglang")).calls[0]
    assert gen.engine == "sglang"
    assert gen.concurrent >= 1


def test_longer_responses_and_larger_batches_take_longer() -> None:
    base = plan_of(solved("grpo", mode="colocated")).total_s
    assert plan_of(solved("grpo", mode="colocated", generate=256)).total_s > 1.2 * base
    assert plan_of(solved("grpo", mode="colocated", batch=128)).total_s > 1.2 * base


def test_a_long_tail_takes_longer_than_its_mean() -> None:
    fixed = plan_of(solved("grpo", mode="colocated")).calls[0]
    tail = plan_of(solved("grpo", mode="colocated", generate="lognormal:mean=128,sigma=1,max=2048")).calls[0]
    assert tail.time_s > 2 * fixed.time_s


def test_a_service_beside_the_gpus_takes_time_and_no_gpu() -> None:
    settings = {"reward": "external", "kl": False, "latency_s": 2.0, "concurrency": 512}
    result = plan_dataflow("grpo", SMALL, "2xH100", settings=settings, **QUICK)
    calls = {call.name: call for call in plan_of(result).calls}
    assert (calls["reward_inf"].num_gpus, calls["reward_inf"].time_s) == (0, 2.0)
    assert plan_of(result).steady_s >= calls["actor_gen"].time_s + 2.0 + calls["actor_train"].time_s - 1e-6


def test_the_fewest_gpus_that_fit() -> None:
    result = plan_dataflow("sft", SMALL, "4xH100", objective="fewest_gpus", **QUICK)
    assert plan_of(result).num_gpus == 1
    cheapest = plan_dataflow("sft", SMALL, "4xH100", objective="cost", price_per_device_hour_usd=2.0, **QUICK)
    plan = plan_of(cheapest)
    assert plan.usd == pytest.approx(plan.num_gpus * plan.steady_s * 2.0 / 3600)


def test_what_does_not_fit_is_explained_with_the_minimum() -> None:
    result = plan_dataflow("sft", "llama-2-70b", "1xH100", offload=False, **QUICK)
    assert not result.fits
    assert result.infeasible is not None
    (shortage,) = result.infeasible.shortages
    assert shortage.call == "actor_train"
    assert shortage.needs_bytes > shortage.usable_bytes
    # 70B parameters in bf16 with fp32 gradients and Adam states are 18 bytes each: 1.24 TB over 80 GB devices.
    assert result.infeasible.minimum_gpus in (16, 24, 32)
    document = flow_document(result)
    jsonschema_rs.validate(flow_document_schema(), json.loads(json.dumps(document)))
    assert document["infeasible"]["sentence"].startswith(f"{result.infeasible.minimum_gpus} GPUs")


def test_weights_that_do_not_fit_are_no_matter_of_layouts() -> None:
    infeasible = plan_dataflow("grpo", "llama-3-70b", "1xH100", **QUICK).infeasible
    assert infeasible is not None
    needs = {item.call: item.needs_bytes for item in infeasible.shortages}
    assert needs["actor_gen"] == pytest.approx(70.55e9 * 2, rel=0.05)
    # Nothing may be moved to the host, and not even pairs of calls fit.
    kept = plan_dataflow("grpo", "llama-3-70b", "8xH100", offload=False, **QUICK).infeasible
    assert kept is not None
    assert [item.call for item in kept.shortages] == ["actor_train"]


def test_a_framework_that_splits_models_is_named_where_it_fits_the_gpus_that_are_there() -> None:
    roles = {"student": "llama-3.2-1b", "teacher": "llama-3-70b"}
    result = plan_dataflow("distill", roles, "2xH100", **QUICK)  # 141 GB of weights, which Hugging Face does not split
    assert result.infeasible is not None
    assert result.infeasible.framework == "megatron"
    split = plan_of(plan_dataflow("distill", roles, "2xH100", framework="megatron", **QUICK))
    assert result.infeasible.framework_steady_s == pytest.approx(split.steady_s, rel=0.05)
    document = flow_document(result)
    jsonschema_rs.validate(flow_document_schema(), json.loads(json.dumps(document)))
    least, _, split_sentence = document["infeasible"]["sentence"].partition(". ")
    assert least.startswith(f"{result.infeasible.minimum_gpus} GPUs of this kind would do, about ")
    assert split_sentence.startswith("Framework megatron splits models and fits these GPUs, about ")


@pytest.mark.parametrize(
    ("job", "model", "gpus", "more"),
    [
        ("dpo", "llama-3-70b", "8xH100", {}),  # Megatron-Core finds no room either
        ("dpo", "llama-3-70b", "1xA100-SXM-40GB", {"settings": {"task": "qlora"}}),  # which it does not train
        ("sft", "llama-2-70b", "1xH100", {"framework": "megatron"}),
    ],
)
def test_no_framework_is_named_that_would_not_do(job: str, model: str, gpus: str, more: dict[str, Any]) -> None:
    infeasible = plan_dataflow(job, model, gpus, **QUICK, **more).infeasible
    assert infeasible is not None
    assert (infeasible.framework, infeasible.framework_steady_s) == ("", None)


def test_what_the_minimum_takes_is_told_of_settled_iterations() -> None:
    asked: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "mode": "async"}
    infeasible = plan_dataflow("grpo", "llama-3.1-8b", "2xH100", **asked).infeasible
    assert infeasible is not None
    there = plan_of(plan_dataflow("grpo", "llama-3.1-8b", f"{infeasible.minimum_gpus}xH100", **asked))
    assert there.steady_s < 0.9 * there.first_s
    assert infeasible.minimum_steady_s == pytest.approx(there.steady_s, rel=0.05)


def test_a_refreshed_reference_is_told_and_kept() -> None:
    rare = plan_of(solved("mrdpo"))
    assert [(move.target, move.every) for move in rare.reallocations if move.every > 1] == [("ref_inf", 1000)]
    every = plan_of(solved("ppo-ema"))
    assert ("actor_train", "ref_inf") in {(move.source, move.target) for move in every.reallocations}
    assert next(call for call in every.calls if call.name == "ref_inf").holding == "resident"


def test_the_same_question_has_the_same_answer() -> None:
    once = flow_document(plan_dataflow("grpo", SMALL, "2xH100", **QUICK))
    assert once == flow_document(plan_dataflow("grpo", SMALL, "2xH100", **QUICK))


def test_dominating_calls_come_with_reasons() -> None:
    plan = plan_of(solved("ppo"))
    shares = [reason.share for reason in plan.reasons]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 3
    sentences = [entry["sentence"] for entry in flow_document(solved("ppo"))["plan"]["reasons"]]
    assert all("of the iteration" in sentence for sentence in sentences)
