"""The collective price list: alpha and beta by hand, inside and across domains, and the packaged fits."""

import time

import numpy as np
import pytest

from costmodels.kernels.calls import Basis
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.links.link_model import LinkCollectiveModel, wire_factor
from profiles.catalog import default_catalog
from profiles.fits import CollectiveFits, Spread, default_fits
from profiles.hardware import ClusterSpec
from tests.links import ACROSS, INSIDE, calls, cluster, link, model, record, seconds


@pytest.mark.parametrize(
    ("op", "steps", "wire"),
    [
        (CollectiveOp.ALL_REDUCE, 6, 1.5),
        (CollectiveOp.ALL_GATHER, 3, 0.75),
        (CollectiveOp.REDUCE_SCATTER, 3, 0.75),
        (CollectiveOp.ALL_TO_ALL, 3, 0.75),
        (CollectiveOp.BROADCAST, 3, 1.0),
        (CollectiveOp.SEND_RECV, 1, 1.0),
    ],
    ids=lambda value: value.name if isinstance(value, CollectiveOp) else None,
)
def test_inside_a_domain(op: CollectiveOp, steps: int, wire: float) -> None:
    """Large messages by the simple protocol, small ones by the low-latency one."""
    assert seconds(op, 1e9, 4, 4) == pytest.approx(10e-6 + steps * 1e-6 + wire * 1e9 / 50e9)
    assert seconds(op, 1e3, 4, 4) == pytest.approx(2e-6 + steps * 0.5e-6 + wire * 1e3 / 5e9)


def test_two_ranks_cannot_use_every_lane() -> None:
    halved = INSIDE | {"pair_loss": 1.0}
    assert seconds(CollectiveOp.ALL_GATHER, 1e10, 2, 2, inside=halved) == pytest.approx(
        11e-6 + 0.5 * 1e10 / (50e9 * 0.5)
    )
    assert seconds(CollectiveOp.ALL_GATHER, 1e10, 4, 4, inside=halved) == pytest.approx(
        13e-6 + 0.75 * 1e10 / (50e9 * 0.75)
    )


def test_the_low_latency_protocol_loses_a_share_of_its_own() -> None:
    halved = INSIDE | {"low_pair_loss": 1.0}
    small, large = (seconds(CollectiveOp.ALL_GATHER, size, 2, 2, inside=halved) for size in (1e4, 1e10))
    assert small == pytest.approx(2.5e-6 + 0.5 * 1e4 / (5e9 * 0.5))
    assert large == seconds(CollectiveOp.ALL_GATHER, 1e10, 2, 2)


def test_a_mesh_reaches_only_the_lanes_to_its_peers_and_a_bridge_is_shared() -> None:
    lanes = INSIDE | {"lanes_of_2": 0.25, "lanes_of_4": 0.75}
    for ranks, share in ((2, 0.25), (3, 0.5), (4, 0.75)):
        expected = 10e-6 + (ranks - 1) * 1e-6 + (ranks - 1) / ranks * 1e10 / (50e9 * share)
        assert seconds(CollectiveOp.ALL_GATHER, 1e10, ranks, ranks, inside=lanes) == pytest.approx(expected)
    shared = seconds(CollectiveOp.ALL_GATHER, 1e10, 4, 4, inside=INSIDE | {"sharing": 1.0})
    assert shared == pytest.approx(13e-6 + 0.75 * 1e10 / 25e9)


def test_chunks_that_follow_each_other_take_twice_the_root_longer() -> None:
    ramp = INSIDE | {"ramp_s": 4e-6}
    transfer_s = 0.75 * 1e10 / 50e9
    expected = 13e-6 + transfer_s + 2 * np.sqrt(4e-6 * transfer_s)
    assert seconds(CollectiveOp.ALL_GATHER, 1e10, 4, 4, inside=ramp) == pytest.approx(expected)
    assert seconds(CollectiveOp.ALL_GATHER, 1e3, 4, 4, inside=ramp) == seconds(CollectiveOp.ALL_GATHER, 1e3, 4, 4)


