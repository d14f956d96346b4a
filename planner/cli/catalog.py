"""What ``planner models`` and ``planner gpus`` show: documents and tables of the catalogue."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from planner.document_plan import device_document, frameworks_document, models_document
from planner.phrases import count
from planner.render.fitted import FittedTable
from planner.render.plans import NARROW
from planner.schema_types import SCHEMA_VERSION
from profiles.catalog import default_catalog
from profiles.errors import SpecError, did_you_mean
from profiles.hardware import DeviceSpec
from profiles.model_presets import canonical_name, resolve_model
from profiles.stack_names import TOOLS, runs_on, tool_name
from profiles.units import GIB, TERA

_FEW = 3  # as many models are listed with their sources in full
_SOURCE_WIDTH = 24  # columns that a source in full is folded into

Shown = tuple[dict[str, Any], Callable[[Console], None]]


def show_models(name: str) -> Shown:
    """Models whose name contains ``name``, or the one that it is another name of."""
    document = models_document()
    if name:
        wanted = canonical_name(name)
        names = [model["name"] for model in document["models"]]
        chosen = [other for other in names if wanted in canonical_name(other)] or _meant(name)
        document["models"] = [model for model in document["models"] if model["name"] in chosen]
        if not document["models"]:
            raise SpecError("model", f"no name contains {name[:40]!r}", did_you_mean(name, names))
    return document, lambda console: _models(document["models"], console)


def _meant(name: str) -> list[str]:
    """The model that a command would take the name for; none where it would not."""
    try:
        return [resolve_model(name, default_catalog(), allow_paths=False).spec.name]
    except SpecError:
        return []


def show_devices(name: str) -> Shown:
    """All devices, or one in full."""
    catalog = default_catalog()
    if not name:
        devices = [catalog.devices[key] for key in sorted(catalog.devices)]
        document = {"schema_version": SCHEMA_VERSION, "devices": [device_document(device) for device in devices]}
        return document, lambda console: _devices(devices, console)
    device, *others = catalog.device_matches(name, field="device")
    document = {"schema_version": SCHEMA_VERSION, "devices": [device_document(device)]}
    return document, lambda console: _device(device, [other.name for other in others], console)


def show_frameworks(name: str) -> Shown:
    """Frameworks and their variants whose name, or whose framework's, contains ``name``, or that a tool of it runs."""
    document = frameworks_document()
    wanted = name.strip().lower()
    listed = document["frameworks"]
    tool = tool_name(wanted) in TOOLS
    document["frameworks"] = [
        item
        for item in listed
        if (tool_name(wanted) in item["tools"] if tool else wanted in item["name"] or wanted in item["framework"])
    ]
    if not document["frameworks"] or runs_on(wanted):  # "verl" is in "overlap"
        hint = runs_on(wanted) or did_you_mean(wanted, [item["name"] for item in listed])
        raise SpecError("framework", f"no name contains {name[:40]!r}", hint)
    return document, lambda console: _frameworks(document["frameworks"], console)


