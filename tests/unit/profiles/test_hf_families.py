"""Text parts of vision models are read as their family, and families without a price say what has none."""

from dataclasses import replace
from typing import Any

import pytest

from planner.question.request import Options, resolve_request
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_checks import OWN_FIELDS
from profiles.hf_config import read_hf_config
from profiles.model_presets import model_from_entry, resolve_model
from profiles.parameters import active_parameters, total_parameters

WITHOUT_IMAGES = "multimodal model: only its text part is planned for, without the images of vision_config"
# The keys of Qwen2.5-VL-7B-Instruct: those of the text part stand beside vision_config.
QWEN_25_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 128000,
    "sliding_window": 32768, "max_window_layers": 28, "use_sliding_window": False, "tie_word_embeddings": False,
    "vision_config": {"depth": 32, "hidden_size": 1280},
}  # fmt: skip
QWEN_3_VL_TEXT: dict[str, Any] = {
    "num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936, "max_position_embeddings": 262144,
}  # fmt: skip
MIXTURE = QWEN_3_VL_TEXT | {
    "num_hidden_layers": 48, "hidden_size": 2048, "num_key_value_heads": 4, "intermediate_size": 6144,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_the_text_part_of_qwen_2_5_vl_is_qwen_2_5(kind: str) -> None:
    """7,615,616,512 weights of Qwen2.5-7B, biases of queries, keys and values among them; 129,024 less without."""
    spec, notes = read_hf_config(QWEN_25_VL | {"model_type": kind}, "x")
    assert total_parameters(spec) == 7_615_616_512
    assert spec.family == "qwen2"
    assert notes == (WITHOUT_IMAGES,)


@pytest.mark.parametrize(
    ("kind", "text", "total", "active"),
    [
        ("qwen3_vl", QWEN_3_VL_TEXT, 8_190_735_360, 8_190_735_360),  # Qwen3-8B
        ("qwen3_vl_moe", MIXTURE, 30_532_122_624, 3_353_032_704),  # Qwen3-30B-A3B
    ],
)
def test_the_text_part_of_qwen_3_vl_is_qwen_3(kind: str, text: dict[str, Any], total: int, active: int) -> None:
    nested = {"model_type": kind, "text_config": text | {"model_type": f"{kind}_text"}, "tie_word_embeddings": False}
    spec, notes = read_hf_config(nested, "x")
    assert (total_parameters(spec), active_parameters(spec)) == (total, active)
    assert notes == ("multimodal model: only its text part (text_config) is planned for",)


def test_the_answer_says_that_images_are_left_out() -> None:
    request = resolve_request(QWEN_25_VL, "8xH100", None, {}, Options())
    assert WITHOUT_IMAGES in [note.message for note in request.assumptions]


BY_NAME = "multimodal model: only its text part is planned for, without images"


@pytest.mark.parametrize(
    ("name", "total", "length"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 1_543_714_304, 32768),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_085_938_688, 128000),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 72_706_203_648, 128000),
        ("Qwen/Qwen3-VL-32B-Thinking", 32_762_123_264, 262144),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", 235_093_634_560, 262144),
        ("OpenGVLab/InternVL3-1B", 629_697_920, 32768),  # 938 million with InternViT-300M and what joins them
        ("OpenGVLab/InternVL3-78B", 72_699_813_888, 32768),
    ],
)
def test_names_of_multimodal_checkpoints_are_their_text_part(name: str, total: int, length: int) -> None:
    found = resolve_model(name, default_catalog())
    assert (total_parameters(found.spec), found.spec.max_sequence_length) == (total, length)
    assert found.assumptions == (BY_NAME,)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("qwen2.5-vl-7b", QWEN_25_VL),
        ("qwen3-vl-8b", {"model_type": "qwen3_vl", "text_config": QWEN_3_VL_TEXT, "tie_word_embeddings": False}),
        ("qwen3-vl-30b-a3b", {"model_type": "qwen3_vl_moe", "text_config": MIXTURE, "tie_word_embeddings": False}),
    ],
)
def test_by_name_and_by_file_they_are_the_same(name: str, config: dict[str, Any]) -> None:
    known = resolve_model(name, default_catalog()).spec
    read = read_hf_config(config, name)[0]
    assert replace(read, source=known.source) == known
    assert read.family == known.family


