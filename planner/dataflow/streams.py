"""Calls that take what their parent has written so far, rather than wait for all of it.

Scoring and services that read responses one by one can do so while generation goes on, on other GPUs: RLHFuse fuses
the two stages (arXiv:2409.13221 section 4), AReaL (arXiv:2505.24298 section 4) and NeMo-RL reward every response as it
ends. What they do in its time is known from two things: when each part of the parent's output is there, and in how many
equal parts the child can take it. With a_j the first, W the child's seconds and n the second, the j-th part is done at

    max over i <= j of a_i + W (j - i + 1) / n

if the child takes parts as they come; all of it is done no earlier than the last part plus W / n. A child that starts
a_1, a_2 - W / n, ... at the latest, and then never waits, is done as soon, and leaves its GPUs to others until then.
So it is one task of W seconds that starts max over j of a_j - W (j - 1) / n after its parent.

Left out on purpose: training, which needs whole batches; chains (what a call that reads early writes is there when it
ends); that parts of a small batch leave pipelines emptier than the whole, beyond the part being no smaller than what
fills them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from costmodels.model_calls import READY_PARTS, CallTable
from costmodels.plan import FloatArray, IntArray
from planner.dataflow.graphs.graph import EXTERNAL, GENERATE, INFERENCE, TRAIN, Call, Dataflow
from profiles.errors import SpecError

_PARTS = np.arange(1, READY_PARTS + 1)


def streamed(graph: Dataflow) -> Dataflow:
    """The graph with every call that scores what is generated reading it early.

    Raises:
        SpecError: If there is no such call.
    """
    kinds = {call.name: call.kind for call in graph.calls}
    reading = {
        call.name
        for call in graph.calls
        if call.kind in (INFERENCE, EXTERNAL) and any(kinds[parent] == GENERATE for parent in graph.parents(call.name))
    }
    if not reading:
        raise SpecError("stream", f"nothing in {graph.name} scores what is generated", "leave it out")
    return replace(graph, calls=tuple(replace(call, stream=call.name in reading) for call in graph.calls))


def reads_early(graph: Dataflow, parent: str, child: str) -> bool:
    """Whether a call takes what another writes while that still runs."""
    source = graph.call(parent)
    return graph.call(child).stream and not source.stream and source.kind != TRAIN


def read_early(graph: Dataflow, name: str) -> bool:
    """Whether any call takes early what a call writes."""
    return any(reads_early(graph, name, child) for child in graph.children(name))


def service_rounds(call: Call, batch: int) -> int:
    """Sequences an external service handles one after the other."""
    return -(-call.sequences(batch) // call.concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """R ways to run a call at either end of a stream.

    Attributes:
        time_s: (R,) seconds of the call.
        ready_s: (R, READY_PARTS) seconds after its start until each part of its output is there.
        work_s: (R,) seconds of its work on all input.
        parts: (R,) equal parts in which it takes its input.
    """

    time_s: FloatArray
    ready_s: FloatArray
    work_s: FloatArray
    parts: IntArray


def service_end(call: Call, batch: int) -> StreamEnd:
    """The one way to run an external service."""
    rounds, time_s = service_rounds(call, batch), call.external_s(batch)
    return StreamEnd(
        time_s=np.asarray([time_s]),
        ready_s=time_s * np.ceil(_PARTS[None, :] * rounds / READY_PARTS) / rounds,
        work_s=np.asarray([time_s]),
        parts=np.asarray([min(rounds, READY_PARTS)]),
    )


def ready_shares(table: CallTable) -> FloatArray:
    """(R, READY_PARTS) when each part of a call's output is there, as a share of its time.

    Inference ends micro-batch by micro-batch, the first after it has passed all stages.
    """
    if table.ready is not None:
        return table.ready
    count, fill = table.plans.num_microbatches[:, None], table.plans.pipeline_parallel[:, None] - 1
    return np.asarray((np.ceil(_PARTS * count / READY_PARTS) + fill) / (count + fill))


def input_parts(table: CallTable) -> IntArray:
    """(R,) parts in which inference takes its input, each no smaller than what fills the pipeline."""
    count, stages = table.plans.num_microbatches, table.plans.pipeline_parallel
    parts: IntArray = np.clip((count + stages - 1) // stages, 1, READY_PARTS)
    return parts


def lead_s(source: StreamEnd, target: StreamEnd) -> FloatArray:
    """How long before the end of each source each target may start. [sources, targets].

    Args:
        source: Ways to run the call that writes.
        target: Ways to run the call that reads.
    """
    begins = np.full((len(source.time_s), len(target.time_s)), -np.inf)
    for parts in np.unique(target.parts).tolist():
        columns = np.flatnonzero(target.parts == parts)
        for place, done in _places(parts):
            latest = source.ready_s[:, place, None] - done * target.work_s[columns]
            begins[:, columns] = np.maximum(begins[:, columns], latest)
    return np.asarray(source.time_s[:, None] - begins)


def _places(parts: int) -> Iterator[tuple[int, float]]:
    """For each of so many parts of the input: the part of the output that completes it, and the share done before."""
    for part in range(parts):
        yield -(-(part + 1) * READY_PARTS // parts) - 1, part / parts
