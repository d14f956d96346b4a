"""How long stages work at least, by how many layers they hold: what memory makes them recompute included.

A stage of l layers of one kind, a of which recompute modules and b everything, has to fit. Of what
``costmodels.stage_activations`` says of memory follows, as in-flight micro-batches are one or more:

* Memory does not grow with a, nor with b, nor with the modules that are recomputed: a layer that recomputes keeps less
  of every micro-batch, and what it needs while it does, no more than it keeps less, is needed once.
* If (a, b) fits, so does recomputing as many layers in one way only, in the way that drops more: what the
  stage needs while recomputing is the larger of both, and is not added up. So at least
  n = min(fewest a with b = 0, fewest b with a = 0) layers recompute something.
* If (a, b) fits, so does (l - b, b): b is at least the fewest with which the others recomputing modules suffices.

So recomputation takes at least b_min times a layer's forward pass, and n - b_min times the cheapest module.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, Schedule
from costmodels.stage_evaluate import evaluate_stages
from costmodels.stage_plan import StagePlanBatch
from costmodels.stage_prices import StagePrices
from planner.search.capacity import again_s
from planner.search.freedom import Freedom
from planner.search.once import once_s
from planner.search.stage_work import stage_rows, stage_work_s

_CHUNK_CELLS = 1 << 16  # stages priced at once; bounds memory, and the time until a limit is noticed


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastWork:
    """What R configurations get done on each of S stages of a 1F1B pipeline.

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
        again[some] = _again_s(config[some], prices, freedom, stages=stages, moe=moe, most_layers=most_layers)
    row, layers = (axis.ravel() for axis in np.indices((shape[0], shape[2])))
    of_row = config[row]
    rows = stage_rows(prices, of_row, layers, moe=moe)
    ends_s = np.zeros((shape[0], stages, 1))
    ends_s[:, 0, 0] += stage_work_s(prices, config, first=True)
    ends_s[:, -1, 0] += stage_work_s(prices, config, last=True)
    shown_s, update_s = once_s(
        prices, of_row, rows, num_microbatches=prices.configs.plans.num_microbatches[of_row],
        forward_s=longest_s[row], backward_s=longest_s[row],
    )  # fmt: skip
    work_s = prices.work_s(rows).reshape(shape[0], 1, shape[2]) + ends_s + again
    return LeastWork(work_s=work_s, once_s=(shown_s + update_s).reshape(shape[0], shape[2]))


def _again_s(
    config: IntArray, prices: StagePrices, freedom: Freedom, *, stages: int, moe: bool, most_layers: int
) -> FloatArray:
    """(R, S, L + 1) seconds that stages spend on recomputation at least; infinite where no layers fit."""
    size = most_layers + 1
    layers = np.broadcast_to(np.tile(np.arange(size), len(config))[:, None], (len(config) * size, stages))
    of_row = np.repeat(config, size)
    kind, modules = "moe" if moe else "dense", freedom.most_modules
    never = np.full(layers.shape, size)  # of so many layers there are none

    def fits(selective: IntArray, full: IntArray) -> BoolArray:
        batch = StagePlanBatch.from_columns(
            np.full(len(of_row), stages), np.broadcast_to(of_row[:, None], layers.shape), layers,
            schedule=int(Schedule.ONE_F_ONE_B), num_microbatches=prices.configs.plans.num_microbatches[of_row],
            modules=modules, **{f"selective_{kind}": selective, f"full_{kind}": full},
        )  # fmt: skip
        none = np.zeros_like(layers)
        priced = evaluate_stages(batch, prices, kinds=(none, layers) if moe else (layers, none))
        verdict: BoolArray = priced.stage_memory_bytes <= priced.usable_bytes
        return verdict

    some = _fewest(layers, never, lambda count: fits(count, 0 * count)) if freedom.selective else never
    whole = _fewest(layers, never, lambda count: fits(0 * count, count)) if freedom.full else never
    in_full = whole
    if freedom.selective:
        in_full = np.where(some < never, 0, never)
        if freedom.full:
            in_full = np.minimum(in_full, _fewest(layers, never, lambda count: fits(layers - count, count)))
    as_they_are = fits(0 * layers, 0 * layers)
    fewest = np.where(as_they_are, 0, np.minimum(some, whole))
    in_full = np.where(as_they_are, 0, in_full)
    core_s, layer_s = (each[:, None] for each in again_s(prices, of_row, freedom, moe=moe))
    spent_s = in_full * layer_s + np.maximum(fewest - in_full, 0) * core_s
    spent_s = np.where((in_full < never) & (fewest < never), spent_s, np.inf)
    result: FloatArray = spent_s.reshape(len(config), size, stages).swapaxes(1, 2)
    return result


def _fewest(layers: IntArray, never: IntArray, fits: Callable[[IntArray], BoolArray]) -> IntArray:
    """Fewest layers, of those there are, that have to recompute for the others to fit; ``never`` if all are too few."""
    low, high = np.zeros_like(layers), layers + 1
    while (low < high).any():
        middle = np.minimum((low + high) // 2, layers)
        enough = fits(middle)
        open_ = low < high
        high, low = np.where(open_ & enough, middle, high), np.where(open_ & ~enough, middle + 1, low)
    return np.where(low > layers, never, low)
