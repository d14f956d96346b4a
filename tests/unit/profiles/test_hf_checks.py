"""Configurations cut short are refused, not read as other models; so are numbers that no model has."""

from typing import Any

import pytest

from profiles.errors import SpecError
from profiles.hf_config import read_hf_config

LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 8, "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("mixtral", "num_local_experts"),
        ("deepseek_v3", "n_routed_experts"),
        ("deepseek_v4", "n_routed_experts"),
        ("deepseek_v2", "n_routed_experts"),
        ("qwen3_moe", "num_experts"),
        ("qwen2_moe", "num_experts"),
        ("olmoe", "num_experts"),
        ("glm4_moe", "n_routed_experts"),
        ("llama4", "num_local_experts"),
    ],
)
def test_mixtures_without_experts_are_not_dense_models(kind: str, key: str) -> None:
    with pytest.raises(SpecError) as error:
        read_hf_config(LLAMA | {"model_type": kind}, "cut")
    assert error.value.field == f"config.json.{key}"
    assert "is missing" in error.value.problem
    assert error.value.hint == "how many experts a layer chooses from, as the published file says"


def test_a_mixture_that_says_it_has_no_experts_is_dense() -> None:
    assert read_hf_config(LLAMA | {"model_type": "qwen3_moe", "num_experts": 0}, "dense")[0].moe is None


def test_latent_attention_is_not_left_out() -> None:
    config = LLAMA | {"model_type": "deepseek_v3", "n_routed_experts": 0}
    with pytest.raises(SpecError, match=r"^config\.json\.kv_lora_rank: is missing, which deepseek_v3 always says"):
        read_hf_config(config, "cut")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_nextn_predict_layers", -1),
        ("num_nextn_predict_layers", 10**6),
        ("num_nextn_predict_layers", "x"),
        ("head_dim", 10**6),
        ("max_position_embeddings", 0),
    ],
)
def test_numbers_that_no_model_has_are_refused(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"^config\.json\.{key}: must be"):
        read_hf_config(LLAMA | {key: value}, "odd")


@pytest.mark.parametrize(
    ("kind", "given", "capped"),
    [
        ("gemma2", {}, True),
        ("gemma2", {"attn_logit_softcapping": None}, False),
        ("gemma3_text", {"attn_logit_softcapping": None}, False),
        ("unknown", {"attn_logit_softcapping": 30.0}, True),
        ("llama", {}, False),
    ],
)
def test_attention_is_capped_where_its_key_is_not_null(kind: str, given: dict[str, Any], capped: bool) -> None:
    """Gemma2Config caps at 50 unless told otherwise."""
    assert read_hf_config(LLAMA | {"model_type": kind} | given, "some")[0].attention_softcap is capped


DEEPSEEK: dict[str, Any] = LLAMA | {
    "model_type": "deepseek_v3", "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 1,
    "moe_intermediate_size": 256, "first_k_dense_replace": 1, "kv_lora_rank": 128, "q_lora_rank": 0,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_group": 1, "topk_group": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (LLAMA, "intermediate_size", 0),
        (LLAMA, "vocab_size", 1 << 30),
        (LLAMA, "num_key_value_heads", 3),
        (DEEPSEEK, "n_routed_experts", 1 << 20),
        (DEEPSEEK, "num_experts_per_tok", 65),
        (DEEPSEEK, "moe_intermediate_size", 0),
        (DEEPSEEK, "n_shared_experts", 1 << 40),
        (DEEPSEEK, "first_k_dense_replace", -1),
        (DEEPSEEK, "kv_lora_rank", 1 << 40),
        (DEEPSEEK, "n_group", 3),
    ],
)
def test_a_number_out_of_bounds_is_named_by_the_key_of_the_file(config: dict[str, Any], key: str, value: int) -> None:
    """Not by what a ``ModelSpec`` calls it: that key is not in the file to be mended."""
    with pytest.raises(SpecError) as error:
        read_hf_config(config | {key: value}, "odd")
    assert error.value.field == f"config.json.{key}"


def test_layers_without_experts_are_a_list() -> None:
    with pytest.raises(SpecError, match=r"^config\.json\.mlp_only_layers: must be a list of layers; got 'x'"):
        read_hf_config(DEEPSEEK | {"mlp_only_layers": "x"}, "odd")
    assert read_hf_config(DEEPSEEK | {"mlp_only_layers": None}, "even")[0].moe is not None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, ""),
        ({"hidden_act": "silu", "attention_dropout": 0.0}, ""),
        ({"hidden_act": "relu2"}, "hidden_act 'relu2' is priced as the gated activation of its family"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1: no dropout is taken, unless the job has it"),
        ({"resid_pdrop": 0.1, "attn_pdrop": "x"}, "resid_pdrop 0.1: no dropout is taken"),
    ],
)
def test_settings_that_nothing_here_holds_are_told(said: dict[str, Any], told: str) -> None:
    spec, notes = read_hf_config(LLAMA | said, "x")
    plain, before = read_hf_config(LLAMA, "x")
    assert spec == plain
    added = [note for note in notes if note not in before]
    assert len(added) == bool(told)
    assert all(told in note for note in added)
