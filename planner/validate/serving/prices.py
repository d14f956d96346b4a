"""Prices of published measurements of serving, by the calls that users make: ``planner.serving`` and generation.

Requests in a closed loop are a run of as many as were sent where that is published, else a steady state, as are those
that arrive at random. Throughputs of requests that are all there from the start, and latencies of one batch, are a call
of generation (``costmodels.serving.generation``); when tokens of the former come, a run. How a row is read was written
before any was priced: which engine of the catalogue ran, by its version, and how lengths spread of which only the mean
is published.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from typing import Any

from scipy.optimize import brentq

from costmodels.lengths import OutputLengths, fixed_length, log_normal_lengths
from costmodels.model_calls import CallKind, ModelCall
from planner.deployments.plans import serving
from planner.deployments.results import ServingPlan
from planner.deployments.states import EIGHT_BITS
from planner.validate.dataflow.setups import cluster_of, model_named, replica
from planner.validate.serving.cache_rows import CacheRow
from planner.validate.serving.rows import Lengths, Load, ServingRow, serving_rows, speculative_rows
from profiles.engines import find_engine
from profiles.errors import SpecError
from profiles.weights import WeightFormat, parse_weights

SIGMA, LONGEST = 0.745, 2048  # as ``planner.validate.dataflow.blind`` takes lengths that spread
# The engine V1 is vLLM's default since 0.8 (vLLM blog of 2025-01-27 and release notes of 0.8.0).
_BEFORE_V1 = ("2024", "build", "0.5", "0.6", "0.7")
_WITH_READING_GRAPHS = ("0.5.10", "0.5.13")  # the latest of SGLang in the tables


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPrice:
    """One published figure and its price.

    Attributes:
        row: What ran.
        figure: ``ttft``, ``tpot``, ``latency`` in seconds or ``tokens`` a second.
        measured: As published.
        predicted: Price.
        low, high: 90 % interval.
    """

    row: ServingRow
    figure: str
    measured: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the figure lies within the interval."""
        return self.low <= self.measured <= self.high


def engine_of(row: ServingRow | CacheRow) -> str:
    """Catalogue name of the engine that ran, ``""`` for none."""
    if row.engine == "vllm":
        return "vllm-2024" if row.engine_version.startswith(_BEFORE_V1) else "vllm"
    if row.engine == "sglang":
        return "sglang" if row.engine_version.startswith(_WITH_READING_GRAPHS) else "sglang-2025"
    return "tensorrt-llm" if row.engine == "tensorrt-llm" else ""


def left_out(row: ServingRow) -> str:
    """Why a row is not priced, ``""`` where it is."""
    if not engine_of(row):
        return "no such engine here"
    weights, device = _weights(row), cluster_of(row.gpus, row.gpu).device
    if weights is not None and not find_engine(engine_of(row)).serves(weights, device):
        return f"{weights.name} weights where the engine is not known to serve them"
    if row.kv_dtype not in ("", "bf16", "fp16", EIGHT_BITS):
        return f"{row.kv_dtype} cache"
    if row.method and model_named(row.model).linear_attention is not None:
        return "drafts for linear attention"
    return ""


def measured_figures(row: ServingRow) -> Mapping[str, float]:
    """What a row publishes of what is priced: means, or medians where there are none.

    Of one batch it is the latency alone, also where its tokens a second are published, those of prompts among them; of
    a rate that is kept up no throughput.
    """
    tokens = row.prompt_tokens + row.output_tokens
    batch_s = (row.concurrency or 1) * tokens / row.total_tokens_per_s if row.total_tokens_per_s else None
    found = {
        "ttft": row.ttft_mean_s or row.ttft_p50_s,
        "tpot": row.tpot_mean_s or row.tpot_p50_s or row.itl_mean_s,
        "latency": row.e2e_mean_s or row.e2e_p50_s or (batch_s if row.load is Load.STATIC_BATCH else None),
        "tokens": row.output_tokens_per_s
        or (row.requests_per_s or 0.0) * row.output_tokens
        or (row.total_tokens_per_s or 0.0) * row.output_tokens / tokens,
    }
    wanted = {
        Load.CLOSED_LOOP: ("ttft", "tpot", "latency", "tokens"),
        Load.REQUEST_RATE: ("ttft", "tpot", "latency"),
        Load.ALL_AT_ONCE: ("ttft", "tpot", "latency", "tokens"),
        Load.STATIC_BATCH: ("latency",),
    }[row.load]
    return {name: value for name in wanted if (value := found[name])}


