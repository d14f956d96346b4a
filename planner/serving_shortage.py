"""Why no deployment serves what was asked, by how much the best misses it, and what would help."""

from collections.abc import Iterable, Mapping

import numpy as np

from costmodels.plan import FloatArray
from costmodels.serving import most_per_s, replica_devices
from planner.phrases import gib, seconds
from planner.serving_job import bound_words
from planner.serving_results import ServingResult, ServingShortage
from planner.serving_states import Deployments, Layouts, bounded, deployment

_NAMES = {"data_parallel": "replicas"}


def no_layout(asked: ServingResult, pins: Mapping[str, int]) -> ServingShortage:
    """The engine loads the model in no layout with the degrees that are fixed."""
    model, devices = asked.model, asked.cluster.num_devices
    t, e = pins.get("tensor_parallel", 1), pins.get("expert_parallel", 1)
    needed = max(t, e) * pins.get("pipeline_parallel", 1) * pins.get("data_parallel", 1)
    if needed > devices:
        why = f"that takes {needed:,} devices, and there are {devices:,}"
    elif model.num_attention_heads % t:
        why = f"{model.num_attention_heads} attention heads do not divide by tp {t}"
    elif model.linear_attention is not None and not model.linear_attention.splits_over(t):
        linear = model.linear_attention
        why = f"{linear.num_key_heads} and {linear.num_value_heads} heads of linear attention do not divide by tp {t}"
    elif e > 1 and model.moe is None:
        why = f"{model.name} has no experts for ep {e}"
    elif e > 1 and "tensor_parallel" in pins and e != t and not (asked.engine.attention_data_parallel and e % t == 0):
        why = "experts are spread over all tensor-parallel ranks, ep = tp, or over none, ep 1"
        why += ", or over those of several attention groups, a multiple of tp" * asked.engine.attention_data_parallel
    elif devices % needed:
        why = f"replicas of {needed:,} devices do not divide the {devices:,}"
    else:
        fixed = ", ".join(f"{_NAMES.get(name, name.replace('_', ' '))} {value}" for name, value in pins.items())
        why = f"{asked.engine.name} loads {model.name} in no layout of {devices:,} devices"
        why += f" with {fixed}" if fixed else ""
    remedy = "degrees that the planner chooses" if pins else ""
    return ServingShortage(reason="no_layout", message=why, remedy=remedy, nearest=None)


def no_room(found: Layouts, small: Layouts | None, larger: Iterable[Layouts], asked: ServingResult) -> ServingShortage:
    """No layout holds the model and one request of the longest length.

    Args:
        found: The layouts there are.
        small: The same with an 8-bit checkpoint; None where the device cannot.
        larger: Those on growing numbers of devices, looked at until one has room.
        asked: The question.
    """
    held = _needed_bytes(found)
    least = int(held.argmin())
    plan, short = found.plans.plan(least), float(held[least]) - found.room_bytes
    message = (
        f"one request of {asked.job.max_model_len:,} tokens needs {gib(float(held[least]))} of the "
        f"{gib(found.room_bytes)} that {asked.engine.name} may use of each device, with tp {plan.tensor_parallel} "
        f"and pp {plan.pipeline_parallel}: {gib(short)} too much"
    )
    return ServingShortage(
        reason="does_not_fit", message=message, remedy=_roomier(found, small, larger, asked), nearest=None
    )


def _needed_bytes(found: Layouts) -> FloatArray:
    """(N,) bytes on the fullest device with one request of the longest length."""
    memory = found.memory
    return memory.weight_bytes + memory.fixed_bytes + memory.working_bytes + found.longest_bytes


def _roomier(found: Layouts, small: Layouts | None, larger: Iterable[Layouts], asked: ServingResult) -> str:
    tokens = int((found.cache_bytes / found.token_bytes).max())
    wanted = int(asked.job.prompt_tokens + asked.job.output.most)
    if wanted <= tokens < asked.job.max_model_len:
        return f"max_model_len {tokens}"
    usable = asked.cluster.device.usable_memory_bytes
    least_bytes = float(_needed_bytes(found).min())
    if least_bytes <= usable:
        return f"memory_utilization {_rounded_up(least_bytes / asked.cluster.device.memory_bytes):g}"
    if small is not None and (small.places > 0).any():
        return "weights fp8, an 8-bit checkpoint"
    for layouts in larger:
        fitting = np.flatnonzero(layouts.places > 0)
        if len(fitting):
            return f"{int(replica_devices(layouts.plans)[fitting].min())} of these devices, which hold a replica"
    return "devices with more memory"


def too_much(found: Layouts, there: Deployments, asked: ServingResult) -> ServingShortage:
    """Requests are too many for the room or the time there is, or the bounds too tight."""
    if there.held.any():
        return _too_slow(found, there, asked)
    job = asked.job
    if job.concurrency is not None:
        most = int((found.places * found.plans.attention_groups).max())
        message = f"{job.concurrency:,} requests at once do not fit a replica: {most:,} do at most"
        return ServingShortage(reason="too_many", message=message, remedy=f"concurrency {most}", nearest=None)
    each = most_per_s(found.prices, found.places.astype(np.float64))
    most_rate = _rounded_down(float((each * found.plans.data_parallel).max()))
    message = f"{job.rate_per_s:g} requests a second are too many: all devices together answer {most_rate:g} at most"
    devices = int(np.ceil(asked.cluster.num_devices * (job.rate_per_s or 0) / most_rate))
    return ServingShortage(
        reason="too_many",
        message=message,
        remedy=f"rate_per_s {most_rate:g}, or about {devices:,} devices",
        nearest=None,
    )


def _too_slow(found: Layouts, there: Deployments, asked: ServingResult) -> ServingShortage:
    """No deployment is as fast as all bounds ask."""
    job, bounds = asked.job, asked.job.bounds
    seconds_of = {name: np.where(there.held, bounded(found, there.points, job, name), np.inf) for name in bounds}
    worst = np.maximum.reduce([seconds_of[name] / bound for name, bound in bounds.items()])
    if not np.isfinite(worst).any():
        message = "requests wait for places in the cache everywhere, and nothing is known of percentiles then"
        remedy = "more devices, a lower rate_per_s, or bounds on means: no percentile"
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
    return ServingShortage(reason="too_slow", message=message, remedy=", ".join(looser), nearest=nearest)


def _rounded_down(value: float) -> float:
    """The next smaller number of three digits, a little less than the limit, at which requests would wait for ever."""
    digit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.floor(0.999 * value / digit) * digit)


def _rounded_up(value: float) -> float:
    """The next number of three digits, so that what is asked for instead is met."""
    digit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.ceil(value / digit * (1 - 1e-9)) * digit)
