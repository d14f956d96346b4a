"""Parameter counts of arbitrary models: parts add up, and grow the way the matrices do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.adapter_parameters import lora_parameters, total_lora_parameters
from profiles.linear_attention import LINEAR_KINDS, LinearAttention
from profiles.model import LatentAttention, ModelSpec
from profiles.moe import MoESpec
from profiles.parameters import (
    active_parameters,
    attention_parameters,
    layer_parameters,
    mlp_parameters,
    non_layer_parameters,
    total_parameters,
)

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
_flag = st.booleans()


@st.composite
def models(draw) -> ModelSpec:
    num_layers = draw(st.integers(1, 12))
    kv_heads, group = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    width = st.integers(1, 512)
    latent = draw(st.none() | st.builds(
        LatentAttention, q_lora_rank=st.integers(0, 64), kv_lora_rank=width, qk_nope_head_dim=width,
        qk_rope_head_dim=width, v_head_dim=width,
    ))  # fmt: skip
    moe = None
    if draw(_flag):
        experts = draw(st.integers(1, 16))
        moe = MoESpec(
            num_experts=experts, experts_per_token=draw(st.integers(1, experts)), ffn_hidden_size=draw(width),
            shared_ffn_hidden_size=draw(st.integers(0, 64)), first_dense_layers=draw(st.integers(0, num_layers)),
            layer_interval=draw(st.integers(1, num_layers)), shared_expert_gate=draw(_flag), router_bias=draw(_flag),
        )  # fmt: skip
    linear = None
    if num_layers > 1 and draw(_flag):
        heads = draw(st.integers(1, 8))
        linear = LinearAttention(
            kind=draw(st.sampled_from(LINEAR_KINDS)), layers=draw(st.integers(1, num_layers - 1)), num_key_heads=heads,
            num_value_heads=heads * draw(st.integers(1, 4)), key_head_dim=draw(width), value_head_dim=draw(width),
            conv_kernel_dim=draw(st.integers(0, 4)),
        )  # fmt: skip
    return ModelSpec(
        name="any", num_layers=num_layers, hidden_size=draw(width), num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads, head_dim=draw(st.integers(1, 64)), ffn_hidden_size=draw(width),
        vocab_size=draw(st.integers(1, 2000)), gated_mlp=draw(_flag), tie_word_embeddings=draw(_flag),
        learned_positions=draw(st.integers(0, 64)), rms_norm=draw(_flag), norm_bias=draw(_flag),
        norms_per_layer=draw(st.integers(0, 4)), qk_norm=draw(_flag), qk_norm_all_heads=draw(_flag),
        qkv_bias=draw(_flag), attention_out_bias=draw(_flag), mlp_bias=draw(_flag), attention_sinks=draw(_flag),
        head_bias=draw(_flag), embedding_norm=draw(_flag), embedding_dim=draw(st.integers(0, 64)),
        attention_output_gate=draw(_flag), latent_attention=latent, linear_attention=linear, moe=moe,
    )  # fmt: skip


@given(models())
def test_the_parts_of_every_layer_make_the_total(model):
    layers = [layer_parameters(model, moe=is_moe) for is_moe in model.layer_is_moe]
    total = non_layer_parameters(model) + sum(layer.total for layer in layers)
    assert total == total_parameters(model) or model.linear_attention  # whose layers are means
    assert total == pytest.approx(total_parameters(model), rel=1e-12)


@given(models(), _flag)
def test_sharded_and_replicated_parts_conserve_a_layer(model, moe):
    layer = layer_parameters(model, moe=moe and model.moe is not None)
    parts = layer.column_row_sharded + layer.replicated + layer.routed_experts
    assert parts == pytest.approx(layer.total, rel=1e-12)
    assert layer.column_row_sharded > 0
    assert layer.norms <= layer.replicated
    assert 0 <= layer.routed_experts_replicated <= layer.routed_experts


@given(models())
def test_every_count_is_a_whole_number(model):
    assert type(total_parameters(model)) is int
    assert type(active_parameters(model)) is int


@given(models())
def test_active_parameters_never_exceed_the_total(model):
    active, total = active_parameters(model), total_parameters(model)
    assert 0 < active <= total
    if model.moe is None or model.moe.experts_per_token == model.moe.num_experts:
        assert active == total


@given(models(), st.integers(2, 5))
def test_layers_repeat(model, times):
    dense = replace(model, moe=None)
    linear = dense.linear_attention and replace(dense.linear_attention, layers=times * dense.linear_attention.layers)
    longer = replace(dense, num_layers=times * dense.num_layers, linear_attention=linear)
    outside = non_layer_parameters(dense)
    assert total_parameters(longer) - outside == times * (total_parameters(dense) - outside)


@given(models(), st.integers(1, 500))
def test_mlp_is_linear_in_its_width(model, width):
    def at(size: int) -> int:
        return mlp_parameters(replace(model, ffn_hidden_size=size))

    assert at(width + 1) - at(width) == at(2) - at(1)
    assert at(2) - at(1) == model.mlp_matrices * model.hidden_size + model.mlp_bias * (model.mlp_matrices - 1)


@given(models())
def test_fewer_key_value_heads_never_need_more_parameters(model):
    grouped = replace(model, num_key_value_heads=1)
    assert attention_parameters(grouped) <= attention_parameters(model)


@given(models(), st.integers(1, 64), st.sets(st.sampled_from(TARGETS)))
def test_lora_is_linear_in_rank_and_additive_in_targets(model, rank, targets):
    chosen = tuple(sorted(targets))
    total = total_lora_parameters(model, rank, chosen)
    assert total == rank * total_lora_parameters(model, 1, chosen)
    assert total == sum(total_lora_parameters(model, rank, (target,)) for target in chosen)
    layers = sum(lora_parameters(model, rank, chosen, moe=is_moe) for is_moe in model.layer_is_moe)
    assert total == layers or model.linear_attention
    assert total == pytest.approx(layers, rel=1e-12)
