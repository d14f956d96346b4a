"""Experts of a composition behind a cache: hits and fetching time over a stream of requests.

A placement fixed in advance (``planner.dataflow.residency``) knows only shares. When requests for an
expert come in runs, or shares drift, replacing the least recently (LRU) or least frequently (LFU)
used expert does better; this simulates either, request by request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.dataflow.residency import Expert, Tiers, check_experts, fetch_s
from profiles.errors import SpecError

MAX_REQUESTS = 5_000_000
LRU, LFU = "lru", "lfu"
_DISK, _HOST = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOutcome:
    """What a cache did over a stream of requests.

    Attributes:
        hit_share: Share of requests that found their expert in device memory.
        fetch_s: Seconds of fetching per request, on average.
        fetched_bytes: Bytes brought into device memory in total.
    """

    hit_share: float
    fetch_s: float
    fetched_bytes: int


def simulate_cache(
    experts: Sequence[Expert], tiers: Tiers, requests: Sequence[int], *, policy: str = LRU, window: int = 1
) -> CacheOutcome:
    """Serve requests in order, keeping in device memory what the policy keeps.

    Args:
        experts: The composition; those with the largest shares that fit lie in host memory, the rest on disk.
        tiers: Memory and how fast it is.
        requests: Index of the expert each request needs.
        policy: ``lru`` or ``lfu`` (ties: least recently used).
        window: Requests that are collected and served expert by expert.

    Raises:
        SpecError: If the composition is none, an index or the policy is unknown, an expert exceeds
            device memory, or there are too many requests.
    """
    check_experts(experts, tiers)
    if not 1 <= len(requests) <= MAX_REQUESTS:
        raise SpecError("requests", f"must be 1 to {MAX_REQUESTS}; got {len(requests)}")
    if policy not in (LRU, LFU):
        raise SpecError("policy", f"unknown value {policy[:40]!r}", f"use one of {LRU}, {LFU}")
    if not 1 <= window <= MAX_REQUESTS:
        raise SpecError("window", f"must be 1 to {MAX_REQUESTS}; got {window}")
    largest = max(experts, key=lambda expert: expert.size_bytes)
    if largest.size_bytes > tiers.device_bytes:
        problem = f"{largest.name[:40]} has {largest.size_bytes} bytes; device memory {tiers.device_bytes}"
        raise SpecError("tiers.device_bytes", problem, f"at least {largest.size_bytes}")
    source = _sources(experts, tiers)
    uses = [0] * len(experts)
    last: dict[int, int] = {}  # resident expert to its latest use
    free, hits, fetched, seconds = tiers.device_bytes, 0, 0, 0.0
    for clock, index in enumerate(_grouped(requests, len(experts), window)):
        uses[index] += 1
        if index in last:
            hits += 1
        else:
            while free < experts[index].size_bytes:
                gone = min(last, key=lambda item: (uses[item] if policy == LFU else 0, last[item]))
                free += experts[gone].size_bytes
                del last[gone]
            free -= experts[index].size_bytes
            fetched += experts[index].size_bytes
            seconds += fetch_s(experts[index], source[index], tiers)
        last[index] = clock
    return CacheOutcome(hit_share=hits / len(requests), fetch_s=seconds / len(requests), fetched_bytes=fetched)


def _sources(experts: Sequence[Expert], tiers: Tiers) -> list[int]:
    """Where each expert is fetched from: host memory for the most used that fit, else disk."""
    source, left = [_DISK] * len(experts), tiers.host_bytes
    for index in sorted(range(len(experts)), key=lambda item: -experts[item].share):
        if experts[index].size_bytes <= left:
            source[index] = _HOST
            left -= experts[index].size_bytes
    return source


def _grouped(requests: Sequence[int], experts: int, window: int) -> list[int]:
    """The requests with those of one expert together in every window; experts in order of first use."""
    if min(requests) < 0 or max(requests) >= experts:
        raise SpecError("requests", f"name experts 0 to {experts - 1}; got {min(requests)} to {max(requests)}")
    ordered: list[int] = []
    for start in range(0, len(requests), window):
        part = requests[start : start + window]
        rank = {expert: place for place, expert in reversed(list(enumerate(part)))}
        ordered += sorted(part, key=lambda expert: rank[expert])
    return ordered
