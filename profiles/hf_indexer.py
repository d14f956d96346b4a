"""Which layers of a Hugging Face model have an indexer, and its dimensions (DeepSeek sparse attention)."""

from collections.abc import Mapping
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_families import Family
from profiles.hf_layers import FIELD, at_least, one_each
from profiles.indexer import Indexer

_OWN = {"full": True, "shared": False, "F": True, "S": False}
_OFFSET = 2  # of GlmMoeDsaConfig, where a file says how often layers choose and not from which on


def indexer_of(config: Mapping[str, Any], family: Family, num_layers: int) -> Indexer | None:
    """The indexers of a configuration; None where its family has none.

    Args:
        config: The configuration, its language part.
        family: Its family.
        num_layers: Layers there are.

    Raises:
        SpecError: If a dimension is missing or no number, or it is not said of every layer whether it chooses itself.
    """
    if not family.indexer:
        return None
    return Indexer(
        num_heads=at_least(config.get("index_n_heads"), "index_n_heads", 1),
        head_dim=at_least(config.get("index_head_dim"), "index_head_dim", 1),
        chosen_keys=at_least(config.get("index_topk"), "index_topk", 1),
        layers=sum(_own_indexers(config, num_layers)),
    )


def _own_indexers(config: Mapping[str, Any], num_layers: int) -> list[bool]:
    """For each layer whether it chooses keys itself.

    Source:
        transformers, ``GlmMoeDsaConfig.__post_init__``: names, a pattern of letters, or every n-th layer.
    """
    for key in ("indexer_types", "index_topk_pattern"):
        listed = config.get(key)
        if listed is not None:
            items = list(listed) if isinstance(listed, str) else listed
            if not isinstance(items, list) or any(not isinstance(item, str) or item not in _OWN for item in items):
                raise SpecError(f"{FIELD}.{key}", f"must list full and shared layers; got {shown(listed)}")
            own = [_OWN[item] for item in one_each(items, key, num_layers)]
            if not own[0]:
                raise SpecError(f"{FIELD}.{key}", "the first layer has nobody's choice to take", "full")
            return own
    every = _whole(config, "index_topk_freq", 1)
    offset = at_least(config.get("index_skip_topk_offset", _OFFSET), "index_skip_topk_offset", 0)
    return [max(index - offset + 1, 0) % every == 0 for index in range(num_layers)]


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return default if value is None else at_least(value, key, 1)