def _frameworks(listed: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("--framework", no_wrap=True)
    table.add_column("rules of", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for item in listed:
        switch = f"; on with {item['switched_on_by']}" if item["switched_on_by"] else ""
        short = f" (also {item['framework']})" if item["default"] and item["framework"] != item["name"] else ""
        tools = f"; taken for it: {', '.join(item['tools'])}" if item["tools"] else ""
        table.add_row(item["name"] + short, item["framework"], item["description"] + switch + tools)
    console.print(table)


def _models(models: list[dict[str, Any]], console: Console) -> None:
    rows = []
    for model in models:
        moe = model["moe"]
        rows.append(
            [
                model["name"],
                count(model["total_parameters"]),
                count(model["active_parameters"]) if moe else "",
                *(str(model[name]) for name in ("num_layers", "hidden_size", "num_attention_heads")),
                str(model["num_key_value_heads"]),
                str(moe["num_experts"]) if moe else "",
                model["source"],
            ]
        )
    titles = ["model", "params", "active", "layers", "hidden", "heads", "kv", "experts", "source"]
    full = len(models) <= _FEW
    less_telling = ("kv", "heads", "active", "hidden", "layers", "experts")
    leave_out = less_telling if full else ("source", *less_telling)
    _print_listing(titles, rows, console, full=full, leave_out=leave_out)
    if not full:
        console.print("planner models NAME and --json give sources in full", style="dim", highlight=False)


def _devices(devices: list[DeviceSpec], console: Console) -> None:
    rows = []
    for device in devices:
        peaks = device.peak_flops_per_s
        shown = [peaks.get("bf16", peaks.get("fp16")), peaks.get("fp8"), peaks.get("fp4")]
        rows.append(
            [
                device.name,
                *("" if peak is None else f"{peak / TERA:.0f}" for peak in shown),
                f"{device.memory_bytes / GIB:.0f}",
                f"{device.usable_memory_bytes / GIB:.1f}",
                f"{device.memory_bandwidth_bytes_per_s / TERA:.2f}",
                f"{device.power_w:.0f}",
                device.default_node,
            ]
        )
    titles = ["device", "16-bit", "fp8", "fp4", "memory", "usable", "TB/s", "W", "usual node"]
    leave_out = ("usual node", "W", "usable", "fp4", "TB/s", "fp8")
    _print_listing(titles, rows, console, full=False, leave_out=leave_out)
    note = "dense TFLOP/s, GiB; planner gpus NAME gives the source of every figure"
    console.print(note, style="dim", highlight=False)


def _print_listing(
    titles: list[str], rows: list[list[str]], console: Console, *, full: bool, leave_out: Sequence[str]
) -> None:
    """A table whose last column takes what is left of the line, in full or cut."""
    gap = 1 if console.width < NARROW else 2
    used = sum(max(len(row[index]) for row in [titles, *rows]) + gap for index in range(len(titles) - 1))
    left = max(console.width - used, len(titles[-1]))
    table = FittedTable(leave_out=leave_out, padding=(0, gap, 0, 0))
    for index, title in enumerate(titles):
        last = index == len(titles) - 1
        justify: JustifyMethod = "left" if index == 0 or last else "right"
        least = _SOURCE_WIDTH if full and last else len(title)
        table.add_column(title, justify=justify, no_wrap=not last, min_width=least, overflow="fold")
    for row in rows:
        words = row[-1] if full or len(row[-1]) <= left else _short(row[-1])[: left - 1] + "…"
        table.add_row(*row[:-1], words)
    console.print(table)


def _short(source: str) -> str:
    """A source without what every address has in common."""
    return source.removeprefix("https://").replace("huggingface.co/", "hf:").replace("/blob/main/config.json", "")


def _device(device: DeviceSpec, others: list[str], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=device.name, title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("source", justify="right", no_wrap=True)
    sources: dict[str, int] = {}  # with the number it is shown under

    def cited(name: str) -> str:
        source = device.sources.get(name, "")
        return f"[{sources.setdefault(source, len(sources) + 1)}]" if source else ""

    document = device_document(device)
    for name in ("vendor", "architecture", "num_sms", "l2_bytes", "power_w", "memory_bytes", "usable_memory_bytes"):
        value = document[name]
        table.add_row(name, value if isinstance(value, str) else f"{value:,.0f}", Text(cited(name)))
    name = "memory_bandwidth_bytes_per_s"
    table.add_row(name, f"{device.memory_bandwidth_bytes_per_s:,.0f}", Text(cited(name)))
    for form, peak in device.peak_flops_per_s.items():
        name = f"peak_flops_per_s.{form}"
        table.add_row(name, f"{peak:,.0f}", Text(cited(name) or cited("peak_flops_per_s")))
    console.print(table)
    for source, number in sources.items():
        console.print(f"[{number}] {source}", highlight=False, markup=False)
    if others:
        console.print(f"it could also mean {', '.join(others)}", style="dim", highlight=False)
