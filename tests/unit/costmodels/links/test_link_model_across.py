"""The collective price list across domains, and over wires without a switch: alpha and beta by hand."""

import numpy as np
import pytest

from costmodels.links.collectives import CollectiveOp
from costmodels.links.link_model import LinkCollectiveModel
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.hardware import ClusterSpec
from tests.links import ACROSS, INSIDE, calls, cluster, link, model, seconds


def test_a_ring_across_domains_uses_the_adapters_of_its_ranks_there() -> None:
    # 8 ranks, 2 per domain, 4 domains: 2 adapters of 10 GB/s at 80 %; of 4 crossings of 20 us and 4 hops of 1 us inside
    # a chunk takes seven eighths.
    expected = 20e-6 + (7 / 8) * (4 * 20e-6 + 4 * 1e-6) + (7 / 8) * 1e10 / (2 * 8e9)
    assert seconds(CollectiveOp.ALL_GATHER, 1e10, 8, 2) == pytest.approx(expected)
    expected = 20e-6 + 2 * (7 / 8) * (4 * 20e-6 + 4 * 1e-6) + 2 * (7 / 8) * 1e10 / (2 * 8e9)
    assert seconds(CollectiveOp.ALL_REDUCE, 1e10, 8, 2) == pytest.approx(expected)


def test_a_ring_is_never_faster_than_inside_its_domains() -> None:
    wide = cluster(nics=400)
    expected = 20e-6 + (7 / 8) * (2 * 20e-6 + 6 * 1e-6) + (7 / 8) * 1e10 / 50e9
    assert seconds(CollectiveOp.ALL_GATHER, 1e10, 8, 4, machine=wide) == pytest.approx(expected)


def test_one_rank_per_domain_has_its_share_of_the_adapters_only() -> None:
    expected = 20e-6 + 3 * 20e-6 + 0.75 * 1e10 / (0.8 * 5e9)  # d - 1 crossings
    assert seconds(CollectiveOp.REDUCE_SCATTER, 1e10, 4, 1, machine=cluster(nics=2)) == pytest.approx(expected)


def test_rings_and_trees_through_one_adapter_have_no_more_than_it_carries() -> None:
    one = ACROSS | {"ring_adapters": 1.0}
    latency_s = 20e-6 + 2 * (7 / 8) * (2 * 20e-6 + 6 * 1e-6)
    assert seconds(CollectiveOp.ALL_REDUCE, 1e10, 8, 4, across=one) == pytest.approx(latency_s + 1.75 * 1e10 / 8e9)
    for op, ranks, local in (
        (CollectiveOp.ALL_REDUCE, 8, 1),  # a share of one adapter at most
        (CollectiveOp.ALL_TO_ALL, 8, 4),
        (CollectiveOp.SEND_RECV, 2, 1),
    ):
        assert seconds(op, 1e10, ranks, local, across=one) == seconds(op, 1e10, ranks, local)
    two = one | {"ring_adapters": 2.0}
    assert seconds(CollectiveOp.ALL_REDUCE, 1e10, 8, 4, across=two) == pytest.approx(latency_s + 1.75 * 1e10 / 16e9)
    trees = one | {"tree_share": 1.25, "hops": 1e3}
    assert seconds(CollectiveOp.ALL_REDUCE, 1e10, 8, 4, across=trees) == pytest.approx(20e-6 + 2 * 10e-6 + 1e10 / 8e9)


