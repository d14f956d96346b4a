"""A warning where prices rest on other hardware."""

from collections.abc import Iterable

from planner.results import Note
from profiles import timing_store


def borrowed(field: str, devices: Iterable[str]) -> Note:
    """Where the weakest price of an answer is of other hardware; whatever was measured of this one is not.

    Args:
        field: What the warning is about.
        devices: Catalogue names of those that are used.
    """
    own = timing_store.default_store().own()
    measured = ", ".join(sorted(name for name in set(devices) if own.files(name)))
    message = "efficiencies are borrowed from other hardware; no timings of this one"
    if measured:
        message = f"what you did not measure of {measured} has efficiencies borrowed from other hardware"
    return Note(code="uncalibrated", field=field, message=message)
