"""From what a user writes to a ``ClusterSpec``: ``"2x8xH100-80GB"``, or a mapping for everything else.

====================  ==================================================================
``A100``              one device
``8xA100``, ``A100:8``  eight devices, spread over nodes of the usual size
``2x8xH100-80GB``     two nodes of eight
``72xGB200``          eighteen hosts of four in one NVLink domain
``2x72xGB200``        two NVLink domains of 72
``2xp5.48xlarge``     two nodes of a kind that the catalogue names
``gb200-nvl72``       one NVLink domain of 72, as the catalogue names it
====================  ==================================================================

Whatever the user did not say is taken from the catalogue and recorded, in words, in
``ClusterSpec.assumptions``. Every count is bounded here, so that nothing behind has to.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from profiles.catalog import Catalog, default_catalog
from profiles.catalog_entries import validated
from profiles.cluster_entries import MAX_NICS_PER_NODE, MAX_TEXT_LENGTH, ClusterEntry, check_num_devices
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES, MAX_DEVICES_PER_NODE, MAX_NODES, ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from profiles.units import GIGA

_FORMS = "write a device ('H100'), a count and a device ('8xH100') or nodes, devices per node and a device ('2x8xH100')"
_COUNT = r"[0-9]+"
_TIMES = r"\s*[x*\u00d7]\s*"
_CLUSTER = re.compile(
    rf"(?:gpu[._])?(?:(?P<outer>{_COUNT}){_TIMES})?(?:(?P<inner>{_COUNT}){_TIMES})?"
    rf"(?P<device>(?!{_COUNT}{_TIMES})[a-z0-9](?:[a-z0-9 ._/+-]*[a-z0-9])?)(?:\s*:\s*(?P<suffix>{_COUNT}))?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Overrides:
    """What the user said about the node, the rest being the catalogue's."""

    nics_per_node: int | None = None
    scale_up: str | None = None
    fabric: str | None = None
    host_link: str | None = None
    host_memory_bytes: float | None = None
    disk_bytes_per_s: float | None = None
    domain_devices: int | None = None


def parse_cluster(
    text: str,
    catalog: Catalog | None = None,
    *,
    gpus_per_node: int | None = None,
    fabric: str | None = None,
    nics_per_node: int | None = None,
    scale_up: str | None = None,
    node: str | None = None,
) -> ClusterSpec:
    """The cluster a short text describes.

    Args:
        text: ``[NODESx][COUNTx]DEVICE``, ``DEVICE[:COUNT]`` or ``[NODESx]NODE``, case-insensitive.
        catalog: Where names are looked up; the default catalogue if omitted.
        gpus_per_node: Devices per host, for the forms that give a total.
        fabric: Link of one network adapter, e.g. ``ib-hdr-200``.
        nics_per_node: Network adapters per host.
        scale_up: Link between the devices of a host.
        node: Catalogue name of the node, e.g. ``p4d.24xlarge``.

    Raises:
        SpecError: If the text has another form, a name is unknown or a count out of bounds.
    """
    catalog = catalog or default_catalog()
    _check_count("cluster.gpus_per_node", gpus_per_node, MAX_DEVICES_PER_NODE)
    _check_count("cluster.nics_per_node", nics_per_node, MAX_NICS_PER_NODE)
    if len(text) > MAX_TEXT_LENGTH:
        raise SpecError("cluster", f"at most {MAX_TEXT_LENGTH} characters; got {len(text)}", _FORMS)
    match = _CLUSTER.fullmatch(text.strip())
    if match is None:
        raise SpecError("cluster", f"cannot read {text[:60]!r}", _FORMS)
    outer, inner, suffix = (int(count) if count else None for count in match.group("outer", "inner", "suffix"))
    if suffix is not None and outer is not None:
        raise SpecError("cluster", f"{text[:60]!r} counts devices twice", _FORMS)

    named = _node_named(match, catalog) if node is None else None
    if named is not None:
        if inner is not None:
            problem = f"{text[:60]!r} counts devices of a node that says how many it has"
            raise SpecError("cluster", problem, f"2x{named.name}")
        given = [count for count in (outer, suffix) if count is not None]
        text = f"{given[0] if given else 1}x{named.domain_devices}x{named.device.name}"
        options = {"gpus_per_node": gpus_per_node, "nics_per_node": nics_per_node}
        return parse_cluster(text, catalog, **options, fabric=fabric, scale_up=scale_up, node=named.name)
    counts = [count for count in (outer, inner) if count is not None]
    base, assumptions = _device_and_node(match["device"], catalog, node=node, counts=counts)
    overrides = _Overrides(nics_per_node=nics_per_node, scale_up=scale_up, fabric=fabric)
    if outer is not None and inner is not None:
        if gpus_per_node is not None and gpus_per_node != inner:
            problem = f"{text[:60]!r} says {inner}; got {gpus_per_node}"
            raise SpecError("cluster.gpus_per_node", problem, "give it once")
        _check_count("cluster.num_nodes", outer, MAX_NODES)
        _check_count("cluster.gpus_per_node", inner, MAX_DEVICES_PER_NODE)
        base, num_nodes = _nodes_of(base, outer, inner, catalog, fixed=node is not None, assumptions=assumptions)
    else:
        total = next((count for count in (outer, suffix) if count is not None), 1)
        _check_count("cluster.num_devices", total, MAX_DEVICES)
        base, num_nodes = _split(base, total, gpus_per_node, catalog, assumptions=assumptions)
    return _assemble(text.strip(), base, num_nodes, overrides, catalog, assumptions=assumptions)


