"""The packaged catalogue: its figures, where they come from, and the names they are found by."""

import csv
import json
from dataclasses import replace
from importlib import resources

import pytest

import planner
from profiles.catalog import Catalog
from profiles.catalog_entries import DEVICE_NUMBERS
from profiles.device_names import name_words
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec, LinkSpec, NodeSpec
from profiles.units import GIB, MIB, TERA
from tests.places import DATA


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


# ---- what is known ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "bf16_tflops", "usable_gib", "bandwidth_tb_per_s"),
    [
        ("A100-SXM-80GB", 312, 79.19, 2.039),
        ("A100-SXM-40GB", 312, 39.59, 1.555),
        ("H100-SXM-80GB", 989.4, 79.19, 3.35),
        ("H100-PCIe-80GB", 756, 79.19, 2.039),
        ("H200-SXM-141GB", 989.4, 139.8, 4.8),
        ("B200-SXM-180GB", 2250, 178.35, 7.7),
        ("GB200-186GB", 2500, 184.3, 8.0),
        ("RTX-4090", 165.2, 23.65, 1.008),
        ("RTX-3090", 71, 23.7, 0.936),
        ("MI300X", 1307.4, 191.98, 5.3),
        ("A10", 125, 22.21, 0.6),
        ("A30", 165, 23.53, 0.933),
        ("H20-SXM-141GB", 148, 139.8, 4.8),
        ("RTX-5090", 209.5, 31.37, 1.792),
        ("RTX-PRO-6000-WS-96GB", 503.8, 94.97, 1.792),
        ("GB10-128GB", 124.1, 119.7, 0.273),
    ],
)
def test_device_figures(
    catalog: Catalog, device: str, bf16_tflops: float, usable_gib: float, bandwidth_tb_per_s: float
) -> None:
    spec = catalog.devices[device]
    assert spec.peak_flops_per_s["bf16"] == pytest.approx(bf16_tflops * TERA)
    assert spec.usable_memory_bytes == pytest.approx(usable_gib * GIB)
    assert spec.memory_bandwidth_bytes_per_s == pytest.approx(bandwidth_tb_per_s * 1e12)


def test_every_device_is_plausible_and_sourced(catalog: Catalog) -> None:
    for device in catalog.devices.values():
        scaled = {name for name in ("training_time_scale", "clock_headroom") if getattr(device, name) != 1}
        assert set(device.sources) == set(DEVICE_NUMBERS) | scaled, device.name
        assert not any(text.startswith("unsourced") or len(text) < 15 for text in device.sources.values()), device.name
        assert 0.9 < device.usable_memory_bytes / device.memory_bytes <= 1, device.name
        assert device.peak("tf32") >= device.peak("fp32"), device.name
        # Dense tensor rates double from format to format; a sparse figure would break the ratio.
        peaks = device.peak_flops_per_s
        if "fp8" in peaks:
            assert peaks["fp8"] == pytest.approx(2 * peaks["fp16"], rel=0.02), device.name
        if "bf16" in peaks and device.name != "MI100":  # half rate, as its data sheet says
            assert peaks["bf16"] == peaks["fp16"], device.name


def test_every_link_and_node_is_sourced(catalog: Catalog) -> None:
    for link in catalog.links.values():
        assert not link.source.startswith("unsourced"), link.name
        assert "; latency: " in link.source, link.name
    assert not [node.name for node in catalog.nodes.values() if node.source.startswith("unsourced")]


def test_every_device_has_a_default_node_that_holds_it(catalog: Catalog) -> None:
    for device in catalog.devices.values():
        assert catalog.nodes[device.default_node].device == device, device.name


@pytest.mark.parametrize(
    ("link", "gb_per_s"),
    [
        ("nvlink2", 150), ("nvlink3", 300), ("nvlink4", 450), ("nvlink5", 900), ("nvlink3-a800", 200),
        ("nvlink4-h800", 200), ("nvlink3-bridge", 56.25), ("xgmi-mi300", 448), ("pcie3", 15.75), ("pcie4", 31.5),
        ("pcie5", 63), ("ib-edr-100", 12.5), ("ib-hdr-200", 25), ("ib-ndr-400", 50), ("ib-xdr-800", 100),
        ("roce-400", 50), ("efa-100", 12.5), ("omnipath-100", 12.5), ("slingshot-11", 25), ("ethernet-25", 3.125),
    ],
)  # fmt: skip
def test_links_are_per_direction_line_rates(catalog: Catalog, link: str, gb_per_s: float) -> None:
    assert catalog.links[link].bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9)


