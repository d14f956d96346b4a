"""The body that asks how to serve a model."""

from typing import Literal

from pydantic import Field

from costmodels.energy_cost import MAX_PRICE_USD
from costmodels.serving.percentiles import LEAST_SHARE, MOST_SHARE
from planner.deployments.job import LEAST, MOST_RATE_PER_S, MOST_REQUESTS, MOST_RUNNING, MOST_SECONDS
from planner.deployments.speculation import MOST_DRAFTED, MOST_VERIFIED
from profiles.model import MAX_SEQUENCE
from service.values import MAX_TOP, AnsweredTokens, Body, Bytes, Cluster, Degree, Name, NameOrMapping


class LayoutBody(Body):
    """Degrees of a replica, and how many there are."""

    tp: Degree | None = Field(default=None, description="Tensor-parallel devices of a replica.")
    pp: Degree | None = Field(default=None, description="Pipeline stages of a replica.")
    ep: Degree | None = Field(default=None, description="Expert-parallel devices of a replica.")
    dp: Degree | None = Field(default=None, description="Replicas.")


class ServingRequest(Body):
    """Ask how to serve a model, and how fast requests are answered."""

    model: NameOrMapping = Field(
        description="A preset, a size such as `13b`, or the contents of a Hugging Face config.json.",
        examples=["llama-3.1-8b"],
    )
    cluster: Cluster = Field(description="A cluster string or the mapping a cluster file holds.", examples=["8xH100"])
    prompt: int = Field(ge=1, le=MAX_SEQUENCE - 1, description="Tokens of a prompt.", examples=[1024])
    generate: AnsweredTokens = Field(
        description="Tokens generated per request: a number, or `lognormal:mean=300,sigma=1,max=4096`; 1 for what "
        "ends with its first token, 0 for embeddings, scores and classes.",
        examples=[256],
    )
    prefix: int = Field(default=0, ge=0, le=MAX_SEQUENCE - 2, description="Tokens of the prompt found in the cache.")
    rate_per_s: float | None = Field(
        default=None, ge=LEAST, le=MOST_RATE_PER_S, description="Requests a second of all replicas."
    )
    concurrency: int | None = Field(default=None, ge=1, le=MOST_RUNNING, description="Requests in every replica.")
    requests: int | None = Field(
        default=None,
        ge=1,
        le=MOST_REQUESTS,
        description="Of a run in all, at the concurrency or all at once; without it the steady state is priced.",
    )
    ttft_s: float | None = Field(default=None, ge=LEAST, le=MOST_SECONDS, description="Bound on the first token.")
    tpot_s: float | None = Field(default=None, ge=LEAST, le=MOST_SECONDS, description="Bound on the others.")
    latency_s: float | None = Field(default=None, ge=LEAST, le=MOST_SECONDS, description="Bound on the latency.")
    percentile: float | None = Field(
        default=None,
        ge=100 * LEAST_SHARE,
        le=100 * MOST_SHARE,
        description="Of requests at a rate that keep the bounds on first token and latency; else these are on means.",
    )
    engine: Name = Field(default="vllm", description="vllm, sglang, tensorrt-llm, ...")
    max_model_len: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE, description="Longest request that must fit.")
    memory_utilization: float | None = Field(default=None, ge=LEAST, le=1, description="The engine's share.")
    max_num_seqs: int | None = Field(
        default=None, ge=1, le=MOST_RUNNING, description="Requests a replica runs at most."
    )
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, le=MAX_SEQUENCE, description="Tokens of a step at most."
    )
    eager: bool = Field(default=False, description="No graphs are captured, as with vLLM's `--enforce-eager`.")
    pins: LayoutBody = Field(default=LayoutBody(), description="Degrees to hold fixed; the rest is searched.")
    top: int = Field(default=10, ge=1, le=MAX_TOP, description="Most plans to return.")
    precision: Literal["bf16", "fp16"] | None = Field(default=None, description="bf16 where the device has it.")
    weights: Name | None = Field(
        default=None,
        description="The checkpoint's: fp8, fp8-block, int8, int4 (AWQ, GPTQ), int4-experts, mxfp4, mxfp4-fp8, "
        "nvfp4, or bf16; as published unless given.",
    )
    kv_cache_dtype: Literal["auto", "bf16", "fp16", "fp8"] = Field(
        default="auto", description="fp8 keeps keys and values in 8 bits; the others, in the 16 of `precision`."
    )
    speculate: Name | None = Field(
        default=None, description="How tokens are drafted: eagle3, eagle, mtp, ngram, or the name of a draft model."
    )
    draft_tokens: int | None = Field(default=None, ge=1, le=MOST_DRAFTED, description="Tokens drafted per step.")
    accepted: float | None = Field(
        default=None, ge=0, le=MOST_DRAFTED, description="Of them, accepted on average, as an engine's metrics tell."
    )
    tree_tokens: int | None = Field(
        default=None, ge=3, le=MOST_VERIFIED, description="Tokens verified per step where drafts branch (SGLang)."
    )
    disaggregated: bool = Field(default=False, description="Look at replicas that only read prompts or generate, too.")
    fabric: Name | None = Field(default=None, description="Network between nodes, if not the node's own.")
    price_per_device_hour_usd: float | None = Field(default=None, ge=0, le=MAX_PRICE_USD)
    price_date: str | None = Field(default="", max_length=10, examples=["2026-11"])  # null as answers print it
    memory_reserve_bytes: Bytes = Field(default=0.0, description="Device memory to leave free.")
