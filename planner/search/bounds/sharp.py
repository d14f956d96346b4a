"""How short the steps of pipelines across groups can be, what memory makes stages recompute included.

Say a plan of a family of p stages and m micro-batches takes K seconds before what ``per_step_overhead_s`` adds. With
w(k, i, l) what stage i works on one micro-batch with l layers on configuration k (``least_work``, and sending to the
next stages), u(k, l) what it does once per step, and P seconds of pipeline per second of work
(``passes_per_work``):

* the slowest stage works m times, so every stage has m w + u <= K;
* P times the sum of all w, and the largest u there is, are K at most;
* the layers sum up to L, and no more stages run a configuration than there are devices for.

For any y >= 0, what a layer may take, and any price h >= 0 of a place on a configuration, the sum of all w is at
least y L - S(y, h) with

    S(y, h) = sum over i of max over k, l with m w + u <= K of (y l - w(k, i, l) - h(k)) + sum over k of h(k) slots(k)

since the layers sum up to L and no more than slots(k) stages pay for k. K is at least P times that and the largest
u. Any h bounds; for two configurations those that are found are the best there are.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.stage_plans.prices import StagePrices
from planner.search.best import Stopped
from planner.search.families import Family, by_stages, known_of_step_s, least_nodes, passes, step_s
from planner.search.freedom import Freedom
from planner.search.least_work import least_work
from planner.search.places import most_worth
from planner.search.stage_work import commoner_layers, stage_work_s

_HALVINGS = 5  # of the range a bound lies in
_SECTIONS = 8  # of the range of what a layer may take
_GOLDEN = (5**0.5 - 1) / 2
_ONCE_STEPS = 12  # halvings of the range of what happens once
_NEVER = 1e9  # seconds of a stage that cannot run a configuration
_CHUNK_CELLS = 1 << 21  # layers on configurations looked at together; bounds memory


def sharp_least_s(
    families: list[Family],
    prices: StagePrices,
    freedom: Freedom,
    *,
    below_s: float,
    check_time: Callable[[], None] = lambda: None,
) -> FloatArray:
    """(F,) step times that no layout of families goes below; infinite where that is above ``below_s``.

    Args:
        families: Families of any number of configurations.
        prices: Their prices.
        freedom: What stages may decide; with offloading memory bounds nothing, and neither does this.
        below_s: Step time to beat, finite.
        check_time: Called between pieces of work; once it raises ``Stopped``, the other families are bounded by 0.
    """
    least_s = np.zeros(len(families))
    if freedom.offload:
        return least_s
    with suppress(Stopped):
        for stages, members in by_stages(families):
            size = max(_CHUNK_CELLS // (stages * prices.context.model.num_layers * 2), 1)
            for start in range(0, len(members), size):
                some = members[start : start + size]
                least_s[some] = _least_s([families[at] for at in some], prices, freedom, below_s, check_time)
    return least_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packing:
    """N families of p stages, on up to C configurations each.

    Attributes:
        layers: To be held, L.
        work_s: (N, C, p, l + 1) seconds of one micro-batch; infinite where layers do not fit, and where
            there is no configuration.
        once_s: (N, C, l + 1) seconds once per step.
        slots: (N, C) stages there are devices for.
        microbatches: (N,) of a step, m.
        passes: (N,) seconds of pipeline per second of work.
        other_s: (N,) work on layers of the other kind.
    """

    layers: int
    work_s: FloatArray
    once_s: FloatArray
    slots: IntArray
    microbatches: IntArray
    passes: FloatArray
    other_s: FloatArray

    def take(self, rows: IntArray | BoolArray) -> "_Packing":
        named = {name: getattr(self, name)[rows] for name in self.__dataclass_fields__ if name != "layers"}
        return _Packing(layers=self.layers, **named)


def _least_s(
    families: list[Family], prices: StagePrices, freedom: Freedom, below_s: float, check_time: Callable[[], None]
) -> FloatArray:
    """``sharp_least_s`` of families of one number of stages."""
    nodes = np.asarray([least_nodes(family, prices) for family in families])
    below = np.asarray([known_of_step_s(below_s, nodes=each, prices=prices) for each in nodes])
    known_s = _known_s(_packing(families, prices, freedom, below, check_time), below, check_time)
    found = np.full(len(families), np.inf)
    possible = np.isfinite(known_s)
    found[possible] = step_s(known_s[possible], nodes=nodes[possible], prices=prices)
    return found


def _packing(
    families: list[Family], prices: StagePrices, freedom: Freedom, below: FloatArray, check_time: Callable[[], None]
) -> _Packing:
    """What stages of the families get done."""
    model, stages = prices.context.model, families[0].num_stages
    moe, layers = commoner_layers(model)
    others = model.num_layers - layers
    width = max(len(family.configs) for family in families)
    config, slots, schedule, chunks = np.zeros((4, len(families), width), dtype=np.int64)
    for at, family in enumerate(families):
        config[at], slots[at, : len(family.configs)] = family.configs[-1], family.slots
        config[at, : len(family.configs)] = family.configs
        schedule[at], chunks[at] = family.schedule, family.virtual_stages
    keys, row = np.unique(np.stack([config, schedule, chunks]).reshape(3, -1), axis=1, return_inverse=True)
    distinct, row = keys[0], row.reshape(config.shape)
    m = np.asarray([family.num_microbatches for family in families])
    longest_s = np.zeros(len(distinct))
    np.maximum.at(longest_s, row, (below / m)[:, None])
    layer_s = stage_work_s(prices, distinct, layers=1, moe=moe)
    fewest = 0 if others else 1
    most = int(min(layers - fewest * (stages - 1), (longest_s / layer_s).max()))
    done = least_work(
        distinct, prices, freedom, stages=stages, schedule=keys[1], virtual_stages=keys[2], moe=moe,
        most_layers=max(most, 1), longest_s=longest_s, check_time=check_time,
    )  # fmt: skip
    work_s = done.work_s[row] + _sending_s(config, prices, chunks)[:, :, None, None]
    work_s[:, :, :, :fewest] = np.inf
    work_s[slots == 0] = np.inf
    other_s = (
        stage_work_s(prices, distinct, layers=1, moe=not moe)[row].min(axis=1) * others if others else np.zeros(len(m))
    )
    return _Packing(
        layers=layers, work_s=work_s, once_s=done.once_s[row], slots=slots, microbatches=m, other_s=other_s,
        passes=passes(families),
    )  # fmt: skip


def _sending_s(config: IntArray, prices: StagePrices, chunks: IntArray) -> FloatArray:
    """(N, C) seconds of one micro-batch's way to and from the next stage, at least, with what launching it takes."""
    groups = len(prices.contexts)
    to_s = prices.transfer_s[config[:, :, None] * groups + prices.configs.group[config][:, None, :]].min(axis=2)
    sending_s: FloatArray = 2 * to_s + prices.context.stack.microbatch_overhead_s * chunks
    return sending_s


