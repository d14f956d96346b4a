"""Why no deployment serves what was asked, by how much the best misses it, and what would help."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import log

import numpy as np

from costmodels.plan import FloatArray
from costmodels.serving.reading import reads_per_s
from costmodels.serving.steady import most_per_s
from planner.deployments.deployed import deployment
from planner.deployments.job import MOST_REQUESTS, MOST_SECONDS, bound_words, serving_engine
from planner.deployments.layouts import fewest_devices, replica_layouts
from planner.deployments.loads import Deployments
from planner.deployments.ranking import Deployed, ranked, served
from planner.deployments.results import ServingResult, ServingShortage
from planner.deployments.states import Layouts, bounded
from planner.deployments.weights import spread
from planner.phrases import gib, seconds
from planner.question.request import full_node, part_of
from planner.rules.indexer import shares_choices
from profiles.engines import EngineSpec, load_engines
from profiles.hardware import MAX_DEVICES, ClusterSpec
from profiles.precision import parse_precision
from profiles.weights import WEIGHT_FORMATS, parse_weights

_SMALLER = {"fp8": "an 8-bit checkpoint", "int4": "a 4-bit checkpoint (AWQ, GPTQ)"}
_NAMES = {"data_parallel": "replicas"}
_SHORTEST_STEP = 512  # tokens: shorter ones keep no device busy
_RUN = 10  # times as many requests as at once, as benchmarks send (InferenceMAX's)
_DOUBLINGS = 6  # of the devices, in the search for how many would do
_HALVINGS, _BETWEEN = 6, 5  # of what was asked for, in the search for what would do; and tries between the last two


def no_layout(asked: ServingResult, pins: Mapping[str, int]) -> ServingShortage:
    """The engine loads the model in no layout with the degrees that are fixed."""
    model, devices = asked.model, asked.cluster.num_devices
    t, e = pins.get("tensor_parallel", 1), pins.get("expert_parallel", 1)
    needed = max(t, e) * pins.get("pipeline_parallel", 1) * pins.get("data_parallel", 1)
    if needed > devices:
        why = f"that takes {needed:,} devices, and there are {devices:,}"
    elif model.split_heads % t:
        why = f"{model.split_heads} attention heads do not divide by tp {t}"
    elif of_attention := _of_attention(asked, pins, t):
        why = of_attention
    elif e > 1 and model.moe is None:
        why = f"{model.name} has no experts for ep {e}"
    elif e > 1 and "tensor_parallel" in pins and not _spreads(asked.engine, e, t):
        part = "or a part of them, a divisor of tp" if asked.engine.cuts_spread_experts else "or over none, ep 1"
        why = f"experts are spread over all tensor-parallel ranks, ep = tp, {part}"
        why += ", or over those of several attention groups, a multiple of tp" * asked.engine.attention_data_parallel
    elif asked.job.pools and not asked.engine.pools_over_stages and pins.get("pipeline_parallel", 1) > 1:
        why = f"{asked.engine.name} answers with no token (generate 0) on one pipeline stage only"
    elif asked.speculation is not None and len(replica_layouts(replace(asked, speculation=None), pins)[0]):
        why = "speculative decoding takes one pipeline stage, and a draft with heads for every tensor-parallel rank"
        if asked.speculation.method in asked.engine.speculates_ungrouped:
            method = asked.speculation.method.replace("_", " ")
            why += f", and that of {asked.engine.name} by {method} no data-parallel attention"
    elif of_weights := _of_weights(asked, pins):
        why = of_weights
    else:
        fixed = ", ".join(f"{_NAMES.get(name, name.replace('_', ' '))} {value}" for name, value in pins.items())
        why = f"{asked.engine.name} loads {model.name} in no layout of {devices:,} devices"
        why += f" with {fixed}" if fixed else ""
    return ServingShortage(reason="no_layout", message=why, remedy=_elsewhere(asked, pins), nearest=None)


def _of_attention(asked: ServingResult, pins: Mapping[str, int], t: int) -> str:
    """Why what a model attends to does not go with the degrees that are fixed; empty where it does."""
    model, stages = asked.model, pins.get("pipeline_parallel", 1)
    linear, compressed = model.linear_attention, model.compressed_attention
    if linear is not None and not linear.splits_over(t):
        return f"{linear.num_key_heads} and {linear.num_value_heads} heads of linear attention do not divide by tp {t}"
    if compressed is not None and compressed.output_groups % t:
        return f"{compressed.output_groups} groups of heads in the output do not divide by tp {t}"
    if compressed is not None and stages > 1 and not asked.engine.compressed_stages:
        return f"{asked.engine.name} runs compressed keys on one pipeline stage only"
    if shares_choices(model) and stages > 1:
        return f"layers of {model.name} take the choice of keys of one before them, which has to be on their stage"
    return ""


def _of_weights(asked: ServingResult, pins: Mapping[str, int]) -> str:
    """Why the format of the weights does not go with the degrees that are fixed; empty where 16 bits do not either."""
    form, device = asked.weights, asked.cluster.device
    if form is None:
        return ""
    plans, _ = replica_layouts(replace(asked, weights=None), pins)
    if not len(plans):
        return ""
    if not spread(plans, form, asked.engine, device).any():
        return f"{asked.engine.name} shares experts in {form.name} out by width alone on {device.name}, ep 1"
    return f"ranks would get parts of {form.group} weights that share a scale in {form.name}"


def _spreads(engine: EngineSpec, experts: int, tensor: int) -> bool:
    """Whether an engine spreads experts over so many ranks beside so many tensor-parallel ones."""
    over_groups = engine.attention_data_parallel and experts % tensor == 0
    return experts == tensor or over_groups or (engine.cuts_spread_experts and tensor % experts == 0)


def no_room(found: Layouts, asked: ServingResult, pins: Mapping[str, int]) -> ServingShortage:
    """No layout holds the model and one request of the longest length."""
    held = _needed_bytes(found)
    least = int((held - found.room_bytes).argmin())
    plan, room = found.plans.plan(least), float(found.room_bytes[least])
    memory = found.memory
    weights, beside, cached = (
        gib(float(each[least])) for each in (memory.weight_bytes, memory.beside_bytes, found.longest_bytes)
    )
    message = (
        f"one request of {asked.job.max_model_len:,} tokens needs {gib(float(held[least]))} of the "
        f"{gib(room)} that {asked.engine.name} may use of each device, with tp {plan.tensor_parallel} "
        f"and pp {plan.pipeline_parallel}: {gib(float(held[least]) - room)} too much ({weights} of weights, {beside} "
        f"for steps of {asked.engine.prefill_tokens:,} tokens, graphs and context, {cached} of keys and values)"
    )
    remedy = _first(_roomier(found, asked), pins) or _degrees(asked, pins)
    if not remedy or _beyond_usual(remedy, asked):
        remedy = ", or ".join(filter(None, [remedy, _first(_lighter(asked), pins), _devices(asked, pins)]))
    if not remedy:  # what is asked for does not hold there either, or nothing else is asked
        job = replace(asked.job, rate_per_s=None, concurrency=None, requests=None)
        job = replace(job, ttft_s=None, tpot_s=None, latency_s=None, percentile=None)
        some = _elsewhere(replace(asked, job=job), pins)
        remedy = f"{some} would hold the model, but not do what is asked" if some else "devices with more memory"
    return ServingShortage(reason="does_not_fit", message=message, remedy=remedy, nearest=None)


def _beyond_usual(remedy: str, asked: ServingResult) -> bool:
    """Whether a remedy gives the engine more of the memory than it takes by itself, which leaves next to no room."""
    name, _, share = remedy.partition(" ")
    usual = serving_engine(asked.engine.name, asked.cluster.device).memory_utilization
    return name == "memory_utilization" and float(share) > usual


def _needed_bytes(found: Layouts) -> FloatArray:
    """(N,) bytes on the fullest device with one request of the longest length."""
    memory = found.memory
    return memory.weight_bytes + memory.beside_bytes + found.longest_bytes


def _roomier(found: Layouts, asked: ServingResult) -> Iterator[tuple[str, ServingResult]]:
    """Questions in which a request may have room on the same devices, and what was changed."""
    job, device = asked.job, asked.cluster.device
    larger = asked.engine.prefill_tokens > serving_engine(asked.engine.name, device).prefill_tokens
    if larger:
        yield from _shorter_steps(found, asked)
    tokens = int(((found.cache_bytes - found.memory.state_bytes) / found.token_bytes).max())
    if job.prompt_tokens + job.longest_output_tokens <= tokens < job.max_model_len:
        yield f"max_model_len {tokens}", replace(asked, job=replace(job, max_model_len=tokens))
    memory = found.memory
    shares = asked.engine.least_share(device, memory.weight_bytes, memory.beside_bytes, found.longest_bytes)
    least = float(shares[_needed_bytes(found) <= device.usable_memory_bytes].min(initial=np.inf))
    if least <= 1:
        share = _rounded_up(least)
        engine = replace(asked.engine, memory_utilization=share)
        yield f"memory_utilization {share:g}", replace(asked, engine=engine)
    if not larger:
        yield from _shorter_steps(found, asked)


def _shorter_steps(found: Layouts, asked: ServingResult) -> Iterator[tuple[str, ServingResult]]:
    """The same question with steps of fewer tokens, which leave more to the cache; what they need grows with them."""
    over = _needed_bytes(found) - found.room_bytes
    tokens = asked.engine.prefill_tokens
    while (tokens := tokens // 2) >= _SHORTEST_STEP:
        saved = (1 - tokens / asked.engine.prefill_tokens) * found.memory.working_bytes
        if (over <= saved).any():
            engine = replace(asked.engine, prefill_tokens=tokens)
            yield f"max_num_batched_tokens {tokens}", replace(asked, engine=engine)


def _lighter(asked: ServingResult) -> Iterator[tuple[str, ServingResult]]:
    """The same question of checkpoints in fewer bits, and which; the published one, by who serves it, first."""
    published = parse_weights(asked.model.checkpoint_weights or "bf16")
    if published is not None and asked.weights is None and not asked.engine.serves(published, asked.cluster.device):
        for engine in load_engines().values():
            if engine.serves(published, asked.cluster.device) and engine.knows(asked.model):
                other = serving_engine(engine.name, asked.cluster.device)
                yield f"engine {engine.name}", replace(asked, engine=other, weights=published)
    for name, words in _SMALLER.items():
        weights, device = WEIGHT_FORMATS[name], asked.cluster.device
        if asked.engine.serves(weights, device) and weights.element_bytes < 0.9 * _element_bytes(asked):
            yield f"weights {name}, {words}", replace(asked, weights=weights)


def _more_at_once(asked: ServingResult) -> Iterator[tuple[str, ServingResult]]:
    """The same question with as many requests at once as the engine takes by itself, where fewer were asked for."""
    usual = serving_engine(asked.engine.name, asked.cluster.device).max_sequences
    if asked.engine.max_sequences < usual:
        yield f"max_num_seqs {usual}", replace(asked, engine=replace(asked.engine, max_sequences=usual))


def _first(changed: Iterator[tuple[str, ServingResult]], pins: Mapping[str, int]) -> str:
    """What was changed in the first question that something serves; empty where nothing serves any."""
    return next((words for words, other in changed if served(other, pins)), "")


def _element_bytes(asked: ServingResult) -> float:
    """Of a weight of its layers as they are; of experts where only these are in few bits."""
    return parse_precision(asked.precision).storage_bytes if asked.weights is None else asked.weights.element_bytes


def _elsewhere(asked: ServingResult, pins: Mapping[str, int]) -> str:
    """The degrees that would do instead of those fixed, or how many of the devices with them; empty if neither does."""
    return _degrees(asked, pins) or _devices(asked, pins)


def _devices(asked: ServingResult, pins: Mapping[str, int]) -> str:
    """How many of the devices would do with the degrees fixed; empty if no number does."""
    sizes = _sizes(asked.cluster)
    if asked.job.requests is None:  # what the largest has room for says how many would do; a run is shared out over all
        sizes = sizes[-1:]
    for size in sizes:
        larger = replace(asked, cluster=part_of(asked.cluster, size))
        if plans := served(larger, pins):
            return f"{min(_least(plan, larger, pins) for plan in plans):,} of these devices"
    return ""


def _degrees(asked: ServingResult, pins: Mapping[str, int]) -> str:
    """The degrees that would do instead of those fixed; empty if none do."""
    replicas = {name: value for name, value in pins.items() if name == "data_parallel"}
    freed = [free for free in (replicas, {}) if pins and free != pins]
    plans = next((plans for free in freed if (plans := served(asked, free))), ())
    if not plans:
        return ""
    best = min(plans, key=lambda plan: _changed(plan, pins))
    degrees = {"tp": best.tensor_parallel, "pp": best.pipeline_parallel}
    if asked.model.moe is not None or "expert_parallel" in pins:
        degrees["ep"] = best.expert_parallel
    if "data_parallel" in pins:
        degrees["replicas"] = best.replicas
    return " ".join(f"{name} {value}" for name, value in degrees.items())


def _changed(plan: Deployed, pins: Mapping[str, int]) -> tuple[float, ...]:
    """How many of the degrees fixed a deployment changes, of equally many experts' first, and by what factors."""
    degrees = {
        "tensor_parallel": plan.tensor_parallel,
        "pipeline_parallel": plan.pipeline_parallel,
        "data_parallel": plan.replicas,
        "expert_parallel": plan.expert_parallel,
    }
    changed = [pins.get(name, value) != value for name, value in degrees.items()]
    factors = [abs(log(value / pins[name])) for name, value in degrees.items() if name in pins]
    return sum(changed), *changed, sum(factors)


