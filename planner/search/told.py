"""What a framework can be told of a pipeline besides how many layers each stage has: the same for all stages."""

from dataclasses import replace
from itertools import product

import numpy as np

from costmodels.plan import PlanBatch, Recompute
from costmodels.stage_plans.plan import CONFIG_COLUMNS, OFFLOAD_PARTS, StageConfigs
from planner.rules.base import MEGATRON, Setting
from planner.rules.modules import CORE
from planner.search.families import Family
from planner.search.freedom import Freedom, Treatment
from planner.space.stage_constraints import uniform_broken


def told_freedoms(family: Family, configs: StageConfigs, setting: Setting, freedom: Freedom) -> tuple[Freedom, ...]:
    """Everything that the stages of a family may be told, each by itself; what takes least time comes first.

    Args:
        family: Its stages share one configuration, on whatever devices.
        configs: What it refers to.
        setting: The framework, the model and the job.
        freedom: What may be recomputed and offloaded at all.
    """
    treatments = _treatments(-(-setting.model.num_layers // family.num_stages), setting.framework, freedom)
    legal = np.ones(len(treatments), dtype=np.bool_)
    for broken in uniform_broken(_as_plans(family, configs, treatments, setting.model.num_layers), setting).values():
        legal &= ~broken
    return tuple(replace(freedom, told=treatments[at]) for at in np.flatnonzero(legal))


def _treatments(most: int, framework: str, freedom: Freedom) -> list[Treatment]:
    """What stages of ``most`` layers, where these are even, may be told."""
    modes = [(Recompute.NONE, 0, CORE)]
    if freedom.selective:
        modes += [(Recompute.SELECTIVE, 0, modules) for modules in freedom.modules]
    if freedom.full:
        modes += [(Recompute.BLOCK, layers, CORE) for layers in range(1, most + 1)] + [(Recompute.FULL, 0, CORE)]
    eighths = freedom.shares if framework == MEGATRON else (0, OFFLOAD_PARTS)
    offloads = list(product(eighths, (0, OFFLOAD_PARTS), (False, True))) if freedom.offload else [(0, 0, False)]
    return [
        Treatment(
            recompute=mode,
            block=block,
            modules=modules,
            optimizer_offload=share,
            parameter_offload=weights,
            offload_activations=activations,
        )
        for share, weights, activations in offloads
        for mode, block, modules in modes
    ]


def _as_plans(family: Family, configs: StageConfigs, treatments: list[Treatment], num_layers: int) -> PlanBatch:
    """The family, treated in each of these ways, as uniform plans with layers laid out by hand, here evenly."""
    size, stages = len(treatments), family.num_stages
    even = num_layers // stages + (np.arange(stages) < num_layers % stages)
    return PlanBatch.from_columns(
        size,
        **{name: getattr(configs.plans, name)[family.configs[0]] for name in CONFIG_COLUMNS},
        pipeline_parallel=stages,
        schedule=int(family.schedule),
        virtual_stages=family.virtual_stages,
        recompute=[int(each.recompute) for each in treatments],
        recompute_layers=[each.block for each in treatments],
        recompute_modules=[each.modules for each in treatments],
        offload_optimizer=[each.optimizer_offload > 0 for each in treatments],
        offload_activations=[each.offload_activations for each in treatments],
        offload_parameters=[each.parameter_offload > 0 for each in treatments],
        stage_layers=np.tile(even, (size, 1)),
    )
