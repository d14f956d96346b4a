"""How short steps can be whose stages pay for layers and devices instead of sharing them out: no program over these.

Say a plan of p stages and m micro-batches takes K seconds before what ``per_step_overhead_s`` adds; its k-th last stage
works w on one micro-batch, W is the sum of these, u what a stage does once per step. Whatever its slowest stage is, the
f-th last one, that works T: of ``costmodels.pipeline.schedules`` follow (see ``devices`` and ``passes_per_work``)

* f < m: K is at least u and m T and the way to the stage, and at least u and (m - f + 1) T, the way to the stage, and
  twice the way behind it;
* f >= m: K is at least u and W and (m - 1) / 2 times T, and at least u and W and the way behind the m-th last stage;
* K is at least P W, P being ``passes_per_work``, and the u of the stage that holds most layers.

Of two chains any mean is a bound too, with a share of the one and the rest of the other. All of these are sums over
stages of what each stage does, with weights. What stages have in common is that their layers sum up to those of the
model, and their devices to no more than there are. For any prices y of all layers of a kind and z of all devices of a
group, none negative, a sum over stages is therefore at least the sum over stages of the least of

    weight times w, plus z times the share of devices, minus y times the share of layers

over all that one stage may hold, plus all y, minus all z. With the best prices that is the linear relaxation, in which
few stages are fractions of several.

Which stage is slowest and how slow is not known, but no stage works longer, and T is no less. For T in a range, stages
that are over it are left out, and the slowest one works at least its lower end; ranges are halved, worst bound first.
A plan that uses few hosts pays for fewer devices, and waits less for others: the least over numbers of hosts counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from costmodels.plan import FloatArray, IntArray, Schedule
from costmodels.stage_plans.prices import StagePrices
from planner.search.bounds.devices import ROUNDED
from planner.search.bounds.prices_of_shares import best_prices
from planner.search.families import known_of_step_s, passes_per_work, step_s
from planner.search.pools import Pool

_HOSTS = 64  # numbers of hosts told apart
_SPLITS = 24  # ranges of the slowest stage that are halved, of one number of stages
_NARROW = 0.002  # share of a range's upper end: narrower ones are not halved
_MOST = 40.0  # of all seconds there are: more than any price needs
_FIRST = 0.8  # of the longest that a stage may work: where the first range is cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What stages of a pool may hold, O offers, by their place from the end; S places.

    Attributes:
        prices: Of their configurations.
        num_microbatches: Micro-batches per step m.
        work_s: (S, O) least seconds of one micro-batch on the k-th last stage, k - 1 being the row.
        first_s: (S, O) the same where that is the first stage.
        once_s: (O,) least seconds once per step.
        layers: (O, kinds) share of all layers of each kind.
        devices: (O, G) share of all devices of each group.
        hosts: (G,) hosts of each group.
        shown_s: (S,) least seconds once per step of the stage that holds most layers, by number of stages from one.
    """

    prices: StagePrices
    num_microbatches: int
    work_s: FloatArray
    first_s: FloatArray
    once_s: FloatArray
    layers: FloatArray
    devices: FloatArray
    hosts: FloatArray
    shown_s: FloatArray


