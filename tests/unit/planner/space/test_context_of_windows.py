"""Context parallelism of models whose attention frameworks do not share in every way: windows, sinks, fp8."""

import pytest

import planner
from costmodels.plan import ContextKind
from profiles.errors import SpecError
from tests.fakes import gpt, job
from tests.legal import FSDP, broken, setting, split, violations

LONG = {"sequence_length": 65_536, "global_batch_size": 16}
PINS = {"tensor_parallel": 1, "pipeline_parallel": 1, "context_parallel": 4}


@pytest.mark.parametrize(
    ("model", "legal"),
    [("llama-3-8b", "ring all_gather ulysses"), ("mistral-7b-v0.1", "all_gather ulysses"), ("gpt-oss-20b", "ulysses")],
)
def test_windows_exclude_rings_and_sinks_all_but_ulysses(model: str, legal: str) -> None:
    for kind in ("ring", "all_gather", "ulysses"):
        pins = {**PINS, "context_kind": kind}
        if kind in legal.split():
            found = planner.plan(model, "2x8xH200", LONG, pins=pins, framework="megatron-core")
            assert {item.plan.context_kind.name.lower() for item in found.plans} == {kind}
            continue
        with pytest.raises(SpecError, match="which Transformer Engine does not share as") as caught:
            planner.estimate(model, "2x8xH200", LONG, plan=pins, framework="megatron-core")
        assert caught.value.field == "plan.context_kind"
        assert caught.value.hint == "context_kind " + " or ".join(reversed(legal.split()))


def test_no_plan_of_a_long_context_is_one_that_would_be_refused() -> None:
    for model, refused in (("mistral-7b-v0.1", {"ring"}), ("gpt-oss-20b", {"ring", "all_gather"})):
        found = planner.plan(model, "4x8xH100", LONG, framework="megatron-core")
        kinds = {item.plan.context_kind.name.lower() for item in found.plans if item.plan.context_parallel > 1}
        assert not kinds & refused


RING, GATHER = (split(c=2, d=4, zero_stage=3, context_kind=kind) for kind in (ContextKind.RING, ContextKind.ALL_GATHER))


def test_rings_of_fsdp_are_what_accelerate_runs() -> None:
    """It refuses windows, and in 8 bits runs other products than torchtitan's; neither concerns gathered keys."""
    assert broken(RING, setting(FSDP)) == broken(GATHER, setting(FSDP)) == set()
    windows = setting(FSDP, model=gpt(sliding_window=512, windowed_layers=8))
    for where, hint in (
        (windows, "context_kind all_gather"),
        (setting(FSDP, job=job(precision="fp8")), "context_kind all_gather; or precision bf16, master_dtype, "),
    ):
        assert broken(GATHER, where) == set()
        (error,) = violations(RING, where)
        assert error.field == "plan.context_kind"
        assert error.hint == hint if where is windows else error.hint.startswith(hint)


def test_fsdp_does_not_share_a_context_of_sinks() -> None:
    """torchtitan's gpt-oss has variable-length attention alone, Accelerate refuses its windows."""
    with pytest.raises(SpecError, match=r"^plan\.context_parallel: gpt-oss-20b has attention sinks"):
        planner.estimate("gpt-oss-20b", "8xH100", LONG, plan={"cp": 2, "zero": 3}, framework="fsdp")
    found = planner.plan("gpt-oss-20b", "2x8xH200", LONG, framework="fsdp")
    assert {item.plan.context_parallel for item in found.plans} == {1}


@pytest.mark.parametrize(("framework", "plan"), [("fsdp", {"cp": 2, "zero": 3}), ("megatron-core", {"cp": 2})])
def test_nobody_but_ulysses_shares_a_context_of_capped_logits(framework: str, plan: dict[str, int]) -> None:
    """Megatron-Bridge has its own attention for Gemma 2, Accelerate shares PyTorch's alone, which caps nothing."""
    with pytest.raises(SpecError, match=r"^plan\.context_parallel: gemma-2-9b caps attention's logits"):
        planner.estimate("gemma-2-9b", "8xH100", LONG, plan=plan, framework=framework)


def test_ulysses_shares_no_eager_attention() -> None:
    for model in ("gemma-2-9b", "gpt-oss-20b"):
        with pytest.raises(SpecError, match=r"^plan\.context_parallel: Ulysses shares no eager attention"):
            planner.estimate(model, "8xH100", LONG, plan={"cp": 2, "zero": 1}, framework="deepspeed")
        assert planner.estimate(
            model, "8xH100", LONG | {"attention": "flash"}, plan={"cp": 2, "zero": 1}, framework="deepspeed"
        ).best
