"""Parameters of collectives between nodes: few published rows, so few free parameters.

Free are the efficiency of the network in rings, the share of it that trees over more than two nodes reach, what one
domain more in a ring costs, and what a pipeline of chunks waits, both in latencies of the adapter; few rows leave them
where they are expected. The rest is stated: a small message costs the adapter's latency (its definition), the
low-latency protocol reaches the same share of the bandwidth as inside a node, a tree's level costs one latency, and
one peer more in an all-to-all a tenth of one (as over NVLink). Gathers and reduce-scatters move the same bytes round
the same ring and share their rows, and lie where the fabric's all-reduces do for want of rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.across_tables import OMNIPATH, OMNIPATH_ADAPTER, AcrossTimings
from costmodels.calibration.robust import Errors, Price, Range, fit_parameters, record_of, significant
from costmodels.links.collectives import CollectiveOp
from costmodels.links.link_model import OP_NAMES, Network, across_time_s
from profiles.fits import CollectiveFits

FloatArray = NDArray[np.float64]

# Of 50 GB/s adapters 48 to 49 arrive at most, says the library's author (NVIDIA/nccl-tests issue 267).
MOST_OF_A_LINE = 0.98
RING = {
    "efficiency": Range(start=0.85, low=0.3, high=MOST_OF_A_LINE),
    "hops": Range(start=3.0, low=0.3, high=15.0),
    "ramp_hops": Range(start=0.25, low=0.0, high=3.0),
}
TREE = {"tree_share": Range(start=0.78, low=0.2, high=1.0)}
PLAIN = {"efficiency": Range(start=0.85, low=0.3, high=MOST_OF_A_LINE)}
# Where the parameters lie for want of rows: one adapter of 50 GB/s carries 46 (NVIDIA/nccl-tests issue 290), NCCL
# expects trees at 0.92 * 0.85 of a ring (src/graph/tuning.cc), a chunk waits for an adapter at either end, and a
# pipeline of chunks a quarter of a latency, as over NVLink 3 to 5 (``ramp_s`` of their rings over ``latency_s``).
EXPECTED = {"efficiency": 0.92, "tree_share": 0.78, "hops": 2.0, "ramp_hops": 0.25}
LAUNCH_S = 1.5e-5  # of a network collective, as the simple protocol's inside a node
FIXED = {
    "launch_s": LAUNCH_S,
    "low_hops": 1.0,
    "low_share": 0.35,
    "tree_share": 0.0,
    "tree_hops": 1.0,
    "ring_adapters": 0.0,
    "ramp_hops": EXPECTED["ramp_hops"],
}
BY_OP: dict[CollectiveOp, tuple[dict[str, Range], dict[str, float]]] = {
    CollectiveOp.ALL_REDUCE: (RING | TREE, {}),
    CollectiveOp.ALL_GATHER: (RING, {}),
    CollectiveOp.ALL_TO_ALL: (PLAIN, {"hops": 0.1}),
    CollectiveOp.SEND_RECV: (PLAIN, {"hops": 1.0}),
}
SPREAD = (0.7, 1.6)  # healthy runs of the sweep lie within it; no row count here allows a narrower claim
ETHERNET_SPREAD = (0.6, 2.5)


def price_of(timings: AcrossTimings, inside: CollectiveFits) -> Price:
    """The price list's own formula over rows on several nodes."""

    def price(parameters: Mapping[str, float], rows: NDArray[np.int64]) -> FloatArray:
        seconds = np.zeros(len(rows))
        for node in dict.fromkeys(timings.node[rows].tolist()):
            mine = np.flatnonzero([one == node for one in timings.node[rows]])
            groups = timings.groups(rows[mine])
            local = inside.resolve(OP_NAMES[timings.op], link=node.scale_up.name, kind=node.scale_up.kind)
            seconds[mine] = across_time_s(groups, local.parameters, parameters, Network.of(node))
        return seconds

    return price


def fit_across(
    timings: AcrossTimings, rows: NDArray[np.int64], inside: CollectiveFits, *, ring: Mapping[str, float]
) -> dict[str, float]:
    """Parameters of one operation between nodes, fitted on some rows.

    Args:
        timings: Rows of the operation.
        rows: Which of them are fitted.
        inside: Records of what happens inside a node.
        ring: Parameters of the fabric's all-reduces: where a ring's lie for want of rows.
    """
    ranges, extra = BY_OP[timings.op]
    expected = EXPECTED | ({key: ring[key] for key in RING} if ring and ranges is RING else {})
    fixed = {key: value for key, value in (FIXED | extra).items() if key not in ranges}
    return fit_parameters(
        price_of(timings, inside),
        timings.time_s,
        rows,
        ranges,
        fixed=fixed,
        prior={key: value for key, value in expected.items() if key in ranges},
        weights=_weights(timings),
    )


