"""Arbitrary models with linear attention: shares of ranks add up, states do not grow, whole layers lie in between."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.flops import forward_flops_per_token
from costmodels.kernels.calls import KernelOp
from costmodels.kv_cache import bytes_per_cached_token, bytes_per_sequence
from costmodels.linear_work import RankHeads, chunk_elements, chunk_flops, recurrence_flops, state_bytes
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from profiles.engines import EngineSpec
from profiles.linear_attention import LINEAR_KINDS, LinearAttention, linear_key_parameters, linear_parameters
from profiles.linear_attention import replicated_linear_parameters as replicated
from profiles.model import ModelSpec
from profiles.parameters import layer_parameters, total_parameters
from tests.fakes import GEMMS, UnitKernels, context, hybrid, job

RANKS = (1, 2, 4)
ENGINE = EngineSpec(name="fake", description="", captures_graphs=True)


@st.composite
def mixers(draw: st.DrawFn) -> LinearAttention:
    keys = draw(st.sampled_from((4, 8, 12)))
    return LinearAttention(
        kind=draw(st.sampled_from(LINEAR_KINDS)), layers=draw(st.integers(1, 7)), num_key_heads=keys,
        num_value_heads=keys * draw(st.integers(1, 3)), key_head_dim=draw(st.integers(1, 192)),
        value_head_dim=draw(st.integers(1, 192)), conv_kernel_dim=draw(st.integers(0, 4)),
    )  # fmt: skip


def of(linear: LinearAttention) -> ModelSpec:
    return hybrid(linear={name: getattr(linear, name) for name in LinearAttention.__dataclass_fields__})


def lowered_flops(model: ModelSpec, tensor: int, ops: tuple[KernelOp, ...]) -> float:
    where = context(model=model, kernels=UnitKernels(ops=ops))
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=tensor)])
    return float(price_parts([lower_attention(rank_shapes(plans, where, experts=True)[0], where)])[0].kernel_s.sum())


@given(mixers(), st.sampled_from(RANKS))
def test_ranks_share_out_weights_states_and_work(linear: LinearAttention, tensor: int) -> None:
    model, batch = of(linear), PlanBatch.from_plans([ExecutionPlan(tensor_parallel=tensor)])
    held = stage_parameters(batch, stage_table(batch, model, full=True), model, job())
    whole = model.num_layers * layer_parameters(model, moe=False).replicated + 1024
    assert tensor * held.dense[0, 0] - (tensor - 1) * whole == pytest.approx(total_parameters(model))
    assert tensor * bytes_per_sequence(batch, model, 2.0)[0] == pytest.approx(
        bytes_per_sequence(PlanBatch.from_plans([ExecutionPlan()]), model, 2.0)[0]
    )
    assert tensor * lowered_flops(model, tensor, (KernelOp.LINEAR_ATTENTION,)) == pytest.approx(
        lowered_flops(model, 1, (KernelOp.LINEAR_ATTENTION,))
    )
    one, ranks = RankHeads.of(linear, np.array([1])), RankHeads.of(linear, np.array([tensor]))
    assert tensor * chunk_elements(linear, ranks) == pytest.approx(chunk_elements(linear, one))


@given(mixers())
def test_projections_multiply_the_matrices_of_the_parameters(linear: LinearAttention) -> None:
    """Three products of two FLOPs a weight and token, all layers: a factor of two lost in either shows."""
    model = of(linear)
    full = 1024 * (2 * 1024 + 2 * 256) + 1024 * 1024
    per_token = lowered_flops(model, 1, GEMMS) / 2048 / 6
    vectors = linear_parameters(linear, 0) - _low_rank(linear)
    matrices = linear_parameters(linear, 1024) - vectors
    assert per_token == pytest.approx((1 - model.linear_share) * full + model.linear_share * matrices)


def _low_rank(linear: LinearAttention) -> int:
    return linear.low_rank * (linear.key_width + linear.value_width)


@given(mixers(), st.sampled_from((2.0, 4.0)))
def test_a_state_is_one_matrix_per_value_head_and_some_tokens(linear: LinearAttention, element_bytes: float) -> None:
    one = state_bytes(linear, RankHeads.of(linear, np.array([1])), element_bytes)[0]
    matrix = 4 * linear.num_value_heads * linear.key_head_dim * linear.value_head_dim
    tokens = max(linear.conv_kernel_dim - 1, 0)
    width = 2 * linear.num_key_heads * linear.key_head_dim + linear.num_value_heads * linear.value_head_dim
    assert one == pytest.approx(matrix + tokens * width * element_bytes)


@given(mixers(), st.integers(1, 500_000), st.integers(1, 500_000))
def test_only_layers_in_full_keep_tokens(linear: LinearAttention, few: int, many: int) -> None:
    model, plans = of(linear), PlanBatch.from_plans([ExecutionPlan()])
    per_token = bytes_per_cached_token(plans, model, 2.0)[0]
    assert per_token == (8 - linear.layers) * 2 * 2 * 4 * 64
    grown = forward_flops_per_token(model, many, causal=False) - forward_flops_per_token(model, few, causal=False)
    assert grown == pytest.approx((8 - linear.layers) * 4 * 1024 * (many - few))


@given(mixers())
def test_steps_grow_with_what_full_layers_have_seen(linear: LinearAttention) -> None:
    where = context(job=job(sequence_length=1), forward_only=True, model=of(linear))
    ops = (*GEMMS, KernelOp.MEMORY, KernelOp.ATTENTION_DECODE)
    where = replace(where, kernels=UnitKernels(ops=ops, quantity="bytes"))
    prices = decode_prices(
        PlanBatch.from_plans([ExecutionPlan()]), where, ENGINE, most_running=64, keys=(1000.0, 100_000.0)
    )
    short, long = prices.step_s(np.full((1, 2), 8.0), np.array([[1000.0, 100_000.0]]))[0]
    assert long - short == pytest.approx(8 * (8 - linear.layers) * 2 * 2 * 4 * 64 * 99_000, rel=1e-6)


@given(mixers())
def test_chunks_do_no_less_than_the_recurrence_and_not_much_more(linear: LinearAttention) -> None:
    work = chunk_flops(linear, RankHeads.of(linear, np.array([1])))[0]
    least = recurrence_flops(linear)
    d, e, chunk = linear.key_head_dim, linear.value_head_dim, 256
    assert 0.75 * least <= work <= least + 2 * linear.num_value_heads * chunk * (3 * d + 2 * e)


@given(mixers(), st.sampled_from(RANKS))
def test_keys_have_a_head_on_every_rank(linear: LinearAttention, tensor: int) -> None:
    assert 0 < linear_key_parameters(linear, 1024) < linear_parameters(linear, 1024)
    assert 0 <= replicated(linear, 1024) < linear_parameters(linear, 1024)
    assert linear.splits_over(tensor)
    assert not linear.splits_over(5 * linear.num_value_heads)
