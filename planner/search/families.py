"""Families of pipelines: what is decided before layers are laid out, and how short their steps can be at best.

A family fixes the number of stages, the schedule, the chunks, the micro-batches, and which configurations
(degrees, sharding, micro-batch size, device group) a stage may run. What is left is a partition: layers,
recomputation and offloading of every stage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import FloatArray, IntArray, PlanBatch, Schedule
from costmodels.stage_plans.plan import OFFLOAD_PARTS, StageConfigs
from costmodels.stage_plans.prices import StagePrices
from costmodels.step.step_time import per_step_overhead_s
from planner.search.cells import Cells
from planner.search.once import once_s
from planner.search.stage_work import commoner_layers

# Whose steps a partition can have.
SCHEDULES = (
    *(Schedule.ONE_F_ONE_B, Schedule.GPIPE),
    *(Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P, Schedule.ZERO_BUBBLE_V),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Pipelines that differ in the layout of layers only.

    Attributes:
        num_stages: Stages p.
        schedule: Which.
        virtual_stages: Chunks per stage v.
        num_microbatches: Micro-batches per step m.
        configs: Rows of ``StageConfigs`` that its stages may run, ascending.
        slots: How many stages there are devices for, for each of these; empty for enough.
        takes: (C, G) devices of each group that a stage of each of these takes, where they are counted instead.
        available: Devices of each group that are counted.
        nodes: Hosts that its pipelines take at least, where more is known than that they have so many stages.
        cells: What its stages may hold, where less is known to do.
    """

    num_stages: int
    schedule: Schedule
    virtual_stages: int
    num_microbatches: int
    configs: IntArray
    slots: tuple[int, ...] = ()
    takes: IntArray | None = None
    available: tuple[int, ...] = ()
    nodes: float = 0.0
    cells: Cells | None = None

    @property
    def chunks(self) -> int:
        """Runs of consecutive layers that a stage holds, a layer each at least."""
        return self.schedule.chunks(self.virtual_stages)

    @property
    def head_stage(self) -> int:
        """The stage with the output head."""
        return self.schedule.head_stage(self.num_stages)

    @property
    def counted(self) -> tuple[IntArray, tuple[int, ...]]:
        """(C, R) what a stage of each configuration takes, devices or slots, and how much of that there is."""
        if self.takes is not None:
            return self.takes, self.available
        return np.eye(len(self.configs), len(self.slots), dtype=np.int64), self.slots


def by_stages(families: Sequence[Family]) -> Iterator[tuple[int, IntArray]]:
    """Numbers of stages, ascending, with the places of the families that have as many."""
    stages = np.asarray([family.num_stages for family in families], dtype=np.int64)
    for number in np.unique(stages).tolist():
        yield number, np.flatnonzero(stages == number)


def alike_families(plans: PlanBatch, *, group: int = 0) -> tuple[list[Family], StageConfigs]:
    """The families of uniform plans, every stage of which runs the same configuration.

    Args:
        plans: Legal plans; their layers, recomputation and offloading are not read.
        group: Number of the device group they run on.

    Returns:
        One family per distinct layout, and the configurations.
    """
    plans = plans.take(np.flatnonzero(np.isin(plans.schedule, [int(code) for code in SCHEDULES])))
    configs, config = StageConfigs.of_uniform(plans, group)
    layouts = group_rows(config, plans.schedule, plans.virtual_stages)
    families = [
        Family(
            num_stages=int(plans.pipeline_parallel[row]),
            schedule=Schedule(int(plans.schedule[row])),
            virtual_stages=int(plans.virtual_stages[row]),
            num_microbatches=int(plans.num_microbatches[row]),
            configs=config[row : row + 1],
        )
        for row in layouts.first
    ]
    return families, configs


