"""How short pipelines can be whose stages share out layers and devices as they like: bounds, and what they rule out.

A dynamic program over (stages, layers, devices) finds the least time of one micro-batch's way through the last k
stages, in which no stage works for longer than a step to beat leaves it. It is exact in whole layers, whole devices
and the room of every stage; left out is what a stage's own choice means for the stages around it.

With 1F1B, the k-th last stage, at which s seconds are worked, makes a pipeline of p stages take m s and its way there
at least and, if k <= m, (m - k + 1) s, its way there and twice the way through the k - 1 stages behind it (chains of
``costmodels.pipeline.schedules`` that turn at the stage, and at the last one). Interleaving divides by v what is beyond
m s.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, Schedule
from planner.search.families import passes_per_work
from planner.search.partition.completion import shifted
from planner.search.pools import Pool

ROUNDED = 1.0 - 1e-9  # of sums of the same numbers in another order
_NARROWINGS = 2  # times that hosts are counted with what is known of the time they leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What the last stages of pipelines take at least.

    Attributes:
        way_s: (S + 1, L + 1, X...) way of one micro-batch through the last k stages, which hold so many layers, on no
            more than so many units of devices; infinite where no step below ``known_s`` has such stages.
        before_s: (L + 1, X...) way through any stages that hold the first so many layers.
        step_s: (S + 1,) steps of whole pipelines of k stages; infinite where that is the one to beat or more.
        nodes: (S + 1,) hosts that those take at least that beat it.
        below_s: The step to beat.
        known_s: That, before ``per_step_overhead_s`` adds to it.
        only: The only number of stages looked at; all if not given.
    """

    way_s: FloatArray
    before_s: FloatArray
    step_s: FloatArray
    nodes: FloatArray
    below_s: float
    known_s: float
    only: int | None


def behind(pool: Pool, below_s: float, *, only: int | None, check_time: Callable[[], None] = lambda: None) -> Behind:
    """Works the bounds out for every number of stages that the pool has room for.

    Args:
        pool: The configurations.
        below_s: Step time to beat.
        only: The only number of stages that matters; all if not given.
        check_time: Called between pieces of work.
    """
    shape = (pool.runs.num_layers + 1, *pool.units.shape)
    stages, nodes = pool.num_stages, pool.hosts(np.min(pool.sizes, axis=0, keepdims=True)).min()
    way_s, step_s = np.full((stages + 1, *shape), np.inf), np.full(stages + 1, np.inf)
    way_s[0, 0] = 0.0
    nodes_of = np.zeros(stages + 1)
    for _ in range(_NARROWINGS):  # what has to be done takes hosts, and these take time
        known_s = pool.known_s(below_s, nodes)
        work_s, once_s = _least(pool, pool.work_s(None, first=False, last=False), known_s)
        before_s = _anywhere(pool, work_s, shape)
        needed = _hosts(pool, before_s[-1])
        if not np.isfinite(needed):  # nobody gets all layers done
            stages = 0
            break
        nodes = max(nodes, needed)
    for k in range(1, stages + 1):
        check_time()
        if only in (None, k):
            shown_s = _shown_s(pool, k, once_s)
            found_s = _whole_s(pool, k, way_s[k - 1], known_s, shown_s)
            nodes_of[k] = max(nodes, _hosts(pool, found_s))
            step_s[k] = pool.step_s(float(found_s.min()), float(nodes_of[k]))
        if k in (stages, only):
            break
        _step(pool, k, way_s[k - 1], way_s[k], before_s, known_s)
        if not np.isfinite(way_s[k]).any():
            break
    step_s[step_s >= below_s] = np.inf
    return Behind(
        way_s=way_s, before_s=before_s, step_s=step_s, nodes=nodes_of, below_s=below_s, known_s=known_s, only=only
    )


def _hosts(pool: Pool, found_s: FloatArray) -> float:
    """Hosts that (X...) units of devices are at least where a value is finite; infinite where none is."""
    used = np.argwhere(np.isfinite(found_s))
    return float(pool.hosts(used).min(initial=np.inf))


