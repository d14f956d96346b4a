"""Collectives over ``torch.distributed``: launched with ``torchrun``, every rank runs this, rank 0 writes.

Sizes follow nccl-tests: all_gather counts its output, reduce_scatter and all_to_all their input, per rank. A sample is
the time of several launches back to back divided by their number, the slowest rank's.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profiles.errors import SpecError
from profiles.measure.backend import Backend, Tensor
from profiles.measure.cases import Case
from profiles.measure.timing import WARM_UP_CALLS, Call, Timing, number_of_samples, summary

_ELEMENT_BYTES = 2  # messages are bf16
# A sample lasts this long, so that starting together matters little.
_SAMPLE_S = 2e-3
_MOST_CALLS = 50


def world_size() -> int:
    """Processes that ``torchrun`` started together; 1 without it.

    Raises:
        SpecError: If the environment is not what torchrun sets.
    """
    return _environment("WORLD_SIZE", 1)


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise SpecError(f"environment {name}", f"must be a whole number; got {text[:20]!r}", "launch with torchrun")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The processes of one launch.

    Attributes:
        backend: This process's device.
        library: ``nccl`` (also RCCL's name in PyTorch) or ``gloo``.
        rank: This process.
        groups: (ranks, hosts) to the process group of that size; groups contain rank 0.
        members: The same, to whether this process belongs to it.
    """

    backend: Backend
    library: str
    rank: int
    groups: dict[tuple[int, int], Any]
    members: dict[tuple[int, int], bool]

    @classmethod
    def join(cls, on: str = "") -> "World":
        """Meet the other processes.

        Raises:
            SpecError: If ranks do not divide evenly over hosts.
        """
        ranks, local = world_size(), _environment("LOCAL_WORLD_SIZE", world_size())
        if local < 1 or ranks % local:
            raise SpecError("environment LOCAL_WORLD_SIZE", f"must divide the {ranks} ranks; got {local}")
        backend = Backend.open(on or f"cuda:{_environment('LOCAL_RANK', 0)}")
        library = "nccl" if backend.is_gpu else "gloo"
        distributed = backend.torch.distributed
        distributed.init_process_group(library)
        rank = int(distributed.get_rank())
        lists = group_ranks(ranks, local)
        groups = {size: distributed.new_group(list(members)) for size, members in lists.items()}
        inside = {size: rank in members for size, members in lists.items()}
        return cls(backend=backend, library=library, rank=rank, groups=groups, members=inside)

    def leave(self) -> None:
        """Part from the other processes."""
        self.backend.torch.distributed.destroy_process_group()

    def agree(self, value: float) -> float:
        """The smallest value that any rank gives, on every rank."""
        distributed = self.backend.torch.distributed
        return self._reduced(value, distributed.ReduceOp.MIN, None)

    def told(self, value: Any) -> Any:
        """What rank 0 says, on every rank."""
        said = [value]
        self.backend.torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def slowest(self, value: float, size: tuple[int, int]) -> float:
        """The largest value that any rank of a group gives, on every rank of it."""
        distributed = self.backend.torch.distributed
        return self._reduced(value, distributed.ReduceOp.MAX, self.groups[size])

    def _reduced(self, value: float, how: Any, group: Any) -> float:
        torch = self.backend.torch
        told = torch.tensor([value], dtype=torch.float64, device=self.backend.device)
        torch.distributed.all_reduce(told, op=how, group=group)
        return float(told)


def group_ranks(ranks: int, local: int) -> dict[tuple[int, int], tuple[int, ...]]:
    """Groups worth measuring, by (ranks, hosts): powers of two within a host; whole hosts; one rank of each host.

    Args:
        ranks: All ranks.
        local: Ranks per host.
    """
    hosts = ranks // local
    within = [size for size in _powers(local) if size > 1]
    found = {(size, 1): tuple(range(size)) for size in within}
    for count in (size for size in _powers(hosts) if size > 1):
        found[count, count] = tuple(host * local for host in range(count))
        found[count * local, count] = tuple(range(count * local))
    return found


def _powers(largest: int) -> list[int]:
    """Powers of two below ``largest``, and ``largest``."""
    return sorted({1 << power for power in range(largest.bit_length()) if 1 << power <= largest} | {largest})


def measure_collective(case: Case, world: World, *, target_s: float) -> Timing | None:
    """Time one collective; None on ranks that take no part.

    Raises:
        RuntimeError: As PyTorch raises it where the library lacks the operation.
    """
    size = case["group_size"], case["num_nodes"]
    backend = world.backend
    if not world.members[size]:
        return None
    call = _call(case, world)
    for _ in range(WARM_UP_CALLS):
        call()
    backend.synchronize()
    estimate_s = world.slowest(_sample_s(call, 1, backend), size)
    calls = max(1, min(_MOST_CALLS, round(_SAMPLE_S / estimate_s)))
    count = number_of_samples(calls * estimate_s, target_s)
    samples = []
    for _ in range(count):
        backend.torch.distributed.barrier(group=world.groups[size])
        samples.append(world.slowest(_sample_s(call, calls, backend) / calls, size))
    # Short messages are bound by the launches, which the host queues as fast as it can.
    return summary(samples, "eager" if backend.is_gpu else "wall")


def _sample_s(call: Call, calls: int, backend: Backend) -> float:
    backend.synchronize()
    stop = backend.start_timer()
    for _ in range(calls):
        call()
    return stop()


def _call(case: Case, world: World) -> Call:
    backend, group = world.backend, world.groups[case["group_size"], case["num_nodes"]]
    ranks = case["group_size"]
    per_rank = max(case["size_bytes"] // _ELEMENT_BYTES // ranks, 1)
    distributed = backend.torch.distributed
    whole, other = (backend.random((per_rank * ranks,), case.dtype) for _ in range(2))
    part = whole[:per_rank].clone()
    table: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: distributed.all_reduce(whole, group=group),
        "all_gather": lambda: distributed.all_gather_into_tensor(whole, part, group=group),
        "reduce_scatter": lambda: distributed.reduce_scatter_tensor(part, whole, group=group),
        "all_to_all": lambda: distributed.all_to_all_single(other, whole, group=group),
        "broadcast": lambda: distributed.broadcast(whole, src=0, group=group),
        "send_recv": lambda: _shift(distributed, whole, other, group),
    }
    return table[case.op]


def _shift(distributed: Any, outgoing: Tensor, incoming: Tensor, group: Any) -> None:
    """Every rank sends to the next and receives from the one before, as nccl-tests' sendrecv does."""
    rank, ranks = distributed.get_rank(group), distributed.get_world_size(group)
    after, before = (distributed.get_global_rank(group, (rank + step) % ranks) for step in (1, -1))
    operations = [
        distributed.P2POp(distributed.isend, outgoing, after, group),
        distributed.P2POp(distributed.irecv, incoming, before, group),
    ]
    for work in distributed.batch_isend_irecv(operations):
        work.wait()