@pytest.mark.parametrize(
    ("node", "devices", "domain", "gb_per_s_per_device"),
    [
        ("dgx-h100", 8, 8, 50),
        ("dgx-a100-80gb", 8, 8, 25),
        ("p4d.24xlarge", 8, 8, 6.25),
        ("p5.48xlarge", 8, 8, 50),
        ("p3.16xlarge", 8, 8, 3.125 / 8),
        ("dgx-2", 16, 16, 6.25),
        ("gb200-nvl72", 4, 72, 50),
        ("gb300-nvl72", 4, 72, 100),
        ("frontier", 8, 8, 12.5),
        ("jupiter-booster", 4, 4, 25),
    ],
)
def test_nodes(catalog: Catalog, node: str, devices: int, domain: int, gb_per_s_per_device: float) -> None:
    spec = catalog.nodes[node]
    assert (spec.devices_per_node, spec.domain_devices) == (devices, domain)
    assert spec.scale_out_bytes_per_s == pytest.approx(gb_per_s_per_device * 1e9)


def test_host_code_takes_longer_on_grace(catalog: Catalog) -> None:
    scales = {name: node.host_time_scale for name, node in catalog.nodes.items() if node.host_time_scale != 1}
    assert set(scales) == {"gb200-nvl72", "gb300-nvl72", "gh200-4x", "jupiter-booster"}
    fitted = json.loads((resources.files("profiles") / "data" / "fits" / "dataflow.json").read_text(encoding="utf-8"))
    twentieths = round(20 * fitted["nemo-rl"]["values"]["grace_time_scale"])  # its last digit moves with every fit
    assert set(scales.values()) == {twentieths / 20}


def test_only_links_without_peer_to_peer_say_so(catalog: Catalog) -> None:
    staged = {link.name for link in catalog.links.values() if not link.peer_to_peer}
    lines = {f"pcie{generation}-no-p2p" for generation in (3, 4, 5)}
    shared = {"pcie3-no-p2p-half": 2, "pcie4-no-p2p-half": 2, "pcie4-no-p2p-quarter": 4}
    assert staged == {*lines, *shared, "pcie4-congested"}
    for name, cards in shared.items():
        line = catalog.link(name.rsplit("-", 1)[0]).bandwidth_bytes_per_s
        assert catalog.link(name).bandwidth_bytes_per_s * cards == line
    assert {link.name for link in catalog.links.values() if link.one_host} == {"pcie4-congested"}


GEFORCE = (
    "RTX-2080-Ti", "RTX-3060-12GB", "RTX-3080", "RTX-3090", "RTX-3090-Ti", "RTX-4060-Ti-16GB", "RTX-4080", "RTX-4090",
    "RTX-5060-Ti-16GB", "RTX-5070-Ti", "RTX-5080", "RTX-5090",
)  # fmt: skip


def test_geforce_cards_have_no_peer_access_and_professional_ones_have(catalog: Catalog) -> None:
    for name in GEFORCE:
        assert not catalog.nodes[catalog.device(name).default_node].scale_up.peer_to_peer, name
    for name in ("L40S", "L4", "A10G", "T4", "A40", "RTX-A6000", "RTX-6000-Ada", "A100-PCIe-80GB", "V100-PCIe-32GB"):
        assert catalog.nodes[catalog.device(name).default_node].scale_up.peer_to_peer, name
    assert catalog.nodes["rtx4090-8x-p2p"].scale_up.name == "pcie4"  # with a patched driver
    assert catalog.nodes["l40s-8x-congested"].scale_up.one_host


# (device, column) where the public table and the catalogue differ by more than its rounding, and why.
TABLE_DIFFERENCES = {
    ("MI250-GCD", "bf16_tflops"): "the table prints the MI250X rate beside the MI250's compute units",
    ("MI250-GCD", "fp32_tflops"): "the same",
    ("MI100", "bf16_tflops"): "the table prints the bf16 rate, which is half of the 16-bit one compared here",
    ("B300-SXM-288GB", "fp4_tflops"): "the table prints 14 PFLOP/s, the vendor 108 over 8 devices",
}
TABLE_FORMATS = {"bf16_tflops": "fp16", "fp8_tflops": "fp8", "fp4_tflops": "fp4", "fp32_tflops": "fp32"}


