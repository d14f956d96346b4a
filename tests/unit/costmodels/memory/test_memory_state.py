"""Weights, gradients and optimizer states per rank: bytes per parameter, and what divides them."""

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.memory.model_state import (
    ModelState,
    dequantised_bytes,
    end_gradient_bytes,
    model_state,
    optimizer_temporary_bytes,
    state_bytes,
)
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import expert_shard_degree, stage_parameters, unit_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.adapter_parameters import total_lora_parameters
from profiles.parameters import embedding_parameters, layer_parameters, total_parameters
from profiles.precision import NF4_BYTES
from tests.fakes import context, gpt, job, llama, mixture, stack

P = total_parameters(gpt())


def state(plan: ExecutionPlan, where: CostContext) -> ModelState:
    batch = PlanBatch.from_plans([plan])
    stages = stage_table(batch, where.model, full=True)
    return model_state(batch, stages, stage_parameters(batch, stages, where.model, where.job), where)


def per_parameter(plan: ExecutionPlan, where: CostContext) -> tuple[float, float, float]:
    found = state(plan, where)
    return tuple(float(part[0, 0]) / P for part in (found.weights, found.gradients, found.optimizer))


@pytest.mark.parametrize(
    ("changes", "stack_changes", "expected"),
    [
        ({}, {}, (2, 4, 12)),
        ({}, {"gradient_dtype": "bf16"}, (2, 2, 16)),
        ({}, {"gradient_dtype": "bf16", "master_gradients": "none"}, (2, 2, 12)),
        ({}, {"gradient_dtype": "bf16", "master_gradients": "step"}, (2, 2, 12)),
        ({"precision": "fp16"}, {"fp16_gradient_dtype": "fp16", "master_gradients": "step"}, (2, 2, 12)),
        ({}, {"fp16_gradient_dtype": "fp16"}, (2, 4, 12)),
        ({"precision": "fp16", "gradient_dtype": "fp32"}, {"fp16_gradient_dtype": "fp16"}, (2, 4, 12)),
        ({}, {"autograd_gradients": "kept"}, (2, 6, 12)),
        ({}, {"autograd_gradients": "kept", "gradient_dtype": "bf16"}, (2, 2, 16)),
        ({"gradient_dtype": "bf16", "master_dtype": "none", "state_dtype": "bf16"}, {}, (2, 2, 4)),
        ({"precision": "fp32"}, {"gradient_dtype": "bf16"}, (4, 4, 8)),
        ({"precision": "fp8"}, {}, (2, 4, 12)),
        ({"optimizer": "adamw8bit"}, {}, (2, 4, 4 + 2 * (1 + 4 / 256))),
        ({"state_dtype": "int8"}, {}, (2, 4, 4 + 2 * (1 + 4 / 256))),
        ({"optimizer": "adafactor"}, {}, (2, 4, 4)),
        ({"optimizer": "sgd"}, {}, (2, 4, 8)),
        ({}, {"framework": "fsdp"}, (4, 4, 8)),
        ({"master_dtype": "none"}, {"framework": "fsdp"}, (2, 2, 8)),
    ],
    ids=str,
)
def test_bytes_per_parameter(changes, stack_changes, expected):
    where = context(job=job(**changes), stack=stack(**stack_changes))
    assert per_parameter(ExecutionPlan(), where) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("zero", "expected"),
    [(0, (2, 4, 12)), (1, (2, 4, 12 / 8)), (2, (2, 4 / 8, 12 / 8)), (3, (2 / 8, 4 / 8, 12 / 8))],
)
def test_zero_divides_optimizer_then_gradients_then_weights(zero, expected):
    plan = ExecutionPlan(data_parallel=4, context_parallel=2, zero_stage=zero)
    assert per_parameter(plan, context()) == pytest.approx(expected)


def test_hsdp_divides_by_its_shard_group():
    plan = ExecutionPlan(data_parallel=8, zero_stage=3, zero_shard_degree=2)
    assert per_parameter(plan, context()) == pytest.approx((2 / 2, 4 / 2, 12 / 2))


