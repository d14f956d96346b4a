"""What Hugging Face's code keeps of a layer while it is fine-tuned, tensor by tensor, and what we measured of it.

One layer of Llama's shape: h = 1024, f = 4h, sixteen heads, four of keys and values. Bytes per token, in units of h.
"""

import numpy as np
import pytest

from costmodels.activations import fp32_stream, layer_activations, logits_bytes
from costmodels.model_state import state_bytes
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.workload import LORA_TARGETS, LoraSpec, TrainingJob
from planner.validate.own_runs import own_runs
from planner.validate.report import validate
from profiles.stacks import load_stacks
from tests.fakes import job, llama

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


def test_logits_take_twelve_bytes_and_casts_outlive_the_forward_pass() -> None:
    """Log-probabilities and two gradients of them in fp32; ahead 16-bit logits, their copy and log-probabilities."""
    plans = PlanBatch.from_plans(
        [ExecutionPlan(micro_batch_size=2, recompute=kind) for kind in (Recompute.NONE, Recompute.FULL)]
    )
    logits = TOKENS * MODEL.output_width
    sixteen = logits_bytes(plans, MODEL, job(task="full", **SIXTEEN), TRAINER)
    assert sixteen == pytest.approx([12 * logits] * 2)
    head = 2 * MODEL.output_width * H
    none, full = logits_bytes(plans, MODEL, job(task="full"), TRAINER)
    assert none == pytest.approx(12 * logits + head)
    layers = 2 * MODEL.num_layers * (H * (2 * H + 2 * H / 4) + 3 * H * F + 2 * H)
    assert full == pytest.approx(max(12 * logits, 10 * logits + layers) + head, rel=1e-6)


def test_our_own_runs_come_out_as_they_were_measured() -> None:
    rows = validate([path for path in own_runs() if "fine-tuning" in path.name]).rows
    assert len(rows) == 115
    assert {row.stack for row in rows} == {"hf-trainer"}
    errors = np.array([row.predicted_memory_bytes / row.measured_memory_bytes - 1 for row in rows])
    assert np.mean(np.abs(errors)) < 0.025
    assert np.max(np.abs(errors)) < 0.09  # attention op by op, recomputed
