"""Which layers of a Hugging Face model have experts, and which attend within a window.

Families say this in lists, frequencies and patterns; ``ModelSpec`` knows a number of leading dense
layers with an interval, and a number of windowed layers. What does not fit is a ``SpecError``.
"""

from collections.abc import Mapping
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_families import Family
from profiles.model_fields import is_integer

FIELD = "config.json"
_BOUNDED = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
_EACH = ("sliding_window_pattern", "global_attn_every_n_layers")
# Lists that say of every layer whether it has experts: in words, as transformers does (GLM-5, K-EXAONE), and in ones,
# DeepSeek's and K-EXAONE's own.
_TYPES = "mlp_layer_types"
_LISTS = ("moe_layer_freq", "is_moe_layer")
# Leading dense layers: DeepSeek's key, the older one of K-EXAONE, and AFMoE's.
_LEADING = ("first_k_dense_replace", "first_last_k_dense_replace", "num_dense_layers")
_BOTH_SIDES = "local_attention"  # a decoder sees the half of it (configuration_modernbert_decoder.py)
_NO_WINDOW = -1  # of xai-org/grok-2, config.json
_LOCAL = ("sliding_attention", "chunked_attention")


def is_llama_4(config: Mapping[str, Any]) -> bool:
    """Whether it is a Llama 4, by its ``model_type``."""
    return config.get("model_type") in ("llama4", "llama4_text")


def layer_mask_of_experts(config: Mapping[str, Any], num_layers: int) -> tuple[int, int] | None:
    """Where the mixture-of-experts layers are, as (leading dense layers, interval); None when there are none.

    Raises:
        SpecError: If the layers do not follow that scheme.
    """
    mask = _mask(config, num_layers)
    indices = [index for index, is_moe in enumerate(mask) if is_moe]
    if not indices:
        return None
    # A single one fits any interval that leaves room for no second.
    interval = indices[1] - indices[0] if len(indices) > 1 else num_layers - indices[0]
    first = indices[0] - (interval - 1)
    if first >= 0 and indices == list(range(indices[0], num_layers, interval)):
        return first, interval
    said = ("mlp_only_layers", "moe_layers", "moe_layers_enum", _TYPES, *_LISTS, *_LEADING, *_BOUNDED)
    shown_layers = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    raise SpecError(
        f"{FIELD}.{next((key for key in said if config.get(key)), 'decoder_sparse_step')}",
        f"layers with experts, {shown_layers} of {num_layers}, follow no regular interval",
        "only leading dense layers and every n-th layer are supported",
    )


def _mask(config: Mapping[str, Any], num_layers: int) -> list[bool]:
    """For each layer whether it has experts, by whichever keys the family uses."""
    chosen = _numbers(config, num_layers)
    if chosen is not None:
        return [index in chosen for index in range(num_layers)]
    kinds = config.get(_TYPES)
    if kinds is not None:  # GLM-5
        return _sparse(kinds, num_layers)
    frequency = config.get("moe_layer_freq")
    for key in _LISTS:
        if isinstance(config.get(key), list):
            return ones_of(config[key], key, num_layers)
        if config.get(key) is not None and not (key == "moe_layer_freq" and is_integer(frequency)):
            raise _no_list(key, config[key], "ones and zeros", "1 for layers with experts, 0 for others")
    first = next((_whole(config, key, 0, smallest=0) for key in _LEADING if config.get(key) is not None), 0)
    if any(config.get(key) is not None for key in _BOUNDED):
        return _between(config, num_layers)
    if is_integer(frequency):  # DeepSeek counts from layer 0
        every = _whole(config, "moe_layer_freq", 1)
        mask = [index >= first and index % every == 0 for index in range(num_layers)]
    else:
        step = _whole(config, "interleave_moe_layer_step", _whole(config, "decoder_sparse_step", 1))
        mask = [index >= first and (index + 1) % step == 0 for index in range(num_layers)]
    dense_only = config.get("mlp_only_layers")
    if not isinstance(dense_only, list | None):
        raise SpecError(f"{FIELD}.mlp_only_layers", f"must be a list of layers; got {shown(dense_only)}", "[] for none")
    dense = _numbered(dense_only or [], "mlp_only_layers", num_layers)
    return [is_moe and index not in dense for index, is_moe in enumerate(mask)]


