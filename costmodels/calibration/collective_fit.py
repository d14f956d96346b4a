"""Fits the parameters of the collective price list on published timings; deterministic.

Inside a domain every (link, operation) with rows gets a record, every link kind a pooled one. All-reduces,
gathers and reduce-scatters send the same chunks round the same ring, so the parameters of one are where those of
the others lie for want of rows: first the rings of a kind are fitted together, then those of a link, drawn
towards their kind, then each operation, drawn towards its link. So eight ranks can be priced from two and four,
and no table of one operation is followed into its accidents.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.collective_tables import FloatArray, LinkTimings
from costmodels.calibration.robust import (
    RANDOM_ROWS,
    Errors,
    Parameters,
    Price,
    Range,
    errors,
    fit_parameters,
    record_of,
    significant,
    split,
)
from costmodels.links.collectives import CollectiveOp
from costmodels.links.link_model import OP_NAMES, RINGS, inside_time_s
from profiles.catalog import default_catalog
from profiles.fits import CollectiveFits, parse_collective_fits

MOST_ROWS = 4000
RANGES = {
    "launch_s": Range(start=2e-5, low=1e-6, high=3e-4),
    "hop_s": Range(start=3.4e-6, low=1e-7, high=1e-4),  # where it starts, and the next: NCCL, src/graph/tuning.cc
    "efficiency": Range(start=0.8, low=0.02, high=1.1),
    "ramp_s": Range(start=1e-6, low=1e-9, high=3e-5),
    "low_launch_s": Range(start=6.6e-6, low=5e-7, high=1e-4),
    "low_hop_s": Range(start=1e-6, low=1e-7, high=5e-5),
    "low_efficiency": Range(start=0.2, low=0.005, high=1.0),
    "pair_loss": Range(start=0.6, low=0.0, high=1.7),
    "low_pair_loss": Range(start=0.6, low=0.0, high=1.7),
}
SWITCH = {
    "switch_hop_s": Range(start=4e-6, low=5e-7, high=3e-5),
    "switch_efficiency": Range(start=0.6, low=0.1, high=0.9),
}
LOSSES = ("pair_loss", "low_pair_loss")
# Staged messages compete for the memory of the host, whoever sends them. Peers on one processor do not compete, and a
# ring of eight is as fast as what passes between the two processors of its host: rings of eight tell of that share
# alone, because what else they wait for is that of their processors.
STAGED_BUS = {"sharing": Range(start=1.0, low=0.0, high=3.0)}
TWO_PROCESSORS = {"lanes_of_8": Range(start=0.9, low=0.1, high=1.0)}
ONE_PROCESSOR = 4  # cards of one, where a host holds eight
NEUTRAL = {
    "sharing": 0.0, "lanes_of_2": 1.0, "lanes_of_4": 1.0, "lanes_of_8": 1.0, "lanes_of_16": 1.0,
    "switch_hop_s": 0.0, "switch_efficiency": 0.0,
}  # fmt: skip
# Hybrid cube mesh, six lanes: in a quad each device has four, to one peer two and to the others one or two (NVIDIA
# DGX-1 whitepaper WP-08437); a pair is timed as often with one lane as with two.
CUBE_MESH = {"lanes_of_2": 1.5 / 6, "lanes_of_4": 4 / 6, "lanes_of_8": 1.0}
# Two dies a package, 50 GB/s a link, lanes counted in the three links of a die that leave its package. The host that
# was timed has sixteen dies: its wiring (rcclRomeModel 56 in RCCL's src/graph/rome_models.cc) joins a package by four
# links, lets two rings pass its first eight dies (one way round and the other) and RCCL runs six over all of them.
# Two rings pass the first four as well, but RCCL's search found one: they are timed below what one link carries.
PACKAGE_MESH = {"lanes_of_2": 4 / 3, "lanes_of_4": 1 / 3, "lanes_of_8": 2 / 3, "lanes_of_16": 6 / 3}
STATED_MESHES = {"nvlink2": CUBE_MESH, "xgmi-mi250": PACKAGE_MESH}
# Plans put neighbours together: devices 0 and 1, 4 and 5 share one lane of that mesh, 2 and 3, 6 and 7 two (nvidia-smi
# topo -m on such a machine; arXiv:1903.04611), and the slowest pair holds up the rest.
# A node of eight dies wires the four links that lead to its other packages so that four rings pass (models 66 and 67),
# and so two between neighbours, one way round and the other.
NEIGHBOURS = {"nvlink2": {"lanes_of_2": 1 / 6}, "xgmi-mi250": {"lanes_of_4": 2 / 3, "lanes_of_8": 4 / 3}}
FULL_MESHES = ("xgmi-mi300", "xgmi-mi350")
# Small messages over xGMI: latencies and low-latency protocol as NVLink 3's. Below 1 MiB nnScaler's rows are the host
# time of its wrappers, 85 us and 41 for every rank; sixteen dies add up 8 bytes in 25 us (ROCm/rccl pull request 929),
# which these make 39.
XGMI_LOW = {"low_launch_s": 9e-6, "low_hop_s": 1e-6, "low_efficiency": 0.2}
HOST_TIMED = ("xgmi", "xgmi-mi250")
# What a switch that adds reaches of the lanes: 309 of 450 GB/s on H100 and 543 of 900 on B300 (NVIDIA/nccl issue 2140).
SWITCH_PRIOR: dict[str, dict[str, float]] = {
    "nvlink4": {"switch_efficiency": 0.687},
    "nvlink5": {"switch_efficiency": 0.603},
}


def stated_lanes(link: str, op: str) -> Mapping[str, float]:
    """Shares of the lanes that a mesh's wiring leaves to groups of ranks; empty where all reach all, or not stated.

    Rings share out the lanes between packages; an all-to-all goes to one peer after the other by whatever path, and
    gets about as far on two dies as on four.
    """
    return {} if (link, op) == ("xgmi-mi250", "all_to_all") else STATED_MESHES.get(link, {})


def price_of(tables: Sequence[LinkTimings]) -> Price:
    """The price list's own formula over the rows of several tables, one after the other, and of several links."""
    ends = np.cumsum([len(timings) for timings in tables])

    def price(parameters: Mapping[str, float], rows: NDArray[np.int64]) -> FloatArray:
        seconds = np.zeros(len(rows))
        for start, end, timings in zip(ends - [len(t) for t in tables], ends, tables, strict=True):
            inside = np.flatnonzero((rows >= start) & (rows < end))
            mine = rows[inside] - start
            for name in np.unique(timings.link[mine]):
                here = np.flatnonzero(timings.link[mine] == name)
                rate = float(timings.bytes_per_s[mine[here[0]]])
                own = {**parameters, **stated_lanes(str(name), OP_NAMES[timings.op])}
                for adds in (False, True):
                    some = here[timings.adds[mine[here]] == adds]
                    used = own if adds else own | {"switch_efficiency": 0.0}
                    seconds[inside[some]] = inside_time_s(timings.groups(mine[some]), used, rate)
        return seconds

    return price


