"""``planner serving``: how to serve a model, and how fast requests are answered."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer

from planner.cli import options as shared
from planner.cli.options import option
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress
from planner.cli.words import cluster_of, prompt_of
from profiles.errors import SpecError
from profiles.units import GIB

_REQUESTS, _BOUNDS, _ENGINE = "Requests", "Bounds", "Engine"
_request, _bound, _engine = (partial(option, panel=panel) for panel in (_REQUESTS, _BOUNDS, _ENGINE))
# Options that the library calls the same, and takes as they are.
_SAME = (
    *("prompt", "prefix", "concurrency", "requests", "percentile", "engine", "max_model_len", "memory_utilization"),
    *("max_num_seqs", "max_num_batched_tokens", "eager"),
    *("precision", "weights", "kv_cache_dtype", "speculate", "draft_tokens", "accepted", "tree_tokens"),
    *("disaggregated", "top", "fabric", "price_date"),
)
_PLAIN_S = 30.0  # beyond, a number without a unit is taken for milliseconds by some and for seconds by others
_UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0, "min": 60.0}

Served = Annotated[str, typer.Option("--model", "-m", help="Name, size (13b), Hugging Face id, or config.json.")]
Prompt = Annotated[int, _request("--prompt", "Tokens of a prompt.", whole=prompt_of)]
Generate = Annotated[
    str,
    _request("--generate", "Tokens generated: 256, lognormal:mean=300,sigma=1,max=4096; 0: embeddings, scores."),
]
Prefix = Annotated[int, _request("--prefix", "Tokens of the prompt that all requests share, found in the cache.")]
Rate = Annotated[float | None, _request("--rate", "Requests a second of all replicas: the fewest GPUs are best.")]
AtOnce = Annotated[int | None, _request("--concurrency", "Requests in every replica at any time.")]
InAll = Annotated[
    int | None, _request("--requests", "Of a run in all, as load generators send them; else the steady state.")
]
Ttft = Annotated[str | None, _bound("--ttft", "Time to the first token, e.g. 500ms.")]
Tpot = Annotated[str | None, _bound("--tpot", "Time per output token after the first, e.g. 40ms.")]
Latency = Annotated[str | None, _bound("--request-latency", "Time to the last token, e.g. 10s.")]
Percentile = Annotated[
    float | None, _bound("--percentile", "So many of 100 at --rate keep --ttft and --request-latency; else means.")
]
Longest = Annotated[int | None, _engine("--max-model-len", "Tokens of the longest request that has to fit.")]
Engine = Annotated[
    str, _engine("--engine", "vllm (default), sglang, tensorrt-llm; older: sglang-2025, vllm-2024 or vllm-0.3.")
]
Share = Annotated[float | None, _engine("--memory-utilization", "Share of GPU memory the engine may use.")]
Running = Annotated[int | None, _engine("--max-num-seqs", "Requests a replica runs at most.")]
StepTokens = Annotated[int | None, _engine("--max-num-batched-tokens", "Tokens of a step at most.")]
Eager = Annotated[bool, _engine("--eager", "No graphs are captured, as with vLLM's --enforce-eager.")]
Format = Annotated[str | None, _engine("--precision", "bf16 (default, where the GPU has it) or fp16.")]
Weights = Annotated[
    str | None,
    _engine("--weights", "The checkpoint's: fp8, fp8-block, int8, int4, mxfp4, nvfp4 (fp4), bf16; else as published."),
]
CacheFormat = Annotated[str | None, _engine("--kv-cache-dtype", "fp8 for keys and values in 8 bits.")]
Speculate = Annotated[
    str | None, _engine("--speculate", "How tokens are drafted: eagle3, eagle, mtp, ngram, or a draft model's name.")
]
DraftTokens = Annotated[int | None, _engine("--draft-tokens", "Tokens drafted per step, for the model to verify.")]
Accepted = Annotated[float | None, _engine("--accepted", "Of them, accepted on average, as an engine's metrics tell.")]
TreeTokens = Annotated[int | None, _engine("--tree-tokens", "Tokens verified per step where drafts branch (SGLang).")]
Apart = Annotated[bool, _engine("--disaggregated", "Look at replicas that read prompts beside ones that generate.")]
Replicas = Annotated[int | None, option("--replicas", "Replicas of the layout.", shared.FIXED)]


def serving(
    model: Served,
    gpus: shared.Gpus,
    prompt: Prompt,
    generate: Generate,
    prefix: Prefix = 0,
    rate: Rate = None,
    concurrency: AtOnce = None,
    requests: InAll = None,
    ttft: Ttft = None,
    tpot: Tpot = None,
    request_latency: Latency = None,
    percentile: Percentile = None,
    engine: Engine = "vllm",
    max_model_len: Longest = None,
    memory_utilization: Share = None,
    max_num_seqs: Running = None,
    max_num_batched_tokens: StepTokens = None,
    eager: Eager = False,
    precision: Format = None,
    weights: Weights = None,
    kv_cache_dtype: CacheFormat = None,
    speculate: Speculate = None,
    draft_tokens: DraftTokens = None,
    accepted: Accepted = None,
    tree_tokens: TreeTokens = None,
    disaggregated: Apart = False,
    tp: shared.Tp = None,
    pp: shared.Pp = None,
    ep: shared.Ep = None,
    replicas: Replicas = None,
    top: shared.Top = 10,
    fabric: shared.Fabric = None,
    reserve_gib: shared.Reserve = 0.0,
    price_per_gpu_hour: shared.Price = None,
    price_date: shared.PriceDate = "",
    json_: shared.Json = False,
    output: shared.Output = None,
    quiet: shared.Quiet = False,
    debug: shared.Debug = False,
) -> None:
    """Rank the ways to serve a model: how fast requests are answered, how many at once, and at what cost.

    The REST interface is planner serve.
    """
    del debug
    given = locals()
    pins = {"tensor_parallel": tp, "pipeline_parallel": pp, "expert_parallel": ep, "data_parallel": replicas}
    asked = {name: given[name] for name in _SAME} | {
        "generate": int(generate) if generate.isdecimal() else generate,
        "rate_per_s": rate,
        "ttft_s": _duration("--ttft", ttft),
        "tpot_s": _duration("--tpot", tpot),
        "latency_s": _duration("--request-latency", request_latency),
        "pins": {name: value for name, value in pins.items() if value is not None},
        "memory_reserve_bytes": reserve_gib * GIB,
        "price_per_device_hour_usd": price_per_gpu_hour,
    }
    _show(model, gpus, asked, json_=json_, output=output, quiet=quiet)


def _show(model: str, gpus: str, asked: Mapping[str, Any], *, json_: bool, output: str | None, quiet: bool) -> None:
    """Ask, print the answer, and exit with 3 if nothing serves that."""
    from planner.deployments.plans import serving as answer
    from planner.document_serving import serving_document
    from planner.render.serving import render_serving

    with progress("pricing deployments", quiet=quiet):
        try:
            result = answer(model, cluster_of(gpus), **asked)
        except SpecError as error:  # degrees are parts of a plan here, as in every command, and replicas have a name
            field = error.field.replace("data_parallel", "replicas")
            raise error.at("plan" + field.removeprefix("pins") if field.startswith("pins") else field) from None
    shown = (serving_document(result), lambda console: render_serving(result, console, quiet=quiet))
    emit(shown, json_=json_, output=output, markup=True)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)


def _duration(field: str, text: str | None) -> float | None:
    """``500ms`` as 0.5; a plain number is in seconds, and no larger than anybody would mean in seconds.

    Raises:
        SpecError: If it is no duration.
    """
    if text is None:
        return None
    words = text.strip().lower()
    unit = next((unit for unit in _UNITS if words.endswith(unit)), "")
    try:
        number = float(words[: len(words) - len(unit)]) * _UNITS.get(unit, 1.0)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise SpecError(field, f"must be a duration; got {text[:40]!r}", "for example 500ms or 2s")
    if not unit and number > _PLAIN_S:
        raise SpecError(field, f"needs a unit; got {text[:40]!r}", f"{number:g}ms or {number:g}s")
    return number
