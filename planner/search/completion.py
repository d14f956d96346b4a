"""How short the stages before a given one can be at best, whatever devices they take."""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray, Schedule
from planner.search.partition import PartitionInstance, StageOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Bounds on what stages before stage i add, by how many layers they have to take.

    Attributes:
        instance: The problem.
        way_s: (S + 1, L + 1) least time of one micro-batch through the first i stages with so many layers;
            infinite where they cannot take that many.
        slowest_s: (3, S + 1, L + 1) least time of the slowest forward pass, backward pass and stage of them; 0
            where they cannot.
    """

    instance: PartitionInstance
    way_s: FloatArray
    slowest_s: FloatArray

    def bound_s(
        self,
        stage: int,
        start: IntArray,
        *,
        way_s: FloatArray,
        done_s: FloatArray,
        slowest_s: FloatArray,
        once_s: FloatArray,
    ) -> FloatArray:
        """(Q,) step times, detours left out, that no completion of labels (see ``labels``) goes below."""
        instance = self.instance
        before_s = self.way_s[stage, start]
        forward_s, backward_s, stage_s = self.slowest_s[:, stage, start]
        slowest_s = np.maximum(slowest_s, slowest_of(instance, forward_s, backward_s, stage_s))
        done_s = np.maximum(before_s + done_s, instance.num_microbatches * stage_s)
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
    counts = instance.virtual_stages > 1 or instance.put_off_s > 0
    return np.column_stack([whole_s if counts else none, none])


def spread(instance: PartitionInstance, *, way_s: FloatArray, done_s: FloatArray, slowest_s: FloatArray) -> FloatArray:
    """(Q,) seconds of all micro-batches: GPipe's sum and slowest passes; of 1F1B's bubble each chunk has its share.

    Zero-bubble schedules fill it with weight gradients, down to the work of the slowest stage.
    """
    m, v = instance.num_microbatches, instance.virtual_stages
    if instance.schedule == Schedule.GPIPE:
        whole_s: FloatArray = way_s + (m - 1) * slowest_s.sum(axis=1)
        return whole_s
    if instance.put_off_s > 0:
        return np.maximum(m * slowest_s[:, 0], done_s - instance.put_off_s)
    return done_s if v == 1 else m * slowest_s[:, 0] + (done_s - m * slowest_s[:, 0]) / v


def completion(instance: PartitionInstance, options: StageOptions) -> Completion:
    """Works the bounds out, stage after stage."""
    layers, stages = instance.num_layers, instance.num_stages
    times = np.stack([options.forward_s, options.backward_s, options.forward_s + options.backward_s])
    way_s = np.full((stages + 1, layers + 1), np.inf)
    slowest_s = np.full((3, stages + 1, layers + 1), np.inf)
    way_s[0, 0] = slowest_s[:, 0, 0] = 0.0
    for stage in range(stages):
        mine = np.flatnonzero((options.stage == stage) & (options.layers <= layers))
        first, count = _ends(options, mine, layers, placed=instance.placed)
        end = first + count
        inside = end <= layers
        first, end = np.where(inside, first, 0), np.where(inside, end, 0)
        time_s = times[:, mine, None] if first.ndim > 1 else times[:, mine]
        np.minimum.at(way_s[stage + 1], end, np.where(inside, way_s[stage, first] + time_s[2], np.inf))
        for least_s, each_s in zip(slowest_s, time_s, strict=True):
            longest_s = np.where(inside, np.maximum(least_s[stage, first], each_s), np.inf)
            np.minimum.at(least_s[stage + 1], end, longest_s)
    finite_s = np.where(np.isfinite(slowest_s), slowest_s, 0.0)
    return Completion(instance=instance, way_s=way_s, slowest_s=finite_s)


def _ends(options: StageOptions, mine: IntArray, layers: int, *, placed: bool) -> tuple[IntArray, IntArray]:
    """First layer and number of layers of every way to place the options."""
    if placed:
        return options.first_layer[mine], options.layers[mine]
    return np.broadcast_to(np.arange(layers + 1), (len(mine), layers + 1)), options.layers[mine][:, None]
