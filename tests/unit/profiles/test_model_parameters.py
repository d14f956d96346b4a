"""Parameter counts against hand-computed figures and published checkpoints."""

from dataclasses import replace

import pytest

from profiles.adapter_parameters import lora_parameters, total_lora_parameters
from profiles.model import LatentAttention, ModelSpec
from profiles.moe import MoESpec
from profiles.parameters import (
    active_parameters,
    attention_parameters,
    embedding_norm_parameters,
    embedding_parameters,
    expert_parameters,
    final_norm_parameters,
    head_parameters,
    key_value_parameters,
    layer_norm_parameters,
    layer_parameters,
    mlp_parameters,
    non_layer_parameters,
    norm_parameters,
    position_parameters,
    router_parameters,
    shared_expert_parameters,
    total_parameters,
)

ALL_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
# A deliberately unround model: h=10, two query heads of 3, one key/value head, f=7, V=11.
TINY = ModelSpec(
    name="tiny", num_layers=3, hidden_size=10, num_attention_heads=2, num_key_value_heads=1, head_dim=3,
    ffn_hidden_size=7, vocab_size=11,
)  # fmt: skip
LLAMA_2_7B = ModelSpec(
    name="llama-2-7b", num_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=32, head_dim=128,
    ffn_hidden_size=11008, vocab_size=32000, gated_mlp=True, rms_norm=True,
)  # fmt: skip
GPT_3 = ModelSpec(
    name="gpt3-175b", num_layers=96, hidden_size=12288, num_attention_heads=96, num_key_value_heads=96, head_dim=128,
    ffn_hidden_size=49152, vocab_size=51200, learned_positions=2048, tie_word_embeddings=True, qkv_bias=True,
    attention_out_bias=True, mlp_bias=True,
)  # fmt: skip
DEEPSEEK_V3 = ModelSpec(
    name="deepseek-v3", num_layers=61, hidden_size=7168, num_attention_heads=128, num_key_value_heads=128, head_dim=128,
    ffn_hidden_size=18432, vocab_size=129280, gated_mlp=True, rms_norm=True,
    latent_attention=LatentAttention(
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    moe=MoESpec(
        num_experts=256, experts_per_token=8, ffn_hidden_size=2048, shared_ffn_hidden_size=2048, first_dense_layers=3,
        router_bias=True,
    ),
)  # fmt: skip
MOE = MoESpec(num_experts=4, experts_per_token=2, ffn_hidden_size=5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 10 * 6 + 2 * 10 * 3 + 6 * 10),
        ({"num_key_value_heads": 2}, 10 * 6 * 4),
        ({"qkv_bias": True}, 180 + 6 + 2 * 3),
        ({"attention_out_bias": True}, 180 + 10),
        ({"qk_norm": True}, 180 + 2 * 2 * 3),
        ({"qk_norm": True, "rms_norm": True}, 180 + 2 * 3),
        ({"qk_norm": True, "qk_norm_all_heads": True, "rms_norm": True}, 180 + (2 + 1) * 3),
        ({"attention_sinks": True}, 180 + 2),
    ],
    ids=["gqa", "mha", "qkv-bias", "out-bias", "qk-layernorm", "qk-rmsnorm", "qk-norm-all-heads", "sinks"],
)
def test_attention_counts_each_part(change, expected):
    assert attention_parameters(replace(TINY, **change)) == expected


def test_key_value_projections_are_part_of_attention():
    assert key_value_parameters(TINY) == 2 * 10 * 3
    assert key_value_parameters(replace(TINY, qkv_bias=True)) == 2 * 10 * 3 + 2 * 3
    assert key_value_parameters(DEEPSEEK_V3) == 0


def test_latent_attention_matches_the_deepseek_v3_figure():
    # Query down, norm and up; key/value down, norm and up; output.
    expected = 11010048 + 1536 + 37748736 + 4128768 + 512 + 16777216 + 117440512
    assert attention_parameters(DEEPSEEK_V3) == expected == 187107328


