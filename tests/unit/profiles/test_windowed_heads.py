"""MiMo-V2-Flash and Step-3.5-Flash: windowed layers with other heads, narrower values, and gates of heads."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.adapter_parameters import total_lora_parameters
from profiles.attention_kinds import attention_kinds
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.parameters import active_parameters, attention_parameters, key_value_parameters, total_parameters
from profiles.windowed_attention import WindowedAttention
from tests.fakes import latent, llama

FULL = [layer == 0 or layer % 6 == 5 for layer in range(48)]
MIMO: dict[str, Any] = {
    "model_type": "mimo_v2_flash", "num_hidden_layers": 48, "hidden_size": 4096, "num_attention_heads": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128, "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128, "sliding_window": 128,
    "sliding_window_size": 128, "hybrid_layer_pattern": [int(not full) for full in FULL], "attention_bias": False,
    "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False, "intermediate_size": 16384,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": None,
    "moe_layer_freq": [0] + [1] * 47, "vocab_size": 152576, "tie_word_embeddings": False, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 262144,
}  # fmt: skip
TYPES = ["full_attention", *["sliding_attention"] * 3] * 12
STEP: dict[str, Any] = {
    "model_type": "step3p5", "num_hidden_layers": 45, "hidden_size": 4096, "num_attention_heads": 64,
    "num_attention_groups": 8, "head_dim": 128, "attention_other_setting": {
        "attention_type": "sliding_attention", "num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128,
    },
    "layer_types": TYPES, "num_nextn_predict_layers": 3, "sliding_window": 512, "intermediate_size": 11264,
    "moe_layers_enum": ",".join(map(str, range(3, 45))), "moe_num_experts": 288, "moe_top_k": 8,
    "share_expert_dim": 1280, "moe_intermediate_size": 1280, "use_qk_norm": True, "use_head_wise_attn_gate": True,
    "use_moe_router_bias": True,
    "vocab_size": 128896, "tie_word_embeddings": False, "max_position_embeddings": 262144,
}  # fmt: skip


def as_native(config: dict[str, Any]) -> dict[str, Any]:
    """MiMo as transformers 5.24 writes it: its class doubles key/value heads within windows, and adds sinks."""
    kinds = ["full_attention" if full else "sliding_attention" for full in FULL]
    kept = {key: value for key, value in config.items() if "swa" not in key and "sink" not in key}
    del kept["hybrid_layer_pattern"], kept["moe_layer_freq"]
    return kept | {"layer_types": kinds, "mlp_layer_types": ["dense"] + ["sparse"] * 47}


def as_saved(config: dict[str, Any]) -> dict[str, Any]:
    """Step-3.5 as ``save_pretrained`` of transformers 5.24 writes it."""
    left = {key: value for key, value in config.items() if key not in ("attention_other_setting", "moe_layers_enum")}
    windowed = {f"{layer:02d}": {"num_attention_heads": 96} for layer in range(45) if layer % 4}
    mlps = ["dense"] * 3 + ["sparse"] * 42
    return left | {"layer_types": TYPES[:45], "mlp_layer_types": mlps, "per_layer_config": windowed}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mimo-v2-flash", MIMO),
        ("mimo-v2-flash", as_native(MIMO)),
        ("step-3.5-flash", STEP),
        ("step-3.5-flash", as_saved(STEP)),
        ("step-3.5-flash", {"model_type": "step3p7", "vision_config": {}, "text_config": STEP}),
    ],
)
def test_names_and_files_are_the_same(name: str, config: dict[str, Any]) -> None:
    known = resolve_model(name, default_catalog()).spec
    read = read_hf_config(config, name)[0]
    assert replace(read, source=known.source, published_parameters=known.published_parameters) == known
    assert read.family == known.family


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("XiaomiMiMo/MiMo-V2-Flash", 309e9, 15.45e9), ("stepfun-ai/Step-3.5-Flash", 196.9e9, 12.0e9)],
)
def test_counts_are_those_of_the_model_cards(name: str, total: float, active: float) -> None:
    """309 billion, 15 of them active; 196.8 and 11, and a billion more with both ends."""
    spec = resolve_model(name, default_catalog()).spec
    assert total_parameters(spec) == pytest.approx(total, rel=0.002)
    assert active_parameters(spec) == pytest.approx(active, rel=0.002)


def test_matrices_of_mimo_are_counted_by_hand() -> None:
    (full, nine), (windowed, others) = attention_kinds(resolve_model("mimo-v2-flash", default_catalog()).spec)
    assert (nine, others) == (9, 39)
    assert (full.attention_sinks, windowed.attention_sinks) == (False, True)
    for kind, heads in ((full, 4), (windowed, 8)):
        assert key_value_parameters(kind) == 4096 * heads * (192 + 128)
    assert attention_parameters(windowed) == 4096 * (64 * 192 + 8 * 320 + 64 * 128) + 64
    assert total_lora_parameters(full, 8, ("v",)) == 48 * 8 * (4096 + 4 * 128)
    assert total_lora_parameters(full, 8, ("o",)) == 48 * 8 * (64 * 128 + 4096)


def test_gates_of_heads_are_a_product_of_their_own() -> None:
    (full, twelve), (windowed, others) = attention_kinds(resolve_model("step-3.5-flash", default_catalog()).spec)
    assert (twelve, others) == (12, 33)
    for kind, heads in ((full, 64), (windowed, 96)):
        assert attention_parameters(kind) == 4096 * (2 * heads * 128 + 2 * 8 * 128 + heads) + 2 * 128


def test_sinks_of_all_layers_stay_those_of_all_layers() -> None:
    gpt_oss = resolve_model("gpt-oss-20b", default_catalog()).spec
    assert (gpt_oss.attention_sinks, gpt_oss.windowed_attention) == (True, None)


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        (MIMO, {"swa_v_head_dim": 64}, r"swa_v_head_dim: is 64, and v_head_dim 128, which has no price"),
        (MIMO, {"hybrid_layer_pattern": [0, 1]}, r"hybrid_layer_pattern: must have 48 entries; got 2"),
        (STEP, {"attention_other_setting": 96}, r"attention_other_setting: must be a mapping; got 96"),
        (STEP, {"moe_layers_enum": "3,x"}, r"moe_layers_enum: names layers 0 to 44; got 'x'"),
        (STEP, {"share_q_dim": 2048}, r"share_q_dim: says that there are attention of factorised matrices"),
    ],
)
def test_files_that_say_otherwise_are_refused(config: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=rf"^config\.json\.{told}"):
        read_hf_config(config | changes, "x")


@pytest.mark.parametrize(
    ("key", "value"),
    [("swa_num_key_value_heads", 8), ("attention_other_setting", {"num_attention_heads": 96})],
)
def test_heads_of_windows_without_windows_are_refused(key: str, value: Any) -> None:
    config = {"model_type": "odd", "num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1024,
              "vocab_size": 100, "num_attention_heads": 8, "num_key_value_heads": 4}  # fmt: skip
    told = rf"^config\.json\.{key}: says that windowed layers have other heads, and none has a window\. Hint: sliding"
    with pytest.raises(SpecError, match=told):
        read_hf_config(config | {key: value}, "x")


@pytest.mark.parametrize("name", ["keys_are_values", "value_head_dim", "head_gates"])
def test_latent_attention_has_none_of_them(name: str) -> None:
    with pytest.raises(SpecError, match=rf"^model\.{name}: has no price beside latent attention"):
        latent(**{name: 64 if name == "value_head_dim" else True})
    own = WindowedAttention(num_attention_heads=16, num_key_value_heads=4, head_dim=64)
    with pytest.raises(SpecError, match=r"^model\.windowed_attention: beside latent or linear attention"):
        latent(windowed_attention=own, sliding_window=64, windowed_layers=4)
    with pytest.raises(SpecError, match=r"^model\.value_head_dim: values that are keys are as wide as these"):
        llama(keys_are_values=True, value_head_dim=32)