def _ranges(
    tables: Sequence[LinkTimings], prior: Mapping[str, float], *, switch: bool
) -> tuple[dict[str, Range], Parameters]:
    """What is free on these rows, and what stays.

    What few ranks lose is as elsewhere where one size of group was timed, and nothing where that is a pair: all the
    lanes of a bridge lead to the other device. What peers on two processors lose is as elsewhere where none was timed.
    """
    links = {str(link) for timings in tables for link in timings.link}
    sizes = np.unique(np.concatenate([timings.ranks for timings in tables]))
    ranges, fixed = dict(RANGES), NEUTRAL | dict.fromkeys(LOSSES, 0.0)
    if switch and any(timings.op is CollectiveOp.ALL_REDUCE for timings in tables):
        ranges |= SWITCH
    bus = any(link.startswith("pcie") for link in links)
    stated = [stated_lanes(link, OP_NAMES[timings.op]) for timings in tables for link in np.unique(timings.link)]
    if _are_peers(tables):
        fixed |= dict.fromkeys(("lanes_of_8", "lanes_of_16"), prior.get("lanes_of_8", 1.0))
    elif bus and len(sizes) > 1:
        ranges |= STAGED_BUS
    if len(links) == 1:
        fixed |= stated[0]
    if bus or all(stated) or len(sizes) < 2:
        ranges = {name: value for name, value in ranges.items() if name not in LOSSES}
        if sizes.min() > 2 and not bus and not all(stated):
            fixed |= {name: prior.get(name, 0.0) for name in LOSSES}
    return ranges, {key: value for key, value in fixed.items() if key not in ranges}


def _are_peers(tables: Sequence[LinkTimings]) -> bool:
    """Whether all links are PCIe with peer access."""
    return {kind_of(str(link)) for timings in tables for link in np.unique(timings.link)} == {"pcie"}


