"""Published collective timings between nodes, as calls on named nodes and adapters.

The sweep of 8-512 H100 (nanotron) logs bandwidths without message sizes. They follow from the figures
themselves: the all-reduce inside a node matches nccl-tests at about 1 GiB, and in the runs without trees
the gather's bandwidth is half the all-reduce's at every scale, as of half the message. Runs of that sweep with
pipeline parallelism logged 3-7 times less, the more the more nodes: a setting of those jobs, left out here.

Of the logs that ``planner.validate.collective_blind`` judges by, half the publishers may be fitted on (half ``a``).
"""

import csv
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.calibration.collective_tables import read_collectives, thinned
from costmodels.links.collectives import CollectiveOp
from costmodels.links.link_model import OP_NAMES, OP_OF_NAME, Groups, wire_factor
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.hardware import NodeSpec
from profiles.units import GIGA, MICROSECOND

FloatArray = NDArray[np.float64]

# Source, kind, node of the catalogue, operation, ranks, ranks per node, bytes, bus bandwidth in GB/s.
PUBLISHED: tuple[tuple[str, str, str, str, int, int, float, float], ...] = (
    ("NVIDIA/nccl issue 1221", "roce", "dgx-h100", "all_reduce", 16, 8, 8e9, 430.0),
    ("NVIDIA/nccl issue 1221", "roce", "dgx-h100", "all_reduce", 32, 8, 8e9, 320.0),
    ("NVIDIA/nccl-tests issue 283", "roce", "hgx-h200", "all_reduce", 1984, 8, 5.4e8, 350.0),
    ("NVIDIA/nccl-tests issue 119", "infiniband", "dgx-a100-40gb", "all_reduce", 24, 8, 1.34e8, 96.0),
    ("NVIDIA/nccl issue 1218", "infiniband", "dgx-h100", "all_gather", 256, 8, 2.15e9, 200.0),
)
# Where a node has other than the catalogue's number of adapters.
PUBLISHED_NICS = {"NVIDIA/nccl-tests issue 119": 4}
# Networks of the timing table that are not named, taken as the usual nodes' with so many adapters.
UNNAMED_NICS = {"ib?": 8, "net~100-200G": 4}
# Bus bandwidth in GB/s of all-reduces of 4 GB over Omni-Path adapters of 12.5 GB/s, four a node (bigscience,
# experiments/bandwidth: all_reduce_bench-a100-n4.txt and n4_a100_all_reduce_bench.txt, 4 nodes of 8 A100 with all of
# them and half, n16_32gb_all_reduce_bench.txt, 16 nodes of 4 V100). NCCL's rings pass through one adapter of a node in
# either direction, as its logs there show ("via NET/IB/1").
OMNIPATH = (5.06, 4.98, 6.8)
OMNIPATH_ADAPTER = 12.5

NANOTRON_BYTES = {"all_reduce": 2.0**30, "all_gather": 2.0**29, "reduce_scatter": 2.0**29}
_NANOTRON_COLUMNS = {
    "all_reduce": "AllReduce (GB/s)",
    "all_gather": "AllGather (GB/s)",
    "reduce_scatter": "ReduceScatter (GB/s)",
}
HEALTHY_SHARE = 0.6  # of the best run with as many nodes; the others ran with the setting described above


@dataclass(frozen=True, slots=True, kw_only=True)
class AcrossTimings:
    """Measured collectives of one operation over several nodes.

    Attributes:
        op: Operation.
        node: (K,) the ``NodeSpec`` of each.
        size_bytes, ranks, local, time_s: (K,) the calls and what they took.
        source: (K,) where the row was published.
    """

    op: CollectiveOp
    node: NDArray[np.object_]
    size_bytes: FloatArray
    ranks: FloatArray
    local: FloatArray
    time_s: FloatArray
    source: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def kind(self) -> NDArray[np.str_]:
        """(K,) link kind of the adapters."""
        return np.array([node.nic.kind for node in self.node], dtype=np.str_)

    @property
    def fabric(self) -> NDArray[np.str_]:
        """(K,) kind of the adapters; RDMA over Ethernet counts as InfiniBand."""
        return np.where(self.kind == "roce", "infiniband", self.kind)

    def groups(self, rows: NDArray[np.int64]) -> Groups:
        """Those rows as the price list sees them."""
        return Groups(
            op=self.op, size_bytes=self.size_bytes[rows], ranks=self.ranks[rows], local=self.local[rows]
        )  # fmt: skip

    def where(self, mask: NDArray[np.bool_]) -> "AcrossTimings":
        """The rows of a mask."""
        columns = {item.name: getattr(self, item.name)[mask] for item in fields(self) if item.name != "op"}
        return AcrossTimings(op=self.op, **columns)


