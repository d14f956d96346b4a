"""What pydantic finds wrong with a value, in the words of the library and of JSON."""

import re
from collections.abc import Mapping
from typing import Any

from profiles.errors import did_you_mean, shown

_KINDS = (
    dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), "must be a mapping")
    | dict.fromkeys(("list_type", "tuple_type"), "must be a list")
    | dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number")
    | dict.fromkeys(("float_type", "float_parsing"), "must be a number")
    | dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false")
    | {"string_type": "must be a text", "finite_number": "must be a finite number"}
)
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "above"),
    "less_than": ("lt", "below"),
}
_SIZES = {"too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}
_CLOSE = 0.6


def problem_of(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, and the value.

    Args:
        error: One of those of a ``ValidationError``.
    """
    kind, value, bounds = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "missing":
        return "is required"
    if kind in _SIZES and isinstance(value, list | tuple | dict):
        name, word = _SIZES[kind]
        items = ("field" if isinstance(value, dict) else "entry", "fields" if isinstance(value, dict) else "entries")
        return f"must have {word} {bounds[name]} {items[bounds[name] != 1]}; got {len(value) or 'none'}"
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return f"must be {word} {_plain(bounds[name])}; got {shown(value)}"
    if kind == "int_parsing_size":  # beyond 64 bits
        return f"must be a smaller number; got {shown(value)}"
    words = _KINDS.get(kind, error["msg"].removeprefix("Value error, "))
    words = words[:1].lower() + words[1:]
    words = re.sub(r"^input should be ", "must be ", re.sub(r"^string should have ", "must have ", words))
    return f"{words}; got {shown(value)}"


def hint_of(error: Mapping[str, Any]) -> str:
    """The bound that a value is beyond, itself allowed, or the word that was meant; empty where there is neither."""
    bounds = error.get("ctx", {})
    if error["type"] == "literal_error" and isinstance(error.get("input"), str):
        hint = did_you_mean(error["input"], re.findall(r"'([^']*)'", str(bounds.get("expected", ""))), cutoff=_CLOSE)
        return hint if hint.startswith("did") else ""
    return next((_plain(bounds[name]) for name in ("ge", "le") if isinstance(bounds.get(name), int | float)), "")


def _plain(bound: Any) -> str:
    return f"{bound:.15g}" if isinstance(bound, int | float) else str(bound)
