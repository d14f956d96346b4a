"""How often calls of a workflow run out of memory, and what they leave free to do so as rarely as was asked for.

Engines take a share of the memory and keep to it; trainers, which also run inference, err as their stacks do.
"""

from collections.abc import Sequence

import numpy as np

from costmodels.plan import FloatArray
from planner.answer.memory_law import MemoryLaw
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import MemoryOwner
from planner.dataflow.graphs.graph import INFERENCE, TRAIN
from profiles.mixed_cluster import MixedCluster


def oom_probability(request: FlowRequest, owners: Sequence[MemoryOwner], usable_bytes: float) -> float:
    """The probability that a call runs out of memory, the likeliest one's.

    Args:
        request: The question.
        owners: Calls that share a GPU, and what they hold of it.
        usable_bytes: What it offers.
    """
    held, risks = sum(owner.static_bytes for owner in owners), [0.0]
    for owner in owners:
        law = _law(request, owner.call)
        if law is not None:
            risks.append(float(law.risk(np.log(np.asarray((held + owner.active_bytes) / usable_bytes)))))
    return max(risks)


def spare_bytes(request: FlowRequest, cluster: MixedCluster, name: str) -> FloatArray:
    """Bytes that a call leaves free on a GPU of each kind for ``FlowOptions.max_oom_risk``. [groups].

    Args:
        request: The question.
        cluster: The GPUs.
        name: The call.
    """
    usable = np.asarray([group.device.usable_memory_bytes for group in cluster.groups])
    law = _law(request, name)
    return 0.0 * usable if law is None else usable * -np.expm1(min(law.most_log(request.options.max_oom_risk), 0.0))


def _law(request: FlowRequest, name: str) -> MemoryLaw | None:
    call = request.graph.call(name)
    return MemoryLaw.of(request.stacks[call.role]) if call.kind in (TRAIN, INFERENCE) else None
