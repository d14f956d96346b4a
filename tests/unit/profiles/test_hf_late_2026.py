"""Models of 2026: checkpoints by name with published counts, their files, and those refused with the reason."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_checks import OWN_FIELDS
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.parameters import active_parameters, total_parameters

LARGE = {"tie_word_embeddings": False, "hidden_size": 4096, "vocab_size": 131072}
MISTRAL_4: dict[str, Any] = LARGE | {
    "model_type": "mistral4", "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 32,
    "intermediate_size": 12288, "moe_intermediate_size": 2048, "n_routed_experts": 128, "n_shared_experts": 1,
    "num_experts_per_tok": 4, "first_k_dense_replace": 0, "kv_lora_rank": 256, "q_lora_rank": 1024,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 1048576,
}  # fmt: skip
APERTUS: dict[str, Any] = LARGE | {
    "model_type": "apertus", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 21504, "hidden_act": "xielu", "attention_bias": False, "max_position_embeddings": 65536,
}  # fmt: skip
HY_3: dict[str, Any] = LARGE | {
    "model_type": "hy_v3", "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 13312, "vocab_size": 120832, "num_experts": 192, "num_experts_per_tok": 8,
    "num_shared_experts": 1, "moe_intermediate_size": 1536, "max_position_embeddings": 262144,
    "mlp_layer_types": ["dense"] + ["sparse"] * 79,
}  # fmt: skip
HUNYUAN: dict[str, Any] = {
    "model_type": "hunyuan_v1_moe", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 128167, "num_experts": 64,
    "moe_topk": [8] * 32, "moe_intermediate_size": [3072] * 32, "num_shared_expert": [1] * 32, "use_qk_norm": True,
    "tie_word_embeddings": True, "max_position_embeddings": 32768, "use_mixed_mlp_moe": True, "use_cla": False,
}  # fmt: skip
OMNI: dict[str, Any] = {
    "model_type": "qwen3_omni_moe", "talker_config": {"text_config": {"hidden_size": 1024}}, "thinker_config": {
        "model_type": "qwen3_omni_moe_thinker", "vision_config": {}, "audio_config": {}, "text_config": {
            "model_type": "qwen3_omni_moe_text", "hidden_size": 2048, "num_hidden_layers": 48, "vocab_size": 152064,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 768,
            "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False,
            "max_position_embeddings": 65536, "sliding_window": None, "mlp_only_layers": [],
        },
    },
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "mistral-small-4-119b": {
        "model_type": "mistral3", "vision_config": {}, "text_config": MISTRAL_4,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    },
    "apertus-8b": APERTUS,
    "hy3-295b-a21b": HY_3,
    "hunyuan-a13b": HUNYUAN,
    "qwen3-omni-30b-a3b": OMNI,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_names_and_files_are_the_same(name: str) -> None:
    known = resolve_model(name, default_catalog()).spec
    read = read_hf_config(FILES[name], name)[0]
    assert replace(read, source=known.source, published_parameters=known.published_parameters) == known
    assert read.family == known.family


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("tencent/Hy3-preview", 295_033_543_488, 21e9),
        ("swiss-ai/Apertus-8B-Instruct-2509", 8_053_338_176 - 32 * 2, 8.05e9),  # two numbers of each activation
        ("mistralai/Mistral-Small-4-119B-2603", 118_972_826_624, 6.5e9),
        ("nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16", 3_973_556_832, 3.97e9),
        ("ibm-granite/granite-4.1-30b", 28_865_728_512, 28.87e9),
        ("ibm-granite/granite-4.2-8b", 8_791_592_960, 8.79e9),
    ],
)
def test_counts_are_those_of_the_checkpoints(name: str, total: int, active: float) -> None:
    spec = resolve_model(name, default_catalog()).spec
    assert total_parameters(spec) == total
    assert active_parameters(spec) == pytest.approx(active, rel=0.025)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("nvidia/Llama-3.1-Nemotron-70B-Instruct", "llama-3.1-70b"),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "qwen3-8b"),
        ("NousResearch/Hermes-4-405B", "llama-3.1-405b"),
        ("Qwen/Qwen3.8-27B-FP8", "qwen3.5-27b"),
        ("moonshotai/Kimi-K2.7-Code", "kimi-k2.5"),
        ("MiniMaxAI/MiniMax-M2.1", "minimax-m2"),
        ("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16", "nemotron-3-nano-30b-a3b"),
        ("PrimeIntellect/INTELLECT-3", "glm-4.5-air"),
        ("mistralai/Magistral-Small-2509", "mistral-small-3.2-24b"),
        ("mistral-medium-3.5", "mistral-medium-3.5-128b"),
    ],
)
def test_checkpoints_of_a_known_shape_are_named(name: str, preset: str) -> None:
    assert resolve_model(name, default_catalog()).spec.name == preset


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MiniMaxAI/MiniMax-M3", "keys that an indexer chooses in blocks"),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "layers of different widths"),
        ("nvidia/Llama-3_1-Nemotron-Ultra-253B-v1", "layers of different widths"),
    ],
)
def test_names_of_other_layers_are_refused(name: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_model(name, default_catalog())
    assert str(caught.value) == f"model: '{name}' has {reason}, which have no cost model. Hint: {OWN_FIELDS}"


def test_a_list_that_says_different_things_of_layers_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^config\.json\.moe_topk: must be a whole number of at least 0; got a list"):
        read_hf_config(HUNYUAN | {"moe_topk": [8] * 31 + [4]}, "x")


def test_keys_chosen_in_blocks_are_refused_under_any_name() -> None:
    config = HY_3 | {"index_topk_blocks": 16}
    with pytest.raises(SpecError, match=r"^config\.json\.index_topk_blocks: says that there are keys that an indexer"):
        read_hf_config(config, "x")