def cluster_from_mapping(mapping: Mapping[str, Any], catalog: Catalog | None = None) -> ClusterSpec:
    """The cluster a mapping (see ``ClusterEntry``) describes.

    Raises:
        SpecError: If a field is unknown, of the wrong type or out of bounds, or a name is unknown.
    """
    catalog = catalog or default_catalog()
    entry = validated(ClusterEntry, mapping, where="cluster")
    if entry.device is None and entry.node is None:
        raise SpecError("cluster.device", "is required", "name a device, or a node that implies one")
    device_text = entry.device or catalog.node(entry.node or "").device.name
    base, assumptions = _device_and_node(device_text, catalog, node=entry.node)
    num_nodes = entry.num_nodes
    if entry.gpus_per_node is not None:
        fixed = entry.node is not None
        base, num_nodes = _nodes_of(base, num_nodes, entry.gpus_per_node, catalog, fixed=fixed, assumptions=assumptions)
    overrides = _Overrides(
        nics_per_node=entry.nics_per_node,
        scale_up=entry.scale_up,
        fabric=entry.fabric,
        host_link=entry.host_link,
        host_memory_bytes=None if entry.host_memory_gb is None else entry.host_memory_gb * GIGA,
        disk_bytes_per_s=None if entry.disk_gb_per_s is None else entry.disk_gb_per_s * GIGA,
        domain_devices=entry.domain_devices,
    )
    name = entry.name or f"{num_nodes}x{base.devices_per_node}x{base.device.name}"
    cluster = _assemble(name, base, num_nodes, overrides, catalog, assumptions=assumptions)
    check_num_devices(entry.num_devices, cluster.num_devices, hint="num_nodes and gpus_per_node say how many")
    return cluster if entry.usable_memory_bytes is None else _with_usable_memory(cluster, entry.usable_memory_bytes)


def _with_usable_memory(cluster: ClusterSpec, usable_bytes: float) -> ClusterSpec:
    """The cluster with so much usable memory per device, the rest of it left free."""
    device = cluster.device
    if usable_bytes > device.usable_memory_bytes:
        problem = f"must be at most {device.usable_memory_bytes:.0f} on {device.name}; got {usable_bytes:.0f}"
        raise SpecError("cluster.usable_memory_bytes", problem, "leave it out")
    left_free = float(round(device.usable_memory_bytes - usable_bytes))
    device = replace(device, usable_memory_bytes=usable_bytes, reserved_memory_bytes=left_free)
    return replace(cluster, node=replace(cluster.node, device=device))


def cluster_to_mapping(cluster: ClusterSpec) -> dict[str, Any]:
    """The mapping that describes the cluster in full; ``cluster_from_mapping`` reads it back without assuming."""
    node = cluster.node
    return {
        "name": cluster.name,
        "device": node.device.name,
        "node": node.name,
        "num_nodes": cluster.num_nodes,
        **node_parts(node),
        "host_memory_gb": node.host_memory_bytes / GIGA,
        "disk_gb_per_s": node.disk_bytes_per_s / GIGA,
    }


def node_parts(node: NodeSpec) -> dict[str, Any]:
    """Devices and links of a node, as the mapping of a cluster names them."""
    return {
        "gpus_per_node": node.devices_per_node,
        "domain_devices": node.domain_devices,
        "scale_up": node.scale_up.name,
        "fabric": node.nic.name,
        "nics_per_node": node.nics_per_node,
        "host_link": node.host_link.name,
    }