def _known_s(packing: _Packing, below: FloatArray, check_time: Callable[[], None]) -> FloatArray:
    """(N,) least K, by halving the range in which it lies; infinite above ``below``."""
    low, high, per_layer_s = np.zeros(len(below)), below.copy(), np.zeros(len(below))
    rows, tried = np.arange(len(below)), below
    for halving in range(_HALVINGS + 1):
        check_time()
        if not len(rows):
            break
        some = packing.take(rows)
        first, last = (per_layer_s[rows] / 4, per_layer_s[rows] * 4) if halving else _per_layer_s(some)
        found, per_layer_s[rows] = _bound_s(some, tried, first, last)
        beyond = found >= tried
        low[rows] = np.where(beyond, tried, np.maximum(low[rows], found))
        high[rows] = np.where(beyond, high[rows], tried)
        low[rows[beyond & (tried >= below[rows])]] = np.inf
        rows = rows[np.isfinite(low[rows])]
        tried = (low[rows] + high[rows]) / 2
    return low


def _per_layer_s(packing: _Packing) -> tuple[FloatArray, FloatArray]:
    """(N,) each, between which what a layer may take is tried: from a quarter of the least to four times the most."""
    layers = np.arange(packing.work_s.shape[3])
    each_s = np.where(np.isfinite(packing.work_s) & (layers > 0), packing.work_s, np.nan) / np.maximum(layers, 1)
    flat = each_s.reshape(len(each_s), -1)
    least, most = np.where(np.isnan(flat), np.inf, flat).min(axis=1), np.where(np.isnan(flat), 0.0, flat).max(axis=1)
    some = most > 0.0
    return np.where(some, least, 1.0) / 4, np.where(some, most, 1.0) * 4


