"""What prices leave open of a step: kernels, traffic in a layer, between stages and between replicas."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.data_parallel import DataParallelTraffic
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.step.layer_costs import layer_costs
from costmodels.step.trust import half_widths, layer_opens, pipeline_opens, step_opens
from tests.fakes import RateKernels, RingCollectives, context, device, gpt, mixture, node, stack

SPLIT = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=4, sequence_parallel=True)])
OVERLAPPED = PlanBatch.from_plans(
    [ExecutionPlan(tensor_parallel=4, sequence_parallel=True, tensor_parallel_overlap=True)]
)
EXPERTS = PlanBatch.from_plans([ExecutionPlan(data_parallel=4, expert_parallel=4)])


def layer_s(plans: PlanBatch, where: CostContext) -> float:
    costs = layer_costs(plans, where)
    blocks = (costs.attention, costs.expert_mlp or costs.dense_mlp)
    return float(sum(block.both_passes_s()[block.of_row[0]] for block in blocks))


def widths(plans: PlanBatch, where: CostContext) -> np.ndarray:
    return np.sqrt(layer_opens(layer_costs(plans, where))[:, 0])


def ring(rate: float = 200e9, **ends: float) -> RingCollectives:
    return RingCollectives(rate, rate / 10, **ends)


@pytest.mark.parametrize(("plans", "model"), [(SPLIT, gpt()), (EXPERTS, mixture())], ids=["tensor", "experts"])
def test_a_layer_is_as_open_as_what_shows_of_its_transfers(plans: PlanBatch, model: object) -> None:
    """As long as the layer would take at either end of the transfers' interval; kernels are certain."""
    where = context(kernels=RateKernels(), collectives=ring(low_factor=0.5, high_factor=2.0), model=model)
    slow, fast = (replace(where, collectives=ring(rate)) for rate in (100e9, 400e9))
    price_s = layer_s(plans, where)
    assert widths(plans, where) == pytest.approx(
        [np.log(price_s / layer_s(plans, fast)), np.log(layer_s(plans, slow) / price_s)]
    )
    assert (widths(plans, where) > 0.01).all()


def test_hidden_transfers_widen_nothing_until_they_show() -> None:
    hides = stack(tensor_parallel_overlap=1.0)
    where = context(kernels=RateKernels(), collectives=ring(2e12, low_factor=0.5, high_factor=1.5), stack=hides)
    assert widths(OVERLAPPED, where) == pytest.approx([0.0, 0.0])
    longer = replace(where, collectives=ring(2e12, low_factor=0.5, high_factor=100.0))
    assert widths(OVERLAPPED, longer) == pytest.approx(
        [0.0, np.log(layer_s(OVERLAPPED, replace(where, collectives=ring(2e10))) / layer_s(OVERLAPPED, where))]
    )
    assert widths(OVERLAPPED, longer)[1] > 0.5


def test_kernels_and_transfers_add_as_independent_each_by_its_share() -> None:
    where = context(
        kernels=RateKernels(relative_half_width=0.2), collectives=ring(20e9, low_factor=0.5, high_factor=2.0)
    )
    alone = replace(where, collectives=ring(20e9))
    certain = replace(where, kernels=RateKernels())
    assert widths(SPLIT, where) == pytest.approx(np.hypot(widths(SPLIT, alone), widths(SPLIT, certain)))
    whole = replace(where, collectives=RingCollectives(1e30, 1e30))
    assert widths(SPLIT, whole) == pytest.approx([np.log(1.2)] * 2)
    sent = 1 - layer_s(SPLIT, whole) / layer_s(SPLIT, where)
    assert widths(SPLIT, alone)[1] == pytest.approx(np.log1p(0.2 * (1 - sent)))


def test_launches_are_known_no_better_than_the_kernels_they_launch() -> None:
    where = context(kernels=RateKernels(relative_half_width=0.2), stack=stack(kernel_launch_s=1.0))
    assert widths(SPLIT, replace(where, collectives=RingCollectives(1e30, 1e30))) == pytest.approx([np.log(1.2)] * 2)


def test_crossings_and_replicas_weigh_by_what_shows_of_them() -> None:
    crossing_s = np.array([[1.0], [0.5], [3.0]])
    opens = pipeline_opens(
        np.full((2, 1), 0.04), crossing_s=crossing_s, crossings=np.array([10]), work_s=np.array([100.0])
    )
    assert opens[:, 0] == pytest.approx([(0.9 * 0.2) ** 2 + np.log(0.95) ** 2, (0.9 * 0.2) ** 2 + np.log(1.2) ** 2])
    column = np.ones((1, 1))
    traffic = DataParallelTraffic(
        gradients_s=column, parameters_s=column, reduces_per_microbatch=column, gathers_per_microbatch=column,
        hidden_gathers=column, hidden_reductions=column, low_factor=np.array([[0.9, 0.5]]),
        high_factor=np.array([[3.0, 1.1]]),
    )  # fmt: skip
    step = step_opens(
        np.full((2, 1), 0.04), pipeline_s=np.array([6.0]), step_s=np.array([10.0]), traffic=traffic,
        shown_s=np.array([2.0]),
    )  # fmt: skip
    assert step[:, 0] == pytest.approx([(0.6 * 0.2) ** 2 + np.log(0.9) ** 2, (0.6 * 0.2) ** 2 + np.log(1.4) ** 2])


def test_crossings_weigh_no_more_than_all() -> None:
    """Twice as long together as the passes that hide them: at most the interval of a crossing, and finite."""
    for ends in ([0.5, 3.0], [0.0 + 1e-9, 1.0]):
        opens = pipeline_opens(
            np.full((2, 1), 0.04),
            crossing_s=np.array([[1.0], *([end] for end in ends)]),
            crossings=np.array([10]),
            work_s=np.array([5.0]),
        )
        assert opens[:, 0] == pytest.approx(np.log(ends) ** 2)


def test_what_own_runs_have_settled_is_not_told_again() -> None:
    open_ = np.array([[0.04], [0.09]])
    known = stack(residual_log_std=0.1, settled_log_std=0.15, settled_on=("fake-80GB",))
    residual = (1.645 * 0.1) ** 2
    assert half_widths(open_, context(stack=known))[:, 0] == pytest.approx(
        [np.sqrt(residual), np.sqrt(residual + 0.09 - (1.645 * 0.15) ** 2)]
    )
    other = replace(context(stack=known).cluster, node=node(device=device(name="other")))
    assert half_widths(open_, context(stack=known, cluster=other))[:, 0] == pytest.approx(
        np.sqrt(residual + open_[:, 0])
    )
