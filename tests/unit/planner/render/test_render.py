"""Tables for a terminal: readable at 80 columns, complete, and silent about what does not apply."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from costmodels.memory.peaks import memory_error_factor
from planner import api
from planner.render.plans import render, render_front
from planner.results import PlanResult
from profiles.units import GIB

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


def shown(result: PlanResult, *, width: int = 100, quiet: bool = False) -> str:
    stream = io.StringIO()
    render(result, Console(file=stream, width=width), quiet=quiet)
    return stream.getvalue()


@pytest.fixture(scope="module")
def ranking() -> PlanResult:
    return api.plan("llama-2-7b", "8xA100-80GB", JOB)


@pytest.fixture(scope="module")
def pipeline() -> PlanResult:
    pins = {"tp": 2, "pp": 4, "recompute": "selective", "sp": True}
    return api.estimate("llama-2-7b", "8xA100-80GB", JOB | {"train_tokens": 1e12}, plan=pins)


def test_ranking(ranking: PlanResult) -> None:
    text = shown(ranking)
    lines = text.splitlines()
    assert lines[0] == "llama-2-7b (6.74B parameters) on 8 x A100-SXM-80GB"
    assert "64 sequences of 2048 tokens per step, megatron-core" in lines[1]
    assert lines[2].split()[:4] == ["#", "tp", "pp", "dp"]
    assert [line.split()[0] for line in lines[3:13]] == [str(rank) for rank in range(1, 11)]
    best = ranking.plans[0]
    assert f"{best.peak_memory_bytes / 2**30:.1f}" in lines[3]
    assert f"{best.mfu * 100:.1f}" in lines[3]
    assert f"{ranking.considered:,} legal plans priced, {ranking.fitting:,} fit" in text
    assert "the best plans that differ" in text
    assert "precision bf16 (not given)" in text


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(ranking: PlanResult, pipeline: PlanResult, width: int) -> None:
    for result in (ranking, pipeline):
        text = shown(result, width=width)
        assert "…" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_plans_that_offload_all_they_can_are_not_cut_off_either() -> None:
    job = {"task": "qlora", "sequence_length": 512, "global_batch_size": 16}
    offloading = api.plan("llama-3-70b", "2xRTX-4090", job, offload=True)
    text = shown(offloading, width=80)
    assert "weight" in text
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_optional_columns_appear_when_used(ranking: PlanResult) -> None:
    assert " ep " not in shown(ranking).splitlines()[2]
    experts = api.plan("mixtral-8x7b", "4x8xH100", JOB, top=3)
    assert " ep " in shown(experts).splitlines()[2]
    assert "12.9B active" in shown(experts)
    sizes = api.plan("llama-2-7b", "32xA100", JOB, objective="cost")
    assert " gpus " in shown(sizes).splitlines()[2]
    assert "GPU time" in shown(sizes)


def test_one_plan_in_full(pipeline: PlanResult) -> None:
    best = pipeline.plans[0]
    text = shown(pipeline)
    assert "tp2 pp4 dp1 " in text
    assert "sequence parallel" in text
    told = re.search(
        r"fits: (\S+) GiB of \S+ GiB usable \((\S+) GiB to (\S+) GiB on setups seen before\), \S+ % risk", text
    )
    assert told is not None
    peak, low, high = map(float, told.groups())
    usual = memory_error_factor(pipeline.request.stack, unseen_publisher=False)
    assert (peak / low, high / peak) == pytest.approx((usual, usual), rel=0.02)
    assert "MFU" in text
    assert "causal attention counted in half" in text
    assert "backward" in text
    assert "GPU-hours" in text
    assert "$" not in text
    memory = text[text.index("memory per GPU") :]
    assert "stage 0" in memory
    for part in ("weights", "gradients", "optimizer states", "activations", "usable", "total"):
        assert part in memory
    assert f"{best.peak_memory_bytes / 2**30:.2f}" in memory


def test_prices_come_with_their_date() -> None:
    answer = api.estimate(
        "llama-2-7b", "8xA100", JOB | {"train_tokens": 1e12}, price_per_device_hour_usd=2.5, price_date="2026-11"
    )
    assert "at $2.50 per GPU-hour of 2026-11" in shown(answer).replace("\n", " ")


def test_rankings_say_what_the_run_takes_and_costs() -> None:
    priced = {"price_per_device_hour_usd": 2.0, "top": 2}
    text = shown(api.plan("llama-2-7b", "8xA100-80GB", JOB | {"train_tokens": 1e12}, **priced), width=200)
    run = api.plan("llama-2-7b", "8xA100-80GB", JOB | {"train_tokens": 1e12}, **priced).plans[0].run
    assert run is not None
    assert f"with the best, 1T tokens: {run.duration_s / 86400:,.1f} days, {run.device_hours:,.0f} GPU-hours" in text
    result = api.plan("llama-2-7b", "8xA100-80GB", JOB, **priced)
    hours = 8 * 1e9 / result.plans[0].tokens_per_s / 3600
    assert f"with the best, ${2 * hours:,.0f} per billion tokens, {hours:,.0f} GPU-hours" in shown(result, width=200)


def test_a_short_run_is_not_rounded_to_nothing() -> None:
    answer = api.estimate("llama-3.2-1b", "1xA100", JOB | {"task": "lora", "train_tokens": 2e7})
    run = answer.plans[0].run
    assert run is not None
    words = f"{run.device_hours:.2g} GPU-hours, at most {run.energy_j / 3.6e6:.2g} kWh for the GPUs"
    assert run.device_hours < 1
    assert words in shown(answer, width=200)


def test_plans_on_part_of_the_cluster_say_on_how_many_gpus() -> None:
    part = api.plan("llama-2-7b", "8xA100-80GB", JOB, objective="fewest_gpus", top=2)
    assert {plan.num_devices for plan in part.plans} == {2}
    assert shown(part).splitlines()[2].split()[:2] == ["#", "gpus"]


def test_long_pipelines_are_summarised() -> None:
    answer = api.estimate("gpt3-175b", "16x8xA100", JOB, plan={"tp": 8, "pp": 16, "vpp": 1, "recompute": "full"})
    text = shown(answer, width=80)
    assert "stage 0" in text
    assert "stage 15" in text
    assert "stages 2-14" in text


def test_stages_shown_together_say_how_they_differ() -> None:
    """Layers of stages 2 to 6 are 5, 5, 5, 4 and 4: one number for all would not add up to the model's 32."""
    plan = {"tp": 1, "pp": 8, "recompute": "full", "micro_batch": 1, "first_stage_layers": 2, "last_stage_layers": 2}
    answer = api.estimate("llama-3-8b", "8xRTX-4090", {"global_batch_size": 64}, plan=plan)
    stages = answer.plans[0].stages
    assert sum(stage.layers for stage in stages) == 32
    rows = {line[:20].strip(): line[20:].split() for line in shown(answer).splitlines()}
    assert rows["layers"] == ["2", "5", "4-5", "2"]
    assert rows["micro-batches held"] == ["8", "7", "2-6", "1"]


