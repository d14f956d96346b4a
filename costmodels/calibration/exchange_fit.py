"""Fits of expert dispatch and combine (DeepEP) on published timings, one record per link and one over all.

Judged on whole layers kept out (hidden size, experts, experts per token, on so many nodes) and, over all links, on
whole links.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.calibration.collective_spreads import interval
from costmodels.calibration.robust import Errors, Parameters, Price, Range, fit_parameters, record_of
from costmodels.kernels.calls import FloatArray
from costmodels.links.expert_exchange import KINDS, USUAL_MULTIPROCESSORS, Exchanges, exchange_time_s
from profiles.catalog import default_catalog
from profiles.units import MICROSECOND

NODES = {"H100-SXM5-80GB": "dgx-h100", "B200-SXM": "hgx-b200"}
RANGES = {
    "launch_s": Range(start=3e-5, low=3e-6, high=2e-4),
    "network_launch_s": Range(start=3e-5, low=1e-6, high=3e-4),
    "efficiency": Range(start=0.6, low=0.1, high=1.0),
    "network_efficiency": Range(start=0.92, low=0.1, high=1.0),
}
# Only the throughput kernels are short of multiprocessors.
THROUGHPUT = {
    "multiprocessor_bytes_per_s": Range(start=2e10, low=2e9, high=1e11),
    "own_copies": Range(start=1.0, low=0.0, high=6.0),
}
LOW_LATENCY = {"multiprocessor_bytes_per_s": 0.0, "own_copies": 0.0}
# Where the parameters lie for want of runs between nodes.
EXPECTED = {"network_efficiency": 0.92, "network_launch_s": 3e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTimings:
    """Measured exchanges of one kind: calls, the node each ran on, seconds, and the layer they belong to."""

    kind: str
    calls: Exchanges
    node: NDArray[np.str_]
    time_s: FloatArray
    layer: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.time_s)


def take(calls: Exchanges, rows: NDArray[Any]) -> Exchanges:
    """Some of the exchanges."""
    columns = {item.name: getattr(calls, item.name)[rows] for item in fields(calls) if item.name != "kind"}
    return Exchanges(kind=calls.kind, **columns)


def exchange_timings(folder: Path) -> list[ExchangeTimings]:
    """Rows of the table of expert layers that exchange tokens."""
    table: Any = pd.read_csv(folder / "timings" / "moe.csv.gz", low_memory=False)
    table = table[table.op.isin(list(KINDS)) & table.gpu.isin(list(NODES))]
    used = table.impl.str.extract(r"sms=(\d+)")[0].astype(float).fillna(USUAL_MULTIPROCESSORS)
    names = ["hidden", "topk", "num_experts", "num_nodes"]
    layer = table[names].astype(str).agg("/".join, axis=1)
    table = table.assign(used=used, layer=layer)
    return [_timings(kind, table[table.op == kind]) for kind in KINDS if (table.op == kind).any()]


def _timings(kind: str, part: Any) -> ExchangeTimings:
    names = {
        "tokens": "num_tokens", "hidden": "hidden", "topk": "topk", "experts": "num_experts", "ranks": "ep",
        "nodes": "num_nodes", "multiprocessors": "used",
    }  # fmt: skip
    columns = {name: part[column].to_numpy(dtype=float) for name, column in names.items()}
    return ExchangeTimings(
        kind=kind,
        calls=Exchanges(kind=kind, **columns),
        node=part.gpu.map(NODES).to_numpy(dtype=np.str_),
        time_s=part.time_us.to_numpy(dtype=float) * MICROSECOND,
        layer=part.layer.to_numpy(dtype=np.str_),
    )


def price_of(timings: ExchangeTimings) -> Price:
    """The formula over rows on several nodes."""
    nodes = {str(name): default_catalog().node(str(name)) for name in np.unique(timings.node)}

    def price(parameters: Any, rows: NDArray[np.int64]) -> FloatArray:
        seconds = np.zeros(len(rows))
        for name, node in nodes.items():
            mine = np.flatnonzero(timings.node[rows] == name)
            seconds[mine] = exchange_time_s(take(timings.calls, rows[mine]), parameters, node)
        return seconds

    return price


def fit_exchanges(timings: ExchangeTimings, rows: NDArray[np.int64]) -> Parameters:
    """Parameters of some rows."""
    low_latency = KINDS[timings.kind][0]
    return fit_parameters(
        price_of(timings),
        timings.time_s,
        rows,
        RANGES if low_latency else RANGES | THROUGHPUT,
        fixed=LOW_LATENCY if low_latency else {},
        prior=EXPECTED,
    )


def exchange_records(folder: Path) -> list[dict[str, Any]]:
    """A record per link and kind of exchange, judged by layer, and one per kind, judged by link."""
    records = []
    for timings in exchange_timings(folder):
        every = np.arange(len(timings))
        for name in np.unique(timings.node):
            rows = every[timings.node == name]
            link = default_catalog().node(str(name)).scale_up.name
            records.append(
                _record(timings, rows, timings.layer, scope="link", name=link, held_out="leave one layer out")
            )
        records.append(_record(timings, every, timings.node, scope="global", name="*", held_out="leave one link out"))
    return records


def _record(
    timings: ExchangeTimings, rows: NDArray[np.int64], groups: NDArray[np.str_], *, scope: str, name: str, held_out: str
) -> dict[str, Any]:
    price, logs = price_of(timings), []
    for group in np.unique(groups[rows]):
        out, rest = rows[groups[rows] == group], rows[groups[rows] != group]
        logs.append(np.log(timings.time_s[out] / price(fit_exchanges(timings, rest), out)))
    low, high = interval(logs)
    judged = np.concatenate(logs)
    relative = np.abs(np.exp(-judged) - 1)
    found = Errors(
        rows=len(judged),
        mape=float(relative.mean()),
        median_ape=float(np.median(relative)),
        log_std=float(judged.std()),
        low_factor=float(np.exp(low)),
        high_factor=float(np.exp(high)),
    )
    return record_of(
        found,
        scope=scope,
        name=name,
        op=timings.kind,
        parameters=fit_exchanges(timings, rows),
        domain={"tokens": timings.calls.tokens[rows]},
        sources=["aiconfigurator"],
        rows=len(rows),
        held_out=held_out,
        note="tokens are those of one rank; experts equally popular",
    )
