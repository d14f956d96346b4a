"""Numbers as Python has them, whatever library they come from."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from profiles.errors import SpecError, out_of_bounds, shown

_DEEPEST = 8  # levels of what a user describes


def plain(value: Any, *, depth: int = _DEEPEST) -> Any:
    """The value with NumPy's scalars in it replaced by Python's numbers, or itself if there are none.

    Narrow ones would overflow in the middle of a price: 100 sequences of 8 bits, three times, are 44.

    Args:
        value: A number, or mappings, lists, tuples and data classes of numbers and other things.
        depth: Levels to look into; what lies deeper stays.
    """
    if type(value).__module__ == "numpy":
        return value.item() if getattr(value, "shape", None) == () else value
    if not depth or value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        changed = _changed(value, depth)
        return {**value, **changed} if changed else value
    if type(value) in (list, tuple):
        changed = _changed(dict(enumerate(value)), depth)
        return type(value)(changed.get(place, item) for place, item in enumerate(value)) if changed else value
    if is_dataclass(value) and not isinstance(value, type):
        changed = _changed({item.name: getattr(value, item.name) for item in fields(value) if item.init}, depth)
        return replace(value, **changed) if changed else value
    return value


def without_point(value: Any) -> Any:
    """A float that is a whole number as one: columns of a table with a gap in it have them. Anything else as it is."""
    given = plain(value)
    return int(given) if isinstance(given, float) and given.is_integer() else value


def whole_number(field: str, value: Any, *, least: int, most: int) -> int:
    """The value, if it is a whole number within its bounds.

    Raises:
        SpecError: If it is not, naming ``field``.
    """
    given = plain(value)
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        problem = f"must be a whole number from {least} to {most}; got {shown(value)}"
        raise SpecError(field, problem, out_of_bounds(field, given, least, most).hint)
    return given


def _changed(items: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
    """Those of the items that are, or hold, other numbers than Python's."""
    found = {key: plain(item, depth=depth - 1) for key, item in items.items()}
    return {key: item for key, item in found.items() if item is not items[key]}
