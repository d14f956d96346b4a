"""What Hugging Face's code keeps of a layer while it is fine-tuned, tensor by tensor, and what we measured of it.

One layer of Llama's shape: h = 1024, f = 4h, sixteen heads, four of keys and values. Bytes per token, in units of h.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.autocast import fp32_stream
from costmodels.evaluate import evaluate
from costmodels.memory.activations import layer_activations
from costmodels.memory.logits import late_logits_bytes, logits_bytes, logits_gradient_bytes
from costmodels.memory.model_state import dequantised_bytes, model_state, state_bytes
from costmodels.memory.peaks import tensor_memory
from costmodels.memory.terms import memory_terms
from costmodels.plan import ExecutionPlan, FloatArray, PlanBatch, Recompute
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LORA_TARGETS, LoraSpec, TrainingJob
from planner.validate.own_runs import own_runs
from planner.validate.report import validate
from profiles.parameters import layer_norm_parameters, layer_parameters, total_parameters
from profiles.precision import NF4_BYTES
from profiles.stack import StackSpec
from profiles.stacks import load_stacks
from tests.fakes import RateKernels, RingCollectives, context, job, llama, mixture, stack

TRAINER, OLD = load_stacks()["hf-trainer"], load_stacks()["hf-trainer-2024"]
MODEL = llama(num_key_value_heads=4)
H, F, A, TOKENS = MODEL.hidden_size, MODEL.ffn_hidden_size, MODEL.num_attention_heads, 2 * 2048
SIXTEEN = {"master_dtype": "none", "state_dtype": "bf16"}
ADAPTERS = LoraSpec(targets=LORA_TARGETS)
# Queries, a quarter as wide keys and values, the output of attention, each 16-bit; a logsumexp per head.
ATTENTION = (2 + 2 * 2 / 4 + 2) * H + 4 * A


def kept(on: TrainingJob, using=TRAINER, **plan) -> float:
    batch = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2, **plan)])
    return float(layer_activations(batch, MODEL, on, using, moe=False).whole[0]) / TOKENS


def test_all_weights_in_16_bits() -> None:
    norms = 2 * (4 + 2 + 2) * H  # an fp32 copy, the normalised tensor, and the output that linear layers read
    mlp = 4 * 2 * F  # gate, its activation, up and their product
    assert kept(job(task="full", **SIXTEEN)) == pytest.approx(norms + ATTENTION + mlp)


def test_fp32_weights_under_autocast() -> None:
    """Norms keep an fp32 input and the normalised tensor; each of five linear layers casts its input for itself."""
    weights = MODEL.hidden_size * (2 * H + 2 * H / 4) + 3 * H * F
    expected = 2 * (4 + 4) * H + (3 + 2) * 2 * H + ATTENTION + 4 * 2 * F
    found = kept(job(task="full"))
    assert found * TOKENS == pytest.approx(expected * TOKENS + 2 * (weights + 2 * H), rel=1e-6)  # and casts of weights


def test_adapters_beside_16_bit_weights() -> None:
    """Frozen weights need no input, adapters a copy each, of the attention's output too."""
    expected = 2 * 4 * H + (3 + 2) * 2 * H + ATTENTION + 2 * H + 3 * 2 * F + 2 * F
    assert kept(job(task="lora", lora=ADAPTERS)) == pytest.approx(expected)
    shared = 2 * 4 * H + 2 * 2 * H + ATTENTION + 3 * 2 * F + 2 * F
    assert kept(job(task="lora", lora=ADAPTERS), OLD) == pytest.approx(shared)


def test_adapters_beside_fp32_weights() -> None:
    """Under autocast, whose cache takes trained weights only: their casts are the graph's, not kept past a layer's."""
    frozen = job(task="lora", lora=ADAPTERS, frozen_dtype="fp32")
    weights = layer_parameters(MODEL, moe=False).total
    batch = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2)])
    layer, trained = (layer_activations(batch, MODEL, on, TRAINER, moe=False) for on in (frozen, job(task="full")))
    assert trained.casts[0] == pytest.approx(2 * weights)
    assert layer.casts[0] == 0
    more = (kept(frozen) - kept(job(task="lora", lora=ADAPTERS))) * TOKENS
    assert more == pytest.approx(2 * weights)  # frozen norms keep fp32 either way
    assert kept(frozen, OLD) == kept(job(task="lora", lora=ADAPTERS), OLD)  # cast by whoever gathers them


