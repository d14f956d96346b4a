"""Ways to run stages that offload: as little to the host as makes their layers fit.

Device memory falls with every eighth of the optimizer's states or of the weights that is on the host. With every
eighth of the states an update takes longer (``host_is_slower`` checks that), and with every eighth of the weights
passes take no less. So of all shares only those are of use that fit with the least of the states for some share of
the weights, and none of either where all fits without.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.stage_plans.estimate import StageEstimateBatch
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import CONTENT_COLUMNS, StagePrices
from planner.search.families import Family
from planner.search.fronts import nondominated

COUNTS = (
    "selective_dense", "selective_moe", "full_dense", "full_moe", "offloaded", "optimizer_offload",
    "parameter_offload", "modules",
)  # fmt: skip
Columns = dict[str, IntArray]  # layers (``dense``, ``moe``) and ``COUNTS``
_AT_ONCE = 1 << 20  # stages priced at once; bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWays:
    """Ways to run particular stages; K rows.

    Attributes:
        config: (K,) configurations.
        columns: (K,) layers and what is done with them, by name.
        stage: (K,) which stage.
        forward_s, backward_s: (K,) one micro-batch's passes.
    """

    config: IntArray
    columns: Columns
    stage: IntArray
    forward_s: FloatArray
    backward_s: FloatArray

    def take(self, rows: IntArray) -> "StageWays":
        """The selected rows."""
        return StageWays(
            config=self.config[rows],
            columns={name: column[rows] for name, column in self.columns.items()},
            stage=self.stage[rows],
            forward_s=self.forward_s[rows],
            backward_s=self.backward_s[rows],
        )


def ways_of(
    config: IntArray, columns: Columns, priced: StageEstimateBatch, way: IntArray, stage: IntArray
) -> StageWays:
    """The given rows of a priced table of ways, each on the given stage."""
    return StageWays(
        config=config[way],
        columns={name: column[way, stage] if column.ndim == 2 else column[way] for name, column in columns.items()},
        stage=stage,
        forward_s=priced.stages.forward_s[way, stage],
        backward_s=priced.stages.backward_s[way, stage],
    )


def price_ways(family: Family, prices: StagePrices, config: IntArray, columns: Columns) -> StageEstimateBatch:
    """Every way on every stage: R rows, each as if all S stages ran it.

    Args:
        family: Whose stages.
        prices: Prices of the configurations.
        config: (R,) configurations.
        columns: Layers and counts, (R,), or (R, S) where stages differ.
    """
    shape = (len(config), family.num_stages)
    each = {name: column if column.ndim == 2 else column[:, None] for name, column in columns.items()}
    dense, moe = (each[name] + np.zeros(shape, dtype=np.int64) for name in ("dense", "moe"))
    batch = StagePlanBatch.from_columns(
        np.full(len(config), family.num_stages),
        np.broadcast_to(config[:, None], shape),
        dense + moe,
        schedule=int(family.schedule),
        virtual_stages=family.virtual_stages,
        num_microbatches=family.num_microbatches,
        **{name: np.broadcast_to(each[name], shape) for name in COUNTS},
    )
    return evaluate_stages(batch, prices, kinds=(dense, moe))


def fits_device(priced: StageEstimateBatch) -> BoolArray:
    """(R, S) whether stages fit their devices."""
    verdict: BoolArray = priced.stage_memory_bytes <= priced.usable_bytes
    return verdict


def fits_host(priced: StageEstimateBatch) -> BoolArray:
    """(R, S) whether what stages offload fits their hosts."""
    verdict: BoolArray = priced.host_memory_bytes <= priced.host_usable_bytes
    return verdict


def host_is_slower(prices: StagePrices) -> bool:
    """Whether an update of every stage priced so far takes longer on the host, weights moved there for it included."""
    on_host, on_device, way = (
        prices.content[CONTENT_COLUMNS.index(name)] for name in ("host_step_s", "device_step_s", "updated_way_s")
    )
    return bool((on_host >= on_device + way).all())


def least_offloads(
    family: Family, prices: StagePrices, config: IntArray, columns: Columns, priced: StageEstimateBatch,
    *, shares: tuple[int, ...], most_s: float,
) -> tuple[StageWays, int]:  # fmt: skip
    """The ways on every stage that may be of use, with what they have to offload; and how many were priced for that.

    Args:
        family: Whose stages.
        prices: Prices of the configurations.
        config: (R,) configurations.
        columns: (R,) ways, nothing of the optimizer's states or the weights offloaded.
        priced: Their prices.
        shares: Eighths that may be on the host, ascending from 0.
        most_s: Longest that a stage may work on one micro-batch.
    """
    at_once = fits_device(priced) & fits_host(priced) & (priced.stages.work_s <= most_s)
    hopeful = ~at_once & (priced.stages.work_s <= most_s)
    rows = np.flatnonzero(hopeful.any(axis=1)) if hopeful.any() else np.arange(1)
    away = price_ways(family, prices, config[rows], _offloading(columns, rows, shares[-1], shares[-1]))
    hopeful[rows] &= fits_device(away)
    at_once, hopeful = _useful(config, columns, priced, away, rows, at_once, hopeful)
    found = [ways_of(config, columns, priced, *np.nonzero(at_once))]
    cells = away.stage_memory_bytes.size
    if hopeful.any():
        table = packed(config, hopeful)
        size = max(_AT_ONCE // (table.shape[1] * len(shares)), 1)
        for start in range(0, len(table), size):
            some = _Shared(family, prices, config, columns, table[start : start + size], shares)
            found.append(some.least(most_s))
            cells += some.priced
    return _joined(found), cells


def _offloading(columns: Columns, rows: IntArray, optimizer: IntArray | int, parameters: IntArray | int) -> Columns:
    """Some of the ways, with so much offloaded."""
    taken = {name: column[rows] for name, column in columns.items()}
    shares = {"optimizer_offload": optimizer, "parameter_offload": parameters}
    return taken | {name: np.asarray(share) + np.zeros_like(taken["dense"]) for name, share in shares.items()}


def _useful(
    config: IntArray, columns: Columns, priced: StageEstimateBatch, away: StageEstimateBatch, rows: IntArray,
    at_once: BoolArray, hopeful: BoolArray,
) -> tuple[BoolArray, BoolArray]:  # fmt: skip
    """(R, S) of the ways that fit at once, and of those that might, the ones that no other beats.

    Memory is a sum of what layers keep and of what is offloaded in part, but for the larger of activations and of the
    optimizer's temporaries; a wait for the host is the longer of work and traffic. A way that is no worse than another
    with nothing and with everything offloaded is therefore no worse with any share.
    """
    group = group_rows(config, columns["dense"], columns["moe"]).of_row
    place = np.zeros(len(config), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    kept = np.zeros_like(at_once)
    for stage in range(at_once.shape[1]):
        some = np.flatnonzero(at_once[:, stage] | hopeful[:, stage])
        now = at_once[some, stage]
        values = [
            np.where(now, before[some, stage], after[place[some], stage])
            for before, after in (
                (priced.stages.forward_s, away.stages.forward_s), (priced.stages.backward_s, away.stages.backward_s),
            )
        ]  # fmt: skip
        values += [priced.stages.forward_s[some, stage], priced.stages.backward_s[some, stage]]
        needed = [priced.stage_memory_bytes[some, stage], priced.host_memory_bytes[some, stage]]
        needed.append(away.stage_memory_bytes[place[some], stage])
        values += [np.where(now, 0.0, bytes_) for bytes_ in needed]
        kept[some[nondominated(group[some], np.column_stack(values))], stage] = True
    return at_once & kept, hopeful & kept


def packed(config: IntArray, cells: BoolArray) -> IntArray:
    """(H, S) the rows of a table of ways that are meant on each stage, -1 for none; rows of one configuration each."""
    blocks = []
    for one in np.unique(config[cells.any(axis=1)]):
        lists = [np.flatnonzero(cells[:, stage] & (config == one)) for stage in range(cells.shape[1])]
        block = np.full((max(map(len, lists)), cells.shape[1]), -1, dtype=np.int64)
        for stage, members in enumerate(lists):
            block[: len(members), stage] = members
        blocks.append(block)
    return np.concatenate(blocks)


def _joined(parts: list[StageWays]) -> StageWays:
    return StageWays(
        config=np.concatenate([part.config for part in parts]),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        stage=np.concatenate([part.stage for part in parts]),
        forward_s=np.concatenate([part.forward_s for part in parts]),
        backward_s=np.concatenate([part.backward_s for part in parts]),
    )


class _Shared:
    """A table of ways with every share of the weights on the host, (Q * H, S): how much of the states has to be.

    Attributes:
        priced: Stages priced so far.
    """

    def __init__(
        self, family: Family, prices: StagePrices, config: IntArray, columns: Columns, table: IntArray,
        shares: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.family, self.prices, self.shares = family, prices, np.asarray(shares)
        self.wanted = np.tile(table >= 0, (len(shares), 1))
        rows = np.tile(np.where(table >= 0, table, table.max(axis=1, keepdims=True)), (len(shares), 1))
        self.config = config[rows]
        self.columns = _offloading(columns, rows, 0, np.repeat(self.shares, len(table))[:, None])
        self.priced = 0

    def least(self, most_s: float) -> StageWays:
        """Of every way, the least share of the states for every share of the weights; one way with none of the states.

        Args:
            most_s: Longest that a stage may work on one micro-batch.
        """
        low, high = np.zeros_like(self.config), np.full_like(self.config, len(self.shares) - 1)
        possible = self.wanted & fits_device(self._price(high))
        while (low < high).any():
            middle = (low + high) // 2
            fits = fits_device(self._price(middle)) | (low == high)
            low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
        priced = self._price(low)
        chosen = possible & fits_host(priced) & (priced.stages.work_s <= most_s)
        height = len(low) // len(self.shares)
        chosen[height:] &= (low[:-height] > 0) | ~possible[:-height]  # without states, fewer weights fit already
        return ways_of(self.config[:, 0], self._columns(low), priced, *np.nonzero(chosen))

    def _price(self, states: IntArray) -> StageEstimateBatch:
        self.priced += states.size
        return price_ways(self.family, self.prices, self.config[:, 0], self._columns(states))

    def _columns(self, states: IntArray) -> Columns:
        return self.columns | {"optimizer_offload": self.shares[states]}
