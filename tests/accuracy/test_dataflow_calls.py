"""Published configurations and steps of reinforcement-learning systems, and our own decode steps, predicted."""

import csv
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import ExecutionPlan, PlanBatch
from planner.validate.dataflow.hardware import fits
from planner.validate.dataflow.nemo import (
    NemoStep,
    nemo_steps,
    packed_evenly,
    sequences_per_micro_batch,
    update_size,
)
from planner.validate.dataflow.own_steps import DECODE, own_steps, predicted_s
from planner.validate.dataflow.replicas import generation_by_replica_size
from planner.validate.dataflow.replicas import predicted_s as replica_s
from planner.validate.dataflow.setups import model_named
from planner.validate.dataflow.step_fit import (
    StepConstants,
    fit_scales,
    left_out_steps_s,
    model_and_system_of,
    model_of,
)
from planner.validate.dataflow.steps import disaggregated_steps, verl_accounts
from profiles.engines import find_engine
from tests.places import DATA

RLHF = DATA / "rlhf"
needs_data = pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)")
pytestmark = pytest.mark.accuracy


@pytest.mark.parametrize(("kind", "least"), [("llama", 40), ("gpt", 30)])
def test_our_own_decode_steps_are_predicted_without_a_fit(kind: str, least: int) -> None:
    steps = [step for step in own_steps() if step.op == DECODE and step.model.name.startswith(kind)]
    assert len(steps) >= least
    errors = np.asarray([predicted_s(step) / step.time_s - 1 for step in steps[::3]])
    assert np.abs(errors).mean() < 0.05
    assert np.abs(errors).max() < 0.15


@needs_data
def test_one_gpu_per_replica_leaves_a_13b_model_hardly_any_cache() -> None:
    """HybridFlow figure 15: 227.7 s, between what all models leave room for and what the trained ones alone do.

    The former are a few sequences: one GiB more or less is a third of them.
    """
    apart, together = (replica_s("13B", 1, frozen=frozen) for frozen in (False, True))
    assert 0.85 * 227.7 < apart < 227.7 < together < 1.55 * 227.7
    assert together > 1.7 * replica_s("13B", 4)


@needs_data
def test_small_replicas_generate_faster_until_the_cache_runs_short() -> None:
    found = generation_by_replica_size(RLHF)
    assert found.passed, found.findings