def _least(plan: Deployed, asked: ServingResult, pins: Mapping[str, int]) -> int:
    """Devices that do for a deployment; of replicas that share neither a rate nor a run one does."""
    job = asked.job
    shared = job.rate_per_s is not None or job.requests is not None or "data_parallel" in pins
    return fewest_devices(plan.devices, plan.replicas if shared else 1, asked.cluster)


def _sizes(cluster: ClusterSpec) -> list[int]:
    """Growing numbers of devices beyond the cluster's: whole nodes."""
    sizes = (full_node(cluster).devices_per_node << k for k in range(MAX_DEVICES.bit_length()))
    return [size for size in sizes if cluster.num_devices < size <= MAX_DEVICES][:_DOUBLINGS]


def too_much(found: Layouts, there: Deployments, asked: ServingResult, pins: Mapping[str, int]) -> ServingShortage:
    """Requests are too many for the room or the time there is, or the bounds too tight."""
    if there.held.any():
        return _too_slow(found, there, asked, pins)
    job = asked.job
    if job.concurrency is not None:
        return _too_many_at_once(found, asked, pins, job.concurrency)
    of = most_per_s if found.prices.reading is None else reads_per_s
    each = of(found.prices, found.places.astype(np.float64))
    most_rate = _rounded_down(float((each * found.plans.attention_groups * found.replicas).max()))
    message = f"{job.rate_per_s:g} requests a second are too many: all devices together answer {most_rate:g} at most"
    remedy = _fewer_or_more(found, asked, pins, most_rate)
    if remedy or not job.bounds:
        return ServingShortage(reason="too_many", message=message, remedy=remedy, nearest=None)
    few = _rounded_down(most_rate / 2**_HALVINGS)
    fewer = replace(asked, job=replace(job, rate_per_s=few))
    return _too_slow_too(found, fewer, pins, message, f"rate_per_s {few:g}")


