"""A model whose layers attend with different heads, as several models whose layers do not.

Everything that is worked out of the heads of one layer is worked out once for each kind, and counted by its layers.
"""

from dataclasses import replace
from functools import lru_cache

from profiles.model import ModelSpec
from profiles.windowed_attention import WindowedAttention

Kinds = tuple[tuple[ModelSpec, int], ...]


def attention_kinds(model: ModelSpec) -> Kinds:
    """The model as each kind of its attending layers sees it, and how many of these there are.

    Args:
        model: Any model.

    Returns:
        The model itself with all layers that attend in full or within a window, where these have the same heads. Else a
        model of the heads of layers without a window and one, all of whose layers have it, of the others'.

    Example:
        Gemma 4 31B: ten layers of 32 query and 4 key/value heads of 512, and fifty of 32 and 16 of 256 with a window.
    """
    if model.windowed_attention is None:
        return ((model, model.full_attention_layers),)
    return _apart(model, model.windowed_attention)


def attention_shares(model: ModelSpec) -> tuple[tuple[ModelSpec, float], ...]:
    """The same with shares of all layers instead of numbers."""
    if model.windowed_attention is None:
        return ((model, model.full_share),)
    return tuple((kind, layers / model.num_layers) for kind, layers in attention_kinds(model))


@lru_cache(maxsize=64)
def _apart(model: ModelSpec, heads: WindowedAttention) -> Kinds:
    full = replace(model, windowed_attention=None, sliding_window=0, windowed_layers=0)
    windowed = replace(
        model,
        windowed_attention=None,
        windowed_layers=model.num_layers,
        num_attention_heads=heads.num_attention_heads,
        num_key_value_heads=heads.num_key_value_heads,
        head_dim=heads.head_dim,
        attention_sinks=heads.attention_sinks,
        keys_are_values=False,
    )
    return (full, model.num_layers - model.windowed_layers), (windowed, model.windowed_layers)
