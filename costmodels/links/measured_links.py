"""Collectives priced by what a user measured of their own links, on top of the packaged price list.

Of every link and operation the ratio of measured to listed time is known where there are rows. In between, and for
other sizes of group, it is that of the nearest rows, by sizes and ranks in powers of two. Operations that nobody timed
there, but that send the same chunks round the same ring, take the ratio of those that were.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import Basis, FloatArray, IntArray, Prediction
from costmodels.links.collectives import CollectiveCallBatch, CollectiveCostModel, CollectiveOp
from costmodels.links.link_model import RINGS, local_ranks
from costmodels.plan import BoolArray
from costmodels.uncertainty import NORMAL_90
from profiles.hardware import ClusterSpec

_CHUNK = 4096  # calls at once; bounds memory
_MOST_POINTS = 256  # of one link and operation; more say no more
_NEAR = 1.0  # powers of two in size and ranks within which a call counts as measured
# Standard deviation of log time between runs of one benchmark on one machine, at least: two runs of nccl-tests that
# are a few percent apart are alike (docs/collectives.md has the spread between machines).
_LEAST_SPREAD = 0.05

Key = tuple[str, bool, CollectiveOp]  # link, whether the ranks are in several domains, operation


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRatios:
    """What is known of one operation on one link.

    Attributes:
        places: (P, 2) log2 of message size and ranks.
        log_ratio: (P,) log of measured over listed time.
        spread: Standard deviation of that about what the other points say.
    """

    places: FloatArray
    log_ratio: FloatArray
    spread: float

    @classmethod
    def of(cls, places: FloatArray, log_ratio: FloatArray) -> "LinkRatios":
        """From rows; of many an even choice by size."""
        if len(places) > _MOST_POINTS:
            order = np.lexsort((places[:, 1], places[:, 0]))
            rows = order[np.linspace(0, len(order) - 1, _MOST_POINTS).astype(np.int64)]
            places, log_ratio = places[rows], log_ratio[rows]
        errors = np.zeros(1)
        if len(places) > 1:
            others = _weights(_squares(places, places))
            np.fill_diagonal(others, 0.0)
            # A row so far from all others that they weigh nothing tells nothing of them.
            told = others.sum(axis=1) > 0
            errors = (others @ log_ratio)[told] / others.sum(axis=1)[told] - log_ratio[told]
        return cls(
            places=places, log_ratio=log_ratio, spread=float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
        )

    def at(self, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(C,) log ratio of calls, and how far the nearest row is."""
        ratio, distance = np.empty(len(places)), np.empty(len(places))
        for start in range(0, len(places), _CHUNK):
            rows = slice(start, start + _CHUNK)
            squares = _squares(places[rows], self.places)
            weights = _weights(squares)
            ratio[rows] = weights @ self.log_ratio / weights.sum(axis=1)
            distance[rows] = np.sqrt(squares.min(axis=1))
        return ratio, distance


def _squares(places: FloatArray, others: FloatArray) -> FloatArray:
    """(C, P) squared distances."""
    size, ranks = (places[:, None, column] - others[None, :, column] for column in (0, 1))
    return np.asarray(size**2 + ranks**2)


def _weights(squares: FloatArray) -> FloatArray:
    """(C, P) weights of rows for calls, that of the nearest 1: nothing is too far to be the nearest."""
    return np.asarray(np.exp(-(squares - squares.min(axis=1, keepdims=True)) / 2))


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredCollectiveModel:
    """Prices of a base model, corrected on links that were timed.

    Attributes:
        base: Prices every call; the ratios are of it.
        known: Ratios by link, whether ranks are in several scale-up domains, and operation.
    """

    base: CollectiveCostModel
    known: Mapping[Key, LinkRatios]

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        """Seconds for each call; zero for groups of one (except copies to the host)."""
        found = self.base.predict(calls, cluster).table()
        for rows, ratios in self._parts(calls, cluster):
            log_ratio, distance = ratios.at(places_of(calls.size_bytes[rows], calls.group_size[rows]))
            reach = NORMAL_90 * max(ratios.spread, _LEAST_SPREAD)
            factor, near = np.exp(log_ratio), distance <= _NEAR
            listed = found[:3, rows] * factor
            found[0, rows] = listed[0]
            found[1, rows] = np.where(near, listed[0] * np.exp(-reach), np.minimum(listed[1], listed[0]))
            found[2, rows] = np.where(near, listed[0] * np.exp(reach), np.maximum(listed[2], listed[0]))
            found[3, rows] = np.where(near, np.minimum(found[3, rows], int(Basis.MEASURED)), found[3, rows])
            found[4, rows] = np.where(near, 0.0, found[4, rows])
        return Prediction.of(found)

    def _parts(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Iterator[tuple[IntArray, LinkRatios]]:
        across = crosses(calls, cluster)
        links = {False: cluster.node.scale_up.name, True: cluster.node.nic.name}
        for several, link in links.items():
            for op in CollectiveOp:
                ratios = self._ratios(link, several, op)
                rows = np.flatnonzero(
                    (calls.op == int(op)) & (across == several) & (calls.size_bytes > 0) & (calls.group_size > 1)
                )
                if ratios is not None and len(rows):
                    yield rows, ratios

    def _ratios(self, link: str, across: bool, op: CollectiveOp) -> LinkRatios | None:
        """Of the operation, or of one that sends the same chunks."""
        if op is CollectiveOp.BROADCAST:
            op = CollectiveOp.ALL_GATHER
        for one in (op, *(RINGS if op in RINGS else ())):
            if (link, across, one) in self.known:
                return self.known[link, across, one]
        return None


def places_of(size_bytes: FloatArray, ranks: IntArray) -> FloatArray:
    """(C, 2) log2 of message size and ranks."""
    return np.column_stack([np.log2(np.maximum(size_bytes, 1.0)), np.log2(np.maximum(ranks, 1).astype(float))])


def crosses(calls: CollectiveCallBatch, cluster: ClusterSpec) -> BoolArray:
    """(K,) whether the ranks of each call are in several scale-up domains."""
    return np.asarray(local_ranks(calls, cluster) < np.maximum(calls.group_size, 1))
