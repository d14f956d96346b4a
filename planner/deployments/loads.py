"""Loads that layouts of a served model are asked about, and their steady states or runs under them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.serving.reading import highest_rates, reads_at_concurrency, reads_at_rate, reads_run
from costmodels.serving.runs import run_points
from costmodels.serving.steady import ServingPoints, ServingPrices, at_concurrency, at_rate
from planner.deployments.job import ServingJob
from planner.deployments.states import Layouts, within_bounds

_STEPS = 8  # numbers of requests at once per doubling
_BETWEEN = 16  # of them looked at at a time in search of the last within bounds
_EVERY_REPLICA = 64  # counts of replicas looked at one by one; beyond, evenly spread over their logarithm
_RATES = 16  # below the highest, of requests that end with their prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployments:
    """Steady states of N layouts, G each.

    Attributes:
        points: Of one attention group.
        replicas: (N, G) replicas.
        requests_per_s: (N, G) that all of them answer.
        held: (N, G) whether they hold what is asked of them: room for the requests, and time for their prompts.
    """

    points: ServingPoints
    replicas: IntArray
    requests_per_s: FloatArray
    held: BoolArray


def deployments(found: Layouts, job: ServingJob, *, fixed: bool) -> Deployments:
    """Steady states of every layout, as asked: of a rate on growing numbers of replicas, else of requests at once.

    Args:
        found: Layouts with at least one place each.
        job: What is asked.
        fixed: Whether all replicas there are must be used.
    """
    if job.requests is not None:
        return _runs(found, job)
    groups = found.plans.attention_groups[:, None]
    most, places = found.replicas[:, None], (groups * found.places[:, None]).astype(np.float64)

    def deployed(points: ServingPoints, replicas: IntArray, held: BoolArray) -> Deployments:
        answered = points.rate_per_s * replicas * groups
        return Deployments(points=points, replicas=replicas, requests_per_s=answered, held=held)

    if job.rate_per_s is None and job.arrives_at_random:
        rates = _rates(found, job)
        points = reads_at_rate(found.prices, rates, found.places.astype(np.float64))
        return deployed(points, np.broadcast_to(most, rates.shape), np.isfinite(points.latency_s))
    if job.rate_per_s is None:
        at_once = _numbers(found, job, places) if job.concurrency is None else np.full(places.shape, job.concurrency)
        if job.ends_with_prompt:  # those that wait for their turn take no place
            points = reads_at_concurrency(found.prices, at_once, found.places.astype(np.float64))
            return deployed(points, np.broadcast_to(most, at_once.shape), np.isfinite(points.latency_s))
        points = at_concurrency(found.prices, np.minimum(at_once, places))
        return deployed(points, np.broadcast_to(most, at_once.shape), at_once <= places)
    rate, room = job.rate_per_s, found.places.astype(np.float64)
    replicas = most if fixed else np.minimum(_doubling(int(most.max()), every=_EVERY_REPLICA), most)
    while True:
        points = _random_arrivals(found.prices, rate / (replicas * groups), room)
        held = np.isfinite(points.latency_s)
        enough = held & within_bounds(found, points, job)
        first = np.where(enough.any(axis=1), enough.argmax(axis=1), 0)
        rows = np.arange(len(most))
        fewest = replicas[rows, first]
        before = np.where(first > 0, replicas[rows, first - 1], fewest - 1)
        if fixed or (fewest - before <= 1).all():
            return deployed(points, replicas, held)
        # Between the fewest that hold and those below them lies the answer; what is more is looked at as before.
        between = np.linspace(before + 1, fewest, _EVERY_REPLICA, axis=1).round().astype(np.int64)
        replicas = np.concatenate([between, np.where(replicas >= fewest[:, None], replicas, fewest[:, None])], axis=1)


def _random_arrivals(prices: ServingPrices, rate_per_s: FloatArray, places: FloatArray) -> ServingPoints:
    """Steady states with (N, G) requests a second arriving at random, as ``costmodels.serving.steady.at_rate``."""
    of = at_rate if prices.reading is None else reads_at_rate
    return of(prices, rate_per_s, places)


def _rates(found: Layouts, job: ServingJob) -> FloatArray:
    """(N, G) requests a second of an attention group, up to the highest that is answered within bounds.

    Args:
        found: The layouts, of requests that end with their prompt.
        job: Its bounds are read.
    """
    room = found.places.astype(np.float64)

    def within(rates: FloatArray) -> BoolArray:
        return within_bounds(found, reads_at_rate(found.prices, rates, room), job)

    highest = highest_rates(found.prices, room, within)
    return highest[:, None] * np.arange(1, _RATES + 1) / _RATES


def _numbers(found: Layouts, job: ServingJob, places: FloatArray) -> FloatArray:
    """(N, G) requests at once that a replica is asked about: some per doubling, all its places, the last in bounds.

    Args:
        found: The layouts.
        job: Its bounds are read.
        places: (N, 1) requests that a replica has room for.
    """
    doubling = np.asarray(_doubling(int(places.max())), dtype=np.float64)
    numbers = [np.broadcast_to(doubling, (len(places), len(doubling))), places]
    if job.bounds:
        last = last_held(places[:, 0], lambda each: within_bounds(found, at_concurrency(found.prices, each), job))
        numbers.append(last[:, None])
    return np.concatenate(numbers, axis=1)


def last_held(most: FloatArray, held: Callable[[FloatArray], BoolArray]) -> FloatArray:
    """(N,) largest whole numbers that hold, at least 1, where all up to some number do and none beyond.

    Args:
        most: (N,) largest that are asked about.
        held: Whether each of (N, H) numbers holds.
    """
    low, high = np.zeros(len(most)), most + 1.0
    while (high - low > 1).any():
        numbers = np.clip(np.linspace(low, high, _BETWEEN, axis=1).round(), 1.0, most[:, None])
        holds = held(numbers)
        low = np.maximum(low, np.where(holds, numbers, 0.0).max(axis=1))
        high = np.minimum(high, np.where(holds, np.inf, numbers).min(axis=1))
    return np.maximum(low, 1.0)


def _runs(found: Layouts, job: ServingJob) -> Deployments:
    """A run of every layout on all replicas there are, who share its requests; all at once, or so many in each.

    Attention groups share those of their replica; of fewer requests than groups one each.
    """
    requests = job.requests or 0
    each, at_once = parts_of_run(found, requests, job.concurrency)
    replicas = found.replicas
    run, room = (reads_run, found.places) if job.ends_with_prompt else (run_points, found.together)
    points = run(found.prices, each, at_once, room.astype(np.float64))
    return Deployments(
        points=points,
        replicas=replicas[:, None],
        requests_per_s=points.rate_per_s * (requests / each)[:, None],
        held=np.ones(points.rate_per_s.shape, dtype=np.bool_),
    )


def parts_of_run(found: Layouts, requests: int, concurrency: int | None) -> tuple[FloatArray, FloatArray]:
    """(N,) requests of an attention group in all, and at once."""
    replicas, groups = found.replicas, found.plans.attention_groups
    busy = replicas * (groups if concurrency is None else np.minimum(groups, concurrency))
    each = np.ceil(requests / busy)
    return each, each if concurrency is None else np.maximum(concurrency / groups, 1.0)


def _doubling(most: int, *, every: int = 1) -> list[int]:
    """Whole numbers up to ``most``: each up to ``every``, then some per doubling, and the last."""
    spread = 2 ** (np.arange(_STEPS * np.log2(most) + 1) / _STEPS)
    found = {*range(1, min(every, most) + 1), *np.floor(spread * (1 + 1e-9)).astype(int).tolist(), most}
    return sorted(found)
