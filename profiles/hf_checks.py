"""What a Hugging Face config.json must say for its family, what has no price, and bounds that nothing else checks.

Transformers writes every key of a model's own class (``save_pretrained``). A file of a mixture of experts without a
number of experts was cut or written by hand: read by the keys that are left it would be a dense model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_families import Family
from profiles.hf_foreign import (
    ENCODER_ENDINGS,
    ENCODER_TYPES,
    ENCODERS,
    NO_ENCODERS,
    STATE_SPACE,
    STATES,
    TELLING,
    UNPRICED,
    UNPRICED_NAMES,
    VISION,
)
from profiles.hf_layers import FIELD, at_least
from profiles.model import MAX_LAYERS

# What there is to do about layers without a cost model.
OWN_FIELDS = "plan for a near model in fields of your own: num_layers, hidden_size and so on, or base and what differs"
_DECODERS = "a model that generates text, such as those that planner models lists"
MAX_HEAD_DIM = 1 << 14  # of a key that says so; the widest heads known have 576
_MIXTURES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "deepseek_v2", "deepseek_v3", "kimi_k2"),
    *("olmoe", "glm4_moe", "dots1", "gpt_oss", "phimoe", "llama4_text", "kimi_linear"),
    *("deepseek_v32", "glm_moe_dsa", "deepseek_v4"),
    *("afmoe", "bailing_moe", "exaone_moe", "mistral4", "hunyuan_v1_moe", "hy_v3", "mimo_v2_flash", "step3p5"),
    *("glm4_moe_lite", "minimax_m2", "solar_open", "laguna", "ernie4_5_moe", "minimax", "muse_spark_text"),
)
_EXPERTS_KEYS = {
    **dict.fromkeys(
        ("mixtral", "gpt_oss", "phimoe", "llama4_text", "minimax", "minimax_m2", "muse_spark_text"), "num_local_experts"
    ),
    "ernie4_5_moe": "moe_num_experts",
}
_LATENT = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_k2", "mistral4", "glm4_moe_lite")
_OF_STATES = (
    *("ssm_cfg", "state_size", "mamba_d_state", "ssm_state_size"),
    *("linear_attn_config", "linear_num_value_heads", "attn_type_list"),
)


_SHARING = "layers that share keys and values"
_RECURRENT = "layers that every token passes several times"
# Keys that nothing here reads and that change what layers are, with what they say where they say anything.
_OTHER_LAYERS = {
    "cross_attention_layers": "layers that attend to images",
    "cross_layer_interval": "layers that attend to images",
    "add_cross_attention": "layers that attend to an encoder",
    "num_kv_shared_layers": _SHARING,
    "layer_sharing": "layers that share their weights",
    "total_ut_steps": _RECURRENT,
    "H_cycles": _RECURRENT,
    "L_cycles": _RECURRENT,
    "mixer_types": "layers that attend linearly or to chosen blocks",
    "sparse_config": "keys that are chosen in blocks",
    "hidden_size_per_layer_input": "embeddings of every layer",
    "num_key_value_heads_per_layer": "layers with different numbers of key/value heads",
    "layer_group_size": "groups of layers that attend linearly",
    "use_cla": _SHARING,
    "zero_expert_num": "experts that compute nothing",
    "share_q_dim": "attention of factorised matrices",
    "block_configs": "layers of different widths",
    "sparse_attention_config": "keys that an indexer chooses in blocks",
    "index_topk_blocks": "keys that an indexer chooses in blocks",
    "index_kpool": "keys that an indexer chooses in groups",
    "kv_source_layers": "compressed keys that layers share",
    "engram_layer_ids": "embeddings of n-grams",
}
_ONCE = "total_ut_steps"  # of which one is what every other model does
# By family, a key and what it says there that other layers are: of SantaCoder, modeling_gpt2_mq.py, and of DogeCDMoE.
_OF_FAMILY = {
    "gpt2": ("attention_head_type", "multiquery", "heads that share one of keys and values", "model_type gpt_bigcode"),
    "doge": ("is_moe", True, "experts of two vectors each", OWN_FIELDS),
}
# Keys by which tokens attend to later ones, what they say then, and what they say of decoders.
_BOTH_WAYS = (
    ("use_bidirectional_attention", ("all", True), "false"),
    ("causal", (False,), "true"),
    ("is_causal", (False,), "true"),
)
_VALUE_HEADS = ("ForSequenceClassification", "RewardModel")  # how classes end whose head gives a number per token
_COMPRESSED = ("compress_ratios", "compress_rates")  # of ``profiles.hf_compressed``


def check_priced(config: Mapping[str, Any], kind: str, family: Family | None) -> None:
    """Refuse what no decoder-only transformer is, and layers without a cost model.

    Args:
        config: The language model's own part.
        kind: Its ``model_type``; empty where it has none.
        family: The family it is, where it is a known one.

    Raises:
        SpecError: Naming the key.
    """
    where = f"{FIELD}.model_type"
    ends = kind.endswith(ENCODER_ENDINGS) and kind not in (*NO_ENCODERS, *VISION)
    if config.get("is_encoder_decoder") is True or ends or kind in ENCODERS | ENCODER_TYPES:
        raise SpecError(where, f"{shown(kind)} is not a decoder-only transformer", _DECODERS)
    foreign = any(_tells_states(config, key) for key in _OF_STATES) and not (family and family.linear)
    told, layers = TELLING.get(kind, ("", STATES if kind in STATE_SPACE or foreign else UNPRICED.get(kind)))
    if layers is not None and not config.get(told):
        raise SpecError(where, f"{shown(kind)} has {layers}, which have no cost model", OWN_FIELDS)
    for key, others in {**_OTHER_LAYERS, **({told: layers} if layers else {})}.items():
        if config.get(key) and not (key == _ONCE and config[key] == 1):
            raise SpecError(f"{FIELD}.{key}", f"says that there are {others}, which have no cost model", OWN_FIELDS)
    key, value, others, hint = _OF_FAMILY.get(kind, ("", True, "", ""))
    if config.get(key) == value:
        raise SpecError(f"{FIELD}.{key}", f"says that there are {others}, which have no cost model in {kind}", hint)
    for key in _COMPRESSED:
        if config.get(key) and not (family and family.compressed):
            problem = "says that there are compressed keys, which have no cost model in"
            raise SpecError(f"{FIELD}.{key}", f"{problem} {shown(kind) if kind else 'no family'}", "deepseek_v4")
    for key, both_ways, causal in _BOTH_WAYS:
        if config.get(key) in both_ways:
            problem = "says that tokens attend to later ones, which has no cost model"
            raise SpecError(f"{FIELD}.{key}", problem, f"{causal} where it is a decoder")
    if config.get("index_topk") and not (family and (family.indexer or family.compressed)):
        problem = f"an indexer chooses the keys, which has no cost model in {shown(kind) if kind else 'no family'}"
        raise SpecError(f"{FIELD}.index_topk", problem, "model_type deepseek_v32 or glm_moe_dsa where it is one")
    if kind in VISION or ("image_size" in config and "vocab_size" not in config):
        raise SpecError(where, f"{shown(kind)} is a vision model, not a language model")


def value_head_of(architectures: object) -> str:
    """The class that a file names where its head gives one number per token; empty where it gives words.

    Args:
        architectures: What stands under that key: classes of transformers or of the checkpoint's own code.

    Raises:
        SpecError: If one fills in masked tokens.
    """
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    masked = next((name for name in names if name.endswith("ForMaskedLM")), None)
    if masked is not None:
        problem = f"{shown(masked)} fills in masked tokens, and is no decoder"
        raise SpecError(f"{FIELD}.architectures", problem, _DECODERS)
    return next((name for name in names if name.endswith(_VALUE_HEADS)), "")


def _tells_states(config: Mapping[str, Any], key: str) -> bool:
    """Whether a key says that layers keep states; MiniMax M2's list says of every layer that it has none."""
    value = config.get(key)
    return key in config and not (key == "attn_type_list" and isinstance(value, list) and set(map(str, value)) <= {"1"})


