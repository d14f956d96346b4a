"""Scoring that takes responses as they end, weights that arrive while they run, and what waits for neither."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from costmodels.model_calls import READY_PARTS
from planner.dataflow.flow.costs import flow_costs, model_call
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.file import graph_from_mapping
from planner.dataflow.graphs.presets import build_preset
from planner.dataflow.streams import StreamEnd, lead_s, service_end, streamed
from planner.flow_phrases import lead_sentence, reason_sentence
from planner.workflows import plan_dataflow
from profiles.errors import SpecError

LONG_TAIL = "lognormal:mean=300,sigma=1,max=4096"
QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": LONG_TAIL, "effort": 0.01}


def planned(job: Any = "grpo", gpus: str = "2xH100", **settings: Any) -> FlowPlan:
    plan = plan_dataflow(job, "llama-3.2-1b", gpus, **QUICK | settings).plan
    assert plan is not None
    return plan


def waits_for_generation(**settings: Any) -> FlowPlan:
    """The longest responses set the pace, and training is soon done."""
    lengths = {"batch": 128, "prompt": 512, "generate": "lognormal:mean=2000,sigma=1,max=16384"}
    external = {"reward": "external", "old_logprobs": False}
    plan = plan_dataflow("grpo", "qwen2.5-7b", "8xH100", mode="async", settings=external, **lengths, **settings).plan
    assert plan is not None
    return plan


def ways(ready_s: list[float], work_s: float = 0.0, parts: int = 1) -> StreamEnd:
    ready = np.asarray([ready_s])
    return StreamEnd(time_s=ready[:, -1], ready_s=ready, work_s=np.asarray([work_s]), parts=np.asarray([parts]))


def as_they_come(ready_s: np.ndarray, work_s: float, parts: int) -> float:
    """When a call is done that works on each part as soon as it is there."""
    done = 0.0
    for part in range(parts):
        there = ready_s[-(-(part + 1) * READY_PARTS // parts) - 1]
        done = max(done, there) + work_s / parts
    return done


@pytest.mark.parametrize("seed", range(20))
def test_a_call_that_starts_so_late_is_done_as_soon_as_one_that_takes_parts_as_they_come(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ready_s = np.cumsum(rng.random(READY_PARTS) ** 3)
    work_s, parts = float(rng.random() * 20), int(rng.integers(1, READY_PARTS + 1))
    early_s = lead_s(ways(ready_s.tolist()), ways([0.0] * READY_PARTS, work_s, parts))[0, 0]
    done_s = ready_s[-1] - early_s + work_s
    assert done_s == pytest.approx(as_they_come(ready_s, work_s, parts))
    # No earlier than the last part there is plus its work, and never later than if it had waited.
    assert ready_s[-1] + work_s / parts <= done_s + 1e-9
    assert done_s <= ready_s[-1] + work_s + 1e-9


def test_responses_that_all_end_together_leave_no_lead() -> None:
    together = ways([8.0] * READY_PARTS)
    evenly = ways([8.0 * part / READY_PARTS for part in range(1, READY_PARTS + 1)])
    reader = ways([0.0] * READY_PARTS, 4.0, READY_PARTS)
    assert lead_s(together, reader)[0, 0] == 0
    assert lead_s(evenly, reader)[0, 0] == pytest.approx(4.0 * (1 - 1 / READY_PARTS))
    # A reader as slow as generation starts with the first part.
    assert lead_s(evenly, ways([0.0] * READY_PARTS, 8.0, READY_PARTS))[0, 0] == pytest.approx(7.5)
    late = StreamEnd(time_s=np.asarray([6.0]), ready_s=together.ready_s, work_s=np.zeros(1), parts=np.ones(1, int))
    assert lead_s(late, ways([0.0] * READY_PARTS, 4.0, 1))[0, 0] == -2


def test_a_service_takes_as_many_parts_as_it_has_rounds() -> None:
    graph = build_preset("grpo", {"reward": "external", "latency_s": 2.0, "concurrency": 64})
    end = service_end(graph.call("reward_inf"), 32)  # 256 responses in 4 rounds
    assert (end.time_s[0], end.parts[0]) == (8.0, 4)
    assert end.ready_s[0, 3::4].tolist() == [2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("reward", ["model", "external"])
def test_streaming_is_never_slower_and_a_long_tail_is_worth_it(reward: str) -> None:
    settings = {"reward": reward} | ({"latency_s": 0.5, "concurrency": 32} if reward == "external" else {})
    plain = planned(mode="disaggregated", gpus="4xH100", settings=settings)
    early = planned(mode="disaggregated", gpus="4xH100", settings=settings, stream=True)
    assert early.total_s < plain.total_s * 0.999
    leads = {lead.target: lead.lead_s for lead in early.leads}
    assert leads["reward_inf"] > 0
    reward_s = next(call.time_s for call in early.calls if call.name == "reward_inf")
    generation = next(task for task in early.tasks if task.name == "actor_gen" and task.iteration == 0)
    scoring = next(task for task in early.tasks if task.name == "reward_inf" and task.iteration == 0)
    assert generation.start_s <= scoring.start_s < generation.end_s
    assert scoring.end_s > generation.end_s + 0.9 * reward_s / READY_PARTS
    assert not plain.leads
    assert "before actor_gen ends" in lead_sentence(next(lead for lead in early.leads if lead.lead_s > 0))


def test_on_the_same_gpus_streaming_changes_nothing() -> None:
    plain, early = planned(mode="colocated"), planned(mode="colocated", stream=True)
    assert early.total_s == pytest.approx(plain.total_s, rel=1e-9)
    assert all(lead.lead_s == 0 for lead in early.leads)
    assert "shares its GPUs" in lead_sentence(early.leads[0])


def test_equal_responses_that_start_together_leave_nothing_to_stream() -> None:
    settings: dict[str, Any] = {"mode": "disaggregated", "generate": 256, "engine": "trainer", "batch": 8}
    plain, early = planned(gpus="4xH100", **settings), planned(gpus="4xH100", stream=True, **settings)
    assert early.total_s <= plain.total_s * (1 + 1e-9)


JUDGED: dict[str, Any] = {
    "name": "judged",
    "roles": {"actor": {"model": "llama-3.2-1b"}, "judge": {"model": "llama-3.2-1b", "head": "value"}},
    "calls": {
        "generate": {"role": "actor", "kind": "generate", "inputs": ["prompts"], "outputs": ["text"]},
        "check": {"kind": "external", "inputs": ["text"], "outputs": ["passed"], "latency_s": 0.2, "concurrency": 8},
        "judge": {"role": "judge", "kind": "inference", "inputs": ["text", "passed"], "outputs": ["score"]},
        "learn": {"role": "actor", "kind": "train", "inputs": ["text", "score"]},
    },
}


def with_streams(*names: str) -> dict[str, Any]:
    calls = {name: call | ({"stream": True} if name in names else {}) for name, call in JUDGED["calls"].items()}
    return JUDGED | {"calls": calls}


def test_a_call_of_a_graph_of_ones_own_streams_if_it_says_so() -> None:
    plain = plan_dataflow(with_streams(), {}, "2xH100", **QUICK).plan
    early = plan_dataflow(with_streams("check"), {}, "2xH100", **QUICK).plan
    both = plan_dataflow(with_streams("check", "judge"), {}, "2xH100", **QUICK).plan
    assert plain is not None
    assert early is not None
    assert both is not None
    assert early.total_s < plain.total_s
    # What the judge reads of the check is there when the check ends; of generation it could take it early.
    assert both.total_s <= early.total_s * (1 + 1e-9)
    assert {(lead.source, lead.target) for lead in both.leads} >= {("generate", "check")}
    assert ("check", "judge") not in {(lead.source, lead.target) for lead in both.leads}


def test_only_calls_that_score_stream() -> None:
    graph = streamed(build_preset("ppo"))
    assert {call.name for call in graph.calls if call.stream} == {"reward_inf", "critic_inf", "ref_inf"}
    with pytest.raises(SpecError, match="nothing in sft scores"):
        streamed(build_preset("sft"))
    with pytest.raises(SpecError, match="is for inference and services, and learn is train"):
        graph_from_mapping(with_streams("learn"))


PINS = {"actor_gen": {"gpus": "0-1", "tp": 1, "engine": "vllm"}, "actor_train": {"gpus": "2-3", "tp": 1}}


@cache
def ahead(rollout: str, staleness: int, *, keep_cache: bool = False) -> FlowPlan:
    """Generation on two GPUs ahead of training on two others."""
    options: dict[str, Any] = {"mode": "async", "pins": PINS, "settings": {"kl": False}, "keep_cache": keep_cache}
    return planned(gpus="4xH100", rollout=rollout, staleness=staleness, **options)


def test_weights_in_flight_free_slots_for_the_next_responses() -> None:
    whole, flying, kept = ahead("whole", 2), ahead("in_flight", 2), ahead("in_flight", 2, keep_cache=True)
    assert flying.steady_s < 0.9 * whole.steady_s
    assert kept.steady_s <= flying.steady_s * (1 + 1e-9)
    lead = next(lead for lead in flying.leads if lead.target == "reward_inf")
    assert lead.lead_s < 0
    assert "for the last responses" in lead_sentence(lead)
    for iteration in range(flying.iterations):
        ran = {task.name: task for task in flying.tasks if task.iteration == iteration}
        assert ran["reward_inf"].start_s >= ran["actor_gen"].end_s - lead.lead_s - 1e-9
    reason = next(reason for reason in flying.reasons if reason.call == "actor_gen")
    assert reason.runs_on
    assert "the last go on beside the next" in reason_sentence(flying, reason)


def test_a_step_is_told_only_where_every_sequence_runs_from_the_start() -> None:
    plan = planned(gpus="4xH100")
    reason = next(reason for reason in plan.reasons if reason.call == "actor_gen")
    call = next(call for call in plan.calls if call.name == "actor_gen")
    assert call.plan is not None
    each = -(-call.sequences // call.plan.data_parallel)
    for concurrent, waves in ((each, False), (each - 1, True)):
        calls = tuple(replace(item, concurrent=concurrent) if item == call else item for item in plan.calls)
        words = reason_sentence(replace(plan, calls=calls), reason)
        assert ("with the prompts" in words) is not waves
        assert (f", {concurrent} of the {each} sequences of a replica at once, MFU" in words) is waves
    calls = tuple(replace(item, concurrent=2 * each) if item == call else item for item in plan.calls)
    words = reason_sentence(replace(plan, calls=calls), reason)
    assert f", {2 * each} sequences of a replica at once, {each} of each batch, MFU" in words


@pytest.mark.long
def test_running_further_ahead_hides_more_of_the_last_responses() -> None:
    assert ahead("in_flight", 1).steady_s > 1.2 * ahead("in_flight", 2).steady_s
    paces_s = [ahead("in_flight", staleness).steady_s for staleness in (1, 2, 4, 16)]
    assert all(more <= fewer * (1 + 1e-9) for fewer, more in pairwise(paces_s))
    # Far enough ahead nothing but the longest call, and what passes between, is left to wait for.
    furthest = ahead("in_flight", 64)
    assert 0.9 * paces_s[-1] < furthest.steady_s <= paces_s[-1] * (1 + 1e-9)
    assert furthest.steady_s < 1.07 * max(call.time_s for call in furthest.calls)


def test_what_is_proven_does_not_hang_on_the_iterations_shown() -> None:
    settings: dict[str, Any] = {"staleness": 4, "rollout": "in_flight"}
    few, many = (waits_for_generation(iterations=iterations, **settings) for iterations in (2, 8))
    assert few.search.proven
    assert many.search.proven
    assert few.steady_s == pytest.approx(many.steady_s, rel=1e-9)


def test_where_plans_are_equally_fast_idle_gpus_help_what_might_take_longer() -> None:
    """Generation sets the pace; training on two of four GPUs would be as fast, and far slower if prices are off."""
    plan = waits_for_generation(staleness=2)
    calls = {call.name: call for call in plan.calls if call.num_gpus}
    generates = calls.pop("actor_gen")
    assert generates.time_s == pytest.approx(plan.steady_s, rel=2e-3)
    others = {gpu for call in calls.values() for gpu in range(call.first_gpu, call.first_gpu + call.num_gpus)}
    assert generates.num_gpus + len(others) == 8
    assert max(call.time_s for call in calls.values()) < 0.65 * plan.steady_s
    assert plan.steady_high_s < 2 * plan.steady_s


def test_a_batch_may_end_before_the_next_begins_although_it_need_not() -> None:
    options = FlowOptions(**QUICK, mode="async", staleness=1, rollout="in_flight")
    request = resolve_flow("grpo", {"": "llama-3.2-1b"}, "2xH100", options)
    rows = flow_costs(request, request.cluster, [[1]]).rows["actor_gen"]
    goes_on = rows.ready_s[:, -1] > rows.time_s * 1.001
    assert goes_on.any()
    # What ends by itself takes longer, but its last responses are there sooner.
    assert rows.time_s[goes_on].min() < rows.time_s[~goes_on].min()
    assert rows.ready_s[~goes_on, -1].min() < rows.ready_s[goes_on, -1].min()
    for staleness in (1, 2):
        assert ahead("in_flight", staleness).steady_s <= ahead("whole", staleness).steady_s * (1 + 1e-9)


def test_as_many_batches_run_at_once_as_steps_may_lie_between() -> None:
    """NeMo-RL admits prompts_per_step x max_trajectory_age_steps; a batch then takes its share of fuller steps."""

    def generating(staleness: int) -> Any:
        options = FlowOptions(
            **QUICK | {"batch": 16}, mode="async", staleness=staleness, rollout="in_flight", keep_cache=True
        )
        request = resolve_flow("grpo", {"": "llama-3.2-1b"}, "2xH100", options)
        call = request.graph.call("actor_gen")
        assert model_call(request, call).batches_in_flight == staleness
        assert model_call(request, request.graph.call("actor_train")).batches_in_flight == 1
        return call.sequences(request.batch), flow_costs(request, request.cluster, [[1]]).rows["actor_gen"]

    (count, one), (_, four) = generating(1), generating(4)
    most = [int((rows.table.concurrent * rows.table.plans.data_parallel)[rows.row].max()) for rows in (one, four)]
    assert most[0] <= count < 3 * count < most[1] <= 4 * count
    assert four.time_s.min() < 0.7 * one.time_s.min()
    # A response is on its way for longer, in fuller steps.
    fastest = [(rows.ready_s[:, -1])[rows.time_s.argmin()] for rows in (one, four)]
    assert fastest[1] > fastest[0]


def test_the_staleness_of_weights_in_flight_is_all_spent_on_running_ahead() -> None:
    options = FlowOptions(**QUICK, mode="async", staleness=3, rollout="in_flight")
    request = resolve_flow("grpo", {"": "llama-3.2-1b"}, "2xH100", options)
    assert (request.ahead, request.carried_over) == (3, 0)
    call = model_call(request, request.graph.call("actor_gen"))
    assert (call.in_flight, call.carried_over, call.keeps_cache) == (True, 0, False)
    assert not model_call(request, request.graph.call("reward_inf")).in_flight


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout": "in_flight"}, "in_flight needs mode async"),
        ({"rollout": "in_flight", "mode": "async", "staleness": 0}, "a staleness of at least 1"),
        ({"rollout": "in_flight", "mode": "async", "engine": "trainer"}, "batches end together"),
        ({"keep_cache": True}, "which nothing interrupts"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        planned(**settings)
