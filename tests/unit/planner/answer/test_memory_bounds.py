"""Bounds of peaks hold whatever is recomputed, and looking at fewer plans for them changes no answer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import least_peaks, outcomes, peaks
from costmodels.plan import PlanBatch
from planner.answer import bounded_peaks, pricing
from planner.answer.bounded_peaks import least_peak_bytes
from planner.answer.pricing import price_all, price_contenders, price_fitting
from planner.question.request import Options, cost_context, resolve_request, setting_of
from planner.ranking import nearest_rows
from planner.space.enumeration import plan_space

LONG = {"sequence_length": 32768, "global_batch_size": 64}
# Stacks that keep, cast, gather or page what others do not, and models with experts, latent attention or both.
QUESTIONS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("llama-2-13b", "8xA100-40GB", {}, {}),
    ("llama-2-13b", "8xA100-40GB", {"attention": "unfused"}, {"named_modules": True}),
    ("qwen3-30b-a3b", "2x8xH100", LONG, {"named_modules": True}),
    ("deepseek-v2-lite", "2x8xH100", LONG, {}),
    ("llama-2-13b", "8xA100-40GB", {}, {"framework": "fsdp"}),
    ("llama-2-13b", "8xA100-40GB", {}, {"framework": "deepspeed"}),
    ("llama-2-13b", "8xA100-40GB", {"task": "lora"}, {"framework": "fsdp"}),
    ("llama-2-13b", "8xA100-40GB", {"task": "qlora", "optimizer": "adamw8bit", "paged_optimizer": True}, {}),
    ("llama-2-13b", "8xA100-40GB", {"task": "full"}, {"framework": "huggingface"}),
)


def space(number: int) -> tuple[PlanBatch, CostContext]:
    model, cluster, job, options = QUESTIONS[number]
    request = resolve_request(model, cluster, job, None, Options(**options))
    return plan_space(setting_of(request), domain_devices=8, named_modules=request.named_modules).plans, cost_context(
        request
    )


@pytest.mark.parametrize("number", range(len(QUESTIONS)))
def test_no_plan_takes_less_than_its_bound_and_some_not_much_more(number: int) -> None:
    plans, context = space(number)
    every = replace(plans, recompute_modules=np.full(len(plans), np.bitwise_or.reduce(plans.recompute_modules)))
    least, exact = least_peaks(every, context), peaks(plans, context).peak_memory_bytes
    assert (least <= exact * (1 + 1e-9)).all()
    assert (least > 0.9 * exact).any()


def test_a_bound_without_optimizer_states_would_be_too_low() -> None:
    """Half of what a model of little context takes without recomputation."""
    plans, context = space(0)
    least, exact = least_peaks(plans, context), peaks(plans, context).peak_memory_bytes
    assert np.median(least / exact) > 0.6


# Every plan is priced, which takes long of the two questions with most.
NUMBERS = [pytest.param(n, marks=[pytest.mark.long] * (n in (2, 3))) for n in range(len(QUESTIONS))]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("usable", [1.0, 0.3, 0.02])
def test_what_fits_or_comes_nearest_is_known_exactly(
    number: int, usable: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pricing, bounded_peaks):
        monkeypatch.setattr(module, "CHUNK_ROWS", 499)
    plans, context = space(number)
    given = context.cluster.device
    device = replace(given, usable_memory_bytes=given.usable_memory_bytes * usable)
    node = replace(context.cluster.node, device=device)
    context = replace(context, cluster=replace(context.cluster, node=node))
    every, found = price_all(plans, context), price_fitting(plans, context)
    known = np.isfinite(found.peak_memory_bytes)
    np.testing.assert_array_equal(found.fits, every.fits)
    np.testing.assert_allclose(found.peak_memory_bytes[known], every.peak_memory_bytes[known], rtol=1e-12)
    np.testing.assert_allclose(found.step_time_s[every.fits], every.step_time_s[every.fits], rtol=1e-12)
    assert (every.peak_memory_bytes[~known] > device.usable_memory_bytes).all()
    if not every.fits.any():
        limits = {"usable_bytes": device.usable_memory_bytes, "host_bytes": node.host_memory_bytes}
        nearest = [nearest_rows(each.peak_memory_bytes, each.host_memory_bytes, **limits) for each in (every, found)]
        np.testing.assert_array_equal(*nearest)
        assert len(price_contenders(plans, context)) == nearest[0].sum()
    assert least_peak_bytes(plans, context) == pytest.approx(every.peak_memory_bytes.min(), rel=1e-12)


def test_offloaded_activations_are_not_bounded_and_lose_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pricing, bounded_peaks):
        monkeypatch.setattr(module, "CHUNK_ROWS", 999)
    request = resolve_request("llama-2-13b", "8xA100-40GB", None, None, Options())
    plans = plan_space(setting_of(request), domain_devices=8, offload=True).plans
    context = cost_context(request)
    assert plans.offload_activations.any()
    every, found = price_all(plans, context), price_fitting(plans, context)
    np.testing.assert_allclose(found.peak_memory_bytes, every.peak_memory_bytes, rtol=1e-12)


def test_a_large_space_is_looked_at_in_part_and_timed_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not clocked: of most plans that do not fit not even the memory is worked out."""
    looked: dict[str, int] = {"bounds": 0, "peaks": 0, "steps": 0, "blocks": 0}

    def counting(name: str, function: Any) -> Any:
        def counted(plans: PlanBatch, *given: Any, **named: Any) -> Any:
            looked[name] += len(plans) if name != "blocks" else 1
            return function(plans, *given, **named)

        return counted

    monkeypatch.setattr(pricing, "outcomes", counting("steps", outcomes))
    for name, function in (("bounds", least_peaks), ("peaks", peaks)):
        monkeypatch.setattr(bounded_peaks, function.__name__, counting(name, function))
    monkeypatch.setattr(pricing, "layer_costs", counting("blocks", pricing.layer_costs))
    job = {"sequence_length": 131072, "global_batch_size": 128}
    request = resolve_request("deepseek-v3", "16x8xH100", job, None, Options())
    plans = plan_space(setting_of(request), domain_devices=8).plans
    found = price_fitting(plans, cost_context(request))
    assert len(plans) > 300_000
    assert looked["bounds"] < len(plans) / 5
    assert looked["peaks"] < len(plans) / 2
    assert looked["steps"] == found.fits.sum() < len(plans) / 20
    assert looked["blocks"] == 1
