"""A toy cluster and price list of collectives, whose numbers are easy to do by hand."""

import numpy as np

from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.links.link_model import LinkCollectiveModel
from profiles.fits import CollectiveFits, Fit, FitCard
from profiles.hardware import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec

INSIDE = {
    "launch_s": 10e-6, "hop_s": 1e-6, "efficiency": 0.5, "low_launch_s": 2e-6, "low_hop_s": 0.5e-6,
    "low_efficiency": 0.05, "ramp_s": 0.0, "pair_loss": 0.0, "low_pair_loss": 0.0, "sharing": 0.0, "lanes_of_2": 1.0,
    "lanes_of_4": 1.0, "lanes_of_8": 1.0, "lanes_of_16": 1.0, "switch_hop_s": 0.0, "switch_efficiency": 0.0,
}  # fmt: skip
ACROSS = {
    "launch_s": 20e-6, "hops": 2.0, "efficiency": 0.8, "low_hops": 1.0, "low_share": 0.25, "tree_share": 0.0,
    "tree_hops": 1.0, "ring_adapters": 0.0, "ramp_hops": 0.0,
}  # fmt: skip
NAMES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
DEVICE = DeviceSpec(
    name="toy", vendor="nvidia", architecture="toy", peak_flops_per_s={"bf16": 1e14}, memory_bytes=1e10,
    usable_memory_bytes=1e10, memory_bandwidth_bytes_per_s=1e12, num_sms=100, l2_bytes=1e6, power_w=100,
)  # fmt: skip


def link(name: str, kind: str, bytes_per_s: float, latency_s: float = 10e-6, **more) -> LinkSpec:
    return LinkSpec(name=name, kind=kind, bandwidth_bytes_per_s=bytes_per_s, latency_s=latency_s, **more)


def cluster(*, nics: int = 4, nodes: int = 8, scale_up: LinkSpec | None = None) -> ClusterSpec:
    node = NodeSpec(
        name="box", device=DEVICE, devices_per_node=4, scale_up=scale_up or link("fast", "nvlink", 100e9),
        domain_devices=4, nic=link("net", "infiniband", 10e9), nics_per_node=nics,
        host_link=link("host", "pcie", 30e9), host_memory_bytes=1e12,
    )  # fmt: skip
    return ClusterSpec(name="toy", node=node, num_nodes=nodes)


def record(op: str, parameters: dict, *, scope="global", name="*", rows=1, domain=None) -> Fit:
    card = FitCard(
        sources=("hand",), rows=rows, held_out_rows=1, mape=0.1, median_ape=0.1, log_std=0.1, held_out="split"
    )
    return Fit(
        scope=scope, name=name, op=op, format="", parameters=parameters, low_factor=0.8, high_factor=1.5,
        domain=domain or {}, card=card,
    )  # fmt: skip


def model(*extra: Fit, inside: dict | None = None, across: dict | None = None) -> LinkCollectiveModel:
    fits = [record(name, inside or INSIDE) for name in NAMES]
    fits += [record(f"{name}_across", across or ACROSS) for name in NAMES]
    fits += [*extra]
    return LinkCollectiveModel(CollectiveFits(records={(f.op, f.scope, f.name): f for f in fits}))


def calls(op: CollectiveOp, size_bytes: float, ranks: int, local: int) -> CollectiveCallBatch:
    return CollectiveCallBatch(
        op=np.array([int(op)]), size_bytes=np.array([float(size_bytes)]), group_size=np.array([ranks]),
        ranks_per_domain=np.array([local]),
    )  # fmt: skip


def seconds(op: CollectiveOp, size_bytes: float, ranks: int, local: int, **options) -> float:
    machine = options.pop("machine", cluster())
    return float(model(**options).predict(calls(op, size_bytes, ranks, local), machine).time_s[0])
