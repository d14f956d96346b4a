import csv
from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.calls import Prediction
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from planner.dataflow import reallocation
from planner.dataflow.reallocation import PlacedLayouts, ReallocationModel, Route
from planner.dataflow.reallocation_reference import llama_layer_sizes, reference_cost_us
from profiles.cluster_string import parse_cluster
from tests.places import DATA

RLHF = DATA / "rlhf"
MODEL_BYTES = 64e9
NVLINK, CARD = 300e9, 25e9


class Links:
    """A second per 300 GB inside a node and per 25 GB across, nothing else."""

    def predict(self, calls: CollectiveCallBatch, cluster) -> Prediction:
        across = calls.ranks_per_domain < calls.group_size
        share = np.where(calls.op == CollectiveOp.ALL_GATHER, 1 - 1 / np.maximum(calls.group_size, 1), 1.0)
        time_s = np.where(calls.group_size > 1, calls.size_bytes * share / np.where(across, CARD, NVLINK), 0.0)
        zeros = np.zeros(len(calls))
        return Prediction(
            time_s=time_s, low_s=time_s, high_s=time_s, basis=zeros.astype(int), extrapolated=zeros.astype(bool)
        )


MODEL = ReallocationModel(cluster=parse_cluster("4x8xA100-80GB"), collectives=Links(), layer_groups=10**9)


def placed(*rows, shared=1):
    """Layouts from rows (first GPU, pipeline, tensor, data), weights shared out among so many of the data ranks."""
    shared = [shared] * len(rows)
    start, pipeline, tensor, data = np.array(rows).T
    return PlacedLayouts(
        start=start,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=data,
        shared=np.array(shared),
        shard_bytes=MODEL_BYTES / (tensor * pipeline * np.array(shared)),
        model_bytes=np.full(len(rows), MODEL_BYTES),
        identity=(((start * 100 + pipeline) * 100 + tensor) * 100 + data) * 100 + np.array(shared),
    )


def price(source, target):
    found = MODEL.between(placed(source), placed(target))
    return found.time_s[0, 0], Route(found.route[0, 0]), found.moved_bytes[0, 0]


def test_equal_layouts_on_equal_meshes_cost_nothing_and_elsewhere_something():
    assert price((0, 1, 8, 1), (0, 1, 8, 1)) == (0.0, Route.NONE, 0.0)
    time_s, route, moved = price((0, 1, 8, 1), (8, 1, 8, 1))
    assert route in (Route.BROADCAST, Route.SHARDS)
    # A node takes in the model through its eight cards.
    assert time_s == pytest.approx(MODEL_BYTES / (8 * CARD))
    assert moved == MODEL_BYTES


def test_regrouped_gather_moves_what_the_larger_shard_lacks():
    time_s, route, moved = price((0, 2, 8, 2), (0, 1, 4, 8))
    assert moved == pytest.approx(32 * MODEL_BYTES / 4)
    # Groups of four: two stages a node apart, so three quarters of the shard cross the network; a broadcast takes half
    # the model per node through all its cards and then the shard inside.
    assert MODEL.all_gather_s(placed((0, 2, 8, 2)), placed((0, 1, 4, 8)))[0, 0] == pytest.approx(
        MODEL_BYTES / 4 * 3 / 4 / CARD
    )
    assert route == Route.BROADCAST
    assert time_s == pytest.approx(MODEL_BYTES / 2 / (8 * CARD))
    time_s, route, moved = price((0, 1, 8, 1), (0, 1, 2, 4))
    assert route == Route.ALL_GATHER
    assert moved == pytest.approx(8 * (MODEL_BYTES / 2 - MODEL_BYTES / 8))
    assert time_s == pytest.approx(MODEL_BYTES / 2 * 3 / 4 / NVLINK)


def test_ranks_that_share_weights_out_gather_them():
    """ZeRO-3 over eight ranks of a node, over 32 of four nodes, and in pairs of tensor-parallel ranks."""
    whole = MODEL.all_gather_s(placed((0, 1, 1, 8), shared=8), placed((0, 1, 1, 8)))[0, 0]
    assert whole == pytest.approx(MODEL_BYTES * 7 / 8 / NVLINK)
    across = MODEL.all_gather_s(placed((0, 1, 1, 32), shared=32), placed((0, 1, 1, 32)))[0, 0]
    assert across == pytest.approx(MODEL_BYTES * 31 / 32 / CARD)
    paired = MODEL.all_gather_s(placed((0, 1, 2, 4), shared=4), placed((0, 1, 1, 8)))[0, 0]
    assert paired == whole
    # Handing shards out of whole copies moves nothing.
    assert MODEL.all_gather_s(placed((0, 1, 1, 8)), placed((0, 1, 1, 8), shared=8))[0, 0] == 0
    assert price((0, 1, 1, 8), (0, 1, 1, 8))[0] == 0


