"""What moving the weights of a role between two calls costs, for every pair of candidates.

Prices are those of ``planner.dataflow.reallocation``; here candidates become the layouts it knows. Context-parallel
ranks hold the same weights, as data-parallel ones do. Links carry weights faster than engines take them in, tensor by
tensor, so that an update takes the longer of both (``EngineSpec.update_s``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.flow.payloads import Payload
from planner.dataflow.flow.placement import groups_of
from planner.dataflow.holdings import ALL_OUT, CallRows
from planner.dataflow.reallocation import PlacedLayouts, Reallocation, ReallocationModel
from planner.dataflow.solving.problem import CallCandidates, PairTimes
from planner.prices.price_lists import collective_model
from profiles.engines import TRAINER, find_engine
from profiles.hardware import ClusterSpec
from profiles.mixed_cluster import MixedCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRows:
    """Candidates of one call with what each of them is.

    Attributes:
        call: The candidates.
        rows: Ways to run and hold the call.
        row: Row of ``rows`` of each candidate. [candidates]
        payload: What an update of its weights carries; None for all of them, without what an engine takes to load
            them.
    """

    call: CallCandidates
    rows: CallRows
    row: IntArray
    payload: Payload | None = None

    def take(self, candidates: IntArray) -> "PlacedRows":
        """Some of the candidates."""
        return replace(self, call=self.call.take(candidates), row=self.row[candidates])


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPrices:
    """Prices on machines of one or several kinds.

    Attributes:
        cluster: The machines.
        models: Prices from each kind to each kind. Between two kinds, both lie on nodes of the one with the slower
            network, one kind behind the other.
    """

    cluster: MixedCluster
    models: tuple[tuple[ReallocationModel, ...], ...]

    @classmethod
    def on(cls, cluster: MixedCluster) -> "TransferPrices":
        """Prices on machines, by the packaged model of collectives."""
        kinds = range(len(cluster.groups))
        collectives = collective_model()
        models = [
            [ReallocationModel(cluster=_joined(cluster, a, b), collectives=collectives) for b in kinds] for a in kinds
        ]
        return cls(cluster=cluster, models=tuple(tuple(row) for row in models))

    def between(self, source: PlacedRows, target: PlacedRows) -> PairTimes:
        """Seconds for every pair of classes of candidates; a class is one layout on one mesh."""
        source_class, sources, _, away = _classes(source)
        target_class, targets, engines, _ = _classes(target)
        time_s = np.maximum(_updates_s(sources, targets, engines, target), self._read_s(sources, away))
        for prices, block, ends in self._blocks(sources, targets):
            time_s[block] = np.maximum(prices.between_s(*ends), time_s[block])
        return PairTimes(source_class=source_class, target_class=target_class, time_s=time_s)

    def handed_on(self, source: PlacedRows, target: PlacedRows, total_bytes: float) -> PairTimes:
        """Seconds of handing on so many bytes of data, for the same classes as ``between``."""
        source_class, sources, *_ = _classes(source)
        target_class, targets, *_ = _classes(target)
        time_s = np.empty((len(sources), len(targets)))
        for prices, block, ends in self._blocks(sources, targets):
            time_s[block] = prices.data_s(*ends, total_bytes)
        return PairTimes(source_class=source_class, target_class=target_class, time_s=time_s)

    def most_handed_on_s(self, total_bytes: float) -> float:
        """Seconds that no handing on of so many bytes exceeds: from one GPU to one in another node."""
        one = _only(shards=1, copies=1, whole_bytes=0.0)
        apart = _shifted(one, self.cluster.num_devices)
        return max(float(prices.data_s(one, apart, total_bytes)[0, 0]) for row in self.models for prices in row)

    def pair(self, source: PlacedRows, target: PlacedRows) -> Reallocation:
        """Seconds, bytes and route between the only candidates of two calls."""
        (_, sources, _, away), (_, targets, engines, _) = _classes(source), _classes(target)
        least_s = np.maximum(_updates_s(sources, targets, engines, target), self._read_s(sources, away))
        return self._moved(sources, targets, least_s)

    def _read_s(self, sources: PlacedLayouts, away: BoolArray) -> FloatArray:
        """(S, 1) seconds in which weights that lie on the host between runs are read there; 0 for others."""
        nodes = [group.node for group in self.cluster.groups]
        host = np.asarray([node.host_copy_bytes_per_s for node in nodes])[groups_of(self.cluster, sources.start)]
        return np.where(away, sources.shard_bytes / host, 0.0)[:, None]

    def most_s(self, moved: Payload, engines: Sequence[str] = ()) -> float:
        """Seconds that no transfer exceeds: from one node to whole copies on every GPU there is.

        Args:
            moved: What moves.
            engines: Who may receive it.
        """
        updates = [
            find_engine(name).update_s(moved.tensors, moved.total_bytes, apart=apart)
            for name, apart in product(engines, (False, True))
        ]
        most = max(updates, default=0.0)
        for prices in (prices for row in self.models for prices in row):
            cluster = prices.cluster
            one_node = _only(shards=cluster.node.devices_per_node, copies=1, whole_bytes=moved.total_bytes)
            everywhere = _only(shards=1, copies=cluster.num_devices, whole_bytes=moved.total_bytes)
            most = max(most, float(prices.broadcast_s(one_node, everywhere)[0, 0]))
        return most

    def _moved(self, sources: PlacedLayouts, targets: PlacedLayouts, least_s: FloatArray) -> Reallocation:
        """Prices of all pairs, none below what engines take to load the weights and hosts to read them."""
        shape = (len(sources), len(targets))
        moved = Reallocation(time_s=np.empty(shape), moved_bytes=np.empty(shape), route=np.empty(shape, dtype=np.int64))
        for prices, block, ends in self._blocks(sources, targets):
            part = prices.between(*ends)
            moved.time_s[block] = np.maximum(part.time_s, least_s[block])
            moved.moved_bytes[block], moved.route[block] = part.moved_bytes, part.route
        return moved

    def _blocks(
        self, sources: PlacedLayouts, targets: PlacedLayouts
    ) -> Iterator[tuple[ReallocationModel, tuple[IntArray | slice, ...], tuple[PlacedLayouts, PlacedLayouts]]]:
        """Pairs by kind of the machines at both ends: prices, rows and columns, and where the ends lie for them."""
        if len(self.models) == 1:
            yield self.models[0][0], (slice(None), slice(None)), (sources, targets)
            return
        source_kind = groups_of(self.cluster, sources.start)
        target_kind = groups_of(self.cluster, targets.start)
        for a, b in product(range(len(self.models)), repeat=2):
            rows, columns = np.flatnonzero(source_kind == a), np.flatnonzero(target_kind == b)
            if not (len(rows) and len(columns)):
                continue
            prices = self.models[a][b]
            nodes = 0 if a == b else _whole_nodes(self.cluster.groups[a], prices.cluster)
            ends = (
                _shifted(sources.take(rows), -self.cluster.starts[a]),
                _shifted(targets.take(columns), nodes * prices.cluster.node.devices_per_node - self.cluster.starts[b]),
            )
            yield prices, np.ix_(rows, columns), ends


def _joined(cluster: MixedCluster, first: int, second: int) -> ClusterSpec:
    """The cluster on which transfers between two kinds are priced, with room for both."""
    joint = cluster.joint(first, second)
    if first == second:
        return joint
    nodes = sum(_whole_nodes(cluster.groups[kind], joint) for kind in (first, second))
    return replace(joint, num_nodes=nodes)


def _whole_nodes(group: ClusterSpec, joint: ClusterSpec) -> int:
    """Nodes of the joint cluster that hold a group."""
    return -(-group.num_devices // joint.node.devices_per_node)


def _shifted(layouts: PlacedLayouts, gpus: int) -> PlacedLayouts:
    return replace(layouts, start=layouts.start + gpus)


def _only(*, shards: int, copies: int, whole_bytes: float) -> PlacedLayouts:
    """One layout from the first GPU on."""
    one = np.ones(1, dtype=np.int64)
    return PlacedLayouts(
        start=0 * one,
        tensor_parallel=shards * one,
        pipeline_parallel=one,
        data_parallel=copies * one,
        shared=one,
        shard_bytes=np.asarray([whole_bytes / shards]),
        model_bytes=np.asarray([whole_bytes]),
        identity=0 * one,
    )


def _updates_s(
    sources: PlacedLayouts, targets: PlacedLayouts, engines: Sequence[str], target: PlacedRows
) -> FloatArray:
    """Seconds in which each target's engine takes in the weights; 0 for a trainer."""
    apart = (sources.stop[:, None] <= targets.start) | (targets.stop <= sources.start[:, None])
    seconds = np.zeros(apart.shape)
    moved = target.payload
    if moved is None:
        return seconds
    for name in set(engines) - {TRAINER}:
        engine, columns = find_engine(name), np.flatnonzero(np.asarray(engines) == name)
        near_s, far_s = (engine.update_s(moved.tensors, moved.total_bytes, apart=far) for far in (False, True))
        seconds[:, columns] = np.where(apart[:, columns], far_s, near_s)
    return seconds


