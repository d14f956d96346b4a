"""Unsloth's kernels: what they keep and read, tensor by tensor, beside PEFT's on the same model.

One layer of Llama's shape: h = 1024, f = 4h, sixteen heads, four of keys and values.
"""

import pytest

from costmodels.evaluate import evaluate, peaks
from costmodels.lowering.elementwise import ADAPTERS, LOSSES, NORMS
from costmodels.memory.activations import layer_activations
from costmodels.memory.logits import logits_bytes
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.workload import LORA_TARGETS, LoraSpec
from planner.rules.base import Setting
from planner.space.constraints import check_plan
from profiles.catalog import default_catalog
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack
from profiles.units import GIB
from tests.fakes import RateKernels, context, job, llama

MODEL = llama(num_key_value_heads=4)
H, F, A, TOKENS = MODEL.hidden_size, MODEL.ffn_hidden_size, MODEL.num_attention_heads, 2 * 2048
# GPU, GiB and the longest sequence that Unsloth found to fit (docs.unsloth.ai/basics/unsloth-benchmarks): QLoRA of rank
# 32 on all linear layers, batch 1, padded, offloaded checkpoints, cut cross-entropy.
LONGEST = {
    "llama-3.1-8b": ((8, 2972), (12, 21848), (16, 40724), (24, 78475), (40, 153977), (48, 191728), (80, 342733)),
    "llama-3.3-70b": ((48, 12106), (80, 89389)),
}
UNSLOTH, TRAINER = find_stack("unsloth"), find_stack("hf-trainer")
PLANS = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2)])
CHECKPOINTED = PlanBatch.from_plans(
    [
        ExecutionPlan(micro_batch_size=2, recompute=Recompute.FULL, offload_activations=offloaded)
        for offloaded in (False, True)
    ]
)


@pytest.mark.parametrize("task", ["lora", "qlora"])
def test_a_layer_keeps_inputs_of_norms_and_what_attention_and_the_gate_read(task: str) -> None:
    """Norms their input and what adapters read; gate and up, and not their product; no casts, 4-bit weights or not."""
    on = job(task=task, lora=LoraSpec(targets=LORA_TARGETS))
    attention = (2 + 2 * 2 / 4 + 2) * H + 4 * A
    expected = 2 * (2 + 2) * H + attention + 2 * 2 * F
    found = layer_activations(PLANS, MODEL, on, UNSLOTH, moe=False)
    assert found.whole[0] / TOKENS == pytest.approx(expected)
    assert found.layer_input[0] / TOKENS == pytest.approx(2 * H)


def test_gradients_of_an_mlp_are_written_over_its_inputs() -> None:
    on = job(task="lora", lora=LoraSpec(targets=LORA_TARGETS))
    kept, peft = (layer_activations(PLANS, MODEL, on, stack, moe=False).backward[0] for stack in (UNSLOTH, TRAINER))
    assert kept < peft
    dropping = job(task="lora", lora=LoraSpec(targets=LORA_TARGETS, dropout=True))
    plain = layer_activations(PLANS, MODEL, dropping, UNSLOTH, moe=False).backward[0]
    assert plain - kept == pytest.approx(2 * 2 * F * TOKENS)


def test_logits_have_no_fp32_copies() -> None:
    on = job(task="lora", lora=LoraSpec())
    assert logits_bytes(PLANS, MODEL, on, UNSLOTH)[0] == pytest.approx(2 * MODEL.output_width * TOKENS)


def test_kernels_read_no_more_than_they_need() -> None:
    """Norms: input and output; backward input, gradient and its result. Adapters: what they add to, and no copies."""
    assert [traffic for traffic, _ in NORMS[UNSLOTH.norm]] == [2.0, 3.0]
    assert [passes[:2] for passes in ADAPTERS[UNSLOTH.adapters]] == [(0.0, 1.0), (1.0, 0.0)]
    assert sum(traffic for traffic, _ in LOSSES[UNSLOTH.loss]) < sum(traffic for traffic, _ in LOSSES[TRAINER.loss]) / 5


@pytest.mark.parametrize("task", ["lora", "qlora"])
def test_steps_are_shorter_and_smaller_than_with_peft(task: str) -> None:
    on = job(task=task, lora=LoraSpec(targets=LORA_TARGETS))
    fast, plain = (
        evaluate(CHECKPOINTED, context(model=MODEL, job=on, stack=stack, kernels=RateKernels()))
        for stack in (UNSLOTH, TRAINER)
    )
    assert (fast.step_time_s < plain.step_time_s).all()
    assert (fast.peak_memory_bytes < plain.peak_memory_bytes).all()


@pytest.mark.parametrize("name", LONGEST)
def test_the_longest_sequences_that_fit_nearly_fill_their_cards(name: str) -> None:
    """Nothing was fitted to these figures; what is left of the smallest card its owner knows best."""
    model = resolve_model(name, default_catalog()).spec
    for gibibytes, length in LONGEST[name]:
        on = job(
            task="qlora",
            lora=LoraSpec(rank=32, targets=LORA_TARGETS),
            optimizer="adamw8bit",
            linear_cross_entropy=True,
            sequence_length=length,
            global_batch_size=1,
        )
        plan = ExecutionPlan(recompute=Recompute.FULL, offload_activations=True)
        needed = peaks(PlanBatch.from_plans([plan]), context(model=model, job=on, stack=UNSLOTH)).peak_memory_bytes[0]
        assert 0.85 < needed / (gibibytes * GIB) < 1.0, (gibibytes, length)


def test_offloaded_checkpoints_are_legal_and_leave_the_device() -> None:
    on = job(task="qlora", lora=LoraSpec(targets=LORA_TARGETS), global_batch_size=2)
    plan = ExecutionPlan(micro_batch_size=2, recompute=Recompute.FULL, offload_activations=True)
    check_plan(plan, Setting(model=MODEL, job=on, num_devices=1, framework=UNSLOTH.framework))
    where = context(model=MODEL, job=on, stack=UNSLOTH, kernels=RateKernels())
    kept, offloaded = evaluate(CHECKPOINTED, where).memory_parts_bytes["activations"][:, 0]
    assert kept - offloaded > (MODEL.num_layers - 3) * 2 * H * TOKENS