def test_a_switch_that_adds_moves_the_message_once_and_its_part_again() -> None:
    switch = INSIDE | {"switch_hop_s": 5e-6, "switch_efficiency": 0.5}
    expected = 4 * 5e-6 + 1e10 * 1.25 / 50e9
    assert seconds(CollectiveOp.ALL_REDUCE, 1e10, 4, 4, inside=switch) == pytest.approx(expected)
    for op, ranks in ((CollectiveOp.ALL_REDUCE, 2), (CollectiveOp.REDUCE_SCATTER, 4)):
        without, same = (seconds(op, 1e10, ranks, ranks, inside=fit) for fit in (INSIDE, switch))
        assert same == without


def test_what_a_switch_cannot_add_goes_round_the_ring() -> None:
    switch = INSIDE | {"switch_hop_s": 5e-6, "switch_efficiency": 0.9}
    adding = model(inside=switch)
    plain = LinkCollectiveModel(adding.fits, in_switch_sums=False)
    call = calls(CollectiveOp.ALL_REDUCE, 1e10, 4, 4)
    ring_s = seconds(CollectiveOp.ALL_REDUCE, 1e10, 4, 4)
    assert plain.predict(call, cluster()).time_s[0] == ring_s > adding.predict(call, cluster()).time_s[0]


def test_groups_of_one_and_empty_messages_are_free() -> None:
    assert seconds(CollectiveOp.ALL_REDUCE, 1e9, 1, 1) == 0
    assert seconds(CollectiveOp.ALL_REDUCE, 0, 8, 4) == 0


def test_a_missing_operation_is_bridged_by_the_all_reduce_of_the_link() -> None:
    slow = record("all_reduce", INSIDE | {"efficiency": 0.25}, scope="kind", name="pcie")
    machine = cluster(scale_up=link("bus", "pcie", 100e9))
    priced = model(slow).predict(calls(CollectiveOp.ALL_GATHER, 1e10, 4, 4), machine)
    assert priced.time_s[0] == pytest.approx(13e-6 + 0.75 * 1e10 / 25e9)


def test_a_link_with_fewer_lanes_borrows_from_its_generation() -> None:
    whole = record("all_reduce", INSIDE | {"efficiency": 0.8}, scope="link", name="nvlink9")
    narrow = cluster(scale_up=link("nvlink9-export", "nvlink", 40e9))
    priced = model(whole).predict(calls(CollectiveOp.ALL_REDUCE, 1e10, 4, 4), narrow)
    assert priced.time_s[0] == pytest.approx(16e-6 + 1.5 * 1e10 / 32e9)
    assert priced.basis[0] == Basis.ANALYTIC


def spread(known: str, low: float, high: float, **more) -> Spread:
    options = {"where": "inside", "kind": "", "least_bytes": 0.0} | more
    return Spread(known=known, low_factor=low, high_factor=high, groups=5, rows=50, held_out="by hand", **options)


def factors(fits: CollectiveFits, op: CollectiveOp, size_bytes: float, ranks: int, local: int, machine) -> tuple:
    priced = LinkCollectiveModel(fits).predict(calls(op, size_bytes, ranks, local), machine)
    return tuple(round(float(end[0] / priced.time_s[0]), 6) for end in (priced.low_s, priced.high_s))


