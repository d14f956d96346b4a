"""How long two models take to train on the same devices, one pipeline filling the bubbles of the other.

RLHFuse (Zhong et al., arXiv:2409.13221, section 5) runs the larger model's pipeline in one direction
and those of the smaller model in the other. This is the lower bound on any such schedule, next to
the time of one model after the other; what it leaves out on purpose is finding a schedule.

A device works on both models; before its first task it waits for an activation from whichever model
reaches it earlier, and after its last for whichever model's gradients leave earlier.
"""

from dataclasses import dataclass

import numpy as np

from profiles.errors import SpecError

_MAX_STAGES = 4096
_MAX_MICROBATCHES = 1 << 22
_BACKWARD = 2.0  # a backward takes twice its forward: gradients of inputs and of weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLoad:
    """One model's part in a fused schedule.

    Attributes:
        stages: Pipeline stages.
        microbatches: Micro-batches each of its pipelines processes.
        forward_s: Seconds one stage takes for the forward of one micro-batch.
    """

    stages: int
    microbatches: int
    forward_s: float

    @property
    def microbatch_s(self) -> float:
        """Forward and backward of one micro-batch on one stage."""
        return (1 + _BACKWARD) * self.forward_s

    @property
    def alone_s(self) -> float:
        """One forward one backward, all stages equal: micro-batches plus the fill of the pipeline."""
        return (self.microbatches + self.stages - 1) * self.microbatch_s


def serial_s(first: PipelineLoad, second: PipelineLoad) -> float:
    """Seconds to train one model after the other."""
    return first.alone_s + second.alone_s


def fused_lower_bound_s(larger: PipelineLoad, smaller: PipelineLoad) -> float:
    """Seconds no fused schedule can undercut.

    Args:
        larger: The model whose one pipeline spans all devices.
        smaller: The model with ``larger.stages / smaller.stages`` pipelines, in the opposite direction.

    Returns:
        The larger of: the larger model alone, and for any device its work on both models plus the
        least it waits at both ends.

    Raises:
        SpecError: If the stages of one do not divide those of the other, or a number is out of bounds.

    Source:
        RLHFuse, arXiv:2409.13221, section 5 and table 3.

    Example:
        Eight stages each, as many micro-batches, two fifths of the work per stage:

        >>> larger = PipelineLoad(stages=8, microbatches=8, forward_s=5.0)
        >>> smaller = PipelineLoad(stages=8, microbatches=8, forward_s=2.0)
        >>> serial_s(larger, smaller) / fused_lower_bound_s(larger, smaller)
        1.4
    """
    for name, load in (("larger", larger), ("smaller", smaller)):
        if not 1 <= load.stages <= _MAX_STAGES or not 1 <= load.microbatches <= _MAX_MICROBATCHES:
            raise SpecError(name, f"{load.stages} stages and {load.microbatches} micro-batches are out of bounds")
        if not 0 < load.forward_s < float("inf"):
            raise SpecError(f"{name}.forward_s", f"must be positive and finite; got {load.forward_s:g}")
    if larger.stages % smaller.stages:
        problem = f"must divide the {larger.stages} stages of the larger model; got {smaller.stages}"
        raise SpecError("smaller.stages", problem)
    device = np.arange(larger.stages)
    opposite = smaller.stages - 1 - device % smaller.stages
    waits = np.minimum(device * larger.microbatch_s, opposite * smaller.microbatch_s)
    work = larger.microbatches * larger.microbatch_s + smaller.microbatches * smaller.microbatch_s
    return float(max(larger.alone_s, work + waits.max()))
