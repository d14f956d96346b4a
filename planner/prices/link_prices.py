"""What a user's own timings of collectives say of the price list, link by link."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from costmodels.kernels.calls import IntArray
from costmodels.links.collectives import CollectiveCallBatch, CollectiveCostModel, CollectiveOp
from costmodels.links.link_model import OP_OF_NAME
from costmodels.links.measured_links import Key, LinkRatios, MeasuredCollectiveModel, crosses, places_of
from profiles.cluster_string import cluster_from_mapping
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.timings import FloatArray, TimingTable

# A profiler's durations include waiting for other ranks, a host's clock the host.
_BENCHMARKS = ("nccl_tests", "events", "graph")
_NARROW = "int8"  # which switches cannot add, and no plan sends


def with_measured_links(base: CollectiveCostModel, table: TimingTable) -> CollectiveCostModel:
    """The model corrected by the collectives of a table; itself if there are none.

    Args:
        base: Prices every call.
        table: Timings. Passed over are rows of other things, of profilers, and those of which is not known what they
            crossed: of no device of the catalogue, or not spread evenly over their nodes.
    """
    places: dict[Key, list[FloatArray]] = {}
    ratios: dict[Key, list[FloatArray]] = {}
    for rows, op, cluster in _runs(table):
        calls = _calls(table, rows, op, cluster)
        listed_s = base.predict(calls, cluster).time_s
        across = crosses(calls, cluster)
        for several, link in ((False, cluster.node.scale_up.name), (True, cluster.node.nic.name)):
            some = (across == several) & (listed_s > 0)
            key = (link, several, op)
            places.setdefault(key, []).append(places_of(calls.size_bytes[some], calls.group_size[some]))
            ratios.setdefault(key, []).append(np.log(table.time_s[rows][some] / listed_s[some]))
    known = {key: LinkRatios.of(np.concatenate(places[key]), np.concatenate(ratios[key])) for key in places}
    known = {key: found for key, found in known.items() if len(found.places)}
    return MeasuredCollectiveModel(base=base, known=known) if known else base


def _runs(table: TimingTable) -> Iterator[tuple[IntArray, CollectiveOp, ClusterSpec]]:
    """Rows of one operation on as many nodes of one kind, and these nodes."""
    nodes = np.maximum(table.num_nodes, 1)
    usable = (table.kind == "collective") & (table.time_s > 0) & (table.size_bytes > 0) & (table.group_size > 1)
    usable &= np.isin(table.method.astype(str), _BENCHMARKS)
    usable &= np.isin(table.op.astype(str), list(OP_OF_NAME)) & (table.dtype != _NARROW)
    usable &= table.group_size % nodes == 0
    rows = np.flatnonzero(usable)
    alike: dict[tuple[str, str, str, int, int], list[int]] = {}
    for row in rows.tolist():
        count = int(nodes[row])
        key = (table.device[row], table.link[row], table.op[row], count, int(table.group_size[row]) // count)
        alike.setdefault(key, []).append(row)
    for (device, link, op, count, local), mine in sorted(alike.items()):
        cluster = _cluster(device, link, nodes=count, local=local)
        if cluster is not None:
            yield np.asarray(mine), OP_OF_NAME[op], cluster


def _cluster(device: str, link: str, *, nodes: int, local: int) -> ClusterSpec | None:
    """So many of the nodes that a device usually comes in, over the link that was said; None if there are none."""
    asked: dict[str, Any] = {"device": device, "num_nodes": nodes}
    try:
        usual = cluster_from_mapping(asked)
        if local > usual.node.devices_per_node:
            asked["gpus_per_node"] = local
        if link:
            asked["fabric" if nodes > 1 else "scale_up"] = link
        return cluster_from_mapping(asked)
    except SpecError:
        return None


def _calls(table: TimingTable, rows: IntArray, op: CollectiveOp, cluster: ClusterSpec) -> CollectiveCallBatch:
    """The collectives of some rows on their cluster: ranks fill a rack, or share out over the nodes."""
    ranks = table.group_size[rows]
    rack = cluster.domain_devices > cluster.node.devices_per_node
    local = np.minimum(ranks, cluster.domain_devices) if rack else ranks // cluster.num_nodes
    return CollectiveCallBatch(
        op=np.full(len(rows), int(op), dtype=np.int64), size_bytes=table.size_bytes[rows], group_size=ranks,
        ranks_per_domain=local,
    )  # fmt: skip
