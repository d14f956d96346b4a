"""What the stages of pipelines get done whose degrees may differ: all configurations for one size of micro-batch.

Times are never above those of the cost path: work adds up layer by layer, what memory makes a stage recompute is the
least that ``capacity`` allows, crossings are to the nearest neighbour there is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import FloatArray, IntArray, Schedule
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.layers import layer_kinds
from planner.search.capacity import again_s, rooms
from planner.search.families import Family, known_of_step_s, step_s
from planner.search.freedom import Freedom
from planner.search.once import once_s
from planner.search.partition.completion import Units, units
from planner.search.stage_work import stage_rows, stage_work_s

_AT_ONCE = 256  # configurations whose room is looked for at once: some tenths of a second
_ANY_S = 1e9  # longer than any step
MOST_CELLS = 512  # numbers of devices, of all groups together, that bounds tell apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Runs of consecutive layers by how many are dense and how many mixtures of experts.

    Attributes:
        dense, moe: (Q,) distinct runs.
        at: (L + 1, N + 1) which of these a number of layers from a first one on is; -1 beyond the last.
    """

    dense: IntArray
    moe: IntArray
    at: IntArray

    @property
    def num_layers(self) -> int:
        """Of the model, L."""
        return len(self.at) - 1

    def take(self, kept: IntArray) -> "Runs":
        """The selected runs alone, ascending."""
        place = np.full(len(self.dense) + 1, -1)
        place[kept] = np.arange(len(kept))
        return Runs(dense=self.dense[kept], moe=self.moe[kept], at=place[self.at])


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What layers of one kind take; C configurations.

    Attributes:
        name: ``dense`` or ``moe``.
        layer_s: (C,) a layer's work on a micro-batch.
        part_s, whole_s: (C,) what recomputing a layer adds at least, and what recomputing it from its input does.
        room: (3, C, S) most layers that fit, stage by stage; see ``capacity.rooms``.
        once_s: (C, N + 1) seconds once per step of so many layers.
    """

    name: str
    layer_s: FloatArray
    part_s: FloatArray
    whole_s: FloatArray
    room: IntArray
    once_s: FloatArray

    def take(self, kept: IntArray) -> "Kind":
        """The selected configurations alone."""
        return Kind(
            name=self.name, layer_s=self.layer_s[kept], part_s=self.part_s[kept], whole_s=self.whole_s[kept],
            room=self.room[:, kept], once_s=self.once_s[kept],
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """C configurations for one size of micro-batch, sorted by the devices they take.

    Attributes:
        prices: Their prices.
        configs: (C,) rows of its configurations.
        num_microbatches: Micro-batches per step m.
        runs: What stages may hold.
        kinds: Of layers, those the model has.
        first_s, last_s: (C,) work of the embedding, and of the head.
        crossing_s: (C,) there and back.
        units: Of devices.
        sizes: (Z, G) units that stages may take.
        starts: (Z,) first configuration of each size.
    """

    prices: StagePrices
    configs: IntArray
    num_microbatches: int
    runs: Runs
    kinds: tuple[Kind, ...]
    first_s: FloatArray
    last_s: FloatArray
    crossing_s: FloatArray
    units: Units
    sizes: IntArray
    starts: IntArray

    @property
    def num_stages(self) -> int:
        """Stages that room was looked for on, S; the last of them is the last of any pipeline."""
        return int(self.kinds[0].room.shape[2])

    def work_s(self, stage: int | None, *, first: bool, last: bool) -> FloatArray:
        """(C, Q) seconds of a stage with each run on one micro-batch; infinite where there is no room.

        Args:
            stage: Which of ``num_stages``; None for the one with most room.
            first: Whether it holds the embedding.
            last: Whether it holds the head.
        """
        found = np.zeros((len(self.configs), len(self.runs.dense)))
        for kind in self.kinds:
            layers = self.layers(kind.name)
            none, part, every = kind.room.max(axis=2) if stage is None else kind.room[:, :, stage]
            again, whole = (np.maximum(layers - room[:, None], 0) for room in (none, part))
            found += layers * kind.layer_s[:, None]
            found += whole * kind.whole_s[:, None] + (again - whole) * kind.part_s[:, None]
            found[layers > every[:, None]] = np.inf
        ends_s = self.first_s * first + self.last_s * last
        overhead_s = self.prices.context.stack.microbatch_overhead_s
        return found + (self.crossing_s + ends_s + overhead_s)[:, None]

    def once_s(self) -> FloatArray:
        """(C, Q) seconds once per step of a stage with each run, at least."""
        each = [kind.once_s[:, np.minimum(self.layers(kind.name), kind.once_s.shape[1] - 1)] for kind in self.kinds]
        found: FloatArray = np.max(each, axis=0)
        return found

    def layers(self, kind: str) -> IntArray:
        """(Q,) layers of a kind of each run."""
        return self.runs.dense if kind == "dense" else self.runs.moe

    def by_size(self, values: FloatArray) -> FloatArray:
        """(Z, Q) least of (C, Q) values over the configurations of each size."""
        found: FloatArray = np.minimum.reduceat(values, self.starts, axis=0)
        return found

    def of_size(self, values: FloatArray) -> FloatArray:
        """(C, ...) the values (Z, ...) of the size of each configuration."""
        return np.repeat(values, self.per_size, axis=0)

    @property
    def per_size(self) -> IntArray:
        """(Z,) configurations of each size."""
        return np.diff(np.concatenate([self.starts, [len(self.configs)]]))

    def hosts(self, used: IntArray) -> FloatArray:
        """(K,) hosts that (K, G) units of devices are at least."""
        per_node = [context.cluster.node.devices_per_node for context in self.prices.contexts]
        found: FloatArray = (used * self.units.unit / np.asarray(per_node)).sum(axis=1)
        return found

    def known_s(self, step_time_s: float, nodes: float) -> float:
        """Seconds of a step before ``per_step_overhead_s`` adds to it; very many of an infinite one."""
        if not np.isfinite(step_time_s):
            return _ANY_S
        return known_of_step_s(step_time_s, nodes=nodes, prices=self.prices)

    def step_s(self, known_s: float, nodes: float) -> float:
        """The inverse."""
        if not np.isfinite(known_s + nodes):
            return np.inf
        return float(step_s(np.asarray([known_s]), nodes=np.asarray([nodes]), prices=self.prices)[0])

    def take(self, rows: IntArray) -> "Pool":
        """The selected configurations alone, ascending; at least one."""
        size = np.searchsorted(self.starts, rows, side="right") - 1
        sizes, starts = np.unique(size, return_index=True)
        return replace(
            self, configs=self.configs[rows], kinds=tuple(kind.take(rows) for kind in self.kinds),
            first_s=self.first_s[rows], last_s=self.last_s[rows], crossing_s=self.crossing_s[rows],
            sizes=self.sizes[sizes], starts=starts,
        )  # fmt: skip


def pool(
    prices: StagePrices, configs: IntArray, runs: Runs, freedom: Freedom, *, devices: tuple[int, ...], longest_s: float,
    num_stages: int, num_microbatches: int, check_time: Callable[[], None],
) -> Pool | None:  # fmt: skip
    """Configurations as a pool; None where none is quick enough.

    Args:
        prices: Prices of configurations.
        configs: Rows of those for one size of micro-batch.
        runs: What stages may hold.
        freedom: What stages may recompute.
        devices: Devices of each group.
        longest_s: Longest that a stage may work on one micro-batch.
        num_stages: Stages that room is looked for on.
        num_microbatches: Micro-batches per step.
        check_time: Called between pieces of work.
    """
    model = prices.context.model
    works = {moe: stage_work_s(prices, configs, layers=1, moe=moe) for moe in layer_kinds(model)}
    quick = np.min(list(works.values()), axis=0) <= longest_s
    if not quick.any():
        return None
    taken = np.zeros((len(configs), len(devices)), dtype=np.int64)
    taken[np.arange(len(configs)), prices.configs.group[configs]] = prices.configs.num_devices[configs]
    own = units(taken[quick], np.asarray(devices, dtype=np.int64), most=MOST_CELLS)
    order = np.flatnonzero(quick)
    sizes, size = np.unique(own.taken(taken[order]), axis=0, return_inverse=True)
    size = size.reshape(-1)
    order = order[np.argsort(size, kind="stable")]
    configs, starts = configs[order], np.searchsorted(np.sort(size), np.arange(len(sizes)))
    alone = [
        Family(
            num_stages=num_stages, schedule=Schedule.ONE_F_ONE_B, virtual_stages=1,
            num_microbatches=num_microbatches, configs=configs[at : at + 1],
        )
        for at in range(len(configs))
    ]  # fmt: skip
    kinds = []
    for moe, each_s in works.items():
        layer_s, layers = each_s[order], runs.moe if moe else runs.dense
        most = np.minimum(longest_s / layer_s, layers.max(initial=0)).astype(np.int64)
        part_s, whole_s = again_s(prices, configs, freedom, moe=moe)
        once = _once_s(prices, configs, most, num_microbatches, longest_s, moe=moe)
        room = _rooms(alone, prices, freedom, most, check_time, moe=moe)
        kinds.append(
            Kind(
                name="moe" if moe else "dense", layer_s=layer_s, part_s=part_s, whole_s=whole_s, room=room, once_s=once
            )
        )
    groups = len(prices.contexts)
    towards_s = prices.transfer_s.reshape(-1, groups)[configs]
    return Pool(
        prices=prices, configs=configs, num_microbatches=num_microbatches, runs=runs,
        kinds=tuple(kinds), first_s=stage_work_s(prices, configs, first=True),
        last_s=stage_work_s(prices, configs, last=True), crossing_s=2 * towards_s.min(axis=1), units=own, sizes=sizes,
        starts=starts,
    )  # fmt: skip


def _rooms(
    families: list[Family], prices: StagePrices, freedom: Freedom, most: IntArray, check_time: Callable[[], None],
    *, moe: bool,
) -> IntArray:  # fmt: skip
    """``capacity.rooms``, some families at a time."""
    parts = []
    for start in range(0, len(families), _AT_ONCE):
        check_time()
        some = slice(start, start + _AT_ONCE)
        parts.append(rooms(families[some], prices, freedom, moe=moe, most=most[some]))
    return np.concatenate(parts, axis=1)


def _once_s(
    prices: StagePrices, configs: IntArray, most: IntArray, num_microbatches: int, longest_s: float, *, moe: bool,
) -> FloatArray:  # fmt: skip
    """(C, N + 1) seconds once per step of stages of no more than ``most`` (C,) layers; beyond that, of as many."""
    member = np.repeat(np.arange(len(configs)), most + 1)
    layers = np.arange(len(member)) - np.repeat(np.cumsum(most + 1) - most - 1, most + 1)
    config = configs[member]
    rows = stage_rows(prices, config, layers, moe=moe)
    longest, m = np.full(len(rows), longest_s), np.full(len(rows), num_microbatches)
    exposed_s, update_s = once_s(
        prices, config, rows, num_microbatches=m, num_stages=m, virtual_stages=np.ones(len(rows), dtype=np.int64),
        forward_s=longest, backward_s=longest,
    )  # fmt: skip
    found = np.zeros((len(configs), int(most.max(initial=0)) + 1))
    found[member, layers] = exposed_s + update_s
    columns: FloatArray = np.maximum.accumulate(found, axis=1)
    return columns