def test_shards_that_are_shared_out_are_parts_of_a_whole_model():
    """A target whose ranks share weights out takes as many bytes into its node as one that holds them whole."""
    for shared in (1, 8):
        target = placed((8, 1, 1, 8), shared=shared)
        assert MODEL.broadcast_s(placed((0, 1, 8, 1)), target)[0, 0] >= MODEL_BYTES / (8 * CARD)


def test_stages_send_what_they_hold_and_nodes_keep_what_they_have():
    # Two stages on two nodes to one node: that node lacks the half it does not hold.
    assert MODEL.broadcast_s(placed((0, 2, 8, 1)), placed((0, 1, 8, 1)))[0, 0] == pytest.approx(
        MODEL_BYTES / 2 / (8 * CARD)
    )
    # To a third node: both halves arrive at one node, whose cards they share.
    assert MODEL.broadcast_s(placed((0, 2, 8, 1)), placed((16, 1, 8, 1)))[0, 0] == pytest.approx(
        MODEL_BYTES / (8 * CARD)
    )
    # Two stages to two stages elsewhere: half per node.
    assert MODEL.broadcast_s(placed((0, 2, 8, 1)), placed((16, 2, 8, 1)))[0, 0] == pytest.approx(
        MODEL_BYTES / 2 / (8 * CARD)
    )


def test_own_shards_through_own_cards():
    # tensor parallel 8, one copy: a rank fetches an eighth through its card, as a broadcast does.
    assert MODEL.shards_s(placed((0, 1, 8, 1)), placed((8, 1, 8, 1)))[0, 0] == pytest.approx(MODEL_BYTES / 8 / CARD)
    # Eight copies: every rank fetches the whole model, and eight ranks send eight times that.
    assert MODEL.shards_s(placed((0, 1, 8, 1)), placed((8, 1, 1, 8)))[0, 0] == pytest.approx(MODEL_BYTES / CARD)
    assert MODEL.shards_s(placed((0, 1, 8, 1)), placed((8, 1, 1, 16)))[0, 0] == pytest.approx(2 * MODEL_BYTES / CARD)
    assert price((0, 1, 8, 1), (8, 1, 1, 8))[1] == Route.BROADCAST


def test_chains_of_nodes_fill_before_they_flow():
    few = ReallocationModel(cluster=MODEL.cluster, collectives=Links(), layer_groups=4)
    one = few.broadcast_s(placed((0, 1, 8, 1)), placed((8, 1, 8, 1)))[0, 0]
    three = few.broadcast_s(placed((0, 1, 8, 1)), placed((8, 1, 8, 3)))[0, 0]
    assert three - one == pytest.approx(2 * MODEL_BYTES / 4 / (8 * CARD))


