"""What ``planner models`` and ``planner gpus`` show: documents and tables of the catalogue."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from planner.phrases import count, gib
from planner.schema import device_document, models_document
from planner.schema_types import SCHEMA_VERSION
from profiles.catalog import default_catalog
from profiles.hardware import DeviceSpec
from profiles.model_presets import canonical_name
from profiles.units import GIGA, TERA

Shown = tuple[dict[str, Any], Callable[[Console], None]]


def show_models(name: str) -> Shown:
    """Models whose name contains ``name``."""
    document = models_document()
    if name:
        wanted = canonical_name(name)
        document["models"] = [model for model in document["models"] if wanted in canonical_name(model["name"])]
    return document, lambda console: _models(document["models"], console)


def show_devices(name: str) -> Shown:
    """All devices, or one in full."""
    catalog = default_catalog()
    if not name:
        devices = [catalog.devices[key] for key in sorted(catalog.devices)]
        document = {"schema_version": SCHEMA_VERSION, "devices": [device_document(device) for device in devices]}
        return document, lambda console: _devices(devices, console)
    device = catalog.device(name, field="device")
    document = {"schema_version": SCHEMA_VERSION, "devices": [device_document(device)]}
    return document, lambda console: _device(device, console)


def _models(models: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for title in ("parameters", "active", "layers", "hidden", "heads", "kv", "experts"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    for model in models:
        table.add_row(
            model["name"],
            count(model["total_parameters"]),
            count(model["active_parameters"]) if model["moe"] else "",
            str(model["num_layers"]),
            str(model["hidden_size"]),
            str(model["num_attention_heads"]),
            str(model["num_key_value_heads"]),
            str(model["moe"]["num_experts"]) if model["moe"] else "",
            model["source"],
        )
    console.print(table)


def _devices(devices: list[DeviceSpec], console: Console) -> None:
    table = Table(
        box=None, pad_edge=False, header_style="bold", caption="dense TFLOP/s; planner gpus NAME lists sources"
    )
    table.add_column("device", no_wrap=True)
    for title in ("bf16", "fp16", "fp8", "fp4", "memory", "usable", "GB/s", "W"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("usual node", no_wrap=True)
    for device in devices:
        peaks = [device.peak_flops_per_s.get(name) for name in ("bf16", "fp16", "fp8", "fp4")]
        table.add_row(
            device.name,
            *("" if peak is None else f"{peak / TERA:,.0f}" for peak in peaks),
            gib(device.memory_bytes),
            gib(device.usable_memory_bytes),
            f"{device.memory_bandwidth_bytes_per_s / GIGA:,.0f}",
            f"{device.power_w:,.0f}",
            device.default_node,
        )
    console.print(table)


def _device(device: DeviceSpec, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=device.name, title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    document = device_document(device)
    for name in ("vendor", "architecture", "num_sms", "l2_bytes", "power_w", "memory_bytes", "usable_memory_bytes"):
        value = document[name]
        table.add_row(name, value if isinstance(value, str) else f"{value:,.0f}", device.sources.get(name, ""))
    bandwidth = device.memory_bandwidth_bytes_per_s
    name = "memory_bandwidth_bytes_per_s"
    table.add_row(name, f"{bandwidth:,.0f}", device.sources.get(name, ""))
    for form, peak in device.peak_flops_per_s.items():
        source = device.sources.get(f"peak_flops_per_s.{form}", device.sources.get("peak_flops_per_s", ""))
        table.add_row(f"peak_flops_per_s.{form}", f"{peak:,.0f}", source)
    console.print(table)
