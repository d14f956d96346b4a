"""Reference times that add up: what a kernel does, part by part, times coefficients of who runs it.

time = sum over terms of coefficient x ideal time of that part. Terms are physical (arithmetic at peak, bytes at
the memory's or the cache's rate, a launch, a round of thread blocks), so a time keeps its slope in every
dimension beyond the shapes it was fitted on. Coefficients belong to a path of groups from coarse to fine, e.g.
number format, library, engine, generation of the device; a call takes those of the finest group that was
fitted, so that a kernel nobody has timed gets what its nearest relatives have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.attention_terms import (
    attention_floor_s,
    attention_paths,
    attention_terms,
    decode_paths,
    decode_terms,
    forward_terms,
)
from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch
from costmodels.kernels.clocks import law_of, on_held_back
from costmodels.kernels.device_features import DeviceFormat, device_format
from costmodels.kernels.expert_terms import expert_floor_s, expert_paths, expert_terms
from costmodels.kernels.memory_terms import memory_floor_s, memory_paths, memory_terms
from profiles.hardware import DeviceSpec

COEFFICIENTS = "coefficients"  # key of a card's reference that holds them by group
DEVICES = "devices"  # likewise: rows in the fit by format class and device
Paths = Sequence[NDArray[np.str_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditiveClass:
    """How the calls of one operation class are taken apart.

    Attributes:
        terms: Named columns of length C, seconds at ideal rates.
        paths: (C,) names of each call's groups, coarse to fine; the finest ends in the device's generation.
        floor_s: (C,) seconds that no kernel on the device can undercut.
        levels: Groups of a path.
        named: Place in a path of the first that says who runs which operation; those ahead know other kernels only.
        multiplied: Terms that are times of products at the peak.
        clocked: Whether terms rest on what boards let products hold of it.
    """

    terms: Callable[[KernelCallBatch, DeviceFormat], Mapping[str, FloatArray]]
    paths: Callable[[KernelCallBatch, DeviceFormat], Paths]
    floor_s: Callable[[KernelCallBatch, DeviceFormat], FloatArray]
    levels: int
    named: int = 2
    multiplied: tuple[str, ...] = ()
    clocked: bool = False


_ATTENTION = AdditiveClass(
    terms=attention_terms,
    paths=attention_paths,
    floor_s=attention_floor_s,
    levels=5,
    multiplied=("arithmetic", "tail", "block"),
    clocked=True,
)
ADDITIVE: Mapping[str, AdditiveClass] = {
    "attention_forward": replace(_ATTENTION, terms=forward_terms),
    "attention_backward": _ATTENTION,
    "attention_decode": AdditiveClass(
        terms=decode_terms,
        paths=decode_paths,
        floor_s=attention_floor_s,
        levels=6,
        multiplied=("arithmetic", "tail"),  # a block takes its keys, not its products
        clocked=True,
    ),
    "fused_experts": AdditiveClass(
        terms=expert_terms,
        paths=expert_paths,
        floor_s=expert_floor_s,
        levels=5,
        multiplied=("arithmetic", "padded", "heaviest"),
    ),
    "memory": AdditiveClass(terms=memory_terms, paths=memory_paths, floor_s=memory_floor_s, levels=5, named=3),
}


def added_s(
    op_class: str,
    calls: KernelCallBatch,
    device: DeviceSpec,
    reference: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> tuple[FloatArray, IntArray]:
    """(C,) seconds of the reference, and how many groups of the path coarser than its finest one had to be taken.

    Args:
        op_class: Operation class of every call.
        calls: The calls.
        device: Where they run.
        reference: Of a model's card: by group the coefficient of each term, dimensionless, of which the group "" always
            exists, and the law of clocks that the terms rest on.

    Raises:
        SpecError: If the device cannot multiply in a format that a call asks for.
    """
    described, kind = device_format(calls, device, law_of(reference)), ADDITIVE[op_class]
    coefficients = reference[COEFFICIENTS]
    terms = kind.terms(calls, described)
    paths = kind.paths(calls, described)
    seconds, steps = np.empty(len(calls)), np.empty(len(calls), dtype=np.int64)
    codes = np.zeros(len(calls), dtype=np.int64)
    for names in paths:  # one code per distinct path: there are few
        _, inverse = np.unique(names, return_inverse=True)
        codes = codes * (int(inverse.max(initial=0)) + 1) + inverse
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        path = [str(names[rows[0]]) for names in paths]
        found = next((place for place in range(len(path) - 1, -1, -1) if path[place] in coefficients), 0)
        chosen = dict(coefficients.get(path[found], coefficients[""]))
        chosen |= {name: on_held_back(chosen[name], described.held_back) for name in kind.multiplied}
        seconds[rows] = sum((chosen[name] * values[rows] for name, values in terms.items()), np.zeros(len(rows)))
        steps[rows] = len(path) - 1 - found
    return seconds, steps


def unmet(op_class: str, steps: IntArray) -> NDArray[np.bool_]:
    """(C,) whether nobody timed what runs a call, on any device.

    Args:
        op_class: Operation class.
        steps: (C,) groups of the path that had to be left out, see ``added_s``.
    """
    return np.asarray(steps > ADDITIVE[op_class].levels - 1 - ADDITIVE[op_class].named)


def finest_groups(op_class: str, calls: KernelCallBatch, device: DeviceSpec) -> NDArray[np.str_]:
    """(C,) names of the groups that ask for most: who runs a call on which generation of devices."""
    return ADDITIVE[op_class].paths(calls, device_format(calls, device))[-1]


def floor_s(op_class: str, calls: KernelCallBatch, device: DeviceSpec) -> FloatArray:
    """(C,) seconds that no kernel on the device can undercut."""
    return ADDITIVE[op_class].floor_s(calls, device_format(calls, device))
