"""What adding gradients of one micro-batch onto those of earlier ones moves through device memory."""

import pytest

from costmodels.optimizer import memory_seconds_per_byte
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import layer_costs
from costmodels.step.stage_seconds import stage_seconds
from profiles.parameters import total_parameters
from tests.fakes import RateKernels, context, gpt, job, stack


def accumulated_bytes(*, microbatches: int = 4, zero: int = 0, ranks: int = 1, **changes) -> float:
    """Bytes per parameter and micro-batch."""
    where = context(kernels=RateKernels(), stack=stack(**changes), job=job(global_batch_size=microbatches * ranks))
    plan = ExecutionPlan(num_microbatches=microbatches, data_parallel=ranks, zero_stage=zero)
    plans = PlanBatch.from_plans([plan])
    stages = stage_table(plans, where.model)
    parameters = stage_parameters(plans, stages, where.model, where.job)
    work = stage_seconds(plans, stages, layer_costs(plans, where), parameters, where)
    return float(work.accumulate_s[0, 0]) / memory_seconds_per_byte(where) / total_parameters(gpt())


def test_sums_within_the_product_read_and_write_fp32_and_store_no_other():
    """gradient_accumulation_fusion: 4 + 4 bytes, less the 2 that the product would have written."""
    assert accumulated_bytes() == pytest.approx(6)


def test_sums_in_the_format_of_the_weights_need_no_pass_for_the_first():
    """2 read, 2 added and 2 written, three times of four."""
    assert accumulated_bytes(gradient_dtype="bf16") == pytest.approx(6 * 3 / 4)


def test_fp32_sums_of_a_stored_gradient_read_it_and_read_and_write_the_sum():
    """nanotron's FP32GradientAccumulator adds the 16-bit gradient as it is."""
    assert accumulated_bytes(framework="nanotron", autograd_gradients="freed") == pytest.approx(2 + 8)


def test_fsdp_adds_to_shards_whether_it_keeps_parameters_gathered_or_not():
    """Else keeping them (2) would look slower than gathering them anew (3)."""
    one, two, three = (accumulated_bytes(zero=zero, ranks=8, framework="fsdp") for zero in (1, 2, 3))
    assert one == accumulated_bytes(framework="fsdp") > 0
    assert two == three == 0
    assert accumulated_bytes(zero=2, ranks=8, framework="megatron") == pytest.approx(6)


def test_a_gradient_that_is_cast_first_is_written_and_read_once_more_in_fp32():
    """DeepSpeed's BF16_Optimizer; with fp16, whose sums are 16-bit, nothing is cast."""
    deepspeed = {"framework": "deepspeed", "autograd_gradients": "kept"}
    assert accumulated_bytes(**deepspeed) == pytest.approx(2 + 8 + 8)
    assert accumulated_bytes(**deepspeed, gradient_dtype="bf16") == pytest.approx(6 * 3 / 4)
