"""Scores the rows of a table of expert layers that exchange tokens between ranks (DeepEP)."""

import re

import numpy as np
from numpy.typing import NDArray

from costmodels.arrays import alike
from costmodels.kernels.calls import FloatArray
from costmodels.links.expert_exchange import KINDS, USUAL_MULTIPROCESSORS, Exchanges, price_exchanges
from costmodels.tables.read import Table, positive
from planner.score.collective_links import place
from planner.score.results import GroupScore, Unpriced, basis_shares
from planner.validate.metrics import error_summary
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.fits import CollectiveFits
from profiles.units import MICROSECOND

LONG_S = 1e-4  # shorter exchanges are mostly their launch

_COLUMNS = {
    "tokens": "num_tokens", "hidden": "hidden", "topk": "topk", "experts": "num_experts", "ranks": "ep",
}  # fmt: skip


def score_exchanges(table: Table, fits: CollectiveFits, catalog: Catalog) -> tuple[list[GroupScore], list[Unpriced]]:
    """Errors and unpriced rows, by GPU, operation, ranks and nodes."""
    groups: list[GroupScore] = []
    unpriced: list[Unpriced] = []
    gpu, op = table.words["gpu"], table.words["op"]
    ranks, nodes = table.numbers["ep"], table.numbers.get("num_nodes", np.ones(len(table)))
    exchange = op.map(lambda name: name in KINDS)
    sound = positive(table.numbers["time_us"]) & positive(ranks) & positive(nodes)
    for code in np.unique(gpu.codes[exchange & ~sound]):
        count = int(np.sum((gpu.codes == code) & exchange & ~sound))
        unpriced.append(
            Unpriced(
                gpu=gpu.values[code],
                op="exchange",
                dtype="",
                rows=count,
                reason="times and ranks must be positive numbers",
            )
        )
    chosen = np.flatnonzero(exchange & sound)
    keys = np.stack([gpu.codes[chosen], op.codes[chosen], ranks[chosen], nodes[chosen]])
    for key, places in alike(keys) if len(chosen) else ():
        rows = chosen[places]
        device, kind = gpu.values[int(key[0])], op.values[int(key[1])]
        shape = f"{key[2]:g} ranks on {key[3]:g} nodes"
        try:
            groups.append(_score(table, rows, nodes, fits, catalog, gpu=device, kind=kind, shape=shape))
        except SpecError as error:
            unpriced.append(Unpriced(gpu=device, op=kind, dtype=shape, rows=len(rows), reason=error.problem))
    return groups, unpriced


def _score(
    table: Table, rows: NDArray[np.int64], on_nodes: FloatArray, fits: CollectiveFits, catalog: Catalog, *,
    gpu: str, kind: str, shape: str,
) -> GroupScore:  # fmt: skip
    columns = {name: table.numbers[column][rows] for name, column in _COLUMNS.items()} | {"nodes": on_nodes[rows]}
    sizes = np.stack(list(columns.values()))
    if not np.all(np.isfinite(sizes) & (sizes >= 1)) or np.any(columns["topk"] > columns["experts"]):
        raise SpecError("num_tokens", "sizes must be at least 1, and topk at most num_experts")
    ranks, nodes = int(columns["ranks"][0]), int(columns["nodes"][0])
    usual = catalog.node(catalog.device(gpu, field="gpu").default_node)
    node = place(catalog, gpu=gpu, link=usual.scale_up.name.split("-")[0], ranks=ranks, nodes=nodes).cluster.node
    used = table.words["impl"].map(_multiprocessors)[rows]
    columns["nodes"] = np.full(len(rows), float(-(-ranks // node.domain_devices)))
    priced = price_exchanges(Exchanges(kind=kind, multiprocessors=used, **columns), fits, node)
    measured_s = table.numbers["time_us"][rows] * MICROSECOND
    long = measured_s > LONG_S
    errors, long_errors = (
        error_summary(
            priced.time_s[part], measured_s[part], low=priced.low_s[part], high=priced.high_s[part]
        )
        for part in (np.full(len(rows), True), long)
    )  # fmt: skip
    if errors is None:
        raise ValueError("a group has at least one row")
    return GroupScore(
        gpu=gpu, device=gpu, op=kind, dtype=shape, errors=errors, long_errors=long_errors,
        basis=basis_shares(priced.basis),
    )  # fmt: skip


def _multiprocessors(impl: str) -> float:
    found = re.search(r"sms=(\d{1,4})", impl)
    return float(found[1]) if found else USUAL_MULTIPROCESSORS