def test_latent_attention_without_query_compression_projects_directly():
    latent = LatentAttention(q_lora_rank=0, kv_lora_rank=4, qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=6)
    model = replace(TINY, latent_attention=latent)
    assert attention_parameters(model) == 10 * 2 * 5 + (10 * 6 + 4) + 4 * 2 * (3 + 6) + 2 * 6 * 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 2 * 10 * 7),
        ({"gated_mlp": True}, 3 * 10 * 7),
        ({"mlp_bias": True}, 2 * 10 * 7 + 7 + 10),
        ({"gated_mlp": True, "mlp_bias": True}, 3 * 10 * 7 + 2 * 7 + 10),
    ],
    ids=["plain", "gated", "plain-bias", "gated-bias"],
)
def test_mlp_counts_matrices_and_biases(change, expected):
    assert mlp_parameters(replace(TINY, **change)) == expected


def test_expert_parts():
    moe = replace(MOE, shared_ffn_hidden_size=6, shared_expert_gate=True, router_bias=True)
    model = replace(TINY, moe=moe)
    assert expert_parameters(model) == 2 * 10 * 5
    assert shared_expert_parameters(model) == 2 * 10 * 6 + 10
    assert router_parameters(model) == 4 * 10 + 4
    assert router_parameters(replace(TINY, moe=MOE)) == 4 * 10
    assert shared_expert_parameters(replace(TINY, moe=MOE)) == 0


def test_dense_model_has_no_expert_parts():
    assert expert_parameters(TINY) == shared_expert_parameters(TINY) == router_parameters(TINY) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, 20), ({"rms_norm": True}, 10), ({"norm_bias": False}, 10)],
    ids=["layernorm", "rmsnorm", "layernorm-no-bias"],
)
def test_one_norm(change, expected):
    model = replace(TINY, **change)
    assert norm_parameters(model) == final_norm_parameters(model) == expected
    assert layer_norm_parameters(replace(model, norms_per_layer=4)) == 4 * expected
    assert embedding_norm_parameters(model) == 0
    assert embedding_norm_parameters(replace(model, embedding_norm=True)) == expected


def test_parts_outside_the_layers():
    model = replace(TINY, learned_positions=5, embedding_norm=True)
    assert embedding_parameters(model) == head_parameters(model) == 11 * 10
    assert position_parameters(model) == 5 * 10
    assert non_layer_parameters(model) == 110 + 50 + 20 + 20 + 110


def test_tied_head_counts_once_and_keeps_its_bias():
    tied = replace(TINY, tie_word_embeddings=True)
    assert head_parameters(tied) == 0
    assert head_parameters(replace(tied, head_bias=True)) == 11


def test_narrow_embedding_brings_its_two_projections():
    assert embedding_parameters(replace(TINY, embedding_dim=4)) == 11 * 4 + 2 * 4 * 10
    assert head_parameters(replace(TINY, embedding_dim=4)) == 11 * 4


def test_totals_of_published_checkpoints():
    assert total_parameters(LLAMA_2_7B) == 6738415616
    assert total_parameters(DEEPSEEK_V3) == 671026419200


def test_total_of_a_gpt_follows_the_megatron_formula():
    h, layers = 12288, 96
    # Narayanan et al. (SC21) equation 2, which leaves out the final norm.
    formula = 12 * layers * h * h + 13 * layers * h + (51200 + 2048) * h
    assert total_parameters(GPT_3) == formula + 2 * h


def test_active_parameters_leave_out_idle_experts_only():
    model = replace(TINY, moe=MOE)
    assert total_parameters(model) - active_parameters(model) == 3 * (4 - 2) * (2 * 10 * 5)
    assert active_parameters(DEEPSEEK_V3) == pytest.approx(37.55e9, rel=1e-3)
    assert active_parameters(TINY) == total_parameters(TINY)


