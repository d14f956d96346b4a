"""Plans for serving: how a model is laid out over devices, how many requests a replica takes, and how fast it answers.

A layout is a replica: tensor-, pipeline- and expert-parallel degrees an engine loads the model with; a deployment is
so many replicas of it. Every layout is asked about every number of requests at once, or about the requests a second
that were given, on every number of replicas, in its steady state (``costmodels.serving.steady``). Best is what gives
most tokens per device within the bounds; of a given rate, what takes the fewest devices. Where requests end with their
prompt (``costmodels.serving.reading``), tokens are those of prompts, and the rate, where none is given, the highest.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from planner.deployments.apart import apart
from planner.deployments.deployed import deployment
from planner.deployments.job import ServingJob, serving_engine, serving_job
from planner.deployments.layouts import priced_layouts
from planner.deployments.ranking import ranked
from planner.deployments.results import ServingResult
from planner.deployments.shortage import no_layout, no_room, too_much
from planner.deployments.speculation import ASKED, Drafting, drafting
from planner.deployments.states import EIGHT_BITS
from planner.deployments.weights import served_weights
from planner.question.field_names import meant_field
from planner.question.job_checks import BEFORE_AMPERE
from planner.question.machines import ClusterInput, fabric_notes, resolve_cluster, with_own_reserve
from planner.question.pins import checked_degree
from planner.question.request import ModelInput, Options, check_options, price_of, resolve_named_model
from planner.results import Note, assumed_notes
from profiles.engine_checks import check_engine
from profiles.engines import EngineSpec
from profiles.errors import SpecError, meant_among, shown
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.model import ModelSpec, has_own_head, with_value_head
from profiles.model_presets import ResolvedModel
from profiles.precision import format_name
from profiles.scalars import whole_number, without_point
from profiles.weights import SIXTEEN_BITS

PINS = {"tp": "tensor_parallel", "pp": "pipeline_parallel", "ep": "expert_parallel", "dp": "data_parallel"}
MOST_TOP = 1000
_WITHOUT_EIGHT_BIT_CACHE = (*BEFORE_AMPERE, "cdna1", "cdna2")
_SETTINGS = ("memory_utilization", "max_num_seqs", "max_num_batched_tokens", "eager")
_OPTIONS = ("fabric", "price_per_device_hour_usd", "price_date", "memory_reserve_bytes", "allow_files")


def serving(
    model: ModelInput,
    cluster: ClusterInput,
    *,
    engine: str = "vllm",
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
        pins: Degrees to hold fixed: ``tp`` (or ``tensor_parallel``), ``pp``, ``ep`` of a replica and ``dp``, replicas.
        top: Most plans to return, one per layout.
        precision: ``bf16`` or ``fp16``; bf16 unless given, where the device has it.
        weights: Format of the checkpoint's matrices, of ``profiles.weights``, or ``bf16``; as published unless given.
        kv_cache_dtype: ``fp8`` for keys and values in 8 bits; ``auto``, or the precision, for 16 bits, as unless given.
        disaggregated: Whether to look, besides, at replicas that read prompts beside replicas that generate.
        **asked: The requests: ``prompt`` and ``generate`` tokens, and what else ``planner.deployments.job.serving_job``
            takes; settings of the engine (``planner.deployments.job.serving_engine``); what drafts tokens
            (``planner.deployments.speculation.drafting``); and what ``planner.Options`` says of serving.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> planner.serving("llama-3.1-8b", "1xH100", prompt=1024, generate=256, tpot_s=0.02).plans[0].tpot_s < 0.02
        True
    """
    job, settings, options = _split(asked)
    resolved = resolve_named_model(model, allow_files=options.allow_files)
    machines = resolve_cluster(cluster, options.fabric)
    _check_context(job, resolved.spec)
    program = check_engine(serving_engine(engine, machines.device, **settings), resolved.spec, machines.device)
    _check_prompts_only(job, program, asked, disaggregated=disaggregated)
    stored, note = _format(precision, machines)
    form, held = served_weights(weights, resolved.spec, program, machines.device)
    drafts = drafting(asked, model=resolved.spec, engine=program, allow_files=options.allow_files)
    question = ServingResult(
        model=with_value_head(resolved.spec) if job.pools else resolved.spec,
        idle_head=job.pools and program.pools_with_head and has_own_head(resolved.spec),
        cluster=with_own_reserve(machines, options.memory_reserve_bytes),
        job=job,
        engine=program,
        precision=stored,
        weights=form,
        speculation=drafts,
        kv_cache_dtype=_cache_format(kv_cache_dtype, stored, machines.device, program, resolved.spec),
        price=price_of(options),
        assumptions=(*_notes(resolved, machines, program, options), *note, *held, *_notes_of(drafts), *_waves(job)),
    )
    return _answered(question, pins, top, disaggregated=disaggregated)