@needs_data
def test_published_minimum_configurations_fit() -> None:
    with (RLHF / "verl_min_hardware.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows if not fits(row, int(row["gpus"]))] == []
    # Full training of 7B needs both of the two listed GPUs, and of 32B all eight.
    full = {row["model"]: row for row in rows if row["task"] == "GRPO"}
    assert not fits(full["Qwen2-7B"], 1)
    assert not fits(full["Qwen2-32B"], 4)


@needs_data
def test_steps_of_nemo_rl_are_ranked_and_running_ahead_gains_where_it_did() -> None:
    """Running ahead lost with Qwen3-30B3A on 16 GB200 (0.73x), also without the model on that GPU in the fit."""
    found = disaggregated_steps(RLHF)
    assert found.passed, found.findings
    assert "rank correlation 0.9" in found.findings[0]
    pattern = r"on (\d+ \w+): measured [\d.]+x, predicted ([\d.]+)x, left out ([\d.]+)x"
    gains = {
        cluster: (float(gain), float(left_out))
        for cluster, gain, left_out in re.findall(pattern, " ".join(found.findings))
    }
    assert len(gains) == 3
    assert max(gains.pop("16 GB200")) < 1
    assert min(min(pair) for pair in gains.values()) > 1.1


@needs_data
def test_steps_of_models_left_out_are_within_16_percent_on_average() -> None:
    steps, _ = nemo_steps(RLHF)
    measured = np.asarray([step.measured_s for step in steps])
    for together, most in ((model_and_system_of, 0.115), (model_of, 0.16)):
        errors = np.asarray(left_out_steps_s(steps, together)) / measured - 1
        assert np.abs(errors).mean() < most
        assert np.abs(errors).max() < 0.48


@needs_data
def test_half_of_the_gpus_train_experts_in_twice_as_many_passes() -> None:
    """Qwen3-30B: 2048 sequences over 16 or 8 ranks, forward and backward; twice forward, four times as many at once."""
    steps, _ = nemo_steps(RLHF)
    together = next(step for step in steps if (step.model, step.num_devices) == ("Qwen3-30B3A", 16))
    packed = 1.20  # of 3,298 tokens each into 4,096
    assert together.expert_passes == pytest.approx(48 * (2048 / 16) * (2 + 2 / 4) / packed, rel=0.02)  # last not full
    assert together.on_grace
    ahead = next(step for step in steps if (step.model, step.num_devices, step.ahead) == ("Qwen3-30B3A", 32, True))
    assert ahead.system.startswith("H100")
    assert not ahead.on_grace
    two_stages = 24 * (2048 / 8) * (2 + 2 / 4) / 1.18
    assert ahead.expert_passes == pytest.approx(two_stages, rel=0.04)  # and filling them
    dense = [step for step in steps if step.model in ("LLAMA3.1_8B", "Qwen3-32B")]
    assert dense
    assert not any(step.expert_passes for step in dense)


@needs_data
@pytest.mark.parametrize(("kind", "times"), [(CallKind.TRAIN, 1), (CallKind.INFERENCE, 2)])
def test_short_sequences_are_packed_and_long_ones_are_not(kind: CallKind, times: int) -> None:
    """Llama-3.1-8B: 1,192 of 4,096 tokens; one longer than half leaves no room for another as long."""
    with (RLHF / "nemo_rl_performance_summary.csv").open(encoding="utf-8", newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["model"] == "LLAMA3.1_8B")
    assert sequences_per_micro_batch(row, kind) == pytest.approx(times * 4096 / 1192, rel=0.01)
    longest = row | {"G_avg_seqlen": "4000", "tokens_per_s_per_gpu": "5367"}
    assert sequences_per_micro_batch(longest, kind) == pytest.approx(times, rel=0.03)


@pytest.mark.parametrize(
    ("packed", "rounds", "sequences"), [(7.75, 17, 8), (4.0, 32, 4), (1.2, 107, 2), (200.0, 1, 128)]
)
def test_packed_sequences_are_spread_over_the_fewest_micro_batches(packed: float, rounds: int, sequences: int) -> None:
    """128 sequences per rank and update; whole sequences are priced, and their time is that of the tokens there are."""
    call = ModelCall(
        kind=CallKind.TRAIN,
        num_sequences=2048,
        prompt_tokens=100,
        output=fixed_length(100),
        mini_batches=4,
    )
    plans, share = packed_evenly(PlanBatch.from_plans([ExecutionPlan(data_parallel=4)]), call, packed)
    assert plans.num_microbatches.tolist() == [rounds]
    assert plans.micro_batch_size.tolist() == [sequences]
    assert share[0] * rounds * sequences == pytest.approx(128)


def test_a_weight_update_costs_what_nemo_rl_publishes() -> None:
    engine = find_engine("vllm")
    sizes = {name: update_size(model_named(name)) for name in ("qwen3-30b-a3b", "qwen3-235b-a22b", "deepseek-v3")}
    assert engine.update_s(*sizes["qwen3-235b-a22b"], apart=True) == pytest.approx(5.5, rel=5e-3)
    assert engine.update_s(*sizes["deepseek-v3"], apart=True) == pytest.approx(14.0, rel=5e-3)
    together_s = {name: engine.update_s(*size, apart=False) for name, size in sizes.items()}
    assert together_s["deepseek-v3"] == pytest.approx(33.5 + 12.2 + 1.5, rel=5e-3)
    # Not used for the constants: pull request 3294 of NVIDIA-NeMo/RL, B200, before and after what it changes.
    assert 13.1 < together_s["qwen3-30b-a3b"] < 17.2
    assert 30.4 < together_s["qwen3-235b-a22b"] < 40.2


def nemo_step(**changes: Any) -> NemoStep:
    """A made-up step; everything not named is small or zero."""
    values: dict[str, Any] = {"label": "", "model": "m", "system": "s", "num_devices": 8, "on_grace": False} | {
        "ahead": False,
        "measured_s": 0.0,
        "generation_s": 100.0,
        "serving_s": 10.0,
        "passes": 4000.0,
        "train_s": 15.0,
        "logprobs_s": 5.0,
        "expert_passes": 0.0,
        "tensors": 1000,
        "weight_bytes": 1e11,
    }
    return NemoStep(**values | changes)


TRUE = StepConstants(
    host_step_s=7e-3,
    training_scale=1.3,
    expert_pass_s=4e-3,
    grace_time_scale=1.5,
)


def test_a_step_is_the_sum_of_its_calls_or_the_longer_one_and_the_update() -> None:
    generation_s, training_s = 100 + 10 + 28, 1.3 * 20
    together_s, apart_s = (find_engine("vllm").update_s(1000, 1e11, apart=apart) for apart in (False, True))
    assert together_s > apart_s > 0.9
    assert TRUE.step_s(nemo_step()) == pytest.approx(generation_s + training_s + together_s)
    assert TRUE.step_s(nemo_step(ahead=True)) == pytest.approx(generation_s + apart_s)
    assert TRUE.step_s(nemo_step(ahead=True, train_s=195.0)) == pytest.approx(260 + apart_s)


def test_grace_slows_host_time_and_nothing_else() -> None:
    generation_s, training_s = TRUE.parts_s(nemo_step(on_grace=True, expert_passes=1000.0))
    assert generation_s == pytest.approx(100 + 1.5 * (10 + 28))
    assert training_s == pytest.approx(1.3 * 20 + 1.5 * 4)


def test_scales_are_recovered_from_steps_made_with_them() -> None:
    made = [
        nemo_step(ahead=ahead, on_grace=on_grace, generation_s=generation, train_s=training, expert_passes=experts)
        for ahead, on_grace in ((False, False), (True, False), (False, True), (True, True))
        for generation, training, experts in ((100.0, 20.0, 0.0), (50.0, 90.0, 9000.0), (80.0, 40.0, 0.0))
    ]
    steps = [replace(step, measured_s=TRUE.step_s(step)) for step in made]
    found = fit_scales(steps)
    for name in ("host_step_s", "training_scale", "expert_pass_s", "grace_time_scale"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)


@needs_data
def test_verl_steps_are_the_sum_of_what_shows() -> None:
    accounts = dict(verl_accounts(RLHF))
    assert len(verl_accounts(RLHF)) == 12
    assert abs(accounts["verl_fully_async_30B fully_async"]) < 0.03
