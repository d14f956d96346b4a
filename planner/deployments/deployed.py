"""One deployment of a served model in full: its figures, their intervals, and what it holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.plan import FloatArray
from costmodels.serving.runs import run_first_token_within
from costmodels.serving.steady import ServingPoints, at_rate
from costmodels.uncertainty import NORMAL_90
from planner.deployments.job import ServingJob, percentile_name
from planner.deployments.loads import Deployments, parts_of_run
from planner.deployments.results import ServingMemory, ServingPlan, ServingResult
from planner.deployments.states import Layouts, within_s
from profiles.model import MAX_SEQUENCE
from profiles.serving_widths import serving_log_stds


def _percentiles(
    found: Layouts, point: ServingPoints, job: ServingJob, row: int, name: str
) -> Mapping[str, float] | None:
    """Those of one deployment's times that are told, by name; None where they are not known."""
    rows = np.asarray([row])
    shares, prices = np.asarray([job.percentiles]) / 100, found.prices.take(rows)
    if job.arrives_at_random:
        told_s = within_s(found.take(rows), point, job, name, shares)[0]
    elif job.requests is not None and name == "ttft_s" and not job.ends_with_prompt:
        each, at_once = (part[rows] for part in parts_of_run(found, job.requests, job.concurrency))
        places = found.together[rows].astype(np.float64)
        told_s = run_first_token_within(prices, each, at_once, places, shares[0])[0]
    else:
        return None
    if not np.isfinite(told_s).all():
        return None
    return dict(zip(map(percentile_name, job.percentiles), told_s.tolist(), strict=True))


def deployment(found: Layouts, there: Deployments, asked: ServingResult, row: int, place: int) -> ServingPlan:
    """One of the deployments in full."""
    plan, job, points = found.plans.plan(row), asked.job, there.points
    point, reading = points.at(row, place), found.prices.half_widths[:, row]
    first = serving_log_stds("ttft", asked.model, burst=job.is_burst)
    groups, rate = int(found.plans.attention_groups[row]), float(there.requests_per_s[row, place])
    replicas, latency_s = int(there.replicas[row, place]), float(points.latency_s[row, place])
    ttft_s = float(points.first_token_s[row, place])
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
        latency_s=latency_s,
        ttft_percentiles_s=_percentiles(found, point, job, row, "ttft_s"),
        latency_percentiles_s=_percentiles(found, point, job, row, "latency_s"),
        ttft_interval_s=interval(ttft_s, reading, first),
        priced_ttft_s=interval(ttft_s, reading, (0.0, 0.0)),
        requests_per_s=rate,
        output_tokens_per_s=rate * job.output_tokens,
        prompt_tokens_per_s=rate * job.prompt_tokens,
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
        **(_of_prompts if job.ends_with_prompt else _of_tokens)(found, point, asked, row, rate),
    )


def _of_tokens(found: Layouts, point: ServingPoints, asked: ServingResult, row: int, rate: float) -> Mapping[str, Any]:
    """What is said of tokens after the first; of a rate that is given no throughput is uncertain."""
    job = asked.job
    tpot, tokens = (serving_log_stds(name, asked.model, burst=job.is_burst) for name in ("tpot", "tokens"))
    widths, basis = found.prices.decode.take(np.asarray([row])).nearest(point.generating[0])
    return {
        "tpot_s": float(point.token_s[0, 0]),
        "tpot_interval_s": _token_interval(found, point, job, row, widths[:, 0], tpot),
        "priced_tpot_s": _token_interval(found, point, job, row, widths[:, 0], (0.0, 0.0)),
        "tokens_interval_per_s": None  # slower kernels, fewer tokens: the ends change places
        if job.rate_per_s is not None
        else interval(rate * job.output.mean, widths[::-1, 0], tokens),
        "prompt_tokens_interval_per_s": None,
        "basis": int(basis[0]),
    }


def _of_prompts(found: Layouts, point: ServingPoints, asked: ServingResult, row: int, rate: float) -> Mapping[str, Any]:
    """The same where requests end with their prompt: no token follows the first."""
    job, reading = asked.job, found.prices.reading
    nothing = (float("nan"), float("nan"))
    tokens = serving_log_stds("tokens", asked.model, burst=job.is_burst)
    return {
        "tpot_s": nothing[0],
        "tpot_interval_s": nothing,
        "priced_tpot_s": nothing,
        "tokens_interval_per_s": None,
        "prompt_tokens_interval_per_s": None
        if job.rate_per_s is not None
        else interval(rate * job.prompt_tokens, found.prices.half_widths[::-1, row], tokens),
        "basis": 0 if reading is None else int(reading.basis[row]),
    }


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