@pytest.mark.parametrize(("zero", "ranks"), [(0, 1), (3, 8)])
def test_frozen_weights_are_stored_as_they_were_loaded(zero: int, ranks: int) -> None:
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, zero_stage=zero)])
    held = []
    for how in ("", "fp32"):
        where = context(model=MODEL, job=job(task="lora", lora=ADAPTERS, frozen_dtype=how), stack=OLD)
        stages = stage_table(plans, where.model)
        held.append(model_state(plans, stages, stage_parameters(plans, stages, MODEL, where.job), where).weights[0, 0])
    assert held[1] - held[0] == pytest.approx(2 * total_parameters(MODEL) / ranks, rel=1e-6)


def test_adapters_beside_4_bit_weights() -> None:
    """The residual stream and what the MLP computes are fp32; casts of their inputs serve the adapters."""
    expected = 2 * 4 * H + (3 + 2) * 2 * H + ATTENTION + 3 * 4 * F + 2 * F
    assert kept(job(task="qlora", lora=ADAPTERS)) == pytest.approx(expected)
    few = LoraSpec(targets=("q", "v"))
    assert kept(job(task="qlora", lora=few)) == pytest.approx(expected - 3 * 2 * H - 2 * F)


@pytest.mark.parametrize(
    ("on", "wide"),
    [(job(task="full"), True), (job(task="full", **SIXTEEN), False), (job(task="lora", lora=ADAPTERS), False),
     (job(task="qlora", lora=ADAPTERS), True)],
    ids=("autocast", "16-bit", "lora", "qlora"),
)  # fmt: skip
def test_a_checkpoint_has_the_format_of_the_residual_stream(on: TrainingJob, wide: bool) -> None:
    batch = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2, recompute=Recompute.FULL)])
    layer = layer_activations(batch, MODEL, on, TRAINER, moe=False)
    assert fp32_stream(on, TRAINER) is wide
    assert layer.layer_input[0] == pytest.approx((4 if wide else 2) * H * TOKENS)


def test_weights_under_autocast_are_the_master_copy() -> None:
    found = state_bytes(job(task="full"), TRAINER)
    assert (found.weight, found.gradient, found.master, found.moments) == (4, 4, 0, 8)
    sixteen = state_bytes(job(task="full", **SIXTEEN), TRAINER)
    assert (sixteen.weight, sixteen.gradient, sixteen.master, sixteen.moments) == (2, 2, 0, 4)


@pytest.mark.parametrize(("zero", "expected"), [(2, 2), (3, 4 / 8)])
def test_what_fsdp_shards_is_the_master_copy(zero: int, expected: float) -> None:
    """Bytes of weights per parameter on eight ranks; with ZeRO-3 their gradients are fp32, and need no such copy."""
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, zero_stage=zero)])
    for using in (TRAINER, OLD):
        where = context(model=MODEL, job=job(task="full"), stack=using)
        stages = stage_table(plans, where.model)
        held = model_state(plans, stages, stage_parameters(plans, stages, MODEL, where.job), where)
        assert held.weights[0, 0] == pytest.approx(expected * total_parameters(MODEL), rel=1e-6)
        assert held.gradients[0, 0] == pytest.approx((2 if zero == 2 else 4) / 8 * total_parameters(MODEL), rel=1e-6)
        assert held.optimizer[0, 0] == pytest.approx((16 if zero == 2 else 8) / 8 * total_parameters(MODEL), rel=1e-6)


def test_logits_take_twelve_bytes() -> None:
    """Log-probabilities and two gradients of them in fp32; under autocast beside a cast of the head."""
    plans = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2)])
    logits = TOKENS * MODEL.output_width
    assert logits_bytes(plans, MODEL, job(task="full", **SIXTEEN), TRAINER) == pytest.approx([12 * logits])
    head = 2 * MODEL.output_width * H
    assert logits_bytes(plans, MODEL, job(task="full"), TRAINER) == pytest.approx([12 * logits + head])


