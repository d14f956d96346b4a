"""Families of pipelines across groups of different devices.

All stages on one group have the same number of devices and the same configuration; which stages are on which
group, and how many, is part of the partition, as is leaving devices idle. Numbers of devices per stage are
powers of two, from an eighth of the group up, and whole groups. Considered are all configurations that the groups
share, as the frameworks have it; and for groups that run different ones, those with the least work for a size of
micro-batch; with every schedule and number of chunks that the framework runs with so many stages and micro-batches.

Choices of a configuration for each group multiply with every group, so their number is limited: sizes of micro-batch
that promise the shortest steps go first, and on each group the configurations that are fastest together. What nobody
looks at is bounded, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import RECOMPUTES, FloatArray, IntArray, PlanBatch, Schedule, concatenate
from costmodels.stage_plans.plan import CONFIG_COLUMNS, StageConfigs
from costmodels.stage_plans.prices import StagePrices
from planner.search.families import SCHEDULES, Family, passes_per_work, step_s
from planner.search.question import Question
from planner.space.chunks import chunk_counts
from planner.space.enumeration import plan_space
from planner.space.stage_constraints import pipelines_run
from profiles.errors import SpecError

MOST_STAGES = 16
MOST_SLOTS = 8  # stages on one group
OFFERED = 3  # configurations per group, devices of a stage and size of micro-batch
# Choices of a configuration for each group, in all and for one size of micro-batch: three groups of eight devices have
# 24,000 that are 420,000 families, which is what a second is enough for. Both bound time and memory.
_MOST_CHOICES = 30_000
_MOST_ALIKE_CHOICES = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Families across groups, those with the lowest bounds first.

    Attributes:
        prices: Of all configurations.
        least_s: (F,) step times that no plan of each goes below, ascending.
        left_out_s: Nor does any plan of choices of configurations that nobody looks at.
    """

    prices: StagePrices
    least_s: FloatArray
    left_out_s: float
    _kinds: "_Pipelines"
    _chosen: list[tuple[int, ...]]
    _slots: IntArray

    def families(self, start: int = 0, stop: int | None = None) -> list[Family]:
        """Those at places ``start`` up to ``stop``."""
        places = np.arange(len(self.least_s))[start:stop]
        return [
            Family(
                num_stages=count,
                schedule=Schedule(schedule),
                virtual_stages=chunks,
                num_microbatches=m,
                configs=np.asarray(self._chosen[at]),
                slots=tuple(self._slots[list(self._chosen[at])].tolist()),
            )
            for at, count, schedule, chunks, m in self._kinds.take(places).rows()
        ]


