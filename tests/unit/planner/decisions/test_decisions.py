"""The plans worth trying, as the library, the command line and the documents say it."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from scipy.special import ndtr

import planner
from costmodels.evaluate import evaluate
from costmodels.memory.peaks import memory_error_factor
from costmodels.plan import PlanBatch
from costmodels.uncertainty import NORMAL_90
from planner.decisions.document import portfolio_document
from planner.decisions.results import PortfolioResult, Terms
from planner.decisions.schema import portfolio_schema
from planner.question.request import Options, cost_context, resolve_request
from profiles.errors import SpecError
from profiles.units import SECONDS_PER_HOUR

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


@cache
def answer(**settings: Any) -> PortfolioResult:
    return planner.portfolio("llama-2-7b", "8xA100-80GB", JOB, **settings)


def test_more_trials_leave_less_regret() -> None:
    trials = answer(count=5).trials
    assert [trial.rank for trial in trials] == [1, 2, 3, 4, 5]
    assert len({trial.plan for trial in trials}) == 5
    regrets = [trial.regret for trial in trials]
    assert regrets == sorted(regrets, reverse=True)
    assert 0 < regrets[-1] < regrets[0] < 0.3
    assert all(trial.regret_high >= trial.regret for trial in trials)
    ranked = answer(count=5).ranked_regret
    assert ranked is not None
    assert ranked > 0.95 * regrets[-1]  # a greedy choice is not the best set of five, and may lie just above another


def test_fewer_trials_are_the_first_of_more() -> None:
    assert [trial.plan for trial in answer(count=5).trials[:2]] == [trial.plan for trial in answer(count=2).trials]


def test_intervals_are_those_of_the_estimate() -> None:
    trial = answer(count=2).trials[0]
    best = planner.estimate("llama-2-7b", "8xA100-80GB", JOB, plan=trial.plan).best
    assert best is not None
    assert trial.step_time_s == pytest.approx(best.step_time_s)
    assert trial.peak_memory_bytes == pytest.approx(best.peak_memory_bytes)
    low_s = (
        best.step_time_s**2 / best.step_time_high_s
    )  # what an estimate cuts off at the device's peak rate is left in
    assert trial.step_time_low_s == pytest.approx(low_s, rel=0.04)
    assert trial.step_time_high_s == pytest.approx(best.step_time_high_s, rel=0.03)


def test_the_chance_of_running_out_of_memory_is_that_of_the_peak() -> None:
    request = resolve_request("llama-2-7b", "8xA100-80GB", JOB, None, Options())
    context = cost_context(request)
    # Blocks the allocator would give back before it runs out are no risk.
    lean = replace(context, stack=context.stack.without_cache())
    trials = answer(count=5).trials
    peaks = evaluate(PlanBatch.from_plans([trial.plan for trial in trials]), lean).peak_memory_bytes
    over = np.log(peaks / request.cluster.device.usable_memory_bytes)
    near = ndtr(over / context.stack.memory_residual_log_std)
    far = ndtr(over / (np.log(memory_error_factor(context.stack)) / NORMAL_90))
    assert [trial.oom_probability for trial in trials] == pytest.approx(0.9 * near + 0.1 * far, abs=0.008)
    assert max(trial.oom_probability for trial in trials) > 0.02


def test_a_trial_costs_its_steps_on_all_devices() -> None:
    result = answer(count=2, price_per_device_hour_usd=3.0, terms=Terms(steps=50))
    for trial in result.trials:
        # The mean of a step's law, not its median: hours that are long weigh more.
        mean_s = trial.step_time_s * np.exp(0.5 * (np.log(trial.step_time_high_s / trial.step_time_s) / NORMAL_90) ** 2)
        assert trial.device_hours == pytest.approx(8 * 50 * mean_s / SECONDS_PER_HOUR, rel=0.03)
        assert trial.cost_usd == pytest.approx(3.0 * trial.device_hours)
        assert trial.saved_device_hours is None
    assert answer(count=2).trials[0].cost_usd is None


def test_the_whole_run_saves_what_regret_it_is_spared() -> None:
    result = planner.portfolio("llama-2-7b", "8xA100-80GB", JOB | {"train_tokens": 1e12}, count=2)
    first, second = result.trials
    steps = 1e12 / (2048 * 64)
    expected = (first.regret - second.regret) * steps * first.step_time_s * 8 / SECONDS_PER_HOUR
    assert first.saved_device_hours is None
    assert second.saved_device_hours == pytest.approx(expected, rel=0.25)  # the best is faster than the first


def test_the_answer_is_one_of_the_seed() -> None:
    again = planner.portfolio("llama-2-7b", "8xA100-80GB", JOB, count=5)
    assert portfolio_document(again) == portfolio_document(answer(count=5))
    other = planner.portfolio("llama-2-7b", "8xA100-80GB", JOB, count=5, terms=Terms(seed=1))
    assert other.trials[0].regret != again.trials[0].regret
    assert other.trials[0].regret == pytest.approx(again.trials[0].regret, rel=0.1)


def test_a_dear_death_is_avoided() -> None:
    def deaths(penalty: float) -> float:
        result = planner.portfolio("llama-2-13b", "8xA100-40GB", JOB, count=4, terms=Terms(oom_penalty=penalty))
        return sum(trial.oom_probability for trial in result.trials)

    assert deaths(1.0) < deaths(0.0)


def test_pins_hold() -> None:
    trials = planner.portfolio("llama-2-7b", "8xA100-80GB", JOB, count=3, pins={"tp": 2}).trials
    assert {trial.plan.tensor_parallel for trial in trials} == {2}


def test_no_more_trials_than_plans() -> None:
    fixed = {"tp": 2, "pp": 1, "dp": 4, "zero": 1, "micro_batch": 1, "recompute": "none"}
    result = planner.portfolio("llama-2-7b", "8xA100-80GB", JOB, count=9, pins=fixed)
    assert len(result.trials) == result.grounds.candidates == 1
    assert result.trials[0].regret == 0.0
    assert result.trials[0].best_probability == pytest.approx(1 - result.trials[0].oom_probability)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count: must be a whole number from 1 to 50; got 0"),
        ({"count": True}, "count: must be a whole number from 1 to 50; got True"),
        ({"objective": "cost"}, "objective: is cost, but decisions under uncertainty weigh step times."),
    ],
)
def test_wrong_questions_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        planner.portfolio("llama-2-7b", "8xA100-80GB", JOB, **settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"steps": 0}, "trial_steps: must be a whole number from 1 to 100000; got 0"),
        ({"seed": -1}, "seed: must be a whole number from 0 to 4294967295; got -1"),
        ({"oom_penalty": float("nan")}, "oom_penalty: must be from 0 to 1; got nan"),
    ],
)
def test_wrong_terms_are_named(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        Terms(**terms)


def test_documents_match_their_schema() -> None:
    nothing = planner.portfolio("llama-3-70b", "8xA100", JOB)
    assert nothing.trials == ()
    assert nothing.infeasible is not None
    for result in (answer(count=5), nothing, answer(count=2, price_per_device_hour_usd=3.0, terms=Terms(steps=50))):
        document = portfolio_document(result)
        jsonschema_rs.validate(portfolio_schema(), document)
        assert json.loads(json.dumps(document, allow_nan=False)) == document


ASK = ("plan", "--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--seq", "2048", "--global-batch", "64")


def test_the_command_lists_trials(run: Any) -> None:
    code, out, _ = run(*ASK, "--portfolio", "3", "--price-per-gpu-hour", "2", "--tokens", "1T")
    assert code == 0
    assert "Worth trying on the cluster" in out
    assert [words for words in ("All 3:", "GPU-hours of the run", "$") if words not in out] == []
    code, out, _ = run(*ASK, "--portfolio", "1", "--quiet")
    assert code == 0
    assert "One:" in out
    assert [words for words in ("Assumed", "regret:") if words in out] == []


def test_the_command_answers_as_documents_and_codes(run: Any) -> None:
    code, out, _ = run(*ASK, "--portfolio", "2", "--seed", "3", "--trial-steps", "7", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["kind"], len(document["trials"])) == ("portfolio", 2)
    assert (document["grounds"]["seed"], document["grounds"]["trial_steps"]) == (3, 7)
    code, _, err = run(*ASK, "--portfolio", "51")
    assert (code, err) == (2, "error: --portfolio: must be a whole number from 1 to 50; got 51. Hint: 50\n")
    code, out, _ = run("plan", "--model", "llama-3-70b", "--gpus", "8xA100", "--portfolio", "2")
    assert code == 3
    assert "Nothing fits" in out