def unpriced_layers(name: str) -> str | None:
    """What has no cost model of the model with that name (words with hyphens between), where that is known."""
    return next((layers for known, layers in UNPRICED_NAMES.items() if known in f"-{name}-"), None)


def check_said(config: Mapping[str, Any], kind: str, *, experts: Sequence[str], lengths: Sequence[str]) -> None:
    """Refuse a configuration without what its family always says, or with a number that no model has.

    Args:
        config: The language model's own part.
        kind: Its ``model_type``, as ``hf_families`` names it.
        experts: Keys that say how many experts there are; null or 0 there means none.
        lengths: Keys that say how long sequences may be.

    Raises:
        SpecError: Naming the key.
    """
    if kind in _MIXTURES and not any(key in config for key in experts):
        key = _EXPERTS_KEYS.get(kind, "num_experts")
        routed = (*_LATENT, "glm4_moe", "dots1", "deepseek_v4", "mimo_v2_flash", "solar_open")
        key = "n_routed_experts" if kind in routed else key
        hint = "how many experts a layer chooses from, as the published file says"
        raise SpecError(f"{FIELD}.{key}", f"is missing, which {kind} always says", hint)
    if kind == "gemma4_text" and "hidden_size_per_layer_input" not in config:
        key = f"{FIELD}.hidden_size_per_layer_input"
        raise SpecError(key, f"is missing, which {kind} always says", "0 where layers have no embeddings of their own")
    if kind in _LATENT and config.get("kv_lora_rank") is None and config.get("use_mla") is not False:
        hint = "model_type deepseek for plain attention"
        raise SpecError(f"{FIELD}.kv_lora_rank", f"is missing, which {kind} always says", hint)
    for key in lengths:
        if config.get(key) is not None:
            at_least(config[key], key, 1)
    for key, most in (("num_nextn_predict_layers", MAX_LAYERS), ("head_dim", MAX_HEAD_DIM)):
        if config.get(key) is not None and at_least(config[key], key, 0) > most:
            raise SpecError(f"{FIELD}.{key}", f"must be at most {most}; got {shown(config[key])}", "leave it out")


