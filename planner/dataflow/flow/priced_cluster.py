"""A workflow priced on a cluster or a part of it."""

from dataclasses import dataclass

import numpy as np

from planner.dataflow.flow.costs import FlowCosts, flow_costs
from planner.dataflow.flow.placement import Meshes, groups_of, machine_meshes, with_pinned
from planner.dataflow.flow.request import FlowRequest
from profiles.mixed_cluster import MixedCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedCluster:
    """A workflow priced on a cluster or a part of it.

    Attributes:
        cluster: The GPUs.
        meshes: Meshes there are.
        costs: Ways to run each call.
    """

    cluster: MixedCluster
    meshes: Meshes
    costs: FlowCosts


def priced_on(request: FlowRequest, cluster: MixedCluster) -> PricedCluster:
    """Every way to run every call on that cluster.

    Raises:
        SpecError: If a pin or the smallest mesh is none of the cluster's.
    """
    meshes = with_pinned(machine_meshes(cluster, request.options.min_mesh), request.pins, cluster)
    kind = groups_of(cluster, meshes.start)
    sizes = [np.unique(meshes.size[kind == group]).tolist() for group in range(len(cluster.groups))]
    costs = flow_costs(request, cluster, sizes)
    return PricedCluster(cluster=cluster, meshes=meshes, costs=costs)
