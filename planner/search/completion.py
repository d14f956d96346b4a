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
        slowest_s: (S + 1, L + 1) least time of the slowest of them; 0 where they cannot.
    """

    instance: PartitionInstance
    way_s: FloatArray
    slowest_s: FloatArray

    def bound_s(
        self, stage: int, start: IntArray, way_s: FloatArray, done_s: FloatArray, once_s: FloatArray, path_s: FloatArray
    ) -> FloatArray:
        """(Q,) step times that no completion of the labels of ``labels`` goes below."""
        before_s, slowest_s = self.way_s[stage, start], self.slowest_s[stage, start]
        m = self.instance.num_microbatches
        if self.instance.schedule == Schedule.GPIPE:
            spread_s = before_s + way_s + (m - 1) * np.maximum(done_s, slowest_s)
            # Work hidden while the pipeline fills may vanish behind the stages to come.
            shown_s = np.maximum(once_s - before_s, 0.0) if self.instance.once_under_fill else once_s
            bound_s: FloatArray = spread_s + shown_s + path_s
            return bound_s
        bound_s = np.maximum(before_s + done_s, m * slowest_s) + once_s + path_s
        return bound_s


def completion(instance: PartitionInstance, options: StageOptions) -> Completion:
    """Works the bounds out, stage after stage."""
    layers, stages = instance.num_layers, instance.num_stages
    way_s = np.full((stages + 1, layers + 1), np.inf)
    slowest_s = np.full((stages + 1, layers + 1), np.inf)
    way_s[0, 0] = slowest_s[0, 0] = 0.0
    stage_s = options.forward_s + options.backward_s
    for stage in range(stages):
        mine = np.flatnonzero((options.stage == stage) & (options.layers <= layers))
        first, count = _ends(options, mine, layers, placed=instance.placed)
        time_s = stage_s[mine][:, None] if first.ndim > 1 else stage_s[mine]
        end = first + count
        inside = end <= layers
        first, end = np.where(inside, first, 0), np.where(inside, end, 0)
        total_s = np.where(inside, way_s[stage, first] + time_s, np.inf)
        longest_s = np.where(inside, np.maximum(slowest_s[stage, first], time_s), np.inf)
        np.minimum.at(way_s[stage + 1], end, total_s)
        np.minimum.at(slowest_s[stage + 1], end, longest_s)
    return Completion(instance=instance, way_s=way_s, slowest_s=np.where(np.isfinite(slowest_s), slowest_s, 0.0))


def _ends(options: StageOptions, mine: IntArray, layers: int, *, placed: bool) -> tuple[IntArray, IntArray]:
    """First layer and number of layers of every way to place the options."""
    if placed:
        return options.first_layer[mine], options.layers[mine]
    return np.broadcast_to(np.arange(layers + 1), (len(mine), layers + 1)), options.layers[mine][:, None]