def _check_count(field: str, count: int | None, limit: int) -> None:
    if count is not None and not 1 <= count <= limit:
        shown = str(count) if count < 10**12 else "a larger number"
        raise SpecError(field, f"must be between 1 and {limit}; got {shown}", "1" if count < 1 else str(limit))


def _node_named(match: re.Match[str], catalog: Catalog) -> NodeSpec | None:
    """The node that a text names, such as an instance type of a cloud; None where it names a device.

    The name of a rack may be that of its devices too: alone it is the rack, behind devices per node the device.
    An alias, such as MI250 of nodes with devices of that name, is the device.

    Raises:
        SpecError: If one count before such a name may be that of racks or of devices.
    """
    name = match["device"]
    try:
        named = catalog.node(name)
    except SpecError:
        return None
    try:
        catalog.device_matches(name)
    except SpecError:
        return named
    if match["inner"] is not None or re.sub("[ _]", "-", name.lower()) != named.name:
        return None
    count, each = match["outer"] or match["suffix"], named.domain_devices
    if count is None:
        return named
    short = named.device.name
    problem = f"{match[0][:60]!r} may be {count} devices or {count} nodes of {each}"
    raise SpecError("cluster", problem, f"{count}x{short} or {count}x{each}x{short}")


def _matches(text: str, catalog: Catalog, *, counts: Sequence[int]) -> tuple[DeviceSpec, ...]:
    """Every device the text can mean; who writes the count behind it is told where it goes.

    Args:
        text: What stands where a device should.
        catalog: Where it is looked up.
        counts: What stands before it, if that was read as counts: ``4090x8`` names a device by a number.
    """
    try:
        return catalog.device_matches(text)
    except SpecError:
        whole = "x".join([*map(str, counts), text.strip()])
        turned = re.fullmatch(r"(.+?)\s*x\s*([1-9]\d{0,6})", whole, re.IGNORECASE)
        if turned is None or not _is_device(turned[1], catalog):
            raise
        raise SpecError("cluster", f"cannot read {whole[:60]!r}", f"{turned[2]}x{turned[1]}") from None


def _is_device(text: str, catalog: Catalog) -> bool:
    try:
        return bool(catalog.device_matches(text))
    except SpecError:
        return False


def _device_and_node(
    text: str, catalog: Catalog, *, node: str | None, counts: Sequence[int] = ()
) -> tuple[NodeSpec, list[str]]:
    """The node the device is assumed to sit in, and what was assumed about the device."""
    matches = _matches(text, catalog, counts=counts)
    if node is not None:
        base = catalog.node(node)
        if base.device not in matches:
            problem = f"{base.name} holds {base.device.name}, not {matches[0].name}"
            hint = ", ".join(other.name for other in catalog.nodes.values() if other.device in matches)
            raise SpecError("cluster.node", problem, f"{matches[0].name} comes in {hint}" if hint else "")
        return base, []
    device = matches[0]
    held = [device.default_node, *(other.name for other in catalog.nodes.values() if other.device == device)]
    node_name = next((name for name in held if name), None)
    if node_name is None:
        hint = "add a node that holds it to nodes.yaml in a directory of PLANNER_CATALOG"
        raise SpecError("cluster.node", f"the catalogue has no node with {device.name}", hint)
    assumptions = []
    if len(matches) > 1:
        others = ", ".join(other.name for other in matches[1:])
        assumptions.append(f"device: {text.strip()!r} is taken as {device.name} (it could also mean {others})")
    elif device.name.lower().endswith("-gcd") and "gcd" not in text.lower():
        assumptions.append(f"device: {text.strip()!r} is counted in {device.name}, half a package each")
    return catalog.nodes[node_name], assumptions


def _split(
    base: NodeSpec, total: int, gpus_per_node: int | None, catalog: Catalog, *, assumptions: list[str]
) -> tuple[NodeSpec, int]:
    """Spread a number of devices over nodes: one partial node, or full ones only."""
    if gpus_per_node is not None:
        base, _ = _resized(base, gpus_per_node, catalog, fixed=False, assumptions=assumptions)
    size = base.devices_per_node
    if total < size:
        if gpus_per_node is not None:
            raise SpecError("cluster.gpus_per_node", f"must not exceed the {total} devices; got {gpus_per_node}")
        return _partial(base, total), 1
    if total % size:
        lower = total - total % size
        problem = f"{total} devices do not fill nodes of {size} ({base.name})"
        raise SpecError("cluster.num_devices", problem, f"use {lower} or {lower + size}, or say NODESxCOUNTxDEVICE")
    if total > size and gpus_per_node is None:
        assumptions.append(f"nodes: {total} devices are taken as {total // size} nodes of {size}")
    return base, total // size


