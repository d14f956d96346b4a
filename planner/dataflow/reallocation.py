"""What it costs to move the weights of a role from where one call holds them to where another needs them.

Meshes are where they are: what a node already holds it does not fetch. Four routes are priced through the one model
of collectives, and the cheapest is taken:

* nothing moves where mesh and layout are equal;
* ``all_gather``: on one mesh, ranks regrouped so that each gathers the shards that make up its larger one;
* ``broadcast``: every layer enters each node that lacks it once, through all of the node's network cards, is passed
  on from node to node, and spreads inside the node;
* ``shards``: every rank fetches its own shard from a rank that holds it, through its own network card.

Transfers of one node share its cards: bytes into a node, or out of it, add up.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import partial, reduce

import numpy as np

from costmodels.links.collectives import CollectiveCallBatch, CollectiveCostModel, CollectiveOp
from costmodels.plan import BoolArray, FloatArray, IntArray
from profiles.hardware import ClusterSpec

_BLOCK_PAIRS = 1_000_000  # priced at once; bounds memory


class Route(IntEnum):
    """How weights travel."""

    NONE = 0
    ALL_GATHER = 1
    BROADCAST = 2
    SHARDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLayouts:
    """Where copies of a model lie, and how they are cut. Arrays have shape [layouts] and agree row by row.

    Ranks count tensor-parallel first, then data-parallel, then pipeline stages, from the first GPU of the mesh.

    Attributes:
        start: First GPU of the mesh.
        tensor_parallel: Shards of each layer.
        pipeline_parallel: Stages.
        data_parallel: Copies.
        shared: Ranks among which each shares the weights of its shard and stage, as ZeRO-3 does; 1 where none do.
        shard_bytes: Weights on each rank.
        model_bytes: Weights of one whole copy.
        identity: Equal for layouts that hold equal shards on equal meshes.
    """

    start: IntArray
    tensor_parallel: IntArray
    pipeline_parallel: IntArray
    data_parallel: IntArray
    shared: IntArray
    shard_bytes: FloatArray
    model_bytes: FloatArray
    identity: IntArray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: IntArray | slice) -> "PlacedLayouts":
        """Only the given layouts."""
        return PlacedLayouts(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    @property
    def size(self) -> IntArray:
        """GPUs of each mesh, shape [layouts]."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def stop(self) -> IntArray:
        """One past the last GPU of each mesh, shape [layouts]."""
        return self.start + self.size


