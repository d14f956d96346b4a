"""Named models and clusters of the published reinforcement-learning runs."""

from functools import lru_cache

from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model


@lru_cache(maxsize=32)
def model_named(name: str) -> ModelSpec:
    """A model of the packaged catalogue."""
    return resolve_model(name, default_catalog(), allow_paths=False).spec


@lru_cache(maxsize=64)
def cluster_of(num_devices: int, device: str, devices_per_node: int = 8) -> ClusterSpec:
    """So many devices in nodes, or in part of one node."""
    nodes = max(num_devices // devices_per_node, 1)
    return parse_cluster(f"{nodes}x{min(num_devices, devices_per_node)}x{device}", default_catalog(), fabric=None)
