"""Layouts of a served model and steady states of deployments of them: what ``planner.serving_plans`` chooses from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.generation import GenerationMemory, state_element_bytes
from costmodels.kv_cache import kept_tokens
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.serving import (
    ServingPoints,
    ServingPrices,
    at_concurrency,
    at_rate,
    serving_prices,
)
from costmodels.serving_memory import cached_token_bytes, serving_memory
from costmodels.serving_percentiles import first_token_within, latency_within
from costmodels.serving_runs import run_first_token_within, run_points
from costmodels.speculation import Speculation
from costmodels.uncertainty import NORMAL_90
from planner.dataflow.call_costs import CallSetting, call_context
from planner.serving_job import ServingJob, percentile_name
from planner.serving_results import ServingMemory, ServingPlan, ServingResult
from profiles.model import MAX_SEQUENCE
from profiles.serving_widths import serving_log_stds
from profiles.stacks import find_stack

EIGHT_BITS = "fp8"  # of keys and values
STACK = "megatron-core"  # engines bring their own kernels; of a stack only what these leave open is read
_STEPS = 8  # numbers of requests at once per doubling
_BETWEEN = 16  # of them looked at at a time in search of the last within bounds
_EVERY_REPLICA = 64  # counts of replicas looked at one by one; beyond, evenly spread over their logarithm
_COLUMNS = (  # of ``Layouts``, one number each
    *("replicas", "places", "together", "room_bytes", "token_bytes", "cache_bytes", "longest_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """N layouts with what they rest on.

    Attributes:
        plans: One replica each; ``data_parallel`` counts its attention groups.
        replicas: (N,) the most there may be on the cluster.
        prices: Of one replica each.
        memory: Of one replica each.
        places: (N,) requests that fit an attention group of a replica at once, and the engine takes.
        together: (N,) the same of those that start together, where a run does: equal lengths are all long at once then.
        room_bytes: (N,) device memory the engine may use.
        token_bytes: (N,) of one token in the cache of the fullest rank.
        cache_bytes: (N,) that are left for the cache.
        longest_bytes: (N,) that the longest request takes there.
    """

    plans: PlanBatch
    replicas: IntArray
    prices: ServingPrices
    memory: GenerationMemory
    places: IntArray
    together: IntArray
    room_bytes: FloatArray
    token_bytes: FloatArray
    cache_bytes: FloatArray
    longest_bytes: FloatArray

    def take(self, rows: IntArray) -> "Layouts":
        """The selected layouts."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(
            self, plans=self.plans.take(rows), prices=self.prices.take(rows), memory=self.memory.take(rows), **columns
        )


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


def serving_call(job: ServingJob, precision: str, requests: int) -> ModelCall:
    """The requests as a call that generates."""
    return ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=requests,
        prompt_tokens=job.prompt_tokens,
        output=job.output,
        precision=precision,
    )


def serving_context(call: ModelCall, asked: ServingResult) -> CostContext:
    """Price lists of the cluster, and formats."""
    setting = CallSetting(
        cluster=asked.cluster,
        stack=find_stack(STACK),
        weights=asked.weights,
        eight_bit_cache=asked.kv_cache_dtype == EIGHT_BITS,
    )
    context = call_context(call, asked.model, setting)
    return replace(context, state_element_bytes=state_element_bytes(asked.model, context.job, asked.engine))


def _speculation(asked: ServingResult, call: ModelCall) -> Speculation | None:
    """What proposes tokens; draft models and heads are in 16 bits, those that the model was trained with as it is."""
    found = asked.speculation
    if found is None or found.draft is None:
        return None if found is None else found.tokens
    drafted = replace(asked, model=found.draft, weights=asked.weights if found.method == "mtp" else None)
    own = replace(call, precision=drafted.recipe)
    return replace(found.tokens, draft=serving_context(own, drafted), precision=drafted.recipe)


