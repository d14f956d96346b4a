"""How short the steps of pipelines across groups can be, memory considered.

A stage that works for at most t seconds on one micro-batch gets a limited number of layers done: as many as
it has room for, and from a number on only with recomputation. The stages together have to get all layers
done, with no more stages on a group than there are devices for. In a step of T seconds t is T over the micro-batches
at most, and the stages together work for no more than what ``passes_per_work`` says; the least T in which all layers
get done is a bound on the step.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, Schedule
from costmodels.stage_plans.prices import StagePrices
from planner.search.best import Stopped
from planner.search.capacity import again_s, rooms
from planner.search.families import Family, by_stages, least_nodes, least_once_s, passes, step_s
from planner.search.freedom import Freedom
from planner.search.mixed_families import Mixed
from planner.search.places import most_worth
from planner.search.stage_work import commoner_layers, stage_work_s

_BISECTIONS = 20
# Families bounded together. Few at first: the plan they give makes it quick to see that most others are no better.
_FIRST, _MOST = 1024, 4096
_NEVER = 1e9  # layers that no stage gets done where there is no device for it


@dataclass(slots=True, kw_only=True)
class MixedFurther:
    """Families across groups as they come in a search: so many at a time, those of the lowest bounds first.

    Attributes:
        mixed: All families.
        freedom: What stages may decide.
        check_time: Called now and then; once it raises ``Stopped``, bounds are no sharper than those of ``mixed``.
    """

    mixed: Mixed
    freedom: Freedom
    check_time: Callable[[], None]
    _done: int = field(default=0, init=False)

    @property
    def least_s(self) -> float:
        """Step time that no family still to come goes below; infinite if there is none."""
        return float(self.mixed.least_s[self._done]) if self._done < len(self.mixed.least_s) else np.inf

    def more(self, below_s: float) -> tuple[list[Family], FloatArray]:
        """Of the next families those that may be below a step time, and (F,) what they do not go below."""
        start, stop = self._done, self._done + min(max(3 * self._done, _FIRST), _MOST)
        families = self.mixed.families(start, stop)
        least_s = mixed_least_s(families, self.mixed.prices, self.freedom, below_s=below_s, check_time=self.check_time)
        least_s = np.maximum(least_s, self.mixed.least_s[start:stop])
        self._done = stop  # not before: who is interrupted has not looked at them
        kept = np.flatnonzero(least_s < below_s)
        return [families[at] for at in kept], least_s[kept]


def mixed_least_s(
    families: list[Family],
    prices: StagePrices,
    freedom: Freedom,
    *,
    below_s: float,
    check_time: Callable[[], None] = lambda: None,
) -> FloatArray:
    """(F,) step times that no layout of the families goes below; infinite where that is above ``below_s``.

    Args:
        families: Families of any number of configurations.
        prices: Their prices.
        freedom: What stages may decide; with offloading memory bounds nothing, and neither does this.
        below_s: Step time to beat.
        check_time: Called between numbers of stages; once it raises ``Stopped``, the other families are bounded by 0.
    """
    least_s = np.zeros(len(families))
    if freedom.offload or not families:
        return least_s
    moe, layers = commoner_layers(prices.context.model)
    with suppress(Stopped):
        for _, members in by_stages(families):
            check_time()
            some = [families[at] for at in members]
            tables = _Tables(some, prices, freedom, moe=moe)
            microbatches = np.asarray([family.num_microbatches for family in some])
            times_s = _least_time_s(some, tables, layers, below_s / microbatches)
            found_s = times_s * microbatches + _once_s(some, prices, below_s)
            nodes = np.asarray([least_nodes(family, prices) for family in some])
            possible = np.isfinite(found_s)
            whole_s = np.full(len(some), np.inf)
            whole_s[possible] = step_s(found_s[possible], nodes=nodes[possible], prices=prices)
            least_s[members] = whole_s
    return least_s


def _once_s(families: list[Family], prices: StagePrices, below_s: float) -> FloatArray:
    """(F,) seconds once per step, on the configuration on which that takes least."""
    m = np.asarray([family.num_microbatches for family in families])
    v = np.asarray([family.virtual_stages for family in families])
    stages, least_s = np.full(len(m), families[0].num_stages), np.full(len(m), np.inf)
    longest_s = below_s / prices.context.stack.step_time_scale / m
    for place in range(max(len(family.configs) for family in families)):
        config = np.asarray([family.configs[min(place, len(family.configs) - 1)] for family in families])
        least_s = np.minimum(least_s, least_once_s(prices, config, stages, m, v, longest_s, offload=False))
    return least_s


class _Tables:
    """What every configuration of some families of S stages gets done, stage by stage, by its pipeline.

    Attributes:
        row_of: Row of a configuration in pipelines of a schedule, chunks, and micro-batches.
        room: (3, R, S) most layers, see ``capacity.rooms``.
        layer_s, core_s, full_s: (R,) a layer's work, and what recomputing it adds.
        ends_s: (R, S) work besides layers.
    """

    def __init__(self, families: list[Family], prices: StagePrices, freedom: Freedom, *, moe: bool) -> None:
        stages = families[0].num_stages
        keys = sorted({key for family in families for key in _keys(family)})
        self.row_of = {key: row for row, key in enumerate(keys)}
        alone = [
            Family(
                num_stages=stages, schedule=Schedule(schedule), virtual_stages=chunks, num_microbatches=m,
                configs=np.asarray([config]),
            )
            for config, schedule, chunks, m in keys
        ]  # fmt: skip
        self.room = rooms(alone, prices, freedom, moe=moe)
        config = np.asarray([key[0] for key in keys], dtype=np.int64)
        self.layer_s = stage_work_s(prices, config, layers=1, moe=moe)
        self.core_s, self.full_s = again_s(prices, config, freedom, moe=moe)
        self.ends_s = np.zeros((len(keys), stages))
        self.ends_s[:, 0] += stage_work_s(prices, config, first=True)
        head = [family.head_stage for family in alone]
        self.ends_s[np.arange(len(keys)), head] += stage_work_s(prices, config, last=True)

    def done(self, rows: IntArray, time_s: FloatArray) -> FloatArray:
        """(N, S) layers that stages of each row get done in (N,) seconds."""
        layer_s, left_s = self.layer_s[rows, None], np.maximum(time_s[:, None] - self.ends_s[rows], 0.0)
        done = np.zeros_like(left_s)
        before = np.zeros_like(left_s)
        again_s = (np.zeros_like(layer_s), self.core_s[rows, None], self.full_s[rows, None])
        for room, more_s in zip(self.room, again_s, strict=True):
            each_s = layer_s + more_s
            further = np.clip(np.floor(left_s / each_s * (1 + 1e-9)), 0.0, np.maximum(room[rows] - before, 0.0))
            done, left_s, before = done + further, np.maximum(left_s - further * each_s, 0.0), before + further
        return done


def _keys(family: Family) -> list[tuple[int, int, int, int]]:
    """By what the tables tell the configurations of a family apart."""
    pipeline = (int(family.schedule), family.virtual_stages, family.num_microbatches)
    return [(config, *pipeline) for config in family.configs.tolist()]


def _least_time_s(families: list[Family], tables: _Tables, layers: int, most_s: FloatArray) -> FloatArray:
    """(F,) least time of the slowest stage with which all layers get done; infinite if ``most_s`` is not enough."""
    width = max(len(family.configs) for family in families)
    rows = np.zeros((len(families), width), dtype=np.int64)
    slots = np.zeros((len(families), width), dtype=np.int64)
    for at, family in enumerate(families):
        rows[at, : len(family.configs)] = [tables.row_of[key] for key in _keys(family)]
        slots[at, : len(family.configs)] = family.slots
    m = np.asarray([family.num_microbatches for family in families])
    stages = m / passes(families)

    def enough(time_s: FloatArray) -> BoolArray:
        """(F,) whether all layers get done where no stage works longer than that on one micro-batch."""
        met: BoolArray = _done(tables, rows, slots, time_s) >= layers
        return met & (_done_together(tables, rows, slots, time_s, stages * time_s) >= layers)

    # Nothing gets done that is not while one stage does it all, recomputing every layer.
    alone_s = float((layers * (tables.layer_s + tables.full_s) + tables.ends_s.sum(axis=1)).max())
    low, high = np.zeros(len(families)), np.minimum(most_s, alone_s)
    possible = enough(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        met = enough(middle)
        low, high = np.where(met, low, middle), np.where(met, middle, high)
    return np.where(possible, low, np.inf)


def _done_together(
    tables: _Tables, rows: IntArray, slots: IntArray, time_s: FloatArray, together_s: FloatArray
) -> FloatArray:
    """(F,) most layers that stages get done who work for so long each, and for so long together: the fastest first."""
    here = slots > 0
    layer_s = np.where(here, tables.layer_s[rows], np.inf)
    ends_s = np.where(here[:, :, None], tables.ends_s[rows][:, :, [0, -1]], np.inf).min(axis=1).sum(axis=1)
    left_s, done = np.maximum(together_s - ends_s, 0.0), np.zeros(len(rows))
    for index in np.argsort(layer_s, axis=1, kind="stable").T:
        at = np.arange(len(rows)), index
        worked_s = np.minimum(left_s, slots[at] * time_s)
        done, left_s = done + worked_s / layer_s[at], left_s - worked_s
    return done * (1 + 1e-9)


def _done(tables: _Tables, rows: IntArray, slots: IntArray, time_s: FloatArray) -> FloatArray:
    """(F,) most layers that the stages of families get done together, each on one of their configurations."""
    done = np.stack([tables.done(rows[:, index], time_s) for index in range(rows.shape[1])], axis=1)
    return most_worth(np.where(slots[:, :, None] > 0, done, -_NEVER), slots)
