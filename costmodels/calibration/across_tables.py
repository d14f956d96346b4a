"""Published collective timings between nodes, as calls on named nodes and adapters.

The sweep of 8-512 H100 (nanotron) logs bandwidths without message sizes. They follow from the figures
themselves: the all-reduce inside a node matches nccl-tests at about 1 GiB, and in the runs without trees
the gather's bandwidth is half the all-reduce's at every scale, as of half the message. Runs of that sweep with
pipeline parallelism logged 3-7 times less, the more the more nodes: a setting of those jobs, left out here.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.calibration.collective_tables import read_collectives, thinned
from costmodels.collectives import CollectiveOp
from costmodels.link_model import OP_NAMES, Groups, wire_factor
from profiles.catalog import default_catalog

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
        node: (K,) node of the catalogue.
        nics: (K,) adapters per node.
        kind: (K,) link kind of the adapters.
        size_bytes, ranks, local, time_s: (K,) the calls and what they took.
        source: (K,) where the row was published.
    """

    op: CollectiveOp
    node: NDArray[np.str_]
    nics: NDArray[np.int64]
    kind: NDArray[np.str_]
    size_bytes: FloatArray
    ranks: FloatArray
    local: FloatArray
    time_s: FloatArray
    source: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.time_s)

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
    found = []
    for op, name in OP_NAMES.items():
        part = table[table.op == name]
        if len(part):
            ranks = part.num_gpus.to_numpy(dtype=float)
            nodes = ["dgx-a100-80gb" if gpu.startswith("A100") else "dgx-h100" for gpu in part.gpu]
            found.append(
                AcrossTimings(
                    op=op,
                    node=np.array(nodes, dtype=np.str_),
                    nics=part.name.map(UNNAMED_NICS).to_numpy(dtype=np.int64),
                    kind=np.full(len(part), "infiniband"),
                    size_bytes=part.size_bytes.to_numpy(dtype=float),
                    ranks=ranks,
                    local=ranks / 2,
                    time_s=part.time_us.to_numpy(dtype=float) * 1e-6,
                    source=(part.source + ", " + part.gpu).to_numpy(dtype=np.str_),
                )
            )
    return found


def across_timings(folder: Path) -> list[AcrossTimings]:
    """Rows over several nodes, one ``AcrossTimings`` per operation; reduce-scatters count as gathers."""
    names = ["source", "kind", "node", "op", "ranks", "local", "size_bytes", "busbw"]
    table: Any = pd.DataFrame([*PUBLISHED, *_nanotron(folder), *_nccl_tests(folder)], columns=names)
    table["op"] = table.op.replace("reduce_scatter", "all_gather")
    catalog = default_catalog()
    nics = [PUBLISHED_NICS.get(row.source, catalog.node(row.node).nics_per_node) for row in table.itertuples()]
    table["nics"] = nics
    found = []
    for op, name in OP_NAMES.items():
        part = table[table.op == name]
        if len(part):
            ranks = part.ranks.to_numpy(dtype=float)
            size_bytes = part.size_bytes.to_numpy(dtype=float)
            found.append(
                AcrossTimings(
                    op=op,
                    node=part.node.to_numpy(dtype=np.str_),
                    nics=part.nics.to_numpy(dtype=np.int64),
                    kind=part.kind.to_numpy(dtype=np.str_),
                    size_bytes=size_bytes,
                    ranks=ranks,
                    local=part.local.to_numpy(dtype=float),
                    time_s=size_bytes * wire_factor(op, ranks) / part.busbw.to_numpy(dtype=float) / 1e9,
                    source=part.source.to_numpy(dtype=np.str_),
                )
            )
    return found
