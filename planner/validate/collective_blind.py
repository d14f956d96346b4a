"""Published logs of collectives that no fit reads, priced as a user's cluster is, beside their first prices.

``data/collective_logs.csv`` holds one log a row: where it was read, and the cluster in the words that a user of
planner would write. ``data/collective_calls.csv`` holds its calls, out of place, with the price that planner gave them
before anything was known of the errors. Every publisher is in one of two halves, which were chosen before the first
price: what a mechanism takes from numbers, it takes from half ``a`` alone, and half ``b`` judges it.
``planner.validate.collective_page`` writes what came of it.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from costmodels.links.collectives import CollectiveCallBatch, CollectiveCostModel
from costmodels.links.link_model import OP_OF_NAME
from costmodels.plan import BoolArray, FloatArray
from planner.prices.price_lists import default_collective_model
from planner.validate.tables.published import optional_int, packaged_rows
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.units import MICROSECOND

LOGS, CALLS = "collective_logs.csv", "collective_calls.csv"
BLIND_COMMIT = "cc8db82e"  # whose price list gave the first prices
_FIRST = ("first_us", "first_low_us", "first_high_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveLog:
    """One published log.

    Attributes:
        name: Short name, unique.
        half: ``a``, of which mechanisms may take numbers, or ``b``, which judges them.
        publisher: Who published it.
        address: Where it was read.
        cluster: As a user would write it.
        network: What joins the nodes, in the publisher's words.
        notes: What else the text says of the run.
    """

    name: str
    half: str
    publisher: str
    address: str
    cluster: ClusterSpec
    network: str
    notes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCalls:
    """K calls of the logs, in the order of the table.

    Attributes:
        logs: (K,) the log of each.
        op: (K,) ``CollectiveOp`` codes.
        ranks: (K,) ranks that take part.
        nodes: (K,) scale-up domains that they are in.
        size_bytes: (K,) message size as nccl-tests counts it.
        measured_s: (K,) published seconds.
        predicted_s, low_s, high_s: (K,) price and 90 % interval.
        first_s, first_low_s, first_high_s: (K,) those of the first price; NaN where there is none yet.
    """

    logs: tuple[CollectiveLog, ...]
    op: FloatArray
    ranks: FloatArray
    nodes: FloatArray
    size_bytes: FloatArray
    measured_s: FloatArray
    predicted_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    first_s: FloatArray
    first_low_s: FloatArray
    first_high_s: FloatArray

    @property
    def across(self) -> BoolArray:
        """(K,) whether the ranks are in several scale-up domains."""
        crosses: BoolArray = self.nodes > 1
        return crosses

    @property
    def error(self) -> FloatArray:
        """(K,) price over measurement, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def first_error(self) -> FloatArray:
        """(K,) first price over measurement, less one."""
        return self.first_s / self.measured_s - 1

    @property
    def inside(self) -> BoolArray:
        """(K,) whether the interval holds the measurement."""
        held: BoolArray = (self.low_s <= self.measured_s) & (self.measured_s <= self.high_s)
        return held

    @property
    def first_inside(self) -> BoolArray:
        """(K,) whether the interval of the first price held it."""
        held: BoolArray = (self.first_low_s <= self.measured_s) & (self.measured_s <= self.first_high_s)
        return held

    def of(self, tell: Callable[[CollectiveLog], str]) -> dict[str, BoolArray]:
        """What ``tell`` says of logs to which calls are of those, in the order of the table."""
        names = np.array([tell(log) for log in self.logs], dtype=np.str_)
        return {str(name): names == name for name in dict.fromkeys(names.tolist())}


@lru_cache(maxsize=1)
def collective_logs() -> Mapping[str, CollectiveLog]:
    """All logs by name.

    Raises:
        SpecError: If a cluster has no price or a name comes twice.
    """
    logs = [_log(row) for row in packaged_rows(LOGS)]
    found = {log.name: log for log in logs}
    if len(found) != len(logs):
        raise SpecError(LOGS, "names a log twice", "give every log a name of its own")
    return found


def _log(row: Mapping[str, str]) -> CollectiveLog:
    cluster = parse_cluster(
        row["cluster"],
        fabric=row["fabric"] or None,
        nics_per_node=optional_int(row["nics_per_node"]),
        scale_up=row["scale_up"] or None,
    )
    return CollectiveLog(
        name=row["log"],
        half=row["half"],
        publisher=row["publisher"],
        address=row["address"],
        cluster=cluster,
        network=row["network"],
        notes=row["notes"],
    )


def judged_calls(model: CollectiveCostModel | None = None) -> JudgedCalls:
    """Every call of the logs, priced.

    Args:
        model: Prices them; the packaged one when None.
    """
    chosen = default_collective_model() if model is None else model
    rows = packaged_rows(CALLS)
    logs = tuple(collective_logs()[row["log"]] for row in rows)
    op = np.array([OP_OF_NAME[row["op"]] for row in rows], dtype=np.int64)
    ranks, size_bytes, measured_us = (
        np.array([float(row[name]) for row in rows]) for name in ("ranks", "size_bytes", "time_us")
    )
    nodes = _domains(logs, ranks)
    found = np.empty((3, len(rows)))
    for log in dict.fromkeys(logs):
        mine = np.flatnonzero([one is log for one in logs])
        calls = CollectiveCallBatch(
            op=op[mine],
            size_bytes=size_bytes[mine],
            group_size=ranks[mine].astype(np.int64),
            ranks_per_domain=(ranks[mine] / nodes[mine]).astype(np.int64),
        )
        priced = chosen.predict(calls, log.cluster)
        found[:, mine] = priced.time_s, priced.low_s, priced.high_s
    first = np.array([[float(row[name] or "nan") for name in _FIRST] for row in rows]).T * MICROSECOND
    return JudgedCalls(
        logs=logs,
        op=op.astype(float),
        ranks=ranks,
        nodes=nodes,
        size_bytes=size_bytes,
        measured_s=measured_us * MICROSECOND,
        predicted_s=found[0],
        low_s=found[1],
        high_s=found[2],
        first_s=first[0],
        first_low_s=first[1],
        first_high_s=first[2],
    )


def _domains(logs: Sequence[CollectiveLog], ranks: FloatArray) -> FloatArray:
    """(K,) scale-up domains of each group: all of a cluster's, unless fewer devices take part than one domain has."""
    each = np.array([log.cluster.domain_devices for log in logs], dtype=float)
    return np.asarray(np.maximum(ranks / each, 1.0))


def write_first_prices(path: Path) -> int:
    """Write the first price of every call into its row of a table, once; how many they are.

    Raises:
        SpecError: If a row has a first price already.
    """
    rows = packaged_rows(CALLS)
    if any(row[name] for row in rows for name in _FIRST):
        raise SpecError(CALLS, "has first prices already", "they are never written again")
    judged = judged_calls()
    columns = (judged.predicted_s, judged.low_s, judged.high_s)
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        table.writeheader()
        for number, row in enumerate(rows):
            said = {name: f"{column[number] / MICROSECOND:.5g}" for name, column in zip(_FIRST, columns, strict=True)}
            table.writerow({**row, **said})
    return len(rows)
