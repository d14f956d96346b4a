"""Which heads the layers of a Hugging Face model have that attend within a window, and which the others.

Source:
    transformers 5.24: ``Gemma4TextConfig.__post_init__`` of models/gemma4/configuration_gemma4.py, and
    ``per_layer_config``, under which ``save_pretrained`` keeps what layers have otherwise than the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from profiles.errors import SpecError
from profiles.hf_families import Family
from profiles.hf_layers import FIELD, at_least, window_mask
from profiles.hf_reader import Reader
from profiles.model import ModelSpec
from profiles.model_fields import shown
from profiles.windowed_attention import WindowedAttention

_BY_LAYER = "per_layer_config"
_GLOBAL_HEAD_DIM = 512  # of Gemma4TextConfig


@dataclass(frozen=True, slots=True)
class _Heads:
    """Heads of one layer."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


_KEYS = tuple(_Heads.__dataclass_fields__)


def with_heads(reader: Reader, spec: ModelSpec) -> ModelSpec:
    """A model with the heads that its windowed layers have, and with those of the others where these are told apart.

    Args:
        reader: Of the configuration.
        spec: The model that all else in it describes.

    Raises:
        SpecError: If layers of one kind have different heads, or a key holds no number.
    """
    usual = _Heads(spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim)
    shared = reader.boolean(("attention_k_eq_v", False))
    spec = replace(spec, keys_are_values=shared, value_norm=reader.family.value_norm)
    found = _by_layer(reader, spec, usual)
    if found is None:
        return spec
    full, windowed = found
    every = (spec.windowed_layers == spec.num_layers, spec.windowed_layers == 0)
    own = windowed if every[0] else full
    spec = replace(spec, **{key: getattr(own, key) for key in _KEYS})
    if any(every):
        return replace(spec, keys_are_values=shared and not every[0])
    if full == windowed and not shared:
        return spec
    return replace(spec, windowed_attention=WindowedAttention(**{key: getattr(windowed, key) for key in _KEYS}))


def _by_layer(reader: Reader, spec: ModelSpec, usual: _Heads) -> tuple[_Heads, _Heads] | None:
    """Heads of the layers without a window and of those with one; None where all have the same."""
    config, family = reader.config, reader.family
    if config.get(_BY_LAYER):
        return _listed(config, family, spec, usual)
    if family.global_heads:
        wide = reader.integer("global_head_dim")
        if wide is None:
            reader.assume("global_head_dim", str(_GLOBAL_HEAD_DIM))
        fewer = reader.integer("num_global_key_value_heads") if spec.keys_are_values else None
        heads = usual.num_key_value_heads if fewer is None else fewer
        return replace(usual, num_key_value_heads=heads, head_dim=wide or _GLOBAL_HEAD_DIM), usual
    return None


def _listed(config: Mapping[str, Any], family: Family, spec: ModelSpec, usual: _Heads) -> tuple[_Heads, _Heads]:
    """The same out of what single layers have otherwise than the model."""
    listed, where = config[_BY_LAYER], f"{FIELD}.{_BY_LAYER}"
    if not isinstance(listed, Mapping):
        raise SpecError(where, f"must be a mapping of layers; got {shown(listed)}")
    heads = [usual] * spec.num_layers
    for layer, otherwise in listed.items():
        index = int(layer) if str(layer).isdecimal() and len(str(layer)) <= len(str(spec.num_layers)) else -1
        if not 0 <= index < spec.num_layers or not isinstance(otherwise, Mapping):
            raise SpecError(where, f"names layers 0 to {spec.num_layers - 1}; got {shown(layer)}")
        unknown = [key for key in otherwise if key not in _KEYS]
        if unknown:
            raise SpecError(f"{where}.{str(unknown[0])[:64]}", "of single layers has no price", "of the model instead")
        heads[index] = replace(usual, **{key: at_least(value, key, 1) for key, value in otherwise.items()})
    mask = window_mask(config, family, spec.num_layers)
    kinds = [{each for each, inside in zip(heads, mask, strict=True) if inside is one} for one in (False, True)]
    if any(len(kind) > 1 for kind in kinds):
        raise SpecError(where, "gives layers that attend alike different heads, which has no price", "the same")
    full, windowed = (next(iter(kind), usual) for kind in kinds)
    return full, windowed
