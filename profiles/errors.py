"""The exception tree, what is said of a number out of bounds, and hints that typos are turned into.

PlannerError
 + SpecError(field, problem, hint)   what was described cannot exist      CLI exit 2, HTTP 422
 + InfeasibleError(reasons)          it exists, but nothing satisfies it  CLI exit 3, HTTP 200 with plans=[]

Anything else that escapes is a bug (CLI exit 1, HTTP 500).
"""

import difflib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from numbers import Number

_LEAST_BEGINNING = 3  # letters of a name that other words may begin with
LARGEST = 10**30  # whole numbers beyond cannot be meant, and longer ones not even be printed


class PlannerError(Exception):
    """Base of every error that a caller is expected to handle."""


class SpecError(PlannerError):
    """The input describes something that cannot exist or is out of bounds.

    Attributes:
        field: Dotted path as the user wrote it, e.g. ``cluster.device``.
        problem: What is wrong, with the offending value.
        hint: The smallest change that would fix it; may be empty.
    """

    def __init__(self, field: str, problem: str, hint: str = "") -> None:
        self.field = field
        self.problem = problem
        self.hint = hint
        super().__init__(str(self))

    def at(self, field: str) -> "SpecError":
        """The same said of another field: as the user of an outer call wrote it."""
        return SpecError(field, self.problem, self.hint)

    def __str__(self) -> str:
        text = f"{self.field}: {self.problem}"
        return f"{text}. Hint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[type["SpecError"], tuple[str, str, str]]:
        return SpecError, (self.field, self.problem, self.hint)


class InfeasibleError(PlannerError):
    """The request is well formed, but no plan satisfies every limit.

    Attributes:
        reasons: How many candidate plans each named rule rejected.
    """

    def __init__(self, reasons: Mapping[str, int]) -> None:
        self.reasons = dict(reasons)
        listed = ", ".join(f"{rule}: {count}" for rule, count in self.reasons.items())
        super().__init__(f"no plan satisfies every limit ({listed})")

    def __reduce__(self) -> tuple[type["InfeasibleError"], tuple[dict[str, int]]]:
        return InfeasibleError, (self.reasons,)


def out_of_bounds(field: str, value: object, least: float, most: float) -> SpecError:
    """The error about a value that is not between two bounds; its hint is the bound that is nearer.

    Args:
        field: Of the value.
        value: What the user wrote.
        least: The smallest one allowed.
        most: The largest one allowed.
    """
    low, high = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (least, most))
    beyond = isinstance(value, int | float | Fraction) and value > most
    return SpecError(field, f"must be between {low} and {high}; got {str(value)[:40]}", high if beyond else low)


def check_between(field: str, value: float | Fraction, least: float, most: float) -> None:
    """Refuse a number that is not between two bounds.

    Args:
        field: Of the value.
        value: What the user wrote.
        least: The smallest one allowed.
        most: The largest one allowed.

    Raises:
        SpecError: As ``out_of_bounds`` words it.
    """
    if not least <= value <= most:
        raise out_of_bounds(field, value, least, most)


def reason_of(error: Exception) -> str:
    """Why a file cannot be read or written: the system's words, or the kind of error where it has none."""
    return getattr(error, "strerror", None) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5, most: int = 12) -> str:
    """Hint naming the known words closest to ``name``, three at most, or listing a few when none is close.

    Words that begin as the name does come first: ``gemma-4`` is short for one of those, and no slip for ``gemma-7b``.

    Args:
        name: What the user wrote; compared case-insensitively, only its first 64 characters.
        known: Every accepted word.
        cutoff: From which share of common letters a word is close.
        most: Words that are listed.

    Returns:
        A hint such as ``did you mean 'H100-80GB'?``; empty when ``known`` is empty.
    """
    words = sorted(set(known))
    lowered = {word.lower(): word for word in words}
    key = name[:64].lower()
    begun = [word for word in lowered if len(key) >= _LEAST_BEGINNING and word.startswith(key)]
    found = difflib.get_close_matches(key, begun, n=3, cutoff=0.0) + difflib.get_close_matches(key, lowered, 3, cutoff)
    close = list(dict.fromkeys(found))[:3]
    if close:
        return "did you mean " + " or ".join(f"'{lowered[word]}'" for word in close) + "?"
    return "known: " + ", ".join(words[:most]) + (", ..." if len(words) > most else "") if words else ""


def meant_among(name: str, fields: Iterable[str]) -> str:
    """Hint for an unknown field: those that share more than half its letters, or else all, for they are few."""
    return did_you_mean(name, fields, cutoff=0.6, most=48)


def shown(value: object) -> str:
    """A short, safe rendering of any input value for an error message.

    Texts are quoted, so that ``None``, ``True`` and ``False`` outside quotes are values; the service says them in JSON.
    """
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and not -LARGEST < value < LARGEST:
        return "an integer of more than 30 digits"
    if isinstance(value, str):
        text = repr(value[:64])
    else:
        text = str(value) if isinstance(value, Number) or value is None else type(value).__name__
    return text if len(text) <= 48 else text[:45] + "..."
