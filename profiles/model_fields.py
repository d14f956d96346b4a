"""From a mapping of our own field names (catalogue entry, request body) to a checked ModelSpec.

Keys are exactly the fields of ``ModelSpec``, with ``moe``, kinds of attention, ``indexer`` and ``hyper_connections``
nested; unknown keys are errors. Three fields may be left out where the rest decides them: see ``_fill``.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from profiles.compressed_attention import CompressedAttention
from profiles.errors import LARGEST, SpecError, meant_among, shown
from profiles.hyper_connections import HyperConnections
from profiles.indexer import Indexer
from profiles.linear_attention import LinearAttention
from profiles.model import LatentAttention, ModelSpec
from profiles.moe import MoESpec
from profiles.windowed_attention import WindowedAttention

MAX_TEXT = 256

_Nested = (
    type[MoESpec]
    | type[LatentAttention]
    | type[LinearAttention]
    | type[Indexer]
    | type[WindowedAttention]
    | type[CompressedAttention]
    | type[HyperConnections]
)
NESTED: dict[str, _Nested] = {
    "moe": MoESpec,
    "latent_attention": LatentAttention,
    "linear_attention": LinearAttention,
    "indexer": Indexer,
    "windowed_attention": WindowedAttention,
    "compressed_attention": CompressedAttention,
    "hyper_connections": HyperConnections,
}


def model_from_fields(
    name: str, values: Mapping[str, Any], *, field: str = "model", source: str = ""
) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model described by ``values``, and what had to be assumed.

    Args:
        name: The model's name.
        values: Field name to value; nested mappings for ``moe`` and other parts.
        field: Dotted path of the mapping in the user's input, for messages.
        source: Where the figures come from, when ``values`` does not say.

    Returns:
        The model and one sentence per field that was filled in.

    Raises:
        SpecError: If a key is unknown or missing, a value has the wrong type or is out of bounds.
    """
    checked = _checked(values, ModelSpec, field, skip=("name",))
    for key, kind in NESTED.items():
        nested = checked.get(key)
        if nested is not None:
            inner = _checked(nested, kind, f"{field}.{key}")
            _require(inner, kind, f"{field}.{key}")
            checked[key] = kind(**inner)
    assumptions = _fill(checked, field)
    _require(checked, ModelSpec, field, skip=("name",))
    checked.setdefault("source", source)
    try:
        return ModelSpec(name=name, **checked), assumptions
    except SpecError as error:
        raise error.at(field + error.field.removeprefix("model")) from None


def _fill(values: dict[str, Any], field: str) -> tuple[str, ...]:
    """Fill in what the rest decides: key/value heads, head width, the dense width of an all-MoE model."""
    notes = []
    heads, hidden, moe = values.get("num_attention_heads"), values.get("hidden_size"), values.get("moe")
    if heads is not None and heads < 1:
        raise SpecError(f"{field}.num_attention_heads", f"must be at least 1; got {heads}", "1")
    if heads and values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
        notes.append(f"{field}.num_key_value_heads taken as num_attention_heads={heads}")
    if heads and hidden and values.get("head_dim") is None:
        if hidden % heads:
            raise SpecError(
                f"{field}.num_attention_heads",
                f"must divide hidden_size={hidden} when head_dim is not given; got {heads}",
                "give head_dim",
            )
        values["head_dim"] = hidden // heads
        notes.append(f"{field}.head_dim taken as hidden_size / num_attention_heads = {hidden // heads}")
    all_moe = isinstance(moe, MoESpec) and moe.first_dense_layers == 0 and moe.layer_interval == 1
    if all_moe and values.get("ffn_hidden_size") is None:
        values["ffn_hidden_size"] = moe.ffn_hidden_size  # type: ignore[union-attr]  # all_moe says so
    return tuple(notes)


def _checked(
    values: object,
    kind: type[ModelSpec] | _Nested,
    field: str,
    skip: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A copy of ``values`` with every key known and every value of its field's type; None means absent."""
    if not isinstance(values, Mapping):
        raise SpecError(field, f"must be a mapping; got {shown(values)}")
    known = {item.name: item.type for item in fields(kind) if item.name not in skip}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or key not in known:
            raise SpecError(f"{field}.{str(key)[:64]}", "unknown field", meant_among(str(key), known))
        if value is None:
            continue
        wanted = known[key]
        if key in NESTED:
            fits, expected = isinstance(value, Mapping), "a mapping"
        elif wanted is bool:
            fits, expected = isinstance(value, bool), "true or false"
        elif wanted is int:
            fits, expected = is_integer(value), "a whole number"
        elif wanted is str:
            fits, expected = isinstance(value, str), "text"
        else:
            fits, expected = is_number(value), "a number"
        if not fits:
            raise SpecError(f"{field}.{key}", f"must be {expected}; got {shown(value)}")
        checked[key] = value
    return checked


def _require(
    values: Mapping[str, Any],
    kind: type[ModelSpec] | _Nested,
    field: str,
    skip: tuple[str, ...] = (),
) -> None:
    for item in fields(kind):
        if item.default is MISSING and item.name not in skip and values.get(item.name) is None:
            raise SpecError(f"{field}.{item.name}", "is required")


def is_integer(value: object) -> bool:
    """Whether the value is an int, no bool, of at most 30 digits (longer ones cannot even be printed)."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def is_number(value: object) -> bool:
    """Whether the value is a positive finite number that fits a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("1e30")
