"""Every legal plan of a space priced, chunk by chunk, keeping what ranking needs."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from costmodels.context import CostContext
from costmodels.evaluate import Peaks, outcomes
from costmodels.plan import PlanBatch, concatenate
from costmodels.step.layer_costs import LayerCosts, layer_costs
from planner.answer.bounded_peaks import CHUNK_ROWS, BoundedPeaks
from planner.ranking import Priced, nearest_row, nearest_rows
from profiles.hardware import NodeSpec


def price_all(plans: PlanBatch, context: CostContext) -> Priced:
    """Price every plan of a space.

    Args:
        plans: N legal plans.
        context: Model, cluster, job, stack and price lists.

    Returns:
        The plans with step time, memory and feasibility, in the same order.
    """
    total = len(plans)
    step_time_s, peak_bytes, host_bytes = np.empty(total), np.empty(total), np.empty(total)
    fits = np.empty(total, dtype=np.bool_)
    costs = None
    for start in range(0, total, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, total))
        estimate = outcomes(plans.take(rows), context)
        step_time_s[rows] = estimate.step_time_s
        peak_bytes[rows] = estimate.peak_memory_bytes
        host_bytes[rows] = estimate.host_memory_bytes
        fits[rows] = estimate.fits
        if len(estimate.step_time_s) == total:
            costs = estimate.costs
    return Priced(
        plans=plans,
        step_time_s=step_time_s,
        peak_memory_bytes=peak_bytes,
        host_memory_bytes=host_bytes,
        fits=fits,
        costs=costs,
    )


def price_fitting(plans: PlanBatch, context: CostContext) -> Priced:
    """The same as ``price_all``; of many plans those that do not fit are not timed: their steps are infinite.

    Nor is the memory known of those that cannot fit whatever they recompute: theirs is infinite, too, unless nothing
    fits and they may be what comes nearest.
    """
    if len(plans) <= CHUNK_ROWS:
        return price_all(plans, context)
    needs = BoundedPeaks.of(plans, context).of_contenders()
    rows, step_time_s = np.flatnonzero(needs.fits), np.full(len(plans), np.inf)
    step_time_s[rows] = timed(plans.take(rows), needs.take(rows), context).step_time_s
    return Priced(
        plans=plans,
        step_time_s=step_time_s,
        peak_memory_bytes=needs.peak_memory_bytes,
        host_memory_bytes=needs.host_memory_bytes,
        fits=needs.fits,
    )


def timed(plans: PlanBatch, needs: Peaks, context: CostContext, costs: LayerCosts | None = None) -> Priced:
    """Plans whose memory is known, with their steps; blocks of all are priced at once, since they share most.

    Args:
        plans: The plans.
        needs: Their memory.
        context: Model, cluster, job, stack and price lists.
        costs: Their blocks, if the caller has priced them.
    """
    costs = layer_costs(plans, context) if costs is None else costs
    chunks = [np.arange(at, min(at + CHUNK_ROWS, len(plans))) for at in range(0, len(plans), CHUNK_ROWS)]
    steps_s = [
        outcomes(plans.take(rows), context, needs=needs.take(rows), costs=costs.take(rows)).step_time_s
        for rows in chunks
    ]
    return Priced(
        plans=plans,
        step_time_s=np.concatenate([np.zeros(0), *steps_s]),
        peak_memory_bytes=needs.peak_memory_bytes,
        host_memory_bytes=needs.host_memory_bytes,
        fits=needs.fits,
        costs=costs,
    )


def blocks_of_one(plans: PlanBatch, context: CostContext) -> LayerCosts:
    """The priced blocks of a single plan; those of the last questions are remembered.

    Plans of one job that differ in stages, sharding or recomputation share them.

    Args:
        plans: One plan.
        context: Model, cluster, job, stack and price lists; all of it hashable, as ``request.cost_context`` makes it.
    """
    return _blocks(context, tuple(int(getattr(plans, name)[0]) for name in _OF_BLOCKS))


# Columns on which the blocks of a plan depend.
_OF_BLOCKS = (
    *("micro_batch_size", "tensor_parallel", "context_parallel", "context_kind", "sequence_parallel"),
    *("tensor_parallel_overlap", "expert_parallel", "expert_tensor_parallel", "zero_stage"),
)


@lru_cache(maxsize=1024)  # about 10 kB each
def _blocks(context: CostContext, values: tuple[int, ...]) -> LayerCosts:
    return layer_costs(PlanBatch.from_columns(1, **dict(zip(_OF_BLOCKS, values, strict=True))), context)


def price_contenders(plans: PlanBatch, context: CostContext) -> Priced:
    """Of a space those plans priced that fit, or, where none does, those that come nearest.

    What is never ranked is not priced: memory alone is known at a fraction of the cost.

    Args:
        plans: N legal plans, at least one.
        context: Model, cluster, job, stack and price lists.
    """
    return timed_contenders(BoundedPeaks.of(plans, context))


def timed_contenders(bounded: BoundedPeaks) -> Priced:
    """The same of plans some of which were looked at before."""
    needs, context = bounded.of_contenders(), bounded.context
    kept = needs.fits
    if not kept.any():
        kept = nearest_rows(
            needs.peak_memory_bytes,
            needs.host_memory_bytes,
            usable_bytes=context.cluster.device.usable_memory_bytes,
            host_bytes=context.cluster.node.host_memory_bytes,
        )
    rows = np.flatnonzero(kept)
    return timed(bounded.plans.take(rows), needs.take(rows), context)


def nearest_to_fit(priced: Priced, node: NodeSpec) -> int:
    """The row that oversteps the memory of such nodes least, for when nothing fits."""
    device = node.device
    return nearest_row(priced, usable_bytes=device.usable_memory_bytes, host_bytes=node.host_memory_bytes)


def memory_rejections(priced: Priced, context: CostContext) -> dict[str, int]:
    """How many legal plans device memory, and host memory alone, rule out."""
    device = priced.peak_memory_bytes > context.cluster.device.usable_memory_bytes
    host = ~priced.fits & ~device
    counts = {"out_of_memory": int(device.sum()), "out_of_host_memory": int(host.sum())}
    return {name: count for name, count in counts.items() if count}


def join(parts: list[Priced]) -> Priced:
    """Priced plans of several searches as one, in order; likely are those that are so by the strictest bound met."""
    if len(parts) == 1:
        return parts[0]
    below = min((part.likely_below for part in parts if part.likely_any), default=parts[0].likely_below)
    counted = [part if part.likely_below <= below else replace(part, likely=np.zeros_like(part.fits)) for part in parts]
    return Priced(
        plans=concatenate([part.plans for part in parts]),
        step_time_s=np.concatenate([part.step_time_s for part in parts]),
        peak_memory_bytes=np.concatenate([part.peak_memory_bytes for part in parts]),
        host_memory_bytes=np.concatenate([part.host_memory_bytes for part in parts]),
        fits=np.concatenate([part.fits for part in parts]),
        likely=np.concatenate([part.fits if part.likely is None else part.likely for part in counted]),
        likely_below=below,
    )
