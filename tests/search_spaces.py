"""Small search spaces for tests: quick to price, with every kind of limit in play."""

from typing import Any

import numpy as np

from costmodels.context import CostContext
from planner.rules.base import Setting
from planner.search.agents.uniform import UniformSpace
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, RingCollectives, context, device, gpt, job, node


def small_context(*, memory_bytes: float = 3e9, nodes: int = 2, **changes: Any) -> CostContext:
    """A small GPT on nodes of four devices, with little memory, so that not every plan fits."""
    machine = node(
        device=device(memory_bytes=memory_bytes, usable_memory_bytes=memory_bytes),
        devices_per_node=4,
        domain_devices=4,
        host_memory_bytes=16e9,
    )
    values: dict[str, Any] = {
        "model": gpt(),
        "cluster": ClusterSpec(name="small", node=machine, num_nodes=nodes),
        "job": job(),
        "kernels": RateKernels(start_s=1e-6),
        "collectives": RingCollectives(inside_bytes_per_s=300e9, across_bytes_per_s=25e9),
    }
    return context(**values | changes)


def uniform_space(
    *, framework: str = "megatron", pins: dict[str, int] | None = None, offload: bool = False, **changes: Any
) -> UniformSpace:
    """The uniform space of ``small_context``."""
    where = small_context(**changes)
    setting = Setting(model=where.model, job=where.job, num_devices=where.cluster.num_devices, framework=framework)
    return UniformSpace(setting, where, pins=pins or {}, offload=offload)


class Ticks:
    """A clock that advances by one second each time it is read."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def rows(vectors: np.ndarray[Any, Any]) -> set[tuple[int, ...]]:
    """Vectors as a set."""
    return {tuple(row) for row in vectors.tolist()}
