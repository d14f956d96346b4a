"""Settings of a framework that are off unless asked for: how fast the best plan would be with each of them on.

A stack that differs from another only by such settings says what turns them on (``StackSpec.switched_on_by``). So far
they are Megatron-Core's ways to exchange tokens with experts; plans that do not spread experts have nothing to gain.
"""

from dataclasses import fields, replace

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import IntArray
from planner.answer.pricing import price_contenders
from planner.answer.risks import with_likely
from planner.question.request import cost_context, part_of, setting_of
from planner.ranking import Priced, best_rows
from planner.results import PlanEstimate, Request, Switch
from planner.space.constraints import legal
from profiles.stack import StackSpec
from profiles.stacks import load_stacks

# What a setting is likely to reorder: of plans alike in these the fastest stand for all.
_ALIKE = (
    *("num_devices", "tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"),
    *("expert_tensor_parallel", "virtual_stages", "recompute"),
)
_FASTEST = 4
_SLOWEST = 2.0  # steps of the best plan, at most: no setting makes up for more
_EXCHANGED = 0.02  # share of the step that exchanges take from which other ways to exchange are looked at
_DISPATCHES = ("hopper", "blackwell")  # generations that HybridEP runs on (megatron/core/transformer/moe/README.md)
_NOTICEABLE = 0.01  # least share of the step that a setting must save to be told


def switches(request: Request, best: PlanEstimate, priced: Priced) -> tuple[Switch, ...]:
    """Settings that would make the best plan at least a little faster, the fastest first.

    Args:
        request: The question.
        best: The plan that answers it.
        priced: All plans it was chosen from.
    """
    if best.plan.expert_parallel == 1 or not best.fits or request.objective == "memory_headroom":
        return ()  # of the last, the best plan is not the fastest, and no setting is what another gains over it
    if best.communication_total_s.get("expert_parallel", 0.0) < _EXCHANGED * best.step_time_s:
        return ()
    found = []
    cluster = part_of(request.cluster, best.num_devices)
    contenders = priced.plans.take(_contenders(priced))
    contenders = contenders.take(np.flatnonzero(contenders.num_devices == best.num_devices))
    newer = request.cluster.device.architecture.startswith(_DISPATCHES)
    for stack in _others(request.stack, request.job.task):
        if stack.sends_tokens_once and not newer:
            continue
        there = replace(request, stack=stack)
        plans = contenders.take(np.flatnonzero(legal(contenders, setting_of(there, cluster))))
        if not len(plans):
            continue
        context = cost_context(there, cluster)
        again = with_likely(price_contenders(plans, context), context, request.max_oom_risk)
        for row in best_rows(again, objective="step_time", count=1):
            ratio = float(again.step_time_s[row]) / best.step_time_s
            if ratio < 1 - _NOTICEABLE:
                found.append(
                    Switch(
                        framework=stack.name,
                        switched_on_by=stack.switched_on_by,
                        plan=again.plans.plan(int(row)),
                        step_time_s=float(again.step_time_s[row]),
                        step_time_ratio=ratio,
                    )
                )
    return tuple(sorted(found, key=lambda item: item.step_time_ratio))


def _others(stack: StackSpec, task: str) -> list[StackSpec]:
    """Stacks with more settings turned on, and whatever was fitted to one's own runs of this one."""
    packaged = load_stacks(task)
    usual = packaged.get(stack.name)
    if usual is None or (usual.shares_time_with and not usual.switched_on_by):  # of another time, or way of training
        return []
    root, on = usual.shares_time_with or usual.name, set(usual.switched_on_by.split())
    own = {item.name: getattr(stack, item.name) for item in fields(StackSpec)}
    own = {name: value for name, value in own.items() if value != getattr(usual, name)}
    return [
        replace(other, **own)
        for other in packaged.values()
        if other.shares_time_with == root and on < set(other.switched_on_by.split())
    ]


def _contenders(priced: Priced) -> IntArray:
    """Rows of the fastest plans that are ranked, of every kind."""
    near = priced.ranked & (priced.step_time_s <= _SLOWEST * priced.step_time_s[priced.ranked].min())
    rows = np.flatnonzero(near)
    kind = group_rows(*(np.asarray(getattr(priced.plans, name))[rows] for name in _ALIKE)).of_row
    order = np.lexsort((priced.step_time_s[rows], kind))
    starts = np.diff(kind[order], prepend=-1) > 0
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    return rows[order[np.arange(len(order)) - first < _FASTEST]]