def _numbers(config: Mapping[str, Any], num_layers: int) -> set[int] | None:
    """The layers with experts where a list has their numbers; None where none does."""
    for key in ("moe_layers", "moe_layers_enum"):  # Llama 4; Step-3.5, in a text or a list
        explicit = config.get(key)
        if explicit is None or (explicit == [] and not is_llama_4(config)):  # other families have experts all the same
            continue
        if isinstance(explicit, str):
            explicit = [int(item) if item.strip().isdecimal() else item for item in explicit.split(",")[:num_layers]]
        if not isinstance(explicit, list):
            raise _no_list(key, explicit, "layers", "the numbers of those with experts")
        return _numbered(explicit, key, num_layers)
    return None


def _sparse(kinds: object, num_layers: int) -> list[bool]:
    """For each layer whether it is called sparse."""
    hint = "dense, or sparse for layers with experts"
    if not isinstance(kinds, list):
        raise _no_list(_TYPES, kinds, "layers", hint)
    for kind in kinds:
        if kind not in ("dense", "sparse"):
            raise SpecError(f"{FIELD}.{_TYPES}", f"unsupported layer {shown(kind)}", hint)
    return [kind == "sparse" for kind in one_each(kinds, _TYPES, num_layers)]


def _no_list(key: str, value: object, of: str, hint: str) -> SpecError:
    return SpecError(f"{FIELD}.{key}", f"must be a list of {of}; got {shown(value)}", hint)


def _between(config: Mapping[str, Any], num_layers: int) -> list[bool]:
    """ERNIE 4.5: every n-th layer of a stretch (transformers, ernie4_5_moe/modeling_ernie4_5_moe.py, DecoderLayer).

    The last is the model's where it is said to be -1 or not said.
    """
    every = _whole(config, "moe_layer_interval", 1)
    first = _whole(config, "moe_layer_start_index", 0, smallest=0)
    end = config.get("moe_layer_end_index")
    last = num_layers - 1 if end in (None, -1) else _whole(config, "moe_layer_end_index", 0, smallest=0)
    return [first <= index <= last and (index + 1) % every == 0 for index in range(num_layers)]


def _numbered(listed: list[Any], key: str, num_layers: int) -> set[int]:
    """The layers a list under a key names.

    Raises:
        SpecError: If one is no layer.
    """
    for index in listed:
        if not is_integer(index) or not 0 <= index < num_layers:
            raise SpecError(f"{FIELD}.{key}", f"names layers 0 to {num_layers - 1}; got {shown(index)}")
    return set(listed)


def windowed_layers(
    config: Mapping[str, Any], family: Family, num_layers: int, notes: list[str]
) -> tuple[int, int, int]:
    """The attention window in tokens, how many layers it applies to, and which do without; (0, 0, 0) for none.

    The last is n where all layers but every n-th have the window and differ in nothing else, as in families known to
    be so; others turn full layers round no positions (SmolLM3, EXAONE 4), or attend in chunks (Llama 4).

    Raises:
        SpecError: If a layer is neither full nor windowed attention, or a number is not one.
    """
    key = "attention_chunk_size" if family.window == "chunk" else "sliding_window"
    key = "sliding_window_size" if key not in config and "sliding_window_size" in config else key
    window = 0 if config.get(key) == _NO_WINDOW else _whole(config, key, 0, smallest=0)
    if key not in config and config.get(_BOTH_SIDES) is not None:
        window, key = _whole(config, _BOTH_SIDES, 0, smallest=0) // 2, _BOTH_SIDES
    if key not in config and family.window_default:
        window = family.window_default
        notes.append(f"{FIELD}.{key} is absent: taken as {window}, as the family does")
    mask = window_mask(config, family, num_layers)
    longest = config.get("max_position_embeddings")
    bounds = not isinstance(longest, int) or window < longest  # Phi-4-mini's window is twice as long as its sequences
    if not window or not any(mask) or not bounds:
        return 0, 0, 0
    if family.window == "chunk":
        notes.append(f"attention in chunks of {window} tokens is treated as a sliding window")
    alternates = range(2, num_layers + 1) if family.window.startswith("every:") else ()
    every = next((n for n in alternates if mask == _all_but_every(n, num_layers)), 0)
    return window, sum(mask), every


