"""What attention that runs op by op keeps of its scores, and needs beside while it is differentiated."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.memory.activations import layer_activations
from costmodels.memory.attention_activations import score_bytes
from costmodels.plan import FloatArray, PlanBatch
from profiles.model import ModelSpec
from profiles.stacks import load_stacks
from tests.fakes import gpt, job, llama, stack

STACKS = load_stacks()
LLAMA, SINKS, CAPPED = llama(), llama(attention_sinks=True), llama(attention_softcap=True)
IN_16_BITS = {"master_dtype": "none"}
AUTOCAST = {"master_dtype": "fp32"}
IN_FP32 = {"precision": "fp32"}


@pytest.mark.parametrize(
    ("model", "said", "kept", "beyond"),
    [
        (LLAMA, IN_16_BITS, 6, 6), (LLAMA, AUTOCAST, 6, 6), (LLAMA, IN_FP32, 4, 8),
        (SINKS, IN_16_BITS, 2, 4), (SINKS, AUTOCAST, 6, 6), (SINKS, IN_FP32, 4, 8),
        (CAPPED, IN_16_BITS, 8, 6), (CAPPED, AUTOCAST, 8, 6), (CAPPED, IN_FP32, 8, 8),
    ],
)  # fmt: skip
def test_bytes_per_score_are_those_that_autograd_was_seen_to_keep(
    model: ModelSpec, said: dict[str, Any], kept: float, beyond: float
) -> None:
    """Counted on transformers' ``eager_attention_forward`` of Llama, gpt-oss and Gemma 2, forward and backward."""
    assert score_bytes(model, job(attention="unfused", **said), STACKS["hf-trainer"]) == (kept, beyond)


def test_plans_that_shard_run_gpt_oss_in_16_bits() -> None:
    """Nothing is autocast there: a third of the scores that one device keeps."""
    on, tokens = job(attention="unfused", **AUTOCAST), 2048
    plans = PlanBatch.from_columns(2, zero_stage=[0, 3], data_parallel=8)

    def scores(model: ModelSpec) -> FloatArray:
        unfused, fused = (
            layer_activations(plans, model, replace(on, attention=name), STACKS["hf-trainer"], moe=False).whole
            for name in ("unfused", "flash")
        )
        return (unfused - fused) / (tokens * tokens * model.num_attention_heads)

    assert scores(LLAMA) - scores(SINKS) == pytest.approx([0, 4])


def test_frameworks_with_a_fused_softmax_keep_scores_in_their_own_format() -> None:
    unfused = job(attention="unfused")
    assert score_bytes(gpt(), unfused, stack()) == (2, 2)
    assert score_bytes(gpt(attention_sinks=True), unfused, stack()) == (2, 2)
    assert score_bytes(gpt(), unfused, stack(score_bytes=4)) == (4, 2)


def test_what_dropout_leaves_takes_the_place_of_the_cast() -> None:
    dropped = job(attention="unfused", dropout=True)
    assert score_bytes(gpt(), dropped, stack())[0] == 2 + 1 + 2
    assert score_bytes(gpt(), dropped, stack(score_bytes=6))[0] == 4 + 1 + 2
