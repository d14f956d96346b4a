"""What the planner answers about serving: deployments in their steady state, and why there is none."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from costmodels.energy_cost import Price, cost_usd
from planner.deployments.job import ServingJob
from planner.deployments.speculation import Drafting
from planner.results import Note
from profiles.engines import EngineSpec
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.weights import WeightFormat


class Served(ABC):
    """What the tokens of a deployment come to, per device, per request and in dollars."""

    __slots__ = ()

    tpot_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float

    @property
    @abstractmethod
    def num_devices(self) -> int:
        """Devices it runs on."""

    @property
    def tokens_per_s_per_device(self) -> float:
        """Output tokens a second per device."""
        return self.output_tokens_per_s / self.num_devices

    @property
    def tokens_per_s_per_user(self) -> float:
        """Tokens a second one request gets once it generates; nan where it generates none after the first."""
        return 1 / self.tpot_s

    @property
    def prompt_tokens_per_s_per_device(self) -> float:
        """Tokens of prompts a second per device, those found in the cache among them."""
        return self.prompt_tokens_per_s / self.num_devices

    def usd_per_million_tokens(self, price: Price) -> float:
        """Dollars for a million output tokens at a price per device-hour."""
        return 1e6 * cost_usd(1 / self.tokens_per_s_per_device, 1, price)

    def usd_per_million_prompt_tokens(self, price: Price) -> float:
        """Dollars for a million tokens of prompts, were nothing else paid for."""
        return 1e6 * cost_usd(1 / self.prompt_tokens_per_s_per_device, 1, price)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingMemory:
    """Bytes on the fullest device of a replica.

    Attributes:
        weights: Of the model.
        cache: Room for keys and values.
        activations: Of the prompts of a step, or the scores of its tokens.
        fixed: Graphs and context.
        left_to_others: What the engine may not use.
    """

    weights: float
    cache: float
    activations: float
    fixed: float
    left_to_others: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan(Served):
    """One deployment in its steady state, or over a run of so many requests.

    Attributes:
        tensor_parallel, pipeline_parallel, expert_parallel: Degrees of a replica. Experts over more ranks than
            tensors: attention is data parallel.
        replicas: Of it.
        concurrency: Requests in a replica, on average.
        ttft_s, tpot_s, latency_s: Means: to the first token, per token after it, to the last; per token of a run the
            mean of what each request takes. Where requests end with their prompt, the first and the last are the
            answer, and the second, like its intervals, is nan.
        ttft_percentiles_s, latency_percentiles_s: Seconds in which so many of 100 requests have their first token, and
            have ended, as ``p50``, ``p90``, ``p99`` and what else was asked for; None where nothing is known of them
            (``costmodels.serving.percentiles``): where places are few, of latencies of equal lengths or of runs, of a
            steady state without a rate.
        ttft_interval_s, tpot_interval_s: Low and high end of their 90 % interval.
        tokens_interval_per_s: Low and high end of that of ``output_tokens_per_s``; None at a rate, which is given.
        priced_ttft_s, priced_tpot_s: The same as prices of kernels and links alone leave them open, whoever serves.
        requests_per_s: Of all replicas; of a run over its whole duration.
        output_tokens_per_s, prompt_tokens_per_s: Of all replicas.
        prompt_tokens_interval_per_s: Low and high end of the 90 % interval where requests end with their prompt and no
            rate is given; else None.
        duration_s: Of the run, from its first request sent to its last token; None without one.
        most_requests: That fit a replica at once at these lengths, and the engine takes.
        most_longest: Requests of ``max_model_len`` tokens that fit a replica at once.
        longest_tokens: Tokens of the longest request that fits; None where windows bound what is kept.
        cache_tokens: Tokens that fit the cache of a replica, beside the states of ``most_requests``, were all of them
            kept in every layer: where layers have windows, longer requests fit (``most_requests``, ``most_longest``).
        memory: Of the fullest device.
        basis: Weakest ``Basis`` of the prices.
    """

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    replicas: int
    concurrency: float
    ttft_s: float
    tpot_s: float
    latency_s: float
    ttft_percentiles_s: Mapping[str, float] | None
    latency_percentiles_s: Mapping[str, float] | None
    ttft_interval_s: tuple[float, float]
    tpot_interval_s: tuple[float, float]
    tokens_interval_per_s: tuple[float, float] | None
    priced_ttft_s: tuple[float, float]
    priced_tpot_s: tuple[float, float]
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    prompt_tokens_interval_per_s: tuple[float, float] | None
    duration_s: float | None
    most_requests: int
    most_longest: int
    longest_tokens: int | None
    cache_tokens: float
    memory: ServingMemory
    basis: int

    @property
    def attention_groups(self) -> int:
        """Groups of tensor-parallel ranks of a replica, each with requests of its own, that share its experts."""
        return max(self.expert_parallel // self.tensor_parallel, 1)

    @property
    def num_devices(self) -> int:
        """Devices of all replicas."""
        return _devices(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPart:
    """Replicas of one layout that do one thing.

    Attributes:
        tensor_parallel, pipeline_parallel, expert_parallel: Degrees of a replica, as of ``ServingPlan``.
        replicas: Of it.
        busy: Share of the time that they read, or of their places that are taken.
    """

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    replicas: int
    busy: float

    @property
    def num_devices(self) -> int:
        """Devices of all of them."""
        return _devices(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApartPlan(Served):
    """Replicas that read prompts beside replicas that generate, in their steady state.

    Attributes:
        reading, generating: Which.
        concurrency: Requests that run in a generating replica, on average.
        crossing_s: Of the first token, a prompt's keys and values on their way.
        ttft_s, tpot_s, latency_s: Means.
        ttft_interval_s, tpot_interval_s: Low and high end of their 90 % interval.
        requests_per_s: Of all.
        output_tokens_per_s, prompt_tokens_per_s: Of all.
        basis: Weakest ``Basis`` of the prices.
    """

    reading: PoolPart
    generating: PoolPart
    concurrency: float
    crossing_s: float
    ttft_s: float
    tpot_s: float
    latency_s: float
    ttft_interval_s: tuple[float, float]
    tpot_interval_s: tuple[float, float]
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    basis: int

    @property
    def num_devices(self) -> int:
        """Devices of both."""
        return self.reading.num_devices + self.generating.num_devices


def _devices(part: ServingPlan | PoolPart) -> int:
    """Of all replicas: experts over more ranks than tensors are over several groups of these."""
    return part.replicas * part.pipeline_parallel * max(part.tensor_parallel, part.expert_parallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingShortage:
    """Why nothing serves what was asked, and what would.

    Attributes:
        reason: ``no_layout``, ``does_not_fit``, ``too_many`` (requests at once or a second) or ``too_slow``.
        message: In words.
        remedy: The change that helps, in words; empty where none is known.
        nearest: The deployment that comes nearest; None where the model does not fit.
    """

    reason: str
    message: str
    remedy: str
    nearest: ServingPlan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResult:
    """The answer.

    Attributes:
        model, cluster, job, engine, price: The question.
        kv_cache_dtype: Format of keys and values: that of 16 bits, or ``fp8``.
        precision: Format of what is in 16 bits: ``bf16`` or ``fp16``.
        weights: How matrices of layers lie in the checkpoint; None for 16 bits.
        idle_head: Whether the engine keeps an output layer of the checkpoint that no request needs.
        plans: The best deployment of every layout that does what was asked, best first.
        frontier: Deployments that trade tokens per device against the speed of a request, fastest first.
        considered: Layouts priced.
        shortage: Why there is no plan; None when there is.
        speculation: What proposes tokens to the model; None without speculative decoding.
        apart: The best with prompts and generation on replicas of their own, best first; None unless asked for.
        assumptions: What was filled in.
    """

    model: ModelSpec
    cluster: ClusterSpec
    job: ServingJob
    engine: EngineSpec
    precision: str
    kv_cache_dtype: str
    price: Price | None
    weights: WeightFormat | None = None
    idle_head: bool
    speculation: Drafting | None = None
    plans: tuple[ServingPlan, ...] = ()
    frontier: tuple[ServingPlan, ...] = ()
    considered: int = 0
    shortage: ServingShortage | None = None
    apart: tuple[ApartPlan, ...] | None = None
    assumptions: tuple[Note, ...] = ()

    @property
    def recipe(self) -> str:
        """Recipe (``profiles.precision``) of the products of layers."""
        return (self.weights and self.weights.recipe_on(self.cluster.device)) or self.precision

    @property
    def best(self) -> ServingPlan | None:
        """The first plan; None when there is none."""
        return self.plans[0] if self.plans else None

    @property
    def fits(self) -> bool:
        """Whether anything does what was asked."""
        return self.shortage is None or bool(self.apart)
