"""Replicas that read prompts beside replicas that generate: which layouts, how many of each."""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.serving.apart import crossing_s, first_token_s, generated, most_read, running_at
from costmodels.serving.steady import replica_devices
from planner.deployments.deployed import interval
from planner.deployments.layouts import most_beside, most_replicas
from planner.deployments.loads import last_held
from planner.deployments.results import ApartPlan, PoolPart, ServingResult
from planner.deployments.states import Layouts, serving_call, serving_context
from profiles.hardware import ClusterSpec
from profiles.serving_widths import serving_log_stds

_PAIRS = 64  # of layouts that numbers of replicas are chosen for
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pools:
    """What one replica of every layout does at most, within the bounds; N layouts.

    Attributes:
        beside_s, crossing_s: (N,) seconds a prompt's cache takes from there, where all replicas share a scale-up domain
            and where they do not.
        read_per_s: (N,) prompts a second that one reads.
        running: (N,) requests that run in an attention group of one that generates.
        generated_per_s: (N,) requests a second that come and go there.
        devices: (N,) of a replica.
    """

    beside_s: FloatArray
    crossing_s: FloatArray
    read_per_s: FloatArray
    running: FloatArray
    generated_per_s: FloatArray
    devices: IntArray


def apart(found: Layouts, asked: ServingResult, top: int) -> tuple[ApartPlan, ...]:
    """The best pairs of layouts on the cluster, best first: most tokens, of a rate the fewest devices.

    Args:
        found: Layouts that hold a request.
        asked: The question.
        top: Most pairs to return.
    """
    cluster, rate = asked.cluster, asked.job.rate_per_s
    pools = _pools(found, asked)
    plans = [
        plan
        for reading, generating in _likely(pools, cluster.num_devices)
        if (counts := _counts(pools, reading, generating, cluster, rate)) is not None
        and (plan := _plan(found, pools, asked, (reading, generating), counts)) is not None
    ]
    plans.sort(key=lambda plan: _worth(plan, rate))
    return tuple(plans[:top])


def _worth(plan: ApartPlan, rate: float | None) -> tuple[float, int, float]:
    """What is better comes first."""
    return (-plan.output_tokens_per_s if rate is None else 0.0), plan.num_devices, plan.latency_s


def _pools(found: Layouts, asked: ServingResult) -> _Pools:
    job, prices, groups = asked.job, found.prices, found.plans.attention_groups
    context = serving_context(serving_call(job, asked.recipe, 1), asked)
    one = asked.cluster.num_devices <= asked.cluster.domain_devices
    beside_s, moved_s = (
        crossing_s(found.plans, context, job.prompt_tokens, together=together) for together in (True, one)
    )
    inf = float("inf")
    latest = min(job.ttft_s or inf, job.latency_s or inf)
    slowest = np.minimum(job.tpot_s or inf, (job.latency_s or inf) / max(job.output.mean - 1, 1))

    def fast(running: FloatArray) -> BoolArray:
        return np.asarray(generated(prices, running)[1] <= slowest)

    running = last_held(found.places.astype(np.float64), fast)[:, None]
    rates = generated(prices, running)[0]
    none = ~fast(running)[:, 0]
    return _Pools(
        beside_s=beside_s,
        crossing_s=moved_s,
        read_per_s=groups * most_read(prices, latest - moved_s),
        running=np.where(none, 0.0, running[:, 0]),
        generated_per_s=np.where(none, 0.0, groups * rates[:, 0]),
        devices=replica_devices(found.plans),
    )


def _likely(pools: _Pools, total: int) -> list[tuple[int, int]]:
    """Pairs of a reading and a generating layout with the most requests per device, were replicas divisible."""
    with np.errstate(divide="ignore"):
        each = pools.devices / pools.read_per_s, pools.devices / pools.generated_per_s
    worth = 1 / (each[0][:, None] + each[1][None, :])
    fits = pools.devices[:, None] + pools.devices[None, :] <= total
    worth = np.where(fits, worth, 0.0)
    order = np.argsort(-worth, axis=None, kind="stable")[:_PAIRS]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, worth.shape), strict=True) if worth[i, j] > 0]


def _counts(
    pools: _Pools, reading: int, generating: int, cluster: ClusterSpec, rate: float | None
) -> tuple[int, int] | None:
    """Replicas of either: the fewest for a rate, else for the most requests on all devices; None if too many."""
    read, made = float(pools.read_per_s[reading]), float(pools.generated_per_s[generating])
    size, room = int(pools.devices[reading]), (cluster.num_devices, cluster.domain_devices)
    most_readers = int(most_replicas(pools.devices[reading], *room))

    def beside(readers: IntArray) -> IntArray:
        return most_beside(int(pools.devices[generating]), readers, size, *room)

    def enough(asked: float) -> tuple[int, int]:
        return int(np.ceil(asked / read - _ROUNDING)), int(np.ceil(asked / made - _ROUNDING))

    if rate is not None:
        counts = enough(rate)
        return counts if counts[0] <= most_readers and beside(np.asarray(counts[0])) >= counts[1] else None
    readers = np.arange(1, most_readers + 1)
    most = float(np.minimum(readers * read, beside(readers) * made).max())
    return enough(most) if most else None


def _plan(
    found: Layouts, pools: _Pools, asked: ServingResult, pair: tuple[int, int], counts: tuple[int, int]
) -> ApartPlan | None:
    """A pair in full; None where its latency is over the bound after all."""
    job, (reading, generating) = asked.job, pair
    most = min(counts[0] * pools.read_per_s[reading], counts[1] * pools.generated_per_s[generating])
    rate = float(most) if job.rate_per_s is None else job.rate_per_s
    readers, makers = (found.take(np.asarray([row])) for row in pair)
    read = np.asarray([rate / counts[0]]) / readers.plans.attention_groups
    made = np.asarray([rate / counts[1]]) / makers.plans.attention_groups
    running = running_at(makers.prices, made, np.asarray([pools.running[generating]]))
    tpot_s = float(generated(makers.prices, running[:, None])[1][0, 0])
    used = counts[0] * pools.devices[reading] + counts[1] * pools.devices[generating]
    moved_s = float((pools.beside_s if used <= asked.cluster.domain_devices else pools.crossing_s)[reading])
    ttft_s = float(first_token_s(readers.prices, read)[0]) + moved_s
    latency_s = ttft_s + (job.output.mean - 1) * tpot_s
    if latency_s > (job.latency_s or float("inf")):
        return None
    widths, basis = makers.prices.decode.nearest(running)
    beyond = {name: serving_log_stds(name, asked.model, burst=False) for name in ("ttft", "tpot")}
    return ApartPlan(
        reading=_part(readers.plans, counts[0], float((read * readers.prices.added_s)[0])),
        generating=_part(makers.plans, counts[1], float((running / makers.places)[0])),
        concurrency=float((running * makers.plans.attention_groups)[0]),
        crossing_s=moved_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        latency_s=latency_s,
        ttft_interval_s=interval(ttft_s, readers.prices.half_widths[:, 0], beyond["ttft"]),
        tpot_interval_s=interval(tpot_s, widths[:, 0], beyond["tpot"]),
        requests_per_s=rate,
        output_tokens_per_s=rate * job.output.mean,
        prompt_tokens_per_s=rate * job.prompt_tokens,
        basis=int(basis[0]),
    )


def _part(plans: PlanBatch, replicas: int, busy: float) -> PoolPart:
    plan = plans.plan(0)
    return PoolPart(
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        expert_parallel=plan.expert_parallel,
        replicas=replicas,
        busy=busy,
    )
