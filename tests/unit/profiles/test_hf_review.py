"""Keys that a config.json says and that were read past: each came to the parameters of another model.

Counts are those of the classes of transformers 5.24 on the meta device, unless a comment says what is left out.
"""

from typing import Any

import pytest

from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model import ModelSpec
from profiles.parameters import total_parameters

UNKNOWN: dict[str, Any] = {
    "model_type": "some", "num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 8, "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}  # fmt: skip
BITNET: dict[str, Any] = {
    "model_type": "bitnet", "num_hidden_layers": 30, "hidden_size": 2560, "num_attention_heads": 20,
    "num_key_value_heads": 5, "intermediate_size": 6912, "vocab_size": 128256, "hidden_act": "relu2",
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
VAULTGEMMA: dict[str, Any] = {
    "model_type": "vaultgemma", "num_hidden_layers": 26, "hidden_size": 1152, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 6912, "vocab_size": 256000,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "sliding_window": 512,
    "layer_types": ["full_attention"] * 26, "max_position_embeddings": 1024, "attn_logit_softcapping": None,
}  # fmt: skip
ETTIN: dict[str, Any] = {
    "model_type": "modernbert-decoder", "num_hidden_layers": 28, "hidden_size": 1792, "num_attention_heads": 28,
    "intermediate_size": 3840, "vocab_size": 50368, "hidden_activation": "gelu", "local_attention": 128,
    "global_attn_every_n_layers": 3, "max_position_embeddings": 7999,
}  # fmt: skip


def model(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return read_hf_config(config | changes, "some")[0]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (BITNET, 2_412_820_480 - 30 * 6912),  # without the norms within MLPs
        (VAULTGEMMA, 1_038_741_120),
        (ETTIN, 1_031_314_112 - 1792**2),  # without the square matrix before the head
    ],
)
def test_decoders_whose_activation_does_not_tell_that_they_gate(config: dict[str, Any], parameters: int) -> None:
    assert total_parameters(model(config)) == parameters


def test_a_decoder_of_modernbert_attends_in_full_in_every_third_layer_from_the_first() -> None:
    """And sees the half of what ``local_attention`` says of both sides."""
    read = model(ETTIN)
    assert (read.sliding_window, read.windowed_layers) == (64, 18)
    said = ["full_attention" if layer % 3 == 0 else "sliding_attention" for layer in range(28)]
    assert model(ETTIN, layer_types=said, sliding_window=64) == read


def test_vaultgemma_caps_and_alternates_unless_told_otherwise() -> None:
    bare = {key: value for key, value in VAULTGEMMA.items() if key not in ("layer_types", "attn_logit_softcapping")}
    read = model(bare, sliding_window=512, max_position_embeddings=8192)
    assert (read.windowed_layers, read.full_attention_every, read.attention_softcap) == (13, 2, True)


@pytest.mark.parametrize(
    ("said", "gated"),
    [
        ({}, True),
        ({"hidden_act": "silu"}, True),
        ({"hidden_act": "gelu"}, False),
        ({"hidden_act": "relu2"}, False),
        ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, True),
        ({"hidden_act": None, "hidden_activation": "gelu"}, True),
        ({"hidden_activation": "relu2"}, False),
        ({"activation_function": "gelu_new"}, False),
        ({"activation_function": "swiglu"}, True),
        ({"activation_function": ["gelu"]}, True),
    ],
)
def test_an_unknown_family_gates_by_the_key_and_the_name_of_its_activation(said: dict[str, Any], gated: bool) -> None:
    assert model(UNKNOWN, **said).gated_mlp is gated


MIXTURE = UNKNOWN | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}


