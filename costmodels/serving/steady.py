"""Serving in its steady state: how long requests wait and run, at so many at once or so many a second.

An engine with continuous batching goes from step to step. In each it makes one token for every running request and
reads prompts with what is left of its budget of tokens. Symbols: R requests that generate, X requests a second that
come and go, p tokens of a prompt that are read, n tokens generated, B tokens a step may take, s(R) seconds of a step
that reads no prompt, w seconds that reading one prompt adds to steps.

    step        tau = s(R) + X tau w, so that tau = s(R) / (1 - X w): what is read makes all others wait
    generating  R = X (n - 1) tau: the first token comes with the prompt
    first token = rest of the running step + prompts before one's own + one's own + others in the step that ends it
    latency     = first token + (n - 1) tau
    at once     = R + X first token (Little's law)

Given R the first two give X = R / ((n - 1) s(R) + R w); R is found from what is asked by bisection. Prompts are read in
the order they come. The time until one's own turn is that of a queue with random arrivals and equal service, X S^2 /
2 (1 - X S) with S = w + s(R) p / B (Pollaczek-Khinchine, M/D/1): no more than B tokens go into a step. First tokens
come when their step ends, with the prompts of those that arrived during the same step before, X tau of them or as many
as there is room for beside one's own, B / p - 1. In an engine that reads first (``EngineSpec.reads_first``) steps that
read make no tokens: S = w, one's own takes no s(R), and what is met is s(R) or, a share X w of the time, w. Where room
in the cache bounds the requests at once, they wait for a place besides: Sakasegawa's approximation of a queue with
several servers (Annals of the Institute of Statistical Mathematics 29, 1977). ``costmodels.serving.percentiles`` has
how these times spread, ``costmodels.serving.runs`` runs that start and end.

Where attention groups share experts, their steps are one: all wait for the group that reads most prompts, and each
reads a Poisson number of them, l = X tau on average. What experts multiply is of all groups together, and waits for
none. So tau = s(R) + a max(l_1 .. l_G) + (w - a) l, with a the part of w outside experts and the largest of G Poisson
numbers on average.

Where drafts are verified a step makes v tokens of each request (``costmodels.serving.speculation``): s is then a step
over v, the time of a token, and whoever arrives waits for whole steps, of v tau.

Time per output token (TPOT) is tau: latency less first token, over n - 1, as vLLM's and NVIDIA's load generators count.

Source:
    Chunked prefill: arXiv:2308.16369 and vLLM's optimization guide; steps that mix reading and generating:
    arXiv:2403.02310. Little's law: Operations Research 9, 1961.

Left out on purpose: what a server takes before and after the engine (HTTP, tokenisers), bursts.
Prompts and generation on replicas of their own are in ``costmodels.serving.apart``, requests that end with their
prompt in ``costmodels.serving.reading``.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.lengths import OutputLengths
from costmodels.model_calls import ModelCall
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.serving.decode import DecodePrices, decode_prices
from costmodels.serving.generation import engine_context, prompt_job
from costmodels.serving.prompts import ReadingSteps, of_one, reading_steps, rest_read
from costmodels.serving.queues import most_of, queue_s
from costmodels.serving.speculation import Speculation
from profiles.engines import EngineSpec

_KEY_POINTS = 4  # cache lengths priced
_FEWEST = 1e-12  # requests generating
_HALVINGS = 40  # of the interval that their logarithm lies in
_PARTS, _FEW = 16, 256  # it is divided into, where so few are sought at once
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPrices:
    """What serving rests on, for N layouts of one replica each.

    Attributes:
        plans: The layouts.
        decode: Steps that read no prompt.
        output: Tokens a request generates.
        keys: Tokens in the cache of a running request, on average.
        read_tokens: Tokens of a prompt that are read: all but those found in the cache.
        step_tokens: Most tokens of a step.
        alone_s: (N,) reading one prompt with nothing else running, and its first token.
        added_s: (N,) what reading one prompt, in every attention group, adds to steps that run anyway.
        routed: (N,) share of that which is of routed experts, what reaches them and comes back.
        half_widths: (2, N) low and high half of the 90 % interval of the log time of reading.
        reading: Steps that read nothing but prompts; None where requests generate beside them.
    """

    plans: PlanBatch
    decode: DecodePrices
    output: OutputLengths
    keys: float
    read_tokens: int
    step_tokens: int
    alone_s: FloatArray
    added_s: FloatArray
    routed: FloatArray
    half_widths: FloatArray
    reading: ReadingSteps | None = None

    def take(self, rows: IntArray) -> "ServingPrices":
        """The same of the selected layouts."""
        return replace(
            self,
            plans=self.plans.take(rows),
            decode=self.decode.take(rows),
            alone_s=self.alone_s[rows],
            added_s=self.added_s[rows],
            routed=self.routed[rows],
            half_widths=self.half_widths[:, rows],
            reading=None if self.reading is None else self.reading.take(rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPoints:
    """Steady states of N replicas, G each, or of one of their attention groups; all (N, G).

    Attributes:
        generating: Requests past their first token.
        rate_per_s: Requests that come and go in a second.
        first_token_s: Time to the first token (TTFT): ``own_s``, ``turn_s``, and of a rate waiting for a place.
        token_s: Time per output token (TPOT).
        latency_s: From arrival to the last token.
        at_once: Requests in the engine: those that generate and those whose prompt is waiting or being read.
        own_s: Of the first token: reading one's own prompt.
        turn_s: Waiting for the running step, for prompts before one's own, and for those of the same step.
        met_s: Of a step that one which arrives finds, before prompts make its length vary.
        held_up_s: Each prompt holds up those that come by so much: its reading, and its share of a step (S).
    """

    generating: FloatArray
    rate_per_s: FloatArray
    first_token_s: FloatArray
    token_s: FloatArray
    latency_s: FloatArray
    at_once: FloatArray
    own_s: FloatArray
    turn_s: FloatArray
    met_s: FloatArray
    held_up_s: FloatArray

    def at(self, row: int, place: int) -> "ServingPoints":
        """One of the states, (1, 1)."""
        return ServingPoints(
            **{item.name: getattr(self, item.name)[row : row + 1, place : place + 1] for item in fields(ServingPoints)}
        )


def serving_prices(
    plans: PlanBatch,
    call: ModelCall,
    engine: EngineSpec,
    context: CostContext,
    *,
    cached_tokens: int,
    most_running: int,
    speculation: Speculation | None = None,
) -> ServingPrices:
    """Price steps and prompts of every layout.

    Args:
        plans: N layouts, one replica each.
        call: Its prompt and output; the prompt is in the cache whole once it has been read. With a value head no token
            is drawn: embeddings, scores, classes.
        engine: On the host it runs on.
        context: Of inference; the engine's own is derived from it.
        cached_tokens: Of a prompt, found in the cache.
        most_running: Most requests to be asked about.
        speculation: What proposes tokens; None where steps make one token of each request.
    """
    output = _output(call)
    keys = np.geomspace(call.prompt_tokens, call.prompt_tokens + output.most, _KEY_POINTS)

    def steps(asked: ModelCall, where: CostContext, tokens: int) -> DecodePrices:
        step = engine_context(where, engine, replace(prompt_job(asked), sequence_length=tokens))
        return decode_prices(plans, step, engine, most_running=most_running, keys=[float(key) for key in keys])

    decode = replace(steps(call, context, 1 if speculation is None else speculation.verified), speculation=speculation)
    reading = rest_read(plans, call, engine, context, cached_tokens)
    alone_s, added_s = reading.alone_s, reading.added_s
    if speculation is not None and speculation.draft is not None:
        own = replace(call, precision=speculation.precision)
        drafted = rest_read(plans, own, engine, speculation.draft, cached_tokens)
        alone_s, added_s = alone_s + drafted.alone_s, added_s + drafted.added_s
        decode = replace(decode, drafting=steps(own, speculation.draft, 1))
    first_s = (0.0 if call.value_head else decode.head_s[decode.layout, 0]) + engine.step_overhead_s
    sampled_s = np.zeros_like if call.value_head else decode.sampled_s
    return ServingPrices(
        plans=plans,
        decode=decode,
        output=output,
        keys=call.prompt_tokens + output.mean_context,
        read_tokens=call.prompt_tokens - cached_tokens,
        step_tokens=engine.prefill_tokens,
        alone_s=alone_s + first_s,
        added_s=added_s,
        routed=reading.routed,
        half_widths=reading.half_widths,
        reading=reading_steps(plans, call, engine, context, cached_tokens, most_running, sampled_s)
        if output.most == 1
        else None,
    )


def _output(call: ModelCall) -> OutputLengths:
    if call.output is None:
        raise ValueError("requests generate something")
    return call.output


def steady_states(prices: ServingPrices, generating: FloatArray, met: FloatArray | float = 1.0) -> ServingPoints:
    """Steady states with (N, G) requests generating; those whose prompts could not all be read are infinitely slow.

    Args:
        prices: N layouts.
        generating: (N, G) requests past their first token, at least 0.
        met: (N, G) share of the requests in the engine that one of them meets there: all but its own.
    """
    tokens, groups, routed = prices.output.mean - 1, prices.plans.attention_groups[:, None], prices.routed[:, None]
    step_s = prices.decode.step_s(np.maximum(generating, 1.0), np.asarray([prices.keys]))
    made = prices.decode.tokens_per_step
    added_s, alone_s = prices.added_s[:, None], prices.alone_s[:, None]
    each_step = generating / tokens  # prompts of a group, in the time of a token
    others = each_step * met
    token_s = step_s / made + added_s * (routed * others + (1 - routed) * most_of(groups, made * others) / made)
    rate = each_step / token_s
    busy = np.minimum(generating * groups, 1.0) * met  # chance of a step that one which arrives has to wait for
    alone_added_s = added_s * of_one(routed, groups)
    share = prices.read_tokens / prices.step_tokens
    apart = prices.decode.engine.reads_first
    with_s = 0.0 * step_s if apart else busy * step_s  # decoding in steps that read
    held_up_s = alone_added_s + with_s * share
    load = rate * held_up_s * met
    waiting_s = queue_s(load, held_up_s)
    met_s = busy * np.where(apart, (1 - load) * step_s + load * alone_added_s, made * token_s)
    beside = np.minimum(met_s * rate * met, max(1 / share - 1, 0.0))  # prompts in the step of one's own
    own_s = np.maximum(alone_s, with_s * np.ceil(share) + alone_added_s)
    turn_s = met_s / 2 + waiting_s + beside * alone_added_s
    first_s = turn_s + own_s
    return ServingPoints(
        generating=generating,
        rate_per_s=rate,
        first_token_s=first_s,
        token_s=token_s,
        latency_s=first_s + tokens * token_s,
        at_once=generating + rate * first_s,
        own_s=own_s,
        turn_s=turn_s,
        met_s=met_s,
        held_up_s=held_up_s,
    )


def replica_devices(plans: PlanBatch) -> IntArray:
    """(N,) devices of one replica, all its attention groups."""
    return plans.tensor_parallel * plans.pipeline_parallel * plans.attention_groups


def most_generating(most: FloatArray, beyond: Callable[[FloatArray], BoolArray]) -> FloatArray:
    """(N, G) most requests generating, up to ``most`` (N, G), that are not ``beyond`` something that rises with them.

    ``beyond`` is asked of (N, G x K) at once, K of each in turn: of few, a call costs much the same for many.
    """
    parts = _PARTS if most.size <= _FEW else 2
    inner = np.arange(1, parts) / parts
    low, high = np.full(most.shape, _FEWEST), most.astype(np.float64)
    for _ in range(_HALVINGS // int(np.log2(parts))):
        tried = low[..., None] * (high / low)[..., None] ** inner
        over = beyond(tried.reshape(len(most), -1)).reshape(tried.shape)
        ends = np.concatenate([low[..., None], tried, high[..., None]], axis=-1)
        first = np.where(over.any(axis=-1), over.argmax(axis=-1), parts - 1)[..., None]
        low, high = (np.take_along_axis(ends, first + end, axis=-1)[..., 0] for end in (0, 1))
    return low


def at_concurrency(prices: ServingPrices, at_once: FloatArray) -> ServingPoints:
    """Steady states with (N, G) requests in a replica at any time, a new one for each that ends (a closed loop).

    One that arrives meets all the others, as if they were alone (the arrival theorem, Reiser and Lavenberg, Journal of
    the ACM 27, 1980). Attention groups have equal shares of them.
    """
    each = at_once / prices.plans.attention_groups[:, None]
    return _solved(prices, each, each, lambda points: points.at_once, met=1 - 1 / at_once)


def at_rate(prices: ServingPrices, rate_per_s: FloatArray, places: FloatArray) -> ServingPoints:
    """Steady states with (N, G) requests a second arriving at random; infinitely slow where they are too many.

    Args:
        prices: N layouts.
        rate_per_s: Per attention group.
        places: (N,) requests that fit one at once.
    """
    held = np.broadcast_to(places[:, None], rate_per_s.shape)
    points = _solved(prices, rate_per_s, held, lambda points: points.rate_per_s)
    load = points.at_once / held
    stable = (points.rate_per_s >= rate_per_s * (1 - _ROUNDING)) & (load < 1)
    # Sakasegawa: as many servers as places, each busy with a request from its turn to its last token.
    exponent = np.sqrt(2 * (held + 1)) - 1
    spread = (1 + prices.output.variation**2) / 2
    busy = np.where(stable, load, 0.0)
    waiting_s = np.where(stable, spread * points.latency_s * busy**exponent / (held * (1 - busy)), np.inf)
    return replace(
        points,
        first_token_s=points.first_token_s + waiting_s,
        latency_s=points.latency_s + waiting_s,
        at_once=np.where(stable, points.at_once + points.rate_per_s * np.where(stable, waiting_s, 0.0), np.inf),
    )


def most_per_s(prices: ServingPrices, places: FloatArray) -> FloatArray:
    """(N,) requests a second, arriving at random, at which so many places (N,) are just all taken."""
    most = places[:, None]
    return np.asarray(_solved(prices, most, most, lambda points: points.at_once).rate_per_s[:, 0])


def _solved(
    prices: ServingPrices,
    wanted: FloatArray,
    most: FloatArray,
    of: Callable[[ServingPoints], FloatArray],
    met: FloatArray | float = 1.0,
) -> ServingPoints:
    """The steady states in which a figure that rises with the requests generating has the wanted value.

    Args:
        prices: N layouts.
        wanted: (N, G) values.
        most: (N, G) requests that may be in the engine.
        of: The figure.
        met: As of ``steady_states``.
    """
    most, met = np.broadcast_to(most, wanted.shape), np.broadcast_to(met, wanted.shape)

    def beyond(generating: FloatArray) -> BoolArray:
        each = generating.shape[1] // wanted.shape[1]
        want, fit, meets = (np.repeat(values, each, axis=1) for values in (wanted, most, met))
        points = steady_states(prices, generating, meets)
        return np.asarray((of(points) > want) | (points.at_once > fit))

    return steady_states(prices, most_generating(most, beyond), met)
