"""Published collective timings as calls over named links: which rows a price list may be fitted on.

Left out: 8-bit integers, which repeat the rows of 16-bit ones, except the sums that no switch can add; inference
libraries' own all-reduce kernels; XLA's (its compiler adds 10 us and takes no in-switch sum); and profiled rows of
links that nccl-tests timed too. Of a source that lists a thousand sizes, ``MOST_SIZES`` are kept, evenly spread.

nnScaler times what its wrappers copy around a collective along with it, and lists n times the bytes of an all-to-all
of n ranks; both are put right here (``without_copies``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.calibration.collective_hosts import FITTED, JUDGED, HostLog
from costmodels.links.collectives import CollectiveOp
from costmodels.links.link_model import OP_NAMES, Groups, beats_link
from profiles.catalog import default_catalog

FloatArray = NDArray[np.float64]

# (source, link column) -> link of the catalogue whose bandwidth the row is measured against.
# The L40S host reaches 20 GB/s between two cards but 5.2 among four and 1.4 among eight: a link of its own.
INSIDE = {
    ("aiconfigurator", "nvlink3"): "nvlink3",
    ("aiconfigurator", "nvlink4"): "nvlink4",
    ("aiconfigurator", "nvlink5"): "nvlink5",
    ("aiconfigurator", "pcie4"): "pcie4-congested",
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
# Rows to judge by and never to fit on: their overheads are those of another library or of a profiler.
JUDGED_TABLES = {
    ("xla-perf-table", "nvlink4"): "nvlink4",
    ("xla-perf-table", "nvlink5"): "nvlink5",
    ("galvatron", "nvlink3?"): "nvlink3",
    ("vidur", "nvlink3"): "nvlink3",
    ("vidur", "nvlink4"): "nvlink4",
    ("vidur-history", "nvlink3?"): "nvlink3",
}
MOST_SIZES = 48  # of one source, link, operation and number of ranks
# Four cards in two bridged pairs: the ring's slowest hop is PCIe, of the generation of the card.
ACROSS_PAIRS = {"A100-SXM4-80GB": "pcie4", "H100-SXM5-80GB": "pcie5"}
# nnScaler's wrappers (nnscaler/runtime/adapter/collectives.py) clone what they reduce, and cut or join pieces before
# or after everything else. Clone: S read and written at 1.3 TB/s, assumed to be reached of a GCD's 1.64 TB/s (data
# sheet). The others: what gathers and scatters of 512 MiB take above half an all-reduce, both without their
# copies, on two and on four ranks, whose ring is the same one.
CLONE_S_PER_BYTE = 2 / 1.3e12
PIECES_S_PER_BYTE = 5.2e-12
WITH_SWITCH = ("nvlink4", "nvlink5")  # third-generation NVSwitch and later add in the network (NVLS)
# Link, operation, ranks, bytes, microseconds: a rack of GB200, coreweave/nccl-tests pull request 43.
RACK_SOURCE = "coreweave/nccl-tests pull request 43"
RACK = (
    ("nvlink5", "all_reduce", 72, 2.0**29, 1806.7),
    ("nvlink5", "all_reduce", 72, 2.0**30, 3108.8),
    ("nvlink5", "all_reduce", 72, 2.0**31, 5589.1),
    ("nvlink5", "all_reduce", 72, 2.0**32, 10094.0),
    ("nvlink5", "all_reduce", 72, 2.0**33, 20299.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimings:
    """Measured collectives of one operation inside one scale-up domain.

    Attributes:
        op: Operation.
        link: (K,) catalogue name of the link.
        bytes_per_s: (K,) its bandwidth per device and direction.
        size_bytes, ranks, time_s: (K,) the calls and what they took.
        source: (K,) table the row came from.
        adds: (K,) whether a switch may have added: an all-reduce of numbers it can add, over switches that do.
    """

    op: CollectiveOp
    link: NDArray[np.str_]
    bytes_per_s: FloatArray
    size_bytes: FloatArray
    ranks: FloatArray
    time_s: FloatArray
    source: NDArray[np.str_]
    adds: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time_s)

    def where(self, mask: NDArray[np.bool_]) -> "LinkTimings":
        """The rows of a mask."""
        columns = {item.name: getattr(self, item.name)[mask] for item in fields(self) if item.name != "op"}
        return LinkTimings(op=self.op, **columns)

    def groups(self, rows: NDArray[np.int64]) -> Groups:
        """Those rows as the price list sees them."""
        ranks = self.ranks[rows]
        return Groups(op=self.op, size_bytes=self.size_bytes[rows], ranks=ranks, local=ranks)


def read_collectives(folder: Path) -> Any:
    """The table of collectives without repeated rows and without kernels of other libraries."""
    table = pd.read_csv(folder / "timings" / "collectives.csv.gz")
    notes = table.notes.fillna("")
    sums = (table.op == "all_reduce") & table.link.isin(WITH_SWITCH) & (table.num_gpus > 2)
    usable = (table.time_us > 0) & ~notes.str.contains("custom") & (sums | ~notes.str.contains("int8"))
    adds = sums & ~notes.str.contains("int8") & (table.source != "xla-perf-table")
    return table.assign(adds=adds)[usable]


def link_of(row: Any, *, judged: bool) -> str:
    """Catalogue link of a table row to fit on, or to judge by only; empty where it is not one."""
    profiled = row.source == "vidur" and row.link in ("nvlink3", "nvlink4") and row.op != "send_recv"
    if judged:
        return JUDGED_TABLES.get((row.source, row.link), "") if profiled or row.source != "vidur" else ""
    if row.link == "pcie-across-pairs":
        return ACROSS_PAIRS.get(row.gpu, "")
    return "" if profiled else INSIDE.get((row.source, row.link), "")


def inside_timings(folder: Path, *, judged: bool = False) -> list[LinkTimings]:
    """Rows inside one scale-up domain, one ``LinkTimings`` per operation: to fit on, or to judge by only."""
    table = read_collectives(folder)
    table = table[table.num_nodes == 1]
    table = table.assign(name=[link_of(row, judged=judged) for row in table.itertuples()])
    # The rings of the V100's cube mesh need a power of two; no plan puts 3, 5, 6 or 7 ranks together.
    table = table[(table.name != "") & table.num_gpus.isin([2, 4, 8, 16])]
    table = without_copies(table)
    if not judged:
        rack = pd.DataFrame(RACK, columns=["name", "op", "num_gpus", "size_bytes", "time_us"])
        table = pd.concat([table, rack.assign(source=RACK_SOURCE, adds=True)], ignore_index=True)
    table = pd.concat([table, host_rows(JUDGED if judged else FITTED)], ignore_index=True)
    table = thinned(table[[not _impossible(row) for row in table.itertuples()]])
    found = []
    for op, name in OP_NAMES.items():
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
                    adds=part.adds.to_numpy(dtype=np.bool_),
                )
            )
    return found


def host_rows(logs: Sequence[HostLog]) -> Any:
    """Published logs of single hosts as rows of the table."""
    return pd.DataFrame(
        [
            {
                "source": log.source, "name": log.link, "op": "all_reduce", "num_gpus": log.ranks,
                "size_bytes": size_bytes, "time_us": time_us, "adds": False,
            }
            for log in logs
            for size_bytes, time_us in log.times_us
        ]
    )  # fmt: skip


def without_copies(table: Any) -> Any:
    """The table with nnScaler's rows as the collective alone: its own copies taken off, all-to-alls at their size.

    Its benchmark (nnscaler/profiler/benchmark_comm.py) divides the tensor of an all-to-all by the number of ranks,
    as that of a gather, but the size that it writes is that of the whole.
    """
    mine = table.source == "nnscaler"
    whole = mine & (table.op == "all_to_all")
    size_bytes = table.size_bytes / np.where(whole, table.num_gpus, 1)
    per_byte = np.where(table.op == "all_reduce", CLONE_S_PER_BYTE, PIECES_S_PER_BYTE) * mine
    return table.assign(size_bytes=size_bytes, time_us=table.time_us - 1e6 * per_byte * size_bytes)


def _impossible(row: Any) -> bool:
    """Whether a rank sent more than its link carries."""
    link, op = default_catalog().link(row.name), CollectiveOp[row.op.upper()]
    return bool(beats_link(op, link, ranks=row.num_gpus, size_bytes=row.size_bytes, time_s=row.time_us * 1e-6))


def thinned(table: Any) -> Any:
    """Of each group, the rows nearest to sizes evenly spread in the logarithm."""
    kept = []
    for _, group in table.groupby(["source", "name", "op", "num_gpus", "adds"], sort=True):
        sizes = np.log(group.size_bytes.to_numpy(dtype=float))
        wanted = np.linspace(sizes.min(), sizes.max(), MOST_SIZES)
        few = len(np.unique(sizes)) <= MOST_SIZES
        nearest = np.unique(np.abs(sizes[:, None] - wanted[None, :]).argmin(axis=0))
        kept.append(group if few else group.iloc[nearest])
    return pd.concat(kept, ignore_index=True)
