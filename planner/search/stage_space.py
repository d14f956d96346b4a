"""The ways a stage may run on each device group of a cluster, legal and worth considering, with their prices.

For whoever searches plans whose stages differ:

* ``StageSpace.configs`` lists the configurations (``StageConfigs``), ``prices`` what their stages cost
  (``StagePrices``); both go straight into ``costmodels.stage_evaluate.evaluate_stages``.
* ``StageSpace.rows`` gives the configurations for a number of micro-batches on a group; stages of one plan have to
  agree in that number and in the samples of a micro-batch, which then follow from one another.
* ``StageSpace.counterpart`` leads from a configuration to the same one with another number of micro-batches.
* ``StageSpace.setting`` is what the rules of ``planner.stage_constraints`` look at.
* ``StageSpace.index_of`` finds configurations of plans from elsewhere, such as the best uniform plan, among these.

Legality is that of uniform pipelines: a configuration is legal if a framework accepts a pipeline of two such stages.
A stage takes whole scale-up domains, or an even share of one, so that stages of few devices never straddle domains.
Configurations are dropped if another on as many devices of the same group, or fewer, for the same micro-batches, is
nowhere worse: not in any time, not in any byte, for nothing that a stage may hold. No plan gets worse by that, unless
it recomputes other modules than attention cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.lowering.grouping import group_rows
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Recompute, Schedule, concatenate
from costmodels.stage_layers import layer_kinds
from costmodels.stage_plan import CONFIG_COLUMNS, StageConfigs
from costmodels.stage_prices import CONTENT_COLUMNS, MODULE_COLUMNS, WIDTH_COLUMNS, StagePrices
from planner.rules.base import Setting, divisors
from planner.space import plan_space
from planner.stage_constraints import StageSetting
from profiles.errors import SpecError
from profiles.model import ModelSpec

_COMPARED = 256  # configurations whose prices are compared at once; bounds memory
_LOOKED_AT_FIRST = 64  # prices that rule most pairs out
_PRUNED = 4000  # configurations up to which dominated ones are looked for unasked
_NOT_READ = (
    "pipeline_parallel", "virtual_stages", "schedule", "first_stage_layers", "last_stage_layers", "recompute",
    "recompute_layers", "recompute_modules", "offload_optimizer", "offload_activations", "offload_parameters",
    "data_parallel",
)  # fmt: skip
# Columns of ``StagePrices.unit`` that make no plan worse by being larger, or are the same for a whole group.
_LIMITS = (
    "usable_bytes", "host_bytes_per_s", "host_memory_bytes", "devices_per_node", "layer_open_low", "layer_open_high"
)  # fmt: skip
_HELPFUL = ("hidden_gathers", "hidden_reductions", "leaves")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpace:
    """Configurations of stages; see the module's docstring.

    Attributes:
        configs: K configurations, ordered by group, devices, and micro-batches.
        prices: What their stages cost.
        devices: Devices of each group.
        microbatches: (J,) numbers of micro-batches that some configuration has, ascending.
        counterpart: (K, J) the same configuration with each of these; -1 where there is none.
        considered: Configurations that were legal, dominated ones included.
    """

    configs: StageConfigs
    prices: StagePrices
    devices: tuple[int, ...]
    microbatches: IntArray
    counterpart: IntArray
    considered: int

    def __len__(self) -> int:
        return len(self.configs)

    @property
    def setting(self) -> StageSetting:
        """What rules on stages look at."""
        return StageSetting(model=self.prices.context.model, configs=self.configs, devices=self.devices)

    @property
    def max_stages(self) -> int:
        """No pipeline has more stages: a layer each, on the fewest devices a stage of each group takes."""
        least = [self.configs.num_devices[self.configs.group == group] for group in range(len(self.devices))]
        room = sum(
            devices // int(sizes.min()) for devices, sizes in zip(self.devices, least, strict=True) if len(sizes)
        )
        return min(room, self.prices.context.model.num_layers)

    def rows(self, num_microbatches: int, *, group: int | None = None) -> IntArray:
        """Configurations for a number of micro-batches, ascending; on one group, or on any."""
        chosen = self.configs.plans.num_microbatches == num_microbatches
        if group is not None:
            chosen = chosen & (self.configs.group == group)
        return np.flatnonzero(chosen)

    def index_of(self, configs: StageConfigs) -> IntArray:
        """(L,) rows of this space that say the same as other configurations; -1 where none does."""
        both = [np.concatenate(pair) for pair in zip(_key(self.configs), _key(configs), strict=True)]
        groups = group_rows(*both)
        place = np.full(int(groups.of_row.max(initial=-1)) + 1, -1)
        place[groups.of_row[: len(self)]] = np.arange(len(self))
        return place[groups.of_row[len(self) :]]


def stage_space(
    settings: Sequence[Setting],
    contexts: Sequence[CostContext],
    *,
    joint: Mapping[tuple[int, int], CostContext] | None = None,
    pins: Mapping[str, int] | None = None,
    max_stages: int = 64,
    prune: bool | None = None,
) -> StageSpace:
    """The configurations of stages on every device group.

    Args:
        settings: Model, job, framework and devices, one per group; they differ in devices only.
        contexts: What prices depend on, one per group.
        joint: Contexts of traffic between two groups, see ``StagePrices``.
        pins: Plan columns the user fixed; those of the whole pipeline are not read.
        max_stages: Stages so small that more of them would be needed to fill their group are not considered.
        prune: Whether to drop dominated configurations; if not said, where there are not too many to compare.

    Raises:
        SpecError: If what is pinned makes stages of every size illegal.
    """
    parts, refused = [], None
    for group, (setting, context) in enumerate(zip(settings, contexts, strict=True)):
        for size in stage_sizes(setting.num_devices, context.cluster.domain_devices, max_stages=max_stages):
            try:
                parts.append((group, _configs(setting, size, context.cluster.domain_devices, pins or {})))
            except SpecError as error:  # what is pinned may need more devices than this
                refused = error
    if not parts and refused is not None:
        raise refused
    configs = StageConfigs(
        plans=concatenate([plans for _, plans in parts]),
        group=np.concatenate([np.full(len(plans), group, dtype=np.int64) for group, plans in parts]),
    )
    order = np.lexsort((configs.plans.num_microbatches, configs.num_devices, configs.group))
    configs = _taken(configs, order)
    considered = len(configs)
    if considered <= _PRUNED if prune is None else prune:
        configs = _taken(configs, np.flatnonzero(~dominated(configs, contexts, joint or {})))
    prices = StagePrices(configs=configs, contexts=contexts, joint=joint or {})
    microbatches = np.unique(configs.plans.num_microbatches)
    return StageSpace(
        configs=configs,
        prices=prices,
        devices=tuple(setting.num_devices for setting in settings),
        microbatches=microbatches,
        counterpart=_counterparts(configs, microbatches),
        considered=considered,
    )


def stage_sizes(devices: int, domain_devices: int, *, max_stages: int) -> list[int]:
    """Devices that a stage may take: even shares of a scale-up domain, or so many whole ones.

    Args:
        devices: Devices of the group.
        domain_devices: Devices of a domain.
        max_stages: Sizes of which more stages than this would fit into the group are left out.
    """
    shares = divisors(domain_devices)
    domains = devices // domain_devices
    whole = [domain_devices * count for count in range(1, domains + 1) if _round(count, domains)]
    sizes = sorted({size for size in (*shares, *whole) if size <= devices})
    return [size for size in sizes if devices // size <= max_stages]


def _round(count: int, domains: int) -> bool:
    """Numbers of domains worth considering: that leave none over, powers of two, or few."""
    return domains % count == 0 or count & (count - 1) == 0 or count <= 8


def _configs(setting: Setting, size: int, domain_devices: int, pins: Mapping[str, int]) -> PlanBatch:
    """Distinct legal stages of so many devices, from uniform pipelines of two of them."""
    two = replace(setting, num_devices=2 * size)
    fixed = {
        **{name: value for name, value in pins.items() if name not in _NOT_READ},
        "pipeline_parallel": 2,
        "virtual_stages": 1,
        "schedule": int(Schedule.ONE_F_ONE_B),
        "recompute": int(Recompute.NONE),
    }
    plans = plan_space(two, domain_devices=domain_devices, pins=fixed).plans
    alike = group_rows(*(getattr(plans, name).astype(np.int64) for name in (*CONFIG_COLUMNS, "pipeline_parallel")))
    distinct = plans.take(alike.first)
    named = {name: getattr(distinct, name) for name in (*CONFIG_COLUMNS, "pipeline_parallel")}
    return PlanBatch.from_columns(len(alike.first), **named)


def _taken(configs: StageConfigs, rows: IntArray) -> StageConfigs:
    return StageConfigs(plans=configs.plans.take(rows), group=configs.group[rows])


def _key(configs: StageConfigs) -> list[IntArray]:
    """What makes configurations the same; of the stages of their pipelines, whether there are several."""
    columns = [getattr(configs.plans, name).astype(np.int64) for name in CONFIG_COLUMNS]
    return [configs.group, (configs.plans.pipeline_parallel > 1).astype(np.int64), *columns]


def _counterparts(configs: StageConfigs, microbatches: IntArray) -> IntArray:
    """(K, J) rows that differ in micro-batches only."""
    other = [name for name in CONFIG_COLUMNS if name not in ("micro_batch_size", "num_microbatches")]
    columns = [getattr(configs.plans, name).astype(np.int64) for name in other]
    alike = group_rows(configs.group, *columns)
    column = np.searchsorted(microbatches, configs.plans.num_microbatches)
    table = np.full((len(alike.first), len(microbatches)), -1, dtype=np.int64)
    table[alike.of_row, column] = np.arange(len(configs))
    return table[alike.of_row]


def dominated(
    configs: StageConfigs, contexts: Sequence[CostContext], joint: Mapping[tuple[int, int], CostContext]
) -> BoolArray:
    """(K,) whether another configuration, for the same micro-batches and group, is nowhere worse.

    Compared are devices and every column of the price tables, for every run of layers the model has.

    Args:
        configs: K configurations.
        contexts: What prices depend on, one per group.
        joint: Contexts of traffic between two groups.
    """
    found = np.zeros(len(configs), dtype=np.bool_)
    alike = group_rows(configs.group, configs.plans.num_microbatches, configs.samples)
    order = np.argsort(alike.of_row, kind="stable")
    classes = np.split(order, np.flatnonzero(np.diff(alike.of_row[order])) + 1) if len(order) else []
    while classes:
        several: list[IntArray] = []
        count = 0
        while classes and (not several or count + len(classes[0]) <= _COMPARED):
            count += len(classes[0])
            several.append(classes.pop(0))
        members = np.concatenate(several)
        prices = StagePrices(configs=_taken(configs, members), contexts=contexts, joint=joint)
        costs = np.split(_cost_table(prices), np.cumsum([len(each) for each in several])[:-1])
        for rows, table in zip(several, costs, strict=True):
            found[rows] = _beaten(table)
    return found


def _beaten(table: FloatArray) -> BoolArray:
    """(K,) rows that another row is nowhere above; of equal rows all but the first."""
    found = np.zeros(len(table), dtype=np.bool_)
    some = np.ascontiguousarray(table[:, :: max(table.shape[1] // _LOOKED_AT_FIRST, 1)])
    for place in range(len(table)):
        near = np.flatnonzero((some <= some[place]).all(axis=1))  # includes itself
        near = near[near != place]
        no_worse = near[(table[near] <= table[place]).all(axis=1)]
        equal = (table[no_worse] >= table[place]).all(axis=1)
        found[place] = bool((~equal).any() or (no_worse[equal] < place).any())
    return found


def _cost_table(prices: StagePrices) -> FloatArray:
    """(K, columns) all that a plan pays for a stage: smaller is never worse."""
    configs, model = prices.configs, prices.context.model
    groups = len(prices.contexts)
    columns = [1.0 * configs.num_devices]
    for crossing_s in (prices.transfer_s, prices.shared_s):
        columns += [*crossing_s.reshape(len(configs), groups).T]
    for name, values in prices.unit.items():
        if name in _HELPFUL:
            columns.append(-values)
        elif name not in _LIMITS and (name not in MODULE_COLUMNS or "core_attn" in name):
            columns.append(values)
    for moe in layer_kinds(model):  # what selective recomputation leaves
        kind = "moe" if moe else "dense"
        columns.append(prices.unit[f"{kind}_whole_bytes"] - prices.unit[f"{kind}_core_attn_bytes"])
    dense, moe_layers, embedding, head = (column[:, None] for column in stage_contents(model))
    rows = prices.rows(
        np.arange(len(configs)) + 0 * dense,
        dense=dense + np.zeros(len(configs), dtype=np.int64),
        moe=moe_layers,
        has_embedding=embedding > 0,
        has_head=head > 0,
    )
    compared = [number for number, name in enumerate(CONTENT_COLUMNS) if name not in WIDTH_COLUMNS]
    content = prices.content[compared][:, rows].transpose(2, 0, 1).reshape(len(configs), -1)
    return np.concatenate([np.column_stack(columns), content], axis=1)


def stage_contents(model: ModelSpec) -> IntArray:
    """(4, C) everything a stage may hold: dense and MoE layers of a run, and whether the ends of the model."""
    before = np.concatenate([[0], np.cumsum(model.layer_is_moe)])
    start, end = np.triu_indices(model.num_layers + 1, k=1)
    moe = before[end] - before[start]
    columns = np.stack([end - start - moe, moe, start == 0, end == model.num_layers])
    return np.unique(columns, axis=1)
