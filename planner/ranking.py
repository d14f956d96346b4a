"""Order among plans: objectives, the documented tie-break, and the Pareto front.

Ties are broken towards the simpler plan: shorter step, then fewer pipeline stages, tensor, context and
expert ranks, virtual stages, the lower ZeRO stage, less recomputation, no offloading, the default axis
order, the smaller micro-batch. Values within one part in a million count as equal, so that rounding
never decides. Plans of equal step time and peak memory are one answer, represented by the simplest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Recompute
from costmodels.step.layer_costs import LayerCosts
from planner.results import RISKY
from profiles.errors import SpecError, did_you_mean

STAND_IN = 2.0  # times the fastest plan that fits: slower ones that are likely to live are no answer in its place
_SAMPLED = 4096  # plans that rule out most others before the rest are sorted
_DIGITS = 6  # significant decimal digits two values must differ in to be different

# Simplicity, most important first; smaller is simpler.
TIE_BREAK = (
    "pipeline_parallel",
    "tensor_parallel",
    "context_parallel",
    "expert_parallel",
    "expert_tensor_parallel",
    "virtual_stages",
    "schedule",
    "zero_stage",
    "zero_shard_degree",
    "recompute",
    "recompute_layers",
    "recompute_modules",
    "offload_optimizer",
    "offload_activations",
    "offload_parameters",
    "axis_order",
    "context_kind",
    "micro_batch_size",
    "first_stage_layers",
    "last_stage_layers",
    "sequence_parallel",
)
# What makes two plans different to a reader; others are variants of the same plan.
FAMILY = (
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "context_parallel",
    "expert_parallel",
    "zero_stage",
    "micro_batch_size",
    "recompute",
    "offload_optimizer",
    "offload_activations",
    "offload_parameters",
)
# How much of the forward pass a recomputation mode repeats.
_EFFORT = {Recompute.NONE: 0, Recompute.SELECTIVE: 1, Recompute.BLOCK: 2, Recompute.FULL: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Plans with what ranking needs of their estimates, as arrays of length N.

    Attributes:
        plans: The plans.
        step_time_s: Seconds per step; infinite where a plan does not fit and nobody asked.
        peak_memory_bytes: Fullest device; infinite where a plan cannot fit whatever it recomputes and nobody asked.
        host_memory_bytes: Per node, for offloaded states.
        fits: Whether device and host memory suffice.
        likely: Of those that fit, which run out of memory in less than a share of runs; None where nobody asked.
        likely_below: That share: what was asked for, or the usual one where less was asked for and no plan has it.
        costs: The blocks of the plans, priced on the cluster of all of them; None where there are several clusters, or
            too many plans to price at once.
    """

    plans: PlanBatch
    step_time_s: FloatArray
    peak_memory_bytes: FloatArray
    host_memory_bytes: FloatArray
    fits: BoolArray
    likely: BoolArray | None = None
    likely_below: float = RISKY
    costs: LayerCosts | None = None

    def __len__(self) -> int:
        return len(self.step_time_s)

    def take(self, rows: IntArray) -> "Priced":
        """The selected plans."""
        return Priced(
            plans=self.plans.take(rows),
            step_time_s=self.step_time_s[rows],
            peak_memory_bytes=self.peak_memory_bytes[rows],
            host_memory_bytes=self.host_memory_bytes[rows],
            fits=self.fits[rows],
            likely=None if self.likely is None else self.likely[rows],
            likely_below=self.likely_below,
            costs=None if self.costs is None else self.costs.take(rows),
        )

    @property
    def ranked(self) -> BoolArray:
        """(N,) plans to choose from: those that are likely to live, or where these are far slower, all that fit.

        What is surer than usual was asked for, however slow it is.
        """
        if self.likely is None or not self.likely.any():
            return self.fits
        if self.likely_below < RISKY:
            return self.likely
        fastest_s, likely_s = (float(self.step_time_s[rows].min()) for rows in (self.fits, self.likely))
        return self.likely if likely_s < STAND_IN * fastest_s else self.fits

    @property
    def likely_any(self) -> bool:
        """Whether any is known to be likely to live."""
        return self.likely is not None and bool(self.likely.any())

    @property
    def num_devices(self) -> IntArray:
        """(N,) devices each plan occupies."""
        return self.plans.num_devices


Key = Callable[[Priced], FloatArray]

