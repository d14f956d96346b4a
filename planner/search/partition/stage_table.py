"""The partition problem of a family, from the prices of the one cost path.

Every stage may take any number of consecutive layers, and recompute and offload any number of them; of the
ways that fit its memory the one with the shortest backward pass is its option, so that no stage recomputes more
than it has to; with offloading there are several (``planner.search.offloading``). What happens once per step is
priced under the longest passes a stage of a better plan can have, so that the value of a choice is never above
its price.
"""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import FloatArray, IntArray, Recompute
from costmodels.stage_plans.estimate import StageEstimateBatch
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import CONTENT_COLUMNS, StagePrices
from costmodels.stages.layers import layer_kinds
from costmodels.stages.table import moe_layers
from planner.search.cells import pairs, reachable
from planner.search.families import Family, crossing_kinds, known_of_step_s, least_nodes, least_once_s, own_crossing_s
from planner.search.freedom import Freedom, Treatment
from planner.search.module_choice import set_cost, worthwhile
from planner.search.offloading import (
    COUNTS,
    Columns,
    StageWays,
    fits_device,
    fits_host,
    host_is_slower,
    least_offloads,
    price_ways,
    ways_of,
)
from planner.search.once import once_s
from planner.search.partition.problem import ANYWHERE, PartitionInstance, StageOptions
from planner.search.stage_work import stage_work_s
from profiles.model import ModelSpec

