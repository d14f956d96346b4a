"""Deployments in their order: of a rate the fewest devices, else the most tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from costmodels.plan import BoolArray, FloatArray
from costmodels.serving.steady import replica_devices
from planner.deployments.layouts import priced_layouts
from planner.deployments.loads import Deployments, deployments
from planner.deployments.results import ServingResult
from planner.deployments.states import Layouts, within_bounds

_FRONTIER = 12
Place = tuple[int, int]  # a layout, and one of its deployments


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Deployments of N layouts that do what was asked.

    Attributes:
        there: All of them, also those that do not.
        best: The best one of each layout that has any, best first.
        frontier: Those that none beats both in tokens and in the speed of a request, fastest first.
    """

    there: Deployments
    best: tuple[Place, ...]
    frontier: tuple[Place, ...]


def ranked(fitting: Layouts, asked: ServingResult, *, fixed: bool) -> Ranking:
    """Deployments in their order.

    Args:
        fitting: Layouts that hold a request.
        asked: The question.
        fixed: Whether all replicas there are must be used.
    """
    there = deployments(fitting, asked.job, fixed=fixed)
    within = there.held & within_bounds(fitting, there.points, asked.job)
    devices = there.replicas * replica_devices(fitting.plans)[:, None]
    job = asked.job
    tokens = (job.prompt_tokens if job.ends_with_prompt else job.output.mean) * there.requests_per_s
    worth = tokens if job.rate_per_s is None else -devices - _fraction(there.points.latency_s)
    worth = np.where(within, worth, -np.inf)
    column = worth.argmax(axis=1)
    best = worth[np.arange(len(column)), column]
    order = [row for row in np.lexsort((fitting.prices.alone_s, -best)).tolist() if best[row] > -np.inf]
    took_s = there.points.latency_s if job.ends_with_prompt else there.points.token_s
    front = _frontier(took_s, within, tokens if job.rate_per_s is None else tokens / devices)
    return Ranking(there=there, best=tuple((row, int(column[row])) for row in order), frontier=tuple(front))


class Deployed(NamedTuple):
    """Degrees of a replica, how many of it, and devices of each."""

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    replicas: int
    devices: int


def served(asked: ServingResult, pins: Mapping[str, int]) -> tuple[Deployed, ...]:
    """The best deployment of each layout that does what was asked, best first."""
    found = priced_layouts(asked, pins)
    fitting = found.take(np.flatnonzero(found.places > 0))
    if not len(fitting.plans):
        return ()
    ranking = ranked(fitting, asked, fixed="data_parallel" in pins)
    plans, devices = fitting.plans, replica_devices(fitting.plans)
    return tuple(
        Deployed(
            tensor_parallel=int(plans.tensor_parallel[row]),
            pipeline_parallel=int(plans.pipeline_parallel[row]),
            expert_parallel=int(plans.expert_parallel[row]),
            replicas=int(ranking.there.replicas[row, place]),
            devices=int(devices[row]),
        )
        for row, place in ranking.best
    )


def _frontier(took_s: FloatArray, within: BoolArray, each: FloatArray) -> list[Place]:
    """Places of the deployments that none beats both in tokens and in the speed of a request, fastest first.

    Of many a few are taken, evenly spread, the first and the last among them.
    """
    places = np.argwhere(within)
    speed, tokens = -took_s[within], each[within]
    front, most = [], -np.inf
    for index in np.lexsort((-tokens, -speed)).tolist():
        if tokens[index] > most:
            front.append((int(places[index][0]), int(places[index][1])))
            most = tokens[index]
    chosen = np.unique(np.linspace(0, len(front) - 1, min(_FRONTIER, len(front))).round().astype(int))
    return [front[index] for index in chosen]


def _fraction(values: FloatArray) -> FloatArray:
    """Values in their order, squeezed between 0 and 1: they decide where whole numbers are equal."""
    return np.asarray(1 - 1 / (1 + values))
