"""What is asked of a deployment: requests, how many of them, and how fast they shall be answered."""

from dataclasses import dataclass, replace
from typing import Any

from costmodels.lengths import OutputLengths, fixed_length
from costmodels.serving.percentiles import LEAST_SHARE, LEAST_VARIATION, MOST_SHARE, lengths_tell
from planner.dataflow.length_text import LengthInput, parse_lengths, parse_prompt
from profiles.engines import EngineSpec, load_engines
from profiles.errors import SpecError, did_you_mean, shown
from profiles.hardware import DeviceSpec
from profiles.model import MAX_SEQUENCE
from profiles.scalars import plain, whole_number

MOST_RATE_PER_S = 1e7
_LEAST_PERCENT = 5  # below, what should be a share is no percentage either
LEAST = 1e-9  # of rates and seconds: what is smaller means nothing
MOST_REQUESTS = 1 << 24
MOST_RUNNING = 1 << 20
MOST_SECONDS = 86_400.0
BOUNDS = {"ttft_s": "time to first token", "tpot_s": "time per output token", "latency_s": "latency of a request"}
FEWEST_BURST = 8  # requests
PERCENTILES = (50.0, 90.0, 99.0)  # that are always told
OF_PERCENTILES = ("ttft_s", "latency_s")  # bounds that may be about one


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingJob:
    """Requests to serve.

    Attributes:
        prompt_tokens: Tokens of a prompt.
        output: Tokens generated per request; one where none is.
        pools: Whether none is: what the layers make of the prompt is the answer (an embedding, a score, a class).
        cached_tokens: Of a prompt, shared by all requests and found in the cache.
        rate_per_s: Requests a second of the whole deployment, arriving at random; None when not said.
        concurrency: Requests in every replica at any time, or in a run the most; None when not said.
        requests: Of a run, in all: its start and its end are priced, not its steady state; None for the latter. Without
            a concurrency all are there at once.
        ttft_s: Longest time to the first token, on average or at a percentile; None for any.
        tpot_s: Longest mean time per output token after the first; None for any.
        latency_s: Longest time from arrival to the last token, on average or at a percentile; None for any.
        percentile: Of the requests, so many have to keep ``ttft_s`` and ``latency_s``; None where they are means.
        max_model_len: Tokens of the longest request that has to fit.
    """

    prompt_tokens: int
    output: OutputLengths
    pools: bool
    cached_tokens: int
    rate_per_s: float | None = None
    concurrency: int | None = None
    requests: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None
    percentile: float | None = None
    max_model_len: int = 0

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that were given, by name."""
        found = {name: getattr(self, name) for name in BOUNDS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def ends_with_prompt(self) -> bool:
        """Whether no request generates a token after the first, or any at all."""
        return self.output.most == 1

    @property
    def output_tokens(self) -> float:
        """Tokens generated per request, on average."""
        return 0.0 if self.pools else self.output.mean

    @property
    def longest_output_tokens(self) -> float:
        """Tokens generated for the longest request."""
        return 0.0 if self.pools else self.output.most

    @property
    def arrives_at_random(self) -> bool:
        """Whether requests do: at a rate, or, where they end with their prompt, at the highest there may be."""
        return self.rate_per_s is not None or (
            self.ends_with_prompt and self.concurrency is None and self.requests is None
        )

    @property
    def is_burst(self) -> bool:
        """Whether it is a run with all requests there from the start, as many as published ones had at least."""
        return self.concurrency is None and (self.requests or 0) >= FEWEST_BURST

    @property
    def percentiles(self) -> tuple[float, ...]:
        """Percentiles that are told: those that always are, and the one asked for."""
        return tuple(sorted({*PERCENTILES, *(() if self.percentile is None else (self.percentile,))}))

    def is_mean(self, name: str) -> bool:
        """Whether the bound of this name is about the mean."""
        return self.percentile is None or name not in OF_PERCENTILES


def serving_job(
    *,
    prompt: Any,
    generate: LengthInput,
    prefix: Any = 0,
    rate_per_s: Any = None,
    concurrency: Any = None,
    requests: Any = None,
    ttft_s: Any = None,
    tpot_s: Any = None,
    latency_s: Any = None,
    percentile: Any = None,
    max_model_len: Any = None,
) -> ServingJob:
    """Requests as a caller writes them: ``generate`` 1 where they end with the first token, 0 where none is drawn.

    Raises:
        SpecError: If a number is none, or out of bounds, or they contradict each other.
    """
    prompt_tokens = parse_prompt("prompt", prompt, most=MAX_SEQUENCE - 1)
    output, pools = _output(generate)
    longest = int(prompt_tokens + (0 if pools else output.most))
    if longest > MAX_SEQUENCE:
        raise SpecError("generate", f"prompt and output may have {MAX_SEQUENCE} tokens together; got {longest}")
    cached = whole_number("prefix", prefix, least=0, most=prompt_tokens - 1)
    if rate_per_s is not None and concurrency is not None:
        raise SpecError("rate_per_s", "and concurrency say the same in two ways", "leave one of them out")
    if rate_per_s is not None and requests is not None:
        problem = "are those of a run at a concurrency, or all at once; a rate is priced in its steady state"
        raise SpecError("requests", problem, "leave it or rate_per_s out")
    longest_allowed = longest if max_model_len is None else max_model_len
    limit = whole_number("max_model_len", longest_allowed, least=1, most=MAX_SEQUENCE)
    if limit < longest:
        problem = f"is {limit}, but prompt and output have up to {longest} tokens"
        raise SpecError("max_model_len", problem, f"max_model_len {longest}")
    job = ServingJob(
        prompt_tokens=prompt_tokens,
        output=output,
        pools=pools,
        cached_tokens=cached,
        rate_per_s=_amount("rate_per_s", rate_per_s, MOST_RATE_PER_S),
        concurrency=_count("concurrency", concurrency, MOST_RUNNING),
        requests=_count("requests", requests, MOST_REQUESTS),
        ttft_s=_amount("ttft_s", ttft_s, MOST_SECONDS),
        tpot_s=_amount("tpot_s", tpot_s, MOST_SECONDS),
        latency_s=_amount("latency_s", latency_s, MOST_SECONDS),
        percentile=_percentile(percentile),
        max_model_len=limit,
    )
    if job.ends_with_prompt and job.tpot_s is not None:
        problem = f"bounds tokens after the first, and none is generated with generate {job.output_tokens:g}"
        raise SpecError("tpot_s", problem, "bound ttft_s instead")
    if job.percentile is not None:
        _check_percentile(job)
    return job


def _output(generate: LengthInput) -> tuple[OutputLengths, bool]:
    """Tokens per request, and whether none is generated: 0 of each request, 1 of each, or 2 and more on average."""
    word = generate.strip() if isinstance(generate, str) else plain(generate)
    if word == "0" or (isinstance(word, int) and not isinstance(word, bool) and word == 0):
        return fixed_length(1), True
    output = parse_lengths("generate", generate, least=0)
    if output.mean < 2 and output.most > 1:
        problem = f"must be at least 2 tokens on average, or 1 or 0 of every request; got {output.mean:g} on average"
        raise SpecError("generate", problem, "generate 1, or 2")
    return output, False


def bound_words(name: str, job: ServingJob) -> str:
    """What a bound is about: ``time to first token``, with its percentile where it is about one."""
    return BOUNDS[name] if job.is_mean(name) else f"{BOUNDS[name]} of {job.percentile:g} %"


def percentile_name(percentile: float) -> str:
    """``p99``."""
    return f"p{percentile:g}"


def _percentile(value: Any) -> float | None:
    least, most = 100 * LEAST_SHARE, 100 * MOST_SHARE
    return None if value is None else _amount("percentile", value, most, least=least)


def _check_percentile(job: ServingJob) -> None:
    """Refuse what nothing is known of: waits of requests that do not arrive at random, latencies of equal lengths."""
    if not job.arrives_at_random:
        problem = "is about requests that arrive at random, and no rate is given"
        raise SpecError("percentile", problem, "give rate_per_s, or leave percentile out: bounds on means")
    if job.latency_s is not None and not job.ends_with_prompt and not lengths_tell(job.output):
        problem = (
            f"has no percentile where output lengths vary by less than {LEAST_VARIATION:g} of their mean: what token "
            "times add is not known"
        )
        raise SpecError("latency_s", problem, "bound ttft_s and tpot_s instead, or leave percentile out")


def serving_engine(
    name: str,
    device: DeviceSpec,
    *,
    memory_utilization: Any = None,
    max_num_seqs: Any = None,
    max_num_batched_tokens: Any = None,
    eager: Any = False,
) -> EngineSpec:
    """An engine that serves on a device, with the settings that are given instead of its own.

    Args:
        name: Of the engine.
        device: Which.
        memory_utilization: Share of the memory the device reports that the engine may use.
        max_num_seqs: Requests that a replica, or each of its attention groups, runs at most.
        max_num_batched_tokens: Tokens of a step at most.
        eager: Whether it captures no graphs (vLLM's ``--enforce-eager``).

    Raises:
        SpecError: If there is none of that name, it does not serve there, or a setting is out of bounds or contradicts
            another.
    """
    if not isinstance(name, str):
        raise SpecError("engine", f"must be text; got {shown(name)}", "vllm, sglang or tensorrt-llm")
    serving = {engine.name: engine for engine in load_engines().values() if engine.continuous}
    name = name.strip().lower()
    if name not in load_engines():
        raise SpecError("engine", f"unknown name {name[:40]!r}", did_you_mean(name, serving))
    if name not in serving:
        problem = f"{name} runs a batch until its longest request ends, and serves nobody meanwhile"
        raise SpecError("engine", problem, "vllm, sglang or tensorrt-llm")
    engine = serving[name].serving_on(device)
    if not engine.runs_on(device):
        others = [other.name for other in serving.values() if other.runs_on(device)]
        problem = f"{name} does not support {device.name}"
        raise SpecError("engine", problem, "use " + " or ".join(others) if others else "no engine here does")
    share = _amount("memory_utilization", memory_utilization, 1.0)
    running = _count("max_num_seqs", max_num_seqs, MOST_RUNNING)
    tokens = _count("max_num_batched_tokens", max_num_batched_tokens, MAX_SEQUENCE)
    if _yes("eager", eager):
        engine = engine.eager()
    engine = replace(
        engine,
        memory_utilization=engine.memory_utilization if share is None else share,
        max_sequences=engine.max_sequences if running is None else running,
        prefill_tokens=engine.prefill_tokens if tokens is None else tokens,
    )
    if not engine.sequences_within_tokens:
        return engine
    if running is not None and tokens is not None and running > tokens:
        problem = f"is {tokens}, and {name} does not start with less than max_num_seqs, {running}"
        raise SpecError("max_num_batched_tokens", problem, f"max_num_batched_tokens {running}")
    return replace(engine, max_sequences=min(engine.max_sequences, engine.prefill_tokens))


def _count(field: str, value: Any, most: int) -> int | None:
    return None if value is None else whole_number(field, value, least=1, most=most)


def _yes(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SpecError(field, f"must be true or false; got {shown(value)}")
    return value


def _amount(field: str, value: Any, most: float, *, least: float = LEAST) -> float | None:
    if value is None:
        return None
    given = plain(value)
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
        percent = isinstance(given, int | float) and most == 1 and _LEAST_PERCENT <= given <= 100
        hint = f"{given / 100:g}" if percent else ""
        raise SpecError(field, f"must be a number from {least:g} to {most:g}; got {shown(value)}", hint)
    return float(given)
