"""Collective communication: operations, placement and the interface of their cost models."""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from math import gcd
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import Prediction
from profiles.hardware import ClusterSpec

LARGE_BYTES = 2.0**20  # smaller messages are a launch and a few latencies


class CollectiveOp(IntEnum):
    """Collective operations, sizes as nccl-tests counts them."""

    ALL_REDUCE = 0
    ALL_GATHER = 1  # size: total output per rank
    REDUCE_SCATTER = 2  # size: total input per rank
    ALL_TO_ALL = 3  # size: total input per rank
    SEND_RECV = 4
    BROADCAST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCallBatch:
    """K collective calls, columns of length K.

    Attributes:
        op: ``CollectiveOp`` codes.
        size_bytes: Message size, see ``CollectiveOp``.
        group_size: Ranks that take part.
        ranks_per_domain: Of those, how many share one scale-up domain (``placement``).
    """

    op: NDArray[np.int64]
    size_bytes: NDArray[np.float64]
    group_size: NDArray[np.int64]
    ranks_per_domain: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.op)


class CollectiveCostModel(Protocol):
    """Prices collective calls on a cluster."""

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        """Seconds for each call; zero for groups of one."""
        ...


def ranks_per_domain(
    group_size: NDArray[np.int64], stride: NDArray[np.int64], domain_devices: int, devices: int = 0
) -> NDArray[np.int64]:
    """(K,) members of a group that share a scale-up domain: of groups that lie unlike, of the smallest part of any.

    Where domains do not hold whole groups, and groups no whole domains, some groups are cut unevenly, and all wait for
    those.

    Args:
        group_size: (K,) ranks in the group.
        stride: (K,) distance between consecutive members in the global rank order.
        domain_devices: Devices per scale-up domain.
        devices: Ranks that groups fill from the first on, of ``stride`` x ``group_size`` at a time; 0 for one group
            alone, which begins with a domain.
    """
    apart, together = np.maximum(stride, 1), np.maximum(group_size, 1)
    shared: NDArray[np.int64] = np.minimum(np.maximum(domain_devices // apart, 1), group_size)
    if devices <= domain_devices:
        return shared
    span = apart * together
    alike = (domain_devices % span == 0) | ((span % domain_devices == 0) & (domain_devices % apart == 0))
    cut = np.flatnonzero(~alike & (apart < domain_devices) & (together > 1))
    layouts, of_row = np.unique(together[cut] * domain_devices + apart[cut], return_inverse=True)
    parts = [_smallest_part(*divmod(each, domain_devices), domain_devices, devices) for each in layouts.tolist()]
    shared[cut] = np.array(parts, dtype=np.int64)[of_row]
    return shared


@lru_cache(maxsize=4096)
def _smallest_part(group_size: int, stride: int, domain_devices: int, devices: int) -> int:
    """Fewest members that the edges of domains leave together of any group; ``stride`` is less than a domain."""
    span = group_size * stride
    blocks = max(min(domain_devices // gcd(span, domain_devices), devices // span), 1)  # placed alike after these
    first = (np.arange(blocks)[:, None] * span + np.arange(stride)).ravel() % domain_devices
    ahead = -(-(domain_devices - first) // stride)
    behind = (first + (group_size - 1) * stride) % domain_devices // stride + 1
    cut = ahead < group_size
    between = domain_devices // stride if (ahead + behind < group_size).any() else group_size
    return int(min(np.minimum(ahead, behind)[cut].min(initial=group_size), between))
