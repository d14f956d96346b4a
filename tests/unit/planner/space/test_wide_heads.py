"""Gemma 4's heads of 512, which some frameworks have no fused kernel for, and degrees that split both of its kinds."""

from typing import Any

import pytest

import planner
from profiles.errors import SpecError

JOB: dict[str, Any] = {"sequence_length": 4096, "global_batch_size": 64}
LORA: dict[str, Any] = JOB | {"task": "lora", "lora_targets": "q,k,v,o"}
MODEL = "gemma-4-26b-a4b"


def said(answer: Any) -> list[str]:
    return [note.message for note in answer.request.assumptions if note.field == "job.attention"]


def test_megatron_runs_them_unfused_and_says_so() -> None:
    plan = {"tensor_parallel": 2, "expert_parallel": 2, "zero_stage": 1}
    wide = planner.estimate("gemma-4-31b", "8xB200", JOB, plan={"tensor_parallel": 8}, framework="megatron")
    (words,) = said(wide)
    assert words.startswith("attention of heads of 512 unfused, as Megatron-LM has no fused one for more than 256")
    answer = planner.estimate(MODEL, "8xB200", JOB | {"attention": "flash"}, plan=plan, framework="megatron")
    assert said(answer) == [words]
    assert said(planner.estimate("gemma-3-27b", "8xB200", JOB, plan={"tensor_parallel": 8}, framework="megatron")) == []
    assert said(planner.estimate(MODEL, "8xB200", JOB, framework="fsdp")) == []


def test_megatron_shares_no_context_of_theirs() -> None:
    plan = {"context_parallel": 2, "tensor_parallel": 2}
    with pytest.raises(SpecError, match=r"^plan\.context_parallel: gemma-4-31b has heads of 512.* Hint: cp 1"):
        planner.estimate("gemma-4-31b", "8xB200", JOB, plan=plan, framework="megatron")
    assert planner.estimate("gemma-4-31b", "8xB200", JOB, plan=plan | {"zero_stage": 3}, framework="fsdp").best


def test_transformers_has_no_flash_attention_for_them() -> None:
    told = r"attention_library: gemma-4-26b-a4b has heads of 512, and flash_2 takes 256 at most\. Hint: leave it out"
    with pytest.raises(SpecError, match=told):
        planner.estimate(MODEL, "8xH100", LORA | {"attention_library": "flash_2"}, framework="huggingface")
    assert planner.estimate("gemma-3-27b", "8xH100", LORA | {"attention_library": "flash_2"}, framework="huggingface")


@pytest.mark.parametrize(("framework", "t", "legal"), [("megatron", 8, True), ("fsdp", 8, False), ("fsdp", 4, True)])
def test_degrees_split_the_heads_of_both_kinds(framework: str, t: int, legal: bool) -> None:
    """16 key/value heads within the window and 4 without: Megatron repeats heads beyond those, torchtitan does not."""
    plan = {"tensor_parallel": t, "sequence_parallel": True}
    if legal:
        assert planner.estimate("gemma-4-31b", "8xB200", JOB, plan=plan, framework=framework).best
        return
    with pytest.raises(SpecError, match=r"^plan\.tensor_parallel: must divide num_key_value_heads=4; got 8"):
        planner.estimate("gemma-4-31b", "8xB200", JOB, plan=plan, framework=framework)


def test_engines_serve_both_kinds() -> None:
    pins = {"tensor_parallel": 2}
    short, long = (planner.serving(MODEL, "2xH100", prompt=n, generate=500, pins=pins).plans[0] for n in (4000, 8000))
    assert short.memory.weights == long.memory.weights == pytest.approx(25.2e9, rel=0.02)
    # 25 layers keep 1,024 tokens of 4 heads of 256 on a rank, 5 all tokens of 1 of 512: a prompt, and half of what is
    # generated on average.
    each = [4 * (25 * 1024 * 4 * 256 + 5 * (n + 250) * 512) for n in (4000, 8000)]
    assert long.most_requests / short.most_requests == pytest.approx(each[0] / each[1], rel=0.02)


def test_an_export_says_what_megatron_cannot_build() -> None:
    with pytest.raises(SpecError) as caught:
        planner.export("gemma-4-31b", "8xB200", JOB, format="megatron-lm", framework="megatron")
    assert "nor model.windowed_layers, model.windowed_attention, model.keys_are_values, model.value_norm" in str(
        caught.value
    )
