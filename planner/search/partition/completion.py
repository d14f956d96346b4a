"""How short the stages before a given one can be at best, on the devices that are left."""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray, Schedule
from planner.search.partition.problem import PartitionInstance, StageOptions

_CELLS = 4096  # numbers of devices told apart; above, they are counted in larger units


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Devices of G groups counted in units: those a stage takes rounded down, those there are rounded up.

    Attributes:
        unit: (G,) devices of one unit.
        available: (G,) units there are.
    """

    unit: IntArray
    available: IntArray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array over all numbers of units."""
        return tuple(int(most) + 1 for most in self.available)

    def taken(self, devices: IntArray) -> IntArray:
        """(..., G) units that (..., G) devices are at least."""
        return devices // self.unit

    def code(self, used: IntArray) -> IntArray:
        """(Q,) where (Q, G) used devices leave the rest, in an array of ``shape`` laid flat."""
        code = np.zeros(len(used), dtype=np.int64)
        for column, most, size in zip(self.taken(used).T, self.available, self.shape, strict=True):
            code = code * size + np.maximum(most - column, 0)
        return code


def units(devices: IntArray, available: IntArray, *, most: int = _CELLS) -> Units:
    """Units in which (K, G) devices of options are whole numbers, unless these would be too many.

    Args:
        devices: (K, G) devices that options take.
        available: (G,) devices there are.
        most: Numbers of units, of all groups together, that are too many.
    """
    unit = np.maximum(np.gcd.reduce(np.concatenate([devices, 0 * available[None, :]]), axis=0), 1)
    while np.prod(-(-available // unit) + 1.0) > most:
        unit = np.where(available // unit == (available // unit).max(), 2 * unit, unit)
    return Units(unit=unit, available=-(-available // unit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Bounds on what stages before stage i add, by how many layers they have to take, and on how many devices.

    Attributes:
        instance: The problem.
        units: In which devices are counted; X numbers of them.
        way_s: (S + 1, L + 1, X) least time of one micro-batch through the first i stages with so many layers, on no
            more than so many devices; infinite where they cannot take that many.
        slowest_s: (3, S + 1, L + 1, X) least time of the slowest forward pass, backward pass and stage of them; 0
            where they cannot.
    """

    instance: PartitionInstance
    units: Units
    way_s: FloatArray
    slowest_s: FloatArray

    def bound_s(
        self,
        stage: int,
        start: IntArray,
        used: IntArray,
        *,
        way_s: FloatArray,
        done_s: FloatArray,
        slowest_s: FloatArray,
        once_s: FloatArray,
    ) -> FloatArray:
        """(Q,) step times, detours left out, that no completion of labels (see ``labels``) goes below."""
        instance, left = self.instance, self.units.code(used)
        before_s = self.way_s[stage, start, left]
        forward_s, backward_s, stage_s = self.slowest_s[:, stage, start, left]
        slowest_s = np.maximum(slowest_s, slowest_of(instance, forward_s, backward_s, stage_s))
        if instance.puts_off:  # only forwards come before for sure, and how long these are is not known
            before_s = np.where(np.isfinite(before_s), 0.0, np.inf)
        done_s = np.maximum(before_s / instance.virtual_stages + done_s, instance.num_microbatches * stage_s)
        spread_s = spread(instance, way_s=before_s + way_s, done_s=done_s, slowest_s=slowest_s)
        # Work hidden while the pipeline fills may vanish behind the stages to come.
        shown_s = np.maximum(once_s - before_s, 0.0) if instance.once_under_fill else once_s
        bound: FloatArray = spread_s + shown_s
        return bound


def slowest_of(
    instance: PartitionInstance, forward_s: FloatArray, backward_s: FloatArray, stage_s: FloatArray | None = None
) -> FloatArray:
    """(Q, 2) what of a stage's times counts towards the slowest, by schedule; see ``labels``."""
    none = np.zeros_like(forward_s)
    if instance.schedule == Schedule.GPIPE:
        return np.column_stack([forward_s, backward_s])
    whole_s = forward_s + backward_s if stage_s is None else stage_s
    return np.column_stack([whole_s if instance.puts_off else none, none])


def spread(instance: PartitionInstance, *, way_s: FloatArray, done_s: FloatArray, slowest_s: FloatArray) -> FloatArray:
    """(Q,) seconds of all micro-batches at least: GPipe's sum and slowest passes, what is done with the others."""
    m = instance.num_microbatches
    if instance.schedule == Schedule.GPIPE:
        whole_s: FloatArray = way_s + (m - 1) * slowest_s.sum(axis=1)
        return whole_s
    return np.maximum(done_s, m * slowest_s[:, 0])


def completion(instance: PartitionInstance, options: StageOptions) -> Completion:
    """Works the bounds out, stage after stage."""
    layers, stages = instance.num_layers, instance.num_stages
    own = units(options.devices, np.asarray(instance.available_devices, dtype=np.int64))
    shape = (layers + 1, *own.shape)
    way_s, slowest_s = np.full((stages + 1, *shape), np.inf), np.full((3, stages + 1, *shape), np.inf)
    way_s[0, 0] = slowest_s[:, 0, 0] = 0.0
    for stage in range(stages):
        mine = np.flatnonzero((options.stage == stage) & (options.layers <= layers))
        for count, taken, time_s in _moves(options, own, mine, layers, placed=instance.placed):
            before, after = shifted(shape, (count, *taken))
            time_s = time_s.reshape((3, -1, *(1 for _ in own.shape)))
            np.minimum(way_s[stage + 1][after], way_s[stage][before] + time_s[2], out=way_s[stage + 1][after])
            for least_s, each_s in zip(slowest_s, time_s, strict=True):
                longest_s = np.maximum(least_s[stage][before], each_s)
                np.minimum(least_s[stage + 1][after], longest_s, out=least_s[stage + 1][after])
    flat = (layers + 1, -1)
    finite_s = np.where(np.isfinite(slowest_s), slowest_s, 0.0)
    return Completion(
        instance=instance, units=own, way_s=way_s.reshape(stages + 1, *flat),
        slowest_s=finite_s.reshape(3, stages + 1, *flat),
    )  # fmt: skip


def shifted(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Places of an array before something takes so many along every axis, and where it leads from these."""
    before = tuple(slice(0, max(size - step, 0)) for size, step in zip(shape, steps, strict=True))
    return before, tuple(slice(step, None) for step in steps)


def _moves(
    options: StageOptions, own: Units, mine: IntArray, layers: int, *, placed: bool
) -> list[tuple[int, tuple[int, ...], FloatArray]]:
    """Layers, units of devices, and least (3, L + 1 - layers or 1) times by first layer, of alike options of a stage.

    Times are those of the forward pass, the backward pass and both.
    """
    if not len(mine):
        return []
    times = np.stack([options.forward_s, options.backward_s, options.forward_s + options.backward_s])[:, mine]
    keys = np.column_stack([options.layers[mine], own.taken(options.devices[mine])])
    kinds, of_row = np.unique(keys, axis=0, return_inverse=True)
    moves = []
    for at, (count, *taken) in enumerate(kinds.tolist()):
        rows = np.flatnonzero(of_row.reshape(-1) == at)
        if placed:
            least_s = np.full((3, layers + 1 - count), np.inf)
            inside = rows[options.first_layer[mine[rows]] + count <= layers]
            for each_s, some in zip(least_s, times[:, inside], strict=True):
                np.minimum.at(each_s, options.first_layer[mine[inside]], some)
        else:
            least_s = times[:, rows].min(axis=1, keepdims=True)
        moves.append((count, tuple(taken), least_s))
    return moves
