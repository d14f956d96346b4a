"""Compositions of experts: a role behind which many models of one shape stand, of which every sequence needs one.

Samba-CoE (arXiv:2405.07518) is the example: a router, and up to 150 experts of 7B. A call on such a role deals its
experts out to its replicas in turn, those most asked for first. A replica runs the sequences of one expert after those
of another, so that weights change once per expert and iteration. As many experts as a plan says have a place in device
memory. Where they all have one, they stay; otherwise those most asked for do, and the last place is of the expert that
runs, which is read from host memory or, beyond what that holds, from disk. Nothing is assumed to hide behind
computation, as with other weights that lie on the host.

Experts of one size are the case in which the knapsack of ``planner.dataflow.residency`` is solved by sorting; experts
of several sizes are roles of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.model_calls import CallTable, ModelCall, concatenated
from costmodels.plan import FloatArray, IntArray
from planner.dataflow.graphs.roles import Role
from planner.dataflow.holdings import CallRows
from planner.dataflow.residency import MAX_EXPERTS
from profiles.hardware import NodeSpec

_LEVELS = 16  # numbers of places in device memory that are considered, from one to all in equal ratios


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the replica of a call does per iteration whose experts are asked for most.

    Attributes:
        needed: (K,) probability that each of its experts is asked for, the likeliest first.
        prompts: Prompts of one expert, where it is asked for.
    """

    needed: FloatArray
    prompts: int

    @property
    def runs(self) -> float:
        """Experts that are asked for."""
        return float(self.needed.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldExperts:
    """Where the experts of a composition lie, over all replicas of a call.

    Attributes:
        total: Experts there are.
        on_device: Those that stay in device memory.
        on_host: Those in host memory.
        on_disk: The rest.
        runs: Experts that the busiest replica runs per iteration.
        sequences: Of each of those.
        hit_share: Share of the sequences whose expert is in device memory.
        fetch_s: Seconds per iteration of reading the others.
    """

    total: int
    on_device: int
    on_host: int
    on_disk: int
    runs: float
    sequences: int
    hit_share: float
    fetch_s: float


def popularity(role: Role) -> FloatArray:
    """(E,) share of the sequences that need each expert, the most asked for first: Zipf's law of ``role.skew``."""
    weight = np.arange(1.0, role.experts + 1) ** -role.skew
    return np.asarray(weight / weight.sum())


def busiest(role: Role, prompts: int, replicas: int) -> Share:
    """The share of the replica that has most to do.

    Args:
        role: The composition.
        prompts: Per iteration; each is routed alone.
        replicas: That the experts are dealt to; beyond one per expert they answer for an expert together.
    """
    own = popularity(role)[::replicas] / max(replicas // role.experts, 1)
    needed = -np.expm1(prompts * np.log1p(-np.minimum(own, 1 - 1e-12)))
    return Share(needed=needed, prompts=max(int(np.ceil(prompts * own.sum() / needed.sum() - 1e-6)), 1))


def in_turn(role: Role, asked: ModelCall, price: Callable[[ModelCall], CallTable]) -> CallTable:
    """Ways to run a call of which each replica runs one expert after the other.

    Args:
        role: The composition.
        asked: The call, with the sequences of all experts.
        price: Ways to run a call of a single model.

    Returns:
        Rows of one expert's memory, and of the time of all that are asked for; what the mean expert takes stands for
        each of them.
    """
    tables = []
    group = asked.samples_per_prompt
    for replicas in np.unique(price(asked).plans.data_parallel).tolist():
        share = busiest(role, asked.num_sequences // group, replicas)
        table = price(replace(asked, num_sequences=share.prompts * group * replicas))
        mine = np.flatnonzero(table.plans.data_parallel == replicas)
        tables.append(table.take(mine).scaled(share.runs))
    return concatenated(tables) if tables else price(asked)


def with_places(held: CallRows, role: Role, prompts: int, nodes: Sequence[NodeSpec]) -> CallRows:
    """Every row with several numbers of places for experts in device memory, up to those that fit or are needed.

    Args:
        held: Ways to run and hold a single expert after the other, as ``in_turn`` prices them.
        role: The composition.
        prompts: Per iteration.
        nodes: Machines of each kind.
    """
    replicas = held.table.plans.data_parallel[held.row]
    usable = np.asarray([node.device.usable_memory_bytes for node in nodes])[held.machines]
    rows: list[IntArray] = []
    places: list[IntArray] = []
    for count in np.unique(replicas).tolist():
        mine = np.flatnonzero(replicas == count)
        experts = len(busiest(role, prompts, count).needed)
        room = (usable[mine] - held.active_bytes[mine]) // held.static_bytes[mine]
        most = np.clip(room, 1, experts).astype(np.int64)
        levels = np.unique(np.rint(np.geomspace(1, experts, min(_LEVELS, experts))).astype(np.int64))
        # Besides, what fits alone, and with one place left to other calls.
        grid = np.concatenate(
            [np.tile(levels, (len(mine), 1)), most[:, None], np.maximum(most - 1, 1)[:, None]], axis=1
        )
        pairs = np.stack([np.repeat(mine, grid.shape[1]), np.minimum(grid, most[:, None]).ravel()], axis=1)
        row, place = np.unique(pairs, axis=0).T
        rows.append(row)
        places.append(place)
    if not rows:
        return held
    return _placed(held.take(np.concatenate(rows)), np.concatenate(places), role, prompts, nodes)


def _placed(held: CallRows, places: IntArray, role: Role, prompts: int, nodes: Sequence[NodeSpec]) -> CallRows:
    """Rows of a single expert with so many places for experts each."""
    each = held.static_bytes
    kind, replicas = held.machines, held.table.plans.data_parallel[held.row]
    per_node = np.asarray([node.devices_per_node for node in nodes])[kind]
    share_bytes = np.asarray([node.host_memory_bytes for node in nodes])[kind] / per_node
    host_rate = np.asarray([node.host_copy_bytes_per_s for node in nodes])[kind]
    # All GPUs of a mesh on a node read at once.
    disk_rate = np.asarray([node.disk_bytes_per_s for node in nodes])[kind] / np.minimum(held.size, per_node)
    on_host, fetch_s = np.zeros(len(held)), np.zeros(len(held))
    for count in np.unique(replicas).tolist():
        mine = np.flatnonzero(replicas == count)
        needed = busiest(role, prompts, count).needed
        stay = _staying(places[mine], len(needed))
        until = np.minimum(stay + (share_bytes[mine] // each[mine]).astype(np.int64), len(needed))
        before = np.concatenate([[0.0], np.cumsum(needed)])
        from_host, from_disk = before[until] - before[stay], before[-1] - before[until]
        slowest = np.minimum(host_rate[mine], disk_rate[mine])
        on_host[mine] = until - stay
        fetch_s[mine] = each[mine] * (from_host / host_rate[mine] + from_disk / slowest)
    return replace(
        held,
        layout=held.layout * (MAX_EXPERTS + 1) + places,  # calls that hold other experts share no weights
        time_s=held.time_s + fetch_s,
        low_s=held.low_s + fetch_s,
        high_s=held.high_s + fetch_s,
        static_bytes=each * places,
        host_bytes=on_host * each,
        moved_s=fetch_s,
        ready_s=held.ready_s + fetch_s[:, None],
    )


def _staying(places: IntArray, experts: int) -> IntArray:
    """How many of a replica's experts stay in device memory: all, or all places but that of the one that runs."""
    return np.where(places >= experts, experts, places - 1)


def held_experts(rows: CallRows, row: int, role: Role, prompts: int, *, group: int) -> HeldExperts:
    """Where the experts lie in one row of ``with_places``, of calls with so many sequences to a prompt."""
    entry = int(rows.row[row])
    each = float(rows.table.static_bytes[entry])
    replicas = int(rows.table.plans.data_parallel[entry])
    share = busiest(role, prompts, replicas)
    places, on_host = (round(float(held[row]) / each) for held in (rows.static_bytes, rows.host_bytes))
    stay = int(_staying(np.asarray(places), len(share.needed)))
    on_device, within_host = (min(count * replicas, role.experts) for count in (stay, stay + on_host))
    return HeldExperts(
        total=role.experts,
        on_device=on_device,
        on_host=within_host - on_device,
        on_disk=role.experts - within_host,
        runs=share.runs,
        sequences=share.prompts * group,
        hit_share=min(float(popularity(role)[:on_device].sum()), 1.0),
        fetch_s=float(rows.moved_s[row]),
    )