def fit_tables(
    tables: Sequence[LinkTimings],
    rows: NDArray[np.int64] | None = None,
    *,
    prior: Mapping[str, float] | None = None,
    switch: bool = False,
) -> Parameters:
    """Parameters of the rows of some tables, drawn towards a prior.

    Args:
        tables: Timings, one table per operation.
        rows: Row numbers in the tables, one after the other; all when None.
        prior: Where parameters lie for want of rows.
        switch: Whether the switches of these links add.
    """
    ranges, fixed = _ranges(tables, prior or {}, switch=switch)
    known = {key: value for key, value in (prior or {}).items() if value != NEUTRAL.get(key)}
    known = {key: value for key, value in known.items() if key in ranges}
    time_s = np.concatenate([timings.time_s for timings in tables])
    weights = np.concatenate([_weights(timings) for timings in tables])
    chosen = np.arange(len(time_s)) if rows is None else rows
    beyond = np.concatenate([timings.ranks for timings in tables])[chosen] > ONE_PROCESSOR
    apart = _are_peers(tables) and bool(np.any(beyond)) and not np.all(beyond)
    first = chosen[~beyond] if apart else chosen
    fitted = _ordered(
        fit_parameters(price_of(tables), time_s, first, ranges, fixed=fixed, prior=known, weights=weights)
    )
    if not apart:
        return fitted
    rest = {key: value for key, value in fitted.items() if key not in TWO_PROCESSORS}
    fitted = fit_parameters(price_of(tables), time_s, chosen[beyond], TWO_PROCESSORS, fixed=rest, weights=weights)
    return fitted | {"lanes_of_16": fitted["lanes_of_8"]}  # more cards than eight are on two processors too


def _ordered(parameters: Parameters) -> Parameters:
    """The protocol with more bandwidth is the simple one; the formula treats the two almost alike."""
    if parameters["low_efficiency"] <= parameters["efficiency"]:
        return parameters
    swap = ("launch_s", "hop_s", "efficiency", "pair_loss")
    low = {f"low_{name}": parameters[name] for name in swap}
    return parameters | {name: parameters[f"low_{name}"] for name in swap} | low


def fit_record(
    timings: LinkTimings, *, scope: str, name: str, prior: Mapping[str, float] | None, switch: bool = False
) -> dict[str, Any]:
    """One record: parameters from a random 80 % of the rows, error on the rest."""
    fitted, held = split(len(timings), most=MOST_ROWS)
    parameters = fit_tables([timings], fitted, prior=prior, switch=switch)
    found = errors(price_of([timings]), parameters, timings.time_s, held)
    return record(timings, parameters, found, scope=scope, name=name)


def _weights(timings: LinkTimings) -> FloatArray:
    """Each (source, ranks) alike, however many sizes it lists."""
    keys = np.array([f"{s}/{r}/{g:g}" for s, r, g in zip(timings.source, timings.link, timings.ranks, strict=True)])
    counts = {key: int(np.sum(keys == key)) for key in np.unique(keys)}
    weights = np.array([1.0 / counts[key] for key in keys])
    return np.asarray(weights / weights.mean(), dtype=float)


def record(
    timings: LinkTimings, parameters: Mapping[str, float], found: Errors, *, scope: str, name: str
) -> dict[str, Any]:
    """A record of ``collectives.json``."""
    return record_of(
        found,
        scope=scope,
        name=name,
        op=OP_NAMES[timings.op],
        parameters=parameters,
        domain={"ranks": timings.ranks, "size_bytes": timings.size_bytes},
        sources=timings.source.tolist(),
        rows=len(timings),
        held_out=RANDOM_ROWS,
    )


def kind_of(link: str) -> str:
    """Kind under which a catalogued link is pooled."""
    spec = default_catalog().link(link)
    return spec.kind if spec.peer_to_peer else f"{spec.kind}-staged"


def _ring_only(timings: LinkTimings) -> LinkTimings:
    """Without all-reduces that a switch may have added up."""
    return timings.where(~timings.adds)


def fit_inside(tables: Iterable[LinkTimings]) -> list[dict[str, Any]]:
    """Link and kind records of every operation, and one over all links."""
    given = [timings for timings in tables if len(timings)]
    records = []
    kinds = {str(link): kind_of(str(link)) for timings in given for link in np.unique(timings.link)}
    for kind in sorted(set(kinds.values())):
        links = sorted(link for link in kinds if kinds[link] == kind)
        pooled = [timings.where(np.isin(timings.link, links) & is_pooled(timings)) for timings in given]
        priors = _priors([_ring_only(timings) for timings in pooled], {})
        for timings in map(_ring_only, pooled):
            if len(timings):
                records.append(fit_record(timings, scope="kind", name=kind, prior=priors.get(timings.op)))
        for link in links:
            of_link = [timings.where(timings.link == link) for timings in given]
            switch = SWITCH_PRIOR.get(link, {})
            alone = default_catalog().link(link).one_host
            own = _priors(of_link, {} if alone else priors, switch=switch)
            for timings in of_link:
                if len(timings):
                    prior = own.get(timings.op, {}) | switch
                    adds = bool(switch)
                    records.append(fit_record(timings, scope="link", name=link, prior=prior, switch=adds))
    for timings in (_ring_only(table.where(is_pooled(table))) for table in given):
        if len(timings):
            records.append(fit_record(timings, scope="global", name="*", prior=None))
    return records


