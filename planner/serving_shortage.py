"""Why no deployment serves what was asked, by how much the best misses it, and what would help."""

from collections.abc import Iterable, Mapping

import numpy as np

from costmodels.plan import FloatArray
from costmodels.serving import at_concurrency
from planner.phrases import gib, seconds
from planner.serving_job import BOUNDS
from planner.serving_results import ServingResult, ServingShortage
from planner.serving_states import Deployments, Layouts, bounded, deployment, replica_devices

_NAMES = {"data_parallel": "replicas"}


def no_layout(asked: ServingResult, pins: Mapping[str, int]) -> ServingShortage:
    """The engine loads the model in no layout with the degrees that are fixed."""
    fixed = ", ".join(f"{_NAMES.get(name, name.replace('_', ' '))} {value}" for name, value in pins.items())
    message = f"{asked.engine.name} loads {asked.model.name} in no layout of {asked.cluster.num_devices} devices"
    return ServingShortage(
        reason="no_layout",
        message=message + (f" with {fixed}" if fixed else ""),
        remedy="degrees that the planner chooses" if fixed else "",
        nearest=None,
    )


def no_room(found: Layouts, larger: Iterable[Layouts], asked: ServingResult) -> ServingShortage:
    """No layout holds the model and one request of the longest length.

    Args:
        found: The layouts there are.
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
    return ServingShortage(reason="does_not_fit", message=message, remedy=_roomier(found, larger, asked), nearest=None)


def _needed_bytes(found: Layouts) -> FloatArray:
    """(N,) bytes on the fullest device with one request of the longest length."""
    memory = found.memory
    return memory.weight_bytes + memory.fixed_bytes + memory.working_bytes + found.longest_bytes


def _roomier(found: Layouts, larger: Iterable[Layouts], asked: ServingResult) -> str:
    tokens = int((found.cache_bytes / found.token_bytes).max())
    wanted = int(asked.job.prompt_tokens + asked.job.output.most)
    if wanted <= tokens < asked.job.max_model_len:
        return f"max_model_len {tokens}"
    usable = asked.cluster.device.usable_memory_bytes
    least_bytes = float(_needed_bytes(found).min())
    if least_bytes <= usable:
        return f"memory_utilization {_rounded_up(least_bytes / asked.cluster.device.memory_bytes):g}"
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
        most = int(found.places.max())
        message = f"{job.concurrency:,} requests at once do not fit a replica: {most:,} do at most"
        return ServingShortage(reason="too_many", message=message, remedy=f"concurrency {most}", nearest=None)
    full = at_concurrency(found.prices, found.places[:, None].astype(np.float64)).rate_per_s[:, 0]
    most_per_s = float((full * found.plans.data_parallel).max())
    message = f"{job.rate_per_s:g} requests a second are too many: all devices together answer {most_per_s:.3g} at most"
    devices = int(np.ceil(asked.cluster.num_devices * (job.rate_per_s or 0) / most_per_s))
    remedy = f"a rate below {most_per_s:.3g}, or more than {devices} devices"
    return ServingShortage(reason="too_many", message=message, remedy=remedy, nearest=None)


def _too_slow(found: Layouts, there: Deployments, asked: ServingResult) -> ServingShortage:
    """No deployment is as fast as all bounds ask."""
    bounds = asked.job.bounds
    seconds_of = {name: np.where(there.held, bounded(there.points, name), np.inf) for name in bounds}
    worst = np.maximum.reduce([seconds_of[name] / bound for name, bound in bounds.items()])
    row, place = (int(index) for index in np.unravel_index(int(worst.argmin()), worst.shape))
    nearest = deployment(found, there, asked, row, place)
    alone = {name: float(each.min()) for name, each in seconds_of.items() if each.min() > bounds[name]}
    parts = [f"{BOUNDS[name]} {seconds(bounds[name])}, at best {seconds(best)}" for name, best in alone.items()]
    message = f"out of reach: {'; '.join(parts)}" if alone else "every bound can be met, but not all together"
    missed = {name: float(getattr(nearest, name)) for name in bounds}
    looser = [f"{name} {_rounded_up(value):g}" for name, value in missed.items() if value > bounds[name]]
    return ServingShortage(reason="too_slow", message=message, remedy=", ".join(looser), nearest=nearest)


def _rounded_up(value: float) -> float:
    """The next number of three digits, so that what is asked for instead is met."""
    digit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.ceil(value / digit * (1 - 1e-9)) * digit)