def test_images_are_left_out_of_what_is_made_from_them() -> None:
    """A size under another ending, a checkpoint in other weights, and a model with other fields."""
    catalog = default_catalog()
    for given in ("Qwen/Qwen3-VL-8B-Instruct-FP8", "someone/qwen2.5-vl-7b-chat", {"base": "qwen3-vl-8b", "name": "x"}):
        assert resolve_model(given, catalog).assumptions[-1] == BY_NAME
    assert resolve_model("qwen3-8b", catalog).assumptions == ()


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("mistral-small-3.2", "mistral-small-3.2-24b"),
        ("google/gemma-3-27b-pt", "gemma-3-27b"),
        ("meta-llama/Llama-4-Scout-17B-16E", "llama-4-scout"),
        ("Qwen/Qwen3.6-27B", "qwen3.5-27b"),
        ("moonshotai/Kimi-K2.6", "kimi-k2.5"),
    ],
)
def test_all_that_see_say_that_images_are_left_out(name: str, preset: str) -> None:
    found = resolve_model(name, default_catalog())
    assert (found.spec.name, found.assumptions) == (preset, (BY_NAME,))


def test_a_text_part_is_true_or_false() -> None:
    entry = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128, "vocab_size": 100}
    with pytest.raises(SpecError, match=r"^models\.mine\.text_part: must be true or false; got 'yes'"):
        model_from_entry("mine", entry | {"text_part": "yes"})


def test_llama_3_2_vision_attends_to_images() -> None:
    with pytest.raises(SpecError, match=r"has layers that attend to images, which have no cost model\. Hint: plan for"):
        resolve_model("meta-llama/Llama-3.2-11B-Vision-Instruct", default_catalog())


STATES = "state-space or recurrent layers, which have no cost model"
ALTUP = "AltUp, per-layer embeddings and layers that share keys and values, which have no cost model"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ai21labs/AI21-Jamba-1.5-Mini", "layers of Mamba-1, which have no cost model"),
        ("tiiuae/Falcon-H1-7B-Base", "mixers of Mamba-2 beside attention in every layer, which have no cost model"),
        ("tiiuae/Falcon-H1R-7B", "mixers of Mamba-2 beside attention in every layer, which have no cost model"),
        ("LiquidAI/LFM2.5-1.2B-Instruct", "layers of short convolutions, which have no cost model"),
        ("meituan-longcat/LongCat-Flash-Chat", "experts that compute nothing, which have no cost model"),
        ("state-spaces/mamba-2.8b", STATES),
        ("mamba2-1.3b", STATES),
        ("google/gemma-3n-E4B-it", ALTUP),
    ],
)
def test_names_of_families_without_a_price_are_not_taken_for_others(name: str, layers: str) -> None:
    for model, field in ((name, "model"), ({"base": name}, "model.base")):
        with pytest.raises(SpecError) as caught:
            resolve_model(model, default_catalog())
        assert str(caught.value) == f"{field}: '{name}' has {layers}. Hint: {OWN_FIELDS}"


def test_gemma_3n_says_what_has_no_price() -> None:
    with pytest.raises(SpecError) as caught:
        read_hf_config({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "x")
    assert str(caught.value) == f"config.json.model_type: 'gemma3n_text' has {ALTUP}. Hint: {OWN_FIELDS}"


@pytest.mark.parametrize(
    ("kind", "key", "value", "layers"),
    [
        ("lfm2", "conv_L_cache", 3, "layers of short convolutions"),
        ("lfm2_moe", "conv_L_cache", 3, "layers of short convolutions"),
        ("falcon_h1", "mamba_d_ssm", 4096, "mixers of Mamba-2 beside attention in every layer"),
        ("jamba", "mamba_d_state", 16, "layers of Mamba-1"),
        ("longcat_flash", "zero_expert_num", 256, "experts that compute nothing"),
    ],
)
def test_files_of_layers_without_a_price_name_the_key_and_what_to_do(
    kind: str, key: str, value: int, layers: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read_hf_config(QWEN_3_VL_TEXT | {"model_type": kind, key: value}, "x")
    told = f"config.json.{key}: says that there are {layers}, which have no cost model. Hint: {OWN_FIELDS}"
    assert str(caught.value) == told