def is_pooled(timings: LinkTimings) -> NDArray[np.bool_]:
    """(K,) whether each row tells of other hosts than its own."""
    alone = [link for link in np.unique(timings.link) if default_catalog().link(str(link)).one_host]
    return ~np.isin(timings.link, alone)


def _priors(
    tables: Sequence[LinkTimings],
    wider: Mapping[CollectiveOp, Mapping[str, float]],
    *,
    switch: Mapping[str, float] | None = None,
) -> dict[CollectiveOp, Parameters]:
    """Per operation, the parameters fitted on all rings of these tables together, or on the operation alone."""
    found: dict[CollectiveOp, Parameters] = {}
    rings = [timings for timings in tables if timings.op in RINGS and len(timings)]
    others = [[timings] for timings in tables if timings.op not in RINGS and len(timings)]
    for together in ([rings] if rings else []) + others:
        drawn = {**wider.get(together[0].op, {}), **(switch or {})}
        fitted = fit_tables(together, prior=drawn, switch=bool(switch))
        if len(together) > 1:  # where operations differ by more than their steps, a latency ends at its bound: no prior
            ends = {key for key in RANGES if key in fitted and RANGES[key].ends_at(fitted[key])}
            fitted = {key: value for key, value in fitted.items() if key not in ends}
        found |= {timings.op: fitted for timings in together}
    return found


def mesh_records() -> list[dict[str, Any]]:
    """Records of AMD's fully connected meshes, of which no timing table holds a row.

    Of each 64 GB/s link 48 remain after protocol and error correction, says the library's author; a device
    reaches each of its seven peers over one of them. Latencies are NVLink 3's. Measured times lie as far from these
    prices as links of NVLink lie from others of their kind (docs/collectives.md: kin, 1 MiB and more).
    """
    parameters = NEUTRAL | XGMI_LOW | {
        "launch_s": 3e-5, "hop_s": 2e-6, "efficiency": 0.75, "ramp_s": 0.0, "pair_loss": 0.0, "low_pair_loss": 0.0,
        "lanes_of_2": significant(1 / 7), "lanes_of_4": significant(3 / 7),
    }  # fmt: skip
    card = {
        "sources": ["ROCm/rccl issue 1210"], "rows": 0, "held_out_rows": 0, "mape": 0.0, "median_ape": 0.0,
        "log_std": 0.0, "held_out": "none", "note": "stated by the library's author, not fitted",
    }  # fmt: skip
    return [
        {
            "scope": "link", "name": link, "op": op, "format": "", "parameters": parameters,
            "low_factor": 0.58, "high_factor": 1.71, "domain": {}, "card": card,
        }
        for link in FULL_MESHES
        for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
    ]  # fmt: skip


def wired_records(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of the stated meshes that none of these rests on: those of their kind, or of all, with their lanes.

    Wiring is published with the machine; a link need not be timed to know it.
    """
    found = {(one["scope"], one["name"], one["op"]): one for one in records}
    wired = []
    for link in sorted(STATED_MESHES):
        for op in OP_NAMES.values():
            known = found.get(("kind", kind_of(link), op)) or found.get(("global", "*", op))
            if known and not any(("link", link, name) in found for name in OP_NAMES.values()):
                parameters = {**known["parameters"], **stated_lanes(link, op), "pair_loss": 0.0, "low_pair_loss": 0.0}
                wired.append({**known, "scope": "link", "name": link, "parameters": parameters})
    return wired


def as_plans_place(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records as plans meet them: lanes of the pairs that they put together, no host time in small messages."""
    placed = []
    for one in records:
        meshed = one["scope"] == "link" and stated_lanes(one["name"], one["op"])
        lanes = NEIGHBOURS.get(one["name"], {}) if meshed else {}
        changed = {key: significant(value) for key, value in lanes.items()}
        stated = XGMI_LOW if one["name"] in HOST_TIMED and one["op"] != "all_to_all" else {}
        placed.append({**one, "parameters": {**one["parameters"], **changed, **stated}})
    return placed


def as_fits(records: Sequence[Mapping[str, Any]]) -> CollectiveFits:
    """Records as the price list reads them."""
    return parse_collective_fits(json.dumps({"records": records}))
