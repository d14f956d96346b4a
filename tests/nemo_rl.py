"""Plans of workflows as NeMo-RL has them, for tests."""

import json
from functools import partial
from typing import Any

from planner.exporters.flow_api import FlowExportResult
from tests.flow_exports import OUTSIDE, exported_flow

LAYOUT = {"tp": 1, "pp": 2}
PIPELINE = json.dumps({"actor_train": LAYOUT | {"micro_batch": 4}, "actor_gen": {"tp": 2, "engine": "vllm"}})

asked = partial(exported_flow, "nemo-rl")


def grpo(cluster: str = "4xH100-80GB", **options: Any) -> FlowExportResult:
    return asked("grpo", "qwen2.5-1.5b", cluster, json.dumps(OUTSIDE), **options)
