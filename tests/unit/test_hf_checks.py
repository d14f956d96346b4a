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
