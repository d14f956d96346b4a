"""What moving the weights of a role between two calls costs, for every pair of candidates.

Prices are those of ``planner.dataflow.reallocation``; here candidates become the layouts it knows. Context-parallel
ranks hold the same weights, as data-parallel ones do.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.holdings import CallRows
from planner.dataflow.problem import CallCandidates, Transfer
from planner.dataflow.reallocation import PlacedLayouts, Reallocation, ReallocationModel
from planner.price_lists import default_collective_model
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.parameters import total_parameters
from profiles.precision import parse_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRows:
    """Candidates of one call with what each of them is.

    Attributes:
        call: The candidates.
        rows: Ways to run and hold the call.
        row: Row of ``rows`` of each candidate. [candidates]
    """

    call: CallCandidates
    rows: CallRows
    row: IntArray

    def take(self, candidates: IntArray) -> "PlacedRows":
        """Some of the candidates."""
        return PlacedRows(call=self.call.take(candidates), rows=self.rows, row=self.row[candidates])


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPrices:
    """Prices on one cluster."""

    model: ReallocationModel

    @classmethod
    def on(cls, cluster: ClusterSpec) -> "TransferPrices":
        """Prices on a cluster, by the packaged model of collectives."""
        return cls(model=ReallocationModel(cluster=cluster, collectives=default_collective_model()))

    def between(self, source: PlacedRows, target: PlacedRows) -> Transfer:
        """Seconds for every pair of classes of candidates; a class is one layout on one mesh."""
        source_class, sources = _classes(source)
        target_class, targets = _classes(target)
        return Transfer(
            source_class=source_class, target_class=target_class, time_s=self.model.between(sources, targets).time_s
        )

    def pair(self, source: PlacedRows, target: PlacedRows) -> Reallocation:
        """Seconds, bytes and route between the only candidates of two calls."""
        return self.model.between(_classes(source)[1], _classes(target)[1])

    def most_s(self, model: ModelSpec, precision: str) -> float:
        """Seconds that no transfer of a model exceeds: from one node to whole copies on every GPU there is."""
        cluster = self.model.cluster
        whole_bytes = total_parameters(model) * parse_precision(precision).storage_bytes
        one_node = _only(shards=cluster.node.devices_per_node, copies=1, whole_bytes=whole_bytes)
        everywhere = _only(shards=1, copies=cluster.num_devices, whole_bytes=whole_bytes)
        return float(self.model.broadcast_s(one_node, everywhere)[0, 0])


def _only(*, shards: int, copies: int, whole_bytes: float) -> PlacedLayouts:
    """One layout from the first GPU on."""
    one = np.ones(1, dtype=np.int64)
    return PlacedLayouts(
        start=0 * one,
        tensor_parallel=shards * one,
        pipeline_parallel=one,
        data_parallel=copies * one,
        shard_bytes=np.asarray([whole_bytes / shards]),
        identity=0 * one,
    )


def _classes(placed: PlacedRows) -> tuple[IntArray, PlacedLayouts]:
    """Class of each candidate, and the layouts the classes stand for."""
    table, entry = placed.rows.table, placed.rows.row[placed.row]
    layout = placed.rows.layout[placed.row]
    keys = np.stack([placed.call.start, placed.call.size, layout])
    found, first, number = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    plans = table.plans.take(entry[first])
    identity = (found[2] * (1 << 20) + found[0]) * (1 << 20) + found[1]
    layouts = PlacedLayouts(
        start=found[0],
        tensor_parallel=plans.tensor_parallel,
        pipeline_parallel=plans.pipeline_parallel,
        data_parallel=plans.data_parallel * plans.context_parallel,
        shard_bytes=table.weight_bytes[entry[first]],
        identity=identity,
    )
    return number.reshape(-1), layouts