def test_casts_of_recomputed_layers_live_until_the_loss_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then there are 16-bit logits, their copy and log-probabilities: ten bytes of the twelve.

    Casts are of weights: logits are what they are without them.
    """
    model = replace(MODEL, num_layers=64)
    plans = [ExecutionPlan(recompute=kind, recompute_layers=16 * (kind == Recompute.BLOCK)) for kind in Recompute]
    where = context(model=model, job=job(task="full"), stack=TRAINER)
    batch = PlanBatch.from_plans(plans)

    def parts() -> dict[str, Any]:
        return tensor_memory(batch, stage_table(batch, model), where).parts

    found = parts()
    monkeypatch.setattr("costmodels.memory.activations.caches_casts", lambda _job, _stack: False)
    without = parts()
    casts, logits = 2 * layer_parameters(model, moe=False).total, 2048 * model.output_width
    assert found["logits"][:, 0] == pytest.approx(12 * logits + 2 * model.output_width * H)
    more = dict(zip(Recompute, (found["activations"] - without["activations"])[:, 0], strict=True))
    assert more[Recompute.NONE] == more[Recompute.SELECTIVE] == 0
    assert more[Recompute.FULL] == pytest.approx(64 * casts - 2 * logits)
    assert more[Recompute.BLOCK] == pytest.approx(16 * casts - 2 * logits)


@pytest.mark.parametrize(
    ("task", "framework", "layer", "head"),
    [("lora", "huggingface", 2.0, 2.0), ("qlora", "huggingface", NF4_BYTES, 2.0), ("qlora", "deepspeed", 0.0, 2.0)],
)
def test_frozen_weights_are_gathered_as_they_are_stored(task: str, framework: str, layer: float, head: float) -> None:
    """Two units at a time: layers of 4-bit weights are smaller than the head, in 16 bits, of a large vocabulary.

    DeepSpeed keeps what a thousand million elements of 16 bits hold, here everything.
    """
    model = llama(num_layers=64, vocab_size=8192)
    where = context(model=model, job=job(task=task, lora=ADAPTERS), stack=stack(framework=framework))
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, zero_stage=zero) for zero in (2, 3)])
    stages = stage_table(plans, model)
    parameters = stage_parameters(plans, stages, model, where.job)
    terms = memory_terms(plans, stages, parameters, where)
    gathered = terms.communication[1, 0] - terms.communication[0, 0]
    ends = model.vocab_size * H
    weights = layer_parameters(model, moe=False).total
    if framework == "deepspeed":
        norms = 64 * 2 * H
        expected = 2 * (2 * ends + norms) + NF4_BYTES * (64 * weights - norms)
    else:
        expected = 2 * max(layer * weights, head * ends)
    assert gathered == pytest.approx(expected, rel=1e-4)


def test_experts_stacked_in_one_tensor_are_not_quantised() -> None:
    """In transformers 5 they take 4 bytes, as all that bitsandbytes leaves, or 2 where they are sharded."""
    experts = 4 * 8 * 3 * 1024 * 512
    model = mixture(moe={"num_experts": 8, "ffn_hidden_size": 512, "shared_ffn_hidden_size": 0}, num_layers=4)
    plans = PlanBatch.from_plans([ExecutionPlan(), ExecutionPlan(data_parallel=2, zero_stage=3)])
    adapters = job(task="qlora", lora=LoraSpec(targets=("q",)))
    stages = stage_table(plans, model)
    parameters = stage_parameters(plans, stages, model, adapters)

    def held(using: StackSpec) -> FloatArray:
        where = context(model=model, job=adapters, stack=using)
        return model_state(plans, stages, parameters, where).weights[:, 0]

    more = held(TRAINER) - held(replace(TRAINER, quantises_experts=True))
    assert more == pytest.approx([experts * (4 - NF4_BYTES), experts * (2 - NF4_BYTES) / 2])
    # A product of experts restores the gates and what they multiply of all of them at once, in 16 bits.
    restored = [
        dequantised_bytes(plans, stages, context(model=model, job=adapters, stack=using))[0, 0]
        for using in (load_stacks()["hf-trainer-4bit-experts"], TRAINER)
    ]
    assert restored == [2 * 8 * 1024 * 2 * 512, 2 * 1024 * model.widest_product]
    assert not TRAINER.quantises_experts
    assert OLD.quantises_experts
    assert load_stacks()["unsloth"].quantises_experts


def test_plans_that_shard_do_without_autocast() -> None:
    """They take what they would in 16 bits beside an fp32 master copy, in time and memory."""
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, zero_stage=zero) for zero in range(4)])
    where = context(
        model=MODEL,
        job=job(task="full"),
        stack=TRAINER,
        kernels=RateKernels(),
        collectives=RingCollectives(inside_bytes_per_s=1e11),
    )
    found, sixteen = (
        evaluate(plans, replace(where, stack=replace(TRAINER, autocast_weights=how))) for how in (True, False)
    )
    assert found.step_time_s[1:] == pytest.approx(sixteen.step_time_s[1:])
    assert found.peak_memory_bytes[1:] == pytest.approx(sixteen.peak_memory_bytes[1:])
    assert found.step_time_s[0] > 1.02 * sixteen.step_time_s[0]
    weights = total_parameters(MODEL)
    assert found.memory_parts_bytes["weights"][:, 0] == pytest.approx(np.array([4, 2, 2, 4 / 8]) * weights)


def test_fp32_jobs_cast_nothing() -> None:
    wide, plain = (replace(TRAINER, autocast_weights=how) for how in (True, False))
    assert kept(job(task="full", precision="fp32"), wide) == kept(job(task="full", precision="fp32"), plain)


def test_our_own_runs_come_out_as_they_were_measured() -> None:
    rows = validate([path for path in own_runs() if "fine-tuning" in path.name]).rows
    assert len(rows) == 115
    assert {row.stack for row in rows} == {"hf-trainer"}
    errors = np.array([row.predicted_memory_bytes / row.measured_memory_bytes - 1 for row in rows])
    assert np.mean(np.abs(errors)) < 0.025
    assert np.max(np.abs(errors)) < 0.09  # attention op by op, recomputed


@pytest.mark.parametrize(
    ("on", "using", "zero", "wide"),
    [
        (job(task="qlora", lora=ADAPTERS), TRAINER, 2, True),
        (job(task="qlora", lora=ADAPTERS), TRAINER, 3, False),
        (job(task="qlora", lora=ADAPTERS, fp32_unquantised=False), TRAINER, 0, False),
        (job(task="qlora", lora=ADAPTERS), load_stacks()["hf-fsdp"], 0, False),
        (job(task="qlora", lora=ADAPTERS), load_stacks()["litgpt"], 0, False),
    ],
    ids=("shards its optimizer", "shards weights", "gptq", "flat parameters", "quantises its head"),
)
def test_what_is_not_quantised_is_cast_where_weights_are_whole(
    on: TrainingJob, using: StackSpec, zero: int, wide: bool
) -> None:
    """Checkpoints, and 16-bit weights of embedding, norms and head."""
    plan = ExecutionPlan(micro_batch_size=2, data_parallel=2 if zero else 1, zero_stage=zero)
    batch = PlanBatch.from_plans([plan])
    layer = layer_activations(batch, MODEL, on, using, moe=False)
    assert layer.layer_input[0] == pytest.approx((4 if wide else 2) * H * TOKENS)
    where = context(model=MODEL, job=on, stack=using)
    narrow = replace(where, job=replace(on, fp32_unquantised=False))
    whole, least = (
        tensor_memory(batch, stage_table(batch, MODEL), each).parts["weights"][0, 0] for each in (where, narrow)
    )
    ends = (2 - using.quantises_head) * MODEL.vocab_size * H + layer_norm_parameters(MODEL) * MODEL.num_layers
    assert whole - least == pytest.approx(2 * ends if wide else 0, rel=1e-3)


def test_sharded_4_bit_weights_take_less_time_than_cast_ones() -> None:
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, zero_stage=zero) for zero in (2, 3)])
    prices = {"kernels": RateKernels(), "collectives": RingCollectives(inside_bytes_per_s=1e15)}
    where = context(model=MODEL, job=job(task="qlora", lora=ADAPTERS), stack=TRAINER, **prices)
    plain = replace(where, job=replace(where.job, fp32_unquantised=False))
    cast, sixteen = evaluate(plans, where).step_time_s, evaluate(plans, plain).step_time_s
    assert cast[0] > 1.02 * sixteen[0]
    assert cast[1] == pytest.approx(sixteen[1])


@pytest.mark.parametrize(("sequences", "chunk"), [(2, 128), (3, 256), (1, 64)])
def test_a_loss_with_the_output_layer_in_it_holds_the_logits_of_a_few_tokens(sequences: int, chunk: int) -> None:
    """A vocabulary 32 times as wide as the hidden state: a 32nd of the tokens, rounded up to a power of two."""
    assert MODEL.output_width == 32 * H
    plans = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=sequences)])
    on = job(task="full", linear_cross_entropy=True, **SIXTEEN)
    expected = (2 + 4) * MODEL.output_width * chunk + 2 * H * sequences * 2048
    assert logits_bytes(plans, MODEL, on, TRAINER) == pytest.approx([expected])
    assert logits_gradient_bytes(plans, MODEL, on) == pytest.approx([2 * MODEL.output_width * chunk])
    few = logits_bytes(PlanBatch.from_plans([ExecutionPlan()]), MODEL, replace(on, sequence_length=1), TRAINER)
    assert few == pytest.approx([6 * MODEL.output_width + 2 * H])
    assert late_logits_bytes(plans, MODEL, on, TRAINER) == pytest.approx([0])
