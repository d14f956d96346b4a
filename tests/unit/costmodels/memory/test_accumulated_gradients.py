"""Gradients that Hugging Face's Trainer lets ranks hold whole under FSDP until the last micro-batch of a step."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.data_parallel import data_parallel_traffic
from costmodels.evaluate import evaluate
from costmodels.memory.peaks import tensor_memory
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.parameters import total_parameters
from profiles.stacks import load_stacks
from tests.fakes import RateKernels, UnitCollectives, context, job, llama

MODEL = llama(num_key_value_heads=4)
STACKS = load_stacks()
TRAINER = STACKS["hf-trainer-fsdp"]
FULL = job(task="full")
P = total_parameters(MODEL)


def batch(**plan) -> PlanBatch:
    chosen = {"data_parallel": 8, "zero_stage": 3, "num_microbatches": 4, "recompute": Recompute.FULL} | plan
    return PlanBatch.from_plans([ExecutionPlan(**chosen)])


def where(on=FULL, using=TRAINER) -> CostContext:
    return context(model=MODEL, job=on, stack=using, kernels=RateKernels(), collectives=UnitCollectives())


def parts(on=FULL, using=TRAINER, **plan) -> dict[str, float]:
    plans = batch(**plan)
    found = tensor_memory(plans, stage_table(plans, MODEL), where(on, using)).parts
    return {name: float(part[0, 0]) for name, part in found.items()}


def test_every_rank_holds_the_gradient_of_every_parameter_in_16_bits() -> None:
    apart = parts(using=replace(TRAINER, reduces_last=False))
    assert parts()["gradients"] == pytest.approx(2 * P, rel=1e-3)
    assert apart["gradients"] - 4 * P / 8 < 0.1 * P  # fp32 shards, and what the end of the backward pass adds


def test_what_the_optimizer_needs_for_its_step_fits_where_they_were() -> None:
    """Denominators of Adam, 4 bytes a parameter of a shard: its states alone are left of the optimizer's part."""
    assert parts()["optimizer"] == pytest.approx(8 * P / 8, rel=1e-3)


@pytest.mark.parametrize(
    ("using", "plan"),
    [
        (TRAINER, {"num_microbatches": 1}),
        (TRAINER, {"zero_stage": 2}),
        (TRAINER, {"data_parallel": 1}),
        (STACKS["deepspeed"], {}),
        (STACKS["fsdp"], {}),
        (STACKS["hf-fsdp"], {}),
    ],
    ids=("one micro-batch", "DeepSpeed's stage", "one rank", "deepspeed", "torchtitan", "own loop"),
)
def test_no_other_plan_does(using, plan) -> None:
    assert parts(using=using, **plan) == parts(using=replace(using, reduces_last=False), **plan)


def test_those_of_adapters_alone_where_only_they_are_trained() -> None:
    lora = job(task="lora", lora=LoraSpec())
    plans = batch()
    trained = stage_parameters(plans, stage_table(plans, MODEL), MODEL, lora).trained_dense[0, 0]
    assert parts(on=lora)["gradients"] >= 2 * trained
    assert parts(on=lora)["gradients"] < 0.1 * P


def test_an_optimizer_on_the_host_does_not_take_them_along() -> None:
    assert parts(offload_optimizer=True)["gradients"] == pytest.approx(2 * P, rel=1e-3)
    shards = parts(using=replace(TRAINER, reduces_last=False), offload_optimizer=True)["gradients"]
    assert shards < 0.1 * P


def test_one_reduction_serves_a_step_and_gatherings_go_on() -> None:
    plans = batch()
    stages = stage_table(plans, MODEL)
    parameters = stage_parameters(plans, stages, MODEL, FULL)
    once, every = (
        data_parallel_traffic(plans, stages, parameters, where(using=replace(TRAINER, reduces_last=whole)))
        for whole in (True, False)
    )
    assert once.gradients_s == pytest.approx(every.gradients_s)
    assert (once.reduces_per_microbatch.tolist(), every.reduces_per_microbatch.tolist()) == ([[0]], [[1]])
    np.testing.assert_array_equal(once.gathers_per_microbatch, every.gathers_per_microbatch)
    np.testing.assert_array_equal(once.parameters_s, every.parameters_s)


@pytest.mark.parametrize("offload", [False, True])
def test_stages_that_may_differ_hold_them_too(offload: bool) -> None:
    plans = batch(offload_optimizer=offload)
    configs = StageConfigs(plans=plans, group=np.zeros(1, dtype=np.int64))
    count = MODEL.num_layers
    columns = {"num_microbatches": [4], "optimizer_offload": [[8 * offload]]}
    staged = StagePlanBatch.from_columns([1], [[0]], [[count]], full_dense=[[count]], **columns)
    found = evaluate_stages(staged, StagePrices(configs=configs, contexts=(where(),)))
    assert found.stage_memory_bytes[0, 0] == pytest.approx(evaluate(plans, where()).peak_memory_bytes[0])
