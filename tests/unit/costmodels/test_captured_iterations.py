"""Whole iterations captured as CUDA graphs: what the host issues takes no time."""

from dataclasses import replace

import pytest

from costmodels.evaluate import evaluate
from costmodels.plan import ExecutionPlan, PlanBatch
from tests.fakes import UnitKernels, context, mixture, stack

FREE = UnitKernels(ops=())
EAGER = stack(microbatch_overhead_s=0.5, step_overhead_s=7.0, kernel_launch_s=1.0, expert_layer_s=3.0)


def step_s(**changes: object) -> float:
    """Seconds of a step of six micro-batches whose kernels are free."""
    where = context(model=mixture(), kernels=FREE, stack=replace(EAGER, **changes))
    return float(evaluate(PlanBatch.from_plans([ExecutionPlan(num_microbatches=6)]), where).step_time_s[0])


def test_captured_iterations_issue_nothing_and_wait_for_no_experts() -> None:
    assert step_s(captures_iterations=True) == pytest.approx(7.0)  # what is outside of the passes


def test_every_host_time_of_an_eager_step_counts() -> None:
    layers = context(model=mixture()).model.num_layers
    waits = step_s(kernel_launch_s=0.0) - step_s(kernel_launch_s=0.0, expert_layer_s=0.0)
    assert waits == pytest.approx(6 * layers * 2 * 3.0)
    assert step_s(kernel_launch_s=0.0, expert_layer_s=0.0) == pytest.approx(7.0 + 6 * 0.5)
    assert step_s() > 7.0 + 6 * 0.5 + waits + 6 * layers * 20
