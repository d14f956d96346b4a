"""Experts over device, host and disk: exact placements and caches."""

from itertools import product

import numpy as np
import pytest

from planner.dataflow import residency
from planner.dataflow.expert_cache import simulate_cache
from planner.dataflow.residency import Expert, Tiers, best_residency
from profiles.errors import SpecError

EQUAL = tuple(Expert(name=f"e{index}", size_bytes=10, share=share) for index, share in enumerate((0.4, 0.3, 0.2, 0.1)))


def tiers(device: int, host: int) -> Tiers:
    return Tiers(device_bytes=device, host_bytes=host, host_bytes_per_s=10.0, disk_bytes_per_s=2.0)


def experts(count: int, seed: int) -> tuple[Expert, ...]:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(count))
    shares[-1] = 1 - shares[:-1].sum()
    sizes = random.integers(1, 1000, count)
    return tuple(
        Expert(name=f"e{index}", size_bytes=int(size), share=float(share))
        for index, (size, share) in enumerate(zip(sizes, shares, strict=True))
    )


def test_equal_experts_lie_by_their_shares() -> None:
    found = best_residency(EQUAL, tiers(20, 10))
    assert (found.device, found.host, found.disk) == (("e0", "e1"), ("e2",), ("e3",))
    assert found.hit_share == pytest.approx(0.7)
    assert found.fetch_s == pytest.approx(0.2 * 10 / 10 + 0.1 * 10 / 2)
    assert found.proven


@pytest.mark.accuracy
@pytest.mark.parametrize("seed", range(5))
def test_device_placement_equals_brute_force_for_twenty_experts(seed: int) -> None:
    """E13: every subset of 20 experts is tried."""
    models = experts(20, seed)
    sizes = np.array([model.size_bytes for model in models])
    worth = np.array([model.share * model.size_bytes for model in models])
    capacity = int(sizes.sum() * 0.4)
    bits = (np.arange(1 << 20)[:, None] >> np.arange(20)) & 1
    best = worth[None, :] @ bits[bits @ sizes <= capacity].T
    found = best_residency(models, tiers(capacity, int(sizes.sum())))
    assert found.proven
    assert found.fetch_s == pytest.approx((worth.sum() - best.max()) / 10, rel=1e-12)
    assert not found.disk
    kept = [model.size_bytes for model in models if model.name in found.device]
    assert sum(kept) <= capacity


@pytest.mark.parametrize("seed", range(5))
def test_three_tiers_equal_brute_force_for_nine_experts(seed: int) -> None:
    models = experts(9, seed)
    total = sum(model.size_bytes for model in models)
    room = tiers(total // 4, total // 3)
    best = np.inf
    for where in product((0, 1, 2), repeat=len(models)):
        used = [sum(m.size_bytes for m, tier in zip(models, where, strict=True) if tier == t) for t in (0, 1, 2)]
        if used[2] <= room.device_bytes and used[1] <= room.host_bytes:
            rates = (room.disk_bytes_per_s, room.host_bytes_per_s, np.inf)
            pairs = zip(models, where, strict=True)
            best = min(best, sum(model.share * model.size_bytes / rates[tier] for model, tier in pairs))
    found = best_residency(models, room)
    assert found.proven
    assert found.fetch_s == pytest.approx(best, rel=1e-12)


def test_a_hundred_and_fifty_experts_of_two_sizes_are_placed_exactly() -> None:
    """Samba-CoE: 150 experts of 7B in bf16, here with one of 34B."""
    ranks = 1 / np.arange(1, 151)
    shares = ranks / ranks.sum()
    shares[0] += 1 - shares.sum()
    models = [Expert(name=f"e{i}", size_bytes=14_000_000_000, share=float(share)) for i, share in enumerate(shares)]
    models[3] = Expert(name="e3", size_bytes=68_000_000_000, share=float(shares[3]))
    found = best_residency(models, tiers(80_000_000_000, 1_000_000_000_000))
    assert found.proven
    assert found.device == ("e0", "e1", "e2", "e4", "e5")
    assert len(found.host) + len(found.disk) == 145


def test_too_many_states_are_said_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "MOST_STATES", 4)
    models = experts(16, 1)
    total = sum(model.size_bytes for model in models)
    assert not best_residency(models, tiers(total // 4, total // 3)).proven


def test_lru_by_hand() -> None:
    outcome = simulate_cache(EQUAL, tiers(20, 20), [0, 1, 0, 2, 1, 0])
    # 0 and 1 are fetched, 0 hits, 2 replaces 1, 1 (host) replaces 0, 0 replaces 2. e2 lies on disk.
    assert outcome.hit_share == pytest.approx(1 / 6)
    assert outcome.fetched_bytes == 50
    assert outcome.fetch_s == pytest.approx((4 * 10 / 10 + 10 / 2) / 6)


def test_lfu_keeps_what_is_used_often() -> None:
    requests = [0, 0, 0, 1, 2, 0, 3, 0]
    assert simulate_cache(EQUAL, tiers(20, 40), requests, policy="lfu").hit_share == pytest.approx(4 / 8)


def test_collected_requests_are_served_expert_by_expert() -> None:
    requests = [0, 1, 2, 0, 1, 2]
    assert simulate_cache(EQUAL, tiers(10, 40), requests).hit_share == 0
    assert simulate_cache(EQUAL, tiers(10, 40), requests, window=6).hit_share == pytest.approx(0.5)


def test_a_cache_approaches_its_bound_on_independent_requests() -> None:
    requests = np.random.default_rng(0).choice(4, size=4000, p=[0.4, 0.3, 0.2, 0.1]).tolist()
    best = best_residency(EQUAL, tiers(20, 40)).hit_share
    least_recent = simulate_cache(EQUAL, tiers(20, 40), requests).hit_share
    least_frequent = simulate_cache(EQUAL, tiers(20, 40), requests, policy="lfu").hit_share
    assert least_recent < least_frequent < best + 0.02
    assert least_frequent > best - 0.12


@pytest.mark.parametrize(
    ("models", "room", "words"),
    [
        ((), tiers(1, 1), "must be 1 to 1024"),
        ((Expert(name="a", size_bytes=0, share=1.0),), tiers(1, 1), "must be 1 to 2"),
        ((Expert(name="a", size_bytes=1, share=0.5),), tiers(1, 1), "shares must add up to 1; got 0.5"),
        ((Expert(name="a", size_bytes=1, share=-1.0),), tiers(1, 1), "between 0 and 1"),
        (EQUAL, tiers(-1, 1), "bytes must not be negative"),
        (EQUAL, Tiers(device_bytes=1, host_bytes=1, host_bytes_per_s=1, disk_bytes_per_s=2), "at most the host's"),
    ],
)
def test_compositions_are_checked(models: tuple[Expert, ...], room: Tiers, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        best_residency(models, room)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requests": []}, "must be 1 to"),
        ({"requests": [4]}, "name experts 0 to 3; got 4 to 4"),
        ({"policy": "fifo"}, "unknown value 'fifo'"),
        ({"window": 0}, "window: must be 1 to"),
        ({"tiers": tiers(9, 9)}, "e0 has 10 bytes; device memory 9"),
    ],
)
def test_streams_are_checked(change: dict[str, object], words: str) -> None:
    given = {"requests": [0], "policy": "lru", "window": 1, "tiers": tiers(20, 20)} | change
    with pytest.raises(SpecError, match=words):
        simulate_cache(EQUAL, **given)  # type: ignore[arg-type]