@pytest.mark.parametrize("key", ["is_moe", "use_moe"])
def test_numbers_of_experts_say_nothing_of_a_model_that_has_none(key: str) -> None:
    assert model(MIXTURE, **{key: True}).moe is not None
    assert model(MIXTURE, **{key: False}) == model(UNKNOWN)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("mlp_layer_types", ["dense", "moe", "moe", "moe"], "unsupported layer 'moe'"),
        ("mlp_layer_types", [False, True, True, True], "unsupported layer False"),
        ("mlp_layer_types", "sparse", "must be a list of layers; got 'sparse'"),
        ("moe_layer_freq", ["moe"] * 4, "must hold ones and zeros; got 'moe'"),
        ("moe_layer_freq", [0, 2, 2, 2], "must hold ones and zeros; got 2"),
        ("moe_layer_freq", "1", "must be a list of ones and zeros; got '1'"),
        ("is_moe_layer", True, "must be a list of ones and zeros; got True"),
        ("is_moe_layer", ["sparse"] * 4, "must hold ones and zeros; got 'sparse'"),
        ("moe_layers", 1, "must be a list of layers; got 1"),
    ],
)
def test_what_a_list_of_layers_does_not_know_is_refused(key: str, value: object, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        model(MIXTURE, **{key: value})
    assert (caught.value.field, caught.value.problem) == (f"config.json.{key}", problem)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_layer_types", ["dense", *["sparse"] * 3]),
        ("moe_layer_freq", [0, 1, 1, 1]),
        ("moe_layer_freq", [False, True, True, True]),
        ("is_moe_layer", [0, 1, 1, 1]),
        ("moe_layers", [1, 2, 3]),
        ("moe_layers_enum", "1,2,3"),
    ],
)
def test_lists_of_layers_say_the_same_in_words_in_ones_and_in_numbers(key: str, value: object) -> None:
    assert model(MIXTURE, **{key: value}) == model(MIXTURE, first_k_dense_replace=1)
    assert model(MIXTURE, **{key: None}) == model(MIXTURE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_ut_steps", 4),  # ByteDance/Ouro
        ("H_cycles", 2),  # HrmTextConfig
        ("L_cycles", 3),
        ("mixer_types", ["minicpm4", *["lightning-attn"] * 3]),  # openbmb/MiniCPM-SALA
        ("sparse_config", {"kernel_size": 32, "topk": 64}),  # openbmb/MiniCPM4.1
        ("layer_sharing", True),  # facebook/MobileLLM
        ("cross_layer_interval", 4),  # IdeficsConfig
        ("add_cross_attention", True),
    ],
)
def test_keys_of_other_attention_or_depth_are_not_read_past(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"^config\.json\.{key}: says that there are .*, which have no cost model"):
        model(UNKNOWN, **{key: value})
    assert model(UNKNOWN, **{key: None}) == model(UNKNOWN)


def test_one_pass_through_the_layers_is_what_every_model_does() -> None:
    assert model(UNKNOWN, total_ut_steps=1) == model(UNKNOWN)


def test_keys_that_say_so_in_one_family_alone() -> None:
    gpt = UNKNOWN | {"model_type": "gpt2", "n_positions": 1024}
    with pytest.raises(SpecError, match=r"^config\.json\.attention_head_type: .* in gpt2\. Hint: model_type gpt_"):
        model(gpt, attention_head_type="multiquery")
    assert model(gpt, attention_head_type="multihead") == model(gpt)
    with pytest.raises(SpecError, match=r"^config\.json\.is_moe: says that there are experts of two vectors each"):
        model(MIXTURE, model_type="doge", is_moe=True)
    with pytest.raises(SpecError, match=r"^config\.json\.model_type: 'jetmoe' has experts of attention"):
        model(MIXTURE, model_type="jetmoe")


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaForRewardModel", "SomeRewardModel"])
def test_reward_models_have_a_head_of_one_number(name: str) -> None:
    """Skywork-Reward-Llama-3.1-8B: 7,504,928,768 parameters, the head one row instead of 128256."""
    llama = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    read, notes = read_hf_config(llama | {"architectures": [name]}, "some")
    assert (read.value_head, total_parameters(read)) == (True, 7_504_928_768)
    assert f"config.json.architectures '{name}': the head gives one number per token (value_head)" in notes
    assert not model(llama, architectures=["LlamaForCausalLM"]).value_head


