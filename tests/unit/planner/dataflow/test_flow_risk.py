"""How likely the calls of a workflow are to run out of memory, and what is said of it."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from planner.answer.memory_law import MemoryLaw
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.results import FlowResult
from planner.dataflow.flow.risk import spare_bytes
from planner.document_flow import flow_document
from planner.exporters import flow_api
from planner.render.flow import render_flow
from planner.results import RISKY
from planner.workflows import plan_dataflow
from profiles.stacks import find_stack
from tests.command import command_line

ASKED: dict[str, Any] = {"batch": 64, "prompt": 512, "generate": 512, "effort": 0.01, "mode": "colocated"}


def planned(gpus: str = "4xA100", **settings: Any) -> FlowResult:
    return plan_dataflow("grpo", "llama-3.2-3b", gpus, **ASKED | settings)


@pytest.fixture(scope="module")
def result() -> FlowResult:
    """The fastest that fits, whatever it risks."""
    return planned(max_oom_risk=1.0)


def highest(result: FlowResult) -> float:
    assert result.plan is not None
    return max(group.oom_probability for group in result.plan.memory)


def printed(result: FlowResult) -> str:
    out = io.StringIO()
    render_flow(result, Console(width=120, file=out))
    return out.getvalue()


def at_risk(result: FlowResult, risk: float) -> FlowResult:
    """The answer as if its plan ran out of memory in that share of runs."""
    assert result.plan is not None
    memory = tuple(replace(group, oom_probability=risk) for group in result.plan.memory)
    return replace(result, plan=replace(result.plan, memory=memory))


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
    assert highest(planned("4xH200", max_oom_risk=1.0)) < 0.1


@pytest.mark.parametrize("most", [0.05, 0.02])
def test_calls_leave_as_much_free_as_they_need_to_live(result: FlowResult, most: float) -> None:
    """And what is told of memory is what they take, without what they leave."""
    sure = planned(max_oom_risk=most)
    assert sure.plan is not None
    assert result.plan is not None
    assert highest(sure) < most < highest(result)
    assert result.plan.steady_s <= sure.plan.steady_s < 1.2 * result.plan.steady_s
    for group in sure.plan.memory:
        held = sum(owner.static_bytes for owner in group.owners)
        assert group.peak_bytes == pytest.approx(held + max(owner.active_bytes for owner in group.owners))
    assert flow_document(sure)["request"]["max_oom_risk"] == most


def test_where_no_plan_lives_as_often_the_best_that_fits_is_told() -> None:
    """One of the engine's GPUs is as full as it can be in any plan."""
    tight = planned("2xA100-40GB", max_oom_risk=1e-6)
    assert tight.plan is not None
    assert highest(tight) > 1e-6
    assert tight.plan == planned("2xA100-40GB", max_oom_risk=1.0).plan


def test_the_fewest_gpus_are_those_on_which_it_lives() -> None:
    counts = []
    for most in (1.0, 1e-3):
        few = planned("8xA100-40GB", mode="hybrid", objective="fewest_gpus", max_oom_risk=most)
        assert few.plan is not None
        counts.append(few.plan.num_gpus)
        assert most == 1.0 or highest(few) < most
    assert counts[0] < counts[1]


def test_memory_to_spare_is_of_trainers_alone() -> None:
    """A peak beside what is spared is as likely to die as was asked for."""
    request = resolve_flow("grpo", {"": "llama-3.2-3b"}, "4xA100+4xH200", FlowOptions(batch=64, max_oom_risk=0.1))
    usable = np.asarray([group.device.usable_memory_bytes for group in request.cluster.groups])
    assert spare_bytes(request, request.cluster, "actor_gen").tolist() == [0.0, 0.0]
    law = MemoryLaw.of(request.stacks["actor"])
    for name in ("actor_train", "ref_inf"):
        left = 1 - spare_bytes(request, request.cluster, name) / usable
        assert law.risk(np.log(left)) == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(
    ("risk", "most", "told"),
    [
        (RISKY - 0.01, RISKY, ""),
        (0.37, RISKY, "37 % risk of running out of memory on GPUs 0-3; no plan was found with less than 20 %\n"),
        (0.1, 0.05, "10 % risk of running out of memory on GPUs 0-3; no plan was found with less than 5.0 %\n"),
        (0.37, 0.5, "37 % risk of running out of memory on GPUs 0-3\n"),
        (0.37, 1.0, "37 % risk of running out of memory on GPUs 0-3\n"),
    ],
)
def test_a_plan_that_may_well_run_out_says_so(result: FlowResult, risk: float, most: float, told: str) -> None:
    """And that none was found at as little risk as was asked for, where that is more than was."""
    options = replace(result.request.options, max_oom_risk=most)
    text = printed(replace(at_risk(result, risk), request=replace(result.request, options=options)))
    assert told in text
    assert ("risk of running out" in text) is bool(told)


@pytest.mark.parametrize(
    ("risk", "told"), [(RISKY - 0.01, ""), (0.37, "warning: 37 % risk of running out of memory\n")]
)
def test_an_export_of_such_a_plan_says_so(
    result: FlowResult,
    risk: float,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exported = flow_api.FlowExportResult(format="verl", flow=at_risk(result, risk), exported=None)
    monkeypatch.setattr(flow_api, "export_dataflow", lambda *_, **__: exported)
    run = command_line(capsys, monkeypatch)
    asked = ("export", "--format", "verl", "--job", "grpo", "--model", "llama-3.2-3b", "--gpus", "4xA100")
    code, _, err = run(*asked)
    assert (code, err) == (0, told)
    assert run(*asked, "--quiet")[2] == ""
