"""Rows of calls that others beat, weighed in blocks, are those that a plain loop drops."""

from typing import Any

import numpy as np
import pytest

from planner.dataflow import holdings
from planner.dataflow.holdings import CallRows


def rows(count: int, seed: int, parts: int) -> CallRows:
    random = np.random.default_rng(seed)

    def few(most: int = 12) -> Any:
        return random.integers(1, most, count).astype(np.float64)

    unread: dict[str, Any] = dict.fromkeys(("row", "machines", "holding"), np.zeros(count, dtype=np.int64))
    unread["table"] = None
    return CallRows(
        **unread,
        layout=random.integers(0, 4, count),
        time_s=few(40) / 8,
        low_s=few(),
        high_s=few(),
        static_bytes=few(),
        active_bytes=few(),
        host_bytes=few(4),
        moved_s=few(),
        ready_s=few().reshape(-1, 1) * np.ones((1, parts)),
        parts=random.integers(0, 3, count),
    )


def one_by_one(given: CallRows, group: Any, allowance_s: float, stays: Any) -> list[int]:
    """From the smallest on, whatever no row kept before it beats."""
    order = np.lexsort((given.host_bytes, given.time_s, given.active_bytes, given.static_bytes, group)).tolist()
    kept: list[int] = []

    def beats(one: int, other: int) -> bool:
        return bool(
            group[one] == group[other]
            and given.static_bytes[one] <= given.static_bytes[other]
            and given.active_bytes[one] <= given.active_bytes[other]
            and given.host_bytes[one] <= given.host_bytes[other]
            and given.time_s[one] <= given.time_s[other] + allowance_s
            and (given.ready_s[one] <= given.ready_s[other] + allowance_s).all()
            and given.parts[one] >= given.parts[other]
        )

    for row in order:
        if stays[row] or not any(beats(one, row) for one in kept):
            kept.append(row)
    return kept


@pytest.mark.parametrize("together", [1, 3, 64])
@pytest.mark.parametrize("allowance_s", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("parts", [0, 2])
def test_blocks_drop_what_a_loop_drops(
    together: int, allowance_s: float, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "_TOGETHER", together)
    given, random = rows(300, seed=parts, parts=parts), np.random.default_rng(7)
    group, stays = random.integers(0, 5, 300), random.random(300) < 0.1
    found = holdings._unbeaten(given, group, allowance_s, stays)
    assert found.tolist() == one_by_one(given, group, allowance_s, stays)
    assert 20 < len(found) < 250


def test_no_rows_are_none() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert not len(holdings._unbeaten(rows(0, seed=0, parts=0), none, 0.0, none > 0))


def test_many_rows_are_compared_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over rows took most of the time of a large workflow."""
    calls, beats = 0, holdings._beats

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return beats(*given)

    monkeypatch.setattr(holdings, "_beats", counted)
    given = rows(6400, seed=3, parts=0)
    holdings._unbeaten(given, np.zeros(6400, dtype=np.int64), 0.0, np.zeros(6400, dtype=np.bool_))
    assert calls <= 2 * 6400 / 64
