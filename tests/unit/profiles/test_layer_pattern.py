"""Layers that are a mixer or an MLP alone: counted tensor by tensor, read from configurations, refused where odd."""

from dataclasses import replace
from typing import Any

import pytest

import planner
from profiles.adapter_parameters import lora_parameters, total_lora_parameters
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.parameters import active_parameters, layer_parameters, total_parameters
from tests.fakes import hybrid
from tests.presets import preset

NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
EIGHT = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"


def mamba(hidden: int, heads: int, width: int, state: int, groups: int = 8) -> int:
    """One layer's tensors in a checkpoint: in_proj, conv1d with its bias, A_log, D and dt_bias, two norms, out_proj."""
    inner, mixed = heads * width, heads * width + 2 * groups * state
    return hidden * (inner + mixed + heads) + mixed * (4 + 1) + 3 * heads + inner + hidden + inner * hidden


def attention(hidden: int, heads: int, kv_heads: int) -> int:
    return hidden * 128 * (heads + 2 * kv_heads) + heads * 128 * hidden + hidden


def test_nemotron_h_has_the_tensors_of_its_checkpoints() -> None:
    """Counts of safetensors where they are public: Nano 9B v2 8,888,227,328; Nano 3's leaves the router's bias out."""
    ends = 2 * 131072 * 4096 + 4096
    mlp = 2 * 4096 * 21504 + 4096
    by_hand = ends + 24 * mamba(4096, 128, 64, 128) + 4 * attention(4096, 32, 8) + 24 * mlp
    assert total_parameters(preset("nemotron-h-8b")) == by_hand == 8_100_852_736
    assert total_parameters(preset("nemotron-nano-9b-v2")) == 8_888_227_328
    assert total_parameters(preset("nemotron-3-nano-30b-a3b")) == 31_577_937_344 + 23 * 128


def test_latent_experts_are_as_wide_as_their_latent_space() -> None:
    """Nemotron 3 Super: 120.6B and 12.7B active of its report, MTP left out."""
    model = preset("nemotron-3-super-120b-a12b")
    around = 4096 * 1024 * 2
    experts = 512 * 2 * 1024 * 2688
    layer = layer_parameters(model, moe=True)
    assert (layer.latent, layer.routed_experts) == (around, experts)
    assert layer.shared_experts == 2 * 4096 * 5376
    moe = 4096 + 512 * (4096 + 1) + around + experts + 2 * 4096 * 5376
    ends = 2 * 131072 * 4096 + 4096
    by_hand = ends + 40 * mamba(4096, 128, 64, 128) + 8 * attention(4096, 32, 2) + 40 * moe
    assert total_parameters(model) == by_hand == 120_668_707_840
    assert active_parameters(model) == by_hand - 40 * 490 * 2 * 1024 * 2688
    assert active_parameters(model) == pytest.approx(12.7e9, rel=0.01)
    ultra = preset("nemotron-3-ultra-550b-a55b")
    assert total_parameters(ultra) == pytest.approx(550e9, rel=0.002)
    assert active_parameters(ultra) - 131072 * 8192 == pytest.approx(55e9, rel=0.002)


def test_a_mean_layer_times_the_layers_is_the_model() -> None:
    for name in ("nemotron-h-8b", "nemotron-3-nano-30b-a3b"):
        model = preset(name)
        moe = model.num_moe_layers
        ends = 2 * 131072 * model.hidden_size + model.hidden_size
        layers = (model.num_layers - moe) * layer_parameters(model, moe=False).total
        layers += moe * layer_parameters(model, moe=True).total
        assert layers + ends == pytest.approx(total_parameters(model), rel=1e-12)
        adapted = ("q", "k", "v", "o", "up", "down")
        each = {kind: lora_parameters(model, 16, adapted, moe=kind) for kind in (False, True)}
        summed = (model.num_layers - moe) * each[False] + moe * each[True]
        assert summed == pytest.approx(total_lora_parameters(model, 16, adapted), rel=1e-12)
    eight = preset("nemotron-h-8b")
    assert total_lora_parameters(eight, 16, ("q",)) == 4 * 16 * (4096 + 4096)  # attention of four layers
    assert total_lora_parameters(eight, 16, ("up",)) == 24 * 16 * (4096 + 21504)


def test_shares_say_which_layers_have_what() -> None:
    model = preset("nemotron-3-nano-30b-a3b")
    assert (model.full_attention_layers, model.num_moe_layers, model.dense_mlp_layers) == (6, 23, 0)
    assert (model.mixer_share, model.full_share, model.dense_mlp_share) == (29 / 52, 6 / 52, 0.0)
    assert [index for index, moe in enumerate(model.layer_is_moe) if moe][:4] == [1, 3, 6, 8]
    plain = hybrid()
    assert (plain.mixer_share, plain.dense_mlp_share, plain.full_share, plain.norms_per_block) == (1, 1, 0.25, 1)


