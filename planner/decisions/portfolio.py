"""The plans worth trying on the real cluster, chosen together: the best of them counts, not their average.

A user who tries k plans keeps the fastest that ran. The portfolio minimises the expected regret of that choice (its
step time over that of the best plan there is, less one) plus a penalty for every trial expected to run out of memory.
Plans are added one at a time, each the one that helps most beside those already chosen. Where no plan dies, the gain of
a set is monotone and submodular, and greedy choice reaches at least 1 - 1/e of the best set's gain (Nemhauser, Wolsey
and Fisher 1978); with deaths nothing is promised.

When every trial dies, the user falls back on the fastest plan that all but surely fits (the likeliest to fit, if none
does), and is taken to get it to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray

MOST_RISK = 0.5  # a plan likelier to run out of memory than not is not worth a trial
SURE = 0.01  # risk of running out of memory below which a plan all but surely fits
_LAST = 1e6  # puts plans behind all others


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Step times of M plans in S scenarios, relative to the best plan of each scenario.

    Attributes:
        regret: (S, M) step time over the best less one; infinite where a plan runs out of memory.
        safest: Number of the plan that is used when every trial dies.
        fallback: (S,) regret of that plan, taken to run.
        best_s: (S,) step time of the best plan.
        weight: (S,) of the scenarios; they add up to 1.
    """

    regret: FloatArray
    safest: int
    fallback: FloatArray
    best_s: FloatArray
    weight: FloatArray

    @classmethod
    def of(cls, log_time_s: FloatArray, died: BoolArray, weight: FloatArray) -> "World":
        """Regrets from (S, M) log step times and deaths, and (S,) weights."""
        risk = weight @ died
        safe = risk <= max(SURE, float(risk.min()))
        safest = int(np.where(safe, weight @ log_time_s, np.inf).argmin())
        fallback = log_time_s[:, safest]
        alive = np.where(died, np.inf, log_time_s)
        best = np.minimum(alive.min(axis=1), fallback)
        return cls(
            regret=np.expm1(alive - best[:, None]),
            safest=safest,
            fallback=np.expm1(fallback - best),
            best_s=np.exp(best),
            weight=weight,
        )

    @property
    def risk(self) -> FloatArray:
        """(M,) probability that a plan runs out of memory."""
        risk: FloatArray = np.minimum(self.weight @ np.isinf(self.regret), 1.0)  # weights add up to 1 but for rounding
        return risk

    @property
    def best_share(self) -> FloatArray:
        """(M,) probability that a plan runs and is the fastest of those that do."""
        winner = self.regret.argmin(axis=1)
        alive = np.isfinite(self.regret).any(axis=1)
        share: FloatArray = np.zeros(self.regret.shape[1])
        np.add.at(share, winner, self.weight * alive)
        return np.minimum(share, 1.0)

    def settled(self, reached: FloatArray) -> FloatArray:
        """(S, ...) regrets of the fastest plan that ran, the fallback's where none did."""
        fallback = self.fallback.reshape(-1, *[1] * (reached.ndim - 1))
        settled: FloatArray = np.where(np.isfinite(reached), reached, fallback)
        return settled

    def ranks(self, *, oom_penalty: float) -> IntArray:
        """(M,) place of each plan as the only choice, from 0; those likelier to die than not come last."""
        risk = self.risk
        cost = self.weight @ self.settled(self.regret) + oom_penalty * risk + _LAST * (risk > MOST_RISK)
        ranks: IntArray = np.empty(len(cost), dtype=np.int64)
        ranks[np.argsort(cost, kind="stable")] = np.arange(len(cost))
        return ranks

    def expected_regret(self, rows: IntArray) -> float:
        """Expected regret of trying some plans."""
        reached = self.regret[:, rows].min(axis=1, initial=np.inf)
        return float(self.weight @ self.settled(reached))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Plans chosen, in the order they are worth trying.

    Attributes:
        rows: (k,) numbers of the plans.
        regret: (k,) expected regret of stopping after the first, the second ... trial.
        regret_high: (k,) what that regret exceeds in one scenario of ten.
        lost_s: (k,) the expected regret in seconds of a step.
    """

    rows: IntArray
    regret: FloatArray
    regret_high: FloatArray
    lost_s: FloatArray


def choose(world: World, count: int, *, oom_penalty: float, tried: Sequence[int] = ()) -> Choice:
    """The plans to try, one after the other.

    Args:
        world: What may happen.
        count: How many, at most as many as there are plans to try.
        oom_penalty: What a trial that dies is worth avoiding: a share of the step time of the final plan.
        tried: Numbers of plans that were tried already and are not tried again; the fastest of them is at hand.
    """
    risk = world.risk
    penalty = oom_penalty * risk
    reached = world.regret[:, list(tried)].min(axis=1, initial=np.inf)
    rows: list[int] = []
    regret, high, lost_s = np.empty(count), np.empty(count), np.empty(count)
    for place in range(count):
        after = world.settled(np.minimum(reached[:, None], world.regret))
        cost = world.weight @ after + penalty
        cost[risk > MOST_RISK] += _LAST
        cost[[*rows, *tried]] = np.inf
        rows.append(int(cost.argmin()))
        reached = np.minimum(reached, world.regret[:, rows[-1]])
        settled = world.settled(reached)
        regret[place] = world.weight @ settled
        lost_s[place] = world.weight @ (settled * world.best_s)
        high[place] = weighted_quantile(settled, world.weight, 0.9)
    return Choice(rows=np.array(rows, dtype=np.int64), regret=regret, regret_high=high, lost_s=lost_s)


def weighted_quantile(values: FloatArray, weight: FloatArray, share: float) -> float:
    """The smallest of (S,) values that at least such a share of the weight does not exceed."""
    return float(weighted_quantiles(values[:, None], weight, (share,))[0, 0])


def weighted_quantiles(values: FloatArray, weight: FloatArray, shares: Sequence[float]) -> FloatArray:
    """(shares, n) such values of each column of (S, n)."""
    order = np.argsort(values, axis=0, kind="stable")
    reached = np.cumsum(weight[order], axis=0)
    places = [(reached < share * reached[-1] * (1 - 1e-12)).sum(axis=0) for share in shares]
    ordered = np.take_along_axis(values, order, axis=0)
    columns = np.arange(values.shape[1])
    return np.array([ordered[np.minimum(place, len(values) - 1), columns] for place in places])