def _notes(model: ResolvedModel, machines: ClusterSpec, engine: EngineSpec, options: Options) -> list[Note]:
    """What was assumed of the model, the machines and the release, and whether the network named has an effect."""
    known = [*assumed_notes("model", model.assumptions), *assumed_notes("cluster", machines.assumptions)]
    return [*known, *fabric_notes(machines, options.fabric), *_release(engine, machines.device)]


def _release(engine: EngineSpec, device: DeviceSpec) -> list[Note]:
    """That releases of today no longer run on the device."""
    dropped = engine.dropped_in.get(device.architecture)
    if dropped is None:
        return []
    message = f"{engine.name} before {dropped}, which no longer runs on {device.name}"
    return [Note(code="assumed_default", field="engine", message=message)]


def _notes_of(drafts: Drafting | None) -> tuple[Note, ...]:
    return () if drafts is None else drafts.notes


def _check_context(job: ServingJob, model: ModelSpec) -> None:
    """Refuse requests longer than the model was built for, as engines do (vLLM ``_get_and_verify_max_len``)."""
    longest, most = job.max_model_len, model.max_sequence_length
    if most and longest > most:
        field = "max_model_len" if longest > job.prompt_tokens + job.longest_output_tokens else "prompt"
        problem = f"requests may have {longest:,} tokens, and {model.name} was built for {most:,}"
        raise SpecError(field, problem, f"at most {most:,} tokens, prompt and output together")


def _check_prompts_only(job: ServingJob, engine: EngineSpec, asked: Mapping[str, Any], *, disaggregated: bool) -> None:
    """Refuse what says something of tokens after the first, and engines that serve no embeddings of decoders so.

    TensorRT-LLM's ``trtllm-serve embeddings`` (its documentation, embeddings) collects batches for a delay of its own.
    """
    if not job.ends_with_prompt:
        return
    if asked.get("speculate") is not None:
        problem = f"drafts tokens after the first, and none is generated with generate {job.output_tokens:g}"
        raise SpecError("speculate", problem, "leave it out")
    if disaggregated is True:
        problem = f"is about replicas that generate, and none does with generate {job.output_tokens:g}"
        raise SpecError("disaggregated", problem, "leave it out: every replica only reads prompts")
    if job.pools and not engine.pools:
        problem = f"{engine.name} is not priced where what answers a prompt is no token (generate 0)"
        raise SpecError("engine", problem, "vllm or sglang, or generate 1: a prompt and one token")


def _waves(job: ServingJob) -> list[Note]:
    """What a steady state leaves out that load generators see."""
    if job.concurrency is None or job.concurrency == 1 or job.requests is not None or not job.output.is_fixed:
        return []
    if job.ends_with_prompt:
        return []
    message = (
        "a steady state, in which requests come one by one; outputs of one length end together, and a load generator "
        "that sends the next at once waits longer for first tokens (the option requests prices its run)"
    )
    return [Note(code="steady_state", field="concurrency", message=message)]


def _format(precision: str | None, cluster: ClusterSpec) -> tuple[str, tuple[Note, ...]]:
    """The format of what is in 16 bits, and a note where it is not the usual one."""
    device = cluster.device
    precision = format_name(precision) if isinstance(precision, str) else precision
    if precision is not None and not _is_one(precision, SIXTEEN_BITS):
        hint = "bf16 or fp16, with weights for checkpoints in fewer bits"
        raise SpecError("precision", f"is a format of 16 bits; got {shown(precision)}", hint)
    known = [name for name in SIXTEEN_BITS if name in device.peak_flops_per_s]
    if precision is not None and precision not in known:
        raise SpecError("precision", f"{device.name} has no {precision} arithmetic", f"use {' or '.join(known)}")
    if not known:
        raise SpecError("cluster", f"{device.name} has no 16-bit arithmetic")
    if precision is None and known[0] != SIXTEEN_BITS[0]:
        message = f"{known[0]}: {device.name} has no {SIXTEEN_BITS[0]} arithmetic"
        return known[0], (Note(code="assumed_default", field="precision", message=message),)
    return precision or known[0], ()


def _is_one(value: object, words: Sequence[str]) -> bool:
    """Whether it is one of some words, and no array that compares with each of them."""
    return isinstance(value, str) and value in words


