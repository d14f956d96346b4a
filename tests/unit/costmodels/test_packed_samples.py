"""Samples packed into a sequence: attention stays inside each, all else works on the tokens of the sequence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from costmodels.flops import model_flops_per_step
from costmodels.kernels.calls import KernelOp
from costmodels.lowering.calls import Phase
from costmodels.plan import ContextKind, ExecutionPlan
from profiles.errors import SpecError
from tests.fakes import context, gpt, job, llama
from tests.unit.costmodels.lowering.test_lowering import work

QUESTION = {"model": "llama-2-7b", "cluster": "8xA100-80GB"}


FUSED = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD)


def core(sequence: int, samples: int | None, micro_batch: int, **plan: Any) -> dict[Phase, float]:
    """FLOPs of a layer's fused attention."""
    where = context(model=llama(), job=job(sequence_length=sequence, sample_tokens=samples))
    return work("attention", ExecutionPlan(micro_batch_size=micro_batch, **plan), where, FUSED)


@pytest.mark.parametrize("plan", [{}, {"context_parallel": 2, "context_kind": ContextKind.RING}])
def test_samples_are_sequences_to_attention(plan: dict[str, Any]) -> None:
    """Two packs of 4,096 tokens with samples of 512 are 16 sequences of 512."""
    assert core(4096, 512, 2, **plan) == pytest.approx(core(512, None, 16, **plan))
    assert core(4096, 4096, 2, **plan) == core(4096, None, 2, **plan)
    assert core(4096, 512, 2, **plan)[Phase.CORE] == pytest.approx(core(4096, None, 2, **plan)[Phase.CORE] / 8)


def test_flops_of_a_pack_are_those_of_its_samples() -> None:
    model = gpt()
    packed = model_flops_per_step(model, job(sequence_length=2048, global_batch_size=8, sample_tokens=256), causal=True)
    apart = model_flops_per_step(model, job(sequence_length=256, global_batch_size=64), causal=True)
    assert packed == pytest.approx(apart)
    whole = model_flops_per_step(model, job(sequence_length=2048, global_batch_size=8), causal=True)
    core_flops = 3 * 4 * model.num_layers * model.hidden_size * 0.5 * 2048 * 8  # of one key for every token
    assert whole - packed == pytest.approx(core_flops * (2048 - 256))


@settings(max_examples=10)
@given(samples=st.integers(64, 8192))
def test_shorter_samples_are_no_slower_and_take_no_more(samples: int) -> None:
    asked = {"sequence_length": 8192, "global_batch_size": 32}
    pins = {"tp": 2, "micro_batch": 1}
    whole = planner.estimate(**QUESTION, job=asked, plan=pins).best
    packed = planner.estimate(**QUESTION, job=asked | {"sample_tokens": samples}, plan=pins).best
    assert whole is not None
    assert packed is not None
    assert packed.step_time_s <= whole.step_time_s * 1.01  # shorter kernels are less efficient
    assert packed.peak_memory_bytes == pytest.approx(whole.peak_memory_bytes)


def test_what_cannot_be_is_refused() -> None:
    for value in (0, 2049):
        with pytest.raises(SpecError, match=r"job\.sample_tokens: must be between 1 and 2048"):
            planner.plan(**QUESTION, job={"sequence_length": 2048, "sample_tokens": value})
    unfused = {"sequence_length": 2048, "sample_tokens": 64, "attention": "unfused"}
    with pytest.raises(SpecError, match="needs flash attention, which skips other samples"):
        planner.plan(**QUESTION, job=unfused)
    assert replace(job(sequence_length=2048), sample_tokens=512).attended_tokens == 512
    assert np.isclose(job(sequence_length=2048).attended_tokens, 2048)
