"""The two stacks that the sixth round led to."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from planner.validate.unseen.priced import Kind, Unseen, price_tables, unseen_tables
from profiles.stacks import fitted_stacks, load_stacks
from tests.fakes import job, llama
from tests.published import mapped

STACKS = load_stacks()


@pytest.fixture(scope="module")
def priced() -> Unseen:
    return price_tables(unseen_tables(6), fitted_stacks())


@pytest.mark.parametrize(
    ("framework", "precision", "notes", "stack"),
    [
        ("PyTorch eager (own loop)", "bf16 autocast, fp32 weights", "", "pytorch-autocast"),
        ("PyTorch eager (own loop)", "bf16", "", "pytorch"),
        ("PyTorch eager (own loop)", "fp32", "", "pytorch"),
        ("transformers trainer", "bf16", "Liger kernels, fused linear cross-entropy", "hf-trainer-liger"),
        ("transformers trainer", "bf16", "Liger: fused linear cross-entropy", "hf-trainer"),
        ("transformers Trainer with torch.compile (TRL)", "bf16", "", "hf-trainer-compiled"),
    ],
)
def test_tables_tell_autocast_liger_and_compiled_code(framework: str, precision: str, notes: str, stack: str) -> None:
    assert mapped(framework=framework, precision=precision, notes=notes).stack == stack


def test_autocast_keeps_an_fp32_softmax_and_its_cast() -> None:
    unfused = replace(job(), attention="unfused")
    plans, model = PlanBatch.from_plans([ExecutionPlan()]), llama()
    stack = STACKS["pytorch-autocast"]
    cast, plain = (
        layer_activations(plans, model, unfused, replace(stack, score_bytes=each), moe=False).whole for each in (6, 2)
    )
    scores = model.num_attention_heads * unfused.sequence_length**2
    assert cast - plain == pytest.approx(4 * scores)
    assert stack.autocast_weights
    assert not STACKS["pytorch"].autocast_weights


def test_liger_under_the_trainer_runs_the_kernels_that_it_runs_under_deepspeed() -> None:
    kernels = ("norm", "rotary", "activation", "fused_norm", "fused_gate", "activation_in_place")
    under_trainer, under_deepspeed = STACKS["hf-trainer-liger"], STACKS["deepspeed-liger"]
    assert all(getattr(under_trainer, name) == getattr(under_deepspeed, name) for name in kernels)


def test_compiled_under_the_trainer_is_as_under_fsdp() -> None:
    compiled, under_fsdp = STACKS["hf-trainer-compiled"], STACKS["fsdp"]
    kernels = ("norm", "rotary", "activation", "loss", "fused_norm", "fused_gate", "logits_fp32_copies")
    assert all(getattr(compiled, name) == getattr(under_fsdp, name) for name in kernels)
    plans, model = PlanBatch.from_plans([ExecutionPlan()]), llama()
    kept = [
        layer_activations(plans, model, job(), STACKS[name], moe=False).whole
        for name in ("hf-trainer-compiled", "hf-trainer")
    ]
    assert kept[0] < 0.8 * kept[1]


def test_a_small_model_under_liger_is_priced_right(priced: Unseen) -> None:
    judged = priced.judged[Kind.TUNING]
    of = judged.by_source()["Throughput of a 0.6B model on four GPUs (2026)"]
    assert float(np.abs(judged.blind[of]).min()) > 0.7
    assert float(np.abs(judged.error[of]).max()) < 0.1
