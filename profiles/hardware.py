"""Devices, links, nodes and clusters: the facts a price is computed from.

All bandwidths are per direction. A *scale-up domain* is the set of GPUs that reach each other over
the fast links (NVLink, xGMI); it equals the node except on rack-scale machines (NVL72).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from profiles.errors import SpecError, check_between

MAX_NODES = 1 << 17
MAX_DEVICES_PER_NODE = 72
MAX_DEVICES = 1 << 20

# What a link of each kind connects; between nodes and between groups of them the same kinds stand. NVLink reaches host
# memory as C2C only.
LINK_ROLES: Mapping[str, tuple[str, ...]] = {
    "scale_up": ("nvlink", "xgmi", "pcie"),
    "fabric": ("infiniband", "roce", "efa", "omnipath", "slingshot", "ethernet"),
    "host_link": ("pcie", "c2c", "xgmi"),
}
_ROLE_WORDS = {"scale_up": "devices of a node", "fabric": "nodes", "host_link": "a device and host memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One accelerator, as its vendor and its users' logs describe it.

    Attributes:
        name: Canonical name, e.g. ``H100-SXM-80GB``.
        vendor: ``nvidia`` or ``amd``.
        architecture: Family whose fitted efficiency applies when the device has none, e.g. ``hopper``.
        peak_flops_per_s: Dense peak per GEMM format (``precision.GEMM_FORMATS``); absent: unsupported.
        memory_bytes: Nominal capacity.
        usable_memory_bytes: What a framework can allocate (nominal less ECC and driver reserve, and the user's own).
        memory_bandwidth_bytes_per_s: Device memory bandwidth.
        num_sms: Streaming multiprocessors or compute units.
        l2_bytes: Last-level cache.
        power_w: Board power limit.
        default_node: Catalogue name of the node this device usually comes in.
        training_time_scale: Time that matrix products and attention of training take over that of boards of the same
            generation and peaks, whose power holds them back more; 1 where nothing tells.
        clock_headroom: How many times the clock of its peaks it may run at; 1 where nothing tells.
        reserved_memory_bytes: What the user keeps for others.
        sources: Field name to the document it was read from.
    """

    name: str
    vendor: str
    architecture: str
    peak_flops_per_s: Mapping[str, float] = field(hash=False)
    memory_bytes: float
    usable_memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    num_sms: int
    l2_bytes: float
    power_w: float
    default_node: str = ""
    training_time_scale: float = 1.0
    clock_headroom: float = 1.0
    reserved_memory_bytes: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def reported_memory_bytes(self) -> float:
        """What the driver reports in all, whoever has it."""
        return self.usable_memory_bytes + self.reserved_memory_bytes

    def peak(self, gemm_format: str) -> float:
        """Dense peak FLOP/s of a format; one without its own units runs at the best wider rate.

        Raises:
            SpecError: If the device can run the format in no way (fp8 on A100 has no kernels).
        """
        if gemm_format in self.peak_flops_per_s:
            return self.peak_flops_per_s[gemm_format]
        if gemm_format == "tf32" and "fp32" in self.peak_flops_per_s:
            return self.peak_flops_per_s["fp32"]
        raise SpecError(
            "job.precision",
            f"{self.name} has no {gemm_format} arithmetic",
            "use one of " + ", ".join(sorted(self.peak_flops_per_s)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """One kind of connection between devices, hosts or nodes.

    Attributes:
        name: Canonical name, e.g. ``nvlink4`` or ``ib-ndr-400``.
        kind: ``nvlink``, ``c2c``, ``xgmi``, ``pcie``, ``infiniband``, ``roce``, ``efa``, ``omnipath``,
            ``slingshot`` or ``ethernet``.
        bandwidth_bytes_per_s: Per direction: per device for scale-up links, per NIC for fabrics.
        latency_s: One-way latency of a small message between two devices, library included.
        peer_to_peer: Whether devices reach each other without staging through host memory.
        one_host: Whether the link is that of a single host that was timed, and tells of no other.
        mesh_devices: Devices that are wired to one another without a switch, so that a pair has an equal share of the
            lanes of each; 0 where a switch joins them, or one pair.
        copied_share: Of the bandwidth, what copies between a device and pinned host memory reach; 1 where nobody timed
            them.
        source: Document the figures come from.
    """

    name: str
    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float
    peer_to_peer: bool = True
    one_host: bool = False
    mesh_devices: int = 0
    copied_share: float = 1.0
    source: str = field(default="", compare=False)

    def fits(self, role: str | None) -> bool:
        """Whether the link may stand in a role of ``LINK_ROLES``; in any that is not given."""
        return role is None or self.kind in LINK_ROLES[role]


def links_of(role: str | None, links: Mapping[str, LinkSpec]) -> list[str]:
    """Names of the links that may stand in a role, the catalogue's order kept."""
    return [name for name, link in links.items() if link.fits(role)]


def check_role(link: LinkSpec, role: str | None, links: Mapping[str, LinkSpec], *, field: str) -> LinkSpec:
    """The link, unless it is of a kind that connects something else.

    Raises:
        SpecError: Naming those that may stand there.
    """
    if role is None or link.fits(role):
        return link
    problem = f"{link.name!r} is of kind {link.kind}, which does not connect {_ROLE_WORDS[role]}"
    raise SpecError(field, problem, "one of " + ", ".join(links_of(role, links)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One host: its devices and what connects them.

    Attributes:
        name: Catalogue name, e.g. ``dgx-h100``.
        device: The accelerator.
        devices_per_node: Accelerators per host.
        scale_up: Link between devices of one domain.
        domain_devices: Devices per scale-up domain; a multiple of ``devices_per_node``.
        nic: Link of one network adapter.
        nics_per_node: Network adapters used for training traffic.
        host_link: Link between a device and host memory.
        host_memory_bytes: Host memory per node.
        disk_bytes_per_s: What all devices of the node together read from its disks. Where no machine is described, one
            data-centre NVMe drive of PCIe 4: 6.5 GB/s (Samsung PM9A3 in U.2, its announcement of May 2020).
        collective_rank_s: Least time of a collective per rank that takes part, in jobs over several nodes, whatever
            is sent and wherever the ranks sit; kernels can hide it. 0 on a cluster in good order, where
            bandwidths and latencies are all. nccl-tests show it: times that grow with the ranks alone.
        host_time_scale: Time that an engine's host code takes on its CPU, over that on an x86 server.
        sustained_16bit_time_scale: Time that products in 16 bits take while its devices are kept busy, power and heat
            holding them back, over that of the short timings that prices rest on; 0 where the machine was not timed so,
            and what training on its generation tells stands in (``StackSpec.blackwell_16bit_time_scale``).
        source: Document the figures come from.
    """

    name: str
    device: DeviceSpec
    devices_per_node: int
    scale_up: LinkSpec
    domain_devices: int
    nic: LinkSpec
    nics_per_node: int
    host_link: LinkSpec
    host_memory_bytes: float
    disk_bytes_per_s: float = 6.5e9
    collective_rank_s: float = 0.0
    host_time_scale: float = 1.0
    sustained_16bit_time_scale: float = 0.0
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_between("cluster.gpus_per_node", self.devices_per_node, 1, MAX_DEVICES_PER_NODE)
        if self.domain_devices < 1 or self.domain_devices % self.devices_per_node:
            problem = f"must be a multiple of gpus_per_node={self.devices_per_node}; got {self.domain_devices}"
            raise SpecError("cluster.domain_devices", problem)
        if self.nics_per_node < 1:
            raise SpecError("cluster.nics_per_node", f"must be at least 1; got {self.nics_per_node}")

    @property
    def scale_out_bytes_per_s(self) -> float:
        """Network bandwidth per device when all devices of the node send at once."""
        return self.nic.bandwidth_bytes_per_s * self.nics_per_node / self.devices_per_node

    @property
    def host_copy_bytes_per_s(self) -> float:
        """What copies between a device and pinned host memory reach, in one direction."""
        return self.host_link.bandwidth_bytes_per_s * self.host_link.copied_share


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Identical nodes on one fabric.

    Attributes:
        name: As the user wrote it.
        node: The node type.
        num_nodes: How many.
        assumptions: What was filled in because the user did not say, in words for the user.
    """

    name: str
    node: NodeSpec
    num_nodes: int
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_between("cluster.num_nodes", self.num_nodes, 1, MAX_NODES)
        if self.num_devices > MAX_DEVICES:
            raise SpecError("cluster", f"at most {MAX_DEVICES} devices; got {self.num_devices}")

    @property
    def num_devices(self) -> int:
        """Accelerators in the cluster."""
        return self.num_nodes * self.node.devices_per_node

    @property
    def device(self) -> DeviceSpec:
        """The accelerator type."""
        return self.node.device

    @property
    def domain_devices(self) -> int:
        """Devices of the cluster per scale-up domain.

        Racks that are not filled hold as many each, so that groups of ranks lie in them alike: 256 GPUs on racks of 72
        are four times 64, as schedulers place jobs in blocks (Slurm's topology/block; Megatron-Bridge's recipes).
        """
        whole, each = self.node.domain_devices, self.node.devices_per_node
        if self.num_devices <= whole or self.num_devices % whole == 0:
            return min(whole, self.num_devices)
        shared = (size for size in range(whole - whole % each, whole // 2, -each) if self.num_devices % size == 0)
        return next(shared, whole)
