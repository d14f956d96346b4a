"""Whether the options of a public call have the types they are declared with, which only Python code can get wrong."""

import numbers
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from planner.results import RISKY
from profiles.errors import SpecError, shown

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Mapping: "a mapping"}

Options = TypeVar("Options")


def check_oom_risk(share: float) -> None:
    """Refuse what is no share of runs.

    Raises:
        SpecError: Naming ``max_oom_risk``.
    """
    if not 0 < share <= 1:
        problem = f"must be a share above 0 and up to 1; got {str(share)[:20]}"
        raise SpecError("max_oom_risk", problem, "0.05 for one run in twenty, 1 for whatever fits")


def refuse_oom_risk(share: float, instead: str) -> None:
    """Refuse a share of runs that was asked for, of a question that ranks no plans by it.

    Args:
        share: As given, or its default.
        instead: What the question has for plans that run out of memory.

    Raises:
        SpecError: Naming ``max_oom_risk``.
    """
    if share != RISKY:
        problem = "decides which plans a ranking holds, and no ranking is asked for here"
        raise SpecError("max_oom_risk", problem, f"leave it out; {instead}")


def in_small_letters(options: Options, names: tuple[str, ...]) -> Options:
    """Options with words of these fields in small letters; what is no text stays, to be refused later."""
    words = {name: getattr(options, name) for name in names}
    return replace(options, **{n: word.strip().lower() for n, word in words.items() if isinstance(word, str)})  # type: ignore[type-var]


def check_kinds(options: Any) -> None:
    """Refuse the first field of a data class whose value has another type than it is declared with.

    Of the types that no single word names, none is checked.

    Raises:
        SpecError: Naming the field.
    """
    for item in fields(options):
        declared = get_args(item.type) if isinstance(item.type, UnionType) else (item.type,)
        kinds = [get_origin(each) or each for each in declared if each is not type(None)]
        value = getattr(options, item.name)
        if len(kinds) > 1 or kinds[0] not in _WORDS or (value is None and type(None) in declared):
            continue
        kind = {float: numbers.Real, int: numbers.Integral}.get(kinds[0], kinds[0])
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SpecError(item.name, f"must be {_WORDS[kinds[0]]}; got {shown(value)}")
        if kinds[0] is float and isinstance(value, int) and abs(value) > sys.float_info.max:
            raise SpecError(item.name, f"is beyond all numbers with a point; got {str(value)[:20]}...")