_MOST_WAYS, _MOST_CELLS = 500_000, 300_000  # ways looked at and stages priced; above, of a smaller choice
# Which numbers of recomputed layers are tried: all; those where none is recomputed in full before all are in part; of
# these a few, evenly spread.
_FINENESS = ("all", "chain", "coarse")
_COARSE = 8
_NARROWINGS = 4  # times that the longest a stage can work is worked out from what shows after the time before


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionTable:
    """A partition problem and what its options mean.

    Attributes:
        family: Whose.
        instance: The problem; its values are seconds before what ``per_step_overhead_s`` adds.
        config: (K,) configuration of each option.
        counts: Name to (K,) layers recomputed or offloaded, as in ``StagePlanBatch``.
        priced: Stages priced to build it.
        exhaustive: Whether every number of recomputed layers was tried; else its bound bounds nothing.
    """

    family: Family
    instance: PartitionInstance
    config: IntArray
    counts: dict[str, IntArray]
    priced: int = 0
    exhaustive: bool = True

    def plans(self, rows: IntArray) -> StagePlanBatch:
        """Choices, (N, S), as plans."""
        family = self.family
        return StagePlanBatch.from_columns(
            np.full(len(rows), family.num_stages),
            self.config[rows],
            self.instance.options.layers[rows],
            schedule=int(family.schedule),
            virtual_stages=family.virtual_stages,
            num_microbatches=family.num_microbatches,
            **{name: column[rows] for name, column in self.counts.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """Runs of layers a stage may hold: (C,) columns.

    Attributes:
        first: Layers before; ``ANYWHERE`` where that does not matter.
        dense, moe: Layers of each kind.
    """

    first: IntArray
    dense: IntArray
    moe: IntArray

    @property
    def layers(self) -> IntArray:
        return self.dense + self.moe


def option_table(
    family: Family, prices: StagePrices, freedom: Freedom, *, below_s: float, most_layers: int | None = None
) -> OptionTable | None:
    """The layouts of a family that may beat a known step time; None if there are none.

    Args:
        family: The family.
        prices: Prices of the configurations; rows are added as needed.
        freedom: What may be decided.
        below_s: Step time to beat, or infinity.
        most_layers: Most layers a stage can hold, if known.
    """
    most_s = _longest_s(family, prices, below_s, offload=freedom.offload) if np.isfinite(below_s) else np.inf
    contents = _contents(family, prices, most_s, most_layers)
    if not len(contents.first):
        return None
    if freedom.selective and freedom.told is None:
        freedom = worthwhile(family, prices, freedom)
    for fineness in _FINENESS:
        if _count(contents, freedom, fineness) > _MOST_WAYS:
            continue
        config, columns = _in_time(family, prices, _ways(contents, freedom, fineness), most_s)
        told = freedom.told is not None
        if told or len(config) * family.num_stages <= _MOST_CELLS or fineness == _FINENESS[-1]:
            exhaustive = told or fineness == _FINENESS[0]
            return _built(family, prices, contents, config, columns, freedom, most_s=most_s, exhaustive=exhaustive)
    return None


def _longest_s(family: Family, prices: StagePrices, below_s: float, *, offload: bool) -> float:
    """Seconds that a stage of a plan below a step time works on one micro-batch at most.

    The slowest works as often as there are micro-batches, and what then happens once shows the more, the less time
    it has to hide.
    """
    known_s = known_of_step_s(below_s, nodes=least_nodes(family, prices), prices=prices)
    sizes = family.num_stages, family.num_microbatches, family.virtual_stages
    p, m, v = (np.full(len(family.configs), size) for size in sizes)
    longest_s = known_s / family.num_microbatches
    for _ in range(_NARROWINGS):
        once = least_once_s(prices, family.configs, p, m, v, np.full(len(p), longest_s), offload=offload)
        longest_s = max(known_s - float(once.min()), 0.0) / family.num_microbatches
    return longest_s


def _in_time(
    family: Family, prices: StagePrices, ways: dict[str, IntArray], most_s: float
) -> tuple[IntArray, dict[str, IntArray]]:
    """Configurations and ways whose layers alone, with what they recompute, do not take longer than they may."""
    config, way = pairs(family.cells, len(family.configs), ways)
    unit = {name: column[family.configs] for name, column in prices.unit.items()}
    work_s = np.zeros(len(config))
    for kind in ("dense", "moe"):
        one_s = np.zeros(len(family.configs))
        if ways[kind].any():
            one_s = stage_work_s(prices, family.configs, layers=1, moe=kind == "moe")
        work_s += ways[kind][way] * one_s[config]
        sets, of_way = np.unique(ways["modules"], return_inverse=True)
        again_s = np.stack([set_cost(unit, int(some), kind, "s") for some in sets])
        work_s += ways[f"selective_{kind}"][way] * again_s[of_way[way], config]
        work_s += ways[f"full_{kind}"][way] * unit[f"{kind}_layer_s"][config]
    kept = np.flatnonzero(work_s <= most_s)
    return family.configs[config[kept]], {name: column[way[kept]] for name, column in ways.items()}


def _contents(family: Family, prices: StagePrices, most_s: float, most_layers: int | None) -> _Contents:
    """Runs of layers short enough to be worked through in time, and long enough to leave the others no more."""
    model, p = prices.context.model, family.num_stages
    kinds = layer_kinds(model)
    least_s = min(float(stage_work_s(prices, family.configs, layers=1, moe=moe).min()) for moe in kinds)
    most = min(model.num_layers - p + 1, most_layers or model.num_layers)
    if np.isfinite(most_s):
        most = min(most, int(most_s / least_s))
    fewest = max(family.chunks, model.num_layers - (p - 1) * most)
    counts = np.arange(fewest, most + 1)
    if len(kinds) == 1:
        zero = np.zeros_like(counts)
        first = np.full_like(counts, ANYWHERE)
        return _Contents(first=first, dense=zero if kinds[0] else counts, moe=counts if kinds[0] else zero)
    first, layers = (axis.ravel() for axis in np.meshgrid(np.arange(model.num_layers), counts, indexing="ij"))
    inside = first + layers <= model.num_layers
    return runs_by_kind(model, family, first[inside], layers[inside])


def runs_by_kind(model: ModelSpec, family: Family, first: IntArray, layers: IntArray) -> _Contents:
    """How many layers of a run are mixtures of experts; with several chunks, wherever these lie."""
    size = (len(first),)
    schedule, v = np.full(size, int(family.schedule)), np.full(size, family.virtual_stages)
    moe = moe_layers(model, layers[:, None], first[:, None], schedule, v)[:, 0]
    return _Contents(first=first, dense=layers - moe, moe=moe)


def _count(contents: _Contents, freedom: Freedom, fineness: str) -> float:
    """How many ways ``_ways`` would give; none of the coarsest are too many."""
    if fineness == _FINENESS[-1] or freedom.told is not None:
        return 0
    kinds = np.unique(np.column_stack([contents.dense, contents.moe]), axis=0).astype(np.float64)
    each = (kinds + 1) * (kinds + 2) / 2 if fineness == "all" else 2 * kinds + 1
    return float(each.prod(axis=1).sum()) * (2 if freedom.offload else 1) * len(freedom.modules)


def _ways(contents: _Contents, freedom: Freedom, fineness: str) -> dict[str, IntArray]:
    """Ways to recompute and offload every distinct content: its layers and the columns of ``COUNTS``, (W,).

    Of the optimizer's states and the weights nothing is offloaded yet.
    """
    kinds = np.unique(np.column_stack([contents.dense, contents.moe]), axis=0)
    if freedom.told is not None:
        return _told(kinds[:, 0], kinds[:, 1], freedom.told)
    pieces: list[dict[str, IntArray]] = []
    for dense, moe in kinds.tolist():
        chosen_dense, chosen_moe = _recomputed(dense, freedom, fineness), _recomputed(moe, freedom, fineness)
        a, b = (axis.ravel() for axis in np.indices((len(chosen_dense), len(chosen_moe))))
        piece = {
            "dense": np.full(len(a), dense), "moe": np.full(len(a), moe),
            "selective_dense": chosen_dense[a, 0], "full_dense": chosen_dense[a, 1],
            "selective_moe": chosen_moe[b, 0], "full_moe": chosen_moe[b, 1],
        }  # fmt: skip
        some = piece["selective_dense"] + piece["selective_moe"] > 0
        for at, modules in enumerate(freedom.modules):  # which they are only matters where some are recomputed
            chosen = np.flatnonzero(some) if at else np.arange(len(some))
            pieces.append({name: column[chosen] for name, column in piece.items()} | {"modules": 0 * chosen + modules})
    ways = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    size = len(ways["dense"])
    full = ways["full_dense"] + ways["full_moe"]
    offloadable = np.where(full > 0, full, ways["dense"] + ways["moe"])
    copies = (0, 1) if freedom.offload else (0,)
    repeated = {name: np.tile(column, len(copies)) for name, column in ways.items()}
    repeated["offloaded"] = np.repeat(copies, size) * np.tile(offloadable, len(copies))
    for share in ("optimizer_offload", "parameter_offload"):
        repeated[share] = np.zeros(size * len(copies), dtype=np.int64)
    return repeated


def _told(dense: IntArray, moe: IntArray, told: Treatment) -> dict[str, IntArray]:
    """The one way that (W,) contents have where all stages are told the same."""
    layers, nothing = dense + moe, np.zeros_like(dense)
    full = {Recompute.FULL: layers, Recompute.BLOCK: np.minimum(layers, told.block)}.get(told.recompute, nothing)
    full_dense = np.rint(full * dense / layers).astype(np.int64)  # ``block`` recomputes both kinds in proportion
    selective = told.recompute == Recompute.SELECTIVE
    offloadable = full if told.recompute in (Recompute.FULL, Recompute.BLOCK) else layers
    return {
        "dense": dense, "moe": moe, "selective_dense": dense * selective, "selective_moe": moe * selective,
        "full_dense": full_dense, "full_moe": full - full_dense,
        "optimizer_offload": nothing + told.optimizer_offload, "offloaded": offloadable * told.offload_activations,
        "parameter_offload": nothing + told.parameter_offload, "modules": nothing + told.modules,
    }  # fmt: skip


def _recomputed(layers: int, freedom: Freedom, fineness: str) -> IntArray:
    """(W, 2) how many of so many alike layers recompute their core, and how many everything."""
    counts = np.arange(layers + 1)
    if fineness == "coarse":
        counts = np.unique(np.linspace(0, layers, _COARSE + 1).astype(np.int64))
    none = np.zeros(1, dtype=np.int64)
    pairs = np.stack(
        np.meshgrid(counts if freedom.selective else none, counts if freedom.full else none, indexing="ij"), axis=-1
    ).reshape(-1, 2)
    total = pairs.sum(axis=1)
    kept = total <= layers
    if fineness != "all" and freedom.selective:
        kept &= (pairs[:, 1] == 0) | (total == layers)
    chosen: IntArray = pairs[kept]
    return chosen


def _built(
    family: Family, prices: StagePrices, contents: _Contents, config: IntArray, columns: dict[str, IntArray],
    freedom: Freedom, *, most_s: float, exhaustive: bool,
) -> OptionTable | None:  # fmt: skip
    """Prices every way on every stage, keeps the best that fit, and places them."""
    priced = price_ways(family, prices, config, columns)
    cells = priced.stage_memory_bytes.size
    if freedom.offload and freedom.told is None:
        ways, more = least_offloads(family, prices, config, columns, priced, shares=freedom.shares, most_s=most_s)
        cells, exhaustive = cells + more, exhaustive and host_is_slower(prices)
    else:
        ways = _shortest(family, config, columns, priced, most_s)
    if len(np.unique(ways.stage)) < family.num_stages:
        return None
    table = _placed(family, prices, contents, ways)
    return None if table is None else replace(table, priced=cells, exhaustive=exhaustive)


def _shortest(
    family: Family, config: IntArray, columns: Columns, priced: StageEstimateBatch, most_s: float
) -> StageWays:
    """Of every configuration and content, on every stage, the way with the shortest backward pass that fits."""
    fits = fits_device(priced) & fits_host(priced) & (priced.stages.work_s <= most_s)
    if family.cells is not None:
        fits &= family.cells.admits(np.searchsorted(family.configs, config), columns["dense"], columns["moe"])
    group, backward_s = group_rows(config, columns["dense"], columns["moe"]).of_row, priced.stages.backward_s
    ways, stages = [], []
    for stage in range(backward_s.shape[1]):
        rows = np.flatnonzero(fits[:, stage])
        rows = rows[np.lexsort((backward_s[rows, stage], group[rows]))]
        first = np.concatenate([[True], group[rows][1:] != group[rows][:-1]]) if len(rows) else rows > 0
        ways.append(rows[first])
        stages.append(np.full(int(first.sum()), stage))
    return ways_of(config, columns, priced, np.concatenate(ways), np.concatenate(stages))


def _placed(family: Family, prices: StagePrices, contents: _Contents, ways: StageWays) -> OptionTable | None:
    """The options where their layers can lie, with what they spend once per step."""
    dense, moe = ways.columns["dense"], ways.columns["moe"]
    size = prices.context.model.num_layers + 1
    code, known = dense * size + moe, contents.dense * size + contents.moe
    order = np.argsort(known, kind="stable")
    low = np.searchsorted(known[order], code, side="left")
    times = np.searchsorted(known[order], code, side="right") - low
    option = np.repeat(np.arange(len(dense)), times)
    offset = np.arange(len(option)) - np.repeat(np.cumsum(times) - times, times)
    first = contents.first[order[np.repeat(low, times) + offset]]
    ways = ways.take(option)
    if not bool((first == ANYWHERE).any()):
        layers = ways.columns["dense"] + ways.columns["moe"]
        possible = reachable(first, layers, ways.stage, family.num_stages, prices.context.model.num_layers)
        if family.cells is not None:
            member = np.searchsorted(family.configs, ways.config)
            possible &= family.cells.begins(member, ways.stage, first, layers)
        kept = np.flatnonzero(possible)
        ways, first = ways.take(kept), first[kept]
        if len(np.unique(ways.stage)) < family.num_stages:
            return None
    forward_s, backward_s, config, columns = ways.forward_s, ways.backward_s, ways.config, ways.columns
    rows = prices.rows(
        config, dense=columns["dense"], moe=columns["moe"], has_embedding=ways.stage == 0,
        has_head=ways.stage == family.head_stage,
    )  # fmt: skip
    longest_s = (float(forward_s.max()), float(backward_s.max()))
    shown_s, update_s = _once_s(family, prices, config, columns, rows, longest_s=longest_s)
    member = np.searchsorted(family.configs, config)
    takes, available = family.counted
    kind_of, hand_over_s = crossing_kinds(family, prices)
    weight_s = prices.content[CONTENT_COLUMNS.index("weight_gradient_s"), rows]
    if hand_over_s is not None and family.num_stages > 1:
        forward_s, backward_s = _without_crossings(family, prices, ways, hand_over_s.max(axis=1)[kind_of[member]])
    options = StageOptions.from_columns(
        stage=ways.stage, layers=columns["dense"] + columns["moe"], first_layer=first,
        forward_s=np.maximum(forward_s, 0.0), backward_s=np.maximum(backward_s, weight_s),
        once_s=shown_s, update_s=update_s, weight_s=weight_s, kind=kind_of[member], devices=takes[member],
    )  # fmt: skip
    instance = PartitionInstance(
        num_layers=prices.context.model.num_layers,
        num_stages=family.num_stages,
        num_microbatches=family.num_microbatches,
        options=options,
        schedule=family.schedule,
        virtual_stages=family.virtual_stages,
        available_devices=available,
        hand_over_s=hand_over_s,
    )
    counts = {name: columns[name] for name in COUNTS}
    return OptionTable(family=family, instance=instance, config=config, counts=counts)


def _without_crossings(
    family: Family, prices: StagePrices, ways: StageWays, longest_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(K,) forward and backward passes to which whatever a crossing takes may be added, up to the longest (K,).

    A crossing hides in what a pass waits for the host: with it, a pass takes the longer of its work and that wait.
    """
    own_s = own_crossing_s(prices, ways.config)
    forward_s, backward_s = ways.forward_s - own_s, ways.backward_s - own_s
    waiting = np.flatnonzero(ways.columns["offloaded"] + ways.columns["parameter_offload"])
    if len(waiting):
        some, nothing = ways.take(waiting), np.zeros_like(waiting)
        moved = {"offloaded": nothing, "parameter_offload": nothing}
        alone = price_ways(family, prices, some.config, some.columns | moved).stages
        for with_s, alone_s, found_s in (
            (some.forward_s, alone.forward_s, forward_s), (some.backward_s, alone.backward_s, backward_s),
        ):  # fmt: skip
            work_s = alone_s[np.arange(len(waiting)), some.stage] - own_s[waiting]
            found_s[waiting] = np.maximum(work_s, with_s - longest_s[waiting])
    return forward_s, backward_s


def _once_s(
    family: Family, prices: StagePrices, config: IntArray, columns: dict[str, IntArray], rows: IntArray,
    *, longest_s: tuple[float, float],
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """(K,) seconds once per step of each option: traffic under the longest passes there are, and the optimizer."""
    return once_s(
        prices,
        config,
        rows,
        num_microbatches=np.full(len(config), family.num_microbatches),
        num_stages=np.full(len(config), family.num_stages),
        virtual_stages=np.full(len(config), family.virtual_stages),
        forward_s=np.full(len(config), longest_s[0]),
        backward_s=np.full(len(config), longest_s[1]),
        optimizer_offload=columns["optimizer_offload"],
        parameter_offload=columns["parameter_offload"],
    )
