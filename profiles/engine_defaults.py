"""Settings of generation engines that depend on the device they start on."""

from dataclasses import dataclass
from math import inf

from profiles.hardware import DeviceSpec
from profiles.units import GIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDefaults:
    """Settings that an engine has on some devices unless told otherwise.

    Attributes:
        below_gib: Devices that report less memory.
        named: Devices whose names have this in them.
        prefill_tokens, max_sequences: As of ``EngineSpec``; None where they are the engine's.
        kept_free_mib: Of the memory it reports: the engine's share is of the rest; None where the share is its own.
    """

    below_gib: float = inf
    named: str = ""
    prefill_tokens: int | None = None
    max_sequences: int | None = None
    kept_free_mib: float | None = None

    def of(self, device: DeviceSpec) -> bool:
        """Whether the device is one of them."""
        return device.reported_memory_bytes < self.below_gib * GIB and self.named in device.name

    def share(self, device: DeviceSpec) -> float | None:
        """Of a device's memory, rounded as engines do (three places); None where it is the engine's."""
        if self.kept_free_mib is None:
            return None
        return round(1 - self.kept_free_mib * MIB / device.reported_memory_bytes, 3)
