"""Models with compressed keys: parameters and bytes against the published checkpoints, configurations, refusals."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.compressed_attention import CompressedAttention, compressor_parameters, index_parameters
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.hyper_connections import HyperConnections, closing_parameters, connection_parameters
from profiles.model import ModelSpec
from profiles.parameters import (
    active_parameters,
    expert_parameters,
    layer_parameters,
    non_layer_parameters,
    total_parameters,
)
from profiles.weights import WEIGHT_FORMATS
from tests.fakes import compressed, llama
from tests.presets import preset

# config.json of deepseek-ai/DeepSeek-V4-Flash, what is read of it; its 44th ratio is of the layer that only predicts.
FLASH: dict[str, Any] = {
    "model_type": "deepseek_v4", "vocab_size": 129280, "hidden_size": 4096, "moe_intermediate_size": 2048,
    "num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512,
    "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 6, "num_hash_layers": 3, "hc_mult": 4, "hc_sinkhorn_iters": 20,
    "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "sliding_window": 128, "hidden_act": "silu",
    "max_position_embeddings": 1048576, "tie_word_embeddings": False, "num_nextn_predict_layers": 1,
    "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0], "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}  # fmt: skip
KINDS = ["sliding_attention"] * 2 + ["compressed_sparse_attention", "heavily_compressed_attention"] * 20
# The same as transformers writes it.
WRITTEN = {key: value for key, value in FLASH.items() if key not in ("compress_ratios", "num_hash_layers")} | {
    "layer_types": [*KINDS, "compressed_sparse_attention"],
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 40,
    "qk_rope_head_dim": None,
    "partial_rotary_factor": 0.125,
}


def checkpoint_bytes(model: ModelSpec) -> float:
    """Bytes of all tensors, those of the layer that only predicts further tokens among them.

    Experts in 4 bits with a scale per 32; matrices in 8 with a scale per 128 x 128; compressors, routers, index
    weights, norms, embedding and head in 16 bits; hyper-connections, biases, places and sinks in 32; and the tables of
    three routers, six numbers of 64 bits per word.
    """
    attention, h, d = model.compressed_attention, model.hidden_size, model.head_dim
    assert attention is not None
    assert model.moe is not None
    assert model.hyper_connections is not None
    r, heads, experts = attention.q_lora_rank, model.num_attention_heads, model.moe.num_experts
    low, index = attention.output_groups * attention.output_rank, attention.index_heads * attention.index_head_dim
    eight = 1 + 1 / 128**2
    matrices = r * (h + heads * d) + h * d + heads * d // attention.output_groups * low + low * h
    shared = 3 * h * model.moe.shared_ffn_hidden_size
    layer = eight * (matrices + shared) + 2 * (r + d + 2 * h + experts * h) + 4 * heads
    layer += 4 * connection_parameters(model.hyper_connections, h)
    layer += experts * expert_parameters(model) * (1 / 2 + 1 / 32)
    sparse = 2 * (4 * d * h + d) + 4 * 8 * d + 2 * (4 * 128 * h + 128 + 64 * h) + 4 * 8 * 128 + eight * r * index
    heavy = 2 * (2 * d * h + d) + 4 * 128 * d
    biased = 4 * experts
    ends = 2 * (2 * model.vocab_size * h + h) + 4 * closing_parameters(model.hyper_connections, h)
    predicts = layer + biased + eight * 2 * h * h + 2 * 3 * h + 4 * closing_parameters(model.hyper_connections, h)
    hashed = model.moe.hash_layers
    tables = hashed * model.vocab_size * model.moe.experts_per_token * 8
    every = model.num_layers * layer + attention.sparse_layers * sparse + attention.heavy_layers * heavy
    return every + (model.num_layers - hashed) * biased + ends + predicts + tables


def test_bytes_are_those_of_the_published_checkpoints() -> None:
    """metadata.total_size of model.safetensors.index.json of deepseek-ai/DeepSeek-V4-Flash, to the last byte; Pro's
    865 GB are of vllm-project/recipes, DeepSeek-V4-Pro."""
    assert checkpoint_bytes(preset("deepseek-v4-flash")) == 159_609_485_896
    assert checkpoint_bytes(preset("deepseek-v4-pro")) == pytest.approx(865e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "total", "said", "active"),
    [("deepseek-v4-flash", 284_332_240_471, 284e9, 13e9), ("deepseek-v4-pro", 1_572_997_201_763, 1.6e12, 49e9)],
)
def test_parameters_are_those_of_the_model_cards(name: str, total: int, said: float, active: float) -> None:
    """Active ones as the cards count them, without the embedding."""
    model = preset(name)
    assert total_parameters(model) == total == pytest.approx(said, rel=0.02)
    assert active_parameters(model) - model.vocab_size * model.hidden_size == pytest.approx(active, rel=0.03)
    looked_up = 3 * model.moe.num_experts  # type: ignore[union-attr]
    assert layer_parameters(model, moe=True).total * model.num_layers + non_layer_parameters(model) == pytest.approx(
        total + looked_up, rel=1e-15
    )


def test_parts_of_a_layer_by_hand() -> None:
    assert compressor_parameters(4, hidden_size=4096, width=512) == 4096 * 2048 + 4 * 1024 + 512
    assert compressor_parameters(128, hidden_size=4096, width=512) == 4096 * 1024 + 128 * 512 + 512
    flash = preset("deepseek-v4-flash").compressed_attention
    assert flash is not None
    assert index_parameters(flash, hidden_size=4096) == 1024 * 8192 + 4096 * 64 + 4096 * 512 + 4 * 256 + 128
    four = HyperConnections(streams=4, sinkhorn_steps=20)
    assert connection_parameters(four, 4096) == 2 * (24 * 4 * 4096 + 24 + 3)
    assert closing_parameters(four, 4096) == 4 * 4 * 4096 + 4 + 1


def test_every_rank_holds_what_has_no_heads() -> None:
    model = compressed()
    attention = model.compressed_attention
    assert attention is not None
    whole = layer_parameters(model, moe=False)
    h, d, heads, r = model.hidden_size, model.head_dim, model.num_attention_heads, attention.q_lora_rank
    shared_out = r * heads * d + attention.output_rank * (heads * d + attention.output_groups * h) + heads
    assert whole.column_row_sharded - whole.dense_mlp == shared_out
    plain = layer_parameters(replace(model, compressed_attention=replace(attention, sparse_layers=0)), moe=False)
    beside = compressor_parameters(4, hidden_size=h, width=d) + index_parameters(attention, hidden_size=h)
    assert whole.replicated - plain.replicated == pytest.approx(beside * attention.sparse_layers / model.num_layers)


def test_names_as_published() -> None:
    for name in ("deepseek-ai/DeepSeek-V4-Flash", "DeepSeek-V4-Flash-0731", "deepseek-ai/DeepSeek-V4-Flash-DSpark"):
        assert preset(name) == preset("deepseek-v4-flash")
    assert preset("deepseek-ai/DeepSeek-V4-Pro-0813") == preset("deepseek-v4-pro")
    base = preset("deepseek-ai/DeepSeek-V4-Pro-Base")
    assert base.checkpoint_weights == "fp8-block"
    assert replace(base, name="x", checkpoint_weights="") == replace(
        preset("deepseek-v4-pro"), name="x", checkpoint_weights=""
    )
    with pytest.raises(SpecError, match=r"has compressed keys that layers share, and embeddings of n-grams"):
        preset("deepseek-ai/DeepSeek-V4.1-Flash")


@pytest.mark.parametrize("config", [FLASH, WRITTEN, FLASH | {"compress_ratios": [1, 1] + [4, 128] * 20 + [4, 0, 0, 0]}])
def test_configurations_are_read_as_the_catalogue_has_them(config: dict[str, Any]) -> None:
    read, notes = read_hf_config(config, "x")
    wanted = replace(preset("deepseek-v4-flash"), name="x", published_parameters=None)
    assert (read, read.family, notes) == (wanted, "deepseek_v4", ())
    assert read_hf_config({**config, "expert_dtype": "fp8"}, "x")[0].checkpoint_weights == "fp8-block"


def test_heads_that_a_file_leaves_out_are_as_wide_as_those_of_the_class() -> None:
    read, notes = read_hf_config({key: value for key, value in FLASH.items() if key != "head_dim"}, "x")
    assert (read.head_dim, notes) == (512, ("config.json.head_dim is absent: taken as 512",))


def test_streams_that_a_file_leaves_out_are_the_family_s() -> None:
    read, notes = read_hf_config({**FLASH, "hc_mult": None}, "x")
    assert read.hyper_connections == HyperConnections(streams=4, sinkhorn_steps=20)
    assert notes == ("config.json.hc_mult is absent: taken as 4, as the family does",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"compress_ratios": [0, 2] + [4, 128] * 20 + [4]},
            "config.json.compress_ratios: is 2 for layer 1, for which no engine has kernels. Hint: 4 (an indexer "
            "chooses), 128 (all are attended to) or 0 (a window)",
        ),
        (
            {"compress_ratios": [0, 0, 4]},
            "compress_ratios: must have an entry for each of 43 layers; got 3",
        ),
        ({"compress_ratios": None}, "config.json.compress_ratios: is missing"),
        ({"index_topk": None}, "config.json.index_topk: must be a whole number of at least 1"),
        ({"hc_mult": 1}, "config.json.hc_mult: must be between 2 and 64; got 1"),
        ({"o_groups": 7}, "config.json.o_groups: must divide num_attention_heads=64; got 7"),
        ({"kv_lora_rank": 512, "qk_nope_head_dim": 448, "v_head_dim": 512}, "beside latent, linear or windowed"),
        ({"model_type": "deepseek_v3"}, "config.json.compress_ratios: says that there are compressed keys"),
        ({"num_hash_layers": 44}, "config.json.num_hash_layers: must be between 0 and 43; got 44"),
    ],
)
def test_what_is_not_said_or_not_priced_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_hf_config(FLASH | changed, "x")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"compress_rates": {"heavily_compressed_attention": 64}},
            "config.json.compress_rates: is 64 for heavily_compressed_attention, for which no engine has kernels",
        ),
        ({"compress_rates": [4]}, "config.json.compress_rates: must be a mapping of kinds of layers; got a list"),
        ({"layer_types": ["full_attention"] * 43}, "config.json.layer_types: unsupported layer 'full_attention'"),
        ({"mlp_layer_types": ["moe", "hash_moe"] + ["moe"] * 41}, "has hash_moe after moe"),
        ({"mlp_layer_types": ["dense"] * 43}, "config.json.mlp_layer_types: unsupported layer 'dense'"),
    ],
)
def test_what_transformers_writes_is_checked_too(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_hf_config(WRITTEN | changed, "x")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("part", "changed", "field"),
    [
        (CompressedAttention, {"window": 0}, "model.compressed_attention.window"),
        (CompressedAttention, {"sparse_layers": 6, "heavy_layers": 6}, "model.compressed_attention.heavy_layers"),
        (CompressedAttention, {"rope_head_dim": 65}, "model.compressed_attention.rope_head_dim"),
        (HyperConnections, {"streams": 65}, "model.hyper_connections.streams"),
    ],
)
def test_parts_fit_their_model(part: type, changed: dict[str, int], field: str) -> None:
    model = compressed()
    name = field.split(".")[1]
    with pytest.raises(SpecError) as refused:
        replace(model, **{name: replace(getattr(model, name), **changed)})
    assert refused.value.field == field
    assert isinstance(getattr(model, name), part)


def test_streams_are_round_an_mlp_that_follows_attention() -> None:
    with pytest.raises(SpecError, match="round attention and an MLP that follow each other only"):
        llama(hyper_connections=HyperConnections(streams=4, sinkhorn_steps=20), parallel_residual=True)


def test_bytes_of_a_weight_by_what_it_is_of() -> None:
    mixed = WEIGHT_FORMATS["mxfp4-fp8"]
    assert (mixed.element_bytes, mixed.dense_bytes) == (0.53125, 1 + 4 / 128**2)
    assert (WEIGHT_FORMATS["mxfp4"].dense_bytes, WEIGHT_FORMATS["int4"].dense_bytes) == (0.0, 0.5 + 2.5 / 128)
