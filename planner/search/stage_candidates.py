"""Shapes: the ways of ``stage_space`` to run a stage, seen apart from the micro-batch.

All stages of a plan process the same samples per micro-batch, so that a shape and a number of samples name
one configuration, or none; a search can then change either and keep the other.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import IntArray
from costmodels.stage_plans.plan import CONFIG_COLUMNS, StageConfigs
from planner.search.stage_space import StageSpace
from profiles.errors import SpecError

_SHAPE_COLUMNS = tuple(name for name in CONFIG_COLUMNS if name not in ("micro_batch_size", "num_microbatches"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageChoices:
    """Shapes and configurations.

    Attributes:
        configs: K configurations.
        samples: (M,) samples per micro-batch over all data-parallel ranks, ascending.
        num_microbatches: (M,) micro-batches per step for each.
        table: (H, M) configuration of a shape at so many samples; -1 where there is none.
        group: (H,) device group of each shape.
        devices: (H,) devices of a stage of each shape.
        capacity: (G,) devices of each group.
    """

    configs: StageConfigs
    samples: IntArray
    num_microbatches: IntArray
    table: IntArray
    group: IntArray
    devices: IntArray
    capacity: IntArray

    @property
    def first(self) -> IntArray:
        """(H,) one configuration of each shape, for what does not depend on the micro-batch."""
        rows: IntArray = self.table.max(axis=1)
        return rows


def stage_choices(space: StageSpace) -> StageChoices:
    """The configurations of a space as shapes, sorted by group and devices, so that alike ones are neighbours.

    Raises:
        SpecError: If there is no configuration.
    """
    configs, plans = space.configs, space.configs.plans
    if not len(configs):
        raise SpecError("plan", "no pipeline is legal on this cluster", "planner plan looks at plans without one")
    keys = [configs.group, configs.num_devices, *(getattr(plans, name) for name in _SHAPE_COLUMNS)]
    table = np.stack([np.asarray(key, dtype=np.int64) for key in keys])
    shapes, of_config = np.unique(table, axis=1, return_inverse=True)
    samples, column = np.unique(configs.samples, return_inverse=True)
    rows = np.full((shapes.shape[1], len(samples)), -1)
    rows[of_config.reshape(-1), column.reshape(-1)] = np.arange(len(configs))
    return StageChoices(
        configs=configs,
        samples=samples,
        num_microbatches=space.prices.context.job.global_batch_size // samples,
        table=rows,
        group=shapes[0],
        devices=shapes[1],
        capacity=np.asarray(space.devices, dtype=np.int64),
    )
