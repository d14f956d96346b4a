"""Which collectives are kept out of a fit to judge it, always whole groups, and what the rest predicts for them.

Inside a scale-up domain: every source, on every link; every link; eight ranks from two and four; messages above
64 MiB from smaller ones. Across domains: every source within its fabric; every fabric; runs on more than k nodes
from those on at most k. Rows are judged by the price list itself, so that whatever it borrows is judged as borrowed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.across_fit import fabric_records
from costmodels.calibration.across_tables import AcrossTimings, across_timings, unnamed_timings
from costmodels.calibration.collective_fit import (
    NEUTRAL,
    as_fits,
    fit_inside,
    is_pooled,
    kind_of,
    mesh_records,
    wired_records,
)
from costmodels.calibration.collective_tables import FloatArray, LinkTimings, inside_timings
from costmodels.links.collectives import CollectiveCallBatch
from costmodels.links.link_model import OP_NAMES, LinkCollectiveModel, Network, across_time_s, inside_time_s
from profiles.catalog import default_catalog
from profiles.fits import CollectiveFits
from profiles.hardware import ClusterSpec

# What is kept out, where, and how well a price in real use is known that is off as those are (``Spread``).
SPLITS = {
    "source": ("inside", "own", "one source of one link"),
    "eight ranks": ("inside", "beyond", "eight ranks; fitted on two and four"),
    "large messages": ("inside", "beyond", "above 64 MiB; fitted on smaller ones"),
    "link": ("inside", "kin", "one link"),
    "network source": ("across", "beyond", "one source of one fabric"),
    "more nodes": ("across", "beyond", "more than 2, 4, 8, 16 nodes; fitted on fewer"),
    "fabric": ("across", "kin", "one fabric"),
    "unnamed network": ("across", "guess", "networks their source does not name, taken as the usual ones"),
}
FEW_RANKS = 4
SMALL_BYTES = 64 * 2**20
NODE_COUNTS = (2, 4, 8, 16)  # runs on at most so many are fitted, to predict those on more


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Rows of one group kept out, and their price.

    Attributes:
        split: What kind of group: a key of ``SPLITS``.
        group: Which, e.g. ``nvlink4``.
        op: Operation.
        kind: Kind of the link; PCIe without peer access is one of its own.
        size_bytes, time_s, predicted_s, baseline_s: (K,) message, measured, predicted, and at data-sheet
            bandwidth and latency.
    """

    split: str
    group: str
    op: str
    kind: str
    size_bytes: FloatArray
    time_s: FloatArray
    predicted_s: FloatArray
    baseline_s: FloatArray


def _ideal(latency_s: float) -> dict[str, float]:
    """One latency, then the bandwidth of the data sheet."""
    plain = {"launch_s": latency_s, "hop_s": 0.0, "efficiency": 1.0, "ramp_s": 0.0, "pair_loss": 0.0}
    return NEUTRAL | plain | {"low_launch_s": latency_s, "low_hop_s": 0.0, "low_efficiency": 1.0, "low_pair_loss": 0.0}


_IDEAL_ACROSS = {
    "launch_s": 0.0, "efficiency": 1.0, "hops": 1.0, "low_share": 1.0, "low_hops": 1.0, "tree_share": 0.0,
    "ring_adapters": 0.0, "ramp_hops": 0.0,
}  # fmt: skip


def judge_inside(split: str, group: str, fits: CollectiveFits, timings: LinkTimings) -> Judged:
    """What fits predict for rows inside a domain."""
    catalog = default_catalog()
    base = catalog.node("dgx-h100")
    predicted_s, baseline_s = np.zeros(len(timings)), np.zeros(len(timings))
    for name in np.unique(timings.link):
        link = catalog.link(str(name))
        node = replace(base, devices_per_node=72, domain_devices=72, scale_up=link)
        for adds in (False, True):
            rows = np.flatnonzero((timings.link == name) & (timings.adds == adds))
            if len(rows):
                model = LinkCollectiveModel(fits, in_switch_sums=adds)
                calls, cluster = _calls(timings, rows), ClusterSpec(name=link.name, node=node, num_nodes=1)
                predicted_s[rows] = model.predict(calls, cluster).time_s
                ideal, rate = _ideal(link.latency_s), link.bandwidth_bytes_per_s
                baseline_s[rows] = inside_time_s(timings.groups(rows), ideal, rate)
    return Judged(
        split=split, group=group, op=OP_NAMES[timings.op], kind=kind_of(str(timings.link[0])),
        size_bytes=timings.size_bytes, time_s=timings.time_s, predicted_s=predicted_s, baseline_s=baseline_s,
    )  # fmt: skip


def judge_across(split: str, group: str, fits: CollectiveFits, timings: AcrossTimings) -> Judged:
    """What fits predict for rows across domains."""
    predicted_s, baseline_s = np.zeros(len(timings)), np.zeros(len(timings))
    model = LinkCollectiveModel(fits)
    for node in dict.fromkeys(timings.node.tolist()):
        rows = np.flatnonzero([one == node for one in timings.node])
        calls = _calls(timings, rows)
        cluster = ClusterSpec(name=node.name, node=node, num_nodes=int(timings.ranks.max()))
        predicted_s[rows] = model.predict(calls, cluster).time_s
        ideal = _ideal(node.scale_up.latency_s)
        baseline_s[rows] = across_time_s(timings.groups(rows), ideal, _IDEAL_ACROSS, Network.of(node))
    return Judged(
        split=split, group=group, op=OP_NAMES[timings.op], kind=str(timings.kind[0]),
        size_bytes=timings.size_bytes, time_s=timings.time_s, predicted_s=predicted_s, baseline_s=baseline_s,
    )  # fmt: skip


