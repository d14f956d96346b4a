"""Models with an indexer: parameters against published counts, configurations, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.kv_cache import bytes_per_cached_token
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.speculation import head_of
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.indexer import Indexer
from profiles.model import ModelSpec
from profiles.parameters import active_parameters, attention_parameters, layer_parameters, total_parameters
from tests.fakes import latent, llama
from tests.presets import preset

SMALL = Indexer(num_heads=4, head_dim=32, chosen_keys=512, layers=8)
# config.json of deepseek-ai/DeepSeek-V3.2-Exp and zai-org/GLM-5.2, what is read of them.
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v32", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "topk_method": "noaux_tc", "first_k_dense_replace": 3, "moe_layer_freq": 1, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 163840, "tie_word_embeddings": False, "attention_bias": False,
    "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048,
}  # fmt: skip
GLM: dict[str, Any] = DEEPSEEK | {
    "model_type": "glm_moe_dsa", "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288,
    "num_hidden_layers": 78, "num_attention_heads": 64, "num_key_value_heads": 64, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "max_position_embeddings": 1048576,
    "index_n_heads": 32, "index_topk_freq": 4, "index_skip_topk_offset": 3, "head_dim": 192,
    "layer_types": ["deepseek_sparse_attention"] * 78, "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 75,
}  # fmt: skip


def with_own_prediction(model: ModelSpec) -> int:
    """Parameters with a layer for multi-token prediction: two norms and a product of its inputs, and a last norm."""
    h = model.hidden_size
    return total_parameters(model) + int(layer_parameters(model, moe=True).total) + 2 * h * h + 3 * h


def test_counts_are_those_of_the_published_checkpoints() -> None:
    """Totals of the safetensors of zai-org/GLM-5 and, whose prediction layer has an embedding and a head of its own,
    deepseek-ai/DeepSeek-V3.2, scales left out."""
    assert with_own_prediction(preset("glm-5")) == 753_864_139_008
    deepseek = preset("deepseek-v3.2")
    assert with_own_prediction(deepseek) + 2 * 7168 * 129280 == 685_355_329_792
    assert total_parameters(deepseek) - total_parameters(preset("deepseek-v3")) == 61 * 13_959_424
    assert active_parameters(deepseek) - active_parameters(preset("deepseek-v3")) == 61 * 13_959_424
    assert deepseek.indexer_parameters == 1536 * 8192 + 7168 * (128 + 64) + 2 * 128


def test_names_of_one_shape() -> None:
    for name in ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3.2-speciale", "DeepSeek-V3.2"):
        assert preset(name) == preset("deepseek-v3.2")
    assert preset("glm-5.1") == preset("zai-org/GLM-5")
    assert preset("glm-5.2") != preset("glm-5")


def test_every_rank_holds_the_indexer_and_layers_that_share_have_none() -> None:
    whole, half = latent(indexer=SMALL), latent(indexer=replace(SMALL, layers=4))
    own = whole.indexer_parameters
    assert own == 384 * 4 * 32 + 1024 * (32 + 4) + 2 * 32
    plain, mixed = (layer_parameters(model, moe=False) for model in (latent(), whole))
    assert (mixed.attention - plain.attention, mixed.replicated - plain.replicated) == (own, own)
    assert layer_parameters(half, moe=False).attention == attention_parameters(half) + own / 2
    assert total_parameters(whole) - total_parameters(half) == 4 * own
    assert total_parameters(half) - total_parameters(latent()) == 4 * own


def test_configurations_are_read_as_the_catalogue_has_them() -> None:
    read = read_hf_config(DEEPSEEK, "x")[0]
    wanted = replace(preset("deepseek-v3.2"), name="x", published_parameters=None, checkpoint_weights="")
    assert (read, read.family) == (wanted, "deepseek_v32")
    glm = read_hf_config(GLM, "x")[0]
    assert glm == replace(preset("glm-5.2"), name="x")
    assert read_hf_config({**GLM, "index_topk_freq": 1}, "x")[0].indexer == preset("glm-5").indexer
    pattern = {"index_topk_freq": None, "index_topk_pattern": "F" * 40 + "S" * 38}
    for said, layers in ((pattern, 40), ({"indexer_types": ["full"] + ["shared"] * 77}, 1)):
        assert read_hf_config(GLM | said, "x")[0].indexer == replace(preset("glm-5").indexer, layers=layers)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"index_n_heads": None}, "config.json.index_n_heads: must be a whole number of at least 1"),
        ({"index_topk": 0}, "config.json.index_topk: must be a whole number of at least 1; got 0"),
        ({"indexer_types": ["shared"] * 78}, "config.json.indexer_types: the first layer has nobody's choice to take"),
        ({"indexer_types": ["full", "other"]}, "config.json.indexer_types: must list full and shared layers"),
        ({"indexer_types": ["full"]}, "config.json.indexer_types: must have 78 entries; got 1"),
        ({"index_kpool": 4}, "index_kpool: says that there are keys that an indexer chooses in groups"),
        ({"model_type": "deepseek_v3"}, "config.json.index_topk: an indexer chooses the keys, which has no cost model"),
        ({"q_lora_rank": None}, "makes its queries from the compressed queries of latent attention"),
    ],
)
def test_what_is_not_said_or_not_priced_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_hf_config(GLM | changed, "x")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("model", "changed", "field"),
    [
        (latent, {"indexer": replace(SMALL, layers=9)}, "model.indexer.layers"),
        (latent, {"indexer": replace(SMALL, chosen_keys=0)}, "model.indexer.chosen_keys"),
        (llama, {"indexer": SMALL}, "model.indexer"),
        (latent, {"indexer": SMALL, "sliding_window": 64, "windowed_layers": 2}, "model.indexer"),
    ],
)
def test_an_indexer_fits_its_model(model: Any, changed: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        model(**changed)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("name", "element", "expected"),
    [
        ("deepseek-v3.2", 2.0, 61 * (2 * 576 + 132)),
        ("deepseek-v3.2", 1.0, 61 * (656 + 132)),  # FlashMLA's README: 512 + 4 scales of 4 + 64 of 2
        ("deepseek-v3", 1.0, 61 * 576),
        ("glm-5", 2.0, 78 * (2 * 576 + 132)),
        ("glm-5.2", 1.0, 78 * 656 + 21 * 132),
    ],
)
def test_bytes_that_a_token_takes_in_the_cache(name: str, element: float, expected: int) -> None:
    plans = PlanBatch.from_plans([ExecutionPlan(), ExecutionPlan(tensor_parallel=8)])
    assert bytes_per_cached_token(plans, preset(name), element).tolist() == [expected] * 2


def test_a_draft_of_one_layer_chooses_for_itself() -> None:
    assert head_of(preset("glm-5.2")).indexer == replace(preset("glm-5.2").indexer, layers=1)
