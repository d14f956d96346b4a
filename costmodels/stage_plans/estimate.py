"""Prices of plans whose stages may differ, as ``costmodels.stage_plans.evaluate`` gives them."""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import largest, total
from costmodels.pipeline.schedules import Passes
from costmodels.plan import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimateBatch:
    """N priced plans whose stages may differ.

    Attributes:
        step_time_s: (N,) seconds per optimizer step.
        time_parts_s: Part of the step to (N,) seconds; they add up to ``step_time_s``.
        stages: One micro-batch on every stage, waiting for the host included.
        memory_parts_bytes: Part name to (N, S) bytes of one device of every stage.
        stage_memory_bytes: (N, S) their sum; 0 in unused columns.
        usable_bytes: (N, S) device memory that programs can use.
        host_memory_bytes: (N, S) per node, for what is offloaded.
        host_usable_bytes: (N, S) host memory per node.
        half_widths: (2, N) low and high half of the 90 % interval of the logarithm of the step time; None unless asked
            for.
    """

    step_time_s: FloatArray
    time_parts_s: dict[str, FloatArray]
    stages: Passes
    memory_parts_bytes: dict[str, FloatArray]
    stage_memory_bytes: FloatArray
    usable_bytes: FloatArray
    host_memory_bytes: FloatArray
    host_usable_bytes: FloatArray
    half_widths: FloatArray | None

    def __len__(self) -> int:
        return len(self.step_time_s)

    @property
    def peak_memory_bytes(self) -> FloatArray:
        """(N,) the fullest stage."""
        return largest(self.stage_memory_bytes)

    @property
    def fits(self) -> BoolArray:
        """(N,) whether device and host memory suffice on every stage."""
        return self.overshoot <= 0.0

    @property
    def overshoot(self) -> FloatArray:
        """(N,) memory beyond the limits, as a share of them, summed over stages; 0 when the plan fits."""
        device = np.maximum(self.stage_memory_bytes / self.usable_bytes - 1.0, 0.0)
        host = np.maximum(self.host_memory_bytes / self.host_usable_bytes - 1.0, 0.0)
        return total((device + host).T)
