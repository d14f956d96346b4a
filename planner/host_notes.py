"""What to know of hosts and of what frameworks make of networks, said of every kind of result."""

from collections.abc import Iterable

from planner.results import Note
from profiles.hardware import ClusterSpec
from profiles.stack import StackSpec
from profiles.units import GIGA

# What hosts kept out of the fit took over their price: docs/collectives.md, kin, pcie-staged.
_STAGED = "devices without peer access: badly set up hosts take ten times as long for messages between them"


def host_notes(clusters: Iterable[ClusterSpec]) -> tuple[Note, ...]:
    """A warning where devices of a host have no peer access and the price is that of a host that is set up well.

    Args:
        clusters: The machines that were asked about.
    """
    nodes = [cluster.node for cluster in clusters]
    if any(node.devices_per_node > 1 and not (node.scale_up.peer_to_peer or node.scale_up.one_host) for node in nodes):
        return (Note(code="depends_on_host", field="cluster.scale_up", message=_STAGED),)
    return ()


def limit_notes(cluster: ClusterSpec, stack: StackSpec) -> tuple[Note, ...]:
    """A warning where a framework's own limit, and not the network, is what transfers between nodes run at.

    Args:
        cluster: The machines that were asked about.
        stack: Who runs on them.
    """
    limit = stack.scale_out_group_bytes_per_s
    if (
        not limit
        or cluster.num_nodes == 1
        or cluster.node.nics_per_node * cluster.node.nic.bandwidth_bytes_per_s <= limit
    ):
        return ()
    message = f"groups across nodes run at {limit / GIGA:.0f} GB/s at most, as runs of {stack.name} and its kin show"
    return (Note(code="framework_limit", field="framework", message=f"{message}: faster networks gain nothing"),)
