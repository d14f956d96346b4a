"""A plan's timeline as Chrome trace events, which Perfetto (https://ui.perfetto.dev) opens: one track per GPU.

Format: the JSON object form of the Trace Event Format; complete events, times in microseconds.
"""

from collections.abc import Sequence
from typing import Any

from planner.dataflow.flow.results import FlowPlan, Task

MOST_EVENTS = 500_000
_MICROSECONDS = 1e6


def trace_document(plan: FlowPlan, *, node_of: Sequence[int]) -> dict[str, Any]:
    """The timeline as plain data, ready for JSON.

    Args:
        plan: The plan.
        node_of: Node of each GPU. Nodes are shown as processes, their GPUs as threads.

    Returns:
        ``traceEvents``. A plan with more GPU intervals than can be drawn shows the first GPU of every group of
        GPUs that do the same.
    """
    gpus = _shown(plan)
    events: list[dict[str, Any]] = []
    for node in sorted({node_of[gpu] for gpu in gpus}):
        events.append({"ph": "M", "name": "process_name", "pid": node, "args": {"name": f"node {node}"}})
    for gpu in gpus:
        place = {"pid": node_of[gpu], "tid": gpu}
        events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": f"GPU {gpu}"}})
    for task in plan.tasks:
        if task.end_s <= task.start_s:
            continue
        for gpu in gpus:
            if _occupies(task, gpu):
                events.append(_event(task, gpu, node_of[gpu]))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _shown(plan: FlowPlan) -> list[int]:
    every = [gpu for group in plan.memory for gpu in range(group.first_gpu, group.first_gpu + group.num_gpus)]
    if len(every) * len(plan.tasks) <= MOST_EVENTS:
        return every
    return [group.first_gpu for group in plan.memory]


def _occupies(task: Task, gpu: int) -> bool:
    return any(first <= gpu < first + count for first, count in task.meshes)


def _event(task: Task, gpu: int, node: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": task.name,
        "cat": task.kind,
        "pid": node,
        "tid": gpu,
        "ts": round(task.start_s * _MICROSECONDS, 3),
        "dur": round((task.end_s - task.start_s) * _MICROSECONDS, 3),
        "args": {"iteration": task.iteration},
    }