def _too_slow_too(
    found: Layouts, fewer: ServingResult, pins: Mapping[str, int], message: str, few: str
) -> ServingShortage:
    """Requests are too many, and bounds out of reach even where they are as few as that."""
    inner = _too_slow(found, ranked(found, fewer, fixed="data_parallel" in pins).there, fewer, pins)
    remedy = f"{few}, {inner.remedy.split(', or ')[0]}" if inner.nearest is not None and inner.remedy else ""
    return replace(inner, message=f"{message}; at {few.split()[1]}, {inner.message}", remedy=remedy)


def _too_many_at_once(
    found: Layouts, asked: ServingResult, pins: Mapping[str, int], concurrency: int
) -> ServingShortage:
    """More requests at once than have places in any replica."""
    most = int((found.places * found.plans.attention_groups).max())
    message = f"{concurrency:,} requests at once do not fit a replica: {most:,} do at most"

    def held(count: float) -> bool:
        fewer = replace(asked, job=replace(asked.job, concurrency=int(count)))
        return bool(ranked(found, fewer, fixed="data_parallel" in pins).best)

    fewer = _lowered(float(most), held, lambda count: float(max(int(count), 1)), most.bit_length())
    words = [] if fewer is None else [f"concurrency {fewer:.0f}"]
    engine = replace(asked.engine, max_sequences=max(asked.engine.max_sequences, concurrency))
    if served(replace(asked, engine=engine), pins):
        words.append(f"max_num_seqs {concurrency}")
    requests = min(_RUN * concurrency, MOST_REQUESTS)
    if served(replace(asked, job=replace(asked.job, requests=requests)), pins):
        words.append(f"requests {requests}, a run in which some wait for a place")
    if not words and asked.job.bounds:
        alone = replace(asked, job=replace(asked.job, concurrency=1))
        return _too_slow_too(found, alone, pins, message, "concurrency 1")
    return ServingShortage(reason="too_many", message=message, remedy=", or ".join(words), nearest=None)