_MOST_LOG, _CLOSE_LOG = 2.0, 5e-4  # of what all times are multiplied by: the largest, and how closely it is found


@lru_cache(maxsize=1)
def serving_prices() -> tuple[ServingPrice, ...]:
    """Every figure of every row that is priced, in the order of the table."""
    return tuple(price for row in serving_rows() if not left_out(row) for price in _prices(row))


@lru_cache(maxsize=1)
def speculative_prices() -> tuple[ServingPrice, ...]:
    """The same of speculative decoding."""
    return tuple(price for row in speculative_rows() if not left_out(row) for price in _prices(row))


def _prices(row: ServingRow) -> Iterator[ServingPrice]:
    steady = row.load in (Load.CLOSED_LOOP, Load.REQUEST_RATE)
    predicted = _steady(row) if steady else _from_the_start(row)
    if row.load is Load.ALL_AT_ONCE:
        predicted = {**_run(row), **predicted}
    for figure, measured in measured_figures(row).items():
        if figure in predicted:
            middle, low, high = predicted[figure]
            yield ServingPrice(row=row, figure=figure, measured=measured, predicted=middle, low=low, high=high)


def _lengths(row: ServingRow) -> OutputLengths:
    if row.lengths is Lengths.FIXED:
        return fixed_length(round(row.output_tokens))
    return log_normal_lengths(mean=row.output_tokens, sigma=SIGMA, most=row.longest_output_tokens or LONGEST)


def _expert(row: ServingRow) -> int:
    """GPUs that share the experts: all on which attention is copied, or those published; 1 where they are cut."""
    shared = row.data > 1 and model_named(row.model).moe is not None
    return row.tensor * row.data if shared else row.expert


def _asked(row: ServingRow) -> dict[str, Any]:
    """What every question about a row says; ``dp`` of its pins are the replicas it runs on."""
    expert = _expert(row)
    replicas = row.gpus // (row.pipeline * max(row.tensor, expert))
    pins = {"tp": row.tensor, "pp": row.pipeline, "dp": replicas}
    if expert > 1:
        pins["ep"] = expert
    return {
        "weights": row.weights_dtype if (weights := _weights(row)) is None else weights.name,
        "kv_cache_dtype": EIGHT_BITS if row.kv_dtype == EIGHT_BITS else None,
        "prompt": round(row.prompt_tokens),
        "generate": _lengths(row),
        "engine": engine_of(row),
        "pins": pins,
        "eager": row.eager,
        **_drafts(row),
    }


def _drafts(row: ServingRow) -> dict[str, Any]:
    """What proposes tokens."""
    if not row.method:
        return {}
    count = row.draft_steps or row.verified_tokens - 1
    accepted = min(row.tokens_per_step - 1, count)
    found = {"speculate": row.draft_model or row.method, "draft_tokens": count, "accepted": accepted}
    return found | ({"tree_tokens": row.verified_tokens} if row.verified_tokens > 1 + count else {})


def _weights(row: ServingRow) -> WeightFormat | None:
    """How the matrices of its checkpoint lie; one of 8 bits is the model's own where that is in 8 bits."""
    published = model_named(row.model).checkpoint_weights
    return parse_weights(published if published.startswith(row.weights_dtype) else row.weights_dtype)


def _plans(row: ServingRow, **load: Any) -> tuple[ServingPlan, ...]:
    """Deployments of a row's layout under a load; none where its engine is not known to run that layout."""
    try:
        return serving(row.model, cluster_of(row.gpus, row.gpu), **_asked(row), **load).plans
    except SpecError as error:
        if not error.field.startswith("plan"):
            raise
        return ()


def _run(row: ServingRow) -> Mapping[str, tuple[float, float, float]]:
    """First tokens, token times and latencies of requests that are all sent at once."""
    plans = _plans(row, requests=row.num_requests or row.concurrency)
    found = _figures(plans[0], row) if plans else {}
    return {name: value for name, value in found.items() if name != "tokens"}


