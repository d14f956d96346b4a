"""Partial rollouts: generation ends when enough responses have, the others go on with new weights."""

from typing import Any

import numpy as np
import pytest

from costmodels.lengths import OutputLengths, fixed_length, log_normal_lengths
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch
from costmodels.serving.generation import engine_context, generation, prefill_s, prompt_job, resumption_s
from planner.dataflow.call_costs import CallSetting, call_context
from planner.dataflow.flow.costs import model_call
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.results import FlowPlan
from planner.question.machines import resolve_cluster
from planner.question.request import resolve_named_model
from planner.workflows import plan_dataflow
from profiles.engines import find_engine
from profiles.errors import SpecError
from profiles.stacks import find_stack

LONG_TAIL = log_normal_lengths(mean=1000, sigma=1.0, most=8192)
ENGINE = find_engine("vllm")
SETTING = CallSetting(cluster=resolve_cluster("8xH100", None), stack=find_stack("megatron"), engines=("vllm",))
MODEL = resolve_named_model("llama-3.1-8b", allow_files=False).spec
PLANS = PlanBatch.from_columns(2, tensor_parallel=np.array([1, 2]), data_parallel=np.array([8, 4]))


def asked(carried_over: int, output: OutputLengths = LONG_TAIL) -> ModelCall:
    return ModelCall(
        kind=CallKind.GENERATE, num_sequences=512, prompt_tokens=512, output=output, carried_over=carried_over
    )


def priced(carried_over: int, running: int, output: OutputLengths = LONG_TAIL):  # type: ignore[no-untyped-def]
    call = asked(carried_over, output)
    staggered = np.full(2, False)
    return generation(PLANS, call, ENGINE, call_context(call, MODEL, SETTING), np.full(2, running), staggered)


def test_a_call_takes_the_steps_its_tokens_need_or_its_share_of_the_longest() -> None:
    longest = LONG_TAIL.longest_of(512)
    whole = priced(0, 64)
    assert whole.steps[0] == pytest.approx(longest, rel=0.02)
    for further in (1, 3):
        # 64 of 64 sequences of a replica run at once: as many steps as the mean, if the longest allows.
        steps = priced(further, 64).steps[0]
        assert steps == pytest.approx(max(LONG_TAIL.mean, longest / (1 + further)), rel=0.02)
    # With 16 at once, four times the mean.
    assert priced(7, 16).steps[0] == pytest.approx(4 * LONG_TAIL.mean, rel=1e-6)


def test_more_iterations_to_go_on_in_never_take_longer_and_a_long_tail_is_worth_it() -> None:
    times = np.stack([priced(further, 64).time_s for further in (1, 2, 4, 8)])
    assert (np.diff(times, axis=0) <= 1e-12).all()
    assert (times[-1] < 0.6 * priced(0, 64).time_s).all()


def test_what_is_interrupted_is_read_again_with_the_tokens_it_has() -> None:
    call = asked(4)
    context = call_context(call, MODEL, SETTING)
    again_s = resumption_s(PLANS, call, ENGINE, context, np.array([64.0, 128.0]))
    longer = ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=512,
        prompt_tokens=round(512 + LONG_TAIL.mean_context),
        output=LONG_TAIL,
    )
    passes = engine_context(context, ENGINE, prompt_job(longer), read_tokens=longer.prompt_tokens)
    expected = prefill_s(PLANS, longer, ENGINE, passes)
    assert again_s == pytest.approx(expected)
    assert LONG_TAIL.mean_context > LONG_TAIL.mean  # a running sequence is likely a long one
    half_s = resumption_s(PLANS, call, ENGINE, context, np.array([32.0, 64.0]))
    assert half_s == pytest.approx(again_s / 2, rel=0.05)


def test_equal_lengths_leave_nothing_to_carry_over() -> None:
    output = fixed_length(1000)
    assert priced(4, 64, output).time_s == pytest.approx(priced(0, 64, output).time_s)


QUICK: dict[str, Any] = {
    "batch": 64,
    "prompt": 128,
    "generate": "lognormal:mean=300,sigma=1,max=4096",
    "effort": 0.01,
    "mode": "async",
}


def planned(**settings: Any) -> FlowPlan:
    plan = plan_dataflow("grpo", "llama-3.2-1b", "2xH100", **QUICK | settings).plan
    assert plan is not None
    return plan


def test_the_staleness_is_spent_on_running_ahead_and_on_going_on() -> None:
    request = resolve_flow("grpo", {"": "llama-3.2-1b"}, "2xH100", FlowOptions(**QUICK, staleness=4, rollout="partial"))
    assert (request.ahead, request.carried_over) == (1, 3)
    graph = request.graph
    assert model_call(request, graph.call("actor_gen")).carried_over == 3
    assert model_call(request, graph.call("actor_train")).carried_over == 0
    whole = resolve_flow("grpo", {"": "llama-3.2-1b"}, "2xH100", FlowOptions(**QUICK, staleness=4))
    assert (whole.ahead, whole.carried_over) == (4, 0)


def test_plans_with_partial_rollouts_are_faster_and_say_so() -> None:
    whole, partial = planned(staleness=4), planned(staleness=4, rollout="partial")
    assert partial.steady_s < whole.steady_s
    reasons = {reason.call: reason for reason in partial.reasons}
    assert reasons["actor_gen"].carries_over
    assert reasons["actor_gen"].decode_steps < next(r for r in whole.reasons if r.call == "actor_gen").decode_steps


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout": "partial", "mode": "hybrid"}, "partial needs mode async"),
        ({"rollout": "partial"}, "a staleness of at least 2"),
        ({"rollout": "partial", "staleness": 1}, "got 1"),
        ({"rollout": "half"}, "unknown value 'half'"),
        ({"rollout": "partial", "staleness": 2, "engine": "trainer"}, "batches end together"),
    ],
)
def test_partial_rollouts_need_what_they_rest_on(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        plan_dataflow("grpo", "llama-3.2-1b", "2xH100", **QUICK | settings)
