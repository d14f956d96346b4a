"""Hugging Face configurations of every family give exactly the preset of that model, and bad ones a SpecError."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.hf_families import FAMILIES
from profiles.model import ModelSpec
from profiles.model_presets import model_from_entry
from tests.places import ROOT

MODELS_DIRECTORY = ROOT / "profiles" / "data" / "models"


def _presets() -> dict[str, ModelSpec]:
    entries = {}
    for path in MODELS_DIRECTORY.glob("*.yaml"):
        entries |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: model_from_entry(name, entry) for name, entry in entries.items()}


PRESETS = _presets()


def dense(model_type, layers, hidden, heads, ffn, vocab, length, kv=None, **extra):
    """A configuration with the usual key names."""
    config = {
        "model_type": model_type, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "intermediate_size": ffn, "vocab_size": vocab, "max_position_embeddings": length,
    }  # fmt: skip
    if kv:
        config["num_key_value_heads"] = kv
    return config | extra


MLA = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
# What the public config.json of each model holds, as far as it bears on the dimensions.
CONFIGS = {
    "llama-2-7b": dense("llama", 32, 4096, 32, 11008, 32000, 4096, 32, **UNTIED),
    "llama-2-70b": dense("llama", 80, 8192, 64, 28672, 32000, 4096, 8, **UNTIED, attention_bias=False),
    "llama-3.2-1b": dense("llama", 16, 2048, 32, 8192, 128256, 131072, 8, **TIED, head_dim=64, mlp_bias=False),
    "salamandra-7b": dense("llama", 32, 4096, 32, 11008, 256000, 8192, 8, **UNTIED),
    "mistral-7b-v0.1": dense("mistral", 32, 4096, 32, 14336, 32000, 32768, 8, **UNTIED, sliding_window=4096),
    "mistral-7b-v0.2": dense("mistral", 32, 4096, 32, 14336, 32000, 32768, 8, **UNTIED, sliding_window=None),
    "mistral-nemo-12b": dense(
        "mistral", 40, 5120, 32, 14336, 131072, 131072, 8, **UNTIED, head_dim=128, sliding_window=None
    ),
    "mixtral-8x7b": dense(
        "mixtral", 32, 4096, 32, 14336, 32000, 32768, 8, **UNTIED, num_local_experts=8, num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen-7b": dense("qwen", 32, 4096, 32, 22016, 151936, 32768, **UNTIED, kv_channels=128, no_bias=True),
    "qwen2.5-7b": dense(
        "qwen2", 28, 3584, 28, 18944, 152064, 131072, 4, **UNTIED, sliding_window=131072, use_sliding_window=False,
        max_window_layers=28,
    ),
    "qwen2.5-0.5b": dense("qwen2", 24, 896, 14, 4864, 151936, 32768, 2, **TIED, use_sliding_window=False),
    "qwen2-57b-a14b": dense(
        "qwen2_moe", 28, 3584, 28, 18944, 151936, 131072, 4, **UNTIED, num_experts=64, num_experts_per_tok=8,
        moe_intermediate_size=2560, shared_expert_intermediate_size=20480, decoder_sparse_step=1, mlp_only_layers=[],
        use_sliding_window=False, sliding_window=65536, max_window_layers=28,
    ),
    "qwen3-8b": dense(
        "qwen3", 36, 4096, 32, 12288, 151936, 40960, 8, **UNTIED, head_dim=128, attention_bias=False,
        sliding_window=None, use_sliding_window=False, max_window_layers=36,
    ),
    "qwen3-30b-a3b": dense(
        "qwen3_moe", 48, 2048, 32, 6144, 151936, 40960, 4, **UNTIED, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[],
    ),
    "deepseek-v2-lite": dense(
        "deepseek_v2", 27, 2048, 16, 10944, 102400, 163840, 16, **MLA, q_lora_rank=None, n_routed_experts=64,
        n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=1408, first_k_dense_replace=1,
        moe_layer_freq=1,
    ),
    "deepseek-v3": dense(
        "deepseek_v3", 61, 7168, 128, 18432, 129280, 163840, 128, **MLA, q_lora_rank=1536, n_routed_experts=256,
        n_group=8, topk_group=4, n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=2048,
        first_k_dense_replace=3, moe_layer_freq=1, num_nextn_predict_layers=1, quantization_config=BLOCKS,
    ),
    "kimi-k2": dense(
        "kimi_k2", 61, 7168, 64, 18432, 163840, 131072, 64, **MLA, q_lora_rank=1536, n_routed_experts=384,
        n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=2048, first_k_dense_replace=1,
        moe_layer_freq=1, quantization_config=BLOCKS,
    ),
    "gemma-7b": dense("gemma", 28, 3072, 16, 24576, 256000, 8192, 16, head_dim=256, **TIED),
    "gemma-2-9b": dense("gemma2", 42, 3584, 16, 14336, 256000, 8192, 8, head_dim=256, sliding_window=4096, **TIED),
    "gemma-3-1b": dense(
        "gemma3_text", 26, 1152, 4, 6912, 262144, 32768, 1, head_dim=256, sliding_window=512, sliding_window_pattern=6,
        **TIED,
    ),
    # The text part writes only what differs from its configuration class.
    "gemma-3-4b": {
        "model_type": "gemma3", "vision_config": {"image_size": 896},
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    },
    "phi-2": dense("phi", 32, 2560, 32, 10240, 51200, 2048, 32, **UNTIED, qk_layernorm=False),
    "phi-3-mini": dense("phi3", 32, 3072, 32, 8192, 32064, 4096, 32, **UNTIED, sliding_window=2047),
    "phi-3.5-moe": dense(
        "phimoe", 32, 4096, 32, 6400, 32064, 131072, 8, **UNTIED, attention_bias=True, lm_head_bias=True,
        num_local_experts=16, num_experts_per_tok=2, sliding_window=None,
    ),
    "opt-350m": {
        "model_type": "opt", "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "ffn_dim": 4096,
        "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 512, "do_layer_norm_before": False,
        **TIED,
    },
    "opt-13b": {
        "model_type": "opt", "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "ffn_dim": 20480,
        "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 5120,
    },
    "bloom-7b1": {
        "model_type": "bloom", "n_layer": 30, "hidden_size": 4096, "n_head": 32, "vocab_size": 250880,
        "seq_length": 2048,
    },
    "gpt-neox-20b": dense(
        "gpt_neox", 44, 6144, 64, 24576, 50432, 2048, **UNTIED, use_parallel_residual=True, rotary_pct=0.25
    ),
    "gpt2-xl": {
        "model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257, "n_positions": 1024,
        "n_ctx": 1024, "n_inner": None,
    },
    "gpt-j-6b": {
        "model_type": "gptj", "n_layer": 28, "n_embd": 4096, "n_head": 16, "vocab_size": 50400, "n_positions": 2048,
        "n_inner": None, **UNTIED,
    },
    "starcoder": {
        "model_type": "gpt_bigcode", "n_layer": 40, "n_embd": 6144, "n_head": 48, "n_inner": 24576, "vocab_size": 49152,
        "n_positions": 8192, "multi_query": True,
    },
    "mpt-30b": {
        "model_type": "mpt", "d_model": 7168, "n_heads": 64, "n_layers": 48, "expansion_ratio": 4, "max_seq_len": 8192,
        "no_bias": True, "vocab_size": 50432, "learned_pos_emb": True, "attn_config": {"alibi": True, "model_type": ""},
    },
    "mpt-1b": {
        "model_type": "mpt", "d_model": 2048, "n_heads": 16, "n_layers": 24, "expansion_ratio": 4, "max_seq_len": 2048,
        "no_bias": False, "vocab_size": 50368, "attn_config": {"alibi": False},
    },
    "falcon-7b": {
        "model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32,
        "vocab_size": 65024, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True,
        "bias": False, "max_position_embeddings": 2048,
    },
    "falcon-40b": {
        "model_type": "RefinedWeb", "hidden_size": 8192, "n_head": 128, "n_layer": 60, "n_head_kv": 8,
        "vocab_size": 65024, "parallel_attn": True, "bias": False, "new_decoder_architecture": True,
        "max_position_embeddings": 2048,
    },
    "starcoder2-7b": dense("starcoder2", 32, 4608, 36, 18432, 49152, 16384, 4, sliding_window=4096, use_bias=True),
    "starcoder2-15b": dense("starcoder2", 40, 6144, 48, 24576, 49152, 16384, 4, sliding_window=4096, **UNTIED),
    "command-r": dense("cohere", 40, 8192, 64, 22528, 256000, 131072, 64, use_qk_norm=False),
    "command-r-plus": dense("cohere", 64, 12288, 96, 33792, 256000, 131072, 8, use_qk_norm=True),
    "llama-4-maverick": {
        "model_type": "llama4", "vision_config": {},
        "text_config": dense(
            "llama4_text", 48, 5120, 40, 8192, 202048, 1048576, 8, **UNTIED, intermediate_size_mlp=16384, head_dim=128,
            num_local_experts=128, num_experts_per_tok=1, interleave_moe_layer_step=2, attention_chunk_size=8192,
            no_rope_layers=[], moe_layers=list(range(1, 48, 2)),
        ),
    },
    "llama-4-scout": {
        "model_type": "llama4",
        "text_config": dense(
            "llama4_text", 48, 5120, 40, 8192, 202048, 10485760, 8, **UNTIED, intermediate_size_mlp=16384, head_dim=128,
            num_local_experts=16, num_experts_per_tok=1, interleave_moe_layer_step=1, attention_chunk_size=8192,
            no_rope_layers=[1, 1, 1, 0] * 12,
        ),
    },
    "gpt-oss-20b": dense(
        "gpt_oss", 24, 2880, 64, 2880, 201088, 131072, 8, **UNTIED, head_dim=64, attention_bias=True,
        sliding_window=128, num_local_experts=32, num_experts_per_tok=4, experts_per_token=4,
        layer_types=["sliding_attention", "full_attention"] * 12, quantization_config={"quant_method": "mxfp4"},
    ),
    "chatglm3-6b": {
        "model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32, "kv_channels": 128,
        "ffn_hidden_size": 13696, "padded_vocab_size": 65024, "seq_length": 8192, "multi_query_attention": True,
        "multi_query_group_num": 2, "add_qkv_bias": True, "add_bias_linear": False, **UNTIED,
    },
    "glm-4.5": dense(
        "glm4_moe", 92, 5120, 96, 12288, 151552, 131072, 8, **UNTIED, head_dim=128, attention_bias=True,
        use_qk_norm=True, n_routed_experts=160, n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=1536,
        first_k_dense_replace=3, num_nextn_predict_layers=1,
    ),
    "nemotron-4-340b": dense("nemotron", 96, 18432, 96, 73728, 256000, 4096, 8, **UNTIED, hidden_act="relu2"),
    "dots.llm1": dense(
        "dots1", 62, 4096, 32, 10944, 152064, 32768, 32, **UNTIED, n_routed_experts=128, n_shared_experts=2,
        num_experts_per_tok=6, moe_intermediate_size=1408, first_k_dense_replace=1, moe_layer_freq=1,
    ),
    "internlm2-7b": dense("internlm2", 32, 4096, 32, 14336, 92544, 32768, 8, **UNTIED, bias=False),
    "internlm-7b": dense("internlm", 32, 4096, 32, 11008, 103168, 2048, **UNTIED, bias=True),
    "baichuan2-7b": dense("baichuan", 32, 4096, 32, 11008, 125696, 4096, **UNTIED),
    "smollm3-3b": dense("smollm3", 36, 2048, 16, 11008, 128256, 65536, 4, use_sliding_window=False),
    "olmo-2-7b": dense("olmo2", 32, 4096, 32, 11008, 100352, 4096, 32, **UNTIED),
}  # fmt: skip

LLAMA = CONFIGS["llama-2-7b"]
GROUPS = CONFIGS["deepseek-v3"]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configuration_equals_the_preset(name):
    preset = PRESETS[name]
    spec = read_hf_config(CONFIGS[name], name)[0]
    assert replace(spec, published_parameters=preset.published_parameters) == preset


def test_a_complete_configuration_needs_no_assumption():
    assert read_hf_config(LLAMA, "x")[1] == ()


@pytest.mark.parametrize(
    ("config", "assumption"),
    [
        (
            {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
            "config.json.num_key_value_heads is absent: taken as 32, as the family does",
        ),
        (
            {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"},
            "config.json.tie_word_embeddings is absent: taken as false, as the family does",
        ),
        (
            dense("mistral", 32, 4096, 32, 14336, 32000, 32768, 8, **UNTIED),
            "config.json.sliding_window is absent: taken as 4096, as the family does",
        ),
        (CONFIGS["gemma-3-4b"], "multimodal model: only its text part (text_config) is planned for"),
        (CONFIGS["gemma-3-4b"], "config.json.head_dim is absent: taken as 256"),
        (CONFIGS["llama-4-scout"], "attention in chunks of 8192 tokens is treated as a sliding window"),
    ],
)
def test_what_is_filled_in_is_reported(config, assumption):
    assert assumption in read_hf_config(config, "x")[1]


def test_tying_default_is_the_family_s_own():
    for family, tied in (("gemma", True), ("llama", False), ("gpt2", True), ("falcon", True), ("cohere", True)):
        config = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
        config |= {"model_type": family, "n_positions": 128}
        assert read_hf_config(config, "x")[0].tie_word_embeddings is tied


def test_unknown_family_is_read_by_its_keys_and_says_so():
    spec, notes = read_hf_config(LLAMA | {"model_type": "brandnew", "hidden_act": "gelu"}, "x")
    assert not spec.gated_mlp
    assert notes == (
        "config.json.model_type 'brandnew' is not a known family: read by its keys as a Llama-like decoder "
        "(plain MLP, RMSNorm)",
    )
    assert read_hf_config(LLAMA | {"model_type": "brandnew", "hidden_act": "silu"}, "x")[0].gated_mlp


@pytest.mark.parametrize(
    ("change", "layers_with_experts"),
    [
        ({}, [0, 1, 2, 3]),
        ({"first_k_dense_replace": 2}, [2, 3]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"mlp_only_layers": [0]}, [1, 2, 3]),
        ({"moe_layer_freq": [0, 0, 1, 1]}, [2, 3]),
        ({"moe_layer_freq": 2, "first_k_dense_replace": 1}, [2]),
        ({"moe_layers": [1, 3]}, [1, 3]),
        ({"interleave_moe_layer_step": 2}, [1, 3]),
    ],
)
def test_expert_layers_are_where_the_family_puts_them(change, layers_with_experts):
    config = LLAMA | {"num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2} | change
    mask = read_hf_config(config, "x")[0].layer_is_moe
    assert [index for index, is_moe in enumerate(mask) if is_moe] == layers_with_experts


def test_no_layer_with_experts_means_a_dense_model():
    config = LLAMA | {"num_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 32}
    assert read_hf_config(config, "x")[0].moe is None
    assert read_hf_config(LLAMA | {"n_routed_experts": None}, "x")[0].moe is None


@pytest.mark.parametrize(
    ("model_type", "extra", "expected"),
    [
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 24}, (64, 8)),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False, "max_window_layers": 24}, (0, 0)),
        ("gemma2", {"sliding_window": 64}, (64, 16)),
        ("gemma3_text", {"sliding_window": 64}, (64, 27)),
        ("cohere2", {"sliding_window": 64, "sliding_window_pattern": 4}, (64, 24)),
        ("llama", {"sliding_window": 64}, (0, 0)),
        (
            "brandnew",
            {"sliding_window": 64, "layer_types": ["sliding_attention"] * 8 + ["full_attention"] * 24},
            (64, 8),
        ),
    ],
)
def test_windowed_layers(model_type, extra, expected):
    spec = read_hf_config(LLAMA | {"model_type": model_type} | extra, "x")[0]
    assert (spec.sliding_window, spec.windowed_layers) == expected


def without(key):
    return {name: value for name, value in LLAMA.items() if name != key}


MOE = LLAMA | {"num_experts": 8}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (without("hidden_size"), "config.json.hidden_size: is missing. Hint: this family has no default for it"),
        (without("num_hidden_layers"), "config.json.num_hidden_layers: is missing"),
        (without("num_attention_heads"), "config.json.num_attention_heads: is missing"),
        (without("vocab_size"), "config.json.vocab_size: is missing"),
        (without("intermediate_size"), "config.json.intermediate_size: is missing"),
        (MOE, "config.json.num_experts_per_tok: is missing"),
        (MOE | {"model_type": "qwen3_moe", "num_experts_per_tok": 2}, "config.json.moe_intermediate_size: is missing"),
        (LLAMA | {"kv_lora_rank": 512}, "config.json.qk_nope_head_dim: is missing"),
        ({"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 9},
         "config.json.n_positions: is missing"),
        (LLAMA | {"hidden_size": "4096"}, "config.json.hidden_size: must be a whole number of at least 0; got '4096'"),
        (LLAMA | {"hidden_size": 4096.0}, "config.json.hidden_size: must be a whole number of at least 0; got 4096.0"),
        (LLAMA | {"hidden_size": float("nan")}, "config.json.hidden_size: must be a whole number of at least 0; got n"),
        (LLAMA | {"hidden_size": True}, "config.json.hidden_size: must be a whole number of at least 0; got True"),
        (LLAMA | {"hidden_size": -1}, "config.json.hidden_size: must be a whole number of at least 0; got -1"),
        (LLAMA | {"hidden_size": 0}, "config.json.hidden_size: must be at least 1; got 0"),
        (LLAMA | {"hidden_size": 10**400}, "config.json.hidden_size: must be a whole number of at least 0; got an int"),
        (LLAMA | {"num_hidden_layers": 10**9}, "config.json.num_hidden_layers: must be at most 4096; got 1000000000"),
        (LLAMA | {"hidden_size": 1 << 40, "num_attention_heads": 32}, "config.json.hidden_size: must be between"),
        (LLAMA | {"num_attention_heads": 33, "num_key_value_heads": 33},
         "config.json.num_attention_heads: must divide hidden_size=4096 when head_dim is absent; got 33"),
        (LLAMA | {"num_key_value_heads": 5},
         "config.json.num_key_value_heads: must divide num_attention_heads=32; got 5"),
        (LLAMA | {"tie_word_embeddings": "yes"}, "config.json.tie_word_embeddings: must be true or false; got 'yes'"),
        (LLAMA | {"layer_types": ["linear_attention"] * 32}, "config.json.layer_types: unsupported layer 'linear"),
        (LLAMA | {"layer_types": ["full_attention"]}, "config.json.layer_types: must have 32 entries; got 1"),
        (MOE | {"moe_layer_freq": [1]}, "config.json.moe_layer_freq: must have 32 entries; got 1"),
        (MOE | {"mlp_only_layers": [3]},
         "config.json.mlp_only_layers: layers with experts, 0, 1, 2, 4, 5, 6, 7, 8, ... of 32, follow no regular"),
        (MOE | {"decoder_sparse_step": 0},
         "config.json.decoder_sparse_step: must be a whole number of at least 1; got 0"),
        (MOE | {"num_experts_per_tok": 9}, "config.json.num_experts_per_tok: must be between 1 and num_experts=8"),
        (GROUPS | {"n_group": 3}, "config.json.n_group: must divide num_experts=256; got 3"),
        (GROUPS | {"topk_group": 9}, "config.json.topk_group: must be between 1 and router_groups=8"),
        (GROUPS | {"n_group": 256, "topk_group": 1},
         "config.json.topk_group: must be between 1 and router_groups=256, and hold 8 experts; got 1"),
        ({"text_config": 3}, "config.json.text_config: must be a mapping; got 3"),
        ([], "config.json: must be a mapping; got an empty list"),
        ({"model_type": "t5", "num_layers": 12}, "config.json.model_type: 't5' is not a decoder-only transformer"),
        (LLAMA | {"model_type": "x", "is_encoder_decoder": True}, "config.json.model_type: 'x' is not a decoder-only"),
        ({"model_type": "mamba"}, "config.json.model_type: 'mamba' has state-space or recurrent layers"),
        (LLAMA | {"model_type": "x", "mamba_d_state": 16}, "config.json.model_type: 'x' has state-space or recurrent"),
        ({"model_type": "vit", "image_size": 224}, "config.json.model_type: 'vit' is a vision model"),
        ({"model_type": "new", "image_size": 224}, "config.json.model_type: 'new' is a vision model"),
        ({"model_type": "bert"}, "config.json.model_type: 'bert' is not a decoder-only transformer"),
    ],
)  # fmt: skip
def test_bad_configurations_name_the_key(config, message):
    with pytest.raises(SpecError) as error:
        read_hf_config(config, "x")
    assert str(error.value).startswith(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.integers(0, 64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
keys = st.sampled_from(
    sorted({key for config in CONFIGS.values() for key in config} | {"layer_types", "moe_layer_freq", "attn_config"})
)


@given(st.sampled_from(sorted(CONFIGS)), st.dictionaries(keys, json_values, max_size=4))
def test_arbitrary_values_give_a_model_or_a_spec_error(name, changes):
    try:
        spec = read_hf_config(CONFIGS[name] | changes, "x")[0]
    except SpecError:
        return
    assert isinstance(spec, ModelSpec)


@given(st.dictionaries(keys | st.text(max_size=8), json_values, max_size=8), st.sampled_from([*sorted(FAMILIES), ""]))
def test_arbitrary_json_gives_a_model_or_a_spec_error(config, model_type):
    try:
        spec = read_hf_config({"model_type": model_type} | config, "x")[0]
    except SpecError:
        return
    assert isinstance(spec, ModelSpec)