def test_experts_are_divided_by_their_own_replicas():
    # 16 ranks; experts spread over 4, so 4 replicas: ZeRO divides them by 4 and everything else by 8.
    plan = ExecutionPlan(tensor_parallel=2, data_parallel=8, expert_parallel=4, zero_stage=1)
    where = context(model=mixture())
    batch = PlanBatch.from_plans([plan])
    stages = stage_table(batch, where.model, full=True)
    parameters = stage_parameters(batch, stages, where.model, where.job)
    assert expert_shard_degree(batch, parameters)[0] == 4
    found = model_state(batch, stages, parameters, where)
    dense, expert = parameters.dense[0, 0], parameters.expert[0, 0]
    assert expert == 8 * layer_parameters(mixture(), moe=True).routed_experts / 4
    assert found.weights[0, 0] == pytest.approx(2 * (dense + expert))
    assert found.optimizer[0, 0] == pytest.approx(12 * (dense / 8 + expert / 4))


def test_lora_trains_adapters_only():
    where = context(job=job(task="lora", lora=LoraSpec(rank=8)))
    adapters = total_lora_parameters(gpt(), 8, where.job.lora.targets)
    found = state(ExecutionPlan(), where)
    assert found.weights[0, 0] == pytest.approx(2 * P + 2 * adapters)
    assert found.gradients[0, 0] == pytest.approx(4 * adapters)
    assert found.optimizer[0, 0] == pytest.approx(12 * adapters)


def test_frozen_weights_of_an_8_bit_recipe_take_one_byte():
    where = context(job=job(task="lora", lora=LoraSpec(rank=8), precision="fp8"))
    adapters = total_lora_parameters(gpt(), 8, where.job.lora.targets)
    assert state(ExecutionPlan(), where).weights[0, 0] == pytest.approx(P + 2 * adapters)


@pytest.mark.parametrize(("casts", "plain_bytes"), [(False, 2), (True, 4)])
def test_qlora_quantises_all_but_ends_and_norms(casts, plain_bytes):
    model = llama()
    lora = LoraSpec(rank=8)
    where = context(model=model, job=job(task="qlora", lora=lora), stack=stack(casts_unquantised=casts))
    plain = 2 * model.vocab_size * 1024 + 8 * 2 * 1024
    quantised = total_parameters(model) - plain
    adapters = 2 * total_lora_parameters(model, 8, lora.targets)
    assert state(ExecutionPlan(), where).weights[0, 0] == pytest.approx(
        NF4_BYTES * quantised + plain_bytes * plain + adapters
    )


def test_a_quantised_head_leaves_embedding_and_norms_in_16_bits():
    model = llama()
    lora = LoraSpec(rank=8)
    using = stack(framework="huggingface", quantises_head=True, four_bit_weight_bytes=0.5625)
    where = context(model=model, job=job(task="qlora", lora=lora), stack=using)
    plain = model.vocab_size * 1024 + 8 * 2 * 1024
    adapters = 2 * total_lora_parameters(model, 8, lora.targets)
    assert state(ExecutionPlan(), where).weights[0, 0] == pytest.approx(
        0.5625 * (total_parameters(model) - plain) + 2 * plain + adapters
    )


@pytest.mark.parametrize(("head", "matrix"), [(False, 1024 * 2816), (True, 1024 * 32768)])
def test_a_product_needs_its_4_bit_matrix_in_16_bits(head, matrix):
    batch = PlanBatch.from_columns(2, tensor_parallel=[1, 2])
    where = context(model=llama(), job=job(task="qlora", lora=LoraSpec(rank=8)), stack=stack(quantises_head=head))
    stages = stage_table(batch, where.model, full=True)
    np.testing.assert_allclose(dequantised_bytes(batch, stages, where)[:, 0], [2 * matrix, matrix])
    plain = context(model=llama(), job=job(task="lora", lora=LoraSpec(rank=8)))
    assert not dequantised_bytes(batch, stages, plain).any()


def test_nf4_is_a_little_over_half_a_byte():
    assert pytest.approx(4.127 / 8, abs=1e-4) == NF4_BYTES  # arXiv:2305.14314: 0.127 bits of constants


def test_tied_qlora_counts_the_embedding_once_on_one_stage():
    model = llama(tie_word_embeddings=True)
    where = context(model=model, job=job(task="qlora", lora=LoraSpec(rank=8)))
    untied = context(model=llama(), job=where.job)
    difference = state(ExecutionPlan(), untied).weights[0, 0] - state(ExecutionPlan(), where).weights[0, 0]
    assert difference == pytest.approx(2 * model.vocab_size * 1024)


