"""What crosses between pipeline stages: over which link, how often, through which adapters, and what hides it."""

import numpy as np
import pytest

from costmodels.links.collectives import CollectiveOp
from costmodels.plan import AxisOrder, ExecutionPlan
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, RingCollectives, UnitCollectives, context, node
from tests.unit.costmodels.step.test_step import FREE, H, S, timed


@pytest.mark.parametrize(
    ("plan", "near"),
    [
        (ExecutionPlan(pipeline_parallel=2, tensor_parallel=4), 2),
        (ExecutionPlan(pipeline_parallel=4, tensor_parallel=4), 1),  # the second boundary
        (ExecutionPlan(pipeline_parallel=2, tensor_parallel=8), 1),
        (ExecutionPlan(pipeline_parallel=2, data_parallel=8), 1),
        (ExecutionPlan(pipeline_parallel=2, data_parallel=8, axis_order=AxisOrder.TP_CP_PP_DP), 2),
        (ExecutionPlan(pipeline_parallel=3, data_parallel=8, axis_order=AxisOrder.TP_CP_PP_DP), 1),  # of ranks 6 to 8
    ],
)
def test_stages_are_neighbours_or_on_different_nodes(plan, near):
    prices = UnitCollectives()
    machines = ClusterSpec(name="fake", node=node(), num_nodes=plan.num_devices // 8)
    timed([plan], context(cluster=machines, kernels=FREE, collectives=prices))
    found = {int(call.ranks_per_domain[0]) for call in prices.seen if call.op[0] == CollectiveOp.SEND_RECV}
    assert near in found


def test_a_stage_at_the_edge_of_a_node_crosses_it_once_of_two_exchanges():
    """Four stages of four ranks on two nodes: the second gets from its neighbour and hands over to the other node."""
    links = RingCollectives(inside_bytes_per_s=1e10, across_bytes_per_s=1e9)
    whole, half = (
        ExecutionPlan(pipeline_parallel=2, data_parallel=8),
        ExecutionPlan(pipeline_parallel=4, data_parallel=4),
    )
    machines = ClusterSpec(name="fake", node=node(), num_nodes=2)
    found = [timed([plan], context(cluster=machines, collectives=links)).parts_s for plan in (whole, half)]
    far, near = S * H * 2 / 1e9, S * H * 2 / 1e10
    assert found[0]["pipeline_transfer"] == pytest.approx([2 * far])
    assert found[1]["pipeline_transfer"] == pytest.approx([far + near])


@pytest.mark.parametrize(("adapters", "share"), [(1, 1 / 2), (2, 1 / 2), (8, 1.0)])
def test_the_last_stage_of_a_node_alone_sends_through_its_adapters(adapters, share):
    """Four ranks of eight send what would cross at an eighth of the node's rate each, or at half an adapter's."""
    prices = UnitCollectives()
    machines = ClusterSpec(name="fake", node=node(nics_per_node=adapters), num_nodes=2)
    timed([ExecutionPlan(pipeline_parallel=4, data_parallel=4)], context(cluster=machines, collectives=prices))
    sends = [call for call in prices.seen if call.op[0] == CollectiveOp.SEND_RECV]
    assert {float(call.size_bytes[0]) for call in sends if call.ranks_per_domain[0] == 1} == {share * S * H * 2}


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_no_more_is_sent_under_work_than_there_is_work(chunks):
    """Of both directions, all chunks: what a stage sends takes no less of its step than its adapter needs."""
    plan = ExecutionPlan(pipeline_parallel=2, data_parallel=8, virtual_stages=chunks, num_microbatches=16)
    machines = ClusterSpec(name="fake", node=node(), num_nodes=2)
    for bytes_per_s in (1e12, 1e9, 1e7):
        links = RingCollectives(inside_bytes_per_s=np.inf, across_bytes_per_s=bytes_per_s)
        found = timed([plan], context(cluster=machines, kernels=RateKernels(), collectives=links))
        shown_s, all_s = (
            float(parts["pipeline_transfer"][0]) for parts in (found.parts_s, found.communication_total_s)
        )
        assert all_s == pytest.approx(2 * 16 * chunks * S * H * 2 / bytes_per_s)
        assert all_s / chunks <= shown_s * (1 + 1e-12)
        assert found.step_time_s[0] >= all_s
        assert sum(float(seconds[0]) for seconds in found.parts_s.values()) == pytest.approx(found.step_time_s[0])