@pytest.mark.parametrize("odd", [None, "LlamaForSequenceClassification", [], [None], [["x"]], 3])
def test_architectures_that_are_no_list_of_names_say_nothing(odd: object) -> None:
    assert model(UNKNOWN, architectures=odd) == model(UNKNOWN)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"architectures": ["SomeForMaskedLM"]}, "architectures"),
        ({"causal": False}, "causal"),
        ({"is_causal": False}, "is_causal"),
        ({"model_type": "nomic_bert"}, "model_type"),
        ({"model_type": "jina_embeddings_v3"}, "model_type"),
        ({"model_type": "metaclip_2_text_model"}, "model_type"),
        ({"model_type": "dia_encoder"}, "model_type"),
    ],
)
def test_encoders_are_refused_by_whatever_says_that_they_are(said: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        model(UNKNOWN, **said)
    assert caught.value.field == f"config.json.{field}"
    assert caught.value.hint


def test_a_decoder_whose_type_ends_as_those_of_encoders_do_is_read() -> None:
    assert model(UNKNOWN, model_type="emu3_text_model").num_layers == 4
    assert model(UNKNOWN, causal=True, is_causal=None).num_layers == 4


@pytest.mark.parametrize(
    ("whole", "part", "tied"),
    [(False, True, False), (True, False, False), (True, True, True), (True, None, True), (None, True, True)],
)
def test_what_is_said_of_the_whole_may_untie_the_text_part(whole: bool | None, part: bool | None, tied: bool) -> None:
    text = UNKNOWN | {"model_type": "qwen3_vl_text", "tie_word_embeddings": part}
    nested = {"model_type": "qwen3_vl", "text_config": text, "tie_word_embeddings": whole}
    assert read_hf_config(nested, "some")[0].tie_word_embeddings is tied


@pytest.mark.parametrize("kind", ["ernie4_5_moe", "kimi_linear"])
def test_experts_are_not_as_wide_as_dense_layers_where_their_class_has_a_width_of_its_own(kind: str) -> None:
    config = UNKNOWN | {"model_type": kind, "num_experts": 8, "num_experts_per_tok": 2, "kv_lora_rank": 0}
    with pytest.raises(SpecError, match=r"^config\.json\.moe_intermediate_size: is missing"):
        model(config)


@pytest.mark.parametrize(("kind", "key"), [("ernie4_5_moe", "moe_num_experts"), ("minimax", "num_local_experts")])
def test_mixtures_that_do_not_say_so_are_not_dense(kind: str, key: str) -> None:
    with pytest.raises(SpecError, match=rf"^config\.json\.{key}: is missing, which {kind} always says"):
        model(UNKNOWN, model_type=kind, layer_types=["linear_attention", "full_attention"] * 2)


SHORT: dict[str, Any] = {
    "num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 3072,
    "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more", "parameters"),
    [
        ("seed_oss", {}, 128_476_160),
        ("internlm3", {}, 122_168_320),
        ("ernie4_5", {}, 89_400_320),
        (
            "ernie4_5_moe",
            {
                "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 256, "moe_num_shared_experts": 2,
                "moe_layer_start_index": 1,
            },
            76_317_720,
        ),
        (
            "minimax",
            {
                "num_local_experts": 4, "num_experts_per_tok": 2,
                "layer_types": ["linear_attention", "full_attention"] * 2,
            },
            233_335_808,
        ),
        ("minimax_m2", {"num_local_experts": 4, "num_experts_per_tok": 2}, 241_734_672),
        ("glm4", {}, 122_186_752),
    ],
)  # fmt: skip
def test_heads_and_biases_that_a_file_leaves_out_are_those_of_the_class(
    kind: str, more: dict[str, Any], parameters: int
) -> None:
    assert total_parameters(model(SHORT, model_type=kind, **more)) == parameters
