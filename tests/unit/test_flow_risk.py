"""How likely the calls of a workflow are to run out of memory, and what is said of it."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from planner.dataflow.flow_results import FlowResult
from planner.memory_law import MemoryLaw
from planner.render.flow import render_flow
from planner.results import RISKY
from planner.workflows import plan_dataflow
from profiles.stacks import find_stack

ASKED: dict[str, Any] = {"batch": 64, "prompt": 512, "generate": 512, "effort": 0.01, "mode": "colocated"}


def planned(gpus: str = "4xA100", **settings: Any) -> FlowResult:
    return plan_dataflow("grpo", "llama-3.2-3b", gpus, **ASKED | settings)


@pytest.fixture(scope="module")
def result() -> FlowResult:
    return planned()


def printed(result: FlowResult) -> str:
    out = io.StringIO()
    render_flow(result, Console(width=120, file=out))
    return out.getvalue()


def test_the_risk_is_that_of_the_call_that_is_nearest_to_the_limit(result: FlowResult) -> None:
    """Engines keep no more sequences than fit, so generation is at no risk."""
    assert result.plan is not None
    law = MemoryLaw.of(find_stack("megatron-core"))
    for group in result.plan.memory:
        held = sum(owner.static_bytes for owner in group.owners)
        kinds = {call.name: call.kind for call in result.plan.calls}
        risks = [
            float(law.risk(np.log(np.asarray((held + owner.active_bytes) / group.usable_bytes))))
            for owner in group.owners
            if kinds[owner.call] != "generate"
        ]
        assert group.oom_probability == pytest.approx(max(risks))
        assert 0 < group.oom_probability < 0.55  # a peak at the limit is above it in half of all runs


def test_larger_memories_are_at_less_risk() -> None:
    roomy = planned("4xH200")
    assert roomy.plan is not None
    assert max(group.oom_probability for group in roomy.plan.memory) < 0.1


@pytest.mark.parametrize(("risk", "told"), [(RISKY - 0.01, False), (0.37, True)])
def test_a_plan_that_may_well_run_out_says_so(result: FlowResult, risk: float, *, told: bool) -> None:
    assert result.plan is not None
    memory = tuple(replace(group, oom_probability=risk) for group in result.plan.memory)
    text = printed(replace(result, plan=replace(result.plan, memory=memory)))
    assert ("37 % risk of running out of memory on GPUs 0-3; with --reserve-gib" in text) is told
    assert ("risk of running out" in text) is told
