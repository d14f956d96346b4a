"""Liger's kernels in Hugging Face's model code under DeepSpeed, and attention op by op there."""

from dataclasses import replace

import pytest

from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from profiles.stacks import load_stacks
from tests.fakes import job, llama
from tests.published import mapped

MODEL = llama(num_key_value_heads=4)
STACKS = load_stacks()
PLANS = PlanBatch.from_plans([ExecutionPlan(zero_stage=3)])
FULL = job(task="full")
TOKENS = FULL.sequence_length


def test_gradients_of_the_gate_are_written_over_its_inputs() -> None:
    """Of gate, up and their product one gradient is left, that of the product: 2 x 2 bytes a unit of width less."""
    liger = STACKS["deepspeed-liger"]
    here, apart = (
        layer_activations(PLANS, MODEL, FULL, replace(liger, activation_in_place=flag), moe=False)
        for flag in (True, False)
    )
    assert here.whole == pytest.approx(apart.whole)
    assert apart.backward - here.backward == pytest.approx(2 * 2 * MODEL.ffn_hidden_size * TOKENS)


def test_fused_norms_and_gates_keep_their_inputs_alone() -> None:
    """Two norms: no fp32 copy nor normalised tensor, 4 bytes; the gate no activated one, 2."""
    eager, liger = (
        layer_activations(PLANS, MODEL, FULL, STACKS[name], moe=False) for name in ("deepspeed", "deepspeed-liger")
    )
    less = (2 * 4 * MODEL.hidden_size + 2 * MODEL.ffn_hidden_size) * TOKENS
    assert eager.whole - liger.whole == pytest.approx(less)


def test_notes_that_name_the_kernels_pick_them() -> None:
    row = {"framework": "DeepSpeed of 2025 (model code as SFTTrainer's, Ulysses switched off)", "task": "full"}
    assert mapped(**row, notes="Liger kernels: fused linear cross-entropy").stack == "deepspeed-liger"
    assert mapped(**row).stack == "deepspeed"


@pytest.mark.parametrize(("name", "each"), [("deepspeed", 6), ("deepspeed-2024", 6), ("deepspeed-megatron", 2)])
def test_attention_op_by_op_keeps_the_fp32_softmax_and_its_cast(name: str, each: float) -> None:
    """Hugging Face's code makes both, whoever runs it; Megatron's fused kernel answers in 16 bits."""
    unfused = replace(FULL, attention="unfused")
    found = layer_activations(PLANS, MODEL, unfused, STACKS[name], moe=False).whole
    other = layer_activations(PLANS, MODEL, unfused, replace(STACKS[name], score_bytes=2), moe=False).whole
    assert found - other == pytest.approx((each - 2) * MODEL.num_attention_heads * TOKENS * TOKENS)
    assert STACKS["hf-trainer"].score_bytes == STACKS["deepspeed"].score_bytes
