"""Rules of Hugging Face's model code under DeepSpeed, which other model code is free of."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.plan import ContextKind, Recompute
from planner.rules.base import DEEPSPEED
from tests.fakes import job, mixture
from tests.legal import broken, setting, split, violations


@pytest.mark.parametrize(("stage", "tensor", "refused"), [(3, 2, True), (2, 2, False), (3, 1, False)])
def test_deepspeed_splits_transformers_models_without_zero_3(stage: int, tensor: int, refused: bool) -> None:
    plan = split(t=tensor, d=8 // tensor, zero_stage=stage)
    assert bool(broken(plan, setting(DEEPSPEED, transformers_models=True))) == refused
    assert not broken(plan, setting(DEEPSPEED))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"p": 2, "d": 4}, "pipeline_stages_are_code"),
        ({"t": 2, "d": 4, "sequence_parallel": True}, "auto_tensor_parallel_keeps_sequences"),
        ({"d": 8, "recompute": Recompute.BLOCK, "recompute_layers": 1}, "checkpoints_every_layer_or_none"),
        ({"d": 8, "recompute": Recompute.SELECTIVE}, "checkpoints_every_layer_or_none"),
        ({"d": 8, "recompute": Recompute.FULL}, ""),
        ({"t": 2, "c": 2, "d": 2, "context_kind": ContextKind.ULYSSES}, ""),
    ],
)
def test_transformers_model_code_is_not_taken_apart_by_deepspeed(change: dict[str, Any], rule: str) -> None:
    plan = split(**change)
    assert broken(plan, setting(DEEPSPEED, transformers_models=True)) == ({rule} if rule else set())
    assert broken(plan, setting(DEEPSPEED)) == set()
    error = next(iter(violations(plan, setting(DEEPSPEED, transformers_models=True))), None)
    assert error is None or "deepspeed-megatron" in error.hint


@pytest.mark.parametrize(("precision", "refused"), [("fp8", True), ("mxfp8", True), ("bf16", False), ("tf32", False)])
def test_transformers_model_code_multiplies_in_sixteen_bits(precision: str, refused: bool) -> None:
    where = setting(DEEPSPEED, transformers_models=True, job=job(precision=precision))
    assert ("products_in_sixteen_bits" in broken(split(d=8), where)) == refused
    assert not broken(split(d=8), replace(where, transformers_models=False))
    if refused:
        (error,) = violations(split(d=8), where)
        assert error.field == "job.precision"


def test_experts_of_transformers_stay_on_every_rank() -> None:
    plan = split(d=8, expert_parallel=2)
    assert broken(plan, setting(DEEPSPEED, model=mixture(), transformers_models=True)) == {
        "experts_over_ranks_are_code"
    }
    assert broken(plan, setting(DEEPSPEED, model=mixture())) == set()
