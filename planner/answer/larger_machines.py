"""Machines that hold what those of a question do not: devices with more memory or less left free, hosts with more.

Which of them would do is for ``planner.answer.remedies`` to try.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from math import ceil, floor, inf

from costmodels.plan import OFFLOADS
from costmodels.workload import TrainingJob
from planner.answer.bounded_peaks import least_peak_bytes
from planner.question.jobs import on_other_devices
from planner.question.machines import with_memory_reserve
from planner.question.request import cost_context, space_of
from planner.ranking import Priced
from planner.results import Request
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec, DeviceSpec, NodeSpec
from profiles.units import GIB, GIGA

_MUCH_LARGER = 1.22  # times the memory, at least, for which other devices are worth it: 40 GB for 32, not 96 for 80
_MEMORIES_TRIED = 3  # kinds of devices: the smallest that hold the peak should do, but for what grows with memory
_MOST_HOST_BYTES = 1e15  # the most that ``host_memory_gb`` of a cluster may say


def larger_devices(request: Request, needed_bytes: float) -> Iterator[tuple[ClusterSpec, TrainingJob]]:
    """As many devices of the vendor's with much more memory, linked like the given ones, and the job on them.

    Devices with a fabric of their own (NVLink, xGMI) are replaced by such devices, boards in PCIe slots by such boards;
    by others only where there are none. First come those of its architecture, then those of the least memory; of equals
    the fastest. Where precision or attention are other ones there, so is what plans need. As much is left free on each.
    """
    given, catalog = request.cluster.device, default_catalog()
    left_free_bytes = request.memory_reserve_bytes
    slots = _in_slots(request.cluster.node)

    def group(device: DeviceSpec) -> tuple[bool, bool, float]:
        linked_otherwise = _in_slots(catalog.nodes[device.default_node]) != slots
        return linked_otherwise, device.architecture != given.architecture, device.usable_memory_bytes

    larger = [
        device
        for device in catalog.devices.values()
        if device.vendor == given.vendor
        and device.default_node
        and catalog.nodes[device.default_node].devices_per_node > 1  # no computers on a desk
        and device.usable_memory_bytes - left_free_bytes >= _MUCH_LARGER * given.usable_memory_bytes
    ]
    larger.sort(key=lambda device: (*group(device), -_arithmetic(device, request)))
    needed, tried = {request.job: needed_bytes}, 0
    for _, alike in groupby(larger, key=group):
        device = next(alike)
        with suppress(SpecError):  # a number of devices that its machines do not come to
            named = parse_cluster(f"{request.cluster.num_devices}x{device.name}")
            cluster = with_memory_reserve(named, left_free_bytes)
            job = on_other_devices(request.job, request.asked, request.stack, cluster, request.model)
            if job not in needed:
                needed[job] = _least_peak_bytes(replace(request, job=job), cluster)
            if cluster.device.usable_memory_bytes >= needed[job] and tried < _MEMORIES_TRIED:
                tried += 1
                yield cluster, job


def with_less_left_free(request: Request, needed_bytes: float) -> Iterator[ClusterSpec]:
    """The same devices with less of their memory left free: what plans need at least is theirs, then all of it."""
    device, left_free_bytes = request.cluster.device, request.memory_reserve_bytes
    whole = replace(device, usable_memory_bytes=device.reported_memory_bytes, reserved_memory_bytes=0.0)
    cluster = replace(request.cluster, node=replace(request.cluster.node, device=whole))
    room = floor((device.reported_memory_bytes - needed_bytes) / GIB) * GIB if needed_bytes < inf else 0
    if 0 < room < left_free_bytes:
        yield with_memory_reserve(cluster, room)
    if left_free_bytes:
        yield cluster


def larger_hosts(request: Request, searcher: Callable[[Request, ClusterSpec], Priced]) -> ClusterSpec | None:
    """The same devices on hosts that hold what one of the plans offloads; None where hosts are not what is short.

    The plan is that which offloads least, of those that are likely to live if there are any.

    Args:
        request: A question to which nothing fits.
        searcher: Prices the plans of a request on a cluster.
    """
    if not request.offload and not any(request.pins.get(name) for name in OFFLOADS):
        return None
    roomy = _with_hosts(request.cluster, _MOST_HOST_BYTES)
    try:
        priced = searcher(request, roomy)
    except SpecError:
        return None
    if not len(priced) or not priced.fits.any():
        return None
    wanted = priced.fits if priced.likely is None or not priced.likely_any else priced.likely
    needed_bytes = ceil(float(priced.host_memory_bytes[wanted].min()) / GIGA) * GIGA
    if needed_bytes <= request.cluster.node.host_memory_bytes:
        return None
    return _with_hosts(request.cluster, needed_bytes)


def _with_hosts(cluster: ClusterSpec, host_memory_bytes: float) -> ClusterSpec:
    return replace(cluster, node=replace(cluster.node, host_memory_bytes=host_memory_bytes))


def _in_slots(node: NodeSpec) -> bool:
    """Whether devices of a node reach each other over PCIe."""
    return node.scale_up.kind == "pcie"


def _arithmetic(device: DeviceSpec, request: Request) -> float:
    """FLOP/s of a device in the format of the job, or in 16 bits."""
    formats = (request.job.numerics.gemm_format, "bf16", "fp16")
    return next((device.peak_flops_per_s[name] for name in formats if name in device.peak_flops_per_s), 0.0)


def _least_peak_bytes(request: Request, cluster: ClusterSpec) -> float:
    """The smallest peak memory of the plans of a request on a cluster, whether it has that much or not."""
    plans = space_of(request, cluster).plans
    return least_peak_bytes(plans, cost_context(request, cluster)) if len(plans) else inf
