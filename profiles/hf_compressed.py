"""What a Hugging Face config.json says of attention over compressed keys, residual streams and routers (DeepSeek-V4).

Files of the checkpoints say of every layer how many tokens an entry has (``compress_ratios``), and of layers for
multi-token prediction after them; transformers writes kinds of layers (``layer_types``) and the tokens of each kind
(``compress_rates``), and the kind of every router (``mlp_layer_types``).

Source:
    transformers, models/deepseek_v4/configuration_deepseek_v4.py; vLLM, models/deepseek_v4/attention.py, to which a
    ratio of 0 is one of 1.
"""

from collections.abc import Mapping
from typing import Any

from profiles.compressed_attention import HEAVY_RATIO, SPARSE_RATIO, WINDOW_RATIOS, CompressedAttention
from profiles.errors import SpecError, shown
from profiles.hf_layers import FIELD, at_least, one_each
from profiles.hyper_connections import HyperConnections
from profiles.model_fields import is_integer, is_number

_KINDS = {
    "sliding_attention": WINDOW_RATIOS[0],
    "compressed_sparse_attention": SPARSE_RATIO,
    "heavily_compressed_attention": HEAVY_RATIO,
}
_HASHED = "hash_moe"
_STREAMS, _STEPS = 4, 20  # of DeepseekV4Config, where a file leaves them out


def compressed_attention(config: Mapping[str, Any], num_layers: int, head_dim: int) -> CompressedAttention:
    """The attention of a configuration.

    Args:
        config: The configuration, its language part.
        num_layers: Layers there are, those that only predict further tokens left out.
        head_dim: Width of a head.

    Raises:
        SpecError: If a dimension is missing or no number, a layer's ratio is not one that engines have kernels for, or
            it is not said of every layer.
    """
    ratios = _ratios(config, num_layers)

    def said(key: str) -> int:
        return at_least(config.get(key), key, 1)

    return CompressedAttention(
        q_lora_rank=said("q_lora_rank"),
        rope_head_dim=_rotated(config, head_dim),
        output_groups=said("o_groups"),
        output_rank=said("o_lora_rank"),
        window=said("sliding_window"),
        sparse_layers=ratios.count(SPARSE_RATIO),
        heavy_layers=ratios.count(HEAVY_RATIO),
        index_heads=said("index_n_heads"),
        index_head_dim=said("index_head_dim"),
        chosen_entries=said("index_topk"),
    )


def hyper_connections(config: Mapping[str, Any], notes: list[str]) -> HyperConnections:
    """The residual streams of a configuration; what a file leaves out is taken as the family has it, on record."""
    found = {}
    for key, name, usual in (("hc_mult", "streams", _STREAMS), ("hc_sinkhorn_iters", "sinkhorn_steps", _STEPS)):
        if config.get(key) is None:
            notes.append(f"{FIELD}.{key} is absent: taken as {usual}, as the family does")
        found[name] = at_least(usual if config.get(key) is None else config[key], key, 0)
    return HyperConnections(**found)


def hash_layers(config: Mapping[str, Any], num_layers: int) -> int:
    """Leading layers whose routers look experts up.

    Raises:
        SpecError: If they are not the first, or no number says how many.
    """
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, list):
        return at_least(config.get("num_hash_layers"), "num_hash_layers", 0)
    for kind in kinds:
        if kind not in (_HASHED, "moe"):
            raise SpecError(f"{FIELD}.mlp_layer_types", f"unsupported layer {shown(kind)}", f"{_HASHED} or moe")
    hashed = one_each(kinds, "mlp_layer_types", num_layers).count(_HASHED)
    if _HASHED in kinds[hashed:]:
        problem = f"has {_HASHED} after moe, and only leading layers look experts up"
        raise SpecError(f"{FIELD}.mlp_layer_types", problem, f"{_HASHED} for the first layers, moe for the others")
    return hashed


def _ratios(config: Mapping[str, Any], num_layers: int) -> list[int]:
    """Tokens per entry of every layer."""
    kinds, listed = config.get("layer_types"), config.get("compress_ratios")
    if isinstance(kinds, list):
        return _of_kinds(one_each(kinds, "layer_types", num_layers), config.get("compress_rates"))
    if not isinstance(listed, list):
        problem = "is missing: it says how many tokens an entry of each layer has"
        raise SpecError(
            f"{FIELD}.compress_ratios", problem, "a list of 0, 4 and 128, or layer_types and compress_rates"
        )
    if len(listed) < num_layers:
        problem = f"must have an entry for each of {num_layers} layers; got {len(listed)}"
        raise SpecError(f"{FIELD}.compress_ratios", problem, "0 for a layer with a window alone")
    for at, ratio in enumerate(listed[:num_layers]):
        if not is_integer(ratio) or ratio not in (*WINDOW_RATIOS, SPARSE_RATIO, HEAVY_RATIO):
            raise _unknown("compress_ratios", f"is {shown(ratio)} for layer {at}")
    return listed[:num_layers]


def _of_kinds(kinds: list[Any], rates: Any) -> list[int]:
    """The same of layers whose kinds are listed, with the tokens of each kind."""
    if rates is not None and not isinstance(rates, Mapping):
        raise SpecError(f"{FIELD}.compress_rates", f"must be a mapping of kinds of layers; got {shown(rates)}")
    for kind, rate in ({} if rates is None else rates).items():
        if kind in _KINDS and rate != _KINDS[kind]:
            raise _unknown("compress_rates", f"is {shown(rate)} for {kind}")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _KINDS:
            raise SpecError(f"{FIELD}.layer_types", f"unsupported layer {shown(kind)}", ", ".join(_KINDS))
    return [_KINDS[kind] for kind in kinds]


def _unknown(key: str, problem: str) -> SpecError:
    kinds = f"{SPARSE_RATIO} (an indexer chooses), {HEAVY_RATIO} (all are attended to) or {WINDOW_RATIOS[0]} (a window)"
    return SpecError(f"{FIELD}.{key}", f"{problem}, for which no engine has kernels", kinds)


def _rotated(config: Mapping[str, Any], head_dim: int) -> int:
    """Width of a head that is rotated: a number, or a share of the head."""
    share = config.get("partial_rotary_factor")
    if config.get("qk_rope_head_dim") is None and is_number(share):
        return int(head_dim * share)  # type: ignore[operator]  # is_number says so
    return at_least(config.get("qk_rope_head_dim"), "qk_rope_head_dim", 1)
