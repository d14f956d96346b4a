"""What measured products say of a device's multipliers, memory and quantising, apart from what single kernels do.

Which question it answers: by how much does the roofline of a product change when its parameters are those of the
device at hand rather than those that its price rests on? A price is multiplied by the formula with the new over the
formula with the old parameters; whatever else went into it stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, KernelOp, take
from costmodels.kernels.roofline import Parameters, Rates, gemm_time_s
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

REFITTED = (KernelOp.GEMM, KernelOp.GROUPED_GEMM)
_PRODUCTS = (*REFITTED, KernelOp.FUSED_EXPERTS)
# Of the mean correction of refitted products, what products in other formats get: what a device's products share and
# what one format has of its own are taken to vary alike.
_SHARED = 0.5
_LARGEST = 10.0  # of a logarithm in a file
LONGEST_START_S = 1e-3
PACKED = 500  # added to the number of a group of products whose weights are packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Refits:
    """Parameters of the roofline of products before and after some of them were measured.

    Attributes:
        before, after: By group of calls (``costmodels.kernels.calibrated.groups``).
        level: Mean log of the factor over the measured calls that were refitted.
        starts: By group, seconds that each call takes longer, whatever its size.
    """

    before: Mapping[int, Parameters]
    after: Mapping[int, Parameters]
    level: float = 0.0
    starts: Mapping[int, float] = field(default_factory=dict)

    def log_factor(
        self, calls: KernelCallBatch, group: IntArray, predicted_s: FloatArray, device: DeviceSpec
    ) -> FloatArray:
        """(C,) log of what the price of each call is multiplied by.

        Products of packed weights follow those of the format that they are unpacked to.

        Args:
            calls: The calls.
            group: (C,) of each.
            predicted_s: (C,) their prices.
            device: Where they run.

        Raises:
            SpecError: If the device cannot multiply in a format that a call asks for.
        """
        product = np.isin(calls.op, _PRODUCTS) & (calls.flops > 0)
        found = np.where(product, _SHARED * self.level, 0.0)
        for number in self.after:
            rows = np.flatnonzero(np.isin(calls.op, REFITTED) & (group % PACKED == number) & (calls.flops > 0))
            if len(rows):
                part = take(calls, rows)
                new, old = (product_s(part, one[number], device) for one in (self.after, self.before))
                found[rows] = np.log(new / old)
        start_s = np.zeros(len(calls))
        for number, seconds in self.starts.items():
            start_s[group == number] = seconds
        price_s = predicted_s * np.exp(found)
        return found + np.log1p(np.divide(start_s, price_s, out=np.zeros(len(calls)), where=price_s > 0))

    def to_document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "before": {str(number): dict(one) for number, one in self.before.items()},
            "after": {str(number): dict(one) for number, one in self.after.items()},
            "level": self.level,
            "starts_s": {str(number): seconds for number, seconds in self.starts.items()},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Refits":
        """From what ``to_document`` gave.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: If it is something else.
        """
        before, after = (
            {int(number): {str(k): float(v) for k, v in one.items()} for number, one in document[name].items()}
            for name in ("before", "after")
        )
        level = float(document["level"])
        starts = {int(number): float(seconds) for number, seconds in document["starts_s"].items()}
        values = [v for one in (*before.values(), *after.values()) for v in one.values()]
        if set(before) != set(after) or not np.isfinite(values).all() or not abs(level) <= _LARGEST:
            raise ValueError("refits must be finite and name the same groups before and after")
        if not all(0 <= seconds <= LONGEST_START_S for seconds in starts.values()):
            raise ValueError(f"starts must be between 0 and {LONGEST_START_S:g} s")
        return cls(before=before, after=after, level=level, starts=starts)


def product_s(calls: KernelCallBatch, parameters: Parameters, device: DeviceSpec) -> FloatArray:
    """(C,) seconds of products of one format by the roofline formula.

    Raises:
        SpecError: If the device cannot multiply in it.
    """
    return gemm_time_s(calls, parameters, Rates.of(device, device.peak(GEMM_FORMATS[calls.gemm_format[0]])))
