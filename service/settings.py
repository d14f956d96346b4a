"""Limits of the service, each an explicit input with a default; the environment may override them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from profiles.errors import SpecError
from profiles.units import MIB

ENVIRONMENT_PREFIX = "PLANNER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What one process of the service takes on at once.

    Attributes:
        max_body_bytes: Largest request body; a config.json has a few KiB, an answer with a hundred plans 600.
        body_timeout_s: Longest time in which a body has to arrive; those of the default length take 17 s at 4 Mbit/s.
        max_searches: Searches computed at the same time, each in a thread of its own.
        max_estimates: Estimates, exports and comparisons computed besides, which take less than a search.
        max_waiting: Requests that may wait for threads of either kind; further ones get 429.
        retry_after_s: What a refused client is told to wait.
    """

    max_body_bytes: int = 8 * MIB
    body_timeout_s: int = 30
    max_searches: int = 2
    max_estimates: int = 1
    max_waiting: int = 64
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 1 <= value <= 1 << 30:
                raise SpecError(f"settings.{item.name}", f"must be between 1 and {1 << 30}; got {value}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "ServiceSettings":
        """Settings with each ``PLANNER_<FIELD>`` variable that is set, e.g. ``PLANNER_MAX_SEARCHES=4``.

        Args:
            environment: Variables to read; those of the process when None.

        Raises:
            SpecError: If a value is no whole number or out of bounds.
        """
        variables = os.environ if environment is None else environment
        given: dict[str, int] = {}
        for item in fields(cls):
            text = variables.get(ENVIRONMENT_PREFIX + item.name.upper())
            if text is None:
                continue
            if not (text.isascii() and text.isdigit() and len(text) <= 10):
                raise SpecError(f"settings.{item.name}", f"must be a whole number; got {text[:40]!r}")
            given[item.name] = int(text)
        return cls(**given)
