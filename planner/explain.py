"""Why a plan looks as it does: what dominates its time and memory, and what its nearest rivals trade."""

from collections.abc import Mapping

import numpy as np

from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch
from planner.ranking import Priced, best_rows
from planner.results import Explanation, PlanEstimate, Rival, Share

# Dimensions a user decides about; each gets its best alternative.
DIMENSIONS = (
    "tensor_parallel",
    "pipeline_parallel",
    "context_parallel",
    "expert_parallel",
    "virtual_stages",
    "schedule",
    "zero_stage",
    "zero_shard_degree",
    "micro_batch_size",
    "recompute",
    "sequence_parallel",
    "axis_order",
    "offload_optimizer",
    "num_devices",
)
# Dimensions whose other values a user would rather have, if only they fitted.
_WISHES = ("recompute", "micro_batch_size", "zero_stage", "offload_optimizer")
_NOTICEABLE = 0.005  # a wish must promise more than this share of the step
_COMPARED = [name for name in PlanBatch.__dataclass_fields__ if name != "stage_layers"]


def explain(best: PlanEstimate, priced: Priced) -> Explanation:
    """Explain a plan against every other plan that was priced.

    Args:
        best: The plan to explain.
        priced: All plans of the search it came from.
    """
    return Explanation(
        time=shares(best.time_parts_s),
        memory=shares(best.fullest_stage.memory_parts_bytes),
        rivals=_rivals(best, priced),
    )


def shares(parts: Mapping[str, float]) -> tuple[Share, ...]:
    """Parts of a whole, largest first; parts of nothing left out."""
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return tuple(Share(part=name, value=value, share=value / total) for name, value in ordered if value > 0)


def _rivals(best: PlanEstimate, priced: Priced) -> tuple[Rival, ...]:
    """The best alternative per dimension, and what would be faster if it fitted; each plan once."""
    rivals: dict[ExecutionPlan, Rival] = {}
    for dimension in DIMENSIONS:
        differs = _column(priced, dimension) != _value(best.plan, dimension)
        rows = best_rows(priced, objective="step_time", count=1, among=differs & priced.fits)
        if dimension in _WISHES and best.fits:
            quicker = priced.step_time_s < best.step_time_s * (1 - _NOTICEABLE)
            wishes = differs & ~priced.fits & quicker & _same_elsewhere(best.plan, priced.plans, dimension)
            rows = np.append(rows, best_rows(priced, objective="memory_headroom", count=1, among=wishes))
        for row in rows:
            rival = _rival(best, priced, dimension, int(row))
            rivals.setdefault(rival.plan, rival)
    return tuple(sorted(rivals.values(), key=lambda rival: rival.step_time_ratio))


def _column(priced: Priced, dimension: str) -> np.ndarray:
    values: np.ndarray = priced.num_devices if dimension == "num_devices" else getattr(priced.plans, dimension)
    return values


def _value(plan: ExecutionPlan, dimension: str) -> int:
    return int(getattr(plan, dimension))


def _rival(best: PlanEstimate, priced: Priced, dimension: str, row: int) -> Rival:
    plan = priced.plans.plan(row)
    return Rival(
        dimension=dimension,
        plan=plan,
        changes={
            name: (_value(best.plan, name), _value(plan, name))
            for name in _COMPARED
            if _value(best.plan, name) != _value(plan, name)
        },
        step_time_ratio=float(priced.step_time_s[row]) / best.step_time_s,
        peak_memory_difference_bytes=float(priced.peak_memory_bytes[row]) - best.peak_memory_bytes,
        fits=bool(priced.fits[row]),
    )


# What a wish may change besides its own dimension.
_FOLLOWS = {
    "micro_batch_size": ("num_microbatches",),
    "recompute": ("recompute_layers",),
    "zero_stage": ("overlap_param_gather", "zero_shard_degree"),
}


def _same_elsewhere(plan: ExecutionPlan, plans: PlanBatch, dimension: str) -> BoolArray:
    """Plans that agree with ``plan`` in everything but one dimension and what follows from it."""
    same = np.ones(len(plans), dtype=np.bool_)
    for name in _COMPARED:
        if name != dimension and name not in _FOLLOWS.get(dimension, ()):
            same &= getattr(plans, name) == _value(plan, name)
    return same
