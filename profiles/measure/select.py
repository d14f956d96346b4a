"""Which cases a time budget buys, and in which order: the most informative first.

The order is one sequence whose every beginning is a good sample, so a budget only says where to stop:

1. Cases are stratified by operation, format, layout and implementation. A stratum's share of the sequence grows with
   the square root of its size: large ones get more, small ones are never left out for long.
2. Within a stratum, each next case is the one farthest from all taken before it (Gonzalez 1985, "Clustering to
   minimize the maximum intercluster distance"), in the logarithms of its sizes and, counted twice, of the time that a
   roofline predicts: shapes and durations are covered alike. The first is the one of median duration.

Everything is deterministic; ties go to the label that comes first.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.errors import SpecError
from profiles.measure.cases import Case
from profiles.measure.timing import number_of_sets

FloatArray = NDArray[np.float64]

MAX_BUDGET_S = 86_400.0
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
# Seconds that making a case ready takes besides running it: allocation, library look-up, capture.
OVERHEAD_S = 0.2
# Seconds of samples per case.
TARGET_S = 0.1
# Runs of a case to warm up and to sample, and how far from the roofline a usual kernel is.
_RUNS, _SLOW = 20, 2.0
# One case may take this share of the budget; of a small budget, as much as a kernel of a few milliseconds needs.
_LARGEST_SHARE = 1 / 15
_SHORTEST_LIMIT_S = 1.0
_TIME_WEIGHT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What the device roughly does, to predict times for choosing; never used as a result.

    Attributes:
        flops_per_s: By format.
        bytes_per_s: Of device memory.
        host_bytes_per_s: Of the host link.
        fill_bytes_per_s: Of filling memory with random numbers.
        cache_bytes: Last-level cache; inputs are drawn until they exceed it.
        free_bytes: Device memory at hand.
    """

    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    host_bytes_per_s: float
    fill_bytes_per_s: float
    cache_bytes: float
    free_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What will be measured.

    Attributes:
        cases: In the order to measure them.
        expected_s: Seconds that all of them should take together.
        too_large: Cases that do not fit the device's memory.
        too_long: Cases that one by one would take too much of the budget.
    """

    cases: tuple[Case, ...]
    expected_s: float
    too_large: int
    too_long: int


def parse_budget(text: str) -> float:
    """Seconds of ``60s``, ``30m``, ``1h`` or a plain number of seconds.

    Raises:
        SpecError: If it is none of those, or not between a second and a day.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text[:40].lower())
    seconds = float(match.group(1)) * _UNITS.get(match.group(2), math.nan) if match else math.nan
    if not 1.0 <= seconds <= MAX_BUDGET_S:
        raise SpecError("measure.budget", f"must be between 1s and 24h; got {text[:40]!r}", "for example 60s or 30m")
    return seconds


def roofline_s(case: Case, speeds: Speeds) -> float:
    """Seconds a case takes at least at those speeds."""
    rate = speeds.flops_per_s.get(case.dtype, max(speeds.flops_per_s.values()))
    host = case.op in ("host_to_device", "device_to_host")
    return max(case.flops / rate, case.bytes / (speeds.host_bytes_per_s if host else speeds.bytes_per_s), 1e-9)


def cost_s(case: Case, speeds: Speeds) -> float:
    """Seconds that measuring a case takes, about, once its stratum is set up."""
    sets = number_of_sets(case.footprint_bytes, cache_bytes=speeds.cache_bytes, free_bytes=speeds.free_bytes)
    drawn_s = sets * case.footprint_bytes / speeds.fill_bytes_per_s
    return OVERHEAD_S + TARGET_S + drawn_s + _RUNS * _SLOW * roofline_s(case, speeds)


def ordered(cases: Sequence[Case], speeds: Speeds) -> tuple[Case, ...]:
    """The cases, most informative first."""
    strata: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda it: it.label):
        strata.setdefault(case.stratum, []).append(case)
    places = []
    for name, members in sorted(strata.items()):
        share = math.sqrt(len(members))
        for position, index in enumerate(_farthest_first(_features(members, speeds))):
            places.append(((position + 0.5) / share, name, members[index]))
    return tuple(case for _, _, case in sorted(places, key=lambda place: place[:2]))


def select(cases: Sequence[Case], speeds: Speeds, budget_s: float) -> Selection:
    """The cases that fit the budget, most informative first.

    Args:
        cases: What could be measured and is not yet.
        speeds: Of the device.
        budget_s: Seconds to spend.
    """
    fitting = [case for case in cases if case.footprint_bytes <= speeds.free_bytes]
    longest_s = max(_LARGEST_SHARE * budget_s, _SHORTEST_LIMIT_S)
    short = [case for case in fitting if case.setup_s + cost_s(case, speeds) <= longest_s]
    chosen: list[Case] = []
    set_up: set[str] = set()
    spent_s = 0.0
    for case in ordered(short, speeds):
        needed_s = cost_s(case, speeds) + (0.0 if case.stratum in set_up else case.setup_s)
        if spent_s + needed_s <= budget_s:
            chosen.append(case)
            set_up.add(case.stratum)
            spent_s += needed_s
    return Selection(
        cases=tuple(chosen),
        expected_s=spent_s,
        too_large=len(cases) - len(fitting),
        too_long=len(fitting) - len(short),
    )


def _features(cases: Sequence[Case], speeds: Speeds) -> FloatArray:
    """(C, F) logarithms of the sizes and of the predicted time, each scaled to its range within the stratum."""
    names = list(dict.fromkeys(name for case in cases for name, _ in case.shape))
    sizes = [[math.log2(1 + dict(case.shape).get(name, 0)) for name in names] for case in cases]
    times = [[math.log2(roofline_s(case, speeds))] for case in cases]
    table = np.hstack([np.array(sizes, dtype=np.float64).reshape(len(cases), -1), np.array(times, dtype=np.float64)])
    span = np.ptp(table, axis=0)
    scaled: FloatArray = (table - table.min(axis=0)) / np.where(span > 0, span, 1.0)
    scaled[:, -1] *= _TIME_WEIGHT
    return scaled


def _farthest_first(points: FloatArray) -> list[int]:
    """Indices of (C, F) points: the one of median last feature, then always the one farthest from those taken."""
    median = np.median(points[:, -1])
    taken = [int(np.argmin(np.abs(points[:, -1] - median)))]
    distance = np.linalg.norm(points - points[taken[0]], axis=1)
    distance[taken[0]] = -1.0
    while len(taken) < len(points):
        farthest = int(np.argmax(distance))
        taken.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(points - points[farthest], axis=1))
        distance[farthest] = -1.0
    return taken
