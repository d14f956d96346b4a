"""Families read by keys that others do not have, to the parameters of the classes of transformers 5.24 or of cards."""

from typing import Any

import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from profiles.parameters import active_parameters, total_parameters

MUSE_GLIMMER: dict[str, Any] = {
    "model_type": "muse_glimmer_text", "num_hidden_layers": 52, "hidden_size": 6656, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 19968, "vocab_size": 202048,
    "hidden_activation": "silu", "sliding_window": 2048, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
MUSE_SPARK: dict[str, Any] = {
    "model_type": "muse_spark_text", "num_hidden_layers": 4, "hidden_size": 8192, "num_attention_heads": 128,
    "num_key_value_heads": 16, "head_dim": 64, "intermediate_size": 16384, "vocab_size": 202048,
    "moe_intermediate_size": 4096, "moe_hidden_size": 4096, "num_local_experts": 256, "num_experts_per_tok": 8,
    "mlp_layer_types": ["dense", *["sparse"] * 3], "sliding_window": 2048, "max_position_embeddings": 1048576,
    "tie_word_embeddings": False,
}  # fmt: skip


def model(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return read_hf_config(config | changes, "some")[0]


def test_muse_glimmer_has_a_gate_of_attention() -> None:
    read = model({"model_type": "muse_glimmer", "vision_config": {}, "text_config": MUSE_GLIMMER})
    assert (read.attention_output_gate, total_parameters(read)) == (True, 27_854_780_928)


def test_experts_of_muse_spark_work_on_a_width_of_their_own() -> None:
    """Without the two norms of that width in a layer of experts."""
    read = model(MUSE_SPARK)
    assert read.expert_hidden_size == 4096
    assert total_parameters(read) == 43_447_943_936 - 3 * 2 * 4096
    whole = model(MUSE_SPARK, num_hidden_layers=62, mlp_layer_types=None)
    embedding = 2 * 202048 * 8192
    assert total_parameters(whole) - embedding == pytest.approx(816e9, rel=0.001)  # Muse-Spark-Open-816B-A42B
    assert active_parameters(whole) - embedding == pytest.approx(42e9, rel=0.03)


def test_a_width_of_experts_that_a_family_always_says_is_not_guessed() -> None:
    config = {key: value for key, value in MUSE_SPARK.items() if key != "moe_hidden_size"}
    with pytest.raises(SpecError, match=r"^config\.json\.moe_hidden_size: is missing"):
        model(config)


def test_layers_without_a_window_are_counted_from_the_last() -> None:
    for layers in (5, 6, 52):
        said = ["full_attention" if (layers - 1 - at) % 4 == 0 else "sliding_attention" for at in range(layers)]
        counted = model(MUSE_GLIMMER, num_hidden_layers=layers)
        assert counted == model(MUSE_GLIMMER, num_hidden_layers=layers, layer_types=said)
        assert counted.windowed_layers == said.count("sliding_attention")


GROK_2: dict[str, Any] = {
    "model_type": "git", "num_hidden_layers": 64, "hidden_size": 8192, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 32768, "moe_intermediate_size": 16384,
    "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 131072, "residual_moe": True,
    "sliding_window_size": -1, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
MOLMO: dict[str, Any] = {
    "model_type": "molmo", "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 37888, "vocab_size": 152064, "qkv_bias": True,
    "attention_layer_norm": False, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_4: dict[str, Any] = {
    "model_type": "llama4_text", "num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2048, "intermediate_size_mlp": 4096,
    "vocab_size": 32000, "num_local_experts": 16, "num_experts_per_tok": 1, "tie_word_embeddings": False,
}  # fmt: skip


def test_grok_2_has_a_dense_mlp_beside_its_experts_and_no_window() -> None:
    """269.5 billion parameters by its card."""
    read = model(GROK_2)
    assert (read.sliding_window, read.moe and read.moe.shared_ffn_hidden_size) == (0, 32768)
    assert total_parameters(read) == pytest.approx(269.5e9, rel=0.001)
    assert model(GROK_2, residual_moe=False).moe != read.moe


def test_a_window_may_not_be_any_other_negative_number() -> None:
    with pytest.raises(SpecError, match=r"^config\.json\.sliding_window_size: must be a whole number of at least 0"):
        model(GROK_2, sliding_window_size=-2)


def test_molmo_counts_both_halves_of_a_gated_mlp() -> None:
    """Molmo-7B-D is Qwen2-7B: 7,615,616,512 parameters. Biases only where its key says so."""
    assert total_parameters(model(MOLMO)) == 7_615_616_512
    bare = {key: value for key, value in MOLMO.items() if key != "qkv_bias"}
    assert not model(bare).qkv_bias


@pytest.mark.parametrize(
    ("said", "parameters"),
    [
        ({"moe_layers": []}, 187_188_224),
        ({"interleave_moe_layer_step": 2}, 564_741_120),
    ],
)
def test_dense_layers_of_llama_4_are_as_wide_as_a_key_of_their_own_says(said: dict[str, Any], parameters: int) -> None:
    assert total_parameters(model(LLAMA_4, **said)) == parameters


def test_an_empty_list_of_layers_says_nothing_of_other_families() -> None:
    plain = model(LLAMA_4, model_type="mixtral")
    assert plain.moe is not None
    assert model(LLAMA_4, model_type="mixtral", moe_layers=[]) == plain


DEEPSEEK_OCR: dict[str, Any] = {
    "model_type": "deepseek_v2", "num_hidden_layers": 12, "hidden_size": 1280, "num_attention_heads": 10,
    "num_key_value_heads": 10, "intermediate_size": 6848, "vocab_size": 129280, "first_k_dense_replace": 1,
    "moe_intermediate_size": 896, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "n_group": 1, "topk_group": 1, "topk_method": "greedy", "use_mla": False, "kv_lora_rank": None,
    "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0, "tie_word_embeddings": False,
}  # fmt: skip
MINICPM_3: dict[str, Any] = {
    "model_type": "minicpm3", "num_hidden_layers": 62, "hidden_size": 2560, "num_attention_heads": 40,
    "num_key_value_heads": 40, "intermediate_size": 6400, "vocab_size": 73448, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "q_lora_rank": 768, "kv_lora_rank": 256, "hidden_act": "silu",
}  # fmt: skip


def test_files_of_deepseek_that_say_so_have_plain_attention() -> None:
    read = model(DEEPSEEK_OCR)
    assert (read.latent_attention, read.head_dim, read.value_width) == (None, 128, 128)
    assert total_parameters(read) == pytest.approx(2.93e9, rel=0.002)
    assert model(DEEPSEEK_OCR, kv_lora_rank=512) == read
    with pytest.raises(SpecError, match=r"^config\.json\.kv_lora_rank: is missing"):
        model(DEEPSEEK_OCR, use_mla=True)


def test_values_of_minicpm_3_are_as_wide_as_its_class_has_them() -> None:
    read, notes = read_hf_config(MINICPM_3, "some")
    assert total_parameters(read) == 4_073_875_968
    assert "config.json.v_head_dim is absent: taken as 64" in notes


def test_what_terminals_obey_is_no_name() -> None:
    text = MINICPM_3 | {"_name_or_path": "org/some\x1b[31m-4b"}
    assert resolve_model(text, default_catalog()).spec.name == "minicpm3"
    assert resolve_model(text | {"model_type": "odd\x1b[2J", "v_head_dim": 64}, default_catalog()).spec.name == (
        "config.json"
    )
    with pytest.raises(SpecError) as caught:
        resolve_model({"model_type": "llama", "_name_or_path": "some\x1b[31m"}, default_catalog())
    assert str(caught.value).isprintable()


UNLIKE = "config.json: the name says {}B parameters, and the keys come to 4.07B: layers of '{}' may be other than these"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("some-4b", None),
        ("Some-4.5B-A1B-1M", None),
        ("Some-3.5B", None),  # of layers alone, 3.885
        ("Some-3B", "3"),
        ("Some-7B", "7"),
        ("Some-816B-A42B", "816"),
        ("Some-A42B", None),
        ("Some-8x7B-4bit", None),
        ("Some-v7", None),
    ],
)
def test_an_unknown_family_is_said_to_be_unlike_its_name(name: str, said: str | None) -> None:
    notes = read_hf_config(MINICPM_3 | {"v_head_dim": 64}, name)[1]
    unlike = [note for note in notes if "the name says" in note]
    assert unlike == ([] if said is None else [UNLIKE.format(said, name)])


def test_a_known_family_may_be_called_what_it_likes() -> None:
    assert not [note for note in read_hf_config(MOLMO, "some-900b")[1] if "the name says" in note]
