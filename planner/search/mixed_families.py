"""Families of pipelines across groups of different devices.

All stages on one group have the same number of devices and the same configuration; which stages are on which
group, and how many, is part of the partition, as is leaving devices idle. Numbers of devices per stage are
powers of two, from an eighth of the group up, and whole groups. Considered are all configurations that the groups
share, as the frameworks have it; and for groups that run different ones, those with the least work for a size of
micro-batch; with every schedule and number of chunks that the framework runs with so many stages and micro-batches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import FloatArray, IntArray, PlanBatch, Schedule, concatenate
from costmodels.stage_plan import CONFIG_COLUMNS, StageConfigs
from costmodels.stage_prices import StagePrices
from planner.chunks import chunk_counts
from planner.search.families import SCHEDULES, Family, passes_per_work, step_s
from planner.search.question import Question
from planner.space import plan_space
from planner.stage_constraints import pipelines_run

MOST_STAGES = 16
MOST_SLOTS = 8  # stages on one group
OFFERED = 3  # configurations per group, devices of a stage and size of micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Families across groups, and the least step of each."""

    families: list[Family]
    prices: StagePrices
    least_s: FloatArray


def mixed_families(
    question: Question, pins: Mapping[str, int], *, alike: bool = False, below_s: float = np.inf
) -> Mixed:
    """Every family of the question that uses more than one group.

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
    chosen = sorted({rows for members in together for rows in _across(configs, members)})
    if not chosen:
        return Mixed(families=[], prices=prices, least_s=np.zeros(0))
    kinds = _pipelines(question, pins, chosen, slots, configs)
    least_s = _least_s(chosen, kinds, slots, prices, work_s)
    kinds = kinds.take(np.flatnonzero(least_s < below_s))
    rows_of = [np.asarray(rows) for rows in chosen]
    slots_of = [tuple(slots[rows].tolist()) for rows in rows_of]
    families = [
        Family(
            num_stages=count,
            schedule=Schedule(schedule),
            virtual_stages=chunks,
            num_microbatches=m,
            configs=rows_of[at],
            slots=slots_of[at],
        )
        for at, count, schedule, chunks, m in kinds.rows()
    ]
    return Mixed(families=families, prices=prices, least_s=least_s[least_s < below_s])


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


def _across(configs: StageConfigs, members: IntArray) -> list[tuple[int, ...]]:
    """Every choice of one configuration on each of several groups."""
    groups = np.unique(configs.group[members])
    offers = [[None, *members[configs.group[members] == group].tolist()] for group in groups]
    chosen = (tuple(sorted(row for row in rows if row is not None)) for rows in product(*offers))
    return [rows for rows in chosen if len(rows) > 1]


def _pipelines(
    question: Question, pins: Mapping[str, int], chosen: list[tuple[int, ...]], slots: IntArray, configs: StageConfigs
) -> _Pipelines:
    """Every number of stages of every choice, from one on each group to as many as fit, with every legal schedule."""
    setting = question.settings[0]
    layers = setting.model.num_layers
    fewest = np.asarray([len(rows) for rows in chosen])
    most = np.minimum([int(slots[list(rows)].sum()) for rows in chosen], min(MOST_STAGES, layers))
    counts = np.maximum(most - fewest + 1, 0)
    which = np.repeat(np.arange(len(chosen)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    stages = fewest[which] + np.arange(len(which)) - first
    microbatches = configs.plans.num_microbatches[[rows[0] for rows in chosen]].astype(np.int64)[which]
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
    """Legal configurations of stages of every group, from uniform pipelines of two such stages."""
    fixed = {name: value for name, value in pins.items() if name not in _NOT_READ}
    batches: list[PlanBatch] = []
    group_of: list[IntArray] = []
    for group, (request, setting_of_group) in enumerate(zip(question.requests, question.settings, strict=True)):
        cluster = request.cluster
        for size in _stage_sizes(cluster.num_devices):
            setting = replace(setting_of_group, num_devices=2 * size)
            space = plan_space(
                setting, domain_devices=cluster.domain_devices, pins=fixed | {"pipeline_parallel": 2}, offload=False,
                lone_shards=request.offload,
            )  # fmt: skip
            plans = space.plans.take(np.flatnonzero(space.plans.schedule == Schedule.ONE_F_ONE_B))
            alike = group_rows(*(getattr(plans, name).astype(np.int64) for name in CONFIG_COLUMNS))
            distinct = plans.take(alike.first)
            named = {name: getattr(distinct, name) for name in (*CONFIG_COLUMNS, "pipeline_parallel")}
            batches.append(PlanBatch.from_columns(len(alike.first), **named))
            group_of.append(np.full(len(alike.first), group))
    return StageConfigs(plans=concatenate(batches), group=np.concatenate(group_of))


_NOT_READ = ("pipeline_parallel", "virtual_stages", "schedule", "first_stage_layers", "last_stage_layers", "recompute",
             "recompute_layers", "recompute_modules", "data_parallel")  # fmt: skip


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
    here = np.arange(width) < np.asarray([len(rows) for rows in chosen])[:, None]
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
