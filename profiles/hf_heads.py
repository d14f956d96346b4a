"""Which heads the layers of a Hugging Face model have that attend within a window, and which the others.

Source:
    transformers 5.24: ``Gemma4TextConfig.__post_init__`` of models/gemma4/configuration_gemma4.py,
    ``Step3p7TextConfig`` of models/step3p7, ``MiMoV2FlashAttention`` of models/mimo_v2_flash, and ``per_layer_config``,
    under which ``save_pretrained`` keeps what layers have otherwise than the model. Keys that begin with ``swa`` are
    those of XiaomiMiMo/MiMo-V2-Flash, configuration_mimo_v2_flash.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_families import Family
from profiles.hf_layers import FIELD, at_least, one_each, window_mask
from profiles.hf_reader import Reader
from profiles.model import ModelSpec
from profiles.windowed_attention import WindowedAttention

_BY_LAYER = "per_layer_config"
_EACH = "num_attention_heads_per_layer"
_OTHER = "attention_other_setting"
_GLOBAL_HEAD_DIM = 512  # of Gemma4TextConfig
_GROUPS = {"num_attention_groups": "num_key_value_heads"}  # Step-3.5's word


@dataclass(frozen=True, slots=True)
class _Heads:
    """Heads of one layer."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


_SAID = {
    "swa_num_attention_heads": "num_attention_heads",
    "num_sliding_attention_heads": "num_attention_heads",
    "swa_num_key_value_heads": "num_key_value_heads",
    "swa_head_dim": "head_dim",
}
_KEYS = tuple(_Heads.__dataclass_fields__)


def with_heads(reader: Reader, spec: ModelSpec) -> ModelSpec:
    """A model with the heads that its windowed layers have, and with those of the others where these are told apart.

    Args:
        reader: Of the configuration.
        spec: The model that all else in it describes.

    Raises:
        SpecError: If layers of one kind have different heads, or a key holds no number.
    """
    family = reader.family
    usual = _Heads(spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim)
    spec = replace(
        spec,
        keys_are_values=reader.boolean(("attention_k_eq_v", False)),
        value_norm=family.value_norm,
        value_head_dim=_value_head_dim(reader, spec),
        head_gates=_head_gates(reader),
        attention_sinks=spec.attention_sinks or reader.boolean(("add_full_attention_sink_bias", False)),
    )
    sinks = reader.boolean(("add_swa_attention_sink_bias", family.windowed_sinks or spec.attention_sinks))
    full, windowed = _by_layer(reader, spec, usual)
    if spec.windowed_layers == spec.num_layers:
        return replace(_of(spec, windowed), keys_are_values=False, attention_sinks=sinks)
    if full != windowed and not spec.windowed_layers and not family.global_heads:
        key = next((key for key in (*_SAID, _OTHER, _BY_LAYER) if reader.config.get(key)), "sliding_window")
        problem = "says that windowed layers have other heads, and none has a window"
        raise SpecError(f"{FIELD}.{key}", problem, "sliding_window, and layer_types that say which have it")
    spec = _of(spec, full)
    same = full == windowed and not spec.keys_are_values and sinks == spec.attention_sinks
    if same or not spec.windowed_layers:
        return spec
    own = WindowedAttention(**{key: getattr(windowed, key) for key in _KEYS}, attention_sinks=sinks)
    return replace(spec, windowed_attention=own)


def _of(spec: ModelSpec, heads: _Heads) -> ModelSpec:
    return replace(spec, **{key: getattr(heads, key) for key in _KEYS})


def _head_gates(reader: Reader) -> bool:
    """Whether attention's output has a gate per head."""
    key = reader.family.head_gates
    said = reader.config.get(key, True) if key else False
    if said not in (True, False, None, "per-head"):
        raise SpecError(f"{FIELD}.{key}", f"is {shown(said)}, which has no price", "per-head")
    return bool(said)


def _value_head_dim(reader: Reader, spec: ModelSpec) -> int:
    """Width of a head of values where it is not that of keys; latent attention has its own."""
    width = None if spec.latent_attention is not None else reader.integer("v_head_dim")
    other = reader.integer("swa_v_head_dim")
    if width is not None and other not in (None, width):
        raise SpecError(
            f"{FIELD}.swa_v_head_dim", f"is {other}, and v_head_dim {width}, which has no price", "the same"
        )
    return 0 if width is None or width == spec.head_dim else width


def _by_layer(reader: Reader, spec: ModelSpec, usual: _Heads) -> tuple[_Heads, _Heads]:
    """Heads of the layers without a window and of those with one."""
    config, family = reader.config, reader.family
    listed = config.get(_EACH)
    if isinstance(listed, list):  # Laguna
        numbers = enumerate(one_each(listed, _EACH, spec.num_layers))
        config = {**config, _BY_LAYER: {str(index): {"num_attention_heads": number} for index, number in numbers}}
    if config.get(_BY_LAYER):
        return _listed(config, family, spec, usual)
    if not family.global_heads:
        return usual, _windowed(reader, usual)
    wide = reader.integer("global_head_dim")
    if wide is None:
        reader.assume("global_head_dim", str(_GLOBAL_HEAD_DIM))
    fewer = reader.integer("num_global_key_value_heads") if spec.keys_are_values else None
    heads = usual.num_key_value_heads if fewer is None else fewer
    return replace(usual, num_key_value_heads=heads, head_dim=wide or _GLOBAL_HEAD_DIM), usual


def _windowed(reader: Reader, usual: _Heads) -> _Heads:
    """Heads of windowed layers where keys of the configuration, or the family, say so."""
    other = reader.config.get(_OTHER) or {}
    if not isinstance(other, Mapping):
        raise SpecError(f"{FIELD}.{_OTHER}", f"must be a mapping; got {shown(other)}")
    said: dict[str, int] = {}
    for name, value in other.items():
        key = _GROUPS.get(str(name), str(name))
        if key in _KEYS:
            said[key] = at_least(value, f"{_OTHER}.{name}", 1)
    for name, key in _SAID.items():
        own = reader.integer(name)
        if own is not None:
            said[key] = own
    said.setdefault("num_key_value_heads", reader.family.windowed_heads_times * usual.num_key_value_heads)
    return replace(usual, **said)


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
    mask = window_mask(config, family, spec.num_layers) if spec.windowed_layers else [False] * spec.num_layers
    kinds = [{each for each, inside in zip(heads, mask, strict=True) if inside is one} for one in (False, True)]
    if any(len(kind) > 1 for kind in kinds):
        raise SpecError(where, "gives layers that attend alike different heads, which has no price", "the same")
    full, windowed = (next(iter(kind or other)) for kind, other in (kinds, kinds[::-1]))
    return full, windowed
