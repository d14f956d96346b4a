"""The cluster of a published row: catalogue hardware, adjusted to what the row says about it."""

import dataclasses
import math
import re

from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from profiles.units import BITS_PER_BYTE, GIB, GIGA

_NOT_A_GPU = re.compile(r"tpu|gaudi|trainium|ascend|habana", re.IGNORECASE)
_FAMILY = re.compile(
    r"gb300|gb200|b300|b200|gh200|h200|h100|h800|h20|a100|a800|v100|l40s|l40|l4|a40|a10g?|a30|a6000|t4|p100"
    r"|mi[0-9]{3}x?|rtx[ -]?pro[ -]?6000|rtx[ -]?6000(?: ada)?|rtx[ -]?[0-9]{4}(?: ?ti)?|titan[ -]rtx|[34]090",
    re.IGNORECASE,
)
# A capacity this far from the catalogue's is another product, not another way to round.
_MEMORY_GB = (1, 4096)  # of one device; beyond lies another unit
_SAME_MEMORY = 0.12
MEMORY_ASSUMED = "memory size of the GPU not printed"


# Clusters that tables name by partition only. Hugging Face's "hopper-prod" runs on AWS (its public
# batch scripts write to an FSx file system), whose 8 x H100 hosts are p5.48xlarge.
# torchtitan's script for several nodes is "optimized for AWS with EFA" and set up "for A100" (multinode_trainer.slurm).
_KNOWN_CLUSTERS = {"hopper-prod": "p5.48xlarge", "torchtitan docs/performance.md": "p4de.24xlarge"}
# That cluster's jobs log nccl bandwidths at start-up. In its first jobs, and in a few later batches, they are those
# of such hosts. In the others a collective takes a time in proportion to its ranks: 512 gather 0.5 GiB in
# 84 ms and reduce 1 GiB in 165 ms, 64 in 10 and 22 ms, that is 0.16 ms and 0.32 ms a rank. The state goes by
# batches of jobs, and so does what every row ran on: a batch is three or more consecutive jobs on 32 GPUs or more
# whose logged gathers take less than 0.09 ms a rank.
_HEALTHY_JOBS = (
    *((0, 13_830_000), (14_016_386, 14_016_421), (14_028_970, 14_028_974)),
    *((14_098_777, 14_098_780), (14_098_957, 14_098_959)),
)
_STALLED_RANK_S = 2.0e-4
# FlagPerf's table of Llama-3-8B says A100, its list of hardware "NVIDIA DGX A800(80G)" and "NVIDIA_A800-SXM4-80GB"
# (training/nvidia/llama3_8B-megatron/README.md): the same chip on links of 400 GB/s.
_BOARDS = {("FlagPerf", "llama3_8B", "A100"): "A800"}
# SimuMax timed products at length on the machine its runs ran on: of their bf16 peak they reach 0.49 on average
# (efficient_factor of matmul in its configs/system/b200_bf16_ceperm.json; 0.45 to 0.51 where they are large), and 0.78
# in aiconfigurator's timings of a B200, by which ours are priced. Attention forward is as fast there as elsewhere.
# Our own steps ran on the cards whose products the prices of Hopper rest on, both at the limit of 700 W.
_SUSTAINED_16BIT_TIME_SCALES = {
    "SimuMax v1.2 B200 release": 1.6,
    "own measurement": 1.0,
    "own measurement, fine-tuning": 1.0,
}
# "A100s PCI-Express/NUMA was improved today so all TFLOPs have changed for the better (1-5%) - thus do not compare
# today's numbers to yesterday's" (bigscience, train/tr11-176B-ml/chronicles-prequel.md, of February 25).
_FIRST_DAYS = {"BigScience tr11 prequel (Jean Zay A100)": "02-25"}
# LitGPT's hub of configurations names machines; devices in the configuration is how many of their GPUs ran, by default
# one ("All runs are single-GPU experiments", its README: time and memory of both machines are the same).
_HUB_DEVICES = {("gemma-2b", "full_ft"): 4, ("stablelm-base-alpha-3b", "full_ft"): 2, ("llama-2-7b", "full_ft"): 4}