@pytest.mark.parametrize(
    ("name", "ranks", "local", "measured_s"),
    [("jean-zay-a100", 32, 8, 1.5304), ("jean-zay-a100", 16, 4, 1.505), ("jean-zay-v100-32gb", 64, 4, 1.155)],
)
def test_all_reduces_on_jean_zay_take_what_was_measured(name: str, ranks: int, local: int, measured_s: float) -> None:
    """4 GB by bigscience's experiments/bandwidth: a tenth of what four adapters carry."""
    machine = ClusterSpec(name=name, node=default_catalog().node(name), num_nodes=ranks // local)
    priced = LinkCollectiveModel(default_fits().collectives).predict(
        calls(CollectiveOp.ALL_REDUCE, 4e9, ranks, local), machine
    )
    assert priced.low_s[0] <= measured_s <= priced.high_s[0]
    assert priced.time_s[0] == pytest.approx(measured_s, rel=0.05 if "a100" in name else 0.4)


def test_small_messages_cross_by_the_low_latency_protocol() -> None:
    expected = 20e-6 + (7 / 8) * (4 * 10e-6 + 4 * 0.5e-6) + (7 / 8) * 1e3 / (0.25 * 16e9)
    assert seconds(CollectiveOp.ALL_GATHER, 1e3, 8, 2) == pytest.approx(expected)


def test_trees_pass_the_message_along_every_edge_up_and_down() -> None:
    trees = ACROSS | {"tree_share": 1.25, "hops": 1e3}
    chain = 2 * 3 * 1e-6 + 2 * 1e10 / 50e9  # up and down
    # Two domains use all of their adapters, more a share of them (here 1.25, so that it is not hidden by the chain).
    for ranks, sent, bytes_per_s in ((8, 1.0, 32e9), (16, 1.5, 40e9), (32, 1.75, 40e9)):
        levels = np.log2(ranks / 4)
        expected = 20e-6 + 2 * levels * 10e-6 + max(chain, sent * 1e10 / bytes_per_s)
        assert seconds(CollectiveOp.ALL_REDUCE, 1e10, ranks, 4, across=trees) == pytest.approx(expected)


def test_trees_over_switches_that_add_send_a_message_once_inside() -> None:
    trees = ACROSS | {"tree_share": 0.5, "hops": 1e3}
    adds = INSIDE | {"switch_hop_s": 1e-6, "switch_efficiency": 0.25}
    inside_s = 4 * 1e-6 + 1e10 * (1 + 1 / 4) / 25e9  # more than the 2 S / 50 GB/s of a chain, and chosen all the same
    priced = model(inside=adds | {"efficiency": 0.2}, across=trees).predict(
        calls(CollectiveOp.ALL_REDUCE, 1e10, 8, 4), cluster()
    )
    assert priced.time_s[0] == pytest.approx(20e-6 + 2 * 10e-6 + inside_s)


def test_small_all_reduces_pass_trees_by_the_low_latency_protocol() -> None:
    trees = ACROSS | {"tree_share": 1.0, "tree_hops": 50.0}
    # 16 domains of 4: 4 levels up and down, a chain of 3 hops up and down in each.
    latency_s = 20e-6 + 2 * 4 * 10e-6 + 2 * 3 * 0.5e-6
    sent_s = 2 * (15 / 16) * 1e3 / (0.25 * 32e9)
    assert seconds(CollectiveOp.ALL_REDUCE, 1e3, 64, 4, across=trees) == pytest.approx(latency_s + sent_s)


def test_chunks_wait_for_adapters() -> None:
    waits = ACROSS | {"ramp_hops": 0.5}
    for op, ranks, local in (
        (CollectiveOp.ALL_GATHER, 8, 2),
        (CollectiveOp.ALL_TO_ALL, 8, 4),
        (CollectiveOp.SEND_RECV, 2, 1),
    ):
        at_once_s = seconds(op, 1e10, ranks, local)
        transfer_s = {
            CollectiveOp.ALL_GATHER: 0.875 / 1.6,
            CollectiveOp.ALL_TO_ALL: 0.5 / 0.8,
            CollectiveOp.SEND_RECV: 1 / 0.8,
        }[op]
        expected = at_once_s + 2 * np.sqrt(0.5 * 10e-6 * transfer_s)
        assert seconds(op, 1e10, ranks, local, across=waits) == pytest.approx(expected)


def test_few_devices_of_a_mesh_reach_the_lanes_between_them() -> None:
    mesh = cluster(scale_up=link("fast", "nvlink", 100e9, mesh_devices=4))
    adds = INSIDE | {"switch_hop_s": 1e-6, "switch_efficiency": 0.9}
    for ranks, lanes in ((2, 1 / 3), (3, 2 / 3), (4, 1.0)):
        bytes_per_s = 0.5 * 100e9 * lanes
        expected = 10e-6 + (ranks - 1) * 1e-6 + (ranks - 1) / ranks * 1e10 / bytes_per_s
        priced = model(inside=adds).predict(calls(CollectiveOp.ALL_GATHER, 1e10, ranks, ranks), mesh)
        assert priced.time_s[0] == pytest.approx(expected)
    reduced = model(inside=adds).predict(calls(CollectiveOp.ALL_REDUCE, 1e10, 4, 4), mesh)
    assert reduced.time_s[0] == seconds(CollectiveOp.ALL_REDUCE, 1e10, 4, 4)  # no switch, no sums in it


def test_an_all_to_all_sends_what_leaves_through_each_ranks_own_adapter() -> None:
    # 8 ranks, 4 per domain: half of the bytes leave at 8 GB/s, 3/8 stay inside at 50 GB/s meanwhile.
    expected = 20e-6 + 4 * 20e-6 + 3 * 1e-6 + 0.5 * 1e10 / 8e9
    assert seconds(CollectiveOp.ALL_TO_ALL, 1e10, 8, 4) == pytest.approx(expected)


def test_send_across() -> None:
    assert seconds(CollectiveOp.SEND_RECV, 1e10, 2, 1) == pytest.approx(20e-6 + 20e-6 + 1e10 / 8e9)