def _nodes_of(
    base: NodeSpec, groups: int, size: int, catalog: Catalog, *, fixed: bool, assumptions: list[str]
) -> tuple[NodeSpec, int]:
    """``groups x size x device``: nodes of that size, or NVLink domains that span several hosts."""
    node, hosts_per_group = _resized(base, size, catalog, fixed=fixed, assumptions=assumptions)
    num_nodes = groups * hosts_per_group
    _check_count("cluster.num_nodes", num_nodes, MAX_NODES)
    return node, num_nodes


def _resized(
    base: NodeSpec, size: int, catalog: Catalog, *, fixed: bool, assumptions: list[str]
) -> tuple[NodeSpec, int]:
    """The node holding ``size`` devices, and how many hosts make up one group of that size."""
    if size == base.devices_per_node:
        return base, 1
    if base.devices_per_node < size <= base.domain_devices and size % base.devices_per_node == 0:
        hosts = size // base.devices_per_node
        assumptions.append(
            f"nodes: each group of {size} is {hosts} hosts of {base.devices_per_node}"
            f" in one {base.scale_up.name} domain"
        )
        return replace(base, domain_devices=size), hosts
    if not fixed:
        for node in catalog.nodes.values():
            if (node.device, node.devices_per_node, node.scale_up.kind) == (base.device, size, base.scale_up.kind):
                return node, 1
    nics = max(1, round(base.nics_per_node * size / base.devices_per_node))
    domain = size if base.domain_devices == base.devices_per_node else _domain_multiple(base, size)
    if nics != base.nics_per_node:
        assumptions.append(
            f"nics_per_node: {nics}, in proportion to the {base.nics_per_node} that {base.name} has"
            f" for {base.devices_per_node} devices"
        )
    memory = base.host_memory_bytes * size / base.devices_per_node
    resized = replace(base, devices_per_node=size, domain_devices=domain, nics_per_node=nics, host_memory_bytes=memory)
    return resized, 1


def _domain_multiple(base: NodeSpec, size: int) -> int:
    """Devices of a rack-scale domain when its hosts hold ``size`` each."""
    return max(size, base.domain_devices // base.devices_per_node * size)


def _partial(base: NodeSpec, total: int) -> NodeSpec:
    """One node of which only some devices are used; adapters and host memory are all there."""
    return replace(base, devices_per_node=total, domain_devices=total)


def _assemble(
    name: str, base: NodeSpec, num_nodes: int, overrides: _Overrides, catalog: Catalog, *, assumptions: list[str]
) -> ClusterSpec:
    """Apply the overrides and record what was not said."""
    if overrides.nics_per_node is not None:
        assumptions = [line for line in assumptions if not line.startswith("nics_per_node:")]

    def link(field: str, wanted: str | None, default: LinkSpec) -> LinkSpec:
        return default if wanted is None else catalog.link(wanted, field=f"cluster.{field}", role=field)

    domain = overrides.domain_devices or base.domain_devices
    if domain % base.devices_per_node:
        problem = f"must be a multiple of gpus_per_node={base.devices_per_node}; got {domain}"
        raise SpecError("cluster.domain_devices", problem)
    node = replace(
        base,
        scale_up=link("scale_up", overrides.scale_up, base.scale_up),
        nic=link("fabric", overrides.fabric, base.nic),
        nics_per_node=overrides.nics_per_node or base.nics_per_node,
        host_link=link("host_link", overrides.host_link, base.host_link),
        host_memory_bytes=overrides.host_memory_bytes or base.host_memory_bytes,
        disk_bytes_per_s=overrides.disk_bytes_per_s or base.disk_bytes_per_s,
        domain_devices=domain,
    )
    assumed = []
    if overrides.scale_up is None:
        peers = "" if node.scale_up.peer_to_peer else " without peer access"
        assumed.append(f"{node.scale_up.name} between devices{peers}")
    if num_nodes > 1 and overrides.fabric is None:
        assumed.append(f"{node.nics_per_node} x {node.nic.name} per node")
    elif num_nodes > 1 and overrides.nics_per_node is None:
        assumed.append(f"{node.nics_per_node} adapters per node")
    if assumed:
        assumptions = [*assumptions, f"node: as {base.name}: " + ", ".join(assumed)]
    return ClusterSpec(name=name, node=node, num_nodes=num_nodes, assumptions=tuple(assumptions))
