"""A workflow priced on a cluster or a part of it."""

from dataclasses import dataclass

import numpy as np

from planner.dataflow.flow_costs import FlowCosts, flow_costs
from planner.dataflow.flow_request import FlowRequest
from planner.dataflow.placement import Meshes, cluster_meshes, with_pinned
from profiles.hardware import ClusterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedCluster:
    """A workflow priced on a cluster or a part of it.

    Attributes:
        cluster: The GPUs.
        meshes: Meshes there are.
        costs: Ways to run each call.
    """

    cluster: ClusterSpec
    meshes: Meshes
    costs: FlowCosts


def priced_on(request: FlowRequest, cluster: ClusterSpec) -> PricedCluster:
    """Every way to run every call on that cluster.

    Raises:
        SpecError: If a pin or the smallest mesh is none of the cluster's.
    """
    meshes = with_pinned(cluster_meshes(cluster, request.options.min_mesh), request.pins)
    costs = flow_costs(request, cluster, np.unique(meshes.size).tolist())
    return PricedCluster(cluster=cluster, meshes=meshes, costs=costs)