def window_mask(config: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    """For each layer whether it attends within a window, if there is one.

    Raises:
        SpecError: If a layer is neither full nor windowed attention, or a number is not one.
    """
    types, ones = config.get("layer_types"), config.get("hybrid_layer_pattern")
    if isinstance(types, list):
        more = config.get("num_nextn_predict_layers")  # Step-3.5 says of these what they are, too
        return _windowed_by_type(types[:num_layers] if len(types) == num_layers + (more or 0) else types, num_layers)
    if isinstance(ones, list):  # MiMo
        return ones_of(ones, "hybrid_layer_pattern", num_layers)
    if family.window == "chunk":
        return _chunked(config, num_layers)
    if ":" in family.window:
        every = _interval(config, int(family.window.rpartition(":")[2]))
        if family.window.startswith(("after:", "last:")):
            counted = range(num_layers) if family.window.startswith("after:") else reversed(range(num_layers))
            return [index % every > 0 for index in counted]
        mask = _all_but_every(every, num_layers)
        return [False, *mask[1:]] if family.window.startswith("first:") else mask
    if family.window == "qwen":
        full = _whole(config, "max_window_layers", num_layers, smallest=0)
        return [config.get("use_sliding_window") is True and index >= full for index in range(num_layers)]
    return [family.window == "all"] * num_layers


def _interval(config: Mapping[str, Any], default: int) -> int:
    """Every how manieth layer attends in full; EXAONE also writes it in letters, ``LLLG``."""
    key = next((key for key in _EACH if config.get(key) is not None), _EACH[0])
    letters = config.get(key)
    if isinstance(letters, str) and letters == "L" * (len(letters) - 1) + "G":
        return len(letters)
    return _whole(config, key, default)


def one_each(listed: list[Any], key: str, num_layers: int) -> list[Any]:
    """The list under a key, which says something of every layer.

    Raises:
        SpecError: If it is longer or shorter.
    """
    if len(listed) != num_layers:
        raise SpecError(f"{FIELD}.{key}", f"must have {num_layers} entries; got {len(listed)}")
    return listed


def ones_of(listed: list[Any], key: str, num_layers: int) -> list[bool]:
    """For each layer whether the list under a key has a one, or true, for it.

    Raises:
        SpecError: If it has anything but ones and zeros, or is longer or shorter.
    """
    for item in listed:
        if not isinstance(item, int) or item not in (0, 1):
            raise SpecError(f"{FIELD}.{key}", f"must hold ones and zeros; got {shown(item)}", "1 for yes, 0 for no")
    return [item == 1 for item in one_each(listed, key, num_layers)]


def at_least(value: object, key: str, smallest: int) -> int:
    """The value under a key.

    Raises:
        SpecError: If it is no whole number, or smaller.
    """
    if not isinstance(value, int) or not is_integer(value) or value < smallest:
        problem = f"must be a whole number of at least {smallest}; got {shown(value)}"
        raise SpecError(f"{FIELD}.{key}", problem, "as the model's own config.json has it")
    return int(value)


def _all_but_every(every: int, num_layers: int) -> list[bool]:
    return [(index + 1) % every > 0 for index in range(num_layers)]


def _windowed_by_type(types: list[Any], num_layers: int) -> list[bool]:
    for item in types:
        if item not in (*_LOCAL, "full_attention"):
            raise SpecError(f"{FIELD}.layer_types", f"unsupported layer {shown(item)}")
    return [item in _LOCAL for item in one_each(types, "layer_types", num_layers)]


def _chunked(config: Mapping[str, Any], num_layers: int) -> list[bool]:
    """Llama 4: layers with rotary positions attend within a chunk, every fourth has neither."""
    rotary = config.get("no_rope_layers")
    if isinstance(rotary, list) and rotary:
        return [item in (1, True) for item in rotary[:num_layers]]
    return _all_but_every(_whole(config, "no_rope_layer_interval", 4), num_layers)


def _whole(config: Mapping[str, Any], key: str, default: int, *, smallest: int = 1) -> int:
    value = config.get(key)
    return default if value is None else at_least(value, key, smallest)
