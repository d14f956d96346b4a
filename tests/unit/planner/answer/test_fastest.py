"""The fastest plans that fit are those of all that fit, though most of these are not priced."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import outcomes
from costmodels.plan import PlanBatch
from planner.answer import bounded_peaks, fastest
from planner.answer.bounded_peaks import BoundedPeaks
from planner.answer.fastest import price_fastest
from planner.answer.pricing import price_contenders
from planner.answer.risks import with_likely
from planner.question.request import Options, cost_context, resolve_request, space_of
from planner.ranking import Priced, best_rows
from planner.results import RISKY

MANY = 64
PAGED = {"task": "qlora", "optimizer": "adamw8bit", "paged_optimizer": True}
QUESTIONS: dict[str, tuple[str, str, dict[str, Any], Options]] = {
    "dense": ("llama-3-70b", "8x8xH100", {}, Options()),
    "long": ("llama-3-8b", "2x8xH100", {"sequence_length": 65536}, Options()),
    "experts": ("mixtral-8x7b", "4x8xH100", {}, Options()),
    "latent attention": ("deepseek-v3", "32x8xH800", {"precision": "fp8"}, Options()),
    "fsdp": ("qwen2.5-32b", "2x8xA100-80GB", {}, Options(framework="fsdp")),
    "passes side by side": ("mixtral-8x7b", "4x8xH100", {}, Options(framework="megatron-core-ep-overlap")),
    "named modules": ("deepseek-v2-lite", "2x8xH100", {"sequence_length": 32768}, Options(named_modules=True)),
    "deepspeed": ("llama-2-13b", "2x8xA100-40GB", {}, Options(framework="deepspeed")),
    "autocast": ("llama-2-7b", "8xA100-80GB", {}, Options(framework="pytorch-autocast")),
    "offloaded": ("llama-2-70b", "8xA100-80GB", {}, Options(offload=True)),
    "paged": ("llama-2-13b", "8xA100-40GB", PAGED, Options()),
    "nothing fits": ("llama-3-405b", "2x8xA100-40GB", {}, Options()),
}


@cache
def asked(question: str) -> tuple[PlanBatch, CostContext]:
    model, cluster, job, options = QUESTIONS[question]
    request = resolve_request(model, cluster, {"sequence_length": 4096, **job}, None, options)
    return space_of(request).plans, cost_context(request)


def told(priced: Priced, rows: Any) -> list[tuple[Any, ...]]:
    """Plans in order, with what is said of them."""
    return [
        (priced.plans.plan(row), priced.step_time_s[row], priced.peak_memory_bytes[row], priced.host_memory_bytes[row])
        for row in np.asarray(rows).tolist()
    ]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_best_are_those_of_all(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, however few are looked at to begin with."""
    monkeypatch.setattr(fastest, "CHUNK_ROWS", 0)
    plans, context = asked(question)
    every = price_contenders(plans, context)
    for first_rows, count, most_risk in ((64, MANY, 1.0), (64, MANY, RISKY), (1024, 1, RISKY), (1024, 1, 0.02)):
        monkeypatch.setattr(fastest, "_FIRST_ROWS", first_rows)
        found = price_fastest(plans, context, count=count, most_risk=most_risk)
        every = with_likely(every, context, most_risk)
        for objective, many in (("step_time", count), ("memory_headroom", 1)):
            best, expected = (best_rows(each, objective=objective, count=many) for each in (found, every))
            assert told(found, best) == told(every, expected)
        assert found.fits.all() == every.fits.all()


@pytest.mark.parametrize("question", QUESTIONS)
def test_recomputing_shortens_no_step(question: str) -> None:
    plans, context = asked(question)
    bounded = BoundedPeaks.of(plans, context)
    if len(bounded.first) == len(plans):
        pytest.skip("no neighbours")
    steps = fastest._Steps.of(bounded, np.arange(len(bounded.first)), 1.0)
    some = np.arange(0, len(plans), max(len(plans) // 20_000, 1))
    step_time_s = outcomes(plans.take(some), context).step_time_s
    assert (step_time_s >= steps.least_s[steps.of_row[some]] * (1 - 1e-9)).all()


def test_of_a_large_space_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    peaks, timed = bounded_peaks.peaks, fastest.timed

    def counting(plans: PlanBatch, *rest: Any) -> Any:
        looked_at.append(len(plans))
        return peaks(plans, *rest)

    def counting_steps(plans: PlanBatch, *rest: Any) -> Any:
        looked_at.append(len(plans))
        return timed(plans, *rest)

    monkeypatch.setattr(bounded_peaks, "peaks", counting)
    monkeypatch.setattr(fastest, "timed", counting_steps)
    request = resolve_request("llama-3-70b", "64x8xH100", {"sequence_length": 8192}, None, Options())
    plans, context = space_of(request).plans, cost_context(request)
    found = price_fastest(plans, context, count=MANY, most_risk=RISKY)
    assert len(plans) > 150_000
    assert len(found) < len(plans) / 20
    assert 0 < sum(looked_at) < len(plans) / 3
