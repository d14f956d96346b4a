"""The ways a stage may run on each device group of a cluster, legal, with their prices.

For whoever searches plans whose stages differ:

* ``StageSpace.configs`` lists the configurations (``StageConfigs``), ``prices`` what their stages cost
  (``StagePrices``); both go straight into ``costmodels.stage_plans.evaluate.evaluate_stages``.
* ``StageSpace.rows`` gives the configurations for a number of micro-batches on a group; stages of one plan have to
  agree in that number and in the samples of a micro-batch, which then follow from one another.
* ``StageSpace.setting`` is what the rules of ``planner.space.stage_constraints`` look at.
* ``StageSpace.index_of`` finds configurations of plans from elsewhere, such as the best uniform plan, among these.

Legality is that of uniform pipelines: a configuration is legal if a framework accepts a pipeline of two such stages.
A stage takes whole scale-up domains, or an even share of one, so that stages of few devices never straddle domains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.lowering.grouping import group_rows
from costmodels.plan import OFFLOADS, RECOMPUTES, IntArray, PlanBatch, Recompute, Schedule, concatenate
from costmodels.stage_plans.plan import CONFIG_COLUMNS, StageConfigs
from costmodels.stage_plans.prices import StagePrices
from planner.rules.base import Setting, divisors
from planner.space.enumeration import plan_space
from planner.space.stage_constraints import StageSetting
from profiles.errors import SpecError

_NOT_READ = (
    *("pipeline_parallel", "virtual_stages", "schedule", "first_stage_layers", "last_stage_layers", "data_parallel"),
    *RECOMPUTES,
    *OFFLOADS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpace:
    """Configurations of stages; see the module's docstring.

    Attributes:
        configs: K configurations, ordered by group, devices, and micro-batches.
        prices: What their stages cost.
        devices: Devices of each group.
        microbatches: (J,) numbers of micro-batches that some configuration has, ascending.
    """

    configs: StageConfigs
    prices: StagePrices
    devices: tuple[int, ...]
    microbatches: IntArray

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
    offload: bool = False,
    max_stages: int = 64,
) -> StageSpace:
    """The configurations of stages on every device group.

    Args:
        settings: Model, job, framework and devices, one per group; they differ in devices only.
        contexts: What prices depend on, one per group.
        joint: Contexts of traffic between two groups, see ``StagePrices``.
        pins: Plan columns the user fixed; those of the whole pipeline are not read.
        offload: Whether stages may be told to have the optimizer on the host.
        max_stages: Stages so small that more of them would be needed to fill their group are not considered.

    Raises:
        SpecError: If what is pinned makes stages of every size illegal.
    """
    parts, refused = [], None
    for group, (setting, context) in enumerate(zip(settings, contexts, strict=True)):
        for size in stage_sizes(setting.num_devices, context.cluster.domain_devices, max_stages=max_stages):
            try:
                domain = context.cluster.domain_devices
                parts.append((group, _configs(setting, size, domain, pins or {}, offload=offload)))
            except SpecError as error:  # what is pinned may need more devices than this
                refused = error
    if not parts and refused is not None:
        raise refused
    configs = StageConfigs(
        plans=concatenate([plans for _, plans in parts]),
        group=np.concatenate([np.full(len(plans), group, dtype=np.int64) for group, plans in parts]),
    )
    order = np.lexsort((configs.plans.num_microbatches, configs.num_devices, configs.group))
    configs = StageConfigs(plans=configs.plans.take(order), group=configs.group[order])
    prices = StagePrices(configs=configs, contexts=contexts, joint=joint or {})
    return StageSpace(
        configs=configs,
        prices=prices,
        devices=tuple(setting.num_devices for setting in settings),
        microbatches=np.unique(configs.plans.num_microbatches),
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


def _configs(setting: Setting, size: int, domain_devices: int, pins: Mapping[str, int], *, offload: bool) -> PlanBatch:
    """Distinct legal stages of so many devices, from uniform pipelines of two of them."""
    two = replace(setting, num_devices=2 * size)
    fixed = {
        **{name: value for name, value in pins.items() if name not in _NOT_READ},
        "pipeline_parallel": 2,
        "virtual_stages": 1,
        "schedule": int(Schedule.ONE_F_ONE_B),
        "recompute": int(Recompute.NONE),
    }
    plans = plan_space(two, domain_devices=domain_devices, pins=fixed, lone_shards=offload).plans
    alike = group_rows(*(getattr(plans, name).astype(np.int64) for name in (*CONFIG_COLUMNS, "pipeline_parallel")))
    distinct = plans.take(alike.first)
    named = {name: getattr(distinct, name) for name in (*CONFIG_COLUMNS, "pipeline_parallel")}
    return PlanBatch.from_columns(len(alike.first), **named)


def _key(configs: StageConfigs) -> list[IntArray]:
    """What makes configurations the same; of the stages of their pipelines, whether there are several."""
    columns = [getattr(configs.plans, name).astype(np.int64) for name in CONFIG_COLUMNS]
    return [configs.group, (configs.plans.pipeline_parallel > 1).astype(np.int64), *columns]
