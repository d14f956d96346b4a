"""Prompts read and tokens generated on replicas of their own, as engines with disaggregated serving do.

Reading replicas take prompts in the order they come; the keys and values then cross to a generating replica, whose
steps read no prompt. With S seconds for a prompt in a steady flow of them, x of them a second on one attention group,
and s(R) seconds of a step for R requests:

    first token = one's own prompt alone + x S^2 / 2 (1 - x S) + the crossing    (Pollaczek-Khinchine, M/D/1)
    token       = s(R) over the tokens a step makes, and R / ((n - 1) s(R)) requests come and go in a second

Source:
    The arrangement: arXiv:2401.09670 (DistServe) and arXiv:2311.18677 (Splitwise). The first token is shown when the
    generating replica has the cache, as vLLM's and SGLang's routers do.

Left out on purpose: several requests' caches that cross at once, and a cache that crosses while it is computed.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.kv_cache import bytes_per_cached_token, bytes_per_sequence, kept_tokens
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.transfers import price_collectives
from costmodels.plan import FloatArray, PlanBatch
from costmodels.serving.queues import queue_s
from costmodels.serving.steady import ServingPrices, most_generating
from profiles.hardware import MAX_DEVICES

BUSIEST = 0.9  # share of the time that groups read, beyond which waiting grows without end


def crossing_s(plans: PlanBatch, context: CostContext, tokens: int, *, together: bool) -> FloatArray:
    """(N,) seconds in which the cache of so many tokens crosses to another replica, every rank sending its own.

    Args:
        plans: Layouts that have read them.
        context: Model, cluster and format of the cache.
        tokens: Of a prompt.
        together: Whether all replicas share a scale-up domain. A router hands a prompt to any that generates, so that
            of several domains' replicas one in another is as likely.
    """
    size = bytes_per_cached_token(plans, context.model, context.cache_element_bytes) * kept_tokens(
        plans, context.model, tokens
    )
    element, number = context.sequence_element_bytes, context.state_element_bytes
    size = size + bytes_per_sequence(plans, context.model, element, number)
    priced = price_collectives(
        context,
        op=np.full(len(plans), int(CollectiveOp.SEND_RECV), dtype=np.int64),
        size_bytes=size,
        group=np.full(len(plans), 2, dtype=np.int64),
        stride=np.full(len(plans), 1 if together else MAX_DEVICES, dtype=np.int64),
    )
    return priced.time_s


def first_token_s(prices: ServingPrices, rate_per_s: FloatArray) -> FloatArray:
    """(N,) mean seconds until a prompt has been read; infinite where more come than are read.

    Args:
        prices: N layouts.
        rate_per_s: (N,) prompts a second of one attention group.
    """
    return np.asarray(prices.alone_s + queue_s(rate_per_s * prices.added_s, prices.added_s))


def most_read(prices: ServingPrices, within_s: FloatArray) -> FloatArray:
    """(N,) prompts a second that one attention group reads, each within so many (N,) seconds on average; 0 for none."""
    spare = np.maximum(within_s - prices.alone_s, 0.0)
    with np.errstate(divide="ignore"):
        load = 1 / (1 + prices.added_s / (2 * spare))
    return np.asarray(np.minimum(load, BUSIEST) / prices.added_s)


def generated(prices: ServingPrices, running: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(N, G) requests a second that come and go where so many (N, G) run in an attention group, and seconds a token."""
    token_s = prices.decode.token_s(np.maximum(running, 1.0), np.asarray([prices.keys]))
    return running / ((prices.output.mean - 1) * token_s), token_s


def running_at(prices: ServingPrices, rate_per_s: FloatArray, most: FloatArray) -> FloatArray:
    """(N,) requests that run in one attention group where so many (N,) a second come and go, ``most`` (N,) at most."""
    wanted = rate_per_s[:, None]
    return most_generating(most[:, None], lambda running: generated(prices, running)[0] > wanted)[:, 0]