def offers(pool: Pool, devices: tuple[int, ...], *, below_s: float) -> Offers:
    """Everything that stages may hold below a step time: of configurations on as many devices, the least of each.

    Args:
        pool: The configurations.
        devices: Devices of each group.
        below_s: Step time to beat, finite.
    """
    configs, model = pool.prices.configs, pool.prices.context.model
    keys = np.column_stack([configs.group[pool.configs], configs.num_devices[pool.configs]])
    sizes, size = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(size.reshape(-1), kind="stable")
    starts = np.searchsorted(size.reshape(-1)[order], np.arange(len(sizes)))

    def least(values: FloatArray) -> FloatArray:
        """(Z, Q) of (C, Q)."""
        found: FloatArray = np.minimum.reduceat(values[order], starts, axis=0)
        return found

    stages = pool.num_stages
    work_s, first_s = (
        np.stack([least(pool.work_s(stages - k, first=first, last=k == 1)) for k in range(1, stages + 1)])
        for first in (False, True)
    )
    longest_s = known_of_step_s(below_s, nodes=0.0, prices=pool.prices) / pool.num_microbatches
    size_of, run = np.nonzero(np.minimum(work_s.min(axis=0), first_s.min(axis=0)) <= longest_s)
    taken = np.zeros((len(sizes), len(devices)))
    taken[np.arange(len(sizes)), sizes[:, 0]] = sizes[:, 1]
    counts = {"moe": model.num_moe_layers, "dense": model.num_layers - model.num_moe_layers}
    per_node = np.asarray([context.cluster.node.devices_per_node for context in pool.prices.contexts])
    once_s, held = least(pool.once_s()), pool.runs.dense + pool.runs.moe
    most = [held >= -(-pool.runs.num_layers // k) for k in range(1, stages + 1)]
    return Offers(
        prices=pool.prices, num_microbatches=pool.num_microbatches,
        work_s=work_s[:, size_of, run], first_s=first_s[:, size_of, run], once_s=once_s[size_of, run],
        layers=np.column_stack([pool.layers(kind.name)[run] / counts[kind.name] for kind in pool.kinds]),
        devices=taken[size_of] / np.asarray(devices), hosts=np.asarray(devices) / per_node,
        shown_s=np.asarray([once_s[:, many].min(initial=np.inf) for many in most]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pipelines:
    """Pipelines of p stages.

    Attributes:
        offers: What their stages may hold.
        work_s: (p, O) least seconds of one micro-batch, from the first stage to the last.
        below_s: Step time to beat.
        nodes: Hosts they take at least.
        per_work: ``passes_per_work``.
        shown_s: Seconds once per step at least.
    """

    offers: Offers
    work_s: FloatArray
    below_s: float
    nodes: float
    per_work: float
    shown_s: float

    @property
    def last(self) -> IntArray:
        """(p,) places from the end, the last stage being 1."""
        return np.arange(len(self.work_s), 0, -1)

    def priced(self, prices: FloatArray) -> FloatArray:
        """(O,) what offers cost, layers that they hold being paid for."""
        kinds = self.offers.layers.shape[1]
        cost: FloatArray = self.offers.devices @ prices[kinds:] - self.offers.layers @ prices[:kinds]
        return cost

    def value(self, prices: FloatArray, base_s: float, chosen: IntArray) -> tuple[float, FloatArray]:
        """A bound from what stages cost together, and how it changes with each price; (p,) offers were chosen."""
        kinds = self.offers.layers.shape[1]
        slope = np.concatenate(
            [1.0 - self.offers.layers[chosen].sum(axis=0), self.offers.devices[chosen].sum(axis=0) - 1.0]
        )
        return base_s + float(prices[:kinds].sum() - prices[kinds:].sum()), slope

    def evenly(self, prices: FloatArray, high_s: float) -> tuple[float, FloatArray]:
        """The bound by all work, where no stage works longer than that."""
        cost = np.where(self.work_s > high_s, np.inf, self.per_work * self.work_s) + self.priced(prices)
        chosen = cost.argmin(axis=1)
        return self.value(prices, float(cost.min(axis=1).sum()) + self.shown_s, chosen)

    def chained(self, at: FloatArray, low_s: float, high_s: float, scale_s: float) -> tuple[float, FloatArray]:
        """The bound by the slowest stage, which works longer than the first and not longer than the second.

        Last of the prices is the share of the first of two chains, in units of ``scale_s``.
        """
        m, last, every = self.offers.num_microbatches, self.last, np.arange(len(self.work_s))
        prices, share = at[:-1], at[-1] / scale_s
        here_s, cost, near = np.where(self.work_s > high_s, np.inf, self.work_s), self.priced(prices), self.last < m
        turns = np.where(near, m - share * (last - 1), 1 + (1 - share) * (m - 1) / 2)
        slow_s = np.maximum(here_s, low_s)
        tables = (
            here_s + cost, _times(here_s, 2 * share) + cost, _times(here_s, 1 + share * near[:, None]) + cost,
            turns[:, None] * slow_s + self.offers.once_s + cost,
        )  # fmt: skip
        picks = np.stack([each.argmin(axis=1) for each in tables])
        ahead, close, far, slowest = (each[every, pick] for each, pick in zip(tables, picks, strict=True))
        behind = np.where(near, close.sum() - np.cumsum(close), far.sum() - np.cumsum(far))
        whole = np.cumsum(ahead) - ahead + slowest + behind
        stage = int(whole.argmin())
        rest = picks[1 if near[stage] else 2, stage + 1 :]
        rest_s = here_s[every[stage + 1 :], rest]
        own_s = float(slow_s[stage, picks[3, stage]])
        more_s = (
            2 * rest_s.sum() - (last[stage] - 1) * own_s
            if near[stage]
            else rest_s[near[stage + 1 :]].sum() - (m - 1) / 2 * own_s
        )
        chosen = np.concatenate([picks[0, :stage], picks[3, stage : stage + 1], rest])
        value_s, slope = self.value(prices, float(whole[stage]), chosen)
        return value_s, np.append(slope, more_s / scale_s)

    def step_s(self, known_s: float, prices: FloatArray) -> float:
        """The step that a bound means, whatever hosts are used."""
        some = self.offers
        all_hosts = float(some.hosts.sum())
        edges = np.linspace(0.0, all_hosts, _HOSTS + 1)
        each = prices[some.layers.shape[1] :] / some.hosts  # of one host
        left, paid_s = edges[1:], np.zeros(_HOSTS)
        for group in np.argsort(-each, kind="stable").tolist():
            taken = np.minimum(left, some.hosts[group])
            left, paid_s = left - taken, paid_s + taken * each[group]
        known = known_s + float(prices[some.layers.shape[1] :].sum()) - paid_s
        kept = edges[1:] >= self.nodes
        steps = step_s(known[kept], nodes=np.maximum(edges[:-1], self.nodes)[kept], prices=some.prices)
        return float(steps.min(initial=np.inf)) * ROUNDED


def _times(work_s: FloatArray, weight: FloatArray | float) -> FloatArray:
    """Weighted seconds; what is ruled out stays so with weights of none."""
    found: FloatArray = np.where(np.isfinite(work_s), work_s, 0.0) * weight
    found[~np.isfinite(work_s)] = np.inf
    return found


def least_step_s(
    some: Offers, stages: int, *, below_s: float, nodes: float, check_time: Callable[[], None] = lambda: None
) -> float:
    """Step that no pipeline of so many stages goes below; the one to beat where that is no less.

    Args:
        some: What its stages may hold.
        stages: How many there are.
        below_s: Step time to beat.
        nodes: Hosts that pipelines take at least that beat it; infinite where none of them does.
        check_time: Called between pieces of work.
    """
    if not np.isfinite(nodes):
        return below_s
    m = some.num_microbatches
    sizes = (stages, m, 1, int(Schedule.ONE_F_ONE_B))
    own = _Pipelines(
        offers=some, work_s=np.concatenate([some.first_s[stages - 1 : stages], some.work_s[: stages - 1][::-1]]),
        below_s=below_s, nodes=nodes, shown_s=float(some.shown_s[stages - 1]),
        per_work=float(passes_per_work(*(np.asarray([size]) for size in sizes))[0]),
    )  # fmt: skip
    scale_s = known_of_step_s(below_s, nodes=nodes, prices=some.prices)
    longest_s = scale_s / m
    start = np.full(some.layers.shape[1] + some.devices.shape[1], scale_s)
    least_s, prices = _evenly(own, longest_s, start, scale_s)
    ranges = [(least_s, 0.0, longest_s, tuple(np.append(prices, scale_s)))]
    for _ in range(_SPLITS):
        least_s, low_s, high_s, known = heappop(ranges)
        if least_s >= below_s or high_s - low_s < _NARROW * high_s:
            return min(least_s, below_s)
        check_time()
        middle_s = (low_s + high_s) / 2 if low_s else _FIRST * high_s
        for low, high in ((low_s, middle_s), (middle_s, high_s)):
            bound_s, prices = _in_range(own, low, high, np.asarray(known), scale_s)
            heappush(ranges, (max(least_s, bound_s), low, high, tuple(prices)))
    return min(ranges[0][0], below_s)


def _in_range(
    own: _Pipelines, low_s: float, high_s: float, start: FloatArray, scale_s: float
) -> tuple[float, FloatArray]:
    """The bound where the slowest stage works in a range, and the prices it has."""
    if (own.work_s.min(axis=1) > high_s).any():
        return np.inf, start
    least_s, prices = _bounded(own, lambda at: own.chained(at, low_s, high_s, scale_s), start, scale_s, shares=1)
    if least_s < own.below_s and len(own.work_s) >= own.offers.num_microbatches:
        least_s = max(least_s, _evenly(own, high_s, prices[:-1], scale_s)[0])
    return least_s, prices


def _evenly(own: _Pipelines, high_s: float, start: FloatArray, scale_s: float) -> tuple[float, FloatArray]:
    """The bound by all work, where no stage works longer than that, and the prices it has."""
    if (own.work_s.min(axis=1) > high_s).any():
        return np.inf, start
    return _bounded(own, lambda at: own.evenly(at, high_s), start, scale_s)


def _bounded(
    own: _Pipelines, value: Callable[[FloatArray], tuple[float, FloatArray]], start: FloatArray, scale_s: float,
    shares: int = 0,
) -> tuple[float, FloatArray]:  # fmt: skip
    """The step that the best prices prove, and these; the last so many are shares of chains."""
    count = len(start) - shares
    known_s, prices = best_prices(
        value, start, scale=scale_s, most=np.concatenate([np.full(count, _MOST), np.ones(shares)]),
        enough=lambda known, at: known >= scale_s and own.step_s(known, at[:count]) >= own.below_s,
    )  # fmt: skip
    return own.step_s(known_s, prices[:count]), prices