def passes_per_work(
    num_stages: IntArray, num_microbatches: IntArray, virtual_stages: IntArray, schedule: IntArray
) -> FloatArray:
    """(N,) seconds of a pipeline per second of one micro-batch on all stages together, at best.

    Follows from the formulas of ``costmodels.pipeline.schedules``, s_i being the time of stage i and W the sum of
    these.

    * GPipe: W and m - 1 times the slowest forward and backward pass, so that equal stages are best:
      (m + p - 1) / p.
    * 1F1B, m > p: the time is at least m s_i + sum before + 2 sum after - (p - 1 - i) s_i, and with weights
      w_(i+1) = w_i (m - p - 1 + i) / (m - p + 1 + i) the weighted mean of these has the same coefficient for every
      s: again (m + p - 1) / p.
    * 1F1B, m <= p: the time is at least W + the sum behind stage p - m, and for every i <= p - m at least
      W + (m - 1) s_i / 2, the slower of both passes of i taking half of s_i or more. Together, each of the p - m + 1
      latter 2 / (m - 1) times: 2 p / (2 p - m + 1). Stages of such times exist.
    * Interleaving: the chain through stage i takes m s_i and 1 / v of the sum before at least. Stages of times that
      fall by 1 / (m v) from each to the next make all these the same: 1 / (1 - (1 - 1 / (m v))^p) / v.
    * Zero bubble: m times the slowest stage, which takes W / p or more.
    """
    p, m, v = num_stages, num_microbatches, virtual_stages
    even = (m + p - 1) / p
    few = (schedule == Schedule.ONE_F_ONE_B) & (m <= p)
    spread = np.where(few, 2 * p / np.maximum(2 * p - m + 1, 1), even)
    chained = -1.0 / np.expm1(p * np.log1p(-1.0 / np.maximum(m * v, 2))) / v
    fills = (schedule != Schedule.ONE_F_ONE_B) & (schedule != Schedule.GPIPE)
    per_work: FloatArray = np.where(fills, m / p, np.where(v > 1, chained, spread))
    return per_work


def passes(families: list[Family]) -> FloatArray:
    """(F,) ``passes_per_work`` of families."""
    names = ("num_stages", "num_microbatches", "virtual_stages", "schedule")
    return passes_per_work(*(np.asarray([int(getattr(family, name)) for family in families]) for name in names))


def least_step_s(
    families: list[Family], prices: StagePrices, *, below_s: float = np.inf, extra_s: FloatArray | float = 0.0
) -> FloatArray:
    """(F,) seconds that no layout of families of one configuration goes below: stages in perfect balance.

    Args:
        families: The families.
        prices: Prices of their configurations.
        below_s: Step time to beat: passes that are longer than it allows hide no traffic.
        extra_s: (F,) seconds that recomputation adds to one micro-batch at least.
    """
    if not families:
        return np.zeros(0)
    model = prices.context.model
    config = np.asarray([int(family.configs[0]) for family in families], dtype=np.int64)
    p = np.asarray([family.num_stages for family in families], dtype=np.int64)
    m = np.asarray([family.num_microbatches for family in families], dtype=np.int64)
    v = np.asarray([family.virtual_stages for family in families], dtype=np.int64)
    schedule = np.asarray([int(family.schedule) for family in families], dtype=np.int64)
    every = np.ones(len(families), dtype=np.bool_)
    moe = np.full(len(families), model.num_moe_layers)
    rows = prices.rows(config, dense=model.num_layers - moe, moe=moe, has_embedding=every, has_head=every)
    crossing_s = np.where(p > 1, own_crossing_s(prices, config), 0.0)
    per_stage_s = 2 * crossing_s + prices.context.stack.microbatch_overhead_s * v
    work_s = prices.work_s(rows) + p * per_stage_s + extra_s
    longest_s = below_s / prices.context.stack.step_time_scale / m
    known_s = passes_per_work(p, m, v, schedule) * work_s + least_once_s(prices, config, p, m, v, longest_s)
    return step_s(known_s, nodes=p * prices.unit["nodes"][config], prices=prices)


