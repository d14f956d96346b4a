"""Layers with a window and heads of their own: Gemma 4's checkpoints, files and names, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.adapter_parameters import lora_parameters, total_lora_parameters
from profiles.attention_kinds import attention_kinds
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.parameters import active_parameters, attention_parameters, layer_parameters, total_parameters
from profiles.windowed_attention import WindowedAttention
from tests.fakes import llama
from tests.presets import preset

TYPES = ["sliding_attention"] * 5 + ["full_attention"]
TEXT: dict[str, Any] = {
    "model_type": "gemma4_text", "attention_bias": False, "attention_k_eq_v": True, "enable_moe_block": False,
    "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 5376, "hidden_size_per_layer_input": 0, "intermediate_size": 21504, "layer_types": TYPES * 10,
    "max_position_embeddings": 262144, "num_attention_heads": 32, "num_experts": None, "num_global_key_value_heads": 4,
    "num_hidden_layers": 60, "num_key_value_heads": 16, "num_kv_shared_layers": 0, "sliding_window": 1024,
    "rope_parameters": {"full_attention": {"rope_type": "proportional"}, "sliding_attention": {"rope_type": "default"}},
    "tie_word_embeddings": True, "top_k_experts": None, "use_bidirectional_attention": "vision",
    "use_double_wide_mlp": False, "vocab_size": 262144, "vocab_size_per_layer_input": 262144,
}  # fmt: skip
MIXTURE = TEXT | {
    "enable_moe_block": True, "hidden_size": 2816, "intermediate_size": 2112, "layer_types": TYPES * 5,
    "moe_intermediate_size": 704, "num_attention_heads": 16, "num_experts": 128, "num_global_key_value_heads": 2,
    "num_hidden_layers": 30, "num_key_value_heads": 8, "top_k_experts": 8,
}  # fmt: skip
UNIFIED = TEXT | {
    "model_type": "gemma4_unified_text", "hidden_size": 3840, "intermediate_size": 15360, "layer_types": TYPES * 8,
    "num_attention_heads": 16, "num_global_key_value_heads": 1, "num_hidden_layers": 48, "num_key_value_heads": 8,
}  # fmt: skip
FILES = {"gemma-4-31b": TEXT, "gemma-4-26b-a4b": MIXTURE, "gemma-4-12b": UNIFIED}


def as_saved(text: dict[str, Any]) -> dict[str, Any]:
    """As ``save_pretrained`` of transformers 5.24 writes it: what single layers have, and no keys that say global."""
    heads = {"head_dim": text["global_head_dim"], "num_key_value_heads": text["num_global_key_value_heads"]}
    full = range(5, text["num_hidden_layers"], 6)
    left = {key: value for key, value in text.items() if "global" not in key}
    return left | {"per_layer_config": {f"{layer:02d}": heads for layer in full}}


@pytest.mark.parametrize("name", FILES)
def test_names_and_files_of_gemma_4_are_the_same(name: str) -> None:
    known, kind = preset(name), FILES[name]["model_type"]
    nested = {"model_type": kind.removesuffix("_text"), "text_config": FILES[name], "vision_config": {}}
    for config in (nested, FILES[name], as_saved(FILES[name])):
        read = read_hf_config(config, name)[0]
        assert replace(read, source=known.source, published_parameters=known.published_parameters) == known
        assert read.family == known.family == kind
        assert total_parameters(read) == known.published_parameters


@pytest.mark.parametrize(
    ("name", "text", "beside"),
    [
        # Safetensors hold the text part, a buffer per layer, and what sees and hears: 31B has a tower of 27 layers of
        # 20,187,792, two tables of 10,240 positions, patches of 768, two vectors and a projection to 5,376.
        ("google/gemma-4-31B-it", 31_273_088_876 - 60, 27 * 20_187_792 + (2 * 10240 + 768 + 2 + 5376) * 1152),
        ("google/gemma-4-26B-A4B-it", 25_805_936_206 - 30, 27 * 20_187_792 + (2 * 10240 + 768 + 2 + 2816) * 1152),
    ],
)
def test_parameters_are_those_of_the_checkpoint_less_what_sees(name: str, text: int, beside: int) -> None:
    assert total_parameters(preset(name)) == text - beside


def test_a_token_of_the_mixture_meets_3_8_billion() -> None:
    assert active_parameters(preset("gemma-4-26b-a4b")) == pytest.approx(3.8e9, rel=0.01)


def test_layers_without_a_window_are_the_models_own() -> None:
    (full, ten), (windowed, fifty) = attention_kinds(preset("gemma-4-31b"))
    assert (ten, fifty) == (10, 50)
    assert (full.head_dim, full.num_key_value_heads, full.keys_are_values, full.windowed_layers) == (512, 4, True, 0)
    assert (windowed.head_dim, windowed.num_key_value_heads, windowed.keys_are_values) == (256, 16, False)
    assert windowed.bounded_keys == (1024, 1.0)
    assert attention_parameters(full) == 5376 * (2 * 16384 + 2048) + 2 * 512
    assert attention_parameters(windowed) == 5376 * (2 * 8192 + 2 * 4096) + 2 * 256
    mean = layer_parameters(preset("gemma-4-31b"), moe=False)
    assert mean.attention == pytest.approx((attention_parameters(full) + 5 * attention_parameters(windowed)) / 6)
    assert mean.replicated == pytest.approx(4 * 5376 + (2 * 512 + 5 * 2 * 256) / 6)
    assert attention_kinds(llama()) == ((llama(), 8),)


def test_adapters_on_values_meet_the_layers_that_project_them() -> None:
    model = preset("gemma-4-31b")
    assert total_lora_parameters(model, 8, ("v",)) == 50 * 8 * (5376 + 4096)
    assert total_lora_parameters(model, 8, ("q",)) == 8 * (50 * (5376 + 8192) + 10 * (5376 + 16384))
    assert lora_parameters(model, 8, ("k",)) == pytest.approx(8 * (50 * (5376 + 4096) + 10 * (5376 + 2048)) / 60)


def test_degrees_have_to_split_both_kinds() -> None:
    own = WindowedAttention(num_attention_heads=24, num_key_value_heads=8, head_dim=64)
    model = llama(sliding_window=64, windowed_layers=4, windowed_attention=own)
    assert (model.split_heads, model.key_value_heads, model.widest_heads) == (8, (4, 8), 24 * 64)
    assert (llama().split_heads, llama().key_value_heads, llama().has_sinks) == (16, (4,), False)
    assert replace(model, windowed_attention=replace(own, attention_sinks=True)).has_sinks


def test_own_fields_say_it_too() -> None:
    nested = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
    mine = resolve_model({"base": "gemma-4-12b", "windowed_attention": nested}, default_catalog()).spec
    assert mine.windowed_attention == WindowedAttention(num_attention_heads=8, num_key_value_heads=8, head_dim=32)
    with pytest.raises(SpecError, match=r"^model\.windowed_attention\.heads: unknown field"):
        resolve_model({"base": "gemma-4-12b", "windowed_attention": {"heads": 8}}, default_catalog())


@pytest.mark.parametrize(
    ("own", "changes", "told"),
    [
        ({"num_key_value_heads": 5}, {}, "num_key_value_heads: must divide num_attention_heads=16; got 5"),
        ({"head_dim": 0}, {}, "head_dim: must be between 1 and"),
        ({}, {"windowed_layers": 0, "sliding_window": 0}, "is of 1 to 7 of 8 layers, and windowed_layers is 0"),
        ({}, {"windowed_layers": 8}, "is of 1 to 7 of 8 layers, and windowed_layers is 8"),
    ],
)
def test_heads_that_no_layer_has_are_refused(own: dict[str, int], changes: dict[str, int], told: str) -> None:
    heads = WindowedAttention(**{"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64} | own)
    with pytest.raises(SpecError, match=told):
        llama(**{"sliding_window": 64, "windowed_layers": 4, "windowed_attention": heads} | changes)


PER_LAYER = "embeddings of every layer and layers that share keys and values, which have no cost model"


@pytest.mark.parametrize("name", ["google/gemma-4-E2B-it", "gemma-4-e4b", "unsloth/gemma-4-E4B-it-bnb-4bit"])
def test_e_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_model(name, default_catalog())
    assert str(caught.value).startswith(f"model: '{name}' has {PER_LAYER}. Hint: plan for a near model in fields of")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input: says that there are embeddings of every"),
        ({"num_kv_shared_layers": 20}, "num_kv_shared_layers: says that there are layers that share keys and values"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention: says that tokens attend to later ones"),
        ({"global_head_dim": "wide"}, "global_head_dim: must be a whole number"),
        ({"per_layer_config": {"60": {}}}, "per_layer_config: names layers 0 to 59; got '60'"),
        (
            {"per_layer_config": {"5": {"intermediate_size": 9}}},
            r"per_layer_config\.intermediate_size: of single layers",
        ),
        ({"per_layer_config": {"5": {"head_dim": 512}}}, "per_layer_config: gives layers that attend alike different"),
        ({"per_layer_config": [512]}, "per_layer_config: must be a mapping of layers; got a list"),
    ],
)
def test_files_without_a_price_say_the_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=rf"config\.json\.{told}"):
        read_hf_config(TEXT | changes, "x")


def test_what_the_class_has_and_a_file_leaves_out_is_not_taken_for_nothing() -> None:
    """``hidden_size_per_layer_input`` is 256 in Gemma4TextConfig, and no key of the unified one."""
    cut = {key: value for key, value in TEXT.items() if key != "hidden_size_per_layer_input"}
    with pytest.raises(SpecError, match=r"hidden_size_per_layer_input: is missing, which gemma4_text always says"):
        read_hf_config(cut, "x")
    del cut["global_head_dim"]
    read, notes = read_hf_config(cut | {"model_type": "gemma4_unified_text"}, "x")
    assert read.head_dim == 512
    assert "config.json.global_head_dim is absent: taken as 512" in notes


def test_heads_of_single_layers_are_read_in_any_family() -> None:
    config = {
        "model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 100,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True,
        "per_layer_config": {str(layer): {"num_key_value_heads": 2} for layer in range(4)},
    }  # fmt: skip
    assert read_hf_config(config, "x")[0].num_key_value_heads == 2
