"""Interleaved 1F1B in whole ticks: the chains of work of ``costmodels.pipeline.interleaving``, the longest counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.pipeline.interleaving import round_size
from planner.search.partition.problem import PartitionInstance

AtLeast = Callable[..., Any]  # a new variable no less than any of some expressions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """What is known before any choice; see ``costmodels.pipeline.interleaving``.

    Attributes:
        chunks: Per stage, v.
        size: Micro-batches of a round, g.
        rounds: How many; 3 for more.
        laps: How often a chain may go around before the first turn.
        warm: Forwards before the first turn, stage by stage.
        turns: Turns after the first.
    """

    chunks: int
    size: int
    rounds: int
    laps: int
    warm: list[int]
    turns: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """Ticks to the first turn of every stage."""

    own: list[Any]
    straight: list[Any]
    backwards: list[Any]
    forwards: list[Any]


def longest_interleaved(instance: PartitionInstance, forward: list[Any], backward: list[Any], at_least: AtLeast) -> Any:
    """Ticks of a pipeline times its chunks, at least.

    Args:
        instance: The problem.
        forward: Ticks of the forward pass of every stage.
        backward: Of its backward pass.
        at_least: Makes variables.
    """
    stages = _stages(instance)
    there = _reach(stages, forward, backward, at_least)
    back = _reach(stages, backward, forward, at_least)
    ends = []
    for stage, turns in enumerate(stages.turns):
        work = turns * (forward[stage] + backward[stage])
        ends += [way + work for way in _ways(stages, there, back, stage)]
    return at_least(*ends)


def _stages(instance: PartitionInstance) -> _Stages:
    p, m, v = instance.num_stages, instance.num_microbatches, instance.virtual_stages
    size = int(round_size(np.asarray(p), np.asarray(m)))
    warm = [min(2 * (p - 1 - stage) + (v - 1) * size, m * v - 1) for stage in range(p)]
    return _Stages(
        chunks=v, size=size, rounds=min(m // size, 3), laps=v - 1 if m < p else 1, warm=warm,
        turns=[m * v - 1 - each for each in warm],
    )  # fmt: skip


def _reach(stages: _Stages, forward: list[Any], backward: list[Any], at_least: AtLeast) -> _Reach:
    """The ways to the first turn of every stage."""
    size, v, warm = stages.size, stages.chunks, stages.warm
    numbers = range(len(forward))
    ahead, behind = ([sum(passes[: stage + 1]) for stage in numbers] for passes in (forward, backward))
    turn = [one + other for one, other in zip(forward, backward, strict=True)]
    slowest = [forward[0]]
    for each in forward[1:]:
        slowest.append(at_least(slowest[-1], each))
    own: list[Any] = []
    beyond: list[Any] = []
    for stage in numbers:
        ways: list[Any] = [ahead[stage] + warm[stage] * slowest[stage]]
        for lap in range(1, stages.laps + 1):
            spare = warm[stage] - lap * size
            first = min(spare, (v - lap) * size - 1)
            if spare >= 0:
                around = lap * ahead[-1] + ahead[stage]
                ways.append(around + first * slowest[-1] + (spare - first) * slowest[stage])
        own.append(at_least(*ways))
    for stage in reversed(numbers):
        beyond.append(at_least(own[stage] + behind[stage], *beyond[-1:]))
    beyond.reverse()
    straight = [most - way for most, way in zip(beyond, behind, strict=True)]
    if stages.rounds < 2:
        return _Reach(own=own, straight=straight, backwards=[], forwards=[])
    backwards = [beyond[0] + behind[-1] - behind[stage] - size * turn[stage] for stage in numbers]
    before = [v * size - each for each in warm]
    last = at_least(*(straight[at] + before[at] * turn[at] - ahead[at] for at in numbers if before[at] >= 0))
    forwards = [last + ahead[-1] + ahead[at] - (before[at] + size) * turn[at] for at in numbers]
    return _Reach(own=own, straight=straight, backwards=backwards, forwards=forwards)


def _ways(stages: _Stages, there: _Reach, back: _Reach, at: int) -> list[Any]:
    """There and back of chains that spend the turns they can on one stage."""
    turns, size, v = stages.turns[at], stages.size, stages.chunks
    straight = (there.straight[at], back.straight[at])
    if stages.rounds < 2:
        if turns > 0:
            return [sum(straight)]
        return [there.own[at] + back.straight[at], there.straight[at] + back.own[at]]
    pairs = [straight]
    pairs += [(way, back.straight[at]) for way in (there.backwards[at], there.forwards[at])]
    pairs += [(there.straight[at], way) for way in (back.backwards[at], back.forwards[at])]
    second = (v + 1) * size - stages.warm[at]
    if stages.rounds > 2 or 2 * size < turns:
        pairs.append((there.backwards[at], back.backwards[at]))
    if stages.rounds > 2 or v > 2:
        pairs += [(there.backwards[at], back.forwards[at]), (there.forwards[at], back.backwards[at])]
    if stages.rounds > 2 or 2 * second <= turns:
        pairs.append((there.forwards[at], back.forwards[at]))
    return [sum(pair) for pair in pairs]
