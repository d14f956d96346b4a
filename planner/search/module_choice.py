"""Which sets of modules are worth recomputing: what they take and drop, under the configurations of a family."""

from dataclasses import replace

import numpy as np

from costmodels.plan import FloatArray, RecomputeModule
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.layers import layer_kinds
from planner.rules.base import mask
from planner.search.families import Family
from planner.search.freedom import Freedom


def set_cost(unit: dict[str, FloatArray], modules: int, kind: str, column: str) -> FloatArray:
    """(C,) what recomputing a set of modules in a layer of a kind takes (``s``) or drops (``bytes``)."""
    names = [f"{kind}_{module.name}_{column}".lower() for module in RecomputeModule if modules & module]
    found: FloatArray = np.sum([unit[name] for name in names], axis=0)
    return found


def worthwhile(family: Family, prices: StagePrices, freedom: Freedom) -> Freedom:
    """Without sets of modules that drop nothing, or that another set beats: it drops as much in as little time.

    A set that drops more never needs more memory: what one layer brings back is less than what it dropped.

    Args:
        family: Whose configurations count: a set has to be beaten on all of them.
        prices: Their prices.
        freedom: The sets there are.
    """
    unit = {name: column[family.configs] for name, column in prices.unit.items()}
    kinds = ["moe" if moe else "dense" for moe in layer_kinds(prices.context.model)]
    dropped, again_s = (
        np.stack([np.concatenate([set_cost(unit, some, kind, of) for kind in kinds]) for some in freedom.modules])
        for of in ("bytes", "s")
    )
    helps = mask(dropped.any(axis=1))
    # [i, j]: set j is no worse than set i; of equal ones the first stays
    no_worse = (dropped[None] >= dropped[:, None]).all(axis=2) & (again_s[None] <= again_s[:, None]).all(axis=2)
    beaten = (no_worse & ~no_worse.T) | (no_worse & np.tri(len(helps), k=-1, dtype=np.bool_))
    kept = np.flatnonzero(helps & ~beaten.any(axis=1))
    if not len(kept):
        return replace(freedom, selective=False)
    return replace(freedom, modules=tuple(freedom.modules[at] for at in kept))
