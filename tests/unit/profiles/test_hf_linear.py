"""Configurations of families with linear attention give exactly their presets, and odd ones a SpecError."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model

EVERY_FOURTH = ["linear_attention"] * 3 + ["full_attention"]
DELTA_NET = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}  # fmt: skip
# What the public config.json of each model holds, as far as it bears on the dimensions.
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 5120, "vocab_size": 151936,
    "max_position_embeddings": 262144, "tie_word_embeddings": False, "full_attention_interval": 4, "num_experts": 512,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "partial_rotary_factor": 0.25, "attention_bias": False,
} | DELTA_NET  # fmt: skip
QWEN3_5: dict[str, Any] = {
    "model_type": "qwen3_5_text", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 12288, "vocab_size": 248320,
    "max_position_embeddings": 262144, "tie_word_embeddings": False, "attn_output_gate": True,
    "layer_types": EVERY_FOURTH * 8, "mtp_num_hidden_layers": 1, "mamba_ssm_dtype": "float32",
} | DELTA_NET  # fmt: skip
KIMI: dict[str, Any] = {
    "model_type": "kimi_linear", "num_hidden_layers": 27, "hidden_size": 2304, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": 72, "intermediate_size": 9216, "vocab_size": 163840,
    "model_max_length": 1048576, "tie_word_embeddings": False, "q_lora_rank": None, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_experts": 256, "num_shared_experts": 1,
    "num_experts_per_token": 8, "moe_intermediate_size": 1024, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
        "kda_layers": [layer for layer in range(1, 27) if layer % 4],
    },
}  # fmt: skip
MINIMAX: dict[str, Any] = {
    "model_type": "minimax_text_01", "num_hidden_layers": 80, "hidden_size": 6144, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9216, "vocab_size": 200064,
    "max_position_embeddings": 10240000, "tie_word_embeddings": False, "attn_type_list": ([0] * 7 + [1]) * 10,
    "num_local_experts": 32, "num_experts_per_tok": 2, "shared_intermediate_size": 0,
}  # fmt: skip
GRANITE: dict[str, Any] = {
    "model_type": "granitemoehybrid", "num_hidden_layers": 40, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 768, "vocab_size": 100352, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "layer_types": ["mamba"] * 5 + (["attention"] + ["mamba"] * 9) * 3 + ["attention"]
    + ["mamba"] * 4, "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_head": 64,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False, "num_local_experts": 72,
    "num_experts_per_tok": 10, "shared_intermediate_size": 1536, "attention_bias": False,
}  # fmt: skip
CONFIGS = {
    "qwen3-next-80b-a3b": QWEN3_NEXT,
    "qwen3.5-9b": {"model_type": "qwen3_5", "text_config": QWEN3_5, "vision_config": {"depth": 27}},
    "kimi-linear-48b-a3b": KIMI,
    "minimax-text-01": MINIMAX,
    "granite-4.0-h-small": GRANITE,
    "granite-4.0-h-micro": GRANITE
    | {"hidden_size": 2048, "num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 64,
       "shared_intermediate_size": 8192, "intermediate_size": 8192},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_equals_the_preset(name: str) -> None:
    preset = resolve_model(name, default_catalog(), allow_paths=False).spec
    spec = read_hf_config(CONFIGS[name], name)[0]
    assert replace(spec, published_parameters=preset.published_parameters, source=preset.source) == preset


def test_what_is_filled_in_is_reported() -> None:
    left_out = {key: value for key, value in QWEN3_NEXT.items() if not key.startswith(("linear_", "full_"))}
    spec, notes = read_hf_config(left_out, "x")
    assert spec == read_hf_config(QWEN3_NEXT, "x")[0]
    assert "config.json.linear_num_value_heads is absent: taken as 32" in notes
    assert "config.json.full_attention_interval is absent: taken as 4" in notes


def test_a_model_without_linear_layers_is_read_as_such() -> None:
    spec = read_hf_config(QWEN3_NEXT | {"full_attention_interval": 1}, "x")[0]
    assert (spec.linear_attention, spec.attention_output_gate) == (None, True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QWEN3_NEXT | {"full_attention_interval": 0}, "full_attention_interval: must be a whole number of at least 1"),
        (QWEN3_NEXT | {"layer_types": ["linear_attention"] * 48}, "layer_types: no layer attends in full"),
        (QWEN3_NEXT | {"layer_types": EVERY_FOURTH}, "layer_types: must have 48 entries; got 4"),
        (QWEN3_NEXT | {"layer_types": ["sliding_attention"] * 48}, "layer_types: unsupported layer"),
        (QWEN3_NEXT | {"linear_num_key_heads": "16"}, "linear_num_key_heads: must be a whole number of at least 1"),
        (QWEN3_NEXT | {"linear_num_key_heads": 5}, "num_key_heads"),
        (MINIMAX | {"attn_type_list": None}, "layer_types: is missing. Hint: it says which layers attend in full"),
        (KIMI | {"linear_attn_config": KIMI["linear_attn_config"] | {"kda_layers": [1, 2]}}, "must share out layers"),
        (KIMI | {"attn_res_block_size": 4}, "attn_res_block_size: belongs to layers that have no cost model"),
        (GRANITE | {"mamba_proj_bias": True}, "mamba_proj_bias"),
        (GRANITE | {"mamba_d_state": 0}, "mamba_d_state: must be a whole number"),
        (QWEN3_NEXT | {"model_type": "brandnew"}, "model_type"),
        (QWEN3_NEXT | {"model_type": "llama", "index_topk": 2048}, "model_type"),
        ({"model_type": "deepseek_v2", "index_topk": 2048, "kv_lora_rank": 512}, "index_topk: an indexer chooses"),
    ],
)
def test_what_cannot_be_priced_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_hf_config(config, "x")
    assert message in str(refused.value)
