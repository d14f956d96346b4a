"""What the option parser refuses, in the shape of the library's errors: the option, what is wrong, the smallest fix."""

import math
import re
from collections.abc import Mapping
from typing import Any

import typer

from profiles.errors import SpecError, shown

USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, which Typer has had in several places
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_WHOLE = ("int_parsing", "int_parsing_size", "int_type", "int_from_float")
_NUMBER = ("float_parsing", "float_type")
_BOUNDS = {"ge": "at least", "le": "at most", "gt": "above", "lt": "below"}


def usage_error(error: Exception) -> SpecError | None:
    """The error as the library would say it; None where a command without arguments has printed its help.

    Args:
        error: One of ``USAGE``.
    """
    kind = type(error).__name__
    option = _option(error)
    if kind == "NoArgsIsHelpError":
        return None
    if kind == "MissingParameter":
        return SpecError(
            option, "is required", str(getattr(getattr(error, "param", None), "help", "") or "").rstrip(".")
        )
    if kind == "NoSuchOption":
        close = " or ".join(sorted(getattr(error, "possibilities", None) or ()))
        return SpecError(option, "unknown option", f"did you mean {close}?" if close else f"{_help(error)} lists them")
    if kind == "BadOptionUsage":
        return SpecError(option, "needs a value", f"{option} VALUE")
    if isinstance(error, typer.BadParameter):
        return _bad_value(option, error)
    problem, _, close = str(getattr(error, "message", error)).removesuffix(".").partition(". ")
    hint = f"{close[:1].lower()}{close[1:]}" if close else f"{_help(error)} lists what there is"
    return SpecError("command", problem[:1].lower() + problem[1:200], hint.rstrip("."))


def _option(error: Exception) -> str:
    """The longest name of the option at fault, or that of the argument."""
    param = getattr(error, "param", None)
    names = [*getattr(param, "opts", ()), *getattr(param, "secondary_opts", ())]
    name = str(getattr(error, "option_name", "") or max(names, key=len, default="command"))
    return name if name.startswith("-") or not names else name.upper()


def _help(error: Exception) -> str:
    return f"{getattr(getattr(error, 'ctx', None), 'command_path', 'planner')} -h"


def _bad_value(option: str, error: typer.BadParameter) -> SpecError:
    """A value of another type than the option has, or beyond its bounds."""
    cause: Any = error.__cause__
    if not hasattr(cause, "errors"):  # not pydantic's: older versions of Typer say the value in the message
        return SpecError(option, error.message.rstrip("."))
    told: Mapping[str, Any] = cause.errors()[0]
    kind, value = told["type"], told["input"]
    if kind in _WHOLE:
        return SpecError(option, f"must be a whole number; got {shown(value)}", f"{option} {whole_meant(str(value))}")
    if kind in _NUMBER:
        return SpecError(option, f"must be a number; got {shown(value)}", f"{option} {number_meant(str(value))}")
    bounds = {name: told.get("ctx", {}).get(name) for name in _BOUNDS if name in told.get("ctx", {})}
    if bounds:
        name, bound = next(iter(bounds.items()))
        return SpecError(option, f"must be {_BOUNDS[name]} {bound:g}; got {shown(value)}", f"{option} {bound:g}")
    words = str(told["msg"])
    return SpecError(option, f"{words[:1].lower()}{words[1:]}; got {shown(value)}")


def whole_meant(text: str) -> str:
    """Digits for what a text says otherwise.

    Example:
        >>> whole_meant("4k"), whole_meant("1e3"), whole_meant("1.5")
        ('4096', '1000', '1 or 2')
    """
    words = re.sub(r"[,_\s]", "", text.lower()).removesuffix("i")
    scale = _BINARY.get(words[-1:], 1)
    number = _read(words[:-1] if scale > 1 else words) * scale
    if not abs(number) < 1e15:  # nan too
        return "8, for example"
    low, high = math.floor(number), math.ceil(number)
    return f"{low}" if low == high else f"{low} or {high}"


def number_meant(text: str) -> str:
    """A number for what a text says otherwise.

    Example:
        >>> number_meant("5%"), number_meant("$2"), number_meant("much")
        ('0.05', '2', '0.5, for example')
    """
    words = re.sub(r"[_\s$€]|usd", "", text.lower())
    number = _read(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    return f"{number:.12g}" if abs(number) < 1e15 else "0.5, for example"


def _read(words: str) -> float:
    try:
        return float(words)
    except ValueError:
        return float("nan")
