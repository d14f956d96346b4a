"""Optimizers that update a parameter as soon as its gradient is there: what goes, what stays, who has them."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.memory.model_state import optimizer_temporary_bytes
from costmodels.memory.peaks import tensor_memory
from costmodels.memory.terms import MemoryTerms, memory_terms
from costmodels.optimizer import traffic_bytes_per_parameter
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from planner.question.jobs import resolve_job
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import check_plan, rules_for
from profiles.errors import SpecError
from profiles.model import ModelSpec
from profiles.parameters import embedding_parameters, layer_parameters, total_parameters
from tests.fakes import RateKernels, context, gpt, job, llama, stack
from tests.legal import violations

MEGATRON, DEEPSPEED, FSDP, NANOTRON, TRAINER = FRAMEWORKS
SIXTEEN = {"task": "full", "gradient_dtype": "bf16", "master_dtype": "none", "state_dtype": "bf16"}

MODEL = llama(tie_word_embeddings=False)
H, F, V = MODEL.hidden_size, MODEL.ffn_hidden_size, MODEL.vocab_size
ALONE = ExecutionPlan(recompute=Recompute.FULL)


def where(*, model: ModelSpec = MODEL, in_backward: bool = True, **stack_changes: object) -> CostContext:
    on = job(optimizer_in_backward=in_backward, **SIXTEEN)
    return context(model=model, job=on, stack=stack(framework="fsdp", **stack_changes))


def terms(plan: ExecutionPlan, at: CostContext) -> MemoryTerms:
    batch = PlanBatch.from_plans([plan])
    table = stage_table(batch, at.model)
    return memory_terms(batch, table, stage_parameters(batch, table, at.model, at.job), at)


def allocated(plan: ExecutionPlan, at: CostContext) -> float:
    batch = PlanBatch.from_plans([plan])
    parts = tensor_memory(batch, stage_table(batch, at.model), at).parts
    return float(sum(part[0, 0] for part in parts.values()))


def test_gradients_shrink_to_that_of_one_matrix() -> None:
    found = terms(ALONE, where())
    assert found.gradients[0, 0] == found.all_gradients[0, 0] == 0
    assert found.passing is not None
    assert found.passing[0, 0] == 2 * H * F
    assert found.last[0, 0] == pytest.approx(2 * V * H)  # the embedding's, when all layers are done
    saved = allocated(ALONE, where(in_backward=False)) - allocated(ALONE, where())
    all_gradients = 2 * total_parameters(MODEL)
    assert all_gradients - 2 * (V * H + H * F) <= saved <= all_gradients


def test_gradients_born_in_the_backward_pass_are_not_counted_twice() -> None:
    """A stack that frees gradients after a step holds no more with an optimizer that frees them earlier."""
    assert allocated(ALONE, where(transient_gradients=True)) == allocated(ALONE, where())


def test_the_gradient_of_a_shared_embedding_waits_for_its_other_half() -> None:
    tied = replace(MODEL, tie_word_embeddings=True)
    assert terms(ALONE, where(model=tied)).gradients[0, 0] == 2 * embedding_parameters(tied)
    sharded = ExecutionPlan(data_parallel=8, zero_stage=3)
    assert terms(sharded, where(model=tied)).gradients[0, 0] == 2 * embedding_parameters(tied) / 8


def test_shards_of_a_layer_come_at_once() -> None:
    layer = layer_parameters(MODEL, moe=False)
    unit = layer.column_row_sharded + layer.replicated
    found = terms(ExecutionPlan(data_parallel=8, zero_stage=3), where())
    assert found.passing is not None
    assert found.passing[0, 0] == pytest.approx(2 * unit / 8)


def test_temporaries_are_those_of_one_parameter() -> None:
    batch = PlanBatch.from_plans([ALONE])
    for in_backward in (False, True):
        at = where(in_backward=in_backward, optimizer_temporaries=1.0)
        held = stage_parameters(batch, stage_table(batch, MODEL), MODEL, at.job)
        needed = optimizer_temporary_bytes(batch, held, at)
        assert needed is not None
        assert needed[0, 0] == pytest.approx(2 * (V * H if in_backward else total_parameters(MODEL)))


def test_neither_norm_nor_clipping_reads_gradients() -> None:
    """The norm reads them once, clipping reads and writes them."""
    for clips, passes in ((False, 1), (True, 3)):
        after, within = (
            traffic_bytes_per_parameter(job(optimizer_in_backward=flag), stack(clips_gradients=clips))
            for flag in (False, True)
        )
        assert after - within == 4 * passes


def test_stages_looked_up_cost_what_plans_cost() -> None:
    at = replace(where(), kernels=RateKernels())
    plans = PlanBatch.from_plans([ALONE])
    prices = StagePrices(configs=StageConfigs(plans=plans, group=np.zeros(1, dtype=np.int64)), contexts=(at,))
    layers = MODEL.num_layers
    staged = StagePlanBatch.from_columns([1], [[0]], [[layers]], full_dense=[[layers]])
    alone, looked = evaluate(plans, at), evaluate_stages(staged, prices)
    assert looked.peak_memory_bytes == pytest.approx(alone.peak_memory_bytes)
    assert looked.step_time_s == pytest.approx(alone.step_time_s)


def setting(framework: str, devices: int = 1, **changes: object) -> Setting:
    on = job(**({"task": "full", "global_batch_size": 8, "optimizer_in_backward": True} | changes))
    return Setting(model=gpt(), job=on, num_devices=devices, framework=framework)


@pytest.mark.parametrize(
    ("framework", "plan", "broken"),
    [
        (MEGATRON, {"micro_batch_size": 8}, "optimizer_in_backward_exists"),
        (DEEPSPEED, {"micro_batch_size": 8}, "optimizer_in_backward_exists"),
        (NANOTRON, {"micro_batch_size": 8}, "optimizer_in_backward_exists"),
        (FSDP, {"num_microbatches": 8}, "optimizer_in_backward_accumulates_nothing"),
        (TRAINER, {"num_microbatches": 8}, "optimizer_in_backward_accumulates_nothing"),
        (FSDP, {"data_parallel": 8}, "optimizer_in_backward_needs_reduced_gradients"),
        (FSDP, {"data_parallel": 4, "pipeline_parallel": 2, "zero_stage": 3, "micro_batch_size": 2},
         "optimizer_in_backward_excludes_stages_and_experts"),
        (TRAINER, {"data_parallel": 8}, "optimizer_in_backward_stands_alone"),
        (FSDP, {"micro_batch_size": 8}, ""),
        (FSDP, {"data_parallel": 8, "zero_stage": 3}, ""),
        (TRAINER, {"micro_batch_size": 8}, ""),
    ],
)  # fmt: skip
def test_who_has_it(framework: str, plan: dict[str, int], broken: str) -> None:
    made = ExecutionPlan(**plan)  # type: ignore[arg-type]
    batch, at = PlanBatch.from_plans([made]), setting(framework, made.num_devices)
    names = {rule.name for rule in rules_for(framework) if not rule.holds(batch, at)[0]}
    assert {name for name in names if name.startswith("optimizer_in_backward")} == ({broken} if broken else set())
    after = replace(at, job=replace(at.job, optimizer_in_backward=False))
    assert not any("optimizer_in_backward" in str(error) for error in violations(made, after))


@pytest.mark.parametrize(
    ("pins", "sequences"),
    [({}, 64), ({"micro_batch_size": 4}, 256), ({"tensor_parallel": 2}, 32), ({"data_parallel": 2}, 2)],
    ids=str,
)
def test_a_batch_that_is_not_said_is_one_micro_batch(pins: dict[str, int], sequences: int) -> None:
    given = {"task": "full", "optimizer_in_backward": True}
    found, notes = resolve_job(given, MODEL, context().cluster, pins)
    assert context().cluster.num_devices == 64
    assert found.global_batch_size == sequences
    assert any("one micro-batch per device" in note.message for note in notes)


def test_what_a_user_reads() -> None:
    with pytest.raises(SpecError, match="must be 1 with optimizer_in_backward, which accumulates no gradients; got 8"):
        check_plan(ExecutionPlan(num_microbatches=8), setting(FSDP))
    with pytest.raises(SpecError, match="Megatron-LM has no optimizer in the backward pass"):
        check_plan(ExecutionPlan(micro_batch_size=8), setting(MEGATRON))
    with pytest.raises(SpecError, match="task full, or leave it out"):
        job(task="lora", lora=LoraSpec(), optimizer_in_backward=True)
