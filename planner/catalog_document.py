"""The catalogue as documents: what ``planner models --json``, ``planner gpus --json`` and the service show.

Every figure comes with the document it was read from; quantities are in SI units, named in the key.
"""

from dataclasses import asdict
from typing import Any

from planner.schema import SCHEMA_VERSION
from profiles.catalog import Catalog
from profiles.hardware import DeviceSpec, LinkSpec, NodeSpec
from profiles.model import ModelSpec
from profiles.model_presets import list_models, resolve_model
from profiles.parameters import active_parameters, total_parameters

Document = dict[str, Any]


def models_document(catalog: Catalog) -> Document:
    """Every model preset, ordered by name."""
    return {
        "schema_version": SCHEMA_VERSION,
        "models": [_model_entry(model, ()) for model in list_models(catalog)],
    }


def model_document(name: str, catalog: Catalog) -> Document:
    """The model a name means, with what was assumed on the way to it.

    Raises:
        SpecError: If the name is unknown; files are not looked at.
    """
    found = resolve_model(name, catalog, allow_paths=False)
    return {"schema_version": SCHEMA_VERSION, **_model_entry(found.spec, found.assumptions)}


def devices_document(catalog: Catalog) -> Document:
    """Every device with the node it usually comes in, ordered by name."""
    return {
        "schema_version": SCHEMA_VERSION,
        "devices": [_device_entry(catalog.devices[name], catalog) for name in sorted(catalog.devices)],
    }


def device_document(name: str, catalog: Catalog) -> Document:
    """The device a name means; an ambiguous name means the first match, the others are listed.

    Raises:
        SpecError: If the name is unknown.
    """
    first, *others = catalog.device_matches(name, field="device")
    return {
        "schema_version": SCHEMA_VERSION,
        **_device_entry(first, catalog),
        "also_matches": [device.name for device in others],
    }


def _model_entry(model: ModelSpec, assumptions: tuple[str, ...]) -> Document:
    fields = asdict(model)
    return {
        "name": fields.pop("name"),
        "parameters": total_parameters(model),
        "active_parameters": active_parameters(model),
        "published_parameters": fields.pop("published_parameters"),
        "source": fields.pop("source"),
        "assumptions": list(assumptions),
        "dimensions": fields,
    }


def _device_entry(device: DeviceSpec, catalog: Catalog) -> Document:
    node = catalog.nodes.get(device.default_node)
    return {
        "name": device.name,
        "vendor": device.vendor,
        "architecture": device.architecture,
        "peak_flops_per_s": dict(device.peak_flops_per_s),
        "memory_bytes": device.memory_bytes,
        "usable_memory_bytes": device.usable_memory_bytes,
        "memory_bandwidth_bytes_per_s": device.memory_bandwidth_bytes_per_s,
        "num_sms": device.num_sms,
        "l2_bytes": device.l2_bytes,
        "power_w": device.power_w,
        "default_node": None if node is None else _node_entry(node),
        "sources": dict(device.sources),
    }


def _node_entry(node: NodeSpec) -> Document:
    return {
        "name": node.name,
        "devices_per_node": node.devices_per_node,
        "domain_devices": node.domain_devices,
        "scale_up": _link_entry(node.scale_up),
        "nic": _link_entry(node.nic),
        "nics_per_node": node.nics_per_node,
        "host_link": _link_entry(node.host_link),
        "host_memory_bytes": node.host_memory_bytes,
        "source": node.source,
    }


def _link_entry(link: LinkSpec) -> Document:
    return asdict(link)
