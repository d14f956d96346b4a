"""Variants of a stack that share what is worked out once, and decisions that price hundreds of them."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import sobol_indices as scipys

import planner
from costmodels.context import CostContext
from costmodels.evaluate import outcomes
from costmodels.lowering.prices import ListedCalls
from costmodels.memory import peaks as memory
from costmodels.plan import PlanBatch
from costmodels.stack_variants import SPEEDS, StackVariants
from planner.decisions.information import sobol_indices
from planner.decisions.responses import Responses
from planner.question.request import Options, cost_context, resolve_request, space_of
from planner.validate.predict import RowPredictor
from planner.validate.stack_fit import PRIOR_STD, from_vector, to_vector
from profiles.stack import StackSpec
from profiles.stacks import load_stacks
from tests.rows import ROW

QUESTIONS: dict[str, tuple[str, str, dict[str, Any], Options]] = {
    "dense": ("llama-3-70b", "8x8xH100", {}, Options()),
    "experts": ("deepseek-v3", "32x8xH800", {"precision": "fp8"}, Options()),
    "sharded": ("llama-3-8b", "2x8xA100-80GB", {}, Options(framework="fsdp")),
    "sharding runs apart": ("llama-3-8b", "8xA100-80GB", {}, Options(framework="pytorch-autocast")),
    "paged": ("llama-2-7b", "2xA10G", {"task": "qlora", "paged_optimizer": True}, Options()),
    "offloaded": ("llama-2-13b", "8xA100-40GB", {}, Options(framework="deepspeed", offload=True)),
}


@cache
def some_plans(question: str) -> tuple[PlanBatch, CostContext]:
    """Fifty plans, spread over the space of a question."""
    model, cluster, job, options = QUESTIONS[question]
    request = resolve_request(model, cluster, {"sequence_length": 2048, **job}, None, options)
    plans = space_of(request).plans
    return plans.take(np.arange(0, len(plans), max(len(plans) // 50, 1))), cost_context(request)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_variant_takes_as_long_as_if_it_were_priced_alone(question: str) -> None:
    """To the last bit, whichever speed is another."""
    plans, context = some_plans(question)
    variants = StackVariants.of(plans, context)
    moved = 0
    for name in SPEEDS:
        if getattr(context.stack, name) <= 0:
            continue
        for shift in (-1.0, 1.5):
            stack = from_vector(context.stack, (name,), to_vector(context.stack, (name,)) + shift)
            alone = outcomes(plans, replace(context, stack=stack)).step_time_s
            assert np.array_equal(variants.step_time_s(stack), alone), name
            moved += not np.array_equal(alone, variants.step_time_s(context.stack))
    assert moved > 8


def test_runs_take_as_long_on_variants_as_if_they_were_priced_alone() -> None:
    """Also one whose recomputation nobody printed, which has to recompute to fit, and one that cannot be priced."""
    long, narrow = (
        replace(ROW.job, **{name: value}) for name, value in (("sequence_length", 2**23), ("precision", "fp8"))
    )
    rows = [
        ROW,
        *(replace(ROW, job=long, recompute_assumed=assumed) for assumed in (True, False)),
        replace(ROW, job=narrow),
    ]
    predictor = RowPredictor(rows)
    stack = load_stacks()["megatron-core"]
    on_variants = predictor.on_variants(stack)
    for name in ("gemm_time_scale", "memory_time_scale", "kernel_launch_s"):
        variant = from_vector(stack, (name,), to_vector(stack, (name,)) + 1.0)
        alone = predictor.step_times_s({stack.name: variant})
        assert np.array_equal(on_variants(variant), alone, equal_nan=True)
        assert not np.array_equal(alone, on_variants(stack), equal_nan=True)
        assert alone[1] > alone[2]
        assert np.isnan(alone).tolist() == [False, False, False, True]


def test_every_parameter_that_is_fitted_is_a_speed() -> None:
    assert set(SPEEDS) == set(PRIOR_STD)


def test_what_differs_in_more_is_no_variant() -> None:
    plans, context = some_plans("dense")
    with pytest.raises(ValueError, match="more than their speed"):
        StackVariants.of(plans, context).step_time_s(replace(context.stack, bucket_bytes=1e9))


@pytest.mark.parametrize("ask", [planner.portfolio, planner.sensitivity])
def test_price_lists_and_memory_are_asked_as_often_however_many_parameters_there_are(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the search, for candidates, for their unknowns and for trials; some eighty variants share the second."""
    listed, held = [], []
    of, terms = ListedCalls.of.__func__, memory.memory_terms  # type: ignore[attr-defined]
    monkeypatch.setattr(ListedCalls, "of", classmethod(lambda cls, lists: listed.append(1) or of(cls, lists)))
    monkeypatch.setattr(memory, "memory_terms", lambda *given, **named: held.append(1) or terms(*given, **named))
    assert ask("llama-2-7b", "8xA100-80GB", {"sequence_length": 2048, "global_batch_size": 64}).fits
    assert 1 <= len(listed) <= 4
    assert 1 <= len(held) <= 8


def test_a_parameter_that_moves_no_plan_is_tried_at_its_ends_alone() -> None:
    stack = some_plans("dense")[1].stack
    priced: list[StackSpec] = []

    def price(variant: StackSpec) -> np.ndarray:
        priced.append(variant)
        return np.full(3, variant.gemm_time_scale)

    found = Responses.of(price, stack, {"gemm_time_scale": 0.1, "memory_time_scale": 0.1})
    assert found.fields == ("gemm_time_scale",)
    assert len(priced) == 1 + 4 + 2


def test_indices_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 1024, 3))
    weights = np.array([1.0, 0.1, 0.0])
    mixed = np.array([np.where(np.arange(3) == column, other, one) @ weights for column in range(3)])
    first, whole = sobol_indices(one @ weights, other @ weights, mixed)
    values = {"f_A": (one @ weights)[None], "f_B": (other @ weights)[None], "f_AB": mixed[:, None]}
    found = scipys(func=values, n=1024)
    assert first == pytest.approx(np.clip(found.first_order.reshape(-1), 0, 1), abs=1e-12)
    assert whole == pytest.approx(np.clip(found.total_order.reshape(-1), 0, 1), abs=1e-12)
    assert whole == pytest.approx([0.99, 0.01, 0.0], abs=0.05)


def test_decisions_start_without_statistics_and_optimizers() -> None:
    code = (
        "import sys, planner.decisions.api\n"
        "print([m for m in ('scipy.stats', 'scipy.optimize', 'joblib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