def test_intervals_widen_with_the_distance_from_what_was_timed() -> None:
    own = record("all_reduce", INSIDE, scope="link", name="fast", domain={"size_bytes": (1, 1e9), "ranks": (2, 4)})
    stated = record("all_to_all", INSIDE, scope="link", name="fast", rows=0)
    fabric = record("all_reduce_across", ACROSS, scope="kind", name="infiniband", domain={"ranks": (2, 16)})
    spreads = (
        spread("own", 0.9, 1.1), spread("beyond", 0.8, 1.2), spread("kin", 0.5, 3.0),
        spread("kin", 0.6, 2.0, kind="nvlink"), spread("own", 0.95, 1.05, least_bytes=1e6),
        spread("own", 0.7, 1.7, where="across"), spread("beyond", 0.65, 1.8, where="across"),
    )  # fmt: skip
    fits = CollectiveFits(records=model(own, stated, fabric).fits.records, spreads=spreads)
    reduce, machine = CollectiveOp.ALL_REDUCE, cluster()
    assert factors(fits, reduce, 1e5, 4, 4, machine) == (0.9, 1.1)
    assert factors(fits, reduce, 1e7, 4, 4, machine) == (0.95, 1.05)
    assert factors(fits, reduce, 1e10, 4, 4, machine) == (0.8, 1.2)
    assert factors(fits, CollectiveOp.ALL_GATHER, 1e7, 4, 4, machine) == (0.6, 2.0)
    assert factors(fits, reduce, 1e7, 4, 4, cluster(scale_up=link("bus", "pcie", 1e10))) == (0.5, 3.0)
    assert factors(fits, CollectiveOp.ALL_TO_ALL, 1e7, 4, 4, machine) == (0.8, 1.5)
    assert factors(fits, reduce, 1e7, 8, 4, machine) == (0.7, 1.7)
    assert factors(fits, reduce, 1e7, 32, 4, machine) == (0.65, 1.8)


def test_staging_through_the_host_is_a_kind_of_its_own() -> None:
    slow = record("all_reduce", INSIDE | {"efficiency": 0.1}, scope="kind", name="pcie-staged")
    direct, staged = (
        model(slow).predict(
            calls(CollectiveOp.ALL_REDUCE, 1e10, 4, 4), cluster(scale_up=link("bus", "pcie", 100e9, peer_to_peer=p2p))
        )
        for p2p in (True, False)
    )
    assert staged.time_s[0] > 4 * direct.time_s[0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, (0.9, 1.1)), ({"peer_to_peer": False}, (0.6, 9.0)), ({"peer_to_peer": False, "one_host": True}, (0.9, 1.1))],
    ids=["peers", "staged", "one-host"],
)
def test_a_link_does_not_tell_which_host_stages_its_messages(more: dict, expected: tuple[float, float]) -> None:
    own = record("all_reduce", INSIDE, scope="link", name="bus")
    spreads = (spread("own", 0.9, 1.1), spread("kin", 0.5, 3.0), spread("kin", 0.6, 9.0, kind="pcie-staged"))
    fits = CollectiveFits(records=model(own).fits.records, spreads=spreads)
    machine = cluster(scale_up=link("bus", "pcie", 1e10, **more))
    assert factors(fits, CollectiveOp.ALL_REDUCE, 1e7, 4, 4, machine) == expected


def test_basis_interval_and_extrapolation() -> None:
    own = record("all_reduce", INSIDE, scope="link", name="fast", domain={"size_bytes": (1, 1e9), "ranks": (2, 4)})
    stated = record("all_gather", INSIDE, scope="link", name="fast", rows=0)
    fitted = model(own, stated)
    priced = fitted.predict(calls(CollectiveOp.ALL_REDUCE, 1e8, 4, 4), cluster())
    assert priced.basis[0] == Basis.ANALYTIC
    assert not priced.extrapolated[0]
    assert (priced.low_s[0], priced.high_s[0]) == pytest.approx((0.8 * priced.time_s[0], 1.5 * priced.time_s[0]))
    assert fitted.predict(calls(CollectiveOp.ALL_REDUCE, 1e10, 4, 4), cluster()).extrapolated[0]
    assert fitted.predict(calls(CollectiveOp.ALL_GATHER, 1e8, 4, 4), cluster()).basis[0] == Basis.ASSUMED
    assert fitted.predict(calls(CollectiveOp.ALL_REDUCE, 1e8, 8, 4), cluster()).basis[0] == Basis.ASSUMED


def packaged_busbw(node: str, op: CollectiveOp, size_bytes: float, ranks: int, local: int) -> float:
    machine = ClusterSpec(name=node, node=default_catalog().node(node), num_nodes=18)
    priced = LinkCollectiveModel(default_fits().collectives).predict(calls(op, size_bytes, ranks, local), machine)
    return float(size_bytes * wire_factor(op, np.array(float(ranks))) / priced.time_s[0] / 1e9)


