"""Lists of layers in a Hugging Face configuration."""

import pytest

from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.parameters import total_parameters
from tests.unit.profiles.test_hf_config import LLAMA


@pytest.mark.parametrize(
    ("key", "listed"), [("mlp_only_layers", [4]), ("mlp_only_layers", ["0"]), ("moe_layers", [1, -1])]
)
def test_layers_that_are_none_are_refused(key, listed):
    config = LLAMA | {"num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2, key: listed}
    with pytest.raises(SpecError, match=rf"config.json.{key}: names layers 0 to 3; got"):
        read_hf_config(config, "x")


ERNIE = {
    "model_type": "ernie4_5_moe",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 103424,
    "tie_word_embeddings": True,
}


def test_ernie_says_between_which_layers_the_experts_are():
    """ERNIE-4.5-21B-A3B: 21.8B by its card, the first layer without experts."""
    spec = read_hf_config(ERNIE, "ernie")[0]
    assert spec.moe is not None
    assert (spec.moe.first_dense_layers, spec.num_moe_layers) == (1, 27)
    assert total_parameters(spec) == pytest.approx(21.83e9, rel=0.002)
    assert read_hf_config(ERNIE | {"moe_layer_end_index": -1}, "ernie")[0] == spec
    with pytest.raises(SpecError, match=r"moe_layer_start_index: layers with experts, 1, 2, .* follow no regular"):
        read_hf_config(ERNIE | {"moe_layer_end_index": 20}, "ernie")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cross_attention_layers", [3, 8]),  # Llama 3.2 Vision
        ("num_kv_shared_layers", 18),
        ("hidden_size_per_layer_input", 256),
        ("num_key_value_heads_per_layer", [4, 2]),  # DeciLM
        ("share_q_dim", 2048),  # Step-3
        ("block_configs", [{"attention": {}}]),  # Llama Nemotron
    ],
)
def test_layers_that_no_key_here_describes_are_refused(key: str, value: object) -> None:
    config = {"model_type": "some_model", **{k: v for k, v in ERNIE.items() if not k.startswith(("moe", "model"))}}
    assert read_hf_config(config | {key: None}, "some")[0]
    with pytest.raises(SpecError, match=rf"^config.json.{key}: says that there are .*, which have no cost model"):
        read_hf_config(config | {key: value}, "some")
