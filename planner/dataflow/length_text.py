"""Lengths of prompts and responses as a user writes them.

====================================  ===========================================================
``1024``                              every sequence has so many tokens
``lognormal:mean=800,sigma=1,max=8192``  log-normal, cut off at ``max``; ``mean`` is that after the cut
``cdf:0.5=256,0.9=1024,1=8192``       share of the sequences that are no longer than so many tokens
====================================  ===========================================================

The same as mappings: ``{"lognormal": {"mean": 800, "sigma": 1, "max": 8192}}``, ``{"cdf": {"0.5": 256, ...}}``.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from costmodels.lengths import OutputLengths, fixed_length, lengths_from_quantiles, log_normal_lengths
from profiles.errors import SpecError, shown
from profiles.model import MAX_SEQUENCE
from profiles.scalars import whole_number

LengthInput = int | str | Mapping[str, Any] | OutputLengths

MAX_POINTS = 1024
MAX_TEXT = 16_384
_FORMS = "1024, lognormal:mean=800,sigma=1,max=8192 or cdf:0.5=256,0.9=1024,1=8192"
_LOGNORMAL, _CDF = "lognormal", "cdf"
_PARAMETERS = ("mean", "sigma", "max")


def parse_lengths(field: str, given: LengthInput, *, least: int = 1) -> OutputLengths:
    """The distribution a user means.

    Args:
        field: Name of the input, for errors.
        given: One of the forms above, or a distribution.
        least: Fewest tokens that the question takes; a caller of 0 reads that itself, as no distribution.

    Raises:
        SpecError: If it has another form or describes no distribution.
    """
    if isinstance(given, OutputLengths):
        return given
    if isinstance(given, str):
        given = _split(field, given)
    if isinstance(given, int) and not isinstance(given, bool):
        if not least <= given <= MAX_SEQUENCE:
            problem = f"must be between {least} and {MAX_SEQUENCE} tokens; got {shown(given)}"
            raise SpecError(field, problem, str(min(max(given, least), MAX_SEQUENCE)))
        return fixed_length(given)
    if not isinstance(given, Mapping) or len(given) != 1:
        raise SpecError(field, f"must be a number of tokens or a distribution; got {shown(given)}", _FORMS)
    ((kind, values),) = given.items()
    if kind not in (_LOGNORMAL, _CDF) or not isinstance(values, Mapping) or not 1 <= len(values) <= MAX_POINTS:
        raise SpecError(field, f"unknown distribution {shown(kind)}", _FORMS)
    if kind == _CDF:
        pairs = [(_number(field, share), _number(field, tokens)) for share, tokens in values.items()]
        return _named(field, lambda: lengths_from_quantiles(pairs))
    if set(values) != set(_PARAMETERS):
        names = ", ".join(sorted(str(name)[:20] for name in list(values)[:6]))
        raise SpecError(field, f"a lognormal needs mean, sigma and max; got {names}", _FORMS)
    mean, sigma, most = (_number(f"{field}.{name}", values[name]) for name in _PARAMETERS)
    return _named(field, lambda: log_normal_lengths(mean=mean, sigma=sigma, most=_whole(f"{field}.max", most)))


def parse_prompt(field: str, given: Any, *, most: int = MAX_SEQUENCE) -> int:
    """Tokens of a prompt: one number, because reading prompts costs what their mean costs.

    Raises:
        SpecError: If it is none, or out of bounds.
    """
    if isinstance(given, str | Mapping):
        hint = "one number, as 1024; only generate takes a distribution"
        raise SpecError(field, f"must be a number of tokens; got {shown(given)}", hint)
    return whole_number(field, given, least=1, most=most)


def lengths_text(lengths: OutputLengths) -> str:
    """A distribution in words: its mean and the longest."""
    if lengths.is_fixed:
        return f"{lengths.most:.0f} tokens"
    return f"{lengths.mean:.0f} tokens on average, at most {lengths.most:.0f}"


def _named(field: str, make: Any) -> OutputLengths:
    """The distribution, errors under the name the user knows it by."""
    try:
        made: OutputLengths = make()
    except SpecError as error:
        raise SpecError(field, error.problem, error.hint or _FORMS) from None
    return made


def _split(field: str, text: str) -> int | Mapping[str, Any]:
    words = text.strip()
    if re.fullmatch(r"[+-]?\d{1,11}", words):
        return int(words)
    kind, found, rest = words[:MAX_TEXT].partition(":")
    pairs = [part.partition("=") for part in rest.split(",")]
    if not found or len(words) > MAX_TEXT or any(not key.strip() or not equals for key, equals, _ in pairs):
        raise SpecError(field, f"cannot read {text[:60]!r}", _FORMS)
    named: dict[str, str] = {}
    for key, _, value in pairs:
        if key.strip() in named:
            raise SpecError(field, f"{key.strip()[:20]!r} is given twice", _FORMS)
        named[key.strip()] = value.strip()
    return {kind.strip().lower(): named}


def _number(field: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise SpecError(field, f"must be a number; got {shown(value)}", _FORMS)
    return number


def _whole(field: str, number: float) -> int:
    if number != int(number):
        raise SpecError(field, f"must be a whole number of tokens; got {number:g}", _FORMS)
    return int(number)
