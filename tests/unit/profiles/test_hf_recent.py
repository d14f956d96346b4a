"""Models of 2025 and 2026: their config.json comes to the shape known by name, and to the published total."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.parameters import active_parameters, total_parameters

AFMOE: dict[str, Any] = {
    "model_type": "afmoe", "num_experts": 128, "num_experts_per_tok": 8, "num_shared_experts": 1, "num_dense_layers": 2,
    "sliding_window": 2048, "global_attn_every_n_layers": 4, "vocab_size": 200192, "tie_word_embeddings": False,
    "head_dim": 128, "max_position_embeddings": 131072,
}  # fmt: skip
LING: dict[str, Any] = {
    "model_type": "bailing_moe", "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 8, "topk_group": 4, "moe_router_enable_expert_bias": True,
    "use_qk_norm": True, "use_bias": False, "use_qkv_bias": False, "vocab_size": 157184, "tie_word_embeddings": False,
    "head_dim": 128, "max_position_embeddings": 32768,
}  # fmt: skip
K_EXAONE: dict[str, Any] = {
    "model_type": "exaone_moe", "num_hidden_layers": 48, "hidden_size": 6144, "intermediate_size": 18432,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "num_shared_experts": 1, "moe_intermediate_size": 2048, "first_k_dense_replace": 1, "sliding_window": 128,
    "sliding_window_pattern": "LLLG", "n_group": 1, "topk_group": 1, "vocab_size": 153600,
    "tie_word_embeddings": False, "max_position_embeddings": 262144, "num_nextn_predict_layers": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "trinity-nano-6b-a1b": AFMOE | {
        "num_hidden_layers": 56, "hidden_size": 1024, "intermediate_size": 3072, "moe_intermediate_size": 256,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    },
    "trinity-mini-26b-a3b": AFMOE | {
        "num_hidden_layers": 32, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 1024,
        "num_attention_heads": 32, "num_key_value_heads": 4,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
    },
    "trinity-large-398b-a13b": AFMOE | {
        "num_hidden_layers": 60, "hidden_size": 3072, "intermediate_size": 12288, "moe_intermediate_size": 3072,
        "num_attention_heads": 48, "num_key_value_heads": 8, "num_experts": 256, "num_experts_per_tok": 4,
        "num_dense_layers": 6, "sliding_window": 4096, "max_position_embeddings": 262144,
    },
    "ling-mini-2.0": LING | {
        "num_hidden_layers": 20, "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
        "num_attention_heads": 16, "num_key_value_heads": 4, "moe_shared_expert_intermediate_size": 512,
    },
    "ling-flash-2.0": LING | {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 9216, "moe_intermediate_size": 1024,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "ling-1t": LING | {
        "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_attention_heads": 64, "num_key_value_heads": 8, "first_k_dense_replace": 4,
    },
    "ernie-4.5-300b-a47b": {
        "model_type": "ernie4_5_moe", "num_hidden_layers": 54, "hidden_size": 8192, "intermediate_size": 28672,
        "num_attention_heads": 64, "num_key_value_heads": 8, "moe_num_experts": 64, "moe_k": 8,
        "moe_num_shared_experts": 0, "moe_intermediate_size": 3584, "moe_layer_start_index": 3,
        "moe_layer_end_index": 53, "moe_layer_interval": 1, "vocab_size": 103424, "tie_word_embeddings": False,
        "max_position_embeddings": 131072, "use_bias": False, "num_nextn_predict_layers": 1,
    },
    "k-exaone-236b-a23b": K_EXAONE,
    "internlm3-8b": {
        "model_type": "internlm3", "num_hidden_layers": 48, "hidden_size": 4096, "intermediate_size": 10240,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 128512, "bias": False,
        "qkv_bias": False, "tie_word_embeddings": False, "max_position_embeddings": 32768,
    },
    "olmo-hybrid-7b": {
        "model_type": "olmo_hybrid", "num_hidden_layers": 32, "hidden_size": 3840, "intermediate_size": 11008,
        "num_attention_heads": 30, "num_key_value_heads": 30, "vocab_size": 100352, "tie_word_embeddings": False,
        "layer_types": [*["linear_attention"] * 3, "full_attention"] * 8, "max_position_embeddings": 65536,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_says_what_is_known_by_name(name: str) -> None:
    known = resolve_model(name, default_catalog()).spec
    read = read_hf_config(CONFIGS[name], name)[0]
    assert replace(read, source=known.source, published_parameters=known.published_parameters) == known
    assert read.full_attention_every == known.full_attention_every


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("arcee-ai/Trinity-Nano-Preview", 6.1e9, 1.0e9),
        ("arcee-ai/Trinity-Mini", 26.1e9, 3.5e9),
        ("arcee-ai/Trinity-Large-Preview", 398.6e9, 13.4e9),
        ("inclusionAI/Ring-mini-2.0", 16.26e9, 1.43e9),
        ("inclusionAI/Ling-flash-2.0", 103e9, 6.1e9),
        ("inclusionAI/Ring-1T", 999.7e9, 51e9),
        ("baidu/ERNIE-4.5-300B-A47B-PT", 300e9, 47.9e9),
        ("LGAI-EXAONE/K-EXAONE-236B-A23B", 236.6e9, 23.7e9),
    ],
)
def test_mixtures_have_the_totals_of_their_model_cards(name: str, total: float, active: float) -> None:
    model = resolve_model(name, default_catalog()).spec
    assert total_parameters(model) == pytest.approx(total, rel=0.005)
    assert active_parameters(model) == pytest.approx(active, rel=0.025)


@pytest.mark.parametrize(
    "said",
    [
        {"first_last_k_dense_replace": 1},
        {"mlp_layer_types": ["dense", *["sparse"] * 47]},
        {"is_moe_layer": [False, *[True] * 47]},
    ],
)
def test_k_exaone_says_in_several_ways_which_layers_have_experts(said: dict[str, Any]) -> None:
    config = {key: value for key, value in K_EXAONE.items() if key != "first_k_dense_replace"}
    assert read_hf_config(config | said, "x")[0] == read_hf_config(K_EXAONE, "x")[0]


def test_no_leading_layer_may_be_dense() -> None:
    moe = read_hf_config(K_EXAONE | {"first_k_dense_replace": 0}, "x")[0].moe
    assert moe is not None
    assert moe.first_dense_layers == 0


def test_a_pattern_of_windows_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^config\.json\.sliding_window_pattern: must be a whole number"):
        read_hf_config(K_EXAONE | {"sliding_window_pattern": "LGLG"}, "x")


def test_families_with_norms_of_queries_and_keys_have_them() -> None:
    """Olmo 3 and EXAONE 4 leave them to code; their full layers differ from the others in positions too."""
    dense = {key: K_EXAONE[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")}
    for kind, all_heads in (("olmo3", True), ("exaone4", False)):
        model = read_hf_config(dense | {"model_type": kind, "num_attention_heads": 48, "sliding_window": 4096}, "x")[0]
        assert (model.qk_norm, model.qk_norm_all_heads) == (True, all_heads)
        assert (model.windowed_layers, model.full_attention_every) == (36, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_group_size", 5),  # Ling 2.5, Ring-linear
        ("use_cla", True),  # Hunyuan-Large
        ("zero_expert_num", 256),  # LongCat-Flash
    ],
)
def test_keys_of_layers_without_a_price_are_named(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"^config\.json\.{key}: says that there are .*, which have no cost model"):
        read_hf_config(LING | CONFIGS["ling-mini-2.0"] | {"model_type": "odd", key: value}, "x")


@pytest.mark.parametrize(
    "name",
    [
        *("inclusionAI/Ling-2.5-1T", "LiquidAI/LFM2-8B-A1B"),
        *("tencent/Tencent-Hunyuan-Large", "meituan-longcat/LongCat-Flash-Chat", "inclusionAI/Ring-mini-linear-2.0"),
    ],
)
def test_names_of_models_without_a_price_say_what_has_none(name: str) -> None:
    with pytest.raises(SpecError, match=r" has .*, which have no cost model\. Hint: plan for a near"):
        resolve_model(name, default_catalog())