def test_end_gradient_is_a_vocabulary_matrix_and_its_fp32_copy():
    batch = PlanBatch.from_columns(2, tensor_parallel=[1, 4])
    matrix = embedding_parameters(gpt())
    np.testing.assert_allclose(end_gradient_bytes(batch, context()), [6 * matrix, 6 * matrix / 4])
    narrow = context(stack=stack(gradient_dtype="bf16"))
    assert end_gradient_bytes(batch, narrow)[0] == 2 * matrix
    assert end_gradient_bytes(batch, context(job=job(task="lora", lora=LoraSpec())))[0] == 0


def test_unfused_adam_holds_one_more_moment_during_its_step():
    where = context(stack=stack(optimizer_temporaries=1))
    batch = PlanBatch.from_columns(3, zero_stage=[0, 1, 1], data_parallel=4, offload_optimizer=[False, False, True])
    stages = stage_table(batch, where.model)
    parameters = stage_parameters(batch, stages, where.model, where.job)
    needed = optimizer_temporary_bytes(batch, parameters, where)
    np.testing.assert_allclose(needed[:, 0], [4 * P, P, 0])
    without_moments = context(stack=where.stack, job=job(optimizer="adafactor"))
    assert optimizer_temporary_bytes(batch, parameters, without_moments) is None


def test_a_step_may_cast_16_bit_gradients_of_its_shard():
    batch = PlanBatch.from_columns(3, data_parallel=4, zero_stage=[0, 1, 3])
    model = gpt(hidden_size=8192, num_attention_heads=128, ffn_hidden_size=32768)  # 6.7e9 parameters
    parameters = stage_parameters(batch, stage_table(batch, model), model, job())
    count = total_parameters(model)

    def cast(**changes) -> np.ndarray | None:
        using = stack(gradient_dtype="bf16", master_gradients="step", **changes)
        return optimizer_temporary_bytes(batch, parameters, context(model=model, stack=using))

    np.testing.assert_allclose(cast()[:, 0], [4 * count, count, count])
    assert count / 4 > 1e9  # parameters DeepSpeed's ZeRO-3 steps at once
    np.testing.assert_allclose(cast(framework="deepspeed")[:, 0], [4 * count, count, 4e9])
    wide = context(model=model, stack=stack(gradient_dtype="fp32", master_gradients="step"))
    assert optimizer_temporary_bytes(batch, parameters, wide) is None


def test_unit_is_the_largest_thing_gathered_at_once():
    batch = PlanBatch.from_columns(2, tensor_parallel=[1, 2])
    layer = layer_parameters(gpt(), moe=False).total
    assert embedding_parameters(gpt()) > layer
    assert unit_parameters(batch, gpt())[0] == embedding_parameters(gpt())
    assert unit_parameters(batch, gpt(vocab_size=100))[0] == layer
    spread = PlanBatch.from_columns(1, expert_parallel=4)
    mixed = layer_parameters(mixture(vocab_size=100), moe=True)
    expected = mixed.total - mixed.routed_experts * 3 / 4
    assert unit_parameters(spread, mixture(vocab_size=100))[0] == expected


def test_state_bytes_of_the_default_job():
    each = state_bytes(job(), stack())
    assert (each.weight, each.gradient, each.master, each.moments) == (2, 4, 4, 8)


@pytest.mark.parametrize(("stage", "each"), [(1, 4.0), (2, 2 + 4 / 8), (3, 4 / 8)])
def test_fsdp_keeps_gathered_weights_in_16_bits_beside_its_shards(stage: int, each: float) -> None:
    """fully_shard(reshard_after_forward=False) is stage 2: what is gathered is cast, the fp32 shard stays."""
    where = context(stack=stack(framework="fsdp"))
    plan = ExecutionPlan(data_parallel=8, zero_stage=stage)
    assert per_parameter(plan, where)[0] == pytest.approx(each)
    alone = ExecutionPlan(data_parallel=8, zero_stage=stage, zero_shard_degree=1)
    assert per_parameter(alone, where)[0] == pytest.approx(4.0)


def test_megatron_s_second_stage_keeps_whole_weights() -> None:
    assert per_parameter(ExecutionPlan(data_parallel=8, zero_stage=2), context(stack=stack()))[0] == 2.0