def _cache_format(
    kv_cache_dtype: str | None, precision: str, device: DeviceSpec, engine: EngineSpec, model: ModelSpec
) -> str:
    """The format of keys and values; devices before Ampere and before the MI300 have no kernels for 8 bits.

    FlashInfer's read them from compute capability 8.0 on, also where no tensor core does (vLLM pull request 45375);
    those in Triton, which older devices are left with, from 8.9 on (vLLM issues 47549 and 26431, "type fp8e4nv not
    supported in this architecture"). Latent keys are read by nothing but Triton's on Ampere (vllm-project/vllm,
    v1/attention/backends/mla: all other backends ask for compute capability 9 or 10). Keys that an indexer chooses some
    engines read in 16 bits only (``EngineSpec.sparse_cache_16_bits``). Compressed keys are kept in 8 bits with 16 for
    what is rotated, which kernels of FlashMLA read and nothing else (vLLM, models/deepseek_v4/attention.py,
    ``_resolve_dsv4_kv_cache_dtype``).
    """
    if model.compressed_attention is not None:
        if kv_cache_dtype is not None and not _is_one(kv_cache_dtype, ("auto", EIGHT_BITS)):
            problem = f"engines keep the compressed keys of {model.name} in {EIGHT_BITS}"
            raise SpecError("kv_cache_dtype", f"{problem}; got {str(kv_cache_dtype)[:40]!r}", "leave it out")
        return EIGHT_BITS
    if kv_cache_dtype is None or _is_one(kv_cache_dtype, ("auto", precision)):
        return precision
    if not _is_one(kv_cache_dtype, (EIGHT_BITS,)):
        problem = f"is auto, {precision} as the rest or {EIGHT_BITS}; got {shown(kv_cache_dtype)}"
        raise SpecError("kv_cache_dtype", problem, EIGHT_BITS)
    latent = "latent " if device.architecture == "ampere" and model.latent_attention is not None else ""
    if latent or device.architecture in _WITHOUT_EIGHT_BIT_CACHE:
        problem = f"{device.name} has no kernels of {latent}attention that read {EIGHT_BITS}"
        raise SpecError("kv_cache_dtype", problem, "leave it out: 16 bits")
    if model.indexer is not None and device.architecture in engine.sparse_cache_16_bits:
        problem = f"{engine.name} attends to chosen keys of {model.name} in 16 bits on {device.name}"
        raise SpecError("kv_cache_dtype", problem, "leave it out: 16 bits, or engine vllm or sglang")
    return kv_cache_dtype


def _split(asked: Mapping[str, Any]) -> tuple[ServingJob, dict[str, Any], Options]:
    """The requests, the settings of the engine, and the options that say something about serving."""
    known = inspect.signature(serving_job).parameters
    for name in asked:
        if not (name in known or name in (*_SETTINGS, *ASKED, *_OPTIONS)):
            names = [*known, *_SETTINGS, *ASKED, *_OPTIONS]
            raise SpecError(name[:40], "unknown setting", meant_field(name, names) or meant_among(name, names))
    for name in ("prompt", "generate"):
        if asked.get(name) is None:
            raise SpecError(name, "is required: tokens per request", f"for example {name} 1024")
    job = serving_job(**{name: value for name, value in asked.items() if name in known})
    options = Options(**{name: value for name, value in asked.items() if name in _OPTIONS})
    check_options(options)
    return job, {name: asked[name] for name in _SETTINGS if name in asked}, options


def _checked_pins(pins: Mapping[str, int] | None) -> dict[str, int]:
    """Plan columns that are fixed."""
    given = {} if pins is None else pins
    if not isinstance(given, Mapping):
        raise SpecError("pins", f"must be a mapping of degrees; got {shown(given)}", "for example {'tp': 8}")
    found: dict[str, int] = {}
    for name, value in given.items():
        column, where = PINS.get(str(name), str(name)), f"pins.{str(name)[:40]}"
        if column not in PINS.values():
            raise SpecError(where, "is no degree of an engine", ", ".join(PINS))
        if column in found:
            raise SpecError(where, "is given twice", "give one of its names")
        found[column] = checked_degree(where, without_point(value))
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
    for name in (name for name in pins if PINS.get(name, name) == "data_parallel"):
        problem = "fixes replicas that do both, and disaggregated asks for others"
        raise SpecError(f"pins.{name}", problem, "leave either out")


def _answered(asked: ServingResult, given: Mapping[str, int] | None, top: int, *, disaggregated: bool) -> ServingResult:
    """The question with its answer."""
    pins = _checked_pins(given)
    top = whole_number("top", top, least=1, most=MOST_TOP)
    if not isinstance(disaggregated, bool):
        raise SpecError("disaggregated", f"must be true or false; got {shown(disaggregated)}")
    if disaggregated:
        _check_apart(asked, given or {})
    found = priced_layouts(asked, pins)
    if not len(found.plans):
        shortage = no_layout(asked, pins)
        if pins:  # degrees that no engine could run are a mistake; without any, that there is no layout is the answer
            where = f"pins.{next(iter(given or pins))}" if len(pins) == 1 else "pins"
            raise SpecError(where, shortage.message, shortage.remedy)
        return replace(asked, shortage=shortage)
    fitting = found.take(np.flatnonzero(found.places > 0))
    if not len(fitting.plans):
        return replace(asked, shortage=no_room(found, asked, pins))
    split = apart(fitting, asked, top) if disaggregated else None
    asked = replace(asked, considered=len(fitting.plans), apart=split)
    ranking = ranked(fitting, asked, fixed="data_parallel" in pins)
    if not ranking.best:
        return replace(asked, shortage=too_much(fitting, ranking.there, asked, pins))
    return replace(
        asked,
        plans=tuple(deployment(fitting, ranking.there, asked, *place) for place in ranking.best[:top]),
        frontier=tuple(deployment(fitting, ranking.there, asked, *place) for place in ranking.frontier),
    )
