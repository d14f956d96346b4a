"""Files as transformers 5 writes them, with the keys that are new there, and families that were read as others."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.parameters import attention_parameters, total_parameters


def file(kind: str, layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any) -> dict[str, Any]:
    """With ``dtype`` and ``rope_parameters`` in place of ``torch_dtype``, ``rope_theta`` and ``rope_scaling``."""
    return {
        "model_type": kind, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": ffn, "vocab_size": vocab, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "transformers_version": "5.24.0",
        "tie_word_embeddings": False, "max_position_embeddings": 131072,
    } | more  # fmt: skip


def types(layers: int, every: int, other: str = "sliding_attention") -> list[str]:
    return ["full_attention" if (layer + 1) % every == 0 else other for layer in range(layers)]


LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
EXPERTS = {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048}
GEMMA_ROPE = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
QWEN_OFF = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 36}  # said, and switched off
COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "llama-3.1-8b": (file("llama", 32, 4096, 32, 8, 14336, 128256, head_dim=128), 8_030_261_248),
    "qwen3-8b": (
        file("qwen3", 36, 4096, 32, 8, 12288, 151936, head_dim=128, layer_types=types(36, 1), **QWEN_OFF),
        8_190_735_360,
    ),
    "qwen3-30b-a3b": (
        file("qwen3_moe", 48, 2048, 32, 4, 6144, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8,
             moe_intermediate_size=768, mlp_only_layers=[], sliding_window=None),
        30_532_122_624,
    ),
    "gpt-oss-20b": (
        file("gpt_oss", 24, 2880, 64, 8, 2880, 201088, head_dim=64, num_local_experts=32, num_experts_per_tok=4,
             sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 12, attention_bias=True),
        20_914_757_184,
    ),
    "gemma-3-27b": (
        {"model_type": "gemma3", "vision_config": {}, "text_config": file(
            "gemma3_text", 62, 5376, 32, 16, 21504, 262208, head_dim=128, tie_word_embeddings=True, sliding_window=1024,
            layer_types=types(62, 6), rope_parameters=GEMMA_ROPE)},
        27_009_346_304,
    ),
    "qwen3.5-27b": (
        {"model_type": "qwen3_5", "vision_config": {}, "text_config": file(
            "qwen3_5_text", 64, 5120, 24, 4, 17408, 248320, head_dim=256, layer_types=types(64, 4, "linear_attention"),
            linear_num_key_heads=16, linear_num_value_heads=48, mamba_ssm_dtype="float32")},
        26_895_998_464,
    ),
    "deepseek-v3": (
        file("deepseek_v3", 61, 7168, 128, 128, 18432, 129280, first_k_dense_replace=3, n_group=8, topk_group=4,
             head_dim=64, **EXPERTS, **LATENT),
        671_026_419_200,
    ),
    "kimi-k2.5": (
        {"model_type": "kimi_k25", "vision_config": {}, "text_config": file(
            "kimi_k2", 61, 7168, 64, 64, 18432, 163840, first_k_dense_replace=1, **EXPERTS | {"n_routed_experts": 384},
            **LATENT)},
        1_026_408_232_448,
    ),
    "llama-4-scout": (
        {"model_type": "llama4", "vision_config": {}, "text_config": file(
            "llama4_text", 48, 5120, 40, 8, 8192, 202048, head_dim=128, num_local_experts=16, num_experts_per_tok=1,
            intermediate_size_mlp=16384, moe_layers=list(range(48)), attention_chunk_size=8192,
            layer_types=types(48, 4, "chunked_attention"))},
        107_769_861_120,
    ),
    "olmo-3-7b": (
        file("olmo3", 32, 4096, 32, 32, 11008, 100278, layer_types=types(32, 4), sliding_window=4096), 7_298_011_136
    ),
    "smollm3-3b": (
        file("smollm3", 36, 2048, 16, 4, 11008, 128256, tie_word_embeddings=True, layer_types=types(36, 1),
             sliding_window=None, use_sliding_window=False),
        3_075_098_624,
    ),
    "phi-4-mini": (
        file("phi3", 32, 3072, 24, 8, 8192, 200064, tie_word_embeddings=True, sliding_window=262144), 3_836_021_760
    ),
    "phi-4": (file("phi3", 40, 5120, 40, 10, 17920, 100352, sliding_window=None), 14_659_507_200),
    "starcoder2-7b": (
        file("starcoder2", 32, 4608, 36, 4, 18432, 49152, sliding_window=4096, tie_word_embeddings=True), 7_173_923_840
    ),
    "nemotron-3-nano-30b-a3b": (
        file("nemotron_h", 52, 2688, 32, 2, 1856, 131072, head_dim=128, mamba_num_heads=64, mamba_head_dim=64,
             n_groups=8, ssm_state_size=128, n_routed_experts=128, num_experts_per_tok=6, moe_intermediate_size=1856,
             moe_shared_expert_intermediate_size=3712, layers_block_type=[
                 {"M": "mamba", "E": "moe", "*": "attention"}[letter]
                 for letter in "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"]),
        31_577_940_288,
    ),
    # Families that were read as a Llama's, or refused.
    "minimax-m2": (
        file("minimax_m2", 62, 3072, 48, 8, 1536, 200064, head_dim=128, num_local_experts=256, num_experts_per_tok=8,
             use_qk_norm=True, qk_norm_type="per_layer", use_routing_bias=True, attn_type_list=[1] * 62,
             shared_intermediate_size=0),
        228_689_764_864,
    ),
    "seed-oss-36b": (
        file("seed_oss", 64, 5120, 80, 8, 27648, 155136, head_dim=128, attention_bias=True, attention_out_bias=False),
        36_151_104_512,
    ),
    "ministral-3-8b": (
        {"model_type": "mistral3", "vision_config": {}, "text_config": file(
            "ministral3", 34, 4096, 32, 8, 14336, 131072, head_dim=128, sliding_window=None)},
        8_489_553_920,
    ),
    "glm-4.7-flash": (
        file("glm4_moe_lite", 47, 2048, 20, 20, 10240, 154880, mlp_layer_types=["dense"] + ["sparse"] * 46,
             **EXPERTS | {"n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536},
             **LATENT | {"q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256}),
        29_943_393_920,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_files_of_transformers_5_are_what_their_names_are(name: str) -> None:
    config, total = COUNTS[name]
    known, (read, _) = resolve_model(name, default_catalog()).spec, read_hf_config(config, name)
    assert total_parameters(read) == total
    dims = ("num_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "qk_norm", "moe",
            "latent_attention", "linear_attention", "sliding_window", "windowed_layers", "windowed_attention",
            "layer_pattern", "norms_per_layer", "qkv_bias", "attention_out_bias", "attention_sinks")  # fmt: skip
    assert {key: getattr(read, key) for key in dims} == {key: getattr(known, key) for key in dims}


@pytest.mark.parametrize(
    ("kind", "biases"),
    [("mimo", (True, False)), ("glm4v_moe_text", (True, False)), ("seed_oss", (True, False)), ("llama", (True, True))],
)
def test_biases_of_the_output_are_those_of_the_family(kind: str, biases: tuple[bool, bool]) -> None:
    config = file(kind, 4, 512, 8, 2, 1024, 1000, head_dim=64, attention_bias=True, attention_out_bias=False)
    read = read_hf_config(config | {"n_routed_experts": 0}, kind)[0]
    assert (read.qkv_bias, read.attention_out_bias) == biases


def test_vision_models_of_glm_have_norms_behind_their_blocks() -> None:
    text = file("glm4v_text", 40, 4096, 32, 2, 13696, 151552, attention_bias=False)
    read = read_hf_config({"model_type": "glm46v", "vision_config": {}, "text_config": text}, "x")[0]
    assert (read.norms_per_layer, read.qkv_bias, read.attention_out_bias, read.family) == (4, True, False, "glm4v_text")


SOLAR = file(
    "solar_open", 48, 4096, 64, 8, 0, 196608, head_dim=128,
    **EXPERTS | {"n_routed_experts": 128, "moe_intermediate_size": 1280},
)  # fmt: skip
LAGUNA = file(
    "laguna", 40, 2048, 48, 8, 8192, 100352, head_dim=128, num_experts=256, num_experts_per_tok=8,
    moe_intermediate_size=512, shared_expert_intermediate_size=512, sliding_window=512, gating="per-head",
    layer_types=["full_attention", *["sliding_attention"] * 3] * 10, mlp_layer_types=["dense"] + ["sparse"] * 39,
    num_attention_heads_per_layer=[48, 64, 64, 64] * 10,
)  # fmt: skip


def test_solar_open_has_102_billion_parameters() -> None:
    config = {key: value for key, value in SOLAR.items() if key != "intermediate_size"}  # all layers have experts
    assert total_parameters(read_hf_config(config, "x")[0]) == pytest.approx(102.6e9, rel=0.001)


def test_heads_of_every_layer_are_those_of_its_kind() -> None:
    read = read_hf_config(LAGUNA, "x")[0]
    assert read.windowed_attention is not None
    assert (read.num_attention_heads, read.windowed_attention.num_attention_heads, read.head_gates) == (48, 64, True)
    assert attention_parameters(read) == 2048 * (2 * 48 * 128 + 2 * 8 * 128 + 48) + 2 * 128
    for changes, told in (
        ({"num_attention_heads_per_layer": [48] * 39 + [64]}, "per_layer_config: gives layers that attend alike"),
        ({"num_attention_heads_per_layer": [48, 64]}, "num_attention_heads_per_layer: must have 40 entries; got 2"),
        ({"gating": "per-element"}, "gating: is 'per-element', which has no price. Hint: per-head"),
    ):
        with pytest.raises(SpecError) as caught:
            read_hf_config(LAGUNA | changes, "x")
        assert told in str(caught.value)


def test_attention_of_some_layers_that_is_linear_is_still_told() -> None:
    config = COUNTS["minimax-m2"][0] | {"attn_type_list": [1] * 61 + [0]}
    with pytest.raises(SpecError, match=r"^config\.json\.model_type: 'minimax_m2' has state-space or recurrent layers"):
        read_hf_config(config, "x")


def test_old_and_new_names_of_a_key_say_the_same() -> None:
    new = COUNTS["qwen3-8b"][0]
    old = {key: value for key, value in new.items() if key not in ("dtype", "rope_parameters", "layer_types")}
    old |= {"torch_dtype": "bfloat16", "rope_theta": 1e6, "rope_scaling": None}
    first, second = (read_hf_config(config, "x")[0] for config in (new, old))
    assert replace(first, source="") == replace(second, source="")