def mixed_families(
    question: Question, pins: Mapping[str, int], *, alike: bool = False, below_s: float = np.inf
) -> Mixed:
    """Every family of the question that uses more than one group, as far as they are considered.

    Args:
        question: The question, with several groups.
        pins: Plan columns the user fixed; of these, numbers of stages and ranks are not read.
        alike: Whether all groups run the same configuration.
        below_s: Step time to beat: families whose least step is no shorter are left out.
    """
    configs = _configs(question, pins)
    prices = StagePrices(configs=configs, contexts=question.contexts, joint=question.joint)
    work_s = _work_s(prices)
    sizes = np.asarray([request.cluster.num_devices for request in question.requests])
    slots = sizes[configs.group] // configs.num_devices
    together = _together(configs, np.arange(len(configs)), alike=True)
    if not alike:
        together += _together(configs, _offered(configs, work_s), alike=False)
    chosen, left_out_s = _choices(together, prices, slots / work_s, below_s)
    kinds = _pipelines(question, pins, chosen, slots, configs)
    least_s = _least_s(chosen, kinds, slots, prices, work_s) if chosen else np.zeros(0)
    hopeful = np.flatnonzero(least_s < below_s)
    hopeful = hopeful[np.argsort(least_s[hopeful], kind="stable")]
    return Mixed(
        prices=prices, least_s=least_s[hopeful], left_out_s=left_out_s, _kinds=kinds.take(hopeful), _chosen=chosen,
        _slots=slots,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pipelines:
    """Families before they are built; F rows.

    Attributes:
        which: (F,) number of the choice of configurations.
        stages: (F,) pipeline stages.
        schedule: (F,) ``Schedule`` codes.
        chunks: (F,) virtual stages.
        microbatches: (F,) of a step.
    """

    which: IntArray
    stages: IntArray
    schedule: IntArray
    chunks: IntArray
    microbatches: IntArray

    def take(self, rows: IntArray) -> "_Pipelines":
        return _Pipelines(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def rows(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Row by row."""
        return zip(*(getattr(self, name).tolist() for name in self.__dataclass_fields__), strict=True)


def _together(configs: StageConfigs, kept: IntArray, *, alike: bool) -> list[IntArray]:
    """Configurations that stages of one plan can have: the same samples in as many micro-batches, or ``alike``."""
    plans = configs.plans
    names = CONFIG_COLUMNS if alike else ("num_microbatches",)
    columns = [configs.samples, *(getattr(plans, name).astype(np.int64) for name in names)]
    groups = group_rows(*(column[kept] for column in columns))
    order = np.argsort(groups.of_row, kind="stable")
    return np.split(kept[order], np.flatnonzero(np.diff(groups.of_row[order])) + 1)


def _choices(
    together: list[IntArray], prices: StagePrices, rate: FloatArray, below_s: float
) -> tuple[list[tuple[int, ...]], float]:
    """Choices of a configuration for each of several groups, and a step time that none left out goes below.

    Args:
        together: Configurations that stages of one plan can have.
        prices: Their prices.
        rate: (K,) micro-batches per second of as many stages as there are devices for, if each did all layers' work.
        below_s: Step time to beat.
    """
    least_s = np.asarray([_fastest_s(members, prices, rate) for members in together])
    chosen: set[tuple[int, ...]] = set()
    left_out_s = np.inf
    for at in np.argsort(least_s, kind="stable").tolist():
        if least_s[at] >= below_s:
            break
        rows, whole = _across(prices.configs, together[at], rate) if len(chosen) < _MOST_CHOICES else ([], False)
        chosen.update(rows)
        if not whole:
            left_out_s = min(left_out_s, float(least_s[at]))
    return sorted(chosen), left_out_s


def _fastest_s(members: IntArray, prices: StagePrices, rate: FloatArray) -> float:
    """A step that none across groups goes below: every group on its fastest configuration; infinite for one group."""
    configs = prices.configs
    fastest = np.zeros(len(prices.contexts))
    np.maximum.at(fastest, configs.group[members], rate[members])
    if np.count_nonzero(fastest) < 2:
        return np.inf
    known_s = np.asarray([configs.plans.num_microbatches[members[0]] / fastest.sum()])
    return float(step_s(known_s, nodes=2 * prices.unit["nodes"][members].min(keepdims=True), prices=prices)[0])


def _across(configs: StageConfigs, members: IntArray, rate: FloatArray) -> tuple[list[tuple[int, ...]], bool]:
    """Choices of one configuration on each of several groups, the fastest of a group first, and whether it is all."""
    members = members[np.argsort(-rate[members], kind="stable")]
    offers = [members[configs.group[members] == group].tolist() for group in np.unique(configs.group[members])]
    most = max(len(offer) for offer in offers)
    while most > 1 and prod(min(len(offer), most) + 1 for offer in offers) > _MOST_ALIKE_CHOICES:
        most -= 1
    chosen = (
        tuple(sorted(row for row in rows if row is not None))
        for rows in product(*([None, *offer[:most]] for offer in offers))
    )
    return [rows for rows in chosen if len(rows) > 1], all(len(offer) <= most for offer in offers)


def _pipelines(
    question: Question, pins: Mapping[str, int], chosen: list[tuple[int, ...]], slots: IntArray, configs: StageConfigs
) -> _Pipelines:
    """Every number of stages of every choice, from one on each group to as many as fit, with every legal schedule."""
    setting = question.settings[0]
    layers = setting.model.num_layers
    fewest = np.asarray([len(rows) for rows in chosen], dtype=np.int64)
    most = np.minimum(
        np.asarray([slots[list(rows)].sum() for rows in chosen], dtype=np.int64), min(MOST_STAGES, layers)
    )
    counts = np.maximum(most - fewest + 1, 0)
    which = np.repeat(np.arange(len(chosen)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    stages = fewest[which] + np.arange(len(which)) - first
    microbatches = configs.plans.num_microbatches[np.asarray([rows[0] for rows in chosen], dtype=np.int64)].astype(
        np.int64
    )[which]
    shapes = group_rows(stages, microbatches)
    ways = [(int(schedule), 1) for schedule in SCHEDULES]
    # Chunks that a free layout adds are left to the plans whose stages are alike: they double the families.
    chunks_of = chunk_counts(replace(setting, free_layout=False))
    ways += [(int(Schedule.ONE_F_ONE_B), chunks) for chunks in chunks_of if chunks > 1]
    parts = []
    for schedule, chunks in ways:
        if pins.get("schedule", schedule) != schedule or pins.get("virtual_stages", chunks) != chunks:
            continue
        rows = shapes.first
        one = np.ones(len(rows), dtype=np.int64)
        legal = pipelines_run(stages[rows], schedule * one, chunks * one, microbatches[rows], setting)
        legal &= pins.get("pipeline_parallel", stages[rows]) == stages[rows]
        kept = np.flatnonzero(legal[shapes.of_row])
        one = np.ones(len(kept), dtype=np.int64)
        parts.append(
            _Pipelines(
                which=which[kept], stages=stages[kept], schedule=schedule * one, chunks=chunks * one,
                microbatches=microbatches[kept],
            )
        )  # fmt: skip
    joined = {name: [getattr(part, name) for part in parts] for name in _Pipelines.__dataclass_fields__}
    return _Pipelines(**{name: np.concatenate(columns) for name, columns in joined.items()})


def _configs(question: Question, pins: Mapping[str, int]) -> StageConfigs:
    """Legal configurations of stages of every group, from uniform pipelines of two such stages.

    Raises:
        SpecError: If what is fixed makes stages of every size illegal.
    """
    fixed = {name: value for name, value in pins.items() if name not in _NOT_READ}
    batches: list[PlanBatch] = []
    group_of: list[IntArray] = []
    refused: SpecError | None = None
    for group, (request, setting_of_group) in enumerate(zip(question.requests, question.settings, strict=True)):
        cluster = request.cluster
        for size in _stage_sizes(cluster.num_devices):
            setting = replace(setting_of_group, num_devices=2 * size)
            try:
                space = plan_space(
                    setting, domain_devices=cluster.domain_devices, pins=fixed | {"pipeline_parallel": 2},
                    offload=False, lone_shards=request.offload,
                )  # fmt: skip
            except SpecError as error:  # what is fixed may need more devices than this
                refused = error
                continue
            plans = space.plans.take(np.flatnonzero(space.plans.schedule == Schedule.ONE_F_ONE_B))
            alike = group_rows(*(getattr(plans, name).astype(np.int64) for name in CONFIG_COLUMNS))
            distinct = plans.take(alike.first)
            named = {name: getattr(distinct, name) for name in (*CONFIG_COLUMNS, "pipeline_parallel")}
            batches.append(PlanBatch.from_columns(len(alike.first), **named))
            group_of.append(np.full(len(alike.first), group))
    if not batches and refused is not None:
        raise refused
    return StageConfigs(plans=concatenate(batches), group=np.concatenate(group_of))


_NOT_READ = (
    *("pipeline_parallel", "virtual_stages", "schedule", "first_stage_layers", "last_stage_layers", "data_parallel"),
    *RECOMPUTES,
)


def _stage_sizes(devices: int) -> list[int]:
    """Devices of one stage: powers of two, and the whole group."""
    sizes = [1 << power for power in range(devices.bit_length()) if devices // MOST_SLOTS <= 1 << power <= devices]
    return sizes if devices in sizes else [*sizes, devices]


def _work_s(prices: StagePrices) -> FloatArray:
    """(K,) one micro-batch through all layers, one after the other on one stage of each configuration."""
    model, count = prices.context.model, len(prices.configs)
    every = np.ones(count, dtype=np.bool_)
    moe = np.full(count, model.num_moe_layers)
    rows = prices.rows(np.arange(count), dense=model.num_layers - moe, moe=moe, has_embedding=every, has_head=every)
    return prices.work_s(rows)


def _offered(configs: StageConfigs, work_s: FloatArray) -> IntArray:
    """Of configurations with the same group, devices and micro-batches those with the least work, ascending."""
    alike = group_rows(configs.group, configs.num_devices, configs.samples, configs.plans.num_microbatches)
    order = np.lexsort((work_s, alike.of_row))
    of_row = alike.of_row[order]
    starts = np.flatnonzero(np.concatenate([[True], of_row[1:] != of_row[:-1]]))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.concatenate([starts, [len(order)]])))
    return np.sort(order[place < OFFERED])


def _least_s(
    chosen: list[tuple[int, ...]], kinds: _Pipelines, slots: IntArray, prices: StagePrices, work_s: FloatArray
) -> FloatArray:
    """(F,) step times that no layout goes below: all layers at the rate of the fastest stages there are devices for.

    The slowest stage works m times, and takes at least as long as all layers divided by the rates of all
    stages together; the whole work is no less than that of all layers on the fastest.
    """
    width = max(len(rows) for rows in chosen)
    table = np.asarray([rows + rows[-1:] * (width - len(rows)) for rows in chosen])
    here = np.arange(width) < np.asarray([len(rows) for rows in chosen], dtype=np.int64)[:, None]
    times_s = np.where(here, work_s[table], np.inf)
    order = np.argsort(times_s, axis=1, kind="stable")
    times_s = np.take_along_axis(times_s, order, axis=1)
    places = np.take_along_axis(np.where(here, slots[table], 0), order, axis=1)
    before = np.cumsum(places, axis=1) - places
    which, stages = kinds.which, kinds.stages
    taken = np.clip(stages[:, None] - before[which], 0, places[which])
    rate = (taken / times_s[which]).sum(axis=1)
    nodes = np.where(here, prices.unit["nodes"][table], np.inf).min(axis=1)
    passes = passes_per_work(stages, kinds.microbatches, kinds.chunks, kinds.schedule)
    least_s = np.maximum(kinds.microbatches / rate, passes * times_s[which, 0])
    return step_s(least_s, nodes=nodes[which] * stages, prices=prices)
