"""Layouts of a served model, what they rest on, and whether their states are as fast as asked."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.kv_cache import kept_tokens
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.serving.generation import GenerationMemory, state_element_bytes
from costmodels.serving.memory import cached_token_bytes, serving_memory
from costmodels.serving.percentiles import first_token_within, latency_within
from costmodels.serving.reading import read_within
from costmodels.serving.speculation import Speculation
from costmodels.serving.steady import ServingPoints, ServingPrices, serving_prices
from planner.dataflow.call_costs import CallSetting, call_context
from planner.deployments.job import ServingJob
from planner.deployments.results import ServingResult
from profiles.stacks import find_stack

EIGHT_BITS = "fp8"  # of keys and values
STACK = "megatron-core"  # engines bring their own kernels; of a stack only what these leave open is read
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


def serving_call(job: ServingJob, precision: str, requests: int) -> ModelCall:
    """The requests as a call that generates."""
    return ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=requests,
        prompt_tokens=job.prompt_tokens,
        output=job.output,
        precision=precision,
        value_head=job.pools,
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
        plans,
        call,
        engine,
        context,
        cached_tokens=job.cached_tokens,
        idle_head=asked.idle_head,
        speculation=speculation,
    )
    room = engine.room_bytes(cluster.device, memory.weight_bytes, memory.beside_bytes)
    token_bytes = cached_token_bytes(plans, context, speculation)
    cache = np.maximum(room - memory.weight_bytes - memory.beside_bytes, 0.0)
    own_tokens = kept_tokens(plans, asked.model, job.max_model_len - job.cached_tokens)
    longest = token_bytes * own_tokens + memory.state_bytes + shared
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


def within_bounds(found: Layouts, points: ServingPoints, job: ServingJob) -> BoolArray:
    """(N, G) whether deployments are as fast as asked."""
    kept = np.ones(points.rate_per_s.shape, dtype=np.bool_)
    for name, bound in job.bounds.items():
        kept &= bounded(found, points, job, name) <= bound
    return kept


def bounded(found: Layouts, points: ServingPoints, job: ServingJob, name: str) -> FloatArray:
    """(N, G) seconds that a bound of this name is about; of a percentile infinite where nothing is known of it."""
    if job.percentile is not None and not job.is_mean(name):
        return within_s(found, points, job, name, job.percentile / 100)
    return {"ttft_s": points.first_token_s, "tpot_s": points.token_s, "latency_s": points.latency_s}[name]


def within_s(
    found: Layouts, points: ServingPoints, job: ServingJob, name: str, share: FloatArray | float
) -> FloatArray:
    """(N, G) seconds in which so large a share of requests that arrive at random has its first token, or has ended."""
    of = read_within if job.ends_with_prompt else {"ttft_s": first_token_within, "latency_s": latency_within}[name]
    return of(points, found.prices, found.places.astype(np.float64), share)
