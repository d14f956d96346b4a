"""Which experts of a composition stay in device memory, and what fetching the others costs.

A composition of experts (Samba-CoE, arXiv:2405.07518) routes each request to one of many models.
Together they exceed device memory; those not resident are fetched from host memory or disk. Which to
keep where is a knapsack: the most expected fetching time saved per request within the bytes there
are. It is solved exactly over the states no other state beats. Requests that come in runs are better
served by a cache, see ``planner.dataflow.expert_cache``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.errors import SpecError

MAX_EXPERTS = 1024
MOST_STATES = 5_000  # kept after each expert; beyond it the answer is no longer proven
_DISK, _HOST, _DEVICE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """One model of a composition.

    Attributes:
        name: Which.
        size_bytes: Its weights.
        share: Share of requests routed to it.
    """

    name: str
    size_bytes: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Memory in which experts may lie; what fits in neither device nor host memory lies on disk.

    Attributes:
        device_bytes: Device memory for weights.
        host_bytes: Host memory for weights.
        host_bytes_per_s: From host to device memory.
        disk_bytes_per_s: From disk to device memory; not above that of the host.
    """

    device_bytes: int
    host_bytes: int
    host_bytes_per_s: float
    disk_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Where every expert lies.

    Attributes:
        device: Names of those in device memory, in the order given.
        host: Names of those in host memory.
        disk: Names of the rest.
        fetch_s: Expected seconds of fetching per request, when every request finds this placement.
        hit_share: Share of requests whose expert is in device memory.
        proven: Whether no placement fetches less; False when too many states had to be dropped.
    """

    device: tuple[str, ...]
    host: tuple[str, ...]
    disk: tuple[str, ...]
    fetch_s: float
    hit_share: float
    proven: bool


def check_experts(experts: Sequence[Expert], tiers: Tiers) -> None:
    """Refuse a composition that is none.

    Raises:
        SpecError: If there are no or too many experts, or a number is out of bounds.
    """
    if not 1 <= len(experts) <= MAX_EXPERTS:
        raise SpecError("experts", f"must be 1 to {MAX_EXPERTS}; got {len(experts)}")
    for expert in experts:
        if not 1 <= expert.size_bytes <= 1 << 50:
            raise SpecError(f"experts.{expert.name[:40]}.size_bytes", f"must be 1 to 2^50; got {expert.size_bytes}")
        if not 0 <= expert.share <= 1:
            raise SpecError(f"experts.{expert.name[:40]}.share", f"must be between 0 and 1; got {expert.share:g}")
    total = sum(expert.share for expert in experts)
    if abs(total - 1) > 1e-6:
        raise SpecError("experts.share", f"shares must add up to 1; got {total:g}")
    if tiers.device_bytes < 0 or tiers.host_bytes < 0:
        raise SpecError("tiers", "bytes must not be negative")
    if not 0 < tiers.disk_bytes_per_s <= tiers.host_bytes_per_s < float("inf"):
        problem = f"must be positive and at most the host's; got {tiers.disk_bytes_per_s:g}"
        raise SpecError("tiers.disk_bytes_per_s", problem)


def fetch_s(expert: Expert, tier: int, tiers: Tiers) -> float:
    """Seconds to bring an expert into device memory from a tier (0 disk, 1 host, 2 device)."""
    rates = (tiers.disk_bytes_per_s, tiers.host_bytes_per_s, float("inf"))
    return expert.size_bytes / rates[tier]


def best_residency(experts: Sequence[Expert], tiers: Tiers) -> Residency:
    """The placement with the least expected fetching time per request.

    Expert by expert, the states (device bytes, host bytes, seconds) that no other state beats in all
    three are kept (Nemhauser and Ullmann 1969, for two budgets).

    Raises:
        SpecError: If the composition is none, see ``check_experts``.
    """
    check_experts(experts, tiers)
    budgets = (0, tiers.host_bytes, tiers.device_bytes)
    plenty = sum(expert.size_bytes for expert in experts) <= tiers.host_bytes
    used = np.zeros((1, 2), dtype=np.int64)  # host and device bytes
    seconds = np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # parent state and tier of each state
    proven = True
    for expert in experts:
        parts = []
        for tier in (_DEVICE, _HOST) if plenty else (_DEVICE, _HOST, _DISK):
            grown = used.copy()
            if tier != _DISK:
                grown[:, tier - 1] += 0 if plenty and tier == _HOST else expert.size_bytes
            fits = np.ones(len(used), dtype=bool) if tier == _DISK else grown[:, tier - 1] <= budgets[tier]
            rows = np.flatnonzero(fits)
            cost = seconds[rows] + expert.share * fetch_s(expert, tier, tiers)
            parts.append((grown[rows], cost, rows, np.full(len(rows), tier)))
        used, seconds, parents, tier_of = (np.concatenate(column) for column in zip(*parts, strict=True))
        kept = _unbeaten(used, seconds)
        proven = proven and len(kept) <= MOST_STATES
        kept = kept[:MOST_STATES]
        used, seconds = used[kept], seconds[kept]
        steps.append((parents[kept], tier_of[kept]))
    return _placed(experts, _tiers_of(steps, int(np.argmin(seconds))), tiers, proven=proven)


def _unbeaten(used: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows that no other row matches or beats in host bytes, device bytes and seconds, fastest first."""
    order = np.lexsort((used[:, 1], used[:, 0], seconds))
    host, device = used[order, 0], used[order, 1]
    kept: list[int] = []
    # Rows come by seconds, so one is beaten if an earlier one needs no more of both memories. The stairs hold the
    # smallest device bytes seen for every amount of host bytes.
    stairs: list[tuple[int, int]] = []
    for row, (host_bytes, device_bytes) in enumerate(zip(host.tolist(), device.tolist(), strict=True)):
        low, high = 0, len(stairs)
        while low < high:
            middle = (low + high) // 2
            if stairs[middle][0] <= host_bytes:
                low = middle + 1
            else:
                high = middle
        if low and stairs[low - 1][1] <= device_bytes:
            continue
        end = low
        while end < len(stairs) and stairs[end][1] >= device_bytes:
            end += 1
        start = low - 1 if low and stairs[low - 1][0] == host_bytes else low
        stairs[start:end] = [(host_bytes, device_bytes)]
        kept.append(row)
    return np.asarray(order[kept], dtype=np.int64)


def _tiers_of(steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]], state: int) -> list[int]:
    """Tier of every expert on the way to a final state."""
    found = []
    for parents, tier_of in reversed(steps):
        found.append(int(tier_of[state]))
        state = int(parents[state])
    return found[::-1]


def _placed(experts: Sequence[Expert], where: list[int], tiers: Tiers, *, proven: bool) -> Residency:
    names = {tier: tuple(e.name for e, t in zip(experts, where, strict=True) if t == tier) for tier in (0, 1, 2)}
    pairs = list(zip(experts, where, strict=True))
    return Residency(
        device=names[_DEVICE],
        host=names[_HOST],
        disk=names[_DISK],
        fetch_s=sum(expert.share * fetch_s(expert, tier, tiers) for expert, tier in pairs),
        hit_share=sum(expert.share for expert, tier in pairs if tier == _DEVICE),
        proven=proven,
    )
