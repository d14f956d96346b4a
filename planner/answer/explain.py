"""Why a plan looks as it does: what dominates its time and memory, and what its nearest rivals trade."""

from collections.abc import Callable, Mapping

import numpy as np

from costmodels.plan import PLAN_COLUMNS, BoolArray, ExecutionPlan, IntArray, PlanBatch
from planner.phrases import changed_fields
from planner.ranking import Priced, best_rows
from planner.results import Explanation, PlanEstimate, Rival, Share
from planner.rules.base import DEGREES

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
    "offload_parameters",
    "num_devices",
)
# Dimensions whose other values a user would rather have, if only they fitted.
_WISHES = ("recompute", "micro_batch_size", "zero_stage", "offload_optimizer", "offload_parameters")
_SAME = 0.0005  # relative differences below this are not told
_NOTICEABLE = 0.005  # a wish must promise more than this share of the step


def explain(best: PlanEstimate, priced: Priced, *, objective: str) -> Explanation:
    """Explain a plan against every other plan that was priced.

    Args:
        best: The plan to explain.
        priced: All plans of the search it came from.
        objective: What the search was after; rivals are the best by it.
    """
    return Explanation(
        time=shares(best.time_parts_s),
        memory=shares(best.fullest_stage.memory_parts_bytes),
        rivals=_rivals(best, priced, objective) if len(priced) > 1 else (),
    )


def shares(parts: Mapping[str, float]) -> tuple[Share, ...]:
    """Parts of a whole, largest first; parts of nothing left out."""
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return tuple(Share(part=name, value=value, share=value / total) for name, value in ordered if value > 0)


def _rivals(best: PlanEstimate, priced: Priced, objective: str) -> tuple[Rival, ...]:
    """The best alternative per dimension, and what would be faster if it fitted for sure; each plan once."""
    rivals: dict[ExecutionPlan, Rival] = {}
    quicker = priced.step_time_s < best.step_time_s * (1 - _NOTICEABLE)
    wished = wished_rows(best.plan, priced) if best.fits else {}
    for dimension in DIMENSIONS:
        differs = _column(priced, dimension) != _value(best.plan, dimension)
        rows = best_rows(priced, objective=objective, count=1, among=differs & priced.ranked)
        if dimension in wished:
            wishes = np.zeros(len(priced), dtype=np.bool_)
            wishes[wished[dimension]] = True
            wishes &= quicker
            rows = np.append(rows, best_rows(priced, objective="memory_headroom", count=1, among=wishes))
        for row in rows:
            rival = _rival(best, priced, dimension, int(row))
            if _trades(best, rival):
                rivals.setdefault(rival.plan, rival)
    return tuple(sorted(rivals.values(), key=_RIVAL_ORDER.get(objective, _RIVAL_ORDER["step_time"])))


def wished_rows(plan: ExecutionPlan, priced: Priced) -> dict[str, IntArray]:
    """Per dimension that users would rather have otherwise, the rows that differ in it alone and are not ranked."""
    near = ~priced.ranked
    for name in DEGREES:
        near &= getattr(priced.plans, name) == _value(plan, name)
    rows = np.flatnonzero(near)
    plans = priced.plans.take(rows)
    found = {}
    for name in _WISHES:
        differs = getattr(plans, name) != _value(plan, name)
        found[name] = rows[differs & _same_elsewhere(plan, plans, name)]
    return found


_RIVAL_ORDER: dict[str, Callable[[Rival], float]] = {
    "step_time": lambda rival: rival.step_time_ratio,
    "cost": lambda rival: rival.device_seconds_ratio,
    "memory_headroom": lambda rival: rival.peak_memory_difference_bytes,
}


def _trades(best: PlanEstimate, rival: Rival) -> bool:
    """Whether a rival is worth telling: it takes another time or another amount of memory."""
    memory = abs(rival.peak_memory_difference_bytes) > _SAME * best.peak_memory_bytes
    return abs(rival.step_time_ratio - 1) > _SAME or memory


def _column(priced: Priced, dimension: str) -> np.ndarray:
    values: np.ndarray = priced.num_devices if dimension == "num_devices" else getattr(priced.plans, dimension)
    return values


def _value(plan: ExecutionPlan, dimension: str) -> int:
    return int(getattr(plan, dimension))


def _rival(best: PlanEstimate, priced: Priced, dimension: str, row: int) -> Rival:
    plan = priced.plans.plan(row)
    ratio = float(priced.step_time_s[row]) / best.step_time_s
    return Rival(
        dimension=dimension,
        plan=plan,
        changes=changed_fields(best.plan, plan),
        step_time_ratio=ratio,
        device_seconds_ratio=ratio * plan.num_devices / best.num_devices,
        peak_memory_difference_bytes=float(priced.peak_memory_bytes[row]) - best.peak_memory_bytes,
        fits=bool(priced.fits[row]),
        ranked=bool(priced.ranked[row]),
    )


# What a wish may change besides its own dimension.
_FOLLOWS = {
    "micro_batch_size": ("num_microbatches",),
    "recompute": ("recompute_layers", "recompute_modules"),
    "zero_stage": ("overlap_param_gather", "zero_shard_degree"),
}


def _same_elsewhere(plan: ExecutionPlan, plans: PlanBatch, dimension: str) -> BoolArray:
    """Plans that agree with ``plan`` in everything but one dimension and what follows from it."""
    same = np.ones(len(plans), dtype=np.bool_)
    for name in PLAN_COLUMNS:
        if name != dimension and name not in _FOLLOWS.get(dimension, ()):
            same &= getattr(plans, name) == _value(plan, name)
    return same