def _fewer_or_more(found: Layouts, asked: ServingResult, pins: Mapping[str, int], most_rate: float) -> str:
    """The rate that these devices answer within the bounds, and how many devices answer the one asked for."""

    def answered(rate: float) -> bool:
        fewer = replace(asked, job=replace(asked.job, rate_per_s=rate))
        return bool(ranked(found, fewer, fixed="data_parallel" in pins).best)

    rate = _lowered(most_rate, answered, _rounded_down)
    words = "" if rate is None else f"rate_per_s {rate:g}"
    freed = _first(_more_at_once(asked), pins)
    return ", or ".join(filter(None, [freed, words, _first(_lighter(asked), pins), _elsewhere(asked, pins)]))


def _lowered(
    most: float, holds: Callable[[float], bool], rounded: Callable[[float], float], halvings: int = _HALVINGS
) -> float | None:
    """About the largest number up to the most that holds; None where what so many halvings leave does not either."""
    if holds(most):
        return most
    high, low = most, rounded(most / 2)
    for _ in range(halvings - 1):
        if holds(low):
            break
        high, low = low, rounded(low / 2)
    else:
        return None
    for _ in range(_BETWEEN):
        middle = rounded(float(np.sqrt(low * high)))
        low, high = (middle, high) if low < middle < high and holds(middle) else (low, middle)
    return low


