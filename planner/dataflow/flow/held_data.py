"""What calls write for each other, and how much host memory it takes until it has been read.

Training systems hand data on through host memory (verl, OpenRLHF and NeMo-RL as objects of their controller, AReaL as
files or messages), so that is where it is counted: spread evenly over the GPUs of the call that writes it, from when
that begins to write to when the last call that reads it has ended. Calls that run ahead write again before that, and
hold it several times. What a GPU holds of it while a micro-batch is worked on is part of the call's own memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.dataflow.flow.costs import key_bytes
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import HeldData, Task

_ROUNDING = 1e-9  # of the last end: moments closer than this are one, as starts are ends less durations


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMemory:
    """Host memory of data between calls.

    Attributes:
        held: By key, largest first.
        peak_bytes: Most of it at a time, over all nodes.
        node_bytes: Most of it at a time on each node. [nodes]
    """

    held: tuple[HeldData, ...]
    peak_bytes: float
    node_bytes: FloatArray


def data_memory(
    request: FlowRequest, tasks: Sequence[Task], meshes: Mapping[str, tuple[int, int]], node_of: IntArray
) -> DataMemory:
    """Host memory of data between calls over the simulated iterations.

    Args:
        request: Graph and workload.
        tasks: What happens when.
        meshes: First GPU and number of GPUs of every call on GPUs.
        node_of: Node of each GPU.
    """
    ran = {(task.name, task.iteration): (task.start_s, task.end_s) for task in tasks}
    iterations = 1 + max((task.iteration for task in tasks), default=0)
    nodes = int(node_of.max()) + 1
    held: list[HeldData] = []
    spans_of: list[tuple[float, float, FloatArray]] = []
    for key, source in request.graph.producers.items():
        readers = tuple(call.name for call in request.graph.calls if key in call.inputs)
        size_bytes = key_bytes(request, request.graph.call(source), key)
        if not readers or not size_bytes:
            continue
        first, count = meshes[source]
        share = np.bincount(node_of[first : first + count], minlength=nodes) / count * size_bytes
        spans = [
            (ran[source, iteration][0], max(ran[reader, iteration][1] for reader in readers))
            for iteration in range(iterations)
        ]
        copies = int(_most_at_once([(begin, end, np.ones(1)) for begin, end in spans])[0])
        held.append(HeldData(key=key, source=source, readers=readers, size_bytes=size_bytes, copies=copies))
        spans_of += [(begin, end, share) for begin, end in spans]
    return DataMemory(
        held=tuple(sorted(held, key=lambda item: (-item.size_bytes * item.copies, item.key))),
        peak_bytes=float(
            _most_at_once([(begin, end, share.sum(keepdims=True)) for begin, end, share in spans_of]).sum()
        ),
        node_bytes=_most_at_once(spans_of) if spans_of else np.zeros(nodes),
    )


def _most_at_once(spans: Sequence[tuple[float, float, FloatArray]]) -> FloatArray:
    """Largest sum at any time of amounts that come and go; what goes makes room for what comes at the same time."""
    if not spans:
        return np.zeros(1)
    slack_s = _ROUNDING * max(end for _, end, _ in spans)
    moments = [(begin + min(slack_s, (end - begin) / 2), 1, amount) for begin, end, amount in spans]
    moments += [(end, 0, -amount) for _, end, amount in spans]
    moments.sort(key=lambda item: item[:2])
    return np.asarray(np.cumsum([amount for _, _, amount in moments], axis=0).max(axis=0))