def layouts(plans: PlanBatch, replicas: IntArray, asked: ServingResult) -> Layouts:
    """Layouts, so many replicas each, with their prices; those that hold no request of the longest length no places."""
    job, cluster = asked.job, asked.cluster
    call = serving_call(job, asked.recipe, int(plans.micro_batch_size.max(initial=1)))
    context = serving_context(call, asked)
    engine = asked.engine.on_host(cluster.node.host_time_scale)
    speculation = _speculation(asked, call)
    memory, shared = serving_memory(
        plans, call, engine, context, cached_tokens=job.cached_tokens, speculation=speculation
    )
    room = engine.room_bytes(cluster.device, memory.weight_bytes, memory.beside_bytes)
    token_bytes = cached_token_bytes(plans, context, speculation)
    cache = np.maximum(room - memory.weight_bytes - memory.beside_bytes, 0.0)
    longest = token_bytes * kept_tokens(asked.model, job.max_model_len) + memory.state_bytes
    most = engine.max_sequences
    if speculation is not None and engine.sequences_within_tokens:  # a step takes all their tokens
        most = min(most, engine.prefill_tokens // speculation.verified)
    places = np.minimum(memory.most_running(room - shared, staggered=True), most)
    places = np.where(longest <= cache, places, 0)
    prices = serving_prices(
        plans,
        call,
        engine,
        context,
        cached_tokens=job.cached_tokens,
        most_running=int(places.max(initial=1)),
        speculation=speculation,
    )
    return Layouts(
        plans=plans,
        replicas=replicas,
        prices=prices,
        memory=memory,
        places=places,
        together=np.clip(
            memory.most_running(room - shared, staggered=not job.output.is_fixed), 1, np.maximum(places, 1)
        ),
        room_bytes=room,
        token_bytes=token_bytes,
        cache_bytes=cache,
        longest_bytes=longest,
    )


def deployments(found: Layouts, job: ServingJob, *, fixed: bool) -> Deployments:
    """Steady states of every layout, as asked: of a rate on growing numbers of replicas, else of requests at once.

    Args:
        found: Layouts with at least one place each.
        job: What is asked.
        fixed: Whether all replicas there are must be used.
    """
    if job.requests is not None:
        return _runs(found, job.requests, job.concurrency)
    groups = found.plans.attention_groups[:, None]
    most, places = found.replicas[:, None], (groups * found.places[:, None]).astype(np.float64)

    def deployed(points: ServingPoints, replicas: IntArray, held: BoolArray) -> Deployments:
        answered = points.rate_per_s * replicas * groups
        return Deployments(points=points, replicas=replicas, requests_per_s=answered, held=held)

    if job.rate_per_s is None:
        at_once = _numbers(found, job, places) if job.concurrency is None else np.full(places.shape, job.concurrency)
        points = at_concurrency(found.prices, np.minimum(at_once, places))
        return deployed(points, np.broadcast_to(most, at_once.shape), at_once <= places)
    rate, room = job.rate_per_s, found.places.astype(np.float64)
    replicas = most if fixed else np.minimum(_doubling(int(most.max()), every=_EVERY_REPLICA), most)
    while True:
        points = at_rate(found.prices, rate / (replicas * groups), room)
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


def _runs(found: Layouts, requests: int, concurrency: int | None) -> Deployments:
    """A run of every layout on all replicas there are, who share its requests; all at once, or so many in each.

    Attention groups share those of their replica; of fewer requests than groups one each.
    """
    each, at_once = _parts_of_run(found, requests, concurrency)
    replicas = found.replicas
    points = run_points(found.prices, each, at_once, found.together.astype(np.float64))
    return Deployments(
        points=points,
        replicas=replicas[:, None],
        requests_per_s=points.rate_per_s * (requests / each)[:, None],
        held=np.ones(points.rate_per_s.shape, dtype=np.bool_),
    )


def _parts_of_run(found: Layouts, requests: int, concurrency: int | None) -> tuple[FloatArray, FloatArray]:
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


def within_bounds(found: Layouts, points: ServingPoints, job: ServingJob) -> BoolArray:
    """(N, G) whether deployments are as fast as asked."""
    kept = np.ones(points.rate_per_s.shape, dtype=np.bool_)
    for name, bound in job.bounds.items():
        kept &= bounded(found, points, job, name) <= bound
    return kept


def bounded(found: Layouts, points: ServingPoints, job: ServingJob, name: str) -> FloatArray:
    """(N, G) seconds that a bound of this name is about; of a percentile infinite where nothing is known of it."""
    if job.percentile is not None and not job.is_mean(name):
        return _WITHIN[name](points, found.prices, found.places.astype(np.float64), job.percentile / 100)
    return {"ttft_s": points.first_token_s, "tpot_s": points.token_s, "latency_s": points.latency_s}[name]


_WITHIN = {"ttft_s": first_token_within, "latency_s": latency_within}


def _percentiles(
    found: Layouts, point: ServingPoints, job: ServingJob, row: int, name: str
) -> Mapping[str, float] | None:
    """Those of one deployment's times that are told, by name; None where they are not known."""
    rows = np.asarray([row])
    shares, prices = np.asarray([job.percentiles]) / 100, found.prices.take(rows)
    if job.rate_per_s is not None:
        within_s = _WITHIN[name](point, prices, found.places[rows].astype(np.float64), shares)[0]
    elif job.requests is not None and name == "ttft_s":
        each, at_once = (part[rows] for part in _parts_of_run(found, job.requests, job.concurrency))
        places = found.together[rows].astype(np.float64)
        within_s = run_first_token_within(prices, each, at_once, places, shares[0])[0]
    else:
        return None
    if not np.isfinite(within_s).all():
        return None
    return dict(zip(map(percentile_name, job.percentiles), within_s.tolist(), strict=True))


def deployment(found: Layouts, there: Deployments, asked: ServingResult, row: int, place: int) -> ServingPlan:
    """One of the deployments in full."""
    plan, job, points = found.plans.plan(row), asked.job, there.points
    point, reading = points.at(row, place), found.prices.half_widths[:, row]
    beyond = {name: serving_log_stds(name, asked.model, burst=job.is_burst) for name in ("ttft", "tpot", "tokens")}
    widths, basis = found.prices.decode.take(np.asarray([row])).nearest(points.generating[row, place : place + 1])
    groups, rate = int(found.plans.attention_groups[row]), float(there.requests_per_s[row, place])
    replicas, latency_s = int(there.replicas[row, place]), float(points.latency_s[row, place])
    ttft_s, tpot_s = float(points.first_token_s[row, place]), float(points.token_s[row, place])
    cache, each = float(found.cache_bytes[row]), float(found.token_bytes[row])
    state = float(found.memory.state_bytes[row])
    alone = cache - state  # with one request in it
    working = float(found.memory.beside_bytes[row]) - found.memory.fixed_bytes
    windowed = asked.model.sliding_window and asked.model.windowed_layers
    return ServingPlan(
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        expert_parallel=plan.expert_parallel,
        replicas=replicas,
        concurrency=round(rate * latency_s / replicas, 6),  # Little's law
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        latency_s=latency_s,
        ttft_percentiles_s=_percentiles(found, point, job, row, "ttft_s"),
        latency_percentiles_s=_percentiles(found, point, job, row, "latency_s"),
        ttft_interval_s=interval(ttft_s, reading, beyond["ttft"]),
        tpot_interval_s=_token_interval(found, point, job, row, widths[:, 0], beyond["tpot"]),
        tokens_interval_per_s=None  # slower kernels, fewer tokens: the ends change places
        if job.rate_per_s is not None
        else interval(rate * job.output.mean, widths[::-1, 0], beyond["tokens"]),
        priced_ttft_s=interval(ttft_s, reading, (0.0, 0.0)),
        priced_tpot_s=_token_interval(found, point, job, row, widths[:, 0], (0.0, 0.0)),
        requests_per_s=rate,
        output_tokens_per_s=rate * job.output.mean,
        duration_s=None if job.requests is None else job.requests / rate,
        most_requests=groups * int(found.places[row]),
        most_longest=groups * int(min(cache // found.longest_bytes[row], found.places[row])),
        longest_tokens=None if windowed else min(int(alone // each), asked.model.max_sequence_length or MAX_SEQUENCE),
        cache_tokens=groups * max(cache - state * int(found.places[row]), 0.0) / each,
        memory=ServingMemory(
            weights=float(found.memory.weight_bytes[row]),
            cache=cache,
            activations=working,
            fixed=found.memory.fixed_bytes,
            left_to_others=asked.cluster.device.usable_memory_bytes - float(found.room_bytes[row]),
        ),
        basis=int(basis[0]),
    )


def _token_interval(
    found: Layouts,
    point: ServingPoints,
    job: ServingJob,
    row: int,
    half_widths: FloatArray,
    log_stds: tuple[float, float],
) -> tuple[float, float]:
    """90 % interval of the time per output token of one deployment; arguments as of ``interval``.

    At a rate all times that are so many times as long also make the engine so much busier: a token then takes as much
    longer as at that many times the rate, up to what it takes with every place taken.
    """
    middle_s = float(point.token_s[0, 0])
    ends = interval(middle_s, half_widths, log_stds)
    if job.rate_per_s is None:
        return ends
    scale, rows = np.asarray([ends]) / middle_s, np.asarray([row])
    slower = at_rate(found.prices.take(rows), point.rate_per_s * scale, found.places[rows].astype(np.float64))
    low, high = (scale * slower.token_s)[0]
    return float(low), float(high)


def interval(middle_s: float, half_widths: FloatArray, log_stds: tuple[float, float]) -> tuple[float, float]:
    """90 % interval of a time.

    Args:
        middle_s: The time.
        half_widths: (2,) of its logarithm, as prices of kernels and links leave it open.
        log_stds: By which servers of publishers differ besides, below and above (``profiles.serving_widths``).
    """
    low, high = np.hypot(half_widths, NORMAL_90 * np.asarray(log_stds))
    return middle_s * float(np.exp(-low)), middle_s * float(np.exp(high))