def test_what_does_not_fit() -> None:
    answer = api.plan("llama-3-70b", "8xA100", JOB)
    text = shown(answer)
    assert "Nothing fits." in text
    assert "Nearest: tp" in text
    assert "too much" in text
    assert "What would fit:" in text
    assert "use 24 devices: fits" in text
    nearest = shown(api.estimate("llama-3-70b", "8xA100", JOB))
    assert "does not fit: " in nearest


def test_a_little_too_much_is_not_nothing() -> None:
    answer = api.plan("llama-3-70b", "8xA100", JOB)
    infeasible = answer.infeasible
    assert infeasible is not None
    assert infeasible.nearest is not None
    nearest, usable_bytes = infeasible.nearest, infeasible.nearest.usable_memory_bytes

    def told(over_bytes: float) -> str:
        barely = replace(nearest, peak_memory_bytes=usable_bytes + over_bytes)
        return shown(replace(answer, infeasible=replace(infeasible, nearest=barely)))

    assert ", less than 0.1 GiB too much" in told(0.01 * GIB)
    assert ", 0.1 GiB too much" in told(0.06 * GIB)


def test_what_is_legal_and_what_fits_are_told_apart(ranking: PlanResult) -> None:
    text = " ".join(shown(ranking).split())
    at_risk = (
        f" ({ranking.fitting - ranking.likely:,} at 20 % risk or more)" if ranking.likely < ranking.fitting else ""
    )
    assert f"{ranking.fitting:,} fit{at_risk}, {ranking.rejected['out_of_memory']:,} out of memory" in text
    assert "not legal: " in text
    assert "out of memory" not in text[text.index("not legal: ") : text.index("the best plans")]


def test_interleaving_and_uneven_stages_show(pipeline: PlanResult) -> None:
    interleaved = api.estimate("llama-2-7b", "8xA100", JOB, plan={"tp": 2, "pp": 4, "vpp": 2})
    assert "interleaved 1f1b" in shown(interleaved)
    uneven = api.estimate("llama-2-7b", "8xA100", JOB, plan={"tp": 4, "pp": 2, "last_stage_layers": 14})
    assert "14 on the last stage" in shown(uneven)
    alone = api.estimate("llama-2-7b", "8xA100", JOB, plan={"tp": 4, "pp": 2, "first_stage_layers": 1})
    assert "1 layer on the first stage" in shown(alone)


def test_quiet_leaves_out_notes(ranking: PlanResult) -> None:
    assert "Assumed" not in shown(ranking, quiet=True)
    assert "Assumed" in shown(ranking)


def test_front(ranking: PlanResult) -> None:
    stream = io.StringIO()
    render_front(ranking, Console(file=stream, width=100))
    lines = stream.getvalue().strip().splitlines()
    assert lines[0].split() == ["step", "memory", "risk", "gpus", "plan"]
    assert len(lines) == 1 + min(len(ranking.pareto), 12)
