"""Prices of kernels read from texts: those of their calls, and of fusions no less than their arithmetic takes.

A fusion of a text may compute as much as it likes per element. Calls of plans, which are priced by what they move, say
nothing of arithmetic: what they fuse was timed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from costmodels.kernels.calls import Basis, KernelCostModel, KernelOp, Prediction
from costmodels.kernels.issue_bound import arithmetic_s
from costmodels.kernels.mlir.features import KernelFeatures
from costmodels.kernels.mlir.parse import calls_of
from profiles.hardware import DeviceSpec


def price(kernels: Sequence[KernelFeatures], model: KernelCostModel, device: DeviceSpec) -> Prediction:
    """Seconds of one run of each kernel (``count`` is not in them).

    One that its arithmetic holds up, of which the bound is all that is known, counts as extrapolated; its interval
    begins at the bound and is as wide above as it was.

    Raises:
        SpecError: If a size is not known, or the device cannot multiply in a format.
    """
    priced = model.predict(calls_of(kernels), device)
    memory = np.array([kernel.op is KernelOp.MEMORY for kernel in kernels], dtype=np.bool_)
    operations, special = (
        np.array([getattr(kernel, name) for kernel in kernels], dtype=np.float64)
        for name in ("pointwise_flops", "transcendentals")
    )
    least_s = np.where(memory & (priced.basis > Basis.MEASURED), arithmetic_s(operations, special, device), 0.0)
    held_up = least_s > priced.time_s
    time_s = np.maximum(priced.time_s, least_s)
    return replace(
        priced,
        time_s=time_s,
        low_s=np.maximum(priced.low_s, least_s),
        high_s=np.where(held_up, priced.high_s / np.maximum(priced.time_s, 1e-30) * time_s, priced.high_s),
        extrapolated=priced.extrapolated | held_up,
    )
