"""Kernel prices that were asked for before, call by call.

Plans of one model on one kind of device share most of their kernels, and so do the questions of a day.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from weakref import WeakSet

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelCostModel, Prediction, distinct, keys_of, take
from profiles.hardware import DeviceSpec

MOST_DEVICES = 64
MOST_REMEMBERED = 200_000  # calls per device; about 420 bytes each
MOST_TOGETHER = 400_000  # calls of all devices and models in a process
MOST_LOOKED_UP = 5_000  # distinct calls of a batch: larger ones are tables, priced once


@lru_cache(maxsize=256)
def with_all_memory(device: DeviceSpec) -> DeviceSpec:
    """The device whose memory programs can use to the last byte: what is set aside changes no kernel's price."""
    return replace(device, usable_memory_bytes=device.memory_bytes, reserved_memory_bytes=0.0)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RememberedKernelModel:
    """Prices of another model, each call worked out once. Several threads may ask at once.

    Attributes:
        model: Prices calls one by one: what it says of a call must not depend on the other calls of a batch, not even
            in the last bit.
    """

    model: KernelCostModel
    _remembered: dict[DeviceSpec, dict[bytes, tuple[float, ...]]] = field(default_factory=dict, repr=False)

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device; what the model raises, it raises."""
        if len(calls) <= MOST_LOOKED_UP:
            return Prediction.of(self._looked_up(calls, device))
        first, of_row = distinct(calls)  # a space of plans repeats each some twenty times
        calls = take(calls, first)
        if len(calls) > MOST_LOOKED_UP:
            return self.model.predict(calls, device).take(of_row)
        return Prediction.of(self._looked_up(calls, device)[:, of_row])

    def _looked_up(self, calls: KernelCallBatch, device: DeviceSpec) -> FloatArray:
        """(5, C) what the model says, worked out only for calls that nobody has asked about (``Prediction.table``)."""
        if not len(calls):
            return self.model.predict(calls, device).table()
        memory = self._of_device(device)
        keys = keys_of(calls)
        rows = [memory.get(key) for key in keys]
        missing = {key: row for row, key in enumerate(keys) if rows[row] is None}
        if missing:
            priced = self.model.predict(take(calls, np.fromiter(missing.values(), dtype=np.int64)), device).table()
            fresh = dict(zip(missing, map(tuple, priced.T.tolist()), strict=True))
            self._make_room(memory)
            memory.update(fresh)
            rows = [fresh[key] if row is None else row for key, row in zip(keys, rows, strict=True)]
        return np.array(rows, dtype=np.float64).T

    def _of_device(self, device: DeviceSpec) -> dict[bytes, tuple[float, ...]]:
        """What is known of a device; all is forgotten before it becomes too much."""
        device = with_all_memory(device)
        if device not in self._remembered and len(self._remembered) >= MOST_DEVICES:
            self._remembered.clear()
        memory = self._remembered.setdefault(device, {})
        if len(memory) > MOST_REMEMBERED:
            memory.clear()
        return memory

    def _make_room(self, memory: dict[bytes, tuple[float, ...]]) -> None:
        """Before all that a process remembers becomes too much, forget that of other devices."""
        with _LOCK:
            _MODELS.add(self)
            memories = [each for model in _MODELS for each in list(model._remembered.values())]
        if sum(map(len, memories)) > MOST_TOGETHER:
            for other in memories:
                if other is not memory:
                    other.clear()


_MODELS: WeakSet[RememberedKernelModel] = WeakSet()  # those that remember something
_LOCK = Lock()
