"""Named models and clusters of the published reinforcement-learning runs."""

from collections.abc import Mapping
from functools import lru_cache

from costmodels.model_calls import CallTable, ModelCall
from costmodels.plan import PlanBatch
from planner.dataflow.call_costs import CallSetting, price_generation
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.engines import EngineSpec
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack
from profiles.weights import WeightFormat


@lru_cache(maxsize=32)
def model_named(name: str) -> ModelSpec:
    """A model of the packaged catalogue."""
    return resolve_model(name, default_catalog(), allow_paths=False).spec


@lru_cache(maxsize=64)
def cluster_of(num_devices: int, device: str, devices_per_node: int = 8) -> ClusterSpec:
    """So many devices in nodes, or in part of one node."""
    nodes = max(num_devices // devices_per_node, 1)
    return parse_cluster(f"{nodes}x{min(num_devices, devices_per_node)}x{device}", default_catalog(), fabric=None)


def replica(
    call: ModelCall,
    model: ModelSpec,
    cluster: ClusterSpec,
    engine: EngineSpec,
    *,
    layout: Mapping[str, int] | None = None,
    weights: WeightFormat | None = None,
    eight_bit_cache: bool = False,
) -> CallTable:
    """Ways to run a generation call on all devices of the cluster.

    Args:
        call: Prompts and answers.
        model: Whose.
        cluster: Its devices.
        engine: Who generates, in which share of memory, and how many prompt tokens a step reads.
        layout: Columns of the plan; None for one replica whose tensors, and those of experts, are split over all.
        weights: How matrices lie in the checkpoint, where not in 16 bits; the call says what multiplies them.
        eight_bit_cache: Keys and values are kept in 8 bits.
    """
    if layout is None:
        experts = 1 if model.moe is None else cluster.num_devices
        layout = {"tensor_parallel": cluster.num_devices, "expert_tensor_parallel": experts}
    at_once = min(max(engine.prefill_tokens // call.prompt_tokens, 1), call.num_sequences)
    return price_generation(
        PlanBatch.from_columns(1, **layout, micro_batch_size=at_once),
        call,
        model,
        CallSetting(
            cluster=cluster,
            stack=find_stack("megatron"),
            weights=weights,
            eight_bit_cache=eight_bit_cache,
        ),
        engine,
    )