def _steady(row: ServingRow) -> Mapping[str, tuple[float, float, float]]:
    """Figures with their intervals; requests that find no room wait, so that the first token is left out then.

    A run says how long they wait, which first prices did not: nothing is judged that has no first price.
    """
    if row.request_rate_per_s is not None and row.load is Load.REQUEST_RATE:
        plans = _plans(row, rate_per_s=row.request_rate_per_s)
        return _figures(plans[0], row) if plans else {}
    each = max(-(-(row.concurrency or 1) // _asked(row)["pins"]["dp"]), 1)
    plans = _plans(row, concurrency=each, requests=row.num_requests)
    if plans and plans[0].most_requests >= each:
        return _figures(plans[0], row)
    if not plans:
        most = _plans(row)
        if not most:
            return {}
        plans = _plans(row, concurrency=most[0].most_requests)
    return {name: value for name, value in _figures(plans[0], row).items() if name in ("tpot", "tokens")}


@lru_cache(maxsize=256)
def settles(row: ServingRow) -> bool:
    """Whether a run at a rate lasts for two of the latencies that its steady state is priced at; others always do."""
    rate = row.request_rate_per_s
    if row.load is not Load.REQUEST_RATE or rate is None or row.num_requests is None:
        return True
    plans = _plans(row, rate_per_s=rate)
    return bool(plans) and row.num_requests / rate >= 2 * plans[0].latency_s


@lru_cache(maxsize=1024)
def times_as_long(row: ServingRow, token_s: float) -> float:
    """What all times of a server would be over their prices for a token at a rate to take so long.

    It is less than what that token takes over its price: slower servers are busier, so that it lies between none and
    that, or is that where a token takes no longer at a higher rate.
    """

    def longer(log_scale: float) -> float:
        """Log of what a token would take over what it takes; the most that is looked for where no server keeps up."""
        plans = _plans(row, rate_per_s=(row.request_rate_per_s or 0.0) * exp(log_scale))
        return log(exp(log_scale) * plans[0].tpot_s / token_s) if plans else _MOST_LOG

    priced = longer(0.0)
    end = min(max(-priced, -_MOST_LOG), _MOST_LOG)
    if longer(end) * priced >= 0:
        return exp(end)
    return exp(brentq(longer, 0.0, end, xtol=_CLOSE_LOG))


def _figures(plan: ServingPlan, row: ServingRow) -> Mapping[str, tuple[float, float, float]]:
    """Means, or medians where these alone are published and known of the plan."""
    low, high = (end / plan.tpot_s for end in plan.priced_tpot_s)
    first_low, first_high = (end / plan.ttft_s for end in plan.priced_ttft_s)
    tokens = plan.requests_per_s * row.output_tokens
    ttft_s = _published(plan.ttft_s, plan.ttft_percentiles_s, row.ttft_mean_s)
    latency_s = _published(plan.latency_s, plan.latency_percentiles_s, row.e2e_mean_s)
    return {
        "ttft": (ttft_s, ttft_s * first_low, ttft_s * first_high),
        "tpot": (plan.tpot_s, plan.tpot_s * low, plan.tpot_s * high),
        "latency": (latency_s, latency_s * low, latency_s * high),
        "tokens": (tokens, tokens / high, tokens / low),
    }


def _published(mean_s: float, percentiles_s: Mapping[str, float] | None, mean: float | None) -> float:
    """The mean, or the median where no mean is published and the median is known."""
    return mean_s if mean is not None or percentiles_s is None else percentiles_s["p50"]


def _from_the_start(row: ServingRow) -> Mapping[str, tuple[float, float, float]]:
    requests = row.num_requests or row.concurrency or 1
    cluster, weights = cluster_of(row.gpus, row.gpu), _weights(row)
    call = ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=requests,
        prompt_tokens=round(row.prompt_tokens),
        output=_lengths(row),
        precision=row.weights_dtype if weights is None else weights.recipe_on(cluster.device) or "bf16",
    )
    engine, expert = find_engine(engine_of(row)).serving_on(cluster.device), _expert(row)
    cut = expert == 1 and model_named(row.model).moe is not None
    table = replica(
        call,
        model_named(row.model),
        cluster,
        engine,
        layout={
            "tensor_parallel": row.tensor,
            "pipeline_parallel": row.pipeline,
            "data_parallel": row.data,
            "expert_parallel": expert,
            "expert_tensor_parallel": row.tensor if cut else 1,
        },
        weights=weights,
        eight_bit_cache=row.kv_dtype == EIGHT_BITS,
    )
    if not len(table):
        return {}
    best = int(table.time_s.argmin())
    time_s, low_s, high_s = (float(column[best]) for column in (table.time_s, table.low_s, table.high_s))
    tokens = requests * row.output_tokens
    return {"latency": (time_s, low_s, high_s), "tokens": (tokens / time_s, tokens / high_s, tokens / low_s)}