def _nanotron(folder: Path) -> Any:
    table: Any = pd.read_csv(folder / "endtoend" / "extra" / "nanotron_sweep_nccl_bandwidth.csv")
    table = table[(table.nodes > 1) & (table.pp == 1)]
    rows = []
    for op, column in _NANOTRON_COLUMNS.items():
        best = table.groupby("nodes")[column].transform("max")
        healthy = table[table[column] > HEALTHY_SHARE * best]
        for nodes, busbw in healthy.groupby("nodes")[column].median().items():
            rows.append(
                ("nanotron sweep", "efa", "p5.48xlarge", op, int(nodes) * 8, 8, NANOTRON_BYTES[op], float(busbw))
            )
    return rows


def _nccl_tests(folder: Path) -> Any:
    table: Any = pd.read_csv(folder / "timings" / "collectives.csv.gz")
    table = table[(table.source == "xxrjun-nccl") & (table.link == "ib400")]
    return [
        ("xxrjun-nccl", "infiniband", "dgx-h100", row.op, row.num_gpus, row.num_gpus // row.num_nodes,
         float(row.size_bytes), float(row.busbw_gbps))
        for row in table.itertuples()
    ]  # fmt: skip


def unnamed_timings(folder: Path) -> list[AcrossTimings]:
    """Rows over two nodes of which the source does not name the network: to judge by, never to fit on."""
    table = thinned(read_collectives(folder).assign(name=lambda rows: rows.link))
    table = table[(table.num_nodes == 2) & table.name.isin(UNNAMED_NICS)]
    names = ["dgx-a100-80gb" if gpu.startswith("A100") else "dgx-h100" for gpu in table.gpu]
    nodes = [_node(name, UNNAMED_NICS[link]) for name, link in zip(names, table.name, strict=True)]
    return _timings(
        table.assign(
            node=nodes, ranks=table.num_gpus, local=table.num_gpus / 2, time_s=table.time_us * MICROSECOND,
            source=table.source + ", " + table.gpu,
        )
    )  # fmt: skip


def across_timings(folder: Path, logs: Path | None = None) -> list[AcrossTimings]:
    """Rows over several nodes, one ``AcrossTimings`` per operation; reduce-scatters count as gathers.

    Args:
        folder: Holds ``timings/`` and ``endtoend/``.
        logs: Folder of ``collective_logs.csv`` and ``collective_calls.csv``, of which half ``a`` is taken.
    """
    names = ["source", "kind", "node", "op", "ranks", "local", "size_bytes", "busbw"]
    table: Any = pd.DataFrame([*PUBLISHED, *_nanotron(folder), *_nccl_tests(folder)], columns=names)
    factor = [
        float(wire_factor(OP_OF_NAME[row.op], np.array(float(row.ranks)))) / row.busbw / GIGA
        for row in table.itertuples()
    ]
    nodes = [_node(row.node, PUBLISHED_NICS.get(row.source), row.kind) for row in table.itertuples()]
    table = table.assign(node=nodes, time_s=table.size_bytes * np.array(factor))
    if logs is not None:
        table = pd.concat([table, _half(logs)], ignore_index=True)
    return _timings(table.assign(op=table.op.replace("reduce_scatter", "all_gather")))


def _node(name: str, nics: int | None, kind: str = "") -> NodeSpec:
    """A node of the catalogue, with another number of adapters, or RDMA over Ethernet of the same rate, if told so."""
    node = default_catalog().node(name)
    nic = default_catalog().link(f"roce-{node.nic.name.rsplit('-', 1)[1]}") if kind == "roce" else node.nic
    return replace(node, nic=nic, nics_per_node=nics or node.nics_per_node)


def _half(logs: Path) -> Any:
    """Calls over several scale-up domains of the logs that mechanisms may take numbers from."""
    told = {row["log"]: row for row in _rows(logs / "collective_logs.csv") if row["half"] == "a"}
    clusters = {
        name: parse_cluster(
            row["cluster"], fabric=row["fabric"] or None, nics_per_node=int(row["nics_per_node"] or 0) or None,
            scale_up=row["scale_up"] or None,
        )
        for name, row in told.items()
    }  # fmt: skip
    found = []
    for row in _rows(logs / "collective_calls.csv"):
        if row["log"] in told:
            cluster, ranks = clusters[row["log"]], float(row["ranks"])
            each = float(cluster.domain_devices)
            if ranks > each:
                found.append(
                    {
                        "source": told[row["log"]]["publisher"], "node": cluster.node, "op": row["op"], "ranks": ranks,
                        "local": each, "size_bytes": float(row["size_bytes"]),
                        "time_s": float(row["time_us"]) * MICROSECOND,
                    }
                )  # fmt: skip
    return pd.DataFrame(found)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _timings(table: Any) -> list[AcrossTimings]:
    """One ``AcrossTimings`` per operation that the table has rows of."""
    found = []
    for op, name in OP_NAMES.items():
        part = table[table.op == name]
        if len(part):
            numbers = {
                column: part[column].to_numpy(dtype=float) for column in ("size_bytes", "ranks", "local", "time_s")
            }
            nodes = np.empty(len(part), dtype=object)
            nodes[:] = part.node.tolist()
            found.append(AcrossTimings(op=op, node=nodes, source=part.source.to_numpy(dtype=np.str_), **numbers))
    return found