def cluster_of(row: Row, catalog: Catalog) -> tuple[ClusterSpec, list[str]]:
    """The cluster and what had to be assumed about it.

    Raises:
        CannotScore: If the device is unknown, not a GPU, mixed, or not stated.
    """
    num_gpus = row.integer("num_gpus")
    if not num_gpus:
        raise CannotScore("GPU count not stated")
    if "config_hub" in row.text("source") and num_gpus > 1 and _HUB_DEVICES.get(_hub_run(row), 1) != num_gpus:
        raise CannotScore("ran on fewer GPUs than its machine has: devices in its configuration")
    device, assumptions = _device(row, catalog)
    if not device.default_node:
        raise CannotScore(f"no node known for {device.name}")
    node = catalog.node(_KNOWN_CLUSTERS.get(_named_cluster(row), device.default_node))
    if node.device.architecture != device.architecture:  # the same table's runs on other chips ran elsewhere
        node = catalog.node(device.default_node)
    per_node = row.integer("gpus_per_node") or node.devices_per_node
    if num_gpus > per_node:  # fewer may be a part of a larger host
        node = _node_of_size(node, per_node, catalog)
    per_node = min(per_node, num_gpus)
    if num_gpus % per_node:
        per_node = math.gcd(num_gpus, per_node)
    domain = node.domain_devices if node.domain_devices > node.devices_per_node else per_node
    nic, nics = _network(row, node, per_node, catalog)
    node = dataclasses.replace(
        node,
        device=device,
        devices_per_node=per_node,
        domain_devices=max(domain, per_node) if domain % per_node == 0 else per_node,
        scale_up=_scale_up(row, node, catalog),
        nic=nic,
        nics_per_node=nics,
        collective_rank_s=_collective_rank_s(row),
        sustained_16bit_time_scale=_SUSTAINED_16BIT_TIME_SCALES.get(
            row.text("source").split(" (")[0], node.sustained_16bit_time_scale
        ),
    )
    name = f"{num_gpus // per_node}x{per_node}x{device.name}"
    return ClusterSpec(name=name, node=node, num_nodes=num_gpus // per_node), assumptions


def period_of(row: Row) -> str:
    """When a row ran on a cluster that its source says was another before and after; empty where none does."""
    first = _FIRST_DAYS.get(row.text("source"))
    day = re.search(r"\bdate ([0-9]{2}-[0-9]{2})", row.text("notes"))
    if first is None or day is None:
        return ""
    return f"{'from' if day.group(1) >= first else 'before'} {first}"


def _hub_run(row: Row) -> tuple[str, str]:
    return row.text("model"), row.text("task")


def _node_of_size(default: NodeSpec, per_node: int, catalog: Catalog) -> NodeSpec:
    """The default node of a device, or the catalogue's node of that device with as many of them, if only that has."""
    if default.devices_per_node == per_node:
        return default
    same = {id(node): node for node in catalog.nodes.values() if node.device.name == default.device.name}
    found = [node for node in same.values() if node.devices_per_node == per_node]
    return found[0] if len(found) == 1 else default


def _device(row: Row, catalog: Catalog) -> tuple[DeviceSpec, list[str]]:
    text = row.text("gpu")
    text = _BOARDS.get((row.text("source"), row.text("model"), text), text)
    if not text:
        raise CannotScore("GPU not stated")
    if _NOT_A_GPU.search(text):
        raise CannotScore(f"not a GPU: {text[:40]}")
    if text in catalog.devices:  # also what only a user's own catalogue knows
        return catalog.devices[text], []
    families = list(dict.fromkeys(match.lower() for match in _FAMILY.findall(text)))
    if len(families) > 1:
        raise CannotScore(f"mixed or undecidable GPUs: {text[:40]}")
    if not families:
        raise CannotScore(f"GPU not in the catalogue: {text[:40]}")
    try:
        matches = catalog.device_matches(families[0])
    except SpecError:
        raise CannotScore(f"GPU not in the catalogue: {text[:40]}") from None
    matches = _form_factor(matches, text, row.text("intra_node"))
    in_name = re.search(r"([0-9]{2,3}) ?GB", text)
    memory_gb = float(in_name.group(1)) if in_name else row.positive("gpu_mem_gb")
    if memory_gb is not None and not _MEMORY_GB[0] <= memory_gb <= _MEMORY_GB[1]:
        raise SpecError(
            row.where("gpu_mem_gb"), f"must be between {_MEMORY_GB[0]} and {_MEMORY_GB[1]}; got {memory_gb:g}"
        )
    if memory_gb is None:
        assumed = len({device.memory_bytes for device in matches}) > 1
        return matches[0], [f"{MEMORY_ASSUMED}: {matches[0].name}"] if assumed else []
    nearest, nominal = min(
        ((device, memory_gb * unit) for device in matches for unit in (GIGA, GIB)),
        key=lambda pair: abs(math.log(pair[0].memory_bytes / pair[1])),
    )
    if abs(nearest.memory_bytes / nominal - 1) <= _SAME_MEMORY:
        return nearest, []
    if "mlperf" in row.text("source").lower():  # its system descriptions carry over older figures
        return nearest, [f"{MEMORY_ASSUMED}: {nearest.name}, not the {memory_gb:g} GB of the table"]
    scale = nominal / nearest.memory_bytes
    resized = dataclasses.replace(
        nearest,
        name=f"{nearest.name}-as-{memory_gb:g}GB",
        memory_bytes=nominal,
        usable_memory_bytes=nearest.usable_memory_bytes * scale,
    )
    return resized, []


def _form_factor(matches: tuple[DeviceSpec, ...], text: str, intra_node: str) -> tuple[DeviceSpec, ...]:
    """Of several boards of one chip, those the row can mean; the socketed one unless it says otherwise."""
    lowered = f"{text} {intra_node}".lower()
    wanted = "nvl" if re.search(r"\bnvl\b", lowered) else "pcie" if "pcie" in lowered else ""
    if wanted:
        chosen = tuple(device for device in matches if wanted in device.name.lower())
    else:
        chosen = tuple(device for device in matches if not re.search("pcie|nvl(?!72)", device.name.lower()))
    return chosen or matches


def _scale_up(row: Row, node: NodeSpec, catalog: Catalog) -> LinkSpec:
    """PCIe where the row says that a device that could have NVLink has none."""
    if "pcie" not in row.text("intra_node").lower() or node.scale_up.kind == "pcie":
        return node.scale_up
    pcie = [link for link in catalog.links.values() if link.kind == "pcie" and "4" in link.name]
    return pcie[0] if pcie else node.scale_up


def _named_cluster(row: Row) -> str:
    """Name of a known cluster that the row's source or notes mention; empty when none."""
    text = f"{row.text('source')} {row.text('notes')}"
    return next((name for name in _KNOWN_CLUSTERS if name in text), "")


def _collective_rank_s(row: Row) -> float:
    """Least time of a collective per rank when the row's job ran (see ``_HEALTHY_JOBS``); 0 when all was well."""
    job = re.search(r"job ([0-9]+)", row.text("locator"))
    if job is None or not _named_cluster(row):
        return 0.0
    number = int(job.group(1))
    healthy = any(first <= number <= last for first, last in _HEALTHY_JOBS)
    return 0.0 if healthy else _STALLED_RANK_S


def _network(row: Row, node: NodeSpec, per_node: int, catalog: Catalog) -> tuple[LinkSpec, int]:
    """Adapter and adapters per node, from text such as "8 x 200 Gb/s HDR IB per node"."""
    text = row.text("inter_node")
    if "omni-path" in text.lower():
        return catalog.links["omnipath-100"], 4  # Jean Zay's four-link nodes
    text = re.split(r"[;,] ?(?:Management|Storage)|Data bandwidth", text.split("Compute:")[-1])[0]
    found = _adapters(text, node, per_node)
    if found is None:
        return node.nic, max(1, round(node.nics_per_node * per_node / node.devices_per_node))
    nics, gigabits = found
    link = dataclasses.replace(
        node.nic,
        name=f"{text[:60]}",
        bandwidth_bytes_per_s=gigabits * GIGA / BITS_PER_BYTE,
        source="as printed in the table",
    )
    return link, nics


def _adapters(text: str, node: NodeSpec, per_node: int) -> tuple[int, float] | None:
    """Adapters per node and Gb/s of each; None when the text does not say."""
    if "selene" in text.lower() or "hdr infiniband" in text.lower():
        return 8, 200.0  # Selene: DGX A100 with 8 HDR adapters (arXiv:2104.04473 section 5)
    match = re.search(r"([0-9]+) ?x [^0-9]*(?:ConnectX-[0-9][^0-9]*)?([0-9]{2,4}) ?G", text) or re.search(
        r"([0-9]+)x [A-Za-z ]*ConnectX-[0-9] (?:Ex |IB [A-Z]+ )?([0-9]{2,4}) ?G", text
    )
    if match:
        return max(1, int(match.group(1))), float(match.group(2))
    single = re.search(r"([0-9]{2,5}) ?G(?:bps|b/s|bit)", text)
    if single is None:
        return None
    gigabits = float(single.group(1))
    # "RoCE 400 Gbps" beside Hopper means every GPU's adapter (Llama 3, arXiv:2407.21783 section 3.3).
    each = "per gpu" in text.lower() or (gigabits == 400 and node.device.architecture in ("hopper", "blackwell"))
    return (per_node, gigabits) if each else (1, gigabits)