def _classes(placed: PlacedRows) -> tuple[IntArray, PlacedLayouts, list[str], BoolArray]:
    """Class of each candidate; the layouts the classes stand for, their engines, and whose weights are on the host."""
    table, entry = placed.rows.table, placed.rows.row[placed.row]
    layout = placed.rows.layout[placed.row]
    away = placed.rows.holding[placed.row] == ALL_OUT
    keys = np.stack([placed.call.start, placed.call.size, layout, table.engine[entry], away])
    found, first, number = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    plans = table.plans.take(entry[first])
    identity = (found[2] * (1 << 20) + found[0]) * (1 << 20) + found[1]
    shared = plans.weight_shards
    moved, share = placed.payload, 1.0 if placed.payload is None else placed.payload.share
    shard_bytes = table.weight_bytes[entry[first]] * share
    of_shards = shard_bytes * plans.tensor_parallel * plans.pipeline_parallel * shared
    layouts = PlacedLayouts(
        start=found[0],
        tensor_parallel=plans.tensor_parallel,
        pipeline_parallel=plans.pipeline_parallel,
        data_parallel=plans.data_parallel * plans.context_parallel,
        shared=shared,
        shard_bytes=shard_bytes,
        model_bytes=of_shards if moved is None else np.full(len(shared), moved.total_bytes),
        identity=identity,
    )
    return number.reshape(-1), layouts, [table.engines[index] for index in found[3]], found[4] > 0
