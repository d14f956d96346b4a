"""FlashAttention-2 on devices whose peak it cannot reach, and on which nobody timed it.

Its kernels multiply with ``mma.sync``, the instruction of Ampere (csrc/flash_attn/src/kernel_traits.h takes the atom
SM80_16x8x16). The peaks of Hopper and of data-centre Blackwell need newer ones, ``wgmma`` and ``tcgen05``; the old one
keeps its rate per multiprocessor and clock. Timings say so: the arithmetic of a forward pass takes 2.63 times as long
as at 4096 operations per cycle on an H100 and an H200, and 1.31 to 1.39 times as long as at 2048 on an A100; that of a
backward pass 3.13 and 1.63 times (the packaged coefficients). FlashAttention-2's own benchmark has at most 335 TFLOP/s
both ways on an H100 (arXiv:2307.08691, section 4.1) and 346 on a B200, which has 2.3 times the peak
(https://github.com/Dao-AILab/flash-attention/issues/1589).

So a device of data-centre Blackwell runs it as one of an older generation would that has the same multiprocessors,
clock and memory: of the newest generation on which it was timed. Workstation Blackwell has no newer instructions.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.additive import COEFFICIENTS, finest_groups
from costmodels.kernels.calls import IntArray, KernelCallBatch, Prediction, take
from costmodels.kernels.clocks import OPERATIONS, clock_hz
from costmodels.kernels.device_reference import Situation
from costmodels.kernels.features import op_classes
from costmodels.kernels.implementations import Library, library_of
from costmodels.kernels.learned import LearnedKernelModel
from profiles.hardware import DeviceSpec

_NEWER = "blackwell"
_CLASSES = ("attention_forward", "attention_backward")  # decoding reads keys, whatever multiplies them


@dataclass(frozen=True, slots=True)
class OlderInstructions:
    """Prices of a learned model, those of FlashAttention-2 on data-centre Blackwell at the rate of its instruction.

    Attributes:
        learned: Prices everything.
    """

    learned: LearnedKernelModel

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device.

        Raises:
            SpecError: If the device cannot multiply in a format that a call asks for.
        """
        priced = self.learned.predict(calls, device)
        if device.architecture != _NEWER:
            return priced
        flash, classes = library_of(calls.implementation) == Library.FLASH_2, op_classes(calls)
        for generation in OPERATIONS:
            older = of_generation(device, generation)
            for name in _CLASSES:
                rows = np.flatnonzero(flash & (classes == name))
                rows = rows[self._timed(name, take(calls, rows), device, older)]
                if len(rows):
                    priced = self._as_on(older, name, calls, rows, priced)
                    flash[rows] = False
        return priced

    def _timed(self, op_class: str, calls: KernelCallBatch, device: DeviceSpec, older: DeviceSpec) -> NDArray[np.bool_]:
        """(C,) whether who runs a call was timed on the generation of the older device, and not on the device's own."""
        if op_class not in self.learned.models:
            return np.zeros(len(calls), dtype=np.bool_)
        known = list(self.learned.models[op_class].card.reference[COEFFICIENTS])
        own, its = (np.isin(finest_groups(op_class, calls, spec), known) for spec in (device, older))
        return np.asarray(its & ~own, dtype=np.bool_)

    def _as_on(
        self, older: DeviceSpec, op_class: str, calls: KernelCallBatch, rows: IntArray, priced: Prediction
    ) -> Prediction:
        """Prices with those of some rows as on an older device, as sure as of one that nobody timed."""
        part, strange = take(calls, rows), np.full(len(rows), int(Situation.FOREIGN))
        time_s, low_s, high_s = priced.time_s.copy(), priced.low_s.copy(), priced.high_s.copy()
        time_s[rows] = self.learned.predict(part, older).time_s
        low_s[rows], high_s[rows] = self.learned.models[op_class].interval(part, time_s[rows], strange)
        return replace(priced, time_s=time_s, low_s=low_s, high_s=high_s)


@lru_cache(maxsize=64)
def of_generation(device: DeviceSpec, architecture: str) -> DeviceSpec:
    """A device with another generation's 16-bit rate per multiprocessor and clock; the rest of it stays.

    Example:
        A B200, 2250 TFLOP/s in 148 multiprocessors, becomes one of Hopper with 1125.
    """
    rate = OPERATIONS[architecture] * device.num_sms * clock_hz(device)
    peaks = {**device.peak_flops_per_s, "fp16": rate, "bf16": rate}
    return replace(device, name=f"{device.name} as {architecture}", architecture=architecture, peak_flops_per_s=peaks)
