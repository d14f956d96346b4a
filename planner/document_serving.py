"""Deployments of a served model as plain data, and the JSON Schema of that document."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

from costmodels.estimate import BASES
from planner.deployments.job import BOUNDS
from planner.deployments.launch import launch_words
from planner.deployments.results import ApartPlan, ServingPlan, ServingResult
from planner.deployments.speculation import Drafting
from planner.document_plan import cluster_document, model_document, notes_document
from planner.schema_types import (
    AMOUNT,
    COUNT,
    FLAG,
    SCHEMA_VERSION,
    TEXT,
    Shape,
    closed_object,
    list_of,
    map_of,
    note_shape,
    or_null,
    titled,
)

CONVENTIONS = {
    "ttft_s": "mean time to the first token: waiting for a place and for the running step, and reading the prompt",
    "percentiles": "seconds in which 50, 90, 99 of 100 requests, p50, p90, p99, have their first token or have ended; "
    "null where nothing is known of them",
    "bounds": "on means; with a percentile those on the first token and on the latency are about it",
    "tpot_s": "mean time per output token after the first, (latency - time to first token) / (output tokens - 1); "
    "of a run with requests the mean of what each takes",
    "attention_groups": "groups of tensor-parallel ranks with requests of their own that share a replica's experts",
    "concurrency": "requests in one replica, those whose prompt is being read among them",
    "runs": "with requests: means over all of them, rates over the whole run, its start and its end included",
    "tokens": "output tokens, and those of prompts by themselves, with what of them is found in the cache",
    "prompts_only": "with 0 or 1 output_tokens requests end with their prompt: ttft_s and latency_s are both until the "
    "answer; tpot_s, what follows from it and dollars for output tokens are null, and dollars for those of prompts not",
    "interval": "90 %; of tokens null at a rate, which is given",
    "weights": "format of the checkpoint's matrices; products: what multiplies them, 16 bits where kernels unpack them",
    "speculation": "accepted: of the draft_tokens proposed per step, on average; a step makes one token more",
    "launch": "starts a replica, on each of its nodes; $MODEL is the checkpoint, $DRAFT that of a draft; empty where "
    "no command is known",
    "memory": "the fullest device of a replica",
    "apart": "replicas that read prompts beside replicas that generate; busy: share of time, or of places",
    "crossing_s": "of the first token: keys and values on their way from one to the other",
    "frontier": "deployments that none beats in tokens (at a rate, per device) and in tokens per user, fastest first",
}
_KIND = "serving"
_POOL_COUNTS = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "replicas", "num_devices")


def serving_document(result: ServingResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    job, shortage = result.job, result.shortage
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": _KIND,
        "fits": result.fits,
        "request": {
            "model": model_document(result.model),
            "cluster": cluster_document(result.cluster),
            "engine": result.engine.name,
            "precision": result.precision,
            "weights": result.precision if result.weights is None else result.weights.name,
            "products": result.recipe,
            "kv_cache_dtype": result.kv_cache_dtype,
            "memory_utilization": result.engine.memory_utilization,
            "max_num_seqs": result.engine.max_sequences,
            "max_num_batched_tokens": result.engine.prefill_tokens,
            "eager": not result.engine.captures_graphs,
            "speculation": None if result.speculation is None else _drafting(result.speculation),
            "prompt_tokens": job.prompt_tokens,
            "cached_tokens": job.cached_tokens,
            "output_tokens": job.output_tokens,
            "longest_output_tokens": job.longest_output_tokens,
            "rate_per_s": job.rate_per_s,
            "concurrency": job.concurrency,
            "requests": job.requests,
            "max_model_len": job.max_model_len,
            "percentile": job.percentile,
            "bounds": {name: job.bounds.get(name) for name in BOUNDS},
            "price_per_device_hour_usd": None if result.price is None else result.price.usd_per_device_hour,
            "price_date": "" if result.price is None else result.price.date,
        },
        "plans": [_plan(plan, result) for plan in result.plans],
        "frontier": [_plan(plan, result) for plan in result.frontier],
        "apart": None if result.apart is None else [_apart(plan, result) for plan in result.apart],
        "considered": result.considered,
        "infeasible": None
        if shortage is None
        else {
            "reason": shortage.reason,
            "message": shortage.message,
            "remedy": shortage.remedy,
            "nearest": None if shortage.nearest is None else _plan(shortage.nearest, result),
        },
        "assumptions": notes_document(result.assumptions),
        "conventions": dict(CONVENTIONS),
    }


def _drafting(asked: Drafting) -> dict[str, Any]:
    return {
        "method": asked.method,
        "draft": None if asked.draft is None else asked.draft.name,
        "draft_tokens": asked.tokens.draft_tokens,
        "accepted": asked.tokens.accepted,
        "tree_tokens": asked.tokens.tree_tokens or None,
    }


def _drafting_shape() -> Shape:
    return closed_object(
        method=TEXT, draft=or_null(TEXT), draft_tokens=COUNT, accepted=AMOUNT, tree_tokens=or_null(COUNT)
    )


def _plan(plan: ServingPlan, result: ServingResult) -> dict[str, Any]:
    return {
        "tensor_parallel": plan.tensor_parallel,
        "pipeline_parallel": plan.pipeline_parallel,
        "expert_parallel": plan.expert_parallel,
        "attention_groups": plan.attention_groups,
        "replicas": plan.replicas,
        "num_devices": plan.num_devices,
        "concurrency": plan.concurrency,
        **_times(plan),
        **_rates(plan, result),
        **{f"output_tokens_{end}_per_s": value for end, value in _ends(plan.tokens_interval_per_s).items()},
        **{f"prompt_tokens_{end}_per_s": value for end, value in _ends(plan.prompt_tokens_interval_per_s).items()},
        "ttft_percentiles_s": _percentiles(plan.ttft_percentiles_s),
        "latency_percentiles_s": _percentiles(plan.latency_percentiles_s),
        "duration_s": plan.duration_s,
        "most_requests": plan.most_requests,
        "most_longest_requests": plan.most_longest,
        "longest_tokens": plan.longest_tokens,
        "cache_tokens": plan.cache_tokens,
        "memory_parts_bytes": asdict(plan.memory),
        "launch": " ".join(launch_words(plan, result)),
        "basis": BASES[plan.basis],
    }


def _apart(plan: ApartPlan, result: ServingResult) -> dict[str, Any]:
    pools = {name: getattr(plan, name) for name in ("reading", "generating")}
    return {
        **{name: asdict(pool) | {"num_devices": pool.num_devices} for name, pool in pools.items()},
        "num_devices": plan.num_devices,
        "concurrency": plan.concurrency,
        "crossing_s": plan.crossing_s,
        **_times(plan),
        **_rates(plan, result),
        "basis": BASES[plan.basis],
    }


def _times(plan: ServingPlan | ApartPlan) -> dict[str, float | None]:
    return {
        "ttft_s": plan.ttft_s,
        "ttft_low_s": plan.ttft_interval_s[0],
        "ttft_high_s": plan.ttft_interval_s[1],
        "tpot_s": _known(plan.tpot_s),
        "tpot_low_s": _known(plan.tpot_interval_s[0]),
        "tpot_high_s": _known(plan.tpot_interval_s[1]),
        "latency_s": plan.latency_s,
    }


def _rates(plan: ServingPlan | ApartPlan, result: ServingResult) -> dict[str, float | None]:
    price, prompts = result.price, result.job.ends_with_prompt
    return {
        "requests_per_s": plan.requests_per_s,
        "output_tokens_per_s": plan.output_tokens_per_s,
        "output_tokens_per_s_per_device": plan.tokens_per_s_per_device,
        "output_tokens_per_s_per_user": _known(plan.tokens_per_s_per_user),
        "prompt_tokens_per_s": plan.prompt_tokens_per_s,
        "prompt_tokens_per_s_per_device": plan.prompt_tokens_per_s_per_device,
        "usd_per_million_output_tokens": None if price is None or prompts else plan.usd_per_million_tokens(price),
        "usd_per_million_prompt_tokens": plan.usd_per_million_prompt_tokens(price) if price and prompts else None,
    }


def _known(value: float) -> float | None:
    """A figure, or None where there is none."""
    return None if isnan(value) else value


def _ends(told: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = (None, None) if told is None else told
    return {"low": low, "high": high}


def _percentiles(told: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if told is None else dict(told)


def _figure_shapes() -> Shape:
    """Fields of every deployment, whatever its replicas do."""
    amounts = (
        *("concurrency", "ttft_s", "ttft_low_s", "ttft_high_s", "latency_s", "requests_per_s", "output_tokens_per_s"),
        *("output_tokens_per_s_per_device", "prompt_tokens_per_s", "prompt_tokens_per_s_per_device"),
    )
    # Null where requests end with their prompt, or no price is given.
    perhaps = (
        *("tpot_s", "tpot_low_s", "tpot_high_s", "output_tokens_per_s_per_user"),
        *("usd_per_million_output_tokens", "usd_per_million_prompt_tokens"),
    )
    known = dict.fromkeys(amounts, AMOUNT) | dict.fromkeys(perhaps, or_null(AMOUNT))
    return known | {"basis": {"enum": list(BASES)}}


def _apart_shape() -> Shape:
    pool = closed_object(**dict.fromkeys(_POOL_COUNTS, COUNT), busy=AMOUNT)
    told = dict.fromkeys(("tpot_s", "tpot_low_s", "tpot_high_s", "output_tokens_per_s_per_user"), AMOUNT)
    figures = _figure_shapes() | told
    return closed_object(reading=pool, generating=pool, num_devices=COUNT, crossing_s=AMOUNT, **figures)


def _plan_shape() -> Shape:
    return closed_object(
        **dict.fromkeys((*_POOL_COUNTS, "attention_groups"), COUNT),
        **_figure_shapes(),
        output_tokens_low_per_s=or_null(AMOUNT),
        output_tokens_high_per_s=or_null(AMOUNT),
        prompt_tokens_low_per_s=or_null(AMOUNT),
        prompt_tokens_high_per_s=or_null(AMOUNT),
        duration_s=or_null(AMOUNT),
        ttft_percentiles_s=or_null(map_of(AMOUNT)),
        latency_percentiles_s=or_null(map_of(AMOUNT)),
        most_requests=COUNT,
        most_longest_requests=COUNT,
        longest_tokens=or_null(COUNT),
        cache_tokens=AMOUNT,
        memory_parts_bytes=closed_object(
            **dict.fromkeys(("weights", "cache", "activations", "fixed", "left_to_others"), AMOUNT)
        ),
        launch=TEXT,
    )


def serving_schema() -> Shape:
    """The schema of what ``serving_document`` returns."""
    request = closed_object(
        model={"type": "object"},
        cluster={"type": "object"},
        engine=TEXT,
        precision=TEXT,
        weights=TEXT,
        products=TEXT,
        kv_cache_dtype=TEXT,
        memory_utilization=AMOUNT,
        max_num_seqs=COUNT,
        max_num_batched_tokens=COUNT,
        eager=FLAG,
        speculation=or_null(_drafting_shape()),
        prompt_tokens=COUNT,
        cached_tokens=COUNT,
        output_tokens=AMOUNT,
        longest_output_tokens=AMOUNT,
        rate_per_s=or_null(AMOUNT),
        concurrency=or_null(COUNT),
        requests=or_null(COUNT),
        max_model_len=COUNT,
        percentile=or_null(AMOUNT),
        bounds=closed_object(**dict.fromkeys(BOUNDS, or_null(AMOUNT))),
        price_per_device_hour_usd=or_null(AMOUNT),
        price_date=TEXT,
    )
    served: Shape = {"$ref": "#/$defs/deployment"}
    answer = closed_object(
        schema_version={"const": SCHEMA_VERSION},
        kind={"const": _KIND},
        fits=FLAG,
        request=request,
        plans=list_of(served),
        frontier=list_of(served),
        apart=or_null(list_of({"$ref": "#/$defs/apart"})),
        considered=COUNT,
        infeasible=or_null(closed_object(reason=TEXT, message=TEXT, remedy=TEXT, nearest=or_null(served))),
        assumptions=list_of(note_shape()),
        conventions=map_of(TEXT),
    )
    return titled("planner serving", answer, deployment=_plan_shape(), apart=_apart_shape())
