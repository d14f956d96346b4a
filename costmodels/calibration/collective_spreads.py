"""Intervals of collective prices, from what whole groups kept out of the fit measured over their price.

Split-conformal by group: the 5 % and 95 % quantiles of log(measured / predicted), every group (one source on one
link, one link, one fabric, ...) weighing the same however many rows it lists, and both moved outwards by a share of
2 / groups, because the next group varies more than few groups show. Fewer than nine groups do not show which side the
next one lies on: their interval is as wide on both. Groups that hold one another's rows, as the runs on more than 2, 4,
8 and 16 nodes of one fabric do, are one group, or an interval would judge rows that it was taken from. Small and large
messages apart, because latencies and bandwidths vary differently; NVLink, PCIe and PCIe without peer access apart,
because buses and meshes differ from one another by their topology, which a link's name does not tell, and hosts that
stage messages in their memory by how that is set up. Where nothing of a class was measured, the interval of the next
wider class holds.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from costmodels.calibration.collective_splits import SPLITS, Judged
from costmodels.calibration.collective_tables import FloatArray
from costmodels.calibration.robust import significant
from costmodels.links.collectives import LARGE_BYTES

LEAST_BYTES = (0.0, LARGE_BYTES)
TAIL = 0.05
CLASSES = ("own", "beyond", "kin", "guess")
FEW_GROUPS = 2.0  # see above; with it, groups kept out of their own interval are covered as promised
# Of n groups and the next, all equally likely to be farthest off, the next one is so with probability 1 / (n + 1):
# from nine groups on, the farthest of them bounds it on either side together as often as promised (conformal bound).
LEAST_TO_TELL_SIDES = 9
NESTED = ("more nodes",)  # splits whose groups of one fabric hold one another's rows
LEAST_OF_A_KIND = 2  # groups; of one, those of any kind or of the next wider class say more
KINDS = ("", "nvlink", "pcie", "pcie-staged")


def interval(logs: Sequence[FloatArray]) -> tuple[float, float]:
    """Low and high end of the 90 % interval of the next group's values; never on the wrong side of 0.

    Few groups say how far the next may lie and not on which side: their interval is as wide on both.
    """
    values = np.concatenate(logs)
    weights = np.concatenate([np.full(len(group), 1 / len(group)) for group in logs])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    low, high = (values[order][min(int(np.searchsorted(reached, q)), len(values) - 1)] for q in (TAIL, 1 - TAIL))
    wider = 1 + FEW_GROUPS / len(logs)
    ends = min(float(low), 0.0) * wider, max(float(high), 0.0) * wider
    return ends if len(logs) >= LEAST_TO_TELL_SIDES else (-max(map(abs, ends)), max(map(abs, ends)))


def logs_by_group(
    judged: Iterable[Judged], *, where: str, known: str, kind: str, least_bytes: float
) -> dict[tuple[str, str], FloatArray]:
    """log(measured / predicted) of every group of a class, messages of one size band; empty groups left out.

    Groups that hold one another's rows come as one, under the name of their fabric.
    """
    found: dict[tuple[str, str], list[FloatArray]] = {}
    for item in judged:
        if SPLITS[item.split][:2] != (where, known) or kind not in ("", item.kind):
            continue
        rows = (item.size_bytes >= LARGE_BYTES) == (least_bytes > 0)
        if np.any(rows):
            logs = np.log(item.time_s[rows] / item.predicted_s[rows])
            group = item.group.split(",")[0] if item.split in NESTED else item.group
            found.setdefault((item.split, group), []).append(logs)
    return {key: np.concatenate(logs) for key, logs in found.items()}


def spread_records(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Spreads as ``collectives.json`` holds them: general ones first, those of one kind of link after them."""
    records: list[dict[str, Any]] = []
    for where in ("inside", "across"):
        for kind in KINDS if where == "inside" else KINDS[:1]:
            for least_bytes in LEAST_BYTES:
                wider: dict[str, Any] | None = None
                for known in reversed(CLASSES):
                    groups = logs_by_group(judged, where=where, known=known, kind=kind, least_bytes=least_bytes)
                    if len(groups) >= (LEAST_OF_A_KIND if kind else 1):
                        wider = _record(groups)
                    if wider is not None:
                        key = {"where": where, "known": known, "kind": kind, "least_bytes": least_bytes}
                        records.append(key | wider)
    return records


def _record(groups: dict[tuple[str, str], FloatArray]) -> dict[str, Any]:
    low, high = interval(list(groups.values()))
    return {
        "low_factor": significant(float(np.exp(low)), 4),
        "high_factor": significant(float(np.exp(high)), 4),
        "groups": len(groups),
        "rows": sum(len(logs) for logs in groups.values()),
        "held_out": "; ".join(sorted({SPLITS[split][2] for split, _ in groups})),
    }
