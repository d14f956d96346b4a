"""What the parts of a workflow are checked with: names, bounds, whole numbers, and fields that would change nothing."""

import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from profiles.errors import SpecError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def check_names(where: str, names: Iterable[str], most: int, *, least: int = 1) -> None:
    """Refuse names that are none, are there twice, or are too many."""
    listed = list(names)
    if not least <= len(listed) <= most:
        raise SpecError(f"job.{where}", f"must have {least} to {most} entries; got {len(listed)}")
    for name in listed:
        if not _NAME.fullmatch(name):
            problem = f"{name[:40]!r} is no name"
            raise SpecError(f"job.{where}", problem, "lower-case letters, digits and _, at most 40, e.g. actor_train")
    name, times = Counter(listed).most_common(1)[0] if listed else ("", 0)
    if times > 1:
        raise SpecError(f"job.{where}", f"{name!r} is there {times} times", "names are unique")


def check_one_of(where: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not known."""
    if value not in known:
        raise SpecError(where, f"unknown value {value[:40]!r}", "use one of " + ", ".join(known))


def check_changes(where: str, value: object, usual: object, *, used: bool, words: str) -> None:
    """Refuse a value that nothing reads.

    Args:
        where: The field.
        value: What it says.
        usual: What it says where nobody said anything, and which is therefore no mistake.
        used: Whether anything reads it.
        words: Where it would be read, and why not here.
    """
    if value != usual and not used:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        raise SpecError(where, f"{shown} changes nothing: it is for {words}", "leave it out")


def whole(factor: Fraction, batch: int, things: str) -> int:
    """So many things per item, of a batch of items.

    Raises:
        SpecError: If that is no whole number.
    """
    total = factor * batch
    if total.denominator != 1:
        least = factor.denominator
        raise SpecError(
            "batch",
            f"{batch} items times {ratio(factor)} {things} is no whole number",
            f"a multiple of {least}, for example {-(-batch // least) * least}",
        )
    return int(total)


def ratio(factor: Fraction) -> str:
    """A factor in few letters."""
    return str(factor) if len(str(factor)) < 24 else f"{float(factor):g}"


def nearest_divisor(count: int, wanted: int) -> int:
    """The divisor of ``count`` nearest to ``wanted``, the smaller of two as near."""
    found = [low for low in range(1, int(count**0.5) + 1) if count % low == 0]
    return min((*found, *(count // low for low in found)), key=lambda divisor: (abs(divisor - wanted), divisor))
