"""Clusters of several kinds of machines: ``"4x8xA100-80GB+4x8xH100"``, or a mapping with ``groups``.

Every group is a cluster of identical nodes as in ``profiles.cluster_string``. Unless the user names the link
between groups, two of them talk over the slower of their networks, which is recorded in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from typing import Any

from profiles.catalog import Catalog, default_catalog
from profiles.catalog_entries import validated
from profiles.cluster_entries import MAX_GROUPS, MAX_TEXT_LENGTH, ClusterEntry, MixedClusterEntry, check_num_devices
from profiles.cluster_string import cluster_from_mapping, cluster_to_mapping, parse_cluster
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES, ClusterSpec, LinkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedCluster:
    """Groups of identical nodes with a network between them.

    Attributes:
        name: As the user wrote it.
        groups: One cluster per group, in the user's order.
        between: Link of one network adapter between nodes of different groups; None for the slower of the two
            networks.
        assumptions: What was filled in because the user did not say, in words for the user.
    """

    name: str
    groups: tuple[ClusterSpec, ...]
    between: LinkSpec | None = None
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.groups) <= MAX_GROUPS:
            raise SpecError("cluster.groups", f"must be between 1 and {MAX_GROUPS} groups; got {len(self.groups)}")
        if self.num_devices > MAX_DEVICES:
            raise SpecError("cluster", f"at most {MAX_DEVICES} devices; got {self.num_devices}")

    @property
    def num_devices(self) -> int:
        """Accelerators of all groups."""
        return sum(group.num_devices for group in self.groups)

    @property
    def num_nodes(self) -> int:
        """Nodes of all groups."""
        return sum(group.num_nodes for group in self.groups)

    @property
    def starts(self) -> tuple[int, ...]:
        """First accelerator of each group, counted through all groups."""
        return (0, *accumulate(group.num_devices for group in self.groups[:-1]))

    def group_of(self, device: int) -> int:
        """Number of the group an accelerator belongs to."""
        return sum(start <= device for start in self.starts) - 1

    @property
    def node_of(self) -> tuple[int, ...]:
        """Node of each accelerator, counted through all groups."""
        sizes = [group.node.devices_per_node for group in self.groups for _ in range(group.num_nodes)]
        return tuple(node for node, size in enumerate(sizes) for _ in range(size))

    def joint(self, first: int, second: int) -> ClusterSpec:
        """The cluster on which traffic between two groups is priced: nodes of the one with the slower network.

        Args:
            first: Number of one group.
            second: Number of the other; the same for traffic inside one.
        """
        if first == second:
            return self.groups[first]
        pair = (self.groups[first], self.groups[second])
        slower = min(pair, key=lambda group: group.node.scale_out_bytes_per_s)
        node = slower.node if self.between is None else replace(slower.node, nic=self.between)
        return ClusterSpec(name=self.name, node=node, num_nodes=sum(group.num_nodes for group in pair))


def alone(cluster: ClusterSpec) -> MixedCluster:
    """A cluster of identical nodes as the only group."""
    return MixedCluster(name=cluster.name, groups=(cluster,), assumptions=cluster.assumptions)


def is_mixed(description: str | Mapping[str, Any]) -> bool:
    """Whether a text or mapping describes groups rather than one kind of node."""
    return "+" in description if isinstance(description, str) else "groups" in description


def parse_mixed_cluster(text: str) -> MixedCluster:
    """The cluster a text with ``+`` between its groups describes; without one, a single group.

    Args:
        text: Forms of ``cluster_string.parse_cluster``, joined by ``+``.

    Raises:
        SpecError: If a part has another form, a name is unknown or a count out of bounds.
    """
    catalog = default_catalog()
    if len(text) > MAX_TEXT_LENGTH:
        raise SpecError("cluster", f"at most {MAX_TEXT_LENGTH} characters; got {len(text)}")
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise SpecError("cluster", f"cannot read {text[:60]!r}", "write groups as '4x8xA100-80GB+4x8xH100'")
    if len(parts) > MAX_GROUPS:
        raise SpecError("cluster.groups", f"must be between 1 and {MAX_GROUPS} groups; got {len(parts)}")
    return _joined(text.strip(), [parse_cluster(part, catalog) for part in parts], None, catalog)


def mixed_cluster_from_mapping(mapping: Mapping[str, Any]) -> MixedCluster:
    """The cluster a mapping (see ``MixedClusterEntry``) describes.

    Raises:
        SpecError: If a field is unknown, of the wrong type or out of bounds, or a name is unknown.
    """
    catalog = default_catalog()
    of_one = ClusterEntry.model_fields.keys() - MixedClusterEntry.model_fields.keys()
    for name in mapping:
        if name in of_one:
            raise SpecError(
                f"cluster.{name}", "excludes groups, each of which has its own", f"leave {name} or groups out"
            )
    entry = validated(MixedClusterEntry, mapping, where="cluster")
    groups = []
    for index, group in enumerate(entry.groups):
        try:
            groups.append(cluster_from_mapping(group, catalog))
        except SpecError as error:
            raise error.at(error.field.replace("cluster", f"cluster.groups.{index}", 1)) from None
    cluster = _joined(entry.name or "+".join(group.name for group in groups), groups, entry.between, catalog)
    check_num_devices(entry.num_devices, cluster.num_devices, hint="the groups say how many")
    return cluster


def mixed_cluster_to_mapping(cluster: MixedCluster) -> dict[str, Any]:
    """The mapping that describes the cluster in full; ``mixed_cluster_from_mapping`` reads it back."""
    found: dict[str, Any] = {"name": cluster.name, "groups": [cluster_to_mapping(group) for group in cluster.groups]}
    return found if cluster.between is None else found | {"between": cluster.between.name}


def _joined(name: str, groups: list[ClusterSpec], between: str | None, catalog: Catalog) -> MixedCluster:
    """The groups as one cluster, with what was assumed about them and about the links between them."""
    assumptions = [f"{group.name}: {line}" for group in groups for line in group.assumptions]
    link = None if between is None else catalog.link(between, field="cluster.between", role="fabric")
    cluster = MixedCluster(name=name, groups=tuple(groups), between=link)
    if link is None:
        for first, second in combinations(range(len(groups)), 2):
            node = cluster.joint(first, second).node
            assumptions.append(
                f"between {groups[first].name} and {groups[second].name}: the slower of both networks, "
                f"{node.nics_per_node} x {node.nic.name} per node of {node.devices_per_node}"
            )
    return replace(cluster, assumptions=tuple(assumptions))