_OBJECTIVES: dict[str, Key] = {
    "step_time": lambda priced: priced.step_time_s,
    "cost": lambda priced: priced.step_time_s * priced.num_devices,
    "fewest_gpus": lambda priced: priced.num_devices.astype(np.float64),
    "memory_headroom": lambda priced: priced.peak_memory_bytes,
}
OBJECTIVES = tuple(_OBJECTIVES)
# Objectives that may leave devices of the cluster unused.
MAY_USE_FEWER_DEVICES = ("cost", "fewest_gpus")


def check_objective(name: str) -> str:
    """The objective of that name.

    Raises:
        SpecError: If there is none.
    """
    key = name.strip().lower().replace("-", "_")
    if key not in _OBJECTIVES:
        raise SpecError("objective", f"unknown value {name[:40]!r}", did_you_mean(key, OBJECTIVES))
    return key


def objective_values(priced: Priced, objective: str) -> FloatArray:
    """(N,) what the plans are ranked by, the less the better; ``objective`` is one of ``OBJECTIVES``."""
    return _OBJECTIVES[objective](priced)


def best_rows(
    priced: Priced, *, objective: str, count: int, among: BoolArray | None = None, variants: bool = True
) -> IntArray:
    """Rows of the best plans, best first.

    Args:
        priced: The plans.
        objective: One of ``OBJECTIVES``.
        count: Most rows to return.
        among: (N,) rows to choose from; ``priced.ranked`` by default.
        variants: List plans that agree in every field of ``FAMILY`` one by one, instead of the best.

    Returns:
        Row numbers, at most ``count``; plans that cost the same are represented once.
    """
    pool = np.flatnonzero(priced.ranked if among is None else among)
    if not len(pool) or count < 1:
        return np.zeros(0, dtype=np.int64)
    if len(pool) == 1:
        return pool
    step = _significant(priced.step_time_s[pool])
    first = step if objective == "step_time" else _significant(objective_values(priced, objective)[pool])
    wanted = count
    while True:
        near = _smallest(first, step, wanted)
        order = near[_tie_break_order(priced, pool[near], first[near], step[near])] if len(near) > 1 else near
        if count == 1:
            return pool[order[:1]]
        chosen = _distinct(priced, pool[order]) if variants else _families(priced, pool[order])
        if len(chosen) >= count or len(near) == len(pool):
            return chosen[:count]
        wanted *= 4


def nearest_row(priced: Priced, *, usable_bytes: float, host_bytes: float) -> int:
    """The row with the smallest relative memory overshoot, for when nothing fits."""
    among = nearest_rows(
        priced.peak_memory_bytes, priced.host_memory_bytes, usable_bytes=usable_bytes, host_bytes=host_bytes
    )
    return int(best_rows(priced, objective="step_time", count=1, among=among)[0])


def nearest_rows(
    peak_memory_bytes: FloatArray, host_memory_bytes: FloatArray, *, usable_bytes: float, host_bytes: float
) -> BoolArray:
    """(N,) which plans have the smallest relative memory overshoot."""
    overshoot = overshoots(peak_memory_bytes, host_memory_bytes, usable_bytes=usable_bytes, host_bytes=host_bytes)
    nearest: BoolArray = overshoot <= overshoot.min() * (1 + 10.0**-_DIGITS)
    return nearest


def overshoots(
    peak_memory_bytes: FloatArray, host_memory_bytes: FloatArray, *, usable_bytes: float, host_bytes: float
) -> FloatArray:
    """(N,) memory that plans need over what there is, of the device or the host, whichever is shorter."""
    overshoot: FloatArray = np.maximum(peak_memory_bytes / usable_bytes, host_memory_bytes / max(host_bytes, 1.0))
    return overshoot


def pareto_rows(priced: Priced) -> IntArray:
    """Rows of the plans no other fitting plan beats in step time, peak memory and devices, fastest first.

    A plan is beaten by one that is no worse in all three and better in one; equals appear once.
    """
    rows = best_rows(priced, objective="step_time", count=len(priced), among=_unbeaten(priced))
    if len(rows) < 2:
        return rows
    cost = [
        priced.num_devices[rows],
        _significant(priced.peak_memory_bytes[rows]),
        _significant(priced.step_time_s[rows]),
    ]
    rows = rows[np.lexsort(cost)]
    front: list[int] = []
    devices = priced.num_devices[rows]
    lowest = np.full(len(rows), np.inf)
    for number in np.unique(devices):
        # Among plans with at most this many devices, in order of time, keep each new memory minimum.
        small = np.flatnonzero(devices <= number)
        memory = _significant(priced.peak_memory_bytes[rows[small]])
        before = np.concatenate([[np.inf], np.minimum.accumulate(memory)[:-1]])
        lowest[small] = np.minimum(lowest[small], before)
        own = devices[small] == number
        front.extend(rows[small[own & (memory < before)]].tolist())
    order = np.argsort(priced.step_time_s[front], kind="stable")
    return np.asarray(front, dtype=np.int64)[order]


