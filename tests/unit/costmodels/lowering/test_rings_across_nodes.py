"""Rings of context parallelism over several nodes: which ranks send out of one, and on how many adapters."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.attention import _ring_share
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from costmodels.step.layer_costs import layer_costs
from profiles.hardware import ClusterSpec
from tests.fakes import UnitCollectives, context, llama, node


def cluster(*, nics: int, nodes: int = 2) -> ClusterSpec:
    """Nodes of 8 devices, adapters of 25 GB/s, and 300 GB/s inside."""
    machine = node()
    return ClusterSpec(
        name="fake",
        node=replace(machine, nics_per_node=nics, nic=replace(machine.nic, bandwidth_bytes_per_s=25e9)),
        num_nodes=nodes,
    )


@pytest.mark.parametrize(
    ("nics", "tensor", "share"),
    [
        (8, 1, 1.0),  # an adapter each: one sender has no more than its own
        (4, 1, 1 / 2),  # half an adapter each, of which one sender has a whole one
        (1, 1, 1 / 8),
        (1, 2, 2 / 8),
        (1, 8, 1.0),  # all send
    ],
)
def test_a_ring_leaves_a_node_at_its_edge_alone(nics: int, tensor: int, share: float) -> None:
    where = context(model=llama(), cluster=cluster(nics=nics))
    found = _ring_share(np.array([16 // tensor]), np.array([tensor]), where)
    assert found == pytest.approx([share])


def test_a_ring_inside_a_node_is_no_shorter() -> None:
    where = context(model=llama(), cluster=cluster(nics=1))
    assert _ring_share(np.array([8, 4]), np.array([1, 2]), where).tolist() == [1.0, 1.0]


def test_no_ring_is_faster_than_the_links_inside() -> None:
    machine = cluster(nics=4)
    slow = replace(machine.node.scale_up, bandwidth_bytes_per_s=15e9)  # 12.5 GB/s leave for every device
    where = context(model=llama(), cluster=replace(machine, node=replace(machine.node, scale_up=slow)))
    assert _ring_share(np.array([16]), np.array([1]), where) == pytest.approx([12.5 / 15])


def test_only_rings_are_sent_so() -> None:
    """Keys and values of the other ranks: a ring passes them on, on one adapter of the node; a gather uses all."""

    def sent(kind: ContextKind, nics: int) -> float:
        prices = UnitCollectives(op=CollectiveOp.SEND_RECV if kind is ContextKind.RING else CollectiveOp.ALL_GATHER)
        plan = ExecutionPlan(context_parallel=16, context_kind=kind)
        costs = layer_costs(
            PlanBatch.from_plans([plan]), context(model=llama(), cluster=cluster(nics=nics), collectives=prices)
        )
        return float(costs.attention.component("context_forward_total")[0])

    assert sent(ContextKind.RING, 1) == pytest.approx(sent(ContextKind.RING, 8) / 8)
    assert sent(ContextKind.ALL_GATHER, 1) == pytest.approx(sent(ContextKind.ALL_GATHER, 8))
