"""Plans for serving: how a model is laid out over devices, how many requests a replica takes, and how fast it answers.

A layout is a replica: tensor-, pipeline- and expert-parallel degrees an engine loads the model with; a deployment is
so many replicas of it. Every layout is asked about every number of requests at once, or about the requests a second
that were given, on every number of replicas, in its steady state (``costmodels.serving``). Best is what gives most
tokens per device within the bounds; of a given rate, what takes the fewest devices.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from costmodels.plan import BoolArray, FloatArray, PlanBatch
from costmodels.serving import ServingPoints, replica_devices
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.dataflow.engine_strategies import engine_strategies
from planner.request import (
    ClusterInput,
    ModelInput,
    Options,
    check_options,
    price_of,
    resolve_cluster,
    resolve_named_model,
    with_memory_reserve,
)
from planner.results import Note
from planner.serving_apart import apart
from planner.serving_job import ServingJob, serving_engine, serving_job
from planner.serving_results import ServingResult
from planner.serving_shortage import no_layout, no_room, too_much
from planner.serving_states import (
    EIGHT_BITS,
    STACK,
    deployment,
    deployments,
    layouts,
    most_replicas,
    serving_call,
    within_bounds,
)
from profiles.engines import check_engine
from profiles.errors import SpecError, did_you_mean
from profiles.hardware import MAX_DEVICES, ClusterSpec
from profiles.model import ModelSpec
from profiles.scalars import whole_number
from profiles.stacks import find_stack

PINS = {"tp": "tensor_parallel", "pp": "pipeline_parallel", "ep": "expert_parallel", "dp": "data_parallel"}
MOST_TOP = 1000
_FORMATS = ("bf16", "fp16")
_OPTIONS = ("fabric", "price_per_device_hour_usd", "price_date", "memory_reserve_bytes", "allow_files")
_FRONTIER = 12
_DOUBLINGS = 6  # of the devices, in the search for how many would do
_MANY = 4096  # requests per device that plans are made for: more than any engine takes


def serving(
    model: ModelInput,
    cluster: ClusterInput,
    *,
    engine: str = "vllm",
    memory_utilization: float | None = None,
    pins: Mapping[str, int] | None = None,
    top: int = 10,
    precision: str | None = None,
    weights: str | None = None,
    kv_cache_dtype: str | None = None,
    disaggregated: bool = False,
    **asked: Any,
) -> ServingResult:
    """Rank the ways to serve a model on a cluster.

    Args:
        model: As for ``planner.plan``.
        cluster: As for ``planner.plan``.
        engine: Name of an engine with continuous batching (``profiles.engines``).
        memory_utilization: Share of device memory the engine may use; its own default unless given.
        pins: Degrees to hold fixed: ``tp``, ``pp``, ``ep`` of a replica and ``dp``, replicas.
        top: Most plans to return, one per layout.
        precision: ``bf16`` or ``fp16``; bf16 unless given, where the device has it.
        weights: ``fp8`` for a checkpoint whose matrices are in 8 bits; those of the precision unless given.
        kv_cache_dtype: ``fp8`` for keys and values in 8 bits; 16 bits unless given.
        disaggregated: Whether to look, besides, at replicas that read prompts beside replicas that generate.
        **asked: The requests: ``prompt`` and ``generate`` tokens, and what else ``planner.serving_job.serving_job``
            takes; and ``fabric``, the price, ``memory_reserve_bytes`` and ``allow_files`` of ``planner.Options``.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> best = planner.serving("llama-3.1-8b", "1xH100", prompt=1024, generate=256, tpot_s=0.02).plans[0]
        >>> best.tpot_s < 0.02
        True
    """
    job, options = _split(asked)
    if not isinstance(disaggregated, bool):
        raise SpecError("disaggregated", f"must be True or False; got {str(disaggregated)[:40]!r}")
    resolved = resolve_named_model(model, allow_files=options.allow_files)
    machines = resolve_cluster(cluster, options.fabric)
    notes = [Note(code="assumed_default", field="model", message=text) for text in resolved.assumptions]
    notes += [Note(code="assumed_default", field="cluster", message=text) for text in machines.assumptions]
    _check_context(job, resolved.spec)
    stored, note = _format(precision, weights, machines)
    question = ServingResult(
        model=resolved.spec,
        cluster=with_memory_reserve(machines, options.memory_reserve_bytes),
        job=job,
        engine=check_engine(serving_engine(engine, memory_utilization), resolved.spec),
        precision=stored,
        kv_cache_dtype=_cache_format(kv_cache_dtype, stored),
        price=price_of(options),
        assumptions=(*notes, *note),
    )
    fixed, most = _checked_pins(pins), whole_number("top", top, least=1, most=MOST_TOP)
    return _answered(question, fixed, most, disaggregated=disaggregated)


def _check_context(job: ServingJob, model: ModelSpec) -> None:
    """Refuse requests longer than the model was built for, as engines do (vLLM ``_get_and_verify_max_len``)."""
    longest, most = job.max_model_len, model.max_sequence_length
    if most and longest > most:
        field = "max_model_len" if longest > job.prompt_tokens + job.output.most else "prompt"
        problem = f"requests may have {longest:,} tokens, and {model.name} was built for {most:,}"
        raise SpecError(field, problem, f"at most {most:,} tokens, prompt and output together")


def _format(precision: str | None, weights: str | None, cluster: ClusterSpec) -> tuple[str, tuple[Note, ...]]:
    """The recipe of the products, and a note where it is not the usual one.

    An 8-bit checkpoint is multiplied in 8 bits where the device can: vLLM's documentation of FP8 quantisation asks for
    compute capability 8.9 or an MI300. Below, Marlin's products of 8-bit weights run in 16 bits, not planned here.
    """
    device = cluster.device
    if precision is not None and not _is_one(precision, _FORMATS):
        hint = "bf16 or fp16, with weights fp8 for an 8-bit checkpoint"
        raise SpecError("precision", f"is a format of 16 bits; got {str(precision)[:40]!r}", hint)
    if weights is not None and not _is_one(weights, (EIGHT_BITS,)):
        raise SpecError("weights", f"are fp8, or those of the precision; got {str(weights)[:40]!r}", f"{EIGHT_BITS}")
    known = [name for name in _FORMATS if name in device.peak_flops_per_s]
    if precision is not None and precision not in known:
        raise SpecError("precision", f"{device.name} has no {precision} arithmetic", f"use {' or '.join(known)}")
    if not known:
        raise SpecError("cluster", f"{device.name} has no 16-bit arithmetic")
    if weights is not None:
        if weights not in device.peak_flops_per_s:
            problem = (
                f"{device.name} has no {weights} arithmetic, and 8-bit weights in 16-bit products are not modelled"
            )
            raise SpecError("weights", problem, "leave it out: 16-bit weights")
        return weights, ()
    if precision is None and known[0] != _FORMATS[0]:
        message = f"{known[0]}: {device.name} has no {_FORMATS[0]} arithmetic"
        return known[0], (Note(code="assumed_default", field="precision", message=message),)
    return precision or known[0], ()


def _is_one(value: object, words: Sequence[str]) -> bool:
    """Whether it is one of some words, and no array that compares with each of them."""
    return isinstance(value, str) and value in words


def _cache_format(kv_cache_dtype: str | None, precision: str) -> str:
    """The format of keys and values."""
    if kv_cache_dtype is None or _is_one(kv_cache_dtype, ("auto",)):
        return "bf16" if precision == EIGHT_BITS else precision
    if not _is_one(kv_cache_dtype, (EIGHT_BITS,)):
        raise SpecError("kv_cache_dtype", f"is auto or {EIGHT_BITS}; got {str(kv_cache_dtype)[:40]!r}", EIGHT_BITS)
    return kv_cache_dtype


def _split(asked: Mapping[str, Any]) -> tuple[ServingJob, Options]:
    """The requests and the options that say something about serving."""
    known = inspect.signature(serving_job).parameters
    for name in asked:
        if name not in known and name not in _OPTIONS:
            raise SpecError(name[:40], "unknown setting", did_you_mean(name, [*known, *_OPTIONS]))
    for name in ("prompt", "generate"):
        if asked.get(name) is None:
            raise SpecError(name, "is required: tokens per request", f"for example {name} 1024")
    job = serving_job(**{name: value for name, value in asked.items() if name in known})
    options = Options(**{name: value for name, value in asked.items() if name in _OPTIONS})
    check_options(options)
    return job, options


def _checked_pins(pins: Mapping[str, int] | None) -> dict[str, int]:
    """Plan columns that are fixed."""
    given = {} if pins is None else pins
    if not isinstance(given, Mapping):
        raise SpecError("plan", f"must be a mapping of degrees; got {str(given)[:40]!r}", "for example {'tp': 8}")
    found: dict[str, int] = {}
    for name, value in given.items():
        if name not in PINS:
            raise SpecError(f"plan.{str(name)[:40]}", "is no degree of an engine", ", ".join(PINS))
        found[PINS[name]] = whole_number(f"plan.{name}", value, least=1, most=MAX_DEVICES)
    return found


def _check_apart(asked: ServingResult, pins: Mapping[str, int]) -> None:
    """Refuse what says something about whole replicas only."""
    if not asked.engine.disaggregates:
        problem = f"{asked.engine.name} has no replicas that only read prompts or generate"
        raise SpecError("disaggregated", problem, "engine vllm, sglang or tensorrt-llm")
    for name in ("concurrency", "requests", "percentile"):
        if getattr(asked.job, name) is not None:
            problem = "is known of replicas that do both only, and disaggregated asks for others"
            raise SpecError(name, problem, "leave either out; rate_per_s goes with both")
    if "data_parallel" in pins:
        problem = "fixes replicas that do both, and disaggregated asks for others"
        raise SpecError("plan.dp", problem, "leave either out")


def _answered(asked: ServingResult, pins: Mapping[str, int], top: int, *, disaggregated: bool) -> ServingResult:
    """The question with its answer."""
    if disaggregated:
        _check_apart(asked, pins)
    plans = _pinned(_plans(asked, asked.cluster.num_devices), pins)
    if not len(plans):
        return replace(asked, shortage=no_layout(asked, pins))
    found = layouts(plans, asked)
    fitting = found.take(np.flatnonzero(found.places > 0))
    if not len(fitting.plans):
        larger = (layouts(_pinned(_plans(asked, size), pins), asked) for size in _larger(asked))
        narrow = asked.precision != EIGHT_BITS and EIGHT_BITS in asked.cluster.device.peak_flops_per_s
        small = layouts(plans, replace(asked, precision=EIGHT_BITS)) if narrow else None
        return replace(asked, shortage=no_room(found, small, larger, asked))
    split = apart(fitting, asked, top) if disaggregated else None
    asked = replace(asked, considered=len(fitting.plans), apart=split)
    there = deployments(fitting, asked.job, fixed="data_parallel" in pins)
    within = there.held & within_bounds(fitting, there.points, asked.job)
    devices = there.replicas * replica_devices(fitting.plans)[:, None]
    each = asked.job.output.mean * there.requests_per_s / devices
    worth = each if asked.job.rate_per_s is None else -devices - _fraction(there.points.latency_s)
    worth = np.where(within, worth, -np.inf)
    column = worth.argmax(axis=1)
    best = worth[np.arange(len(column)), column]
    order = [row for row in np.lexsort((fitting.prices.alone_s, -best)).tolist() if best[row] > -np.inf][:top]
    if not order:
        return replace(asked, shortage=too_much(fitting, there, asked))
    return replace(
        asked,
        plans=tuple(deployment(fitting, there, asked, row, int(column[row])) for row in order),
        frontier=tuple(deployment(fitting, there, asked, *place) for place in _frontier(there.points, within, each)),
    )


def _frontier(points: ServingPoints, within: BoolArray, each: FloatArray) -> list[tuple[int, int]]:
    """Places of the deployments that none beats both in tokens per device and in the speed of a request, fastest first.

    Of many a few are taken, evenly spread, the first and the last among them.
    """
    places = np.argwhere(within)
    speed, tokens = -points.token_s[within], each[within]
    front, most = [], -np.inf
    for index in np.lexsort((-tokens, -speed)).tolist():
        if tokens[index] > most:
            front.append((int(places[index][0]), int(places[index][1])))
            most = tokens[index]
    chosen = np.unique(np.linspace(0, len(front) - 1, min(_FRONTIER, len(front))).round().astype(int))
    return [front[index] for index in chosen]


def _larger(asked: ServingResult) -> list[int]:
    """Growing numbers of devices beyond the cluster's, whole machines."""
    node = asked.cluster.node.devices_per_node
    whole = -(-asked.cluster.num_devices // node) * node
    return [whole << k for k in range(1, _DOUBLINGS + 1)]


def _fraction(values: FloatArray) -> FloatArray:
    """Values in their order, squeezed between 0 and 1: they decide where whole numbers are equal."""
    return np.asarray(1 - 1 / (1 + values))


def _plans(asked: ServingResult, num_devices: int) -> PlanBatch:
    """Layouts that the engine loads the model in, as many replicas of each as fill the devices."""
    call = serving_call(asked.job, asked.precision, min(_MANY * num_devices, MAX_GLOBAL_BATCH))
    return engine_strategies(
        asked.model,
        call,
        [num_devices],
        asked.engine,
        framework=find_stack(STACK).framework,
        domain_devices=asked.cluster.domain_devices,
    )


def _pinned(plans: PlanBatch, pins: Mapping[str, int]) -> PlanBatch:
    """The plans that have the degrees which are fixed; of replicas, which are fixed too, as many as asked."""
    kept = np.ones(len(plans), dtype=np.bool_)
    for name, value in pins.items():
        kept &= (most_replicas(plans) >= value) if name == "data_parallel" else (getattr(plans, name) == value)
    plans = plans.take(np.flatnonzero(kept))
    if "data_parallel" not in pins:
        return plans
    return replace(plans, data_parallel=pins["data_parallel"] * plans.attention_groups)