def all_layouts():
    rows = [(start, 1, tensor, 4 // tensor) for start in range(0, 32, 4) for tensor in (1, 2, 4)]
    for nodes in (1, 2, 4):
        for start in range(0, 32 - 8 * nodes + 1, 8):
            for tensor in (1, 4, 8):
                for pipeline in (1, 2, 4):
                    if 8 * nodes % (tensor * pipeline) == 0:
                        rows.append((start, pipeline, tensor, 8 * nodes // (tensor * pipeline)))
    return rows


def test_flows_between_nodes_agree_with_counting_layers_rank_by_rank():
    rows = all_layouts()
    layouts = placed(*rows)
    inflow, _, nodes, pairs = MODEL._shape_flows(layouts, layouts)
    inflow, nodes = inflow[pairs], nodes[pairs]
    layers = 16

    def held(row, node):
        start, pipeline, tensor, data = row
        found = set()
        for rank in range(pipeline * tensor * data):
            if (start + rank) // 8 == node:
                stage = rank // (tensor * data)
                found |= set(range(stage * layers // pipeline, (stage + 1) * layers // pipeline))
        return found

    holdings = [[held(row, node) for node in range(4)] for row in rows]
    for s in range(0, len(rows), 3):
        for t in range(0, len(rows), 2):
            missing = [len(holdings[t][node] - holdings[s][node]) / layers for node in range(4)]
            assert inflow[s, t] == pytest.approx(max(missing))
            assert nodes[s, t] == sum(share > 0 for share in missing)


def test_prices_are_never_negative_and_the_cheapest_route_is_taken():
    layouts = placed(*all_layouts())
    found = MODEL.between(layouts, layouts)
    routes = np.stack([f(layouts, layouts) for f in (MODEL.all_gather_s, MODEL.broadcast_s, MODEL.shards_s)])
    moving = found.route != Route.NONE
    assert (found.time_s[~moving] == 0).all()
    assert np.array_equal(found.time_s[moving], routes.min(axis=0)[moving])
    assert (found.time_s[moving & (layouts.identity[:, None] != layouts.identity)] >= 0).all()


def test_pairs_are_priced_together_as_each_is_alone(monkeypatch):
    """Equal amounts once, in blocks of any size; with shards that differ though meshes are the same."""
    rows = all_layouts()
    layouts = placed(*rows)
    layouts = replace(layouts, shard_bytes=layouts.shard_bytes * np.random.default_rng(0).choice([1.0, 1.3], len(rows)))
    together = MODEL.between(layouts, layouts).time_s
    data_s = MODEL.data_s(layouts, layouts, 1e9)
    monkeypatch.setattr(reallocation, "_BLOCK_PAIRS", 3 * len(rows))
    assert np.array_equal(MODEL.between_s(layouts, layouts), together)
    for s, t in np.random.default_rng(1).integers(0, len(rows), (300, 2)):
        pair = layouts.take(np.array([s])), layouts.take(np.array([t]))
        assert MODEL.between(*pair).time_s[0, 0] == together[s, t]
        assert MODEL.data_s(*pair, 1e9)[0, 0] == data_s[s, t]


def test_the_reference_formula_by_hand():
    sizes = llama_layer_sizes(hidden=64, intermediate=128, layers=2, vocabulary=1024, kv_width=64)
    total = 2 * 1024 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128) + 5 * 64
    assert sum(sizes.counted) == sum(sizes.sharded) + sum(sizes.replicated) == total
    local_s, network_s = (16 * total / (rate * 2**30) for rate in (1800, 200))
    assert reference_cost_us(sizes, (1, 1, 1), (1, 1, 1)) == 30_000
    assert reference_cost_us(sizes, (1, 1, 4), (1, 1, 4)) == int((0.03 + local_s) * 1e6)
    # One sender for receivers on two nodes, one of which is its own: counted as two nodes over the network.
    assert reference_cost_us(sizes, (1, 1, 1), (1, 1, 16)) == int((0.03 + 2 * network_s) * 1e6)


@pytest.mark.skipif(not RLHF.is_dir(), reason="no measurements in the data folder")
def test_the_reference_formula_agrees_with_its_published_table():
    sizes = llama_layer_sizes(hidden=8192, intermediate=22016, layers=48, vocabulary=32000, kv_width=1024)
    with (RLHF / "real_param_realloc_cost_table_34B.csv").open() as stream:
        rows = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    assert len(rows) == 11_731
    # Every seventh here; the report compares all of them.
    for row in rows[::7]:
        source = row["src_pp"], row["src_tp"], row["src_dp"]
        target = row["dst_pp"], row["dst_tp"], row["dst_dp"]
        assert reference_cost_us(sizes, source, target) == row["cost_us"], (source, target)


@pytest.mark.parametrize(("spread", "link"), [(2, NVLINK), (8, NVLINK), (16, CARD)])
def test_experts_that_were_spread_come_from_those_that_hold_them(spread: int, link: float) -> None:
    source, target = placed((0, 1, 1, 16)), placed((0, 1, 1, 16))
    source = replace(source, shard_bytes=source.shard_bytes / spread, identity=source.identity + 1)
    lacks = MODEL_BYTES * (1 - 1 / spread)
    assert MODEL.all_gather_s(source, target)[0, 0] == pytest.approx(lacks / link)
    found = MODEL.between(source, target)
    assert found.moved_bytes[0, 0] == pytest.approx(
        16 * (lacks if found.route[0, 0] == Route.ALL_GATHER else MODEL_BYTES)
    )
    assert MODEL.all_gather_s(target, source)[0, 0] == 0  # they have it


def test_stages_of_unlike_length_gather_nothing_more() -> None:
    source, target = placed((0, 4, 1, 4)), placed((0, 4, 1, 4))
    source = replace(source, shard_bytes=source.shard_bytes / 1.4, identity=source.identity + 1)
    assert MODEL.all_gather_s(source, target)[0, 0] == 0