def test_dense_layer_split_of_a_gpt():
    layer, h = layer_parameters(GPT_3, moe=False), 12288
    assert layer.total == 12 * h * h + 13 * h
    assert layer.column_row_sharded == 12 * h * h + 3 * h + 4 * h  # matrices, qkv bias, first MLP bias
    assert layer.replicated == 4 * h + h + h  # two norms, two row-parallel biases
    assert (layer.routed_experts, layer.shared_experts, layer.router) == (0, 0, 0)


def test_llama_layer_replicates_only_its_norms():
    layer = layer_parameters(LLAMA_2_7B, moe=False)
    assert layer.replicated == layer.norms == 2 * 4096
    assert layer.column_row_sharded == 4 * 4096**2 + 3 * 4096 * 11008


def test_latent_down_projections_are_replicated():
    layer = layer_parameters(DEEPSEEK_V3, moe=False)
    assert layer.replicated == 2 * 7168 + (7168 * 576 + 512) + (7168 * 1536 + 1536)


def test_moe_layer_split():
    moe = replace(MOE, shared_ffn_hidden_size=6, shared_expert_gate=True)
    layer = layer_parameters(replace(TINY, moe=moe, mlp_bias=True, qk_norm=True), moe=True)
    assert layer.dense_mlp == 0
    assert layer.routed_experts == 4 * (2 * 10 * 5 + 5 + 10)
    assert layer.routed_experts_replicated == 4 * 10
    # norms, query/key norms, router, shared expert's row bias and gate
    assert layer.replicated == 40 + 12 + 40 + 10 + 10
    assert layer.column_row_sharded + layer.replicated + layer.routed_experts == layer.total


def test_total_sums_dense_and_moe_layers():
    model = replace(TINY, moe=replace(MOE, first_dense_layers=1))
    dense, moe = layer_parameters(model, moe=False), layer_parameters(model, moe=True)
    assert total_parameters(model) == non_layer_parameters(model) + dense.total + 2 * moe.total


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q",), 2 * (10 + 6)),
        (("k",), 2 * (10 + 3)),
        (("v",), 2 * (10 + 3)),
        (("o",), 2 * (6 + 10)),
        (("gate",), 0),
        (("up", "down"), 2 * 2 * (10 + 7)),
        ((), 0),
    ],
    ids=["q", "k", "v", "o", "gate-of-plain-mlp", "mlp", "none"],
)
def test_lora_counts_rank_times_in_plus_out(targets, expected):
    assert lora_parameters(TINY, 2, targets) == expected


def test_lora_of_llama_2_7b_matches_the_peft_figure():
    # PEFT prints 39,976,960 trainable parameters for rank 16 on all seven linear layers, 8,388,608 for q and v.
    assert total_lora_parameters(LLAMA_2_7B, 16, ALL_TARGETS) == 39976960
    assert total_lora_parameters(LLAMA_2_7B, 16, ("q", "v")) == 8388608


def test_lora_of_a_moe_adapts_every_expert_when_the_mlp_is_targeted():
    model = replace(TINY, moe=replace(MOE, first_dense_layers=1, shared_ffn_hidden_size=6), gated_mlp=True)
    assert lora_parameters(model, 2, ("q",)) == lora_parameters(model, 2, ("q",), moe=False) == 32
    assert lora_parameters(model, 2, ("gate",)) == 2 * (4 * (10 + 5) + (10 + 6))
    assert lora_parameters(model, 2, ("gate",), moe=False) == 2 * (10 + 7)
    assert total_lora_parameters(model, 2, ("gate",)) == 2 * 17 + 2 * 2 * 76


def test_lora_under_latent_attention():
    r = 4
    assert lora_parameters(DEEPSEEK_V3, r, ("q",)) == r * (7168 + 1536) + r * (1536 + 128 * 192)
    assert lora_parameters(DEEPSEEK_V3, r, ("k",)) == r * (7168 + 576)
    assert lora_parameters(DEEPSEEK_V3, r, ("v",)) == r * (512 + 128 * 256)
    assert lora_parameters(DEEPSEEK_V3, r, ("o",)) == r * (128 * 128 + 7168)
