"""Cluster strings and mappings: what they mean, what is assumed, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.catalog import Catalog, default_catalog
from profiles.cluster_string import cluster_from_mapping, cluster_to_mapping, parse_cluster
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES

FORMS = "write a device ('H100'), a count and a device ('8xH100') or nodes, devices per node and a device ('2x8xH100')"
DEVICES = sorted(default_catalog().devices)
NODES = sorted(default_catalog().nodes)


@pytest.mark.parametrize(
    ("text", "device", "num_nodes", "per_node", "domain"),
    [
        ("A100", "A100-SXM-80GB", 1, 1, 1),
        ("8xA100", "A100-SXM-80GB", 1, 8, 8),
        ("8 x A100", "A100-SXM-80GB", 1, 8, 8),
        ("8\u00d7A100", "A100-SXM-80GB", 1, 8, 8),
        ("8*a100", "A100-SXM-80GB", 1, 8, 8),
        ("4xA100", "A100-SXM-80GB", 1, 4, 4),
        ("A100-80GB:8", "A100-SXM-80GB", 1, 8, 8),
        ("A100:16", "A100-SXM-80GB", 2, 8, 8),
        ("2x8xH100-80GB", "H100-SXM-80GB", 2, 8, 8),
        ("2X8XH100-80GB-SXM", "H100-SXM-80GB", 2, 8, 8),
        ("64xH100-80GB", "H100-SXM-80GB", 8, 8, 8),
        ("2x4xA100", "A100-SXM-80GB", 2, 4, 4),
        ("4x16xV100", "V100-SXM-32GB", 4, 16, 16),
        ("72xGB200", "GB200-186GB", 18, 4, 72),
        ("8xGB200", "GB200-186GB", 2, 4, 8),
        ("2xGB200", "GB200-186GB", 1, 2, 2),
        ("18x4xGB200", "GB200-186GB", 18, 4, 72),
        ("1x72xGB200", "GB200-186GB", 18, 4, 72),
        ("2x72xGB200", "GB200-186GB", 36, 4, 72),
        ("2x8xGB200", "GB200-186GB", 4, 4, 8),
        ("2x72xGB200-NVL72", "GB200-186GB", 36, 4, 72),
        ("8xA100-PCIe", "A100-PCIe-80GB", 1, 8, 8),
        ("8xPCIe-A100-40GB", "A100-PCIe-40GB", 1, 8, 8),
        ("8x4090", "RTX-4090", 1, 8, 8),
        ("gpu.8xh200", "H200-SXM-141GB", 1, 8, 8),
        ("GPU_8xH100", "H100-SXM-80GB", 1, 8, 8),
        ("  8xH100  ", "H100-SXM-80GB", 1, 8, 8),
        ("131072x8xH100", "H100-SXM-80GB", 131072, 8, 8),
    ],
)
def test_forms(text: str, device: str, num_nodes: int, per_node: int, domain: int) -> None:
    cluster = parse_cluster(text)
    assert cluster.device.name == device
    assert (cluster.num_nodes, cluster.node.devices_per_node) == (num_nodes, per_node)
    assert cluster.domain_devices == domain
    assert cluster.num_devices == num_nodes * per_node
    assert cluster.name == text.strip()


@pytest.mark.parametrize(
    ("text", "assumptions"),
    [
        (
            "64xH100-80GB",
            (
                "device: 'H100-80GB' is taken as H100-SXM-80GB (it could also mean H100-PCIe-80GB)",
                "nodes: 64 devices are taken as 8 nodes of 8",
                "node: as dgx-h100: nvlink4 between devices, 8 x ib-ndr-400 per node",
            ),
        ),
        ("8xH100-SXM-80GB", ("node: as dgx-h100: nvlink4 between devices",)),
        ("8x4090", ("node: as rtx4090-8x: pcie4-no-p2p between devices without peer access",)),
        ("rtx4090-8x-p2p", ("node: as rtx4090-8x-p2p: pcie4 between devices",)),
        (
            "2x4xH100-SXM-80GB",
            (
                "nics_per_node: 4, in proportion to the 8 that dgx-h100 has for 8 devices",
                "node: as dgx-h100: nvlink4 between devices, 4 x ib-ndr-400 per node",
            ),
        ),
        (
            "2x72xGB200",
            (
                "nodes: each group of 72 is 18 hosts of 4 in one nvlink5 domain",
                "node: as gb200-nvl72: nvlink5 between devices, 4 x ib-ndr-400 per node",
            ),
        ),
        (
            "4xMI250",
            (
                "device: 'MI250' is counted in MI250-GCD, half a package each",
                "node: as mi250-4x: xgmi-mi250 between devices",
            ),
        ),
    ],
)
def test_what_is_assumed_is_said(text: str, assumptions: tuple[str, ...]) -> None:
    assert parse_cluster(text).assumptions == assumptions


def test_network_bandwidth_per_device_survives_smaller_nodes() -> None:
    whole, half = parse_cluster("2x8xH100"), parse_cluster("2x4xH100")
    assert whole.node.scale_out_bytes_per_s == pytest.approx(50e9)
    assert half.node.scale_out_bytes_per_s == pytest.approx(50e9)
    assert half.node.host_memory_bytes == pytest.approx(whole.node.host_memory_bytes / 2)


def test_overrides() -> None:
    cluster = parse_cluster("16xA100", fabric="roce-100", nics_per_node=2, scale_up="PCIE4")
    assert cluster.node.nic.name == "roce-100"
    assert cluster.node.scale_up.name == "pcie4"
    assert cluster.node.scale_out_bytes_per_s == pytest.approx(2 * 12.5e9 / 8)
    assert not any(line.startswith("node:") for line in cluster.assumptions)

    assert parse_cluster("16xA100", gpus_per_node=4).num_nodes == 4
    assert parse_cluster("16xA100", fabric="edr").assumptions[-1] == (
        "node: as dgx-a100-80gb: nvlink3 between devices, 8 adapters per node"
    )


def test_node_override_settles_the_device() -> None:
    cluster = parse_cluster("16xA100", node="p4d.24xlarge")
    assert cluster.device.name == "A100-SXM-40GB"
    assert cluster.node.scale_out_bytes_per_s == pytest.approx(6.25e9)
    assert cluster.assumptions == (
        "nodes: 16 devices are taken as 2 nodes of 8",
        "node: as p4d.24xlarge: nvlink3 between devices, 4 x efa-100 per node",
    )
    assert parse_cluster("2x4xA100", node="p4d.24xlarge").node.nics_per_node == 2


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", {}, f"cluster: cannot read ''. Hint: {FORMS}"),
        ("8x", {}, f"cluster: cannot read '8x'. Hint: {FORMS}"),
        ("2x3x4xA100", {}, f"cluster: cannot read '2x3x4xA100'. Hint: {FORMS}"),
        ("-8xA100", {}, f"cluster: cannot read '-8xA100'. Hint: {FORMS}"),
        ("A100:8:8", {}, f"cluster: cannot read 'A100:8:8'. Hint: {FORMS}"),
        ("8xA100:8", {}, f"cluster: '8xA100:8' counts devices twice. Hint: {FORMS}"),
        ("x" * 201, {}, f"cluster: at most 200 characters; got 201. Hint: {FORMS}"),
        ("H100x8", {}, "cluster: cannot read 'H100x8'. Hint: 8xH100"),
        ("4090x8", {}, "cluster: cannot read '4090x8'. Hint: 8x4090"),
        ("3090x2", {}, "cluster: cannot read '3090x2'. Hint: 2x3090"),
        ("L40x0", {}, "cluster.device: unknown name 'L40x0'. Hint: did you mean 'L40' or 'L40S' or 'L4'?"),
        ("4090x0", {}, "cluster.device: unknown name '0'. Hint: did you mean 'L40' or 'L20' or 'H20'?"),
        ("8xH10O", {}, "cluster.device: unknown name 'H10O'. Hint: did you mean 'H100' or 'H20' or 'A10'?"),
        ("0xH100", {}, f"cluster.num_devices: must be between 1 and {MAX_DEVICES}; got 0. Hint: 1"),
        ("H100:0", {}, f"cluster.num_devices: must be between 1 and {MAX_DEVICES}; got 0. Hint: 1"),
        ("1048577xH100", {}, f"cluster.num_devices: must be between 1 and {MAX_DEVICES}; got 1048577. Hint: 1048576"),
        ("0x8xH100", {}, "cluster.num_nodes: must be between 1 and 131072; got 0. Hint: 1"),
        ("999999999x8xH100", {}, "cluster.num_nodes: must be between 1 and 131072; got 999999999. Hint: 131072"),
        (
            "9" * 99 + "x8xH100",
            {},
            "cluster.num_nodes: must be between 1 and 131072; got a larger number. Hint: 131072",
        ),
        ("2x73xH100", {}, "cluster.gpus_per_node: must be between 1 and 72; got 73. Hint: 72"),
        ("2x0xH100", {}, "cluster.gpus_per_node: must be between 1 and 72; got 0. Hint: 1"),
        ("131072x72xGB200", {}, "cluster.num_nodes: must be between 1 and 131072; got 2359296. Hint: 131072"),
        ("131072x16xH100", {}, "cluster: at most 1048576 devices; got 2097152"),
        (
            "2xgb200-nvl72",
            {},
            "cluster: '2xgb200-nvl72' may be 2 devices or 2 nodes of 72. Hint: 2xGB200-186GB or 2x72xGB200-186GB",
        ),
        (
            "gb300-nvl72:4",
            {},
            "cluster: 'gb300-nvl72:4' may be 4 devices or 4 nodes of 72. Hint: 4xGB300-288GB or 4x72xGB300-288GB",
        ),
        (
            "12xH100",
            {},
            "cluster.num_devices: 12 devices do not fill nodes of 8 (dgx-h100). "
            "Hint: use 8 or 16, or say NODESxCOUNTxDEVICE",
        ),
        (
            "2x8xH100",
            {"gpus_per_node": 4},
            "cluster.gpus_per_node: '2x8xH100' says 8; got 4. Hint: give it once",
        ),
        ("2xH100", {"gpus_per_node": 4}, "cluster.gpus_per_node: must not exceed the 2 devices; got 4"),
        ("8xH100", {"gpus_per_node": 0}, "cluster.gpus_per_node: must be between 1 and 72; got 0. Hint: 1"),
        ("8xH100", {"nics_per_node": 0}, "cluster.nics_per_node: must be between 1 and 1024; got 0. Hint: 1"),
        (
            "8xH100",
            {"fabric": "ib-ndr-40"},
            "cluster.fabric: unknown link 'ib-ndr-40'. Hint: "
            "did you mean 'ib-ndr-400' or 'ib-xdr-800' or 'ib-hdr-200'?",
        ),
        (
            "8xH100",
            {"scale_up": "nvlink9"},
            "cluster.scale_up: unknown link 'nvlink9'. Hint: did you mean 'nvlink5' or 'nvlink4' or 'nvlink3'?",
        ),
        (
            "8xH100",
            {"node": "dgx-b100"},
            "cluster.node: unknown node 'dgx-b100'. Hint: did you mean 'dgx-h100' or 'dgx-1-v100' or 'hgx-b300'?",
        ),
        (
            "8xA40",
            {"node": "dgx-h100"},
            "cluster.node: dgx-h100 holds H100-SXM-80GB, not A40. Hint: A40 comes in a40-8x, a40-nvlink-pair",
        ),
    ],
)
def test_errors_verbatim(text: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_cluster(text, **overrides)
    assert str(error.value) == message


# ---- mappings -----------------------------------------------------------------------------------

FULL = {
    "device": "A100-SXM-80GB",
    "num_nodes": 4,
    "gpus_per_node": 8,
    "scale_up": "nvlink3",
    "fabric": "ib-hdr-200",
    "nics_per_node": 8,
    "host_memory_gb": 1024,
    "domain_devices": 8,
}


def test_full_mapping_assumes_nothing() -> None:
    cluster = cluster_from_mapping(FULL)
    assert cluster.assumptions == ()
    assert cluster.name == "4x8xA100-SXM-80GB"
    assert cluster.num_devices == 32
    assert cluster.node.host_memory_bytes == pytest.approx(1024e9)
    assert cluster.node.scale_out_bytes_per_s == pytest.approx(25e9)


def test_mapping_takes_the_rest_from_the_catalogue() -> None:
    by_node = cluster_from_mapping({"node": "gb200-nvl72", "num_nodes": 18, "name": "rack"})
    assert (by_node.name, by_node.num_devices, by_node.domain_devices) == ("rack", 72, 72)
    whole_racks = cluster_from_mapping({"device": "GB200", "num_nodes": 2, "gpus_per_node": 72})
    assert (whole_racks.num_nodes, whole_racks.num_devices) == (36, 144)
    assert cluster_from_mapping({"device": "GB200", "num_nodes": 4, "domain_devices": 16}).domain_devices == 16
    assert cluster_from_mapping({"device": "H100", "host_link": "pcie4"}).node.host_link.name == "pcie4"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "cluster.device: is required. Hint: name a device, or a node that implies one"),
        ({"device": "A100", "num_nodes": True}, "cluster.num_nodes: must not be true or false; got True"),
        (
            {"devices": "A100"},
            "cluster.devices: unknown field. Hint: did you mean 'device' or 'num_devices' or 'domain_devices'?",
        ),
        (
            {"device": "A100", "num_nodes": 0},
            "cluster.num_nodes: must be at least 1; got 0. Hint: 1",
        ),
        ({"device": "A100", "num_nodes": "many"}, "cluster.num_nodes: must be a whole number, not text; got 'many'"),
        (
            {"device": "A100", "gpus_per_node": 100},
            "cluster.gpus_per_node: must be at most 72; got 100. Hint: 72",
        ),
        (
            {"device": "A100", "domain_devices": 12},
            "cluster.domain_devices: must be a multiple of gpus_per_node=8; got 12",
        ),
        (
            {"device": "A100", "host_memory_gb": float("inf")},
            "cluster.host_memory_gb: must be a finite number; got inf",
        ),
        (
            {"device": "A40", "node": "dgx-h100"},
            "cluster.node: dgx-h100 holds H100-SXM-80GB, not A40. Hint: A40 comes in a40-8x, a40-nvlink-pair",
        ),
        ({"device": "nothing like it"}, "cluster.device: unknown name 'nothing like it'. Hint: known: "),
        (["A100"], "cluster: must be a mapping of fields; got list"),
    ],
)
def test_mapping_errors(mapping: Any, message: str) -> None:
    with pytest.raises(SpecError) as error:
        cluster_from_mapping(mapping)
    assert str(error.value).startswith(message)
    assert message.endswith("known: ") or str(error.value) == message


def test_device_without_a_node(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "mine.yaml").write_text(
        "Mine: {vendor: acme, architecture: anvil, peak_tflops: {bf16: 1}, memory_gib: 8, usable_memory_gib: 8,"
        " memory_bandwidth_gb_per_s: 1, num_sms: 1, l2_mib: 1, power_w: 1}"
    )
    with pytest.raises(SpecError) as error:
        parse_cluster("8xMine", Catalog.load([tmp_path]))
    assert str(error.value) == (
        "cluster.node: the catalogue has no node with Mine. "
        "Hint: add a node that holds it to nodes.yaml in a directory of PLANNER_CATALOG"
    )
    (tmp_path / "nodes.yaml").write_text(
        "my-box: {device: Mine, devices_per_node: 4, scale_up: pcie5, nic: roce-400, nics_per_node: 1,"
        " host_link: pcie5, host_memory_gib: 512}"
    )
    assert parse_cluster("8xMine", Catalog.load([tmp_path])).num_nodes == 2


# ---- properties ---------------------------------------------------------------------------------


@given(text=st.text(max_size=250))
def test_any_text_is_a_cluster_or_a_spec_error(text: str) -> None:
    _parse_or_refuse(text)


@given(
    text=st.lists(
        st.sampled_from(
            ["8", "2", "0", "x", "X", ":", " ", "-", "A100", "H100", "GB200", "80GB", "SXM", "PCIe", "999999"]
        ),
        max_size=8,
    ).map("".join)
)
def test_anything_like_a_cluster_is_a_cluster_or_a_spec_error(text: str) -> None:
    _parse_or_refuse(text)


def _parse_or_refuse(text: str) -> None:
    try:
        cluster = parse_cluster(text)
    except SpecError as error:
        assert error.field.startswith("cluster")  # noqa: PT017
    else:
        assert 1 <= cluster.num_devices <= MAX_DEVICES


@given(
    device=st.sampled_from(DEVICES),
    num_nodes=st.integers(1, 4096),
    per_node=st.integers(1, 16),
    lower=st.booleans(),
)
def test_nodes_by_devices_round_trip(device: str, num_nodes: int, per_node: int, lower: bool) -> None:
    text = f"{num_nodes}x{per_node}x{device}"
    cluster = parse_cluster(text.lower() if lower else text)
    assert cluster.device.name == device
    assert cluster.num_devices == num_nodes * per_node
    assert cluster.node.domain_devices % cluster.node.devices_per_node == 0


@given(device=st.sampled_from(DEVICES), num_nodes=st.integers(1, 512))
def test_total_and_suffix_forms_agree(device: str, num_nodes: int) -> None:
    node = parse_cluster(device).node.name
    total = num_nodes * default_catalog().nodes[node].devices_per_node
    prefixed, suffixed = parse_cluster(f"{total}x{device}"), parse_cluster(f"{device}:{total}")
    assert prefixed.num_nodes == suffixed.num_nodes == num_nodes
    assert prefixed.node == suffixed.node == default_catalog().nodes[node]


@given(node=st.sampled_from(NODES), num_nodes=st.integers(1, 64), per_node=st.integers(1, 16))
def test_mapping_round_trip(node: str, num_nodes: int, per_node: int) -> None:
    device = default_catalog().nodes[node].device.name
    cluster = parse_cluster(f"{num_nodes}x{per_node}x{device}", node=node)
    again = cluster_from_mapping(cluster_to_mapping(cluster))
    assert again.assumptions == ()
    assert cluster_to_mapping(again) == pytest.approx(cluster_to_mapping(cluster))
    assert pickle.loads(pickle.dumps(again)) == again


@pytest.mark.parametrize(
    ("text", "nodes", "devices", "name"),
    [
        ("p5.48xlarge", 1, 8, "p5.48xlarge"),
        ("2xP4D.24xlarge", 2, 16, "p4d.24xlarge"),
        ("dgx-h100:4", 4, 32, "dgx-h100"),
    ],
)
def test_nodes_of_the_catalogue_are_clusters_too(text: str, nodes: int, devices: int, name: str) -> None:
    cluster = parse_cluster(text)
    assert (cluster.num_nodes, cluster.num_devices, cluster.node.name) == (nodes, devices, name)
    with pytest.raises(SpecError, match="counts devices of a node that says how many it has"):
        parse_cluster(f"2x8x{name}")


@pytest.mark.parametrize(
    ("text", "devices", "name"),
    [("gb200-nvl72", 72, "gb200-nvl72"), ("GB300 NVL72", 72, "gb300-nvl72"), ("2xdgx-gb200", 144, "gb200-nvl72")],
)
def test_a_rack_whose_devices_are_called_alike_is_the_rack(text: str, devices: int, name: str) -> None:
    cluster = parse_cluster(text)
    assert (cluster.num_devices, cluster.num_nodes, cluster.node.name) == (devices, devices // 4, name)
    assert cluster.domain_devices == 72


@pytest.mark.parametrize("text", ["0xp5.48xlarge", "p5.48xlarge:0"])
def test_no_nodes_of_a_named_kind_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="num_nodes: must be between 1 and"):
        parse_cluster(text)