def admitted(pool: Pool, found: Behind, stages: int, known_s: float) -> tuple[BoolArray, BoolArray]:
    """Which runs the stages of pipelines hold on which configurations below ``known_s``, and where.

    Args:
        pool: The configurations.
        found: What the last stages take at least.
        stages: Stages of the pipelines.
        known_s: Step to beat, no more than the one ``found`` is about.

    Returns:
        (C, Q, S) what they hold, and (S, Z, L + 1, N + 1) from which first layer on stages of each size hold how many.
    """
    once_s, size = pool.once_s(), len(pool.runs.at)
    places = np.zeros((stages, len(pool.sizes), size, size), dtype=np.bool_)
    ahead_s = np.full(found.before_s.shape, np.inf)
    ahead_s[0] = 0.0
    verdicts = np.zeros((*once_s.shape, stages), dtype=np.bool_)
    for stage in range(stages):
        k = stages - stage
        work_s = pool.work_s(pool.num_stages - k, first=stage == 0, last=k == 1)
        least_s, _ = _least(pool, work_s, known_s)
        around_s = _around(pool, least_s, ahead_s, found.way_s[k - 1], places[stage], _per_work(pool, stages), known_s)
        way_s, before_s, twice_s = (pool.of_size(each) for each in around_s)
        whole_s = _per_work(pool, stages) * (work_s + way_s)
        chain_s = _chain_s(pool, k, work_s, before_s, twice_s) + once_s
        verdicts[:, :, stage] = np.maximum(whole_s, chain_s) * ROUNDED < known_s
        ahead_s = _ahead(pool, least_s, ahead_s)
    return verdicts, places


def _least(pool: Pool, work_s: FloatArray, known_s: float) -> tuple[FloatArray, FloatArray]:
    """(Z, Q) least work, and least work once per step, of stages of each size that a step to beat leaves the time."""
    once_s = pool.once_s()
    ruled_out = pool.num_microbatches * work_s + once_s >= known_s
    return pool.by_size(np.where(ruled_out, np.inf, work_s)), pool.by_size(np.where(ruled_out, np.inf, once_s))


def _moves(pool: Pool, work_s: FloatArray) -> list[tuple[int, int]]:
    """Sizes and numbers of layers that some stage can have."""
    layers = pool.runs.dense + pool.runs.moe
    size, run = np.nonzero(np.isfinite(work_s))
    found = np.unique(np.column_stack([size, layers[run]]), axis=0)
    return [(int(size), int(count)) for size, count in found]


def _of_runs(pool: Pool, values: FloatArray, runs: FloatArray) -> FloatArray:
    """Values of runs of layers one after the other, laid out so that they spread over devices; infinite for none."""
    found = np.where(runs >= 0, values[runs], np.inf)
    column: FloatArray = found.reshape(-1, *(1 for _ in pool.units.shape))
    return column


