"""What the reference roofline of a device rests on: its own timings, a relative's, or those of all devices.

Devices with one chip are relatives. Their boards differ: each holds of its peak what its power allows
(``costmodels.kernels.clocks``), and a relative's efficiency counts as far as the two hold the same.
"""

from collections.abc import Mapping
from enum import IntEnum
from math import log

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.additive import DEVICES
from costmodels.kernels.clocks import ClockLaw, law_of, sustained_share
from costmodels.kernels.device_features import BLOCK_SCALING
from profiles.catalog import default_catalog
from profiles.hardware import DeviceSpec

POOLED = "*"  # name of the parameters of all devices together
SCALING = "* scaling"  # likewise of those whose multipliers apply the scales of blocks themselves
BARE = "-bare"  # behind a narrow format: without the quantisation of the input


class Situation(IntEnum):
    """Where a call lies relative to what a model was fitted on, the most trusted first."""

    MEASURED = 0
    BEYOND = 1
    RELATED = 2
    FOREIGN = 3
    UNMET = 4


def arithmetics(classes: NDArray[np.str_]) -> NDArray[np.str_]:
    """(C,) what multiplies the calls of those format classes, whether their input is quantised along or not."""
    return np.char.replace(classes, BARE, "")


def device_reference(
    reference: Mapping[str, Mapping[str, Mapping[str, float]]],
    format_class: str,
    device: DeviceSpec,
    families: Mapping[str, str],
) -> tuple[Mapping[str, float], Situation]:
    """Parameters of the reference roofline on a device in one format, and what they rest on.

    Args:
        reference: By arithmetic: device to parameters, and ``*`` to those of all devices pooled; by format class those
            of devices that have some of their own in it; under ``devices``, by format class, all with rows in it.
        format_class: Of the calls.
        device: Whose parameters are wanted.
        families: Device to family.

    Returns:
        The device's own; else those of another device of its family, one with rows in the class before others, whose
        board holds most nearly as much of its peak, scaled by what the two hold; else the pooled ones. A device timed
        in the arithmetic but not in the class, without quantising for example, is a relative of itself where no other
        has rows in the class.
    """
    known = reference[str(arithmetics(np.array([format_class]))[0])]
    known = {**known, **reference.get(format_class, {})}
    timed = reference[DEVICES].get(format_class, {})
    if device.name in known and device.name in timed:
        return known[device.name], Situation.MEASURED
    law = law_of(reference)
    family = families.get(device.name, "")
    kin = [name for name in known if name == device.name or (family and families.get(name) == family)]
    if kin:
        holds = {name: _held_beside(device, name, law) for name in kin}
        nearest = min(kin, key=lambda name: (name not in timed, name != device.name, abs(log(holds[name])), name))
        return _holding(known[nearest], holds[nearest], law), Situation.RELATED
    pooled = known[SCALING] if SCALING in known and device.architecture in BLOCK_SCALING else known[POOLED]
    return _of_stranger(pooled, device, law), Situation.FOREIGN


def _held_beside(device: DeviceSpec, relative: str, law: ClockLaw | None) -> float:
    """Share of its peak that a device's board holds, over what a relative's holds of its own; 1 where no law says."""
    if law is None or relative == device.name:
        return 1.0
    return sustained_share(device, law) / sustained_share(default_catalog().devices[relative], law)


def _holding(parameters: Mapping[str, float], held: float, law: ClockLaw | None) -> Mapping[str, float]:
    """A relative's parameters on a board that holds so many times the share of its peak.

    Example:
        An H100 reaches 82 % of a peak of which its board holds 72 %. An H20 has its chip, but holds all of a peak of a
        seventh: it reaches what large products reach where no limit holds them, 95 %.
    """
    if law is None:
        return parameters
    reached = parameters["max_efficiency"]
    return {**parameters, "max_efficiency": min(reached * held, max(reached, law.full))}


def _of_stranger(pooled: Mapping[str, float], device: DeviceSpec, law: ClockLaw | None) -> Mapping[str, float]:
    """Pooled parameters, with the efficiency of the share of its peak that a device holds, where that is known."""
    if law is None:
        return pooled
    return {**pooled, "max_efficiency": pooled["max_efficiency"] * sustained_share(device, law)}
