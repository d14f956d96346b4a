"""How likely plans are to run out of memory, and the nearest of plans none of which fits."""

from typing import Any

import numpy as np
import pytest

import planner
from costmodels.evaluate import evaluate, lean_peak_bytes
from costmodels.memory import peaks as memory
from planner import api
from planner.answer.bounded_peaks import CHUNK_ROWS
from planner.question.request import cost_context, given_options, resolve_request, space_of


def test_the_risk_of_running_out_of_memory_tells_peaks_at_the_limit_apart() -> None:
    """Allocators keep what is free while there is room: such plans are all as large as the device, and not as risky."""
    ranking = api.plan("qwen3-30b-a3b", "4x8xH100", top=20, max_oom_risk=1)
    full = [item for item in ranking.plans if item.headroom_bytes < 1e-3 * item.usable_memory_bytes]
    assert len(full) > 1
    risks = [item.oom_probability for item in full]
    assert max(risks) > min(risks) + 0.05
    tried = planner.portfolio("qwen3-30b-a3b", "4x8xH100", count=2).trials
    for trial in tried:
        (same,) = [item for item in ranking.plans if item.plan == trial.plan]
        assert same.oom_probability == pytest.approx(trial.oom_probability, abs=0.02)  # of scenarios drawn


def test_more_memory_is_less_risk() -> None:
    """A peak of 0.92 and of 0.52 of the memory."""
    pins = {"tp": 2, "pp": 2, "micro_batch_size": 2, "zero": 1, "recompute": "none"}
    risks = []
    for cluster in ("8xA100-80GB", "8xH200"):
        best = api.estimate("llama-2-13b", cluster, plan=pins).best
        assert best is not None
        risks.append(best.oom_probability)
    assert 0 < risks[1] < risks[0] / 3 < 1


def test_of_more_plans_than_are_priced_at_once_of_which_none_fits_the_nearest_is_told() -> None:
    """Those that do not fit are not timed then."""
    answer = api.plan("llama-3-405b", "4x8xA100-40GB", {"sequence_length": 8192, "global_batch_size": 64})
    assert answer.considered > CHUNK_ROWS
    assert answer.infeasible is not None
    assert answer.infeasible.nearest is not None
    assert answer.infeasible.nearest.step_time_s < 1e6


@pytest.mark.parametrize(
    ("model", "cluster", "settings"),
    [
        ("llama-2-13b", "8xA100-80GB", {}),
        ("deepseek-v3", "16x8xH100", {"precision": "fp8"}),
        ("llama-3-8b", "8xA100-80GB", {"framework": "fsdp"}),
        ("llama-3-8b", "8xA100-80GB", {"framework": "deepspeed"}),
        ("llama-2-7b", "2xA10G", {"task": "qlora", "paged_optimizer": True}),
    ],
)
def test_what_plans_need_follows_from_tensors_that_were_priced(model: str, cluster: str, settings: Any) -> None:
    """Of every plan of a space, or of each of some hundred, to the last bit."""
    job = {name: value for name, value in settings.items() if name != "framework"}
    request = resolve_request(
        model,
        cluster,
        {"sequence_length": 2048, **job},
        None,
        given_options(None, {"framework": settings.get("framework")}),
    )
    plans, context = space_of(request).plans, cost_context(request)
    some = plans.take(np.arange(0, len(plans), max(len(plans) // 500, 1)))
    assert len(np.unique(some.zero_stage)) > 1 or len(plans) < 100
    for full in (False, True):
        tensors = evaluate(some, context, full=full).tensors
        assert np.array_equal(lean_peak_bytes(some, context, tensors), lean_peak_bytes(some, context))


def test_an_estimate_prices_its_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The risk of running out of memory takes no second look at the tensors."""
    priced: list[int] = []
    terms = memory.memory_terms

    def counting(plans: Any, *arguments: Any, **named: Any) -> Any:
        priced.append(len(plans))
        return terms(plans, *arguments, **named)

    monkeypatch.setattr(memory, "memory_terms", counting)
    best = api.estimate("llama-2-13b", "8xA100-80GB", plan=planner.ExecutionPlan(tensor_parallel=8)).best
    assert best is not None
    assert 0 <= best.oom_probability < 1
    assert priced == [1]