def _bound_s(
    packing: _Packing, most_s: FloatArray, first: FloatArray, last: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(N,) seconds below which no plan of at most ``most_s`` lies, infinite if there is none; and (N,) where.

    The bound is concave in y = 1 / g, what a layer may take: its best is found by golden section on the logarithm
    of y, between ``first`` and ``last``. Any y bounds.
    """
    once_s = packing.once_s[:, :, None, :]
    in_time = packing.microbatches[:, None, None, None] * packing.work_s + once_s <= most_s[:, None, None, None]
    here: BoolArray = np.any(in_time.reshape(*in_time.shape[:2], -1), axis=2)
    least_s = _once_s(packing, np.where(here[:, :, None], packing.once_s, np.inf))
    work_s, layers = np.where(in_time, packing.work_s, _NEVER), np.arange(in_time.shape[3])

    def at(per_layer_s: FloatArray) -> FloatArray:
        worth_s = (per_layer_s[:, None, None, None] * layers - work_s).max(axis=3)
        together_s = most_worth(worth_s, packing.slots)
        bound_s: FloatArray = packing.passes * (packing.other_s + packing.layers * per_layer_s - together_s)
        return bound_s

    low, high = np.log(first), np.log(last)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    value_left, value_right = at(np.exp(left)), at(np.exp(right))
    for _ in range(_SECTIONS):
        falls = value_left >= value_right
        low, high = np.where(falls, low, left), np.where(falls, right, high)
        kept, value = np.where(falls, left, right), np.where(falls, value_left, value_right)
        tried = np.where(falls, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        found = at(np.exp(tried))
        left, right = np.where(falls, tried, kept), np.where(falls, kept, tried)
        value_left, value_right = np.where(falls, found, value), np.where(falls, value, found)
    best = np.maximum(value_left, value_right)
    room = most_worth(np.where(in_time, layers, -_NEVER).max(axis=3), packing.slots)
    best = np.where(room < packing.layers, np.inf, best)  # what a layer may take has no limit then
    return least_s + best, np.exp(np.where(value_left >= value_right, left, right))


def _once_s(packing: _Packing, once_s: FloatArray) -> FloatArray:
    """(N,) the least that happens once per step on the stage where that takes longest, whoever holds which layers."""
    low, high = np.zeros(len(once_s)), np.where(np.isfinite(once_s), once_s, 0.0).max(axis=(1, 2))
    layers, stages = np.arange(once_s.shape[2]), packing.work_s.shape[2]
    for _ in range(_ONCE_STEPS):
        middle = (low + high) / 2
        most = np.where(once_s <= middle[:, None, None], layers, 0).max(axis=2)
        order = np.argsort(-most, axis=1, kind="stable")
        left, held = np.full(len(most), stages), np.zeros(len(most))
        for index in order.T:
            at = np.arange(len(most)), index
            taken = np.minimum(left, packing.slots[at])
            held, left = held + taken * most[at], left - taken
        enough = held >= packing.layers
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return low