# Into the node that lacks most, out of the busiest source, nodes that lack anything, and the place of every pair.
_Flows = tuple[FloatArray, FloatArray, IntArray, tuple[IntArray, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reallocation:
    """Prices between all pairs of layouts. Arrays have shape [sources, targets].

    Attributes:
        time_s: Seconds, during which both meshes are busy.
        moved_bytes: Bytes received by all ranks of the target together.
        route: Code of ``Route``.
    """

    time_s: FloatArray
    moved_bytes: FloatArray
    route: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ReallocationModel:
    """Prices on one cluster.

    Attributes:
        cluster: Devices and links.
        collectives: Prices of single transfers.
        layer_groups: Messages a model is sent in; more make a chain of nodes fill faster and cost more latency.
    """

    cluster: ClusterSpec
    collectives: CollectiveCostModel
    layer_groups: int = 32

    def between(self, source: PlacedLayouts, target: PlacedLayouts) -> Reallocation:
        """The cheapest route for every pair.

        Args:
            source: Copies that weights may come from.
            target: Copies they may go to.
        """
        parts = [self._between(block, target) for block in _blocks(source, target)]
        return Reallocation(
            time_s=np.concatenate([part.time_s for part in parts]),
            moved_bytes=np.concatenate([part.moved_bytes for part in parts]),
            route=np.concatenate([part.route for part in parts]),
        )

    def between_s(self, source: PlacedLayouts, target: PlacedLayouts) -> FloatArray:
        """Seconds of ``between`` alone."""
        found = np.empty((len(source), len(target)))
        begin = 0
        for block in _blocks(source, target):
            rows = found[begin : begin + len(block)]
            reduce(partial(np.minimum, out=rows), self._routes_s(block, target))
            rows[block.identity[:, None] == target.identity] = 0.0
            begin += len(block)
        return found

    def _routes_s(self, source: PlacedLayouts, target: PlacedLayouts) -> tuple[FloatArray, ...]:
        """Seconds by each route, in the order of their codes from ``Route.ALL_GATHER`` on."""
        flows = self._shape_flows(source, target)
        return (
            self.all_gather_s(source, target),
            self._broadcast_s(source, target, flows),
            self._shards_s(source, target, flows),
        )

    def _between(self, source: PlacedLayouts, target: PlacedLayouts) -> Reallocation:
        times = np.stack(self._routes_s(source, target))
        route = times.argmin(axis=0) + int(Route.ALL_GATHER)
        time_s = times.min(axis=0)
        moved = np.broadcast_to(target.shard_bytes * target.size, time_s.shape).copy()
        gathered = route == Route.ALL_GATHER
        moved[gathered] = (self._missing_shard(source, target) * target.size)[gathered]
        same = source.identity[:, None] == target.identity
        return Reallocation(
            time_s=np.where(same, 0.0, time_s),
            moved_bytes=np.where(same, 0.0, moved),
            route=np.where(same, int(Route.NONE), route),
        )

    def all_gather_s(self, source: PlacedLayouts, target: PlacedLayouts) -> FloatArray:
        """Gather on one mesh; infinite between meshes, or where shards of the target are no unions of the source's.

        A rank ends with ``M / (t_g p_g)`` bytes, of which it had ``M / (t p)``; the groups are those HybridFlow forms
        (arXiv:2409.19256, section 5.3), so that no rank holds more than that. Ranks that share a shard gather it first.
        Experts that were spread over more ranks come from as many as hold together what one holds then, to the nearest
        number: stages of unlike lengths are no shards that others hold.
        """
        one_mesh = _on_one_mesh(source, target)
        time_s = np.full(one_mesh.shape, np.inf)
        row, column = np.divmod(np.flatnonzero(one_mesh), len(target))
        held, wanted = source.take(row), target.take(column)
        wider = held.tensor_parallel // wanted.tensor_parallel
        longer = held.pipeline_parallel // wanted.pipeline_parallel
        whole = (held.tensor_parallel % wanted.tensor_parallel == 0) & (
            held.pipeline_parallel % wanted.pipeline_parallel == 0
        )
        apart = held.shared // wanted.shared
        whole &= (held.shared % wanted.shared == 0) | (wanted.shared % held.shared == 0)
        group = np.maximum(wider * longer, 1) * np.maximum(apart, 1)
        stages_in_node = np.maximum(self._node_gpus(held.size) // (held.tensor_parallel * held.data_parallel), 1)
        near = np.maximum(wider, 1) * np.minimum(np.maximum(longer, 1), stages_in_node)
        replicas_in_node = np.maximum(self._node_gpus(held.size) // held.tensor_parallel, 1)
        near *= np.minimum(np.maximum(apart, 1), replicas_in_node)
        spread = np.rint(wanted.shard_bytes / held.shard_bytes).astype(np.int64)
        near = np.where(spread > group, np.minimum(spread, np.maximum(near, replicas_in_node)), near)
        group = np.maximum(group, spread)
        gathered_s = self._price(CollectiveOp.ALL_GATHER, wanted.shard_bytes[whole], group[whole], near[whole])
        time_s[row[whole], column[whole]] = gathered_s
        return time_s

    def broadcast_s(self, source: PlacedLayouts, target: PlacedLayouts) -> FloatArray:
        """Every layer into each node that lacks it once, then to the ranks inside."""
        return self._broadcast_s(source, target, self._shape_flows(source, target))

    def _broadcast_s(self, source: PlacedLayouts, target: PlacedLayouts, between: _Flows) -> FloatArray:
        inflow, outflow, nodes, pairs = between
        cards = self.cluster.node.nics_per_node
        flows, flow = np.unique(np.maximum(inflow, outflow), return_inverse=True)
        sizes_bytes, size = np.unique(target.model_bytes, return_inverse=True)
        each_s = self._across_s(flows[:, None] * sizes_bytes / cards)
        network_s = each_s[flow.reshape(inflow.shape)[pairs], size]
        # A chain of nodes is full once the first message has passed all but the last of them.
        hop_s = self._across_s(target.model_bytes / self.layer_groups / cards)
        # Messages travel inside nodes while the next ones arrive; the slower link sets the pace.
        local_s = np.where(self._alone(source, target), 0.0, self._inside_s(target.shard_bytes))
        return np.maximum(network_s, local_s) + np.maximum(nodes - 1, 0)[pairs] * hop_s

    def shards_s(self, source: PlacedLayouts, target: PlacedLayouts) -> FloatArray:
        """Every rank fetches its own shard; ranks that hold it share the work of sending."""
        return self._shards_s(source, target, self._shape_flows(source, target))

    def _shards_s(self, source: PlacedLayouts, target: PlacedLayouts, between: _Flows) -> FloatArray:
        inflow, _, _, pairs = between
        sizes, size = np.unique(source.size, return_inverse=True)
        (shards, ranks), shard = np.unique(np.stack([target.shard_bytes, target.size]), axis=1, return_inverse=True)
        most = np.maximum(shards, (shards * ranks) / sizes[:, None])
        ends = np.ix_(size, shard.reshape(-1))
        inside_s = np.where(self._alone(source, target), 0.0, self._inside_s(most)[ends])
        return np.where((inflow > 0)[pairs], self._across_s(most * self._devices_per_card)[ends], inside_s)

    def data_s(self, source: PlacedLayouts, target: PlacedLayouts, total_bytes: float) -> FloatArray:
        """What calls write for each other: sharded over replicas, from the GPUs of one stage to those of another.

        Every GPU of a stage sends or receives an equal share, through its network card unless both stages lie in one
        node. Nothing moves where mesh, replicas and stages are equal.
        """
        senders, receivers = source.size // source.pipeline_parallel, target.size // target.pipeline_parallel
        (sent, sender), (taken, taker) = (np.unique(ranks, return_inverse=True) for ranks in (senders, receivers))
        share = total_bytes / np.minimum(sent[:, None], taken)
        ends = np.ix_(sender, taker)
        each = self.cluster.domain_devices
        first, last = source.start // each, (source.start + source.size - 1) // each
        one_node = (first[:, None] == target.start // each) & (
            last[:, None] == (target.start + target.size - 1) // each
        )
        one_node &= (first == last)[:, None]
        same = _on_one_mesh(source, target)
        same &= source.pipeline_parallel[:, None] == target.pipeline_parallel
        same &= source.data_parallel[:, None] == target.data_parallel
        across_s = self._across_s(share * self._devices_per_card)
        return np.where(same, 0.0, np.where(one_node, self._inside_s(share)[ends], across_s[ends]))

    @property
    def _devices_per_card(self) -> float:
        return self.cluster.node.devices_per_node / self.cluster.node.nics_per_node

    def _across_s(self, size_bytes: FloatArray) -> FloatArray:
        """Seconds for so many bytes through one network card; each amount is priced once."""
        return self._each_once_s(size_bytes, near=1)

    def _inside_s(self, size_bytes: FloatArray) -> FloatArray:
        """Seconds for so many bytes to one GPU inside a node."""
        return self._each_once_s(size_bytes, near=2)

    def _each_once_s(self, size_bytes: FloatArray, *, near: int) -> FloatArray:
        amounts, place = np.unique(size_bytes, return_inverse=True)
        two = np.full(len(amounts), 2)
        time_s = self._price(CollectiveOp.SEND_RECV, amounts, two, np.full(len(amounts), near))
        return time_s[place].reshape(size_bytes.shape)

    def _price(self, op: CollectiveOp, size_bytes: FloatArray, group: IntArray, near: IntArray) -> FloatArray:
        calls = CollectiveCallBatch(
            op=np.full(len(size_bytes), int(op), dtype=np.int64),
            size_bytes=size_bytes,
            group_size=group,
            ranks_per_domain=near,
        )
        return self.collectives.predict(calls, self.cluster).time_s

    def _node_gpus(self, size: IntArray) -> IntArray:
        gpus: IntArray = np.minimum(size, self.cluster.domain_devices)
        return gpus

    def _alone(self, source: PlacedLayouts, target: PlacedLayouts) -> BoolArray:
        """Pairs of single GPUs that are the same one."""
        alone: BoolArray = _on_one_mesh(source, target) & (target.size == 1)
        return alone

    def _missing_shard(self, source: PlacedLayouts, target: PlacedLayouts) -> FloatArray:
        missing: FloatArray = np.maximum(target.shard_bytes - source.shard_bytes[:, None], 0.0)
        return missing

    def _shape_flows(self, source: PlacedLayouts, target: PlacedLayouts) -> _Flows:
        """Share of the model into the node that lacks most, share out of the busiest source, nodes that lack anything.

        All between distinct shapes, then the place among these of every pair. Nodes of a source that hold the same
        layers share the sending evenly, and a layer leaves the source once: nodes pass it on.
        """
        senders, sender = _shapes(source)
        receivers, receiver = _shapes(target)
        inflow, total, nodes = self._flows(senders, receivers)
        # A model of one copy over k nodes leaves each of them in part; copies share the work.
        source_nodes = np.maximum(-(-senders.size // self.cluster.domain_devices), 1)
        outflow = np.where(inflow > 0, np.minimum(1.0 / source_nodes[:, None], total), 0.0)
        return inflow, outflow, nodes, np.ix_(sender, receiver)

    def _flows(self, source: PlacedLayouts, target: PlacedLayouts) -> tuple[FloatArray, FloatArray, IntArray]:
        """Largest and total share of the model that nodes lack, and how many lack any. [sources, targets]."""
        each = self.cluster.domain_devices
        first = np.arange(-(-self.cluster.num_devices // each)) * each
        low, high = (_layers_in(target, first[:, None], each)[end] for end in (0, 1))  # [nodes, targets]
        inflow, total, nodes = _lacking(high - low, source.start // each, -(-source.stop // each))
        for node, begin in enumerate(first.tolist()):
            held, wanted = np.asarray(_layers_in(source, begin, each)), high[node] > low[node]
            rows, columns = np.flatnonzero(held[1] > held[0]), np.flatnonzero(wanted)
            if not (len(rows) and len(columns)):
                continue
            has_low, has_high = held[:, rows, None]
            common = np.minimum(has_high, high[node, columns]) - np.maximum(has_low, low[node, columns])
            missing = (high[node, columns] - low[node, columns]) - np.maximum(common, 0.0)
            missing[missing < 1e-12] = 0.0
            pairs = np.ix_(rows, columns)
            inflow[pairs] = np.maximum(inflow[pairs], missing)
            total[pairs] += missing
            nodes[pairs] += missing > 0
        return inflow, total, nodes


def _on_one_mesh(source: PlacedLayouts, target: PlacedLayouts) -> BoolArray:
    """Pairs of layouts on the same GPUs."""
    found: BoolArray = (source.start[:, None] == target.start) & (source.size[:, None] == target.size)
    return found


def _blocks(source: PlacedLayouts, target: PlacedLayouts) -> Iterator[PlacedLayouts]:
    """The sources, as many at once as bound memory."""
    block = max(1, _BLOCK_PAIRS // max(len(target), 1))
    return (source.take(slice(row, row + block)) for row in range(0, len(source), block))


def _shapes(layouts: PlacedLayouts) -> tuple[PlacedLayouts, IntArray]:
    """Layouts that differ in mesh or stages, and which of them each layout is like: the rest does not move layers."""
    keys = np.stack([layouts.start, layouts.size, layouts.pipeline_parallel])
    _, first, place = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    return layouts.take(first), place.reshape(-1)


def _lacking(share: FloatArray, begin: IntArray, end: IntArray) -> tuple[FloatArray, FloatArray, IntArray]:
    """Largest, total and number of the shares of nodes outside a run of nodes; three of shape [runs, targets].

    Args:
        share: Of the model that each node of each target holds. [nodes, targets]
        begin: First node of each run. [runs]
        end: One past its last node. [runs]
    """
    nothing = np.zeros_like(share[:1])
    before = np.concatenate([nothing, share])
    behind = np.concatenate([share, nothing])[::-1]
    most = [np.maximum.accumulate(side) for side in (before, behind)]
    total = [side.cumsum(axis=0) for side in (before, behind)]
    count = [(side > 0).cumsum(axis=0) for side in (before, behind)]
    rest = len(share) - end  # nodes behind the run
    return (
        np.maximum(most[0][begin], most[1][rest]),
        total[0][begin] + total[1][rest],
        count[0][begin] + count[1][rest],
    )


def _layers_in(layouts: PlacedLayouts, first: IntArray | int, gpus: int) -> tuple[FloatArray, FloatArray]:
    """Interval of layers, as shares of the model, that GPUs ``first .. first + gpus - 1`` hold. Empty as (0, 0).

    A node holds whole layers: tensor-parallel groups do not leave it.
    """
    stage = layouts.tensor_parallel * layouts.data_parallel
    begin = np.clip(first - layouts.start, 0, layouts.size)
    end = np.clip(first + gpus - layouts.start, 0, layouts.size)
    low = begin // stage / layouts.pipeline_parallel
    high = -(-end // stage) / layouts.pipeline_parallel
    empty = end <= begin
    return np.where(empty, 0.0, low), np.where(empty, 0.0, high)