# Keys of what a model calls otherwise than most configurations do; the first that a configuration has is meant.
_KEYS = {
    "moe.ffn_hidden_size": ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"),
    "moe.shared_ffn_hidden_size": (
        *("shared_expert_intermediate_size", "shared_intermediate_size", "n_shared_experts", "num_shared_experts"),
        "moe_num_shared_experts",
    ),
    "compressed_attention.window": ("sliding_window",),
    "compressed_attention.output_groups": ("o_groups",),
    "compressed_attention.output_rank": ("o_lora_rank",),
    "compressed_attention.rope_head_dim": ("qk_rope_head_dim", "partial_rotary_factor"),
    "compressed_attention.index_heads": ("index_n_heads",),
    "compressed_attention.chosen_entries": ("index_topk",),
    "hyper_connections.streams": ("hc_mult",),
    "hyper_connections.sinkhorn_steps": ("hc_sinkhorn_iters",),
    "moe.hash_layers": ("num_hash_layers",),
    "moe.first_dense_layers": ("first_k_dense_replace", "first_last_k_dense_replace", "num_dense_layers"),
    "moe.router_groups": ("n_group",),
    "moe.groups_per_token": ("topk_group",),
    "embedding_dim": ("word_embed_proj_dim",),
    "learned_positions": ("n_positions", "max_position_embeddings", "max_seq_len"),
}


def key_of(field: str, config: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> str:
    """The key of a configuration that says what a field of a model does; empty where none does.

    Args:
        field: Path of the field in a ``ModelSpec``, e.g. ``moe.num_experts``.
        config: The language model's own part.
        names: Names under which families keep one dimension.

    Example:
        >>> key_of("moe.experts_per_token", {"num_experts_per_tok": 9}, {"experts_per_token": ("num_experts_per_tok",)})
        'num_experts_per_tok'
    """
    last = field.rpartition(".")[2]
    known = _KEYS.get(field) or names.get(last) or (last,)
    return next((key for key in known if config.get(key) is not None), "")
