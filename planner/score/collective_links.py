"""Which links a row of a table of collectives crossed: its GPU and its link's name to a cluster.

Names as the tables spell them: ``nvlink4``, ``xgmi``, ``pcie4`` inside a node; ``nvlink4-pair`` and
``pcie-across-pairs`` on hosts whose cards are bridged in pairs; ``ib400`` (Gb/s per adapter), ``roce200``, ``efa``
between nodes; ``net~100-200G`` between bounds; a question mark where the source does not say. What a name leaves
open is as on the node the GPU usually comes in.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from profiles.units import BITS_PER_BYTE, GIGA

_FABRIC = re.compile(r"(ib|roce|efa|eth|ethernet)-?(\d+)?")
_RANGE = re.compile(r"net~([1-9]\d{0,5})-([1-9]\d{0,5})g")
# Where the GPU is not known: what comes with a link of that name.
_UNKNOWN_GPU_NODES = {
    "nvlink2": "dgx-1-v100", "nvlink3": "dgx-a100-80gb", "nvlink4": "dgx-h100", "nvlink5": "hgx-b200",
    "pcie3": "v100-pcie-8x", "pcie4": "a100-pcie-8x", "pcie5": "h100-pcie-8x",
}  # fmt: skip
_PAIRS = {
    ("nvlink3", "A100"): "nvlink3-bridge-a100", ("nvlink3", ""): "nvlink3-bridge", ("nvlink4", ""): "nvlink4-bridge",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a collective ran.

    Attributes:
        cluster: Nodes and links.
        local: Ranks per scale-up domain.
        guessed: Whether the network is not named and was taken as the usual one.
    """

    cluster: ClusterSpec
    local: int
    guessed: bool


def place(catalog: Catalog, *, gpu: str, link: str, ranks: int, nodes: int) -> Placement:
    """The cluster of a row.

    Args:
        catalog: Known devices, links and nodes.
        gpu: As the table spells it.
        link: As the table spells it.
        ranks: Ranks that take part.
        nodes: Nodes they are spread over, evenly.

    Raises:
        SpecError: If the link cannot be named, or ranks are not spread evenly.
    """
    if nodes < 1 or ranks % nodes:
        raise SpecError("num_nodes", f"{ranks} ranks are not spread evenly over {nodes} nodes")
    name = link.strip().lower()
    base = _node(catalog, gpu, name.rstrip("?"))
    domain = _scale_up(catalog, base, name, gpu, inside=nodes == 1)
    if domain is not None and (nodes == 1 or ranks <= base.domain_devices):
        return _placement(base, domain, ranks=ranks, local=ranks, guessed=False)
    if nodes == 1:
        raise SpecError("link", f"{link!r} is no link inside a node")
    nic, count = (None, 0) if domain is not None else _nic(catalog, base, name)
    network = base if nic is None else replace(base, nic=nic, nics_per_node=count)
    guessed = domain is not None or "?" in name or _RANGE.fullmatch(name) is not None
    return _placement(network, base.scale_up, ranks=ranks, local=ranks // nodes, guessed=guessed)


def _node(catalog: Catalog, gpu: str, link: str) -> NodeSpec:
    """The node a GPU usually comes in; where the GPU is not known, the one its NVLink comes in."""
    try:
        device: DeviceSpec = catalog.device(gpu, field="gpu")
    except SpecError:
        if link not in _UNKNOWN_GPU_NODES:
            raise
        return catalog.node(_UNKNOWN_GPU_NODES[link])
    return catalog.node(device.default_node)


def _scale_up(catalog: Catalog, base: NodeSpec, spelled: str, gpu: str, *, inside: bool) -> LinkSpec | None:
    """The link inside a scale-up domain a name stands for, if it does."""
    name = spelled.rstrip("?")
    if name == "pcie-across-pairs":
        return catalog.link(base.host_link.name)
    if name.endswith("-pair"):
        whole = name.removesuffix("-pair")
        bridge = _PAIRS.get((whole, gpu[:4])) or _PAIRS.get((whole, ""))
        return catalog.link(bridge) if bridge else None
    own = base.scale_up
    if name == own.kind or own.name.split("-")[0] == name:
        return own
    if re.fullmatch(r"(nvlink|pcie)\d", name):
        return catalog.link(name)
    return own if inside and name != spelled else None


def _nic(catalog: Catalog, base: NodeSpec, name: str) -> tuple[LinkSpec | None, int]:
    """The adapter a name stands for and how many a node has: one per device; None for the usual ones."""
    bounds = _RANGE.fullmatch(name)
    if bounds:
        rate = float(np.sqrt(float(bounds[1]) * float(bounds[2]))) * GIGA / BITS_PER_BYTE
        usual = catalog.link("roce-200")
        return replace(usual, name=name, bandwidth_bytes_per_s=rate), base.devices_per_node
    fabric = _FABRIC.fullmatch(name.rstrip("?"))
    if fabric is None:
        raise SpecError("link", f"unknown link {name!r}", "use e.g. nvlink4, pcie4, ib400, roce200 or ib?")
    if fabric[2] is None:
        return None, 0
    return catalog.link(f"{fabric[1]}-{fabric[2]}", field="link"), base.devices_per_node


def _placement(node: NodeSpec, link: LinkSpec, *, ranks: int, local: int, guessed: bool) -> Placement:
    """A cluster of nodes with such a link, large enough for the ranks."""
    hosts = -(-local // node.devices_per_node)
    domain = max(hosts * node.devices_per_node, node.devices_per_node)
    whole = replace(node, scale_up=link, domain_devices=domain)
    needed = -(-ranks // local) * hosts
    cluster = ClusterSpec(name=f"{needed} x {node.name}", node=whole, num_nodes=needed)
    return Placement(cluster=cluster, local=local, guessed=guessed)
