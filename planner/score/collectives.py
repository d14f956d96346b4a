"""Scores tables of collectives: prices every row whose link has a name, and says why the others have no price."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.arrays import alike
from costmodels.kernels.calls import Basis, FloatArray, Prediction
from costmodels.links.collectives import LARGE_BYTES, CollectiveCallBatch, CollectiveOp
from costmodels.links.link_model import OP_OF_NAME, LinkCollectiveModel, beats_link
from costmodels.tables.read import Table, Words, positive
from planner.score.collective_links import Placement, place
from planner.score.results import GroupScore, Unpriced, basis_shares
from planner.validate.metrics import error_summary
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.fits import CollectiveFits
from profiles.units import MICROSECOND

MOST_RANKS = 1 << 20

_OTHER_LIBRARY = "an inference library's own kernel, not a collective library's"


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedRows:
    """K rows of a table with their prices.

    Attributes:
        predicted_s, low_s, high_s: (K,) price and 90 % interval; NaN where there is none.
        basis: (K,) ``Basis`` of the price.
        reason: (K,) index into ``reasons``; 0 where a row has a price.
        reasons: Why rows have none; the first is empty.
    """

    predicted_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    basis: NDArray[np.int64]
    reason: NDArray[np.int64]
    reasons: tuple[str, ...]


def price_collective_rows(table: Table, fits: CollectiveFits, catalog: Catalog) -> PricedRows:
    """Price the rows of a table of collectives.

    Args:
        table: Of the schema ``collectives``.
        fits: Parameters of the price list.
        catalog: Known devices, links and nodes.
    """
    size = len(table)
    found = np.full((3, size), np.nan)
    basis, reason = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    reasons = [""]
    sound = positive(table.numbers["size_bytes"]) & positive(table.numbers["time_us"])
    for every, words, ranks, nodes in _alike(table):
        rows = every[sound[every]]
        reason[every[~sound[every]]] = _number(reasons, "sizes and times must be positive numbers")
        try:
            priced = _price(table, rows, words, ranks, nodes, fits, catalog)
        except SpecError as error:
            text = ". ".join(part for part in (error.problem, error.hint) if part)
            reason[rows] = _number(reasons, text)
            continue
        found[:, rows] = priced.time_s, priced.low_s, priced.high_s
        basis[rows] = priced.basis
        impossible = rows[~np.isfinite(priced.time_s)]
        found[:, impossible] = np.nan
        reason[impossible] = _number(reasons, "faster than its link")
    return PricedRows(
        predicted_s=found[0], low_s=found[1], high_s=found[2], basis=basis, reason=reason, reasons=tuple(reasons)
    )


def score_collectives(table: Table, fits: CollectiveFits, catalog: Catalog) -> tuple[list[GroupScore], list[Unpriced]]:
    """Errors and unpriced rows of a table, by GPU, link, operation and ranks."""
    priced = price_collective_rows(table, fits, catalog)
    measured_s = table.numbers["time_us"] * MICROSECOND
    groups, unpriced = [], []
    for rows, words, ranks, nodes in _alike(table, by_library=False):
        gpu, link, op = words[:3]
        shape = f"{link}, {ranks:g} ranks" + (f" on {nodes:g} nodes" if nodes > 1 else "")
        for code in np.unique(priced.reason[rows]):
            mine = rows[priced.reason[rows] == code]
            if code:
                unpriced.append(Unpriced(gpu=gpu, op=op, dtype=shape, rows=len(mine), reason=priced.reasons[code]))
            else:
                groups.append(
                    _score(priced, measured_s, table.numbers["size_bytes"], mine, gpu=gpu, op=op, shape=shape)
                )
    return groups, unpriced


def _score(
    priced: PricedRows, measured_s: FloatArray, size_bytes: FloatArray, rows: NDArray[np.int64], *,
    gpu: str, op: str, shape: str,
) -> GroupScore:  # fmt: skip
    large = rows[size_bytes[rows] >= LARGE_BYTES]
    errors, large_errors = (
        error_summary(
            priced.predicted_s[part], measured_s[part], low=priced.low_s[part], high=priced.high_s[part]
        )
        for part in (rows, large)
    )  # fmt: skip
    if errors is None:
        raise ValueError("a group has at least one row")
    return GroupScore(
        gpu=gpu,
        device=gpu,
        op=op,
        dtype=shape,
        errors=errors,
        long_errors=large_errors,
        basis=basis_shares(priced.basis[rows]),
    )


def _alike(
    table: Table, *, by_library: bool = True
) -> Iterator[tuple[NDArray[np.int64], tuple[str, ...], float, float]]:
    """Rows that differ by size and time only; their GPU, link, operation and notes; ranks and nodes."""
    names = ("gpu", "link", "op", *(("notes",) if by_library else ()))
    unnoted = Words(values=("",), codes=np.zeros(len(table), dtype=np.int64))
    columns_of = [table.words.get(name, unnoted) for name in names]
    codes = [column.codes for column in columns_of]
    columns = np.stack([*codes, table.numbers["num_gpus"], table.numbers["num_nodes"]])
    for key, rows in alike(columns):
        words = tuple(column.values[int(code)] for column, code in zip(columns_of, key, strict=False))
        yield rows, words, float(key[-2]), float(key[-1])


def _price(
    table: Table, rows: NDArray[np.int64], words: tuple[str, ...], ranks: float, nodes: float, fits: CollectiveFits,
    catalog: Catalog,
) -> Prediction:  # fmt: skip
    """Prices of rows that are alike; NaN where a row is faster than its link.

    Raises:
        SpecError: If they have none.
    """
    gpu, link, name, notes = words
    if name not in OP_OF_NAME:
        raise SpecError("op", f"no collective {name!r}", "use one of " + ", ".join(sorted(OP_OF_NAME)))
    if not (2 <= ranks <= MOST_RANKS and ranks == int(ranks) and 1 <= nodes <= ranks and nodes == int(nodes)):
        raise SpecError("num_gpus", f"{ranks:g} ranks on {nodes:g} nodes make no group")
    if notes.startswith("custom"):
        raise SpecError("notes", _OTHER_LIBRARY)
    placement = place(catalog, gpu=gpu, link=link, ranks=int(ranks), nodes=int(nodes))
    size_bytes, time_s = table.numbers["size_bytes"][rows], table.numbers["time_us"][rows] * MICROSECOND
    # A switch adds no 8-bit integers, and XLA's kernels do not ask it to.
    model = LinkCollectiveModel(fits, in_switch_sums="int8" not in notes and not notes.startswith("xla"))
    count = len(rows)
    calls = CollectiveCallBatch(
        op=np.full(count, int(OP_OF_NAME[name])),
        size_bytes=size_bytes,
        group_size=np.full(count, int(ranks)),
        ranks_per_domain=np.full(count, placement.local),
    )
    priced = model.predict(calls, placement.cluster)
    time_of = np.where(_impossible(OP_OF_NAME[name], size_bytes, time_s, ranks, placement), np.nan, priced.time_s)
    low_s, high_s, basis = priced.low_s, priced.high_s, priced.basis
    if placement.guessed:
        low_s, high_s = _guessed(fits, size_bytes, priced)
        basis = np.full(count, int(Basis.ASSUMED))
    return Prediction(time_s=time_of, low_s=low_s, high_s=high_s, basis=basis, extrapolated=priced.extrapolated)


def _impossible(
    op: CollectiveOp, size_bytes: FloatArray, time_s: FloatArray, ranks: float, placement: Placement
) -> NDArray[np.bool_]:
    """Whether a group inside one domain was timed faster than its links are."""
    link = placement.cluster.node.scale_up
    return beats_link(op, link, ranks=ranks, size_bytes=size_bytes, time_s=time_s) & (placement.local >= ranks)


def _guessed(fits: CollectiveFits, size_bytes: FloatArray, priced: Prediction) -> tuple[FloatArray, FloatArray]:
    """The interval of a network that is not named."""
    low, high = priced.low_s.copy(), priced.high_s.copy()
    for spread in fits.spreads:
        if spread.known == "guess":
            rows = size_bytes >= spread.least_bytes
            low[rows], high[rows] = priced.time_s[rows] * spread.low_factor, priced.time_s[rows] * spread.high_factor
    return low, high


def _number(reasons: list[str], text: str) -> int:
    if text not in reasons:
        reasons.append(text)
    return reasons.index(text)