@pytest.mark.parametrize(
    ("node", "op", "size_bytes", "ranks", "local", "published", "tolerance"),
    [
        # nccl-tests, H100 and InfiniBand NDR: NVIDIA/nccl-tests issue 290 (476 GB/s in the node).
        ("dgx-h100", CollectiveOp.ALL_REDUCE, 8e9, 8, 8, 476, 0.1),
        # The same issue: 46-48 GB/s of one adapter's 50.
        ("dgx-h100", CollectiveOp.SEND_RECV, 8e9, 2, 1, 47, 0.15),
        # H800, eight ranks: NVIDIA/nccl issue 1374. No row of it was fitted.
        ("hgx-h800", CollectiveOp.ALL_REDUCE, 8e9, 8, 8, 215, 0.1),
        # A rack of GB200: coreweave/nccl-tests pull request 43.
        ("gb200-nvl72", CollectiveOp.ALL_REDUCE, 2.0**32, 72, 72, 839, 0.1),
        # Eight RTX 4090 in one host, with the vendor's driver and a patched one (blog.chlc.cc).
        ("rtx4090-8x", CollectiveOp.ALL_REDUCE, 2.0**27, 8, 8, 14.5, 0.1),
        ("rtx4090-8x-p2p", CollectiveOp.ALL_REDUCE, 2.0**27, 8, 8, 20.6, 0.1),
        # None of these was fitted: NVIDIA/nccl-tests issue 307, tinygrad/open-gpu-kernel-modules issue 36.
        ("rtx4090-8x-switched", CollectiveOp.ALL_REDUCE, 2.0**30, 8, 8, 5.0, 0.3),
        ("rtx4090-8x-p2p", CollectiveOp.ALL_REDUCE, 2.0**30, 4, 4, 25.9, 0.15),
        # Eight L40S of aiconfigurator's tables.
        ("l40s-8x-congested", CollectiveOp.ALL_REDUCE, 2.0**28, 2, 2, 20.1, 0.1),
        ("l40s-8x-congested", CollectiveOp.ALL_REDUCE, 2.0**28, 4, 4, 5.2, 0.1),
        ("l40s-8x-congested", CollectiveOp.ALL_REDUCE, 2.0**28, 8, 8, 1.42, 0.2),
    ],
    ids=[
        "h100-node",
        "h100-adapter",
        "h800-node",
        "gb200-rack",
        "4090-staged",
        "4090-peers",
        "4090-switches",
        "4090-four-peers",
        "l40s-two",
        "l40s-four",
        "l40s-eight",
    ],
)
def test_packaged_fits_reach_published_bus_bandwidths(node, op, size_bytes, ranks, local, published, tolerance) -> None:
    assert packaged_busbw(node, op, size_bytes, ranks, local) == pytest.approx(published, rel=tolerance)


def test_every_catalogued_node_is_priced() -> None:
    packaged, catalog = LinkCollectiveModel(default_fits().collectives), default_catalog()
    for name in catalog.nodes:
        machine = ClusterSpec(name=name, node=catalog.node(name), num_nodes=32)
        domain = machine.domain_devices
        for op in CollectiveOp:
            for ranks, local in ((domain, domain), (2 * domain, domain), (4, 1)):
                priced = packaged.predict(calls(op, 1e8, ranks, local), machine)
                assert np.isfinite(priced.time_s[0]), (name, op)
                if ranks > 1:
                    assert priced.time_s[0] > 0, (name, op)


def test_ten_thousand_calls_in_well_under_a_tenth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    count = 10_000
    ranks = 2 ** rng.integers(1, 8, count)
    many = CollectiveCallBatch(
        op=rng.integers(0, len(CollectiveOp), count), size_bytes=rng.uniform(1e3, 1e10, count), group_size=ranks,
        ranks_per_domain=np.minimum(ranks, 2 ** rng.integers(0, 4, count)),
    )  # fmt: skip
    machine = ClusterSpec(name="x", node=default_catalog().node("dgx-h100"), num_nodes=16)
    packaged = LinkCollectiveModel(default_fits().collectives)
    packaged.predict(many, machine)
    start = time.perf_counter()
    packaged.predict(many, machine)
    assert time.perf_counter() - start < 0.1  # about 2 ms; the bound is for busy machines
