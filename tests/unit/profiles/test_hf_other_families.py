"""Families read by keys that others do not have, to the parameters of the classes of transformers 5.24 or of cards."""

from typing import Any

import pytest

from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model import ModelSpec
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