def _calls(timings: LinkTimings | AcrossTimings, rows: NDArray[np.int64]) -> CollectiveCallBatch:
    groups = timings.groups(rows)
    return CollectiveCallBatch(
        op=np.full(len(rows), int(timings.op)),
        size_bytes=groups.size_bytes,
        group_size=groups.ranks.astype(np.int64),
        ranks_per_domain=groups.local.astype(np.int64),
    )


def inside_splits(folder: Path) -> Iterator[Judged]:
    """Groups inside a domain, one after the other."""
    tables, judged = inside_timings(folder), inside_timings(folder, judged=True)
    for link in _values(tables, "link"):
        mine = [timings.where(timings.link == link) for timings in tables]
        yield from _inside("link", link, [t.where(t.link != link) for t in tables], mine)
        sources = _values(mine, "source")
        for source in sources if len(sources) > 1 else []:
            rest = [t.where((t.link != link) | (t.source != source)) for t in tables]
            yield from _inside("source", f"{link}, {source}", rest, [t.where(t.source == source) for t in mine])
    fits, fitted = _inside_fits(tables), _values(tables, "link")
    for link in _values(judged, "link"):
        mine = [timings.where(timings.link == link) for timings in judged]
        # A host that stages messages is not another's, whatever joins its cards.
        split = "source" if link in fitted and default_catalog().link(link).peer_to_peer else "link"
        for source in _values(mine, "source"):
            for timings in (t.where(t.source == source) for t in mine):
                if len(timings):
                    yield judge_inside(split, f"{link}, {source}", fits, timings)
    few = [timings.where(timings.ranks <= FEW_RANKS) for timings in tables]
    yield from _per_link("eight ranks", few, [timings.where(timings.ranks == 8) for timings in tables])
    small = [timings.where(timings.size_bytes <= SMALL_BYTES) for timings in tables]
    yield from _per_link(
        "large messages", small, [timings.where(timings.size_bytes > SMALL_BYTES) for timings in tables]
    )


def _inside(split: str, group: str, rest: Sequence[LinkTimings], out: Sequence[LinkTimings]) -> Iterator[Judged]:
    kind = kind_of(_values(out, "link")[0])
    alike = [
        timings.where(
            np.array([kind_of(str(link)) == kind for link in timings.link], dtype=np.bool_) & is_pooled(timings)
        )
        for timings in rest
    ]
    # Records of another kind price these rows only where none of this kind is left.
    fits = _inside_fits(alike if any(len(timings) for timings in alike) else rest)
    for timings in out:
        if len(timings):
            yield judge_inside(split, group, fits, timings)


def _per_link(split: str, rest: Sequence[LinkTimings], out: Sequence[LinkTimings]) -> Iterator[Judged]:
    """One fit for all links, judged link by link, where the link and operation keep rows."""
    fits = _inside_fits(rest)
    for timings, kept in zip(out, rest, strict=True):
        for link in np.unique(timings.link):
            if np.any(kept.link == link):
                yield judge_inside(split, str(link), fits, timings.where(timings.link == link))


def _inside_fits(tables: Sequence[LinkTimings]) -> CollectiveFits:
    records = fit_inside(tables)
    return as_fits([*records, *wired_records(records), *mesh_records()])


def across_splits(folder: Path, logs: Path, inside: Sequence[dict[str, Any]]) -> Iterator[Judged]:
    """Groups across domains, one after the other, given the records of what happens inside."""
    tables = across_timings(folder, logs)
    fits = as_fits(inside)

    def judge(split: str, group: str, rest: Sequence[AcrossTimings], out: Sequence[AcrossTimings]) -> Iterator[Judged]:
        used = as_fits([*inside, *fabric_records(rest, fits)])
        for timings, kept in zip(out, rest, strict=True):
            if len(timings) and len(kept):
                yield judge_across(split, group, used, timings)

    for fabric in _values(tables, "fabric"):
        mine = [timings.where(timings.fabric == fabric) for timings in tables]
        yield from judge("fabric", fabric, [t.where(t.fabric != fabric) for t in tables], mine)
        sources = _values(mine, "source")
        for source in sources if len(sources) > 1 else []:
            rest = [t.where((t.fabric != fabric) | (t.source != source)) for t in tables]
            yield from judge("network source", f"{fabric}, {source}", rest, [t.where(t.source == source) for t in mine])
        fewest = 0
        for nodes in NODE_COUNTS:
            rest = [t.where((t.fabric != fabric) | (t.ranks / t.local <= nodes)) for t in tables]
            seen = [np.any(t.fabric == fabric) for t in rest]
            if sum(map(len, rest)) == fewest:
                continue
            fewest = sum(map(len, rest))
            out = [
                t.where((t.fabric == fabric) & (t.ranks / t.local > nodes) & some)
                for t, some in zip(tables, seen, strict=True)
            ]
            yield from judge("more nodes", f"{fabric}, over {nodes}", rest, out)

    used = as_fits([*inside, *fabric_records(tables, fits)])
    for timings in unnamed_timings(folder):
        for source in np.unique(timings.source):
            yield judge_across("unnamed network", str(source), used, timings.where(timings.source == source))


def _values(tables: Sequence[LinkTimings | AcrossTimings], column: str) -> list[str]:
    return sorted({str(value) for timings in tables for value in getattr(timings, column)})
