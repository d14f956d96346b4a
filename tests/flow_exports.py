"""Workflows exported, and their plans changed, for tests of every target."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from planner.dataflow.flow.results import FlowPlan
from planner.exporters.flow_api import FlowExportResult, export_dataflow

# What is written is tested, not how good a plan it is: a short search finds one to write.
SMALL: dict[str, Any] = {"batch": 64, "prompt": 256, "generate": 512, "effort": 0.02}
OUTSIDE = {"reward": "external"}


@cache
def exported_flow(
    target: str, job: str, model: str, cluster: str, settings: str = "{}", **options: Any
) -> FlowExportResult:
    """The export of a small workflow; ``settings`` and ``pins`` are JSON."""
    pins = json.loads(options.pop("pins", "{}"))
    asked_for = SMALL | options | {"pins": pins, "settings": json.loads(settings)}
    return export_dataflow(job, model, cluster, format=target, **asked_for)


def plan_of(result: FlowExportResult) -> FlowPlan:
    assert result.flow.plan is not None
    return result.flow.plan


def with_layout(plan: FlowPlan, kind: str, **columns: Any) -> FlowPlan:
    calls = [
        replace(call, plan=replace(call.plan, **columns)) if call.kind == kind and call.plan is not None else call
        for call in plan.calls
    ]
    return replace(plan, calls=tuple(calls))
