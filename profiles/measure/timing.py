"""Times calls: warm-up, cold cache, rotating inputs, enough repetitions, median and spread.

Methods, by the names of the timing schema:

* ``graph``: calls over rotating inputs are captured once and replayed; what the host takes to launch is left out.
* ``events``: device events round each launch, launched behind a cache flush that hides the host; the same, for what
  cannot be captured.
* ``eager``: device events round one launch on an idle device; the launch is included.
* ``wall``: host clock; all that a CPU has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from profiles.measure.backend import Backend

Call = Callable[[], object]

WARM_UP_CALLS = 3
LEAST_SAMPLES, MOST_SAMPLES = 5, 100
# A replay lasts this long, so that the two events round it and the gap before it are below a percent.
_GRAPH_S = 1e-3
_MOST_CALLS_PER_GRAPH = 64
# Inputs of that many caches are gone through before one is used again.
_COLD_CACHES = 3
MOST_SETS = 16
# Of the free memory, the share that rotating inputs may take.
_MEMORY_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One case made ready to run.

    Attributes:
        calls: The same operation on different inputs; each call enqueues it once.
        graphable: Whether it can be captured: no synchronisation with the host inside.
    """

    calls: tuple[Call, ...]
    graphable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median_s: Median of the samples.
        spread_s: Interquartile range.
        samples: How many there are.
        method: How they were taken.
    """

    median_s: float
    spread_s: float
    samples: int
    method: str


def summary(samples_s: Sequence[float], method: str) -> Timing:
    """Median and interquartile range of samples in seconds."""
    low, middle, high = np.quantile(np.asarray(samples_s, dtype=np.float64), (0.25, 0.5, 0.75))
    return Timing(median_s=float(middle), spread_s=float(high - low), samples=len(samples_s), method=method)


def number_of_sets(footprint_bytes: float, *, cache_bytes: float, free_bytes: float) -> int:
    """Input sets to rotate through, so that none is still cached when its turn comes; at least 1.

    Args:
        footprint_bytes: Memory of one set.
        cache_bytes: Last-level cache.
        free_bytes: Device memory that is free.
    """
    wanted = math.ceil(_COLD_CACHES * cache_bytes / max(footprint_bytes, 1.0)) + 1
    affordable = int(_MEMORY_SHARE * free_bytes / max(footprint_bytes, 1.0))
    return max(1, min(wanted, affordable, MOST_SETS))


def number_of_samples(call_s: float, target_s: float) -> int:
    """Repetitions that fill ``target_s``, within bounds that keep the median sound and the wait short."""
    return max(LEAST_SAMPLES, min(MOST_SAMPLES, math.ceil(target_s / max(call_s, 1e-9))))


def time_workload(workload: Workload, backend: Backend, *, target_s: float, launch_included: bool = False) -> Timing:
    """Time one workload.

    Args:
        workload: What to run; its calls must be enqueued on the current stream.
        backend: The device.
        target_s: Time to spend on samples.
        launch_included: Let the host's launch count (``eager``).
    """
    for call in workload.calls[:WARM_UP_CALLS] * (WARM_UP_CALLS if len(workload.calls) == 1 else 1):
        call()
    flush_s = _once(backend.flush_cache, backend)
    call_s = _once(workload.calls[0], backend)
    count = number_of_samples(flush_s + call_s, target_s)
    if not backend.is_gpu:
        return _wall(workload, backend, count)
    if launch_included:
        return _events(workload, backend, count, idle=True)
    if workload.graphable:
        timing = _graph(workload, backend, call_s, target_s)
        if timing is not None:
            return timing
    return _events(workload, backend, count, idle=False)


def _once(call: Call, backend: Backend) -> float:
    backend.synchronize()
    stop = backend.start_timer()
    call()
    return stop()


def _wall(workload: Workload, backend: Backend, count: int) -> Timing:
    samples = []
    for index in range(count):
        backend.flush_cache()
        stop = backend.start_timer()
        workload.calls[index % len(workload.calls)]()
        samples.append(stop())
    return summary(samples, "wall")


def _events(workload: Workload, backend: Backend, count: int, *, idle: bool) -> Timing:
    pairs = []
    for index in range(count):
        backend.flush_cache()
        if idle:
            backend.synchronize()
        pair = backend.event(), backend.event()
        pair[0].record()
        workload.calls[index % len(workload.calls)]()
        pair[1].record()
        pairs.append(pair)
    backend.synchronize()
    return summary([began.elapsed_time(ended) / 1e3 for began, ended in pairs], "eager" if idle else "events")


def _graph(workload: Workload, backend: Backend, estimate_s: float, target_s: float) -> Timing | None:
    """None where the calls cannot be captured after all."""
    sets = len(workload.calls)
    calls = max(sets, min(_MOST_CALLS_PER_GRAPH, math.ceil(_GRAPH_S / max(estimate_s, 1e-9))))
    graph = backend.capture([workload.calls[index % sets] for index in range(calls)])
    if graph is None:
        return None
    graph.replay()
    backend.synchronize()
    pairs = []
    for _ in range(number_of_samples(calls * estimate_s, target_s)):
        backend.flush_cache()
        pair = backend.event(), backend.event()
        pair[0].record()
        graph.replay()
        pair[1].record()
        pairs.append(pair)
    backend.synchronize()
    return summary([began.elapsed_time(ended) / 1e3 / calls for began, ended in pairs], "graph")
