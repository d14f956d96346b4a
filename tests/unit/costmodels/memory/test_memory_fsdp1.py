"""What PyTorch FSDP1 keeps under Hugging Face's Trainer, tensor by tensor."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.memory.communication import communication_bytes
from costmodels.memory.logits import logits_bytes
from costmodels.memory.model_state import optimizer_temporary_bytes, state_bytes
from costmodels.memory.peaks import tensor_memory
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.stacks import load_stacks
from tests.fakes import RateKernels, context, job, llama
from tests.published import mapped

MODEL = llama(num_key_value_heads=4)
H, LAYERS, TOKENS = MODEL.hidden_size, MODEL.num_layers, 2 * 2048
STACKS = load_stacks()
SHARDED, FUSED = STACKS["hf-trainer-fsdp"], STACKS["fms-acceleration"]
LORA = job(task="lora", lora=LoraSpec(), linear_cross_entropy=True)


def allocated(on=LORA, using=SHARDED, model=MODEL, **plan) -> float:
    plan = {"micro_batch_size": 2, "data_parallel": 2, "zero_stage": 3, "recompute": Recompute.FULL} | plan
    batch = PlanBatch.from_plans([ExecutionPlan(**plan)])
    parts = tensor_memory(batch, stage_table(batch, model), context(model=model, job=on, stack=using)).parts
    return float(sum(part[0, 0] for part in parts.values()))


def waiting(**changes) -> float:
    """Bytes that hooks on inputs add."""
    using = changes.pop("using", SHARDED)
    free = replace(using, keeps_input_gradients=False)
    return allocated(using=using, **changes) - allocated(using=free, **changes)


def test_gradients_of_the_inputs_of_frozen_layers_wait_for_the_end_of_the_backward_pass() -> None:
    """Of all layers but the first and that behind it, whose gradients are there anyway: 16 bits a value."""
    assert waiting() == pytest.approx((LAYERS - 2) * 2 * H * TOKENS)
    assert waiting(using=FUSED) == pytest.approx((LAYERS - 2) * 2 * H * TOKENS)
    assert waiting(model=llama(num_layers=1)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"data_parallel": 1, "zero_stage": 3},
        {"recompute": Recompute.NONE},
        {"on": job(task="full", master_dtype="none", state_dtype="bf16")},
        {"using": STACKS["hf-fsdp"]},
        {"using": STACKS["hf-trainer-2024"]},
    ],
    ids=("whole weights", "one device", "no checkpoints", "all weights trained", "not reentrant", "alone"),
)
def test_no_other_gradients_of_inputs_wait(changes) -> None:
    assert waiting(**changes) == 0


def test_waiting_gradients_come_after_the_loss() -> None:
    """They add nothing where logits, which are gone by then, take more."""
    wide = replace(LORA, linear_cross_entropy=False)
    batch = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2, data_parallel=2, zero_stage=3)])
    logits = float(logits_bytes(batch, MODEL, wide, SHARDED)[0])
    assert logits > (LAYERS - 2) * 2 * H * TOKENS
    assert 0 <= waiting(on=wide) < (LAYERS - 2) * 2 * H * TOKENS


def test_stages_that_may_differ_hold_them_too() -> None:
    plan = ExecutionPlan(micro_batch_size=2, data_parallel=2, zero_stage=3, recompute=Recompute.FULL)
    batch = PlanBatch.from_plans([plan])
    where = context(model=MODEL, job=LORA, stack=SHARDED, kernels=RateKernels())
    configs = StageConfigs(plans=batch, group=np.zeros(1, dtype=np.int64))
    staged = StagePlanBatch.from_columns([1], [[0]], [[LAYERS]], full_dense=[[LAYERS]])
    found = evaluate_stages(staged, StagePrices(configs=configs, contexts=(where,)))
    assert found.stage_memory_bytes[0, 0] == pytest.approx(evaluate(batch, where).peak_memory_bytes[0])


@pytest.mark.parametrize("using", [SHARDED, FUSED, STACKS["hf-fsdp"]], ids=lambda using: using.name)
def test_flat_parameters_are_the_master_copy(using) -> None:
    """FSDP1 shards fp32 weights, and casts what it gathers; a 16-bit job has 16-bit shards."""
    wide = state_bytes(job(task="full"), using)
    assert (wide.weight, wide.master, wide.moments) == (4, 0, 8)
    narrow = state_bytes(job(task="full", master_dtype="none", state_dtype="bf16"), using)
    assert (narrow.weight, narrow.master, narrow.moments) == (2, 0, 4)


def test_temporaries_of_the_optimizer_take_the_place_of_gathered_weights() -> None:
    """The peak of a large model that sees few tokens is its optimizer's step, when nothing is gathered."""
    few = job(task="full", gradient_dtype="fp32", sequence_length=16)
    where = context(model=MODEL, job=few, stack=replace(SHARDED, temporary_fraction=0.0))
    batch = PlanBatch.from_plans([ExecutionPlan(data_parallel=2, zero_stage=3, recompute=Recompute.FULL)])
    stages = stage_table(batch, MODEL)
    parameters = stage_parameters(batch, stages, MODEL, few)
    gathered = communication_bytes(batch, stages, parameters, where)[0, 0]
    temporaries = optimizer_temporary_bytes(batch, parameters, where)
    assert temporaries is not None
    assert temporaries[0, 0] > gathered > 0
    found = allocated(few, where.stack, micro_batch_size=1)
    assert found == pytest.approx((4 + 4 + 8 + 4) * parameters.dense[0, 0] / 2, rel=1e-3)


def test_a_fused_loss_on_the_shifted_copy_holds_eight_bytes_a_logit() -> None:
    batch = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2)])
    on = job(task="lora", lora=LoraSpec())
    assert logits_bytes(batch, MODEL, on, FUSED)[0] == pytest.approx(8 * MODEL.output_width * TOKENS)


@pytest.mark.parametrize(
    ("framework", "notes", "stack"),
    [
        ("Hugging Face model code under FSDP (fms-hf-tuning)", "", "hf-trainer-fsdp"),
        ("Hugging Face model code under FSDP (fms-hf-tuning)", "fused kernels for norm and loss", "fms-acceleration"),
        ("transformers trainer 4.45 + PEFT 0.13", "fused kernels for norm and loss", "fms-acceleration"),
        ("Hugging Face model code under FSDP (fsdp_qlora)", "", "hf-fsdp"),
    ],
)
def test_published_runs_under_fsdp_1_are_of_whoever_checkpoints(framework: str, notes: str, stack: str) -> None:
    assert mapped(framework=framework, notes=f"lora r=8 {notes}", task="lora").stack == stack