# What the public config.json of each model holds, as far as it bears on the dimensions.
CONFIG: dict[str, Any] = {
    "model_type": "nemotron_h", "num_hidden_layers": 52, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "attention_head_dim": 128, "intermediate_size": 21504, "vocab_size": 131072,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "hybrid_override_pattern": EIGHT,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
    "chunk_size": 128, "use_bias": False, "use_conv_bias": True, "mlp_bias": False, "attention_bias": False,
}  # fmt: skip
MOE: dict[str, Any] = CONFIG | {
    "hidden_size": 2688, "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 1856, "mamba_num_heads": 64,
    "hybrid_override_pattern": NANO, "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856,
    "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 3712, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 262144, "moe_latent_size": None,
}  # fmt: skip
NAMES = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
LISTED = {key: value for key, value in MOE.items() if key != "hybrid_override_pattern"} | {
    "layers_block_type": [NAMES[letter] for letter in NANO], "num_hidden_layers": None
}  # fmt: skip
# Transformers writes the class's number of experts for a model that has none.
CONFIGS = {
    "nemotron-h-8b": (CONFIG, CONFIG | {"n_routed_experts": 8, "num_experts_per_tok": 2}),
    "nemotron-3-nano-30b-a3b": (MOE, LISTED),
    "nemotron-3-super-120b-a12b": (
        MOE | {"hidden_size": 4096, "intermediate_size": 2688, "mamba_num_heads": 128, "n_routed_experts": 512,
               "num_experts_per_tok": 22, "moe_intermediate_size": 2688, "moe_latent_size": 1024,
               "moe_shared_expert_intermediate_size": 5376, "num_nextn_predict_layers": 1, "num_hidden_layers": 88,
               "hybrid_override_pattern": preset("nemotron-3-super-120b-a12b").layer_pattern},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_equals_the_preset(name: str) -> None:
    known = preset(name)
    for config in CONFIGS[name]:
        spec = read_hf_config(config, name)[0]
        assert replace(spec, published_parameters=known.published_parameters, source=known.source) == known


def test_what_is_filled_in_is_reported() -> None:
    spec, notes = read_hf_config({key: value for key, value in CONFIG.items() if key != "ssm_state_size"}, "x")
    assert spec.linear_attention == preset("nemotron-h-8b").linear_attention
    assert "config.json.ssm_state_size is absent: taken as 128" in notes
    halved, _ = read_hf_config(CONFIG | {"mamba_ssm_cache_dtype": "bfloat16"}, "x")
    assert halved.linear_attention is not None
    assert not halved.linear_attention.float32_states


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"hybrid_override_pattern": None}, "hybrid_override_pattern: is missing"),
        (CONFIG | {"hybrid_override_pattern": EIGHT + "|"}, "hybrid_override_pattern: unsupported layer '|'"),
        (CONFIG | {"layers_block_type": ["mamba", "conv"]}, "layers_block_type: unsupported layer 'conv'"),
        (CONFIG | {"layers_block_type": ["mamba", None]}, "layers_block_type: unsupported layer None"),
        (CONFIG | {"num_hidden_layers": 51}, "num_hidden_layers: is 51, and the pattern has 52 layers"),
        (CONFIG | {"use_bias": True}, "use_bias: true is not known"),
        (CONFIG | {"n_groups": 0}, "n_groups: must be a whole number of at least 1"),
        (CONFIG | {"hybrid_override_pattern": "M-" * 26}, "layer_pattern: has no layer that attends in full"),
        (MOE | {"n_routed_experts": 0}, "layer_pattern: has layers of experts, and moe is missing"),
    ],
)
def test_odd_patterns_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_hf_config(config, "x")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_pattern": EIGHT[:-1]}, "must have one letter for each of num_layers=52; got 51"),
        ({"layer_pattern": EIGHT.replace("-", "M")}, "must have as many M as linear_attention.layers=24; got 48"),
        ({"layer_pattern": EIGHT.replace("-", "G")}, "knows the layers M * - E; got 'G'"),
        ({"layer_pattern": EIGHT.replace("-", "E")}, "has layers of experts, and moe is missing"),
        ({"num_layers": 50}, "must have one letter for each of num_layers=50; got 52"),
    ],
)
def test_a_pattern_agrees_with_the_rest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        resolve_model({"base": "nemotron-h-8b", **changes}, default_catalog(), allow_paths=False)
    assert str(refused.value).startswith(f"model.layer_pattern: {message}")


def test_a_draft_is_none_of_its_layers() -> None:
    asked: dict[str, Any] = {"prompt": 1000, "generate": 100, "rate_per_s": 1, "speculate": "mtp", "draft_tokens": 1}
    with pytest.raises(SpecError, match="nobody timed how"):
        planner.serving("nemotron-3-nano-30b-a3b", "8xH200", engine="vllm", accepted=0.5, **asked)
