"""Which layers of a Hugging Face model attend linearly, and the dimensions of their mixers.

Families say which in lists of names, of numbers or of ones and zeros, or by an interval; ``ModelSpec`` knows a number
of layers. A family that has linear attention and mixes it otherwise (Kimi K3) is a ``SpecError``.
"""

from collections.abc import Mapping
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_families import Family
from profiles.hf_layers import FIELD, at_least, one_each, ones_of
from profiles.linear_attention import DELTA_NET, KIMI_DELTA, LIGHTNING, MAMBA2, LinearAttention
from profiles.model_fields import is_integer

_LINEAR = ("linear_attention", "mamba")
_FULL = ("full_attention", "attention")
_INTERVAL = 4  # of full attention where nothing is said: configuration_qwen3_next.py, configuration_qwen3_5.py
# Of the configuration classes (configuration_qwen3_next.py, configuration_kimi_linear.py and
# configuration_granitemoehybrid.py of transformers), which files may leave out.
_DELTA_NET = {
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2}
# What Kimi K3 has beside Kimi Linear's layers (arXiv:2510.26692): none of it is described here.
_BEYOND_KIMI_LINEAR = ("routed_expert_hidden_size", "attn_res_block_size", "mla_use_output_gate")


def linear_attention(
    config: Mapping[str, Any], family: Family, num_layers: int, notes: list[str]
) -> LinearAttention | None:
    """Linear attention of some layers; None where all attend in full.

    Args:
        config: The configuration, its language part.
        family: Its family: which kind it has.
        num_layers: Layers there are.
        notes: Gets a sentence for every dimension that had to be assumed.

    Raises:
        SpecError: If a layer is neither, none attends in full, or a dimension is missing or no number.
    """
    if not family.linear:
        return None
    linear = sum(_linear_layers(config, family.linear, num_layers, notes))
    if not linear:
        return None
    if linear == num_layers:
        raise SpecError(f"{FIELD}.layer_types", "no layer attends in full", "every n-th has to")
    said = {key: value for key, value in config.items() if value is not None}
    dimensions = _DIMENSIONS[family.linear]({**family.defaults, **said}, notes)
    wide = config.get("mamba_ssm_dtype") == "float32"
    return LinearAttention(kind=family.linear, layers=linear, float32_states=wide, **dimensions)


def _linear_layers(config: Mapping[str, Any], kind: str, num_layers: int, notes: list[str]) -> list[bool]:
    """For each layer whether it attends linearly, by whichever key says so."""
    nested = config.get("linear_attn_config")
    if isinstance(nested, Mapping) and isinstance(nested.get("kda_layers"), list):
        return _numbered(nested, num_layers)
    if isinstance(config.get("attn_type_list"), list):  # MiniMax: one for softmax
        return [not full for full in ones_of(config["attn_type_list"], "attn_type_list", num_layers)]
    for key in ("layer_types", "layers_block_type"):
        if isinstance(config.get(key), list):
            return [_is_linear(item, key) for item in one_each(config[key], key, num_layers)]
    if kind in (DELTA_NET, KIMI_DELTA):
        interval = _whole(config, "full_attention_interval", _INTERVAL, notes)
        return [(index + 1) % interval != 0 for index in range(num_layers)]
    raise SpecError(f"{FIELD}.layer_types", "is missing", "it says which layers attend in full")


def _numbered(nested: Mapping[str, Any], num_layers: int) -> list[bool]:
    """Kimi Linear lists its layers of either sort, counted from one."""
    kinds = {name: nested.get(name) for name in ("kda_layers", "full_attn_layers")}
    found = [item for listed in kinds.values() if isinstance(listed, list) for item in listed]
    if sorted(item for item in found if is_integer(item)) != list(range(1, num_layers + 1)) or len(found) != num_layers:
        raise SpecError(
            f"{FIELD}.linear_attn_config", f"kda_layers and full_attn_layers must share out layers 1 to {num_layers}"
        )
    return [index + 1 in (kinds["kda_layers"] or ()) for index in range(num_layers)]


def _is_linear(item: object, key: str) -> bool:
    if item not in (*_LINEAR, *_FULL):
        raise SpecError(f"{FIELD}.{key}", f"unsupported layer {shown(item)}")
    return item in _LINEAR


def _delta_net(config: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    return {key.removeprefix("linear_"): _whole(config, key, default, notes) for key, default in _DELTA_NET.items()}


def _kimi_delta(config: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    nested = config.get("linear_attn_config")
    nested = nested if isinstance(nested, Mapping) else {}
    beyond = [key for key in _BEYOND_KIMI_LINEAR if config.get(key)] + ["use_full_rank_gate"] * bool(
        nested.get("use_full_rank_gate")
    )
    if beyond:
        raise SpecError(f"{FIELD}.{beyond[0]}", "belongs to layers that have no cost model (Kimi K3)")
    own = {"head_dim": ("linear_head_dim", 128), "num_heads": ("linear_num_heads", 32)}
    own["short_conv_kernel_size"] = ("linear_conv_kernel_dim", 4)
    values = {
        name: _whole(nested if name in nested else config, name if name in nested else key, default, notes)
        for name, (key, default) in own.items()
    }
    heads, width = values["num_heads"], values["head_dim"]
    return {
        "num_key_heads": heads,
        "num_value_heads": heads,
        "key_head_dim": width,
        "value_head_dim": width,
        "conv_kernel_dim": values["short_conv_kernel_size"],
    }


def _lightning(config: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    heads = _whole(config, "num_attention_heads", 0, notes)
    hidden = _whole(config, "hidden_size", 0, notes)
    width = _whole(config, "head_dim", hidden // heads, notes)
    return {"num_key_heads": heads, "num_value_heads": heads, "key_head_dim": width, "value_head_dim": width}


def _mamba2(config: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    if config.get("mamba_proj_bias") is True or config.get("mamba_conv_bias") is False:
        raise SpecError(f"{FIELD}.mamba_proj_bias", "true, or mamba_conv_bias false, is not known")
    values = {key: _whole(config, key, default, notes) for key, default in _MAMBA2.items() if key != "mamba_expand"}
    heads = values["mamba_n_heads"]
    if config.get("mamba_d_head") in (None, "auto"):
        inner = _whole(config, "mamba_expand", _MAMBA2["mamba_expand"], notes) * _whole(config, "hidden_size", 0, notes)
        width = inner // heads
    else:
        width = _whole(config, "mamba_d_head", 0, notes)
    return {
        "num_key_heads": values["mamba_n_groups"],
        "num_value_heads": heads,
        "key_head_dim": values["mamba_d_state"],
        "value_head_dim": width,
        "conv_kernel_dim": values["mamba_d_conv"],
    }


def _whole(config: Mapping[str, Any], key: str, default: int, notes: list[str]) -> int:
    value = config.get(key)
    if value is None and default:
        notes.append(f"{FIELD}.{key} is absent: taken as {default}")
        return default
    return at_least(value, key, 1)


_DIMENSIONS = {DELTA_NET: _delta_net, KIMI_DELTA: _kimi_delta, LIGHTNING: _lightning, MAMBA2: _mamba2}
