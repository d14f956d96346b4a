"""What to know of hosts whose devices reach each other through host memory, said of every kind of result."""

from collections.abc import Iterable

from planner.results import Note
from profiles.hardware import ClusterSpec

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
