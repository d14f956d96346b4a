"""An engine with continuous batching, played out step by step: what formulas of serving are held against.

In each step every request that generates makes a token, and prompts are read in the order they came, in what is left
of the step's tokens, a part of a prompt if need be. A first token comes at the end of the step that reads its prompt's
last.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from costmodels.lengths import OutputLengths
from costmodels.plan import FloatArray
from costmodels.serving.steady import ServingPrices


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One replica.

    Attributes:
        step_s: Seconds of a step that reads nothing, by the requests that generate, from 0.
        added_s: Seconds that reading one prompt adds.
        prompt_tokens: Of every request.
        step_tokens: Most tokens of a step.
        places: Most requests that generate or are read.
        reads_first: Whether nobody generates while prompts are waiting for a place that is free.
    """

    step_s: Callable[[int], float]
    added_s: float
    prompt_tokens: int
    step_tokens: int
    places: int = 1 << 30
    reads_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What requests went through, in the order they were sent; all (N,), in seconds."""

    sent_s: FloatArray
    first_s: FloatArray
    ended_s: FloatArray

    @property
    def ttft_s(self) -> FloatArray:
        """Times to the first token."""
        return self.first_s - self.sent_s

    @property
    def latency_s(self) -> FloatArray:
        """Times to the last."""
        return self.ended_s - self.sent_s


def engine_of(prices: ServingPrices, places: int) -> Engine:
    """The engine that the prices of one layout are of."""
    running = np.arange(places + 1.0)[None, :]
    steps_s = prices.decode.step_s(np.maximum(running, 1), np.asarray([prices.keys]))[0]
    steps_s[0] = max(prices.alone_s[0] - prices.added_s[0], 0.0)
    return Engine(
        step_s=lambda count: float(steps_s[count]),
        added_s=float(prices.added_s[0]),
        prompt_tokens=prices.read_tokens,
        step_tokens=prices.step_tokens,
        places=places,
        reads_first=prices.decode.engine.reads_first,
    )


def drawn(output: OutputLengths, count: int) -> list[int]:
    """Lengths of so many requests."""
    if output.is_fixed:
        return [round(output.mean)] * count
    shares = -np.random.default_rng(8).random(count)
    return np.maximum(np.interp(shares, -np.array(output.longer), output.tokens).round(), 1).astype(int).tolist()


def play(engine: Engine, lengths: Sequence[int], sent_s: Sequence[float] | None = None, at_once: int = 0) -> Played:
    """Serve requests of so many output tokens, sent at given times, or so many at once: one for each that ends."""
    count = len(lengths)
    sent = np.zeros(count) if sent_s is None else np.asarray(sent_s, dtype=np.float64)
    first, ended = np.zeros(count), np.zeros(count)
    waiting: deque[tuple[int, int]] = deque()  # requests, and tokens of their prompts that are left
    running: list[tuple[int, int]] = []  # steps after which they end, and requests
    now, step, coming, done = 0.0, 0, 0, 0
    while done < count:
        most = count if at_once == 0 else min(count, done + at_once)
        while coming < most and sent[coming] <= now:
            sent[coming] = now if sent_s is None else sent[coming]
            waiting.append((coming, engine.prompt_tokens))
            coming += 1
        if not waiting and not running:
            now = float(sent[coming])
            continue
        tokens, read = _read(engine, waiting, len(running))
        apart = engine.reads_first and tokens > 0
        now += engine.step_s(0 if apart else len(running)) + tokens / engine.prompt_tokens * engine.added_s
        step += not apart
        while running and running[0][0] <= step:
            ended[heappop(running)[1]] = now
            done += 1
        for one in read:
            first[one] = ended[one] = now
            done += lengths[one] == 1
            if lengths[one] > 1:
                heappush(running, (step + lengths[one] - 1, one))
    return Played(sent_s=sent, first_s=first, ended_s=ended)


def _read(engine: Engine, waiting: deque[tuple[int, int]], running: int) -> tuple[int, list[int]]:
    """Tokens of prompts that a step reads, and the requests whose prompts end with it."""
    budget, read = engine.step_tokens - (0 if engine.reads_first else running), []
    tokens = 0
    while waiting and tokens < budget and running + len(read) < engine.places:
        one, left = waiting.popleft()
        part = min(left, budget - tokens)
        tokens += part
        if part < left:
            waiting.appendleft((one, left - part))
        else:
            read.append(one)
    return tokens, read
