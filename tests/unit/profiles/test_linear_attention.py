"""Parameters of models with linear attention: mixers tensor by tensor, whole models, adapters, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.adapter_parameters import lora_parameters, total_lora_parameters
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.linear_attention import (
    LINEAR_KINDS,
    LinearAttention,
    linear_key_parameters,
    linear_parameters,
    replicated_linear_parameters,
)
from profiles.model import LatentAttention
from profiles.parameters import active_parameters, attention_parameters, layer_parameters, total_parameters
from tests.fakes import hybrid, llama, mixture
from tests.presets import preset


def mixer(name: str) -> tuple[LinearAttention, int]:
    model = preset(name)
    assert model.linear_attention is not None
    return model.linear_attention, model.hidden_size


# Tensors of one layer's mixer in the checkpoints, shape by shape.
TENSORS = {
    "qwen3-next-80b-a3b": {
        "in_proj_qkvz": 2048 * (2 * 2048 + 2 * 4096),
        "in_proj_ba": 2048 * 2 * 32,
        "conv1d": 8192 * 4,
        "dt_bias and A_log": 2 * 32,
        "norm": 128,
        "out_proj": 4096 * 2048,
    },
    "kimi-linear-48b-a3b": {
        "q_proj, k_proj and v_proj": 3 * 2304 * 4096,
        "convolutions": 3 * 4096 * 4,
        "f_a_proj and g_a_proj": 2 * 2304 * 128,
        "f_b_proj and g_b_proj": 2 * 128 * 4096,
        "b_proj": 2304 * 32,
        "dt_bias and A_log": 4096 + 32,
        "o_norm": 128,
        "o_proj": 4096 * 2304,
    },
    "minimax-text-01": {
        "qkv_proj": 6144 * 3 * 8192,
        "output_gate": 6144 * 8192,
        "norm": 8192,
        "out_proj": 8192 * 6144,
    },
    "granite-4.0-h-small": {
        "in_proj": 4096 * (2 * 8192 + 2 * 128 + 128),
        "conv1d": (8192 + 2 * 128) * (4 + 1),
        "dt_bias, A_log and D": 3 * 128,
        "norm": 8192,
        "out_proj": 8192 * 4096,
    },
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_mixer_has_the_tensors_of_its_checkpoint(name: str) -> None:
    assert linear_parameters(*mixer(name)) == sum(TENSORS[name].values())


def test_there_is_a_model_of_every_kind() -> None:
    assert [mixer(name)[0].kind for name in TENSORS] == list(LINEAR_KINDS)


# Counts of whole models: of their checkpoints where these were counted, else of the tensors of the implementations.
TOTALS = {
    "qwen3-next-80b-a3b": 79_674_391_296,
    "qwen3.5-4b": 4_205_751_296,
    "qwen3.5-9b": 8_953_803_264,
    "qwen3.5-27b": 26_895_998_464,
    "qwen3.5-35b-a3b": 34_660_610_688,
    "qwen3.5-122b-a10b": 122_111_526_912,
    "qwen3.5-397b-a17b": 396_346_350_336,
    "kimi-linear-48b-a3b": 49_122_681_728,
    "minimax-text-01": 456_089_655_296,
    "olmo-hybrid-7b": 7_430_870_688,
    "granite-4.0-h-micro": 3_191_396_096,
    "granite-4.0-h-tiny": 6_939_037_248,
    "granite-4.0-h-small": 32_207_337_984,
    "nemotron-h-8b": 8_100_852_736,
    "nemotron-h-47b": 46_791_554_816,
    "nemotron-h-56b": 56_324_350_464,
    "nemotron-nano-9b-v2": 8_888_227_328,
    "nemotron-nano-12b-v2": 12_310_001_152,
    "nemotron-3-nano-4b": 3_973_556_832,
    "nemotron-3-nano-30b-a3b": 31_577_940_288,
    "nemotron-3-super-120b-a12b": 120_668_707_840,
    "nemotron-3-ultra-550b-a55b": 549_308_993_536,
}


def test_every_model_is_counted() -> None:
    models = {name for name in default_catalog().model_entries if preset(name).linear_attention is not None}
    assert models == set(TOTALS)


@pytest.mark.parametrize("name", TOTALS)
def test_a_whole_model_has_its_parameters(name: str) -> None:
    model = preset(name)
    assert total_parameters(model) == TOTALS[name]
    if model.published_parameters:
        assert total_parameters(model) == pytest.approx(model.published_parameters, rel=0.012)


@pytest.mark.parametrize(
    ("name", "active", "within"),
    [("minimax-text-01", 45.9e9, 0.002), ("qwen3-next-80b-a3b", 3e9, 0.1), ("kimi-linear-48b-a3b", 3e9, 0.1)],
)
def test_few_parameters_are_active(name: str, active: float, within: float) -> None:
    """arXiv:2501.08313, and the A3B of names; neither counts embedding and head."""
    model = preset(name)
    ends = 2 * model.vocab_size * model.hidden_size
    assert active_parameters(model) - ends == pytest.approx(active, rel=within)


def test_a_gate_doubles_the_projection_of_queries() -> None:
    gated, plain = hybrid(), hybrid(attention_output_gate=False)
    assert attention_parameters(gated) - attention_parameters(plain) == 1024 * 16 * 64


def test_layers_are_the_mean_of_both_kinds() -> None:
    model = hybrid()
    linear = model.linear_attention
    assert linear is not None
    full, other = attention_parameters(model), linear_parameters(linear, 1024)
    assert layer_parameters(model, moe=False).attention == (2 * full + 6 * other) / 8
    assert total_parameters(model) == total_parameters(replace(model, linear_attention=None)) + 6 * (other - full)


def test_what_ranks_share_and_what_each_holds() -> None:
    kimi, hidden = mixer("kimi-linear-48b-a3b")
    assert replicated_linear_parameters(kimi, hidden) == 128 + 2304 * 2 * 128
    qwen, hidden = mixer("qwen3-next-80b-a3b")
    assert replicated_linear_parameters(qwen, hidden) == 128
    assert linear_key_parameters(qwen, hidden) == 2 * 2048 * (2048 + 4)
    granite, hidden = mixer("granite-4.0-h-small")
    assert replicated_linear_parameters(granite, hidden) == 0
    assert linear_key_parameters(granite, hidden) == 2 * 128 * (4096 + 5)


ATTENTION = ("q", "k", "v", "o")


def test_adapters_meet_attention_in_full_only() -> None:
    model = hybrid()
    per_layer = 8 * ((1024 + 2048) + 2 * (1024 + 256) + (1024 + 1024))
    assert total_lora_parameters(model, 8, ATTENTION) == 2 * per_layer
    assert lora_parameters(model, 8, ATTENTION) == 2 * per_layer / 8
    assert total_lora_parameters(model, 8, ("up",)) == 8 * 8 * (1024 + 2816)


def test_kimis_products_are_called_like_those_of_attention() -> None:
    latent = LatentAttention(q_lora_rank=0, kv_lora_rank=64, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64)
    model = hybrid(
        linear={"kind": "kimi_delta", "num_key_heads": 16},
        latent_attention=latent, attention_output_gate=False, qk_norm=False, num_key_value_heads=16,
    )  # fmt: skip
    in_linear = 4 * (2 * (1024 + 1024) + (1024 + 512) + (512 + 1024))
    in_full = total_lora_parameters(replace(model, linear_attention=None), 4, ATTENTION) / 8
    assert total_lora_parameters(model, 4, ATTENTION) == 6 * in_linear + 2 * in_full


def test_experts_and_linear_attention_do_not_depend_on_each_other() -> None:
    both = hybrid(moe=mixture().moe)
    mixed = layer_parameters(both, moe=True)
    assert mixed.routed_experts == layer_parameters(mixture(), moe=True).routed_experts
    assert mixed.attention == layer_parameters(hybrid(), moe=False).attention


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        ({"kind": "delta"}, "model.linear_attention.kind: must be one of gated_delta_net, kimi_delta, "),
        ({"kind": "mamba"}, "did you mean 'mamba2'"),
        ({"layers": 8}, "model.linear_attention.layers: must be between 1 and 7, for at least one layer attends in"),
        ({"layers": 0}, "model.linear_attention.layers"),
        ({"num_key_heads": 3}, "model.linear_attention.num_key_heads: must divide num_value_heads=16; got 3"),
        ({"num_key_heads": 0}, "model.linear_attention.num_key_heads: must be between 1 and"),
        ({"key_head_dim": 0}, "model.linear_attention.key_head_dim"),
        ({"value_head_dim": 10**9}, "model.linear_attention.value_head_dim"),
        ({"conv_kernel_dim": -1}, "model.linear_attention.conv_kernel_dim: must be between 0 and"),
    ],
)
def test_impossible_mixers_are_refused(linear: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        hybrid(linear=linear)
    assert message in str(refused.value)


def test_windows_beside_linear_attention_are_refused() -> None:
    with pytest.raises(SpecError, match=r"model\.windowed_layers: windows beside linear attention have no cost model"):
        hybrid(sliding_window=64, windowed_layers=1)


def test_models_without_it_have_none() -> None:
    assert (llama().linear_share, llama().full_attention_layers, hybrid().full_attention_layers) == (0.0, 8, 2)
