"""Workflows exported for verl, and the options of their scripts read back."""

import json
import shlex
from functools import partial
from typing import Any

from planner.exporters.exported import Exported
from planner.exporters.flow_api import FlowExportResult
from tests.flow_exports import OUTSIDE, exported_flow

asked = partial(exported_flow, "verl")
ROLLOUT = "actor_rollout_ref.rollout."


def overrides(exported: Exported) -> dict[str, str]:
    """The Hydra overrides of a script, read back; ``+`` marks keys that the tree lacks."""
    script = exported.files["train.sh"]
    words = shlex.split(script[script.index("exec ") :].replace("\\\n", " "))
    assert words[1:4] == ["python3", "-m", "verl.trainer.main_ppo"]
    assert words[-1] == "$@"
    pairs = [word.split("=", 1) for word in words[4:-1]]
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


def grpo(**options: Any) -> FlowExportResult:
    return asked("grpo", "qwen2.5-1.5b", "4xH100-80GB", json.dumps(OUTSIDE), **options)


def written(result: FlowExportResult) -> dict[str, str]:
    assert result.exported is not None
    assert result.exported.unsupported == ()
    return overrides(result.exported)
