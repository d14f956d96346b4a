"""Which meshes a call may use: runs of consecutive GPUs, aligned to nodes, within the region its placement leaves it.

A mesh is part of one node, aligned to its size, or a run of whole nodes, as ReaLHF's are
(arXiv:2406.14088 section 4). Of a single node with up to ``SMALL_NODE`` GPUs every run is a mesh, so
that what a call may do with some GPUs it may do with more: five are no worse than four. Up to
``EVERY_RUN`` nodes every run of nodes is a mesh. Above, there are runs of 2^k and 3 * 2^k nodes, up to
``_MOST_FACTORS_NODES`` nodes also of 5 * 2^k and 7 * 2^k, at every quarter of their size and at the end, of
what these leave beside them, and of all nodes, from a sixteenth of the nodes on: longer runs that begin
one node later are no different in kind, and their number grows with the square of the nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, IntArray
from planner.dataflow.flow.pins import CallPin
from planner.dataflow.flow.request import ASYNC, COLOCATED, DISAGGREGATED, FlowRequest
from planner.dataflow.graphs.graph import EXTERNAL, GENERATE, INFERENCE, TRAIN
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.mixed_cluster import MixedCluster

EVERY_RUN = 20  # nodes
SMALL_NODE = 8  # GPUs
_CUT_NODES, _CUTS = 2, 4  # of so many nodes pools may end at every quarter
_FACTORS = (1, 3, 5, 7)  # of powers of two that make lengths of runs on large clusters
_MOST_FACTORS_NODES = 32  # from which on there are fewer
_PARTS = 16  # of a cluster of more nodes that the smallest mesh makes up


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshes:
    """Meshes of a cluster, by size and then by start.

    Attributes:
        start: First GPU of each. [meshes]
        size: GPUs of each. [meshes]
    """

    start: IntArray
    size: IntArray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def stop(self) -> IntArray:
        """One past the last GPU of each."""
        return self.start + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """GPUs a call may use.

    Attributes:
        first: First of them.
        stop: One past the last.
        whole: Whether it must use all of them.
    """

    first: int
    stop: int
    whole: bool = False

    def holds(self, start: IntArray, size: IntArray) -> BoolArray:
        """(M,) whether meshes lie in it, and fill it if they must."""
        if self.whole:
            return np.asarray((start == self.first) & (start + size == self.stop))
        return np.asarray((start >= self.first) & (start + size <= self.stop))


def least_mesh(cluster: ClusterSpec) -> int:
    """Fewest GPUs of a mesh when the user does not say: one on up to two nodes, half a node beyond, then more."""
    each = cluster.node.devices_per_node
    if cluster.num_nodes <= EVERY_RUN:
        return 1 if cluster.num_nodes <= 2 else max(each // 2, 1)
    return each * max(cluster.num_nodes // _PARTS, 1)


def cluster_meshes(cluster: ClusterSpec, min_mesh: int | None = None) -> Meshes:
    """All meshes of identical nodes with at least ``min_mesh`` GPUs.

    Raises:
        SpecError: If the smallest mesh wanted exceeds the cluster.
    """
    least = least_mesh(cluster) if min_mesh is None else min_mesh
    if least > cluster.num_devices:
        raise SpecError("min_mesh", f"must be at most the {cluster.num_devices} GPUs; got {least}")
    each, nodes = cluster.node.devices_per_node, cluster.num_nodes
    found = {part for part in _parts_of_nodes(cluster) if part[0] >= least}
    found |= {(run * each, node * each) for run, node in _runs(nodes) if run * each >= least}
    table = np.asarray(sorted(found), dtype=np.int64)
    return Meshes(start=table[:, 1], size=table[:, 0])


def _starts(size: int, cluster: ClusterSpec) -> list[int]:
    """First GPUs of all meshes of so many GPUs: anywhere within a node, or from any node on."""
    each = cluster.node.devices_per_node
    if size > each:
        return [start for start in range(0, cluster.num_devices - size + 1, each) if size % each == 0]
    return [node + start for node in range(0, cluster.num_devices, each) for start in range(each - size + 1)]


def _parts_of_nodes(cluster: ClusterSpec) -> set[tuple[int, int]]:
    """Size and first GPU of meshes within a node."""
    each = cluster.node.devices_per_node
    if cluster.num_nodes == 1 and each <= SMALL_NODE:
        return {(size, start) for size in range(1, each) for start in range(each - size + 1)}
    sizes = [size for size in range(1, each) if each % size == 0]
    return {(size, start) for size in sizes for start in range(0, cluster.num_devices, size)}


def machine_meshes(machines: MixedCluster, min_mesh: int | None = None) -> Meshes:
    """All meshes of every kind of machines; none spans two kinds.

    Raises:
        SpecError: If the smallest mesh wanted exceeds every group.
    """
    most = max(group.num_devices for group in machines.groups)
    if min_mesh is not None and min_mesh > most:
        raise SpecError("min_mesh", f"must be at most the {most} GPUs of one kind; got {min_mesh}")
    start, size = [], []
    for first, group in zip(machines.starts, machines.groups, strict=True):
        if min_mesh is None or min_mesh <= group.num_devices:
            meshes = cluster_meshes(group, min_mesh)
            start.append(first + meshes.start)
            size.append(meshes.size)
    return Meshes(start=np.concatenate(start), size=np.concatenate(size))


def groups_of(machines: MixedCluster, gpus: IntArray) -> IntArray:
    """Kind of machines that each of some GPUs belongs to, as its number among the groups."""
    return np.asarray(np.searchsorted(machines.starts, gpus, side="right") - 1, dtype=np.int64)


def with_pinned(meshes: Meshes, pins: Mapping[str, CallPin], machines: MixedCluster) -> Meshes:
    """The meshes and those that pins name: where they say so, or anywhere if no mesh has so many GPUs."""
    found = set(zip(meshes.size.tolist(), meshes.start.tolist(), strict=True))
    sizes = set(meshes.size.tolist())
    for pin in pins.values():
        if pin.num_gpus and pin.first_gpu is not None:
            found.add((pin.num_gpus, pin.first_gpu))
        elif pin.num_gpus and pin.num_gpus not in sizes:
            for first, group in zip(machines.starts, machines.groups, strict=True):
                found |= {(pin.num_gpus, first + start) for start in _starts(pin.num_gpus, group)}
    table = np.asarray(sorted(found), dtype=np.int64)
    return Meshes(start=table[:, 1], size=table[:, 0])


def placements(request: FlowRequest, machines: MixedCluster) -> list[dict[str, Region]]:
    """Regions by call, one set per way the mode divides the machines."""
    total = machines.num_devices
    names = [call.name for call in request.graph.calls if call.kind != EXTERNAL]
    if request.mode == COLOCATED:
        # On all GPUs of one kind: a mesh never spans two.
        wholes = [
            Region(first=first, stop=first + group.num_devices, whole=True)
            for first, group in zip(machines.starts, machines.groups, strict=True)
        ]
        return [dict.fromkeys(names, whole) for whole in wholes]
    if request.mode not in (DISAGGREGATED, ASYNC):
        return [dict.fromkeys(names, Region(first=0, stop=total))]
    generating = {call.name for call in request.graph.calls if call.kind == GENERATE}
    if not generating or generating == set(names):
        problem = f"needs calls that generate and others; {request.graph.name} has one kind only"
        raise SpecError("mode", problem, "hybrid")
    if total <= 1:
        raise SpecError("mode", f"{request.mode} divides GPUs among two pools; there is {total}", "at least 2 GPUs")
    cuts = [gpu for gpu in range(1, total) if _may_cut(machines.node_of, gpu)]
    pools = [(Region(first=0, stop=cut), Region(first=cut, stop=total)) for cut in cuts]
    if len(machines.groups) > 1:
        pools += [(late, early) for early, late in pools]  # which machines generate matters where they differ
    return [{name: early if name in generating else late for name in names} for early, late in pools]


def on_whole_pools(request: FlowRequest) -> frozenset[str]:
    """Inference with the only role that is trained, where GPUs are divided: on all that do not generate.

    Trainers compute log-probabilities where they train (verl, NeMo-RL, OpenRLHF); leaving open where makes the search
    for GRPO on eight nodes take six times as long for nothing.
    """
    graph = request.graph
    trained = {call.role for call in graph.calls if call.kind == TRAIN}
    if request.mode not in (DISAGGREGATED, ASYNC) or len(trained) > 1:
        return frozenset()
    return frozenset(call.name for call in graph.calls if call.kind == INFERENCE and call.role in trained)


def _may_cut(node_of: Sequence[int], gpu: int) -> bool:
    """Whether pools may be divided before a GPU: between nodes, and inside the few of a small cluster."""
    node, nodes = node_of[gpu], node_of[-1] + 1
    if node != node_of[gpu - 1] or nodes == 1:
        return True
    inside = gpu - node_of.index(node)
    return nodes <= _CUT_NODES and inside * _CUTS % node_of.count(node) == 0


def _runs(nodes: int) -> set[tuple[int, int]]:
    """Nodes and first node of runs of whole nodes."""
    if nodes <= EVERY_RUN:
        return {(run, node) for run in range(1, nodes + 1) for node in range(nodes - run + 1)}
    factors = _FACTORS if nodes <= _MOST_FACTORS_NODES else _FACTORS[:2]
    sizes = {factor << k for k in range(nodes.bit_length()) for factor in factors if factor << k < nodes}
    found = {(run, node) for run in sizes for node in range(0, nodes - run + 1, _step(run))}
    # With a run at either end goes what it leaves.
    ends = {(run, nodes - run) for run in sizes} | {(nodes - run, node) for run in sizes for node in (0, run)}
    return found | ends | {(nodes, 0)}


def _step(run: int) -> int:
    """A quarter of a run, as a power of two."""
    return 1 << max(run.bit_length() - 3, 0)
