"""Collective communication: operations, placement and the interface of their cost models."""

from dataclasses import dataclass
from enum import IntEnum
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
    group_size: NDArray[np.int64], stride: NDArray[np.int64], domain_devices: int
) -> NDArray[np.int64]:
    """(K,) members of one group that share a scale-up domain.

    Args:
        group_size: (K,) ranks in the group.
        stride: (K,) distance between consecutive members in the global rank order.
        domain_devices: Devices per scale-up domain.
    """
    shared: NDArray[np.int64] = np.minimum(np.maximum(domain_devices // np.maximum(stride, 1), 1), group_size)
    return shared
