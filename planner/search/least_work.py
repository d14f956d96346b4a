"""How long stages work at least, by how many layers they hold: what memory makes them recompute included.

A stage of l layers of one kind, a of which recompute modules and b everything, has to fit. Of what
``costmodels.memory.stage_activations`` says of memory follows, as in-flight micro-batches are one or more:

* Memory does not grow with a, nor with b, nor with the modules that are recomputed: a layer that recomputes keeps less
  of every micro-batch, and what it needs while it does, no more than it keeps less, is needed once.
* If (a, b) fits, so does recomputing as many layers in one way only, in the way that drops more: what the
  stage needs while recomputing is the larger of both, and is not added up. So at least
  n = min(fewest a with b = 0, fewest b with a = 0) layers recompute something.
* If (a, b) fits, so does (l - b, b): b is at least the fewest with which the others recomputing modules suffices.

So recomputation takes at least b_min times a layer's forward pass, and n - b_min times the cheapest module.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from planner.search.capacity import again_s
from planner.search.freedom import Freedom
from planner.search.once import once_s
from planner.search.stage_work import stage_rows, stage_work_s

_CHUNK_CELLS = 1 << 16  # stages priced at once; bounds memory, and the time until a limit is noticed


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastWork:
    """What R configurations get done on each of S stages of a pipeline.

    Attributes:
        work_s: (R, S, L + 1) seconds of one micro-batch on a stage with so many layers, at least; infinite where
            they do not fit. Sending to other stages is not in it.
        once_s: (R, L + 1) seconds once per step, at least.
    """

    work_s: FloatArray
    once_s: FloatArray


def least_work(
    config: IntArray,
    prices: StagePrices,
    freedom: Freedom,
    *,
    stages: int,
    schedule: IntArray,
    virtual_stages: IntArray,
    moe: bool,
    most_layers: int,
    longest_s: FloatArray,
    check_time: Callable[[], None] = lambda: None,
) -> LeastWork:
    """How long stages work at least.

    Args:
        config: (R,) configurations.
        prices: Their prices.
        freedom: What may be recomputed; nothing is offloaded.
        stages: Stages of the pipelines, S.
        schedule: (R,) ``Schedule`` codes of the pipelines.
        virtual_stages: (R,) their chunks per stage.
        moe: Kind of the layers that are counted; of the other kind nothing is taken into account.
        most_layers: Of one stage, L.
        longest_s: (R,) longest that a stage works on one micro-batch, under which traffic hides.
        check_time: Called between pieces of work.
    """
    shape = (len(config), stages, most_layers + 1)
    again = np.full(shape, np.inf)
    size = max(_CHUNK_CELLS // (stages * (most_layers + 1)), 1)
    for start in range(0, len(config), size):
        check_time()
        some = slice(start, start + size)
        again[some] = _again_s(
            config[some], prices, freedom, stages=stages, schedule=schedule[some], virtual_stages=virtual_stages[some],
            moe=moe, most_layers=most_layers,
        )  # fmt: skip
    row, layers = (axis.ravel() for axis in np.indices((shape[0], shape[2])))
    of_row = config[row]
    rows = stage_rows(prices, of_row, layers, moe=moe)
    ends_s = np.zeros((shape[0], stages, 1))
    ends_s[:, 0, 0] += stage_work_s(prices, config, first=True)
    head = np.where(schedule == Schedule.ZERO_BUBBLE_V, 0, stages - 1)
    ends_s[np.arange(len(config)), head, 0] += stage_work_s(prices, config, last=True)
    shown_s, update_s = once_s(
        prices, of_row, rows, num_microbatches=prices.configs.plans.num_microbatches[of_row],
        num_stages=np.full(len(of_row), stages), virtual_stages=virtual_stages[row], forward_s=longest_s[row],
        backward_s=longest_s[row],
    )  # fmt: skip
    work_s = prices.work_s(rows).reshape(shape[0], 1, shape[2]) + ends_s + again
    return LeastWork(work_s=work_s, once_s=(shown_s + update_s).reshape(shape[0], shape[2]))


def _again_s(
    config: IntArray,
    prices: StagePrices,
    freedom: Freedom,
    *,
    stages: int,
    schedule: IntArray,
    virtual_stages: IntArray,
    moe: bool,
    most_layers: int,
) -> FloatArray:
    """(R, S, L + 1) seconds that stages spend on recomputation at least; infinite where no layers fit."""
    size = most_layers + 1
    layers = np.broadcast_to(np.tile(np.arange(size), len(config))[:, None], (len(config) * size, stages))
    held = _Held(
        config=np.repeat(config, size), schedule=np.repeat(schedule, size),
        virtual_stages=np.repeat(virtual_stages, size), layers=layers, moe=moe, modules=freedom.most_modules,
    )  # fmt: skip
    spent_s = np.zeros(layers.shape)
    as_they_are = held.fits(prices, 0 * layers, 0 * layers)
    rows = np.flatnonzero(~as_they_are.all(axis=1))
    if len(rows):
        spent_s[rows] = np.where(as_they_are[rows], 0.0, _spent_s(held.take(rows), prices, freedom))
    result: FloatArray = spent_s.reshape(len(config), size, stages).swapaxes(1, 2)
    return result


def _spent_s(held: "_Held", prices: StagePrices, freedom: Freedom) -> FloatArray:
    """(Q, S) seconds that stages that do not fit as they are spend on recomputation at least."""
    layers = held.layers
    never = np.full(layers.shape, int(layers.max()) + 1)  # of so many layers there are none

    def fewest(fits: Callable[[IntArray], BoolArray]) -> IntArray:
        return _fewest(layers, never, fits)

    some = fewest(lambda count: held.fits(prices, count, 0 * count)) if freedom.selective else never
    whole = fewest(lambda count: held.fits(prices, 0 * count, count)) if freedom.full else never
    in_full = whole
    if freedom.selective:
        in_full = np.where(some < never, 0, never)
        if freedom.full:
            in_full = np.minimum(in_full, fewest(lambda count: held.fits(prices, layers - count, count)))
    either = np.minimum(some, whole)
    core_s, layer_s = (each[:, None] for each in again_s(prices, held.config, freedom, moe=held.moe))
    spent_s = in_full * layer_s + np.maximum(either - in_full, 0) * core_s
    found: FloatArray = np.where((in_full < never) & (either < never), spent_s, np.inf)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """Q pipelines whose stages all run one configuration and hold layers of one kind.

    Attributes:
        config: (Q,) configurations.
        schedule, virtual_stages: (Q,) of the pipelines.
        layers: (Q, S) layers.
        moe: Of which kind.
        modules: What layers that do not recompute everything recompute.
    """

    config: IntArray
    schedule: IntArray
    virtual_stages: IntArray
    layers: IntArray
    moe: bool
    modules: int

    def take(self, rows: IntArray) -> "_Held":
        return replace(
            self, config=self.config[rows], schedule=self.schedule[rows], virtual_stages=self.virtual_stages[rows],
            layers=self.layers[rows],
        )  # fmt: skip

    def fits(self, prices: StagePrices, selective: IntArray, full: IntArray) -> BoolArray:
        """(Q, S) whether stages fit with (Q, S) layers that recompute modules and everything."""
        kind, none = "moe" if self.moe else "dense", np.zeros_like(self.layers)
        batch = StagePlanBatch.from_columns(
            np.full(len(self.config), self.layers.shape[1]), np.broadcast_to(self.config[:, None], none.shape),
            self.layers, schedule=self.schedule, virtual_stages=self.virtual_stages,
            num_microbatches=prices.configs.plans.num_microbatches[self.config], modules=self.modules,
            **{f"selective_{kind}": selective, f"full_{kind}": full},
        )  # fmt: skip
        priced = evaluate_stages(batch, prices, kinds=(none, self.layers) if self.moe else (self.layers, none))
        verdict: BoolArray = priced.stage_memory_bytes <= priced.usable_bytes
        return verdict


def _fewest(layers: IntArray, never: IntArray, fits: Callable[[IntArray], BoolArray]) -> IntArray:
    """Fewest layers, of those there are, that have to recompute for the others to fit; ``never`` if all are too few."""
    low, high = np.zeros_like(layers), layers + 1
    while (low < high).any():
        middle = np.minimum((low + high) // 2, layers)
        enough = fits(middle)
        open_ = low < high
        high, low = np.where(open_ & enough, middle, high), np.where(open_ & ~enough, middle + 1, low)
    return np.where(low > layers, never, low)
