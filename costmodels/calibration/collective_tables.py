"""Published collective timings as calls over named links: which rows a price list may be fitted on.

Left out: 8-bit integers (no in-switch sum), inference libraries' own all-reduce kernels, XLA's (its compiler
adds 10 us and takes no in-switch sum), and profiled rows of links that nccl-tests timed too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.collectives import CollectiveOp
from costmodels.link_model import OP_NAMES, Groups
from profiles.catalog import default_catalog

FloatArray = NDArray[np.float64]

# (source, link column) -> link of the catalogue whose bandwidth the row is measured against.
# The L40S host reaches 20 GB/s between two cards but 2-5 GB/s among four or eight: staged through hosts.
INSIDE = {
    ("aiconfigurator", "nvlink3"): "nvlink3",
    ("aiconfigurator", "nvlink4"): "nvlink4",
    ("aiconfigurator", "nvlink5"): "nvlink5",
    ("aiconfigurator", "pcie4"): "pcie4-no-p2p",
    ("vtrain", "nvlink3"): "nvlink3",
    ("vtrain", "nvlink2"): "nvlink2",
    ("xxrjun-nccl", "nvlink4"): "nvlink4",
    ("vidur", "nvlink3"): "nvlink3",  # send/receive only, like the next: nccl-tests timed the rest
    ("vidur", "nvlink4"): "nvlink4",
    ("vidur", "nvlink3-pair"): "nvlink3-bridge-a100",
    ("vidur", "nvlink4-pair"): "nvlink4-bridge",
    ("vidur-history", "v100?"): "nvlink2",
    ("nnscaler", "xgmi"): "xgmi-mi250",
}
# Four cards in two bridged pairs: the ring's slowest hop is PCIe, of the generation of the card.
ACROSS_PAIRS = {"A100-SXM4-80GB": "pcie4", "H100-SXM5-80GB": "pcie5"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimings:
    """Measured collectives of one operation inside one scale-up domain.

    Attributes:
        op: Operation.
        link: (K,) catalogue name of the link.
        bytes_per_s: (K,) its bandwidth per device and direction.
        size_bytes, ranks, time_s: (K,) the calls and what they took.
        source: (K,) table the row came from.
    """

    op: CollectiveOp
    link: NDArray[np.str_]
    bytes_per_s: FloatArray
    size_bytes: FloatArray
    ranks: FloatArray
    time_s: FloatArray
    source: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.time_s)

    def where(self, mask: NDArray[np.bool_]) -> "LinkTimings":
        """The rows of a mask."""
        return LinkTimings(
            op=self.op, link=self.link[mask], bytes_per_s=self.bytes_per_s[mask], size_bytes=self.size_bytes[mask],
            ranks=self.ranks[mask], time_s=self.time_s[mask], source=self.source[mask],
        )  # fmt: skip

    def groups(self, rows: NDArray[np.int64]) -> Groups:
        """Those rows as the price list sees them."""
        ranks = self.ranks[rows]
        return Groups(op=self.op, size_bytes=self.size_bytes[rows], ranks=ranks, local=ranks)


def read_collectives(folder: Path) -> Any:
    """The table of collectives without the rows no price list may use."""
    table = pd.read_csv(folder / "timings" / "collectives.csv.gz")
    notes = table.notes.fillna("")
    usable = (table.time_us > 0) & ~notes.str.contains("int8|custom")
    usable &= (table.source != "vidur") | ~table.link.isin(["nvlink3", "nvlink4"]) | (table.op == "send_recv")
    return table[usable]


def link_of(row: Any) -> str:
    """Catalogue link of a table row; empty where it cannot be named."""
    if row.link == "pcie-across-pairs":
        return ACROSS_PAIRS.get(row.gpu, "")
    return INSIDE.get((row.source, row.link), "")


def inside_timings(folder: Path) -> list[LinkTimings]:
    """Rows inside one node, one ``LinkTimings`` per operation."""
    table = read_collectives(folder)
    table = table[table.num_nodes == 1]
    table = table.assign(name=[link_of(row) for row in table.itertuples()])
    # The rings of the V100's cube mesh need a power of two; no plan puts 3, 5, 6 or 7 ranks together.
    table = table[(table.name != "") & table.num_gpus.isin([2, 4, 8, 16])]
    names = {name: op for op, name in OP_NAMES.items()}
    found = []
    for name, op in names.items():
        part = table[table.op == name]
        if len(part):
            bandwidth = [default_catalog().link(link).bandwidth_bytes_per_s for link in part.name]
            found.append(
                LinkTimings(
                    op=op,
                    link=part.name.to_numpy(dtype=np.str_),
                    bytes_per_s=np.array(bandwidth, dtype=float),
                    size_bytes=part.size_bytes.to_numpy(dtype=float),
                    ranks=part.num_gpus.to_numpy(dtype=float),
                    time_s=part.time_us.to_numpy(dtype=float) * 1e-6,
                    source=part.source.to_numpy(dtype=np.str_),
                )
            )
    return found