def _anywhere(pool: Pool, work_s: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """``Behind.before_s``: any number of stages, each with the room of the one that has most."""
    found = np.full(shape, np.inf)
    found[0] = 0.0
    moves = _moves(pool, work_s)
    for layers in range(1, shape[0]):
        for size, count in moves:
            if count <= layers and (run := pool.runs.at[layers - count, count]) >= 0:
                before, after = shifted(shape[1:], tuple(pool.sizes[size].tolist()))
                there = found[layers][after]
                np.minimum(there, found[layers - count][before] + work_s[size, run], out=there)
    return found


def _chain_s(pool: Pool, k: int, work_s: FloatArray, before_s: FloatArray, twice_s: FloatArray) -> FloatArray:
    """Seconds of a pipeline at least in which the k-th last stage works so long on one micro-batch.

    Args:
        pool: Of its stages.
        k: Which.
        work_s: How long.
        before_s: Way through the stages before it.
        twice_s: That, and twice the way through those behind it.
    """
    m = pool.num_microbatches
    working_s: FloatArray = m * work_s
    if k > m:
        return working_s
    with np.errstate(invalid="ignore"):  # of stages that cannot be
        working_s = working_s + np.maximum(before_s, twice_s - (k - 1) * work_s)
    return working_s


def _per_work(pool: Pool, stages: int) -> float:
    """``passes_per_work`` of so many stages."""
    sizes = (stages, pool.num_microbatches, 1, int(Schedule.ONE_F_ONE_B))
    return float(passes_per_work(*(np.asarray([size]) for size in sizes))[0])


def _step(
    pool: Pool, k: int, behind_s: FloatArray, found: FloatArray, before_s: FloatArray, known_s: float
) -> None:  # fmt: skip
    """One stage more, the k-th from the end, in front of those that ``behind_s`` is about."""
    work_s, once_s = _least(pool, pool.work_s(pool.num_stages - k, first=False, last=k == 1), known_s)
    total = pool.runs.num_layers
    left_s = np.flip(before_s)  # by layers and devices that are taken
    for size, count in _moves(pool, work_s):
        runs = pool.runs.at[total - count - np.arange(total - count + 1), count]
        before, after = shifted(found.shape, (count, *pool.sizes[size].tolist()))
        own_s, own_once_s = _of_runs(pool, work_s[size], runs), _of_runs(pool, once_s[size], runs)
        rest_s = behind_s[before]
        chain_s = _chain_s(pool, k, own_s, left_s[after], left_s[after] + 2 * rest_s) + own_once_s
        way_s = np.where(chain_s * ROUNDED >= known_s, np.inf, rest_s + own_s)
        np.minimum(found[after], way_s, out=found[after])


def _whole_s(pool: Pool, k: int, behind_s: FloatArray, known_s: float, shown_s: float) -> FloatArray:
    """(X...) least steps of k stages, the first of which is put in front; infinite where that is not below ``known_s``.

    Before what ``per_step_overhead_s`` adds.
    """
    work_s, once_s = _least(pool, pool.work_s(pool.num_stages - k, first=True, last=k == 1), known_s)
    total, per_work, found = pool.runs.num_layers, _per_work(pool, k), np.full(pool.units.shape, np.inf)
    for size, count in _moves(pool, work_s):
        run = int(pool.runs.at[0, count])
        if run < 0 or not np.isfinite(work_s[size, run]):
            continue
        before, after = shifted(found.shape, tuple(pool.sizes[size].tolist()))
        rest_s, own_s = behind_s[total - count][before], work_s[size, run]
        chain_s = _chain_s(pool, k, own_s, np.zeros(()), 2 * rest_s) + once_s[size, run]
        whole_s = ROUNDED * np.maximum(chain_s, per_work * (own_s + rest_s) + shown_s)
        np.minimum(found[after], np.where(whole_s < known_s, whole_s, np.inf), out=found[after])
    return found


def _shown_s(pool: Pool, stages: int, once_s: FloatArray) -> float:
    """Seconds once per step of the stage that holds most layers: at least its share of these."""
    many = pool.runs.dense + pool.runs.moe >= -(-pool.runs.num_layers // stages)
    return float(once_s[:, many].min(initial=np.inf))


def _around(
    pool: Pool, work_s: FloatArray, ahead_s: FloatArray, behind_s: FloatArray, places: BoolArray, per_work: float,
    known_s: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:  # fmt: skip
    """(Z, Q) least way before and after a stage, least way before it, and least of that with twice the way after it.

    Which layers stages of each size can begin with is marked in ``places``, (Z, L + 1, N + 1).
    """
    total, axes = pool.runs.num_layers, tuple(range(1, ahead_s.ndim))
    found = np.full((3, *work_s.shape), np.inf)
    for size, count in _moves(pool, work_s):
        runs = pool.runs.at[np.arange(total - count + 1), count]
        before, _ = shifted(ahead_s.shape, (count, *pool.sizes[size].tolist()))
        rest_s = np.flip(behind_s[before])  # by what is before the stage: the rest of layers and devices
        before_s = np.where(np.isfinite(rest_s), ahead_s[before], np.inf)
        each_s = [
            some_s.min(axis=axes, initial=np.inf) for some_s in (before_s + rest_s, before_s, before_s + 2 * rest_s)
        ]
        whole_s = per_work * (each_s[0] + np.where(runs >= 0, work_s[size, runs], np.inf))
        inside = whole_s * ROUNDED < known_s
        places[size, np.flatnonzero(inside), count] = True
        for least_s, some_s in zip(found, each_s, strict=True):
            np.minimum.at(least_s[size], runs[inside], some_s[inside])
    return found[0], found[1], found[2]


def _ahead(pool: Pool, work_s: FloatArray, ahead_s: FloatArray) -> FloatArray:
    """(L + 1, X...) least way through one stage more that holds the layers that follow."""
    total, found = pool.runs.num_layers, np.full(ahead_s.shape, np.inf)
    for size, count in _moves(pool, work_s):
        runs = pool.runs.at[np.arange(total - count + 1), count]
        before, after = shifted(found.shape, (count, *pool.sizes[size].tolist()))
        np.minimum(found[after], ahead_s[before] + _of_runs(pool, work_s[size], runs), out=found[after])
    return found
