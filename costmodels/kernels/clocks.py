"""Which share of its peak rate a device holds while its matrix units are busy, for devices that nobody timed.

Peaks are stated at the boost clock. A board that would draw more than its limit there lowers the clock, and with it the
voltage, so that power falls with the cube of the clock: of the peak it holds the cube root of what the limit allows
over what the peak would draw. What an operation draws at a given clock falls from one year's chips to the next; it
grows with the square of the clock that a chip is driven to. So cards that multiply at half of their chip's rate
(GeForce with 32-bit sums) hold all of it, and those with a low limit (L4, L40S, T4) hold little.

The constants, one of them for AMD, whose libraries reach less of what their boards allow, are fitted on timed devices
(``costmodels.calibration.clock_fit``).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from costmodels.kernels.calls import FloatArray
from profiles.hardware import DeviceSpec

# Year in which the first board of an architecture was launched, as the vendors announced them.
LAUNCHED: Mapping[str, int] = {
    "volta": 2017,
    "turing": 2018,
    "ampere": 2020,
    "ada": 2022,
    "hopper": 2022,
    "blackwell": 2024,
    "blackwell-rtx": 2025,
    "cdna1": 2020,
    "cdna2": 2021,
    "cdna3": 2023,
    "cdna4": 2025,
}
# Dense 16-bit operations of a multiprocessor per cycle, the newest generation first (whitepapers of H100 and A100).
OPERATIONS: Mapping[str, float] = {"hopper": 4096.0, "ampere": 2048.0}
# What a chip's multiprocessor makes before boards are held back to part of it, one after the other where an
# architecture has several: Ampere's smaller chips make half of the A100's (whitepapers and data sheets of the T4, the
# RTX A6000, the RTX 6000 Ada and the RTX PRO 6000).
_WHOLE: Mapping[str, tuple[float, ...]] = {
    "turing": (1024.0,),
    "ampere": (1024.0, 2048.0),
    "ada": (1024.0,),
    "blackwell-rtx": (1024.0,),
    "hopper": (4096.0,),
}
_SINCE = 2020
CLOCKS = "clocks"  # key of a reference that holds the constants of a law
_EVERY = "*"  # below it: they hold for every device
_USUAL_CLOCK_HZ = 1.8e9
_QUICK, _QUICK_CLOCK_HZ = frozenset({"ada", "blackwell-rtx"}), 2.4e9  # chips of a process that boosts higher
_LARGE_PRODUCTS = 1 / 0.95  # time of products over that at the peak where no limit holds them (``ClockLaw.full``)
_SCALED = (1e12, 1e18)  # FLOP/s per watt and square of the clock are near 1 in these units


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockLaw:
    """Constants of the law.

    Attributes:
        full: Share of the peak that large products reach where no limit holds them back.
        capacity: Log of the rate per watt, times the square of the clock, that a board of 2020 sustains.
        growth: Of it per year.
        amd: Added to it for AMD.
        typical: Share held by the median of the fitted devices; for those that the law says nothing of.
    """

    full: float
    capacity: float
    growth: float
    amd: float
    typical: float

    def as_parameters(self) -> dict[str, float]:
        """As the card of a model holds it."""
        return asdict(self)

    def as_reference(self) -> dict[str, dict[str, dict[str, float]]]:
        """As the reference of a card holds it, for ``law_of``."""
        return {CLOCKS: {_EVERY: self.as_parameters()}}


def law_of(reference: Mapping[str, Mapping[str, Mapping[str, float]]]) -> ClockLaw | None:
    """The law that the reference of a learned model rests on; None where it rests on none."""
    return ClockLaw(**reference[CLOCKS][_EVERY]) if CLOCKS in reference else None


def clock_hz(device: DeviceSpec) -> float:
    """Clock at which the peak of a device is stated: a multiprocessor multiplies a power of two per cycle.

    Example:
        An H100 makes 989.4e12 operations per second in 132 multiprocessors: 4,096 each at 1.83 GHz.
    """
    return device.peak_flops_per_s["fp16"] / device.num_sms / _runs(device)


def _runs(device: DeviceSpec) -> float:
    """16-bit operations per cycle of a multiprocessor of a device that has a 16-bit peak."""
    usual_hz = _QUICK_CLOCK_HZ if device.architecture in _QUICK else _USUAL_CLOCK_HZ
    return float(operations_per_cycle(device.peak_flops_per_s["fp16"] / device.num_sms, usual_hz))


def held_back(device: DeviceSpec) -> float:
    """How many times as fast the matrix units of a device's chip are per cycle as it may run them; 1 if not known.

    Example:
        An H20 makes 148e12 operations per second in 78 multiprocessors: 1,024 per cycle, where its chip, the H100's,
        has 4,096. Its shared memory, caches and schedulers are the chip's: 4. A GeForce that adds up in 32 bits runs at
        half of what the workstation card with its chip does: 2.
    """
    if device.architecture not in _WHOLE or "fp16" not in device.peak_flops_per_s:
        return 1.0
    runs = _runs(device)
    return next((whole / runs for whole in _WHOLE[device.architecture] if whole >= runs), 1.0)


def on_held_back(coefficient: Any, times: float) -> Any:
    """Time over that at the peak on a board that runs its chip's matrix units at one part of so many of their rate.

    What a kernel takes beyond large products it waits for shared memory, schedulers and its own instructions, which
    nobody held back with the matrix units.

    Args:
        coefficient: Number or array; the same on a board that runs all of them.
        times: ``held_back`` of the device.

    Example:
        Three times as long as at the peak, on an H20: 1.05, as large products take, and a quarter of the other 1.95.
    """
    own = np.minimum(coefficient, _LARGE_PRODUCTS)
    return own + (coefficient - own) / times


def operations_per_cycle(flops_per_s: FloatArray | float, usual_hz: float = _USUAL_CLOCK_HZ) -> FloatArray:
    """Operations in one cycle of a multiprocessor that makes so many per second at its peak: a power of two.

    Args:
        flops_per_s: Of one multiprocessor.
        usual_hz: Clock of chips like it, to within a factor of 1.4.
    """
    return np.asarray(2.0 ** np.round(np.log2(np.maximum(flops_per_s / usual_hz, 1.0))))


def heat(device: DeviceSpec) -> float | None:
    """Log of the 16-bit peak per watt times the square of its clock; None without matrix units or launch year."""
    if device.architecture not in LAUNCHED or "fp16" not in device.peak_flops_per_s:
        return None
    return math.log(device.peak_flops_per_s["fp16"] / device.power_w / _SCALED[0] * clock_hz(device) ** 2 / _SCALED[1])


def sustained_share(device: DeviceSpec, law: ClockLaw) -> float:
    """Share of the peak that large products reach on a device."""
    needed = heat(device)
    if needed is None:
        return law.typical
    allowed = law.capacity + law.growth * (LAUNCHED[device.architecture] - _SINCE)
    allowed += law.amd if device.vendor == "amd" else 0.0
    return law.full * math.exp(min(0.0, (allowed - needed) / 3))
