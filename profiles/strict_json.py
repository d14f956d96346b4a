"""JSON in which a key given twice is an error rather than silently the last one, as in the catalogue's YAML."""

import json
from collections.abc import Sequence
from typing import Any

_UNPLACED = -1  # position of a mistake that has none
_MOST_WHOLE = float(1 << 53)  # from there on doubles skip whole numbers


def loads(content: bytes | str, *, whole: bool = False) -> Any:
    """What the text says.

    Args:
        content: The text.
        whole: Whether a number such as ``1024.0`` is the whole number it equals, as it is to JSON Schema (2020-12,
            section 4.2.2 of its core), which knows no other difference between them.

    Raises:
        json.JSONDecodeError: Whatever is wrong: also a key given twice, text that cannot be decoded, nesting too
            deep and whole numbers too long for Python, which have no position (-1).
    """
    try:
        return json.loads(content, object_pairs_hook=_mapping, parse_float=_number if whole else None)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise _error("nested too deeply") from None
    except UnicodeDecodeError:
        raise _error("not UTF-8 text") from None
    except ValueError as error:
        raise _error(str(error) if isinstance(error, _TwiceError) else "a number with too many digits") from None


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if abs(value) < _MOST_WHOLE and value.is_integer() else value


class _TwiceError(ValueError):
    """A key is given twice."""


def _mapping(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(f"key {key[:60]!r} is given twice")
        found[key] = value
    return found


def _error(reason: str) -> json.JSONDecodeError:
    error = json.JSONDecodeError(reason, "", 0)
    error.pos = _UNPLACED
    return error