def _too_slow(found: Layouts, there: Deployments, asked: ServingResult, pins: Mapping[str, int]) -> ServingShortage:
    """No deployment is as fast as all bounds ask."""
    job, bounds = asked.job, asked.job.bounds
    seconds_of = {name: np.where(there.held, bounded(found, there.points, job, name), np.inf) for name in bounds}
    worst = np.maximum.reduce([seconds_of[name] / bound for name, bound in bounds.items()])
    if not np.isfinite(worst).any():
        message = "requests wait for places in the cache everywhere, and nothing is known of percentiles then"
        remedy = _fewer_or_more(found, asked, pins, job.rate_per_s or 0.0) or "bounds on means: no percentile"
        return ServingShortage(reason="too_many", message=message, remedy=remedy, nearest=None)
    row, place = (int(index) for index in np.unravel_index(int(worst.argmin()), worst.shape))
    nearest = deployment(found, there, asked, row, place)
    alone = {name: float(each.min()) for name, each in seconds_of.items() if each.min() > bounds[name]}
    parts = [
        f"{bound_words(name, job)} {seconds(bounds[name])}, at best {seconds(best)}" for name, best in alone.items()
    ]
    message = f"out of reach: {'; '.join(parts)}" if alone else "every bound can be met, but not all together"
    missed = {name: float(seconds_of[name][row, place]) for name in bounds}
    looser = [f"{name} {_rounded_up(value):g}" for name, value in missed.items() if value > bounds[name]]
    if max(missed.values()) > MOST_SECONDS:
        looser = []
    other = "" if job.rate_per_s is None else _elsewhere(asked, pins)
    freed = _first(_more_at_once(asked), pins)
    remedy = ", or ".join(filter(None, [freed, ", ".join(looser), _first(_lighter(asked), pins), other]))
    return ServingShortage(reason="too_slow", message=message, remedy=remedy, nearest=nearest)


def _rounded_down(value: float) -> float:
    """The next smaller number of three digits, a little less than the limit, at which requests would wait for ever."""
    digit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.floor(0.999 * value / digit) * digit)


def _rounded_up(value: float) -> float:
    """The next number of three digits, so that what is asked for instead is met."""
    digit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.ceil(value / digit * (1 - 1e-9)) * digit)
