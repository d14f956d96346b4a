"""Layouts of a replica that an engine loads a model in, and how many replicas of a size a cluster has room for.

Replicas that fit a scale-up domain are not cut over two of them, and larger ones take whole domains: engines start as
many ranks on every node. What is left over stays idle.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from costmodels.kernels.calls import KernelCostModel
from costmodels.links.collectives import CollectiveCostModel
from costmodels.plan import IntArray, PlanBatch
from costmodels.serving.steady import replica_devices
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.dataflow.engine_strategies import engine_strategies
from planner.deployments.job import BOUNDS
from planner.deployments.results import ServingResult
from planner.deployments.states import STACK, Layouts, layouts, serving_call
from planner.deployments.weights import cuts, spread
from planner.prices.price_lists import collective_model, kernel_model_of
from planner.rules.base import divisors
from profiles.hardware import ClusterSpec
from profiles.stack import StackSpec
from profiles.stacks import find_stack

_OF_LOAD = ("rate_per_s", "concurrency", "requests", *BOUNDS, "percentile")  # fields of a job
_EVERY_DOMAIN = 8  # domains of a replica looked at one by one; beyond, those numbers that divide the cluster's
_MANY = 4096  # requests per device that plans are made for: more than any engine takes


def replica_layouts(asked: ServingResult, pins: Mapping[str, int]) -> tuple[PlanBatch, IntArray]:
    """Layouts of one replica each with the degrees that are fixed, and the most replicas of each there may be.

    Args:
        asked: The question.
        pins: Plan columns that are fixed; ``data_parallel`` are replicas, all of which must have room.
    """
    cluster = asked.cluster
    plans = engine_strategies(
        asked.model,
        serving_call(asked.job, asked.recipe, min(_MANY * cluster.num_devices, MAX_GLOBAL_BATCH)),
        _sizes(cluster),
        asked.engine,
        stack=find_stack(STACK),
        domain_devices=cluster.domain_devices,
    )
    plans = plans.take(np.flatnonzero(plans.data_parallel == plans.attention_groups))
    most = most_replicas(replica_devices(plans), cluster.num_devices, cluster.domain_devices)
    wanted = pins.get("data_parallel")
    kept = most >= (wanted or 1)
    if asked.job.pools and not asked.engine.pools_over_stages:
        kept &= plans.pipeline_parallel == 1
    if asked.speculation is not None:
        kept &= asked.speculation.splits(plans, asked.engine)
    for name, value in pins.items():
        if name != "data_parallel":
            kept &= getattr(plans, name) == value
    kept &= cuts(plans, asked.model, asked.weights)
    rows = np.flatnonzero(kept & spread(plans, asked.weights, asked.engine, cluster.device))
    return plans.take(rows), most[rows] if wanted is None else np.full(len(rows), wanted)


def priced_layouts(asked: ServingResult, pins: Mapping[str, int]) -> Layouts:
    """The same layouts with their prices, which no load and no bound changes: they are remembered between questions."""
    no_load: dict[str, Any] = dict.fromkeys(_OF_LOAD)
    question = replace(asked, job=replace(asked.job, **no_load), price=None, assumptions=())
    lists = kernel_model_of(asked.cluster.device), collective_model(), find_stack(STACK)
    return _priced(question, tuple(sorted(pins.items())), lists)


@lru_cache(maxsize=32)
def _priced(
    question: ServingResult,
    pins: tuple[tuple[str, int], ...],
    _lists: tuple[KernelCostModel, CollectiveCostModel, StackSpec],
) -> Layouts:
    """Priced layouts of a question with the price lists of now."""
    return layouts(*replica_layouts(question, dict(pins)), question)


def most_replicas(devices: IntArray, num_devices: IntArray | int, domain_devices: int) -> IntArray:
    """Replicas of so many devices each that there is room for; of one shape.

    Args:
        devices: Of a replica: part of a scale-up domain, or whole ones.
        num_devices: There are: whole domains, and part of one.
        domain_devices: Of a domain.
    """
    domains, rest = np.divmod(num_devices, domain_devices)
    inside = domains * (domain_devices // devices) + rest // devices
    return np.asarray(np.where(devices <= domain_devices, inside, domains // np.maximum(devices // domain_devices, 1)))


def most_beside(devices: int, others: IntArray, other_devices: int, num_devices: int, domain_devices: int) -> IntArray:
    """(K,) replicas that there is room for beside others, which fill one scale-up domain after the other.

    Args:
        devices: Of one of them, as of ``most_replicas``.
        others: (K,) at most as many as ``most_replicas`` says.
        other_devices: Of one of the others.
        num_devices: As of ``most_replicas``.
        domain_devices: Likewise.
    """
    domains, rest = divmod(num_devices, domain_devices)
    if other_devices > domain_devices:
        left = num_devices - others * other_devices
        return most_replicas(np.asarray(devices), left, domain_devices)
    each = domain_devices // other_devices
    full = np.minimum(others // each, domains)
    more = others - full * each
    inside = full < domains  # whether the last of the others are in a whole domain, or in the part of one
    if devices > domain_devices:
        return np.asarray(np.maximum(domains - full - (more > 0), 0) // (devices // domain_devices))
    last = np.where(inside, domain_devices, rest) - more * other_devices
    untouched = np.where(inside, (domains - full - 1) * (domain_devices // devices) + rest // devices, 0)
    return np.asarray(full * (domain_devices % other_devices // devices) + last // devices + untouched)


def fewest_devices(devices: int, replicas: int, cluster: ClusterSpec) -> int:
    """Devices of the smallest part of a cluster that has room for so many replicas of so many devices each.

    It is part of one node, or whole nodes.
    """
    domain = cluster.domain_devices
    before, beside = divmod(replicas - 1, max(domain // devices, 1))
    needed = before * max(domain, devices) + (beside + 1) * devices
    node = cluster.node.devices_per_node
    return needed if needed <= node else -(-needed // node) * node


def _sizes(cluster: ClusterSpec) -> list[int]:
    """Devices of a replica, smallest first."""
    domain, domains = cluster.domain_devices, cluster.num_devices // cluster.domain_devices
    across = {*range(2, min(domains, _EVERY_DOMAIN) + 1), *divisors(domains)} - {1}
    return [*range(1, domain + 1), *(domain * count for count in sorted(across))]
