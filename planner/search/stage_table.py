"""The partition problem of a family, from the prices of the one cost path.

Every stage may take any number of consecutive layers, and recompute and offload any number of them; of the
ways that fit its memory the one with the shortest backward pass is its option. What happens once per step is
priced under the longest passes a stage of a better plan can have, so that the value of a choice is never above
its price.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.data_parallel import DataParallelTraffic, exposed_traffic_s
from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.stage_evaluate import evaluate_stages
from costmodels.stage_layers import layer_kinds
from costmodels.stage_plan import StagePlanBatch
from costmodels.stage_prices import CONTENT_COLUMNS, StagePrices
from costmodels.stages import moe_layers
from planner.search.families import Family, crossings_s, known_of_step_s, least_nodes, own_crossing_s
from planner.search.freedom import Freedom
from planner.search.partition import ANYWHERE, PartitionInstance, StageOptions
from profiles.model import ModelSpec

_COUNTS = ("selective_dense", "selective_moe", "full_dense", "full_moe", "offloaded", "optimizer_offload")
_MOST_CELLS = 100_000  # stages priced at once; above, layers are recomputed in full only once all others are in part


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionTable:
    """A partition problem and what its options mean.

    Attributes:
        family: Whose.
        instance: The problem; its values are seconds before what ``per_step_overhead_s`` adds.
        config: (K,) configuration of each option.
        counts: Name to (K,) layers recomputed or offloaded, as in ``StagePlanBatch``.
        priced: Stages priced to build it.
    """

    family: Family
    instance: PartitionInstance
    config: IntArray
    counts: dict[str, IntArray]
    priced: int

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
    known_s = np.inf
    if np.isfinite(below_s):
        known_s = known_of_step_s(below_s, nodes=least_nodes(family, prices), prices=prices)
    most_s = known_s / family.num_microbatches
    contents = _contents(family, prices, most_s, most_layers)
    if not len(contents.first):
        return None
    ways = _ways(contents, family, freedom)
    cells = len(ways["dense"]) * len(family.configs) * family.num_stages
    if cells > _MOST_CELLS:
        ways = _ways(contents, family, freedom, thorough=False)
    return _built(family, prices, contents, ways, most_s=most_s)


def _contents(family: Family, prices: StagePrices, most_s: float, most_layers: int | None) -> _Contents:
    """Runs of layers short enough to be worked through in time, and long enough to leave the others no more."""
    model, p = prices.context.model, family.num_stages
    kinds, one = layer_kinds(model), np.ones(len(family.configs), dtype=np.int64)
    no = one > 1
    least_s = np.inf
    for moe in kinds:
        rows = prices.rows(family.configs, dense=one * (not moe), moe=one * moe, has_embedding=no, has_head=no)
        per_layer_s = prices.content[: CONTENT_COLUMNS.index("weight_gradient_s") + 1, rows].sum(axis=0)
        least_s = min(least_s, float(per_layer_s.min()))
    most = min(model.num_layers - p + 1, most_layers or model.num_layers)
    if np.isfinite(most_s):
        most = min(most, int(most_s / least_s))
    fewest = max(family.virtual_stages, model.num_layers - (p - 1) * most, 1)
    counts = np.arange(fewest, most + 1)
    if len(kinds) == 1:
        zero = np.zeros_like(counts)
        first = np.full_like(counts, ANYWHERE)
        return _Contents(first=first, dense=zero if kinds[0] else counts, moe=counts if kinds[0] else zero)
    first, layers = (axis.ravel() for axis in np.meshgrid(np.arange(model.num_layers), counts, indexing="ij"))
    inside = first + layers <= model.num_layers
    return _by_kind(model, family, first[inside], layers[inside])


def _by_kind(model: ModelSpec, family: Family, first: IntArray, layers: IntArray) -> _Contents:
    """How many layers of a run are mixtures of experts; with several chunks, wherever these lie."""
    size = (len(first),)
    schedule, v = np.full(size, int(family.schedule)), np.full(size, family.virtual_stages)
    moe = moe_layers(model, layers[:, None], first[:, None], schedule, v)[:, 0]
    return _Contents(first=first, dense=layers - moe, moe=moe)


def _ways(contents: _Contents, family: Family, freedom: Freedom, *, thorough: bool = True) -> dict[str, IntArray]:
    """Ways to recompute and offload every distinct content: ``content`` and the columns of ``_COUNTS``, (W,)."""
    kinds = np.unique(np.column_stack([contents.dense, contents.moe]), axis=0)
    pieces: list[dict[str, IntArray]] = []
    for dense, moe in kinds.tolist():
        chosen_dense, chosen_moe = _recomputed(dense, freedom, thorough), _recomputed(moe, freedom, thorough)
        a, b = (axis.ravel() for axis in np.indices((len(chosen_dense), len(chosen_moe))))
        piece = {
            "dense": np.full(len(a), dense), "moe": np.full(len(a), moe),
            "selective_dense": chosen_dense[a, 0], "full_dense": chosen_dense[a, 1],
            "selective_moe": chosen_moe[b, 0], "full_moe": chosen_moe[b, 1],
        }  # fmt: skip
        pieces.append(piece)
    ways = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    size = len(ways["dense"])
    full = ways["full_dense"] + ways["full_moe"]
    offloadable = np.where(full > 0, full, ways["dense"] + ways["moe"])
    optimizer = (0, 4, 8) if freedom.offload else (0,)
    copies = [(share, some) for share in optimizer for some in ((0, 1) if freedom.offload else (0,))]
    repeated = {name: np.tile(column, len(copies)) for name, column in ways.items()}
    repeated["optimizer_offload"] = np.repeat([share for share, _ in copies], size)
    repeated["offloaded"] = np.repeat([some for _, some in copies], size) * np.tile(offloadable, len(copies))
    return repeated


def _recomputed(layers: int, freedom: Freedom, thorough: bool) -> IntArray:
    """(W, 2) how many of so many alike layers recompute their core, and how many everything."""
    selective = np.arange(layers + 1) if freedom.selective else np.zeros(1, dtype=np.int64)
    full = np.arange(layers + 1) if freedom.full else np.zeros(1, dtype=np.int64)
    pairs = np.stack(np.meshgrid(selective, full, indexing="ij"), axis=-1).reshape(-1, 2)
    total = pairs.sum(axis=1)
    kept = total <= layers
    if not thorough and freedom.selective:
        kept &= (pairs[:, 1] == 0) | (total == layers)
    chosen: IntArray = pairs[kept]
    return chosen


def _built(
    family: Family, prices: StagePrices, contents: _Contents, ways: dict[str, IntArray], *, most_s: float
) -> OptionTable | None:
    """Prices every way on every stage, keeps the best that fit, and places them."""
    configs, size = family.configs, len(ways["dense"])
    config = np.repeat(configs, size)
    columns = {name: np.tile(column, len(configs)) for name, column in ways.items()}
    shape = (len(config), family.num_stages)
    batch = StagePlanBatch.from_columns(
        np.full(len(config), family.num_stages),
        np.broadcast_to(config[:, None], shape),
        np.broadcast_to((columns["dense"] + columns["moe"])[:, None], shape),
        schedule=int(family.schedule),
        virtual_stages=family.virtual_stages,
        num_microbatches=family.num_microbatches,
        **{name: np.broadcast_to(columns[name][:, None], shape) for name in _COUNTS},
    )
    kinds = (columns["dense"][:, None] + np.zeros(shape, np.int64), columns["moe"][:, None] + np.zeros(shape, np.int64))
    priced = evaluate_stages(batch, prices, kinds=kinds)
    forward_s = priced.stages.forward_s
    backward_s = priced.stages.input_gradient_s + priced.stages.weight_gradient_s
    fits = (priced.stage_memory_bytes <= priced.usable_bytes) & (priced.host_memory_bytes <= priced.host_usable_bytes)
    fits &= forward_s + backward_s <= most_s
    variant = columns["optimizer_offload"] * 2 + (columns["offloaded"] > 0)
    group = np.unique(
        np.column_stack([config, columns["dense"], columns["moe"], variant]), axis=0, return_inverse=True
    )[1]
    way, stage = _shortest(group.reshape(-1), backward_s, fits)
    if len(np.unique(stage)) < family.num_stages:
        return None
    return _placed(family, prices, contents, config, columns, way, stage, forward_s, backward_s, shape[0] * shape[1])


def _shortest(group: IntArray, backward_s: FloatArray, fits: BoolArray) -> tuple[IntArray, IntArray]:
    """Of each group of rows, on every stage, the row with the shortest backward pass that fits."""
    ways, stages = [], []
    for stage in range(backward_s.shape[1]):
        rows = np.flatnonzero(fits[:, stage])
        rows = rows[np.lexsort((backward_s[rows, stage], group[rows]))]
        first = np.concatenate([[True], group[rows][1:] != group[rows][:-1]]) if len(rows) else rows > 0
        ways.append(rows[first])
        stages.append(np.full(int(first.sum()), stage))
    return np.concatenate(ways), np.concatenate(stages)


def _placed(
    family: Family, prices: StagePrices, contents: _Contents, config: IntArray, columns: dict[str, IntArray],
    way: IntArray, stage: IntArray, forward_s: FloatArray, backward_s: FloatArray, priced: int,
) -> OptionTable | None:  # fmt: skip
    """The options where their layers can lie, with what they spend once per step."""
    dense, moe = columns["dense"][way], columns["moe"][way]
    size = prices.context.model.num_layers + 1
    code, known = dense * size + moe, contents.dense * size + contents.moe
    order = np.argsort(known, kind="stable")
    low = np.searchsorted(known[order], code, side="left")
    times = np.searchsorted(known[order], code, side="right") - low
    option = np.repeat(np.arange(len(way)), times)
    offset = np.arange(len(option)) - np.repeat(np.cumsum(times) - times, times)
    first = contents.first[order[np.repeat(low, times) + offset]]
    way, stage = way[option], stage[option]
    layers = columns["dense"][way] + columns["moe"][way]
    if not bool((first == ANYWHERE).any()):
        reachable = _reachable(first, layers, stage, family, prices.context.model.num_layers)
        way, stage, first, layers = way[reachable], stage[reachable], first[reachable], layers[reachable]
        if len(np.unique(stage)) < family.num_stages:
            return None
    forward_s, backward_s = forward_s[way, stage], backward_s[way, stage]
    chosen = {name: column[way] for name, column in columns.items()}
    once_s = _once_s(
        family, prices, config[way], chosen, stage, longest_s=(float(forward_s.max()), float(backward_s.max()))
    )
    kind = np.searchsorted(family.configs, config[way])
    mixed = len(family.configs) > 1
    own_s = own_crossing_s(prices, config[way]) if mixed and family.num_stages > 1 else 0.0
    slots = np.asarray(family.slots, dtype=np.int64)
    options = StageOptions.from_columns(
        stage=stage, layers=layers, first_layer=first, forward_s=np.maximum(forward_s - own_s, 0.0),
        backward_s=np.maximum(backward_s - own_s, 0.0), once_s=once_s, kind=kind,
        devices=(kind[:, None] == np.arange(len(slots))).astype(np.int64),
    )  # fmt: skip
    instance = PartitionInstance(
        num_layers=prices.context.model.num_layers,
        num_stages=family.num_stages,
        num_microbatches=family.num_microbatches,
        options=options,
        schedule=family.schedule,
        virtual_stages=family.virtual_stages,
        available_devices=family.slots,
        hand_over_s=crossings_s(prices, family.configs) if mixed else None,
    )
    counts = {name: chosen[name] for name in _COUNTS}
    return OptionTable(family=family, instance=instance, config=config[way], counts=counts, priced=priced)


def _reachable(first: IntArray, layers: IntArray, stage: IntArray, family: Family, total: int) -> BoolArray:
    """Whether the stages before an option can take the layers before it, and those after it the rest."""
    fewest, most, p = layers.min(), layers.max(), family.num_stages
    behind, after = total - first - layers, p - 1 - stage
    verdict: BoolArray = (first >= stage * fewest) & (first <= stage * most)
    verdict &= (behind >= after * fewest) & (behind <= after * most)
    return verdict


def _once_s(
    family: Family, prices: StagePrices, config: IntArray, columns: dict[str, IntArray], stage: IntArray,
    *, longest_s: tuple[float, float],
) -> FloatArray:  # fmt: skip
    """(K,) seconds once per step of each option: traffic under the longest passes there are, optimizer, offloading."""
    rows = prices.rows(
        config, dense=columns["dense"], moe=columns["moe"], has_embedding=stage == 0,
        has_head=stage == family.num_stages - 1,
    )  # fmt: skip
    content = {name: prices.content[index, rows] for index, name in enumerate(CONTENT_COLUMNS)}
    unit = {name: column[config] for name, column in prices.unit.items()}

    def column(values: FloatArray) -> Any:
        return values[:, None]

    traffic = DataParallelTraffic(
        gradients_s=column(content["gradients_s"]),
        parameters_s=column(content["parameters_s"]),
        reduces_per_microbatch=column(unit["reduces_per_microbatch"]),
        gathers_per_microbatch=column(unit["gathers_per_microbatch"]),
        hidden_gathers=column(unit["hidden_gathers"]),
        hidden_reductions=column(unit["hidden_reductions"]),
    )
    exposed, _ = exposed_traffic_s(
        traffic,
        num_microbatches=np.full(len(config), family.num_microbatches),
        forward_s=np.full(len(config), longest_s[0]),
        backward_s=np.full(len(config), longest_s[1]),
    )
    share = columns["optimizer_offload"] / 8
    step: FloatArray = exposed + content["device_step_s"] * (1.0 - share) + content["host_step_s"] * share
    return step