def _unbeaten(priced: Priced) -> BoolArray:
    """(N,) fitting plans that no other on as many devices beats in step time and memory, equals among them."""
    unbeaten = np.zeros(len(priced), dtype=np.bool_)
    devices = priced.num_devices
    for number in np.unique(devices[priced.fits]):
        rows = np.flatnonzero(priced.fits & (devices == number))
        step, memory = _significant(priced.step_time_s[rows]), _significant(priced.peak_memory_bytes[rows])
        near = _near_front(step, memory)
        rows, step, memory = rows[near], step[near], memory[near]
        order = np.lexsort([memory, step])
        step, memory = step[order], memory[order]
        least = np.minimum.accumulate(memory)
        lower = np.concatenate([[True], least[1:] < least[:-1]])
        # The last plan before each that needed less memory than all before: an equal of it is as good.
        latest = np.maximum.accumulate(np.where(lower, np.arange(len(rows)), 0))
        unbeaten[rows[order[(memory == least) & (step == step[latest])]]] = True
    return unbeaten


def _near_front(step_s: FloatArray, memory_bytes: FloatArray) -> IntArray:
    """Rows that none of a sample of them beats in step time and memory: few are left to be sorted."""
    if len(step_s) <= _SAMPLED:
        return np.arange(len(step_s))
    sample = np.arange(0, len(step_s), len(step_s) // _SAMPLED)
    sample = sample[np.argsort(step_s[sample], kind="stable")]
    least_bytes = np.minimum.accumulate(memory_bytes[sample])
    faster = np.searchsorted(step_s[sample], step_s, side="left")  # of the sample, strictly
    return np.flatnonzero(memory_bytes < np.concatenate([[np.inf], least_bytes])[faster])


def _significant(values: FloatArray) -> FloatArray:
    """Values rounded to the digits that count; infinite ones, of plans that were not timed, stay so."""
    safe = np.where(np.isfinite(values), np.maximum(np.abs(values), 1e-300), 1.0)
    scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(safe)))
    rounded: FloatArray = np.round(values * scale) / scale
    return rounded


def _smallest(first: FloatArray, step: FloatArray, count: int) -> IntArray:
    """Positions of the ``count`` smallest by (first, step), and everything that ties with the last."""
    if count >= len(first):
        return np.arange(len(first))
    bound = np.partition(first, count - 1)[count - 1]
    inside = np.flatnonzero(first <= bound)
    if len(inside) <= count:
        return inside
    sure = np.flatnonzero(first < bound)
    ties = np.flatnonzero(first == bound)
    missing = count - len(sure)
    limit = np.partition(step[ties], missing - 1)[missing - 1]
    return np.concatenate([sure, ties[step[ties] <= limit]])


def _tie_break_order(priced: Priced, rows: IntArray, first: FloatArray, step: FloatArray) -> IntArray:
    effort = np.asarray([_EFFORT[mode] for mode in Recompute])
    keys: list[FloatArray | IntArray] = []
    for name in reversed(TIE_BREAK):
        column = getattr(priced.plans, name)[rows]
        keys.append(effort[column] if name == "recompute" else column.astype(np.int64))
    return np.lexsort([*keys, step, first])


def _distinct(priced: Priced, rows: IntArray) -> IntArray:
    """Rows in order, leaving out those with the time, memory and devices of an earlier one."""
    values = np.stack(
        [
            _significant(priced.step_time_s[rows]),
            _significant(priced.peak_memory_bytes[rows]),
            1.0 * priced.num_devices[rows],
        ]
    )
    _, first = np.unique(values, axis=1, return_index=True)
    return rows[np.sort(first)]


def _families(priced: Priced, rows: IntArray) -> IntArray:
    """Rows in order, leaving out those of the same family as an earlier one."""
    values = np.stack([getattr(priced.plans, name)[rows].astype(np.int64) for name in FAMILY])
    _, first = np.unique(values, axis=1, return_index=True)
    return rows[np.sort(first)]
