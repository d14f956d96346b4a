"""Plans of workflows as NeMo-RL has them, for tests."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from planner.dataflow.flow_results import FlowPlan
from planner.exporters.flow_api import FlowExportResult, export_dataflow

SMALL: dict[str, Any] = {"batch": 64, "prompt": 256, "generate": 512}
OUTSIDE = {"reward": "external"}
LAYOUT = {"tp": 1, "pp": 2}


@cache
def asked(job: str, model: str, cluster: str, settings: str = "{}", **options: Any) -> FlowExportResult:
    pins = json.loads(options.pop("pins", "{}"))
    asked_for = SMALL | options | {"pins": pins, "settings": json.loads(settings)}
    return export_dataflow(job, model, cluster, format="nemo-rl", **asked_for)


def grpo(cluster: str = "4xH100-80GB", **options: Any) -> FlowExportResult:
    return asked("grpo", "qwen2.5-1.5b", cluster, json.dumps(OUTSIDE), **options)


def plan_of(result: FlowExportResult) -> FlowPlan:
    assert result.flow.plan is not None
    return result.flow.plan


def with_layout(plan: FlowPlan, kind: str, **columns: Any) -> FlowPlan:
    calls = [
        replace(call, plan=replace(call.plan, **columns)) if call.kind == kind and call.plan is not None else call
        for call in plan.calls
    ]
    return replace(plan, calls=tuple(calls))


PIPELINE = json.dumps({"actor_train": LAYOUT | {"micro_batch": 4}, "actor_gen": {"tp": 2, "engine": "vllm"}})