def _record(
    timings: AcrossTimings, inside: CollectiveFits, *, scope: str, name: str, ring: Mapping[str, float]
) -> dict[str, Any]:
    price, rows = price_of(timings, inside), np.arange(len(timings))
    parameters = fit_across(timings, rows, inside, ring=ring)
    ratio = timings.time_s / price(parameters, rows)
    held: list[float] = []
    for source in np.unique(timings.source):
        others = np.flatnonzero(timings.source != source)
        if len(others):
            without = fit_across(timings, others, inside, ring=ring)
            mine = np.flatnonzero(timings.source == source)
            held += list(timings.time_s[mine] / price(without, mine))
    judged = np.array(held) if held else ratio
    relative = np.abs(1 / judged - 1)
    found = Errors(
        rows=len(held),
        mape=float(relative.mean()),
        median_ape=float(np.median(relative)),
        log_std=float(np.log(judged).std()),
        low_factor=min(SPREAD[0], float(judged.min())),
        high_factor=max(SPREAD[1], float(judged.max())),
    )
    return record_of(
        found,
        scope=scope,
        name=name,
        op=f"{OP_NAMES[timings.op]}_across",
        parameters=parameters,
        domain={"ranks": timings.ranks, "size_bytes": timings.size_bytes},
        sources=timings.source.tolist(),
        rows=len(timings),
        held_out="leave one source out" if held else "none: one source only, error on the fitted rows",
    )


def _weights(timings: AcrossTimings) -> FloatArray:
    counts = {source: int(np.sum(timings.source == source)) for source in np.unique(timings.source)}
    weights = np.array([1 / np.sqrt(counts[source]) for source in timings.source])
    return np.asarray(weights / weights.mean(), dtype=float)


def fabric_records(tables: Iterable[AcrossTimings], inside: CollectiveFits) -> list[dict[str, Any]]:
    """Records per fabric and over all; RDMA over Ethernet shares the rows of InfiniBand.

    Ethernet without it has none of its own: what was timed is Google's transport past the kernel, not sockets.
    """
    records = []
    rings: dict[str, Mapping[str, float]] = {}
    for timings in tables:
        if not len(timings):
            continue
        found = [_record(timings, inside, scope="global", name="*", ring=rings.get("*", {}))]
        for kind in np.unique(timings.fabric[timings.fabric != "ethernet"]).tolist():
            mine = timings.where(timings.fabric == kind)
            found.append(_record(mine, inside, scope="kind", name=kind, ring=rings.get(kind, {})))
            if kind == "infiniband":
                found.append(found[-1] | {"name": "roce"})
        if timings.op is CollectiveOp.ALL_REDUCE:
            rings = {record["name"]: record["parameters"] for record in found}
        found += [_ethernet(found[0]), _omnipath(found[0])]
        if timings.op is CollectiveOp.ALL_GATHER:
            found += [record | {"op": "reduce_scatter_across"} for record in found]
        records += found
    return records


def _ethernet(whole: dict[str, Any]) -> dict[str, Any]:
    note = "sockets through host memory were not measured: the network's share is as of all fabrics"
    low, high = ETHERNET_SPREAD
    own = {"scope": "kind", "name": "ethernet", "low_factor": low, "high_factor": high}
    return whole | own | {"card": whole["card"] | {"rows": 0, "note": note}}


def _omnipath(whole: dict[str, Any]) -> dict[str, Any]:
    """Record of an operation over Omni-Path, of which all-reduces are published: others reach as much of an adapter."""
    shares = np.array(OMNIPATH) / OMNIPATH_ADAPTER
    efficiency = float(np.median(shares))
    relative = np.abs(efficiency / shares - 1)
    card = {
        "sources": ["bigscience, experiments/bandwidth"],
        "rows": len(shares),
        "mape": significant(float(relative.mean()), 3),
        "median_ape": significant(float(np.median(relative)), 3),
        "log_std": significant(float(np.log(shares).std()), 3),
        "held_out_rows": 0,
        "held_out": "none: error on the rows themselves",
        "note": "all-reduces only, staged through host memory; rings through one adapter of a node",
    }
    own = {"efficiency": significant(efficiency, 3), "ring_adapters": 1.0}
    return whole | {
        "scope": "kind",
        "name": "omnipath",
        "parameters": whole["parameters"] | own,
        "low_factor": SPREAD[0],
        "high_factor": SPREAD[1],
        "card": whole["card"] | card,
    }
