"""The machines of a question: a cluster named or described, the network said besides, memory left free."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from planner.results import Note
from profiles.catalog import default_catalog
from profiles.cluster_string import cluster_from_mapping, parse_cluster
from profiles.errors import SpecError, shown
from profiles.hardware import ClusterSpec, LinkSpec
from profiles.mixed_cluster import MixedCluster, is_mixed, mixed_cluster_from_mapping, parse_mixed_cluster
from profiles.scalars import plain
from profiles.units import GIB

ClusterInput = str | Mapping[str, Any] | ClusterSpec


def mixed_of(cluster: object) -> MixedCluster | None:
    """The groups of a cluster of several kinds of machines; None for one that is not described as such.

    Raises:
        SpecError: If it cannot be read.
    """
    cluster = plain(cluster)
    if isinstance(cluster, MixedCluster):
        return cluster
    if isinstance(cluster, str) and is_mixed(cluster):
        return parse_mixed_cluster(cluster)
    if isinstance(cluster, Mapping) and is_mixed(cluster):
        return mixed_cluster_from_mapping(cluster)
    return None


def resolve_cluster(cluster: ClusterInput, fabric: str | None) -> ClusterSpec:
    """The cluster a user names or describes, with another network link if one is given.

    Groups are one cluster where their machines are alike.

    Raises:
        SpecError: If it cannot be read, has groups of several kinds, or says another network.
    """
    nic = None if fabric is None else default_catalog().link(fabric, field="fabric", role="fabric")
    mixed = mixed_of(cluster)
    if mixed is not None:
        if nic is not None and isinstance(cluster, Mapping):
            for said in (*(group.get("fabric") for group in cluster["groups"]), cluster.get("between")):
                _check_said_once(said, nic)
        cluster = _of_one_kind(mixed, named=nic is not None or mixed.between is not None)
    if isinstance(cluster, str):
        return _named_cluster(cluster, fabric)
    if isinstance(cluster, ClusterSpec):
        if nic is None:
            return cluster
        return replace(cluster, node=replace(cluster.node, nic=nic))
    if not isinstance(cluster, Mapping):
        raise SpecError("cluster", f"must be text or a mapping; got {shown(cluster)}", "for example '8xH100'")
    if nic is None:
        return cluster_from_mapping(dict(cluster), default_catalog())
    _check_said_once(cluster.get("fabric"), nic)
    return cluster_from_mapping({**cluster, "fabric": nic.name}, default_catalog())


def _check_said_once(said: object, nic: LinkSpec) -> None:
    """Refuse another network than the one that a cluster says it has."""
    if isinstance(said, str) and default_catalog().link(said, role="fabric") != nic:
        raise SpecError("fabric", f"is {nic.name}, and the cluster's own is {said[:60]!r}", "give one of them")


def _of_one_kind(mixed: MixedCluster, *, named: bool) -> ClusterSpec:
    """The cluster of groups whose machines, and the network between them, are all alike.

    Args:
        mixed: The groups.
        named: Whether the network between them was named.

    Raises:
        SpecError: If they are not.
    """
    groups, node = mixed.groups, mixed.groups[0].node
    if not of_one_kind(mixed):
        names = " and ".join(group.name for group in groups)
        raise SpecError(
            "cluster",
            f"a plan that treats all devices alike cannot use {names}",
            "name one of them; to train on both: planner search",
        )
    filled = dict.fromkeys(line for group in groups for line in group.assumptions)
    if len(groups) > 1 and not named:
        filled[f"between groups: {node.nics_per_node} x {node.nic.name} per node"] = None
    return ClusterSpec(name=mixed.name, node=node, num_nodes=mixed.num_nodes, assumptions=tuple(filled))


def of_one_kind(mixed: MixedCluster) -> bool:
    """Whether the machines of all groups, and the network between them, are alike."""
    node = mixed.groups[0].node
    return all(group.node == node for group in mixed.groups) and mixed.between in (None, node.nic)


def fabric_notes(cluster: ClusterSpec, fabric: str | None) -> list[Note]:
    """That a network was named where there is but one node; sizes and comparisons may hold larger ones besides."""
    if fabric is None or cluster.num_nodes > 1:
        return []
    message = f"has no effect on one node: nothing is sent over {cluster.node.nic.name}"
    return [Note(code="no_effect", field="fabric", message=message)]


@lru_cache(maxsize=256)
def _named_cluster(text: str, fabric: str | None) -> ClusterSpec:
    return parse_cluster(text, default_catalog(), fabric=fabric)


def with_memory_reserve(cluster: ClusterSpec, reserve_bytes: float) -> ClusterSpec:
    """The cluster with so much of each device's memory left free, or what it leaves free already if that is more."""
    device = cluster.device
    most = device.reported_memory_bytes
    if not 0 <= reserve_bytes < most:
        raise SpecError(
            "memory_reserve_bytes",
            f"must be at least 0 and below the {most:.0f} usable bytes ({most / GIB:.1f} GiB); "
            f"got {reserve_bytes:g} ({reserve_bytes / GIB:.1f} GiB)",
            "0" if reserve_bytes < 0 else f"a tenth would be {most / 10 / GIB:.0f} GiB",
        )
    if reserve_bytes <= device.reserved_memory_bytes:
        return cluster
    smaller = replace(device, usable_memory_bytes=most - reserve_bytes, reserved_memory_bytes=reserve_bytes)
    return replace(cluster, node=replace(cluster.node, device=smaller))


def with_own_reserve(cluster: ClusterSpec, reserve_bytes: float) -> ClusterSpec:
    """The cluster asked for with so much memory left free; what its mapping leaves free is no other amount.

    Raises:
        SpecError: If it is another, or out of bounds.
    """
    own = cluster.device.reserved_memory_bytes
    if own and reserve_bytes and abs(own - reserve_bytes) > 1:  # answers tell whole bytes
        problem = f"is {reserve_bytes:.12g}, and cluster.usable_memory_bytes leaves {own:.12g} free"
        raise SpecError("memory_reserve_bytes", problem, "give one of them")
    return with_memory_reserve(cluster, reserve_bytes)