def least_once_s(
    prices: StagePrices,
    config: IntArray,
    p: IntArray,
    m: IntArray,
    v: IntArray,
    longest_s: FloatArray,
    *,
    offload: bool = True,
) -> FloatArray:
    """(F,) seconds once per step of the stage that holds most layers: at least its share of these.

    Args:
        prices: Prices of the configurations.
        config: (F,) configuration of that stage.
        p: (F,) stages.
        m: (F,) micro-batches per step.
        v: (F,) chunks per stage.
        longest_s: (F,) longest a stage works on one micro-batch, under which traffic hides.
        offload: Whether optimizer states and weights may be on the host.
    """
    model, no = prices.context.model, np.zeros(len(config), dtype=np.bool_)
    moe, most = commoner_layers(model)
    layers = -(-most // p)
    none = np.zeros_like(layers)
    rows = prices.rows(
        config, dense=none if moe else layers, moe=layers if moe else none, has_embedding=no, has_head=no
    )
    shares = (0, OFFLOAD_PARTS) if offload else (0,)
    optimizer, parameters = np.asarray(list(product(shares, repeat=2))).T  # in between times are linear, or longer
    ways = len(optimizer)
    shown_s, update_s = once_s(
        prices, np.tile(config, ways), np.tile(rows, ways),
        num_microbatches=np.tile(m, ways), num_stages=np.tile(p, ways), virtual_stages=np.tile(v, ways),
        forward_s=np.tile(longest_s, ways), backward_s=np.tile(longest_s, ways),
        optimizer_offload=np.repeat(optimizer, len(config)), parameter_offload=np.repeat(parameters, len(config)),
    )  # fmt: skip
    least_s: FloatArray = (shown_s + update_s).reshape(ways, len(config)).min(axis=0)
    return least_s


def own_crossing_s(prices: StagePrices, config: IntArray) -> FloatArray:
    """(N,) seconds one way between two stages that run the same configuration."""
    crossing_s: FloatArray = prices.transfer_s[config * len(prices.contexts) + prices.configs.group[config]]
    return crossing_s


def crossings_s(prices: StagePrices, configs: IntArray) -> FloatArray:
    """(C, C) seconds one way between stages of any two configurations: the slower side's, as the cost path has it."""
    groups = len(prices.contexts)
    towards_s = prices.transfer_s[configs[:, None] * groups + prices.configs.group[configs][None, :]]
    crossing_s: FloatArray = np.maximum(towards_s, towards_s.T)
    return crossing_s


def crossing_kinds(family: Family, prices: StagePrices) -> tuple[IntArray, FloatArray | None]:
    """(C,) configurations of the same crossings as one kind, and (J, J) what crossings between kinds take."""
    groups = len(prices.contexts)
    towards_s = prices.transfer_s.reshape(-1, groups)[family.configs]
    columns = np.column_stack([prices.configs.group[family.configs], towards_s])
    _, first, kind_of = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    return kind_of.reshape(-1), crossings_s(prices, family.configs[first]) if len(first) > 1 else None


def least_nodes(family: Family, prices: StagePrices) -> float:
    """Hosts that a pipeline of the family takes at least."""
    return max(float(prices.unit["nodes"][family.configs].min()) * family.num_stages, family.nodes)


def step_s(known_s: FloatArray, *, nodes: FloatArray, prices: StagePrices) -> FloatArray:
    """(N,) whole steps from pipeline, traffic, optimizer and offloading."""
    stack = prices.context.stack
    return (known_s + per_step_overhead_s(known_s, nodes=nodes, stack=stack)) * stack.step_time_scale


def known_of_step_s(whole_s: float, *, nodes: float, prices: StagePrices) -> float:
    """The inverse of ``step_s`` for one plan."""
    zero, one = step_s(np.asarray([0.0, 1.0]), nodes=np.full(2, nodes), prices=prices)
    return float((whole_s - zero) / (one - zero))