def test_figures_agree_with_the_public_table(catalog: Catalog) -> None:
    table = DATA / "timings" / "gpu_specs.csv"
    if not table.is_file():
        pytest.skip("needs the data folder (timings/gpu_specs.csv)")
    compared = 0
    for row in csv.DictReader(table.read_text().splitlines()):
        try:
            device = catalog.device(row["gpu"])
        except SpecError:
            continue  # accelerators the catalogue does not have
        compared += 1
        ours = {column: device.peak_flops_per_s.get(kind, 0) / TERA for column, kind in TABLE_FORMATS.items()}
        ours |= {
            "hbm_gbs": device.memory_bandwidth_bytes_per_s / 1e9,
            "sms": device.num_sms,
            "l2_mb": device.l2_bytes / MIB,
        }
        different = {column for column, value in ours.items() if value != pytest.approx(float(row[column]), rel=0.01)}
        assert different == {column for name, column in TABLE_DIFFERENCES if name == device.name}, device.name
    assert compared >= 20


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("A100", "A100-SXM-80GB"),
        ("a100-40gb", "A100-SXM-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("A100 80G PCIe", "A100-PCIe-80GB"),
        ("a100sxm80gb", "A100-SXM-80GB"),
        ("A100-80GB-PCIe", "A100-PCIe-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("h100_sxm", "H100-SXM-80GB"),
        ("H100-64GB", "H100-SXM-64GB"),
        ("H100-96GB", "H100-SXM-96GB"),
        ("H100 NVL", "H100-NVL-94GB"),
        ("H20", "H20-SXM-96GB"),
        ("H20-141GB", "H20-SXM-141GB"),
        ("NVIDIA H20-3e", "H20-SXM-141GB"),
        ("A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 5090", "RTX-5090"),
        ("RTX PRO 6000 Blackwell", "RTX-PRO-6000-Server-96GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000-WS-96GB"),
        ("NVIDIA GB10", "GB10-128GB"),
        ("NVIDIA B300 SXM6 AC", "B300-SXM-288GB"),
        ("NVIDIA Blackwell Ultra GPU (B300-SXM-270GB)", "B300-SXM-288GB"),
        ("AMD Instinct MI325X 256GB HBM3E DLC", "MI325X"),
        ("B200-192GB", "B200-SXM-180GB"),
        ("gb200nvl72", "GB200-186GB"),
        ("4090", "RTX-4090"),
        ("GeForce RTX 4090", "RTX-4090"),
        ("RTX4090", "RTX-4090"),
        ("RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("A6000", "RTX-A6000"),
        ("L4-24GB", "L4"),
        ("AMD Instinct MI300X OAM", "MI300X"),
        ("mi250x", "MI250X-GCD"),
        ("2080ti", "RTX-2080-Ti"),
        ("RTX3090Ti", "RTX-3090-Ti"),
        ("GeForce RTX 4060 Ti", "RTX-4060-Ti-16GB"),
        ("5070ti", "RTX-5070-Ti"),
        ("3080-10GB", "RTX-3080"),
        ("NVIDIA L20", "L20"),
        ("V100-SXM2-16GB", "V100-SXM-16GB"),
    ],
)
def test_spellings(catalog: Catalog, written: str, meant: str) -> None:
    assert catalog.device(written).name == meant


def test_geforce_cards_of_one_generation_multiply_alike_per_cycle(catalog: Catalog) -> None:
    """An SM of theirs does 128 multiply-adds a cycle in fp32, and in 16 bits, with 32-bit sums, 256 (Turing: 64)."""
    for name in GEFORCE:
        device = catalog.device(name)
        lanes = 64 if device.architecture == "turing" else 128
        clock_hz = device.peak_flops_per_s["fp32"] / (2 * lanes * device.num_sms)
        assert 1.5e9 < clock_hz < 2.7e9, name
        wide = 2 * device.peak_flops_per_s["fp32"] * (128 / lanes)
        assert device.peak_flops_per_s["fp16"] == pytest.approx(wide, rel=0.01), name


def test_a_name_without_its_memory_is_told(catalog: Catalog) -> None:
    assert [device.name for device in catalog.device_matches("4060 Ti")] == ["RTX-4060-Ti-16GB"]
    with pytest.raises(SpecError, match="RTX-4060-Ti-16GB"):
        catalog.device("RTX 4060 Ti 8GB")


def test_every_canonical_name_means_itself_alone(catalog: Catalog) -> None:
    for name in catalog.devices:
        assert [device.name for device in catalog.device_matches(name)] == [name]
        assert [device.name for device in catalog.device_matches(name.lower().replace("-", " "))] == [name]


def test_distinct_devices_never_share_a_full_spelling(catalog: Catalog) -> None:
    assert len({name_words(name) for name in catalog.devices}) == len(catalog.devices)


def test_ambiguous_name_lists_the_alternatives(catalog: Catalog) -> None:
    assert [device.name for device in catalog.device_matches("A100-80GB")] == ["A100-SXM-80GB", "A100-PCIe-80GB"]


@pytest.mark.parametrize("name", ["dgx-h100", "DGX_H100", "dgx h100", "hgx-h100"])
def test_node_lookup_ignores_case_and_takes_aliases(catalog: Catalog, name: str) -> None:
    assert catalog.node(name).name == "dgx-h100"


@pytest.mark.parametrize("name", ["ib-ndr-400", "IB_NDR_400", "ndr", " NDR "])
def test_link_lookup_ignores_case_and_takes_aliases(catalog: Catalog, name: str) -> None:
    assert catalog.link(name).name == "ib-ndr-400"


def test_lookup_errors_verbatim(catalog: Catalog) -> None:
    with pytest.raises(SpecError) as device:
        catalog.device("H10O")
    assert str(device.value) == ("cluster.device: unknown name 'H10O'. Hint: did you mean 'H100' or 'H20' or 'A10'?")
    with pytest.raises(SpecError) as memory:
        catalog.device("A100-160GB", field="device")
    assert str(memory.value) == (
        "device: unknown name 'A100-160GB'. Hint: did you mean 'A100-SXM-80GB' or 'A100-SXM-40GB' or 'A100-PCIe-80GB'?"
    )
    with pytest.raises(SpecError) as link:
        catalog.link("ib-ndr-40")
    assert str(link.value).startswith("cluster.fabric: unknown link 'ib-ndr-40'. Hint: did you mean 'ib-ndr-400'")
    with pytest.raises(SpecError) as node:
        catalog.node("dgx-h10")
    assert str(node.value).startswith("cluster.node: unknown node 'dgx-h10'. Hint: did you mean 'dgx-h100'")


# ---- the specs themselves -----------------------------------------------------------------------


def test_peak_falls_back_and_refuses(catalog: Catalog) -> None:
    volta = catalog.devices["V100-SXM-32GB"]
    assert volta.peak("tf32") == volta.peak_flops_per_s["fp32"]
    with pytest.raises(SpecError) as error:
        catalog.devices["A100-SXM-80GB"].peak("fp8")
    assert str(error.value) == (
        "job.precision: A100-SXM-80GB has no fp8 arithmetic. Hint: use one of bf16, fp16, fp32, tf32"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices_per_node": 0}, "cluster.gpus_per_node: must be between 1 and 72; got 0. Hint: 1"),
        ({"domain_devices": 12}, "cluster.domain_devices: must be a multiple of gpus_per_node=8; got 12"),
        ({"nics_per_node": 0}, "cluster.nics_per_node: must be at least 1; got 0"),
    ],
)
def test_node_spec_refuses_nonsense(catalog: Catalog, changes: dict[str, int], message: str) -> None:
    node = catalog.nodes["dgx-h100"]
    fields = {name: getattr(node, name) for name in NodeSpec.__slots__} | changes
    with pytest.raises(SpecError) as error:
        NodeSpec(**fields)
    assert str(error.value) == message


def test_types(catalog: Catalog) -> None:
    assert all(isinstance(device, DeviceSpec) for device in catalog.devices.values())
    assert all(isinstance(link, LinkSpec) for link in catalog.links.values())


def test_a_superchip_under_a_cap_sustains_less_and_takes_less_power(catalog: Catalog) -> None:
    """JUPITER's modules are limited to 680 W where others have 900; a bare GH200 is one of the others."""
    whole, capped = catalog.device("GH200"), catalog.device("GH200-96GB-680W")
    assert (whole.name, whole.power_w, capped.power_w) == ("GH200-96GB", 900, 680)
    assert replace(capped, name=whole.name, power_w=900, default_node=whole.default_node) == whole
    job, plan = {"sequence_length": 4096, "global_batch_size": 64}, {"tp": 1, "zero": 1, "micro_batch": 1}
    free, held = (planner.estimate("llama-3-8b", on, job, plan=plan).best for on in ("1xgh200-4x", "1xjupiter"))
    assert held.step_time_s > 1.1 * free.step_time_s
    watts = [best.energy_per_step_j / best.device_seconds_per_step for best in (free, held)]
    assert watts == pytest.approx([900, 680])
