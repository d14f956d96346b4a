"""What is known by name besides models and devices, as plain data: workflows, engines, nodes and links."""

from typing import Any

from planner.schema_types import SCHEMA_VERSION
from profiles.catalog import default_catalog
from profiles.cluster_string import node_parts


def workflows_document() -> dict[str, Any]:
    """Every workflow, with its roles, its calls and the settings it takes."""
    from planner.dataflow.graphs.presets import PRESETS, build_preset

    listed = [
        {
            "name": preset.name,
            "summary": preset.summary,
            "source": preset.source,
            "roles": [role.name for role in build_preset(preset.name).roles],
            "calls": list(build_preset(preset.name).order),
            "settings": {setting: _plain(getattr(preset.defaults, setting)) for setting in preset.takes},
        }
        for preset in PRESETS.values()
    ]
    return {"schema_version": SCHEMA_VERSION, "workflows": listed}


def _plain(value: Any) -> Any:
    """A setting's default as JSON has it."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else float(value)


def engines_document() -> dict[str, Any]:
    """Every engine that serves or generates, by name."""
    from profiles.engines import load_engines

    listed = [
        {
            "name": engine.name,
            "description": engine.description,
            "splits_stages": engine.splits_stages,
            "disaggregates": engine.disaggregates,
            "speculates": list(engine.speculates),
            "memory_utilization": engine.memory_utilization,
            "max_sequences": engine.max_sequences,
            "prefill_tokens": engine.prefill_tokens,
        }
        for engine in load_engines().values()
    ]
    return {"schema_version": SCHEMA_VERSION, "engines": listed}


def nodes_document() -> dict[str, Any]:
    """Every node, as the mapping of a cluster names it and its parts."""
    listed = [
        {
            "name": node.name,
            "device": node.device.name,
            **node_parts(node),
            "host_memory_bytes": node.host_memory_bytes,
            "source": node.source,
        }
        for node in default_catalog().nodes.values()
    ]
    return {"schema_version": SCHEMA_VERSION, "nodes": listed}


def links_document() -> dict[str, Any]:
    """Every link that connects devices, hosts or nodes."""
    listed = [
        {
            "name": link.name,
            "kind": link.kind,
            "bandwidth_bytes_per_s": link.bandwidth_bytes_per_s,
            "latency_s": link.latency_s,
            "peer_to_peer": link.peer_to_peer,
            "source": link.source,
        }
        for link in default_catalog().links.values()
    ]
    return {"schema_version": SCHEMA_VERSION, "links": listed}
